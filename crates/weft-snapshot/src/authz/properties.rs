//! What must hold for every policy and every request.

use proptest::prelude::*;

use super::{
    L4Verdict, Verdict, evaluate_l4,
    tests::{Asked, inbound},
};
use crate::{
    authz::InboundView,
    fragment::{Action, DefaultAction, Inbound},
};

fn source() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "principals=td/ns/shop/sa/web",
        "principals=*",
        "!principals=*",
        "!principals=td/ns/shop/sa/web",
        "namespaces=shop",
        "namespaces=ops,dev",
        "!namespaces=ops",
        "accounts=shop/web",
        "domains=td",
        "ip=10.0.0.0/24",
        "!ip=10.0.0.9/32",
        "namespaces=shop ip=10.0.0.0/8",
    ])
    .prop_map(|s| format!("from {s}"))
}

fn operation() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "methods=GET",
        "!methods=GET",
        "paths=/a*",
        "!paths=/a*",
        "hosts=cart.shop",
        "ports=8080",
        "!ports=8080",
        "methods=GET ports=8080",
        "methods=POST paths=/a,/b",
    ])
    .prop_map(|s| format!("to {s}"))
}

fn condition() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "source.namespace=shop",
        "source.namespace!=shop",
        "request.headers[x]=1",
        "request.headers[x]!=1",
        "destination.port=8080",
        "source.ip!=10.0.0.0/8",
        "connection.sni=*",
        "request.auth.claims[a]=1",
        "request.auth.claims[a]!=1",
    ])
    .prop_map(|s| format!("when {s}"))
}

fn rule() -> impl Strategy<Value = String> {
    let parts = (
        prop::collection::vec(source(), 0..3),
        prop::collection::vec(operation(), 0..3),
        prop::collection::vec(condition(), 0..2),
        prop::bool::weighted(0.1),
    );
    parts.prop_map(|(from, to, when, unresolved)| {
        let unresolved = if unresolved { "unresolved=x" } else { "{}" };
        format!("{unresolved} {} {} {}", from.join(" "), to.join(" "), when.join(" "))
    })
}

fn policy(action: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(rule(), 0..3).prop_map(move |rules| format!("{action} {}", rules.join(" | ")))
}

fn policies() -> impl Strategy<Value = Inbound> {
    let any = prop_oneof![policy("ALLOW"), policy("DENY"), policy("AUDIT")];
    let head = prop::sample::select(vec![
        "mtls=strict default=deny",
        "mtls=permissive default=deny",
        "mtls=permissive default=allow",
        "mtls=strict default=authenticated",
    ]);
    (head, prop::collection::vec(any, 0..4)).prop_map(|(head, list)| inbound(&format!("{head} {}", list.join("; "))))
}

fn request() -> impl Strategy<Value = String> {
    let parts = (
        prop::sample::select(vec!["plain", "as=shop/web", "as=ops/job", "as=shop/job"]),
        prop::sample::select(vec!["ip=10.0.0.9", "ip=10.9.0.1", "ip=192.168.0.1"]),
        prop::sample::select(vec!["port=8080", "port=9090"]),
        prop::sample::select(vec!["tcp", "GET /a", "GET /b", "POST /a/x?q", "PUT /"]),
        prop::sample::select(vec!["", "h:x=1", "h:x=1 h:x=2", "sni=s"]),
    );
    parts.prop_map(|(who, ip, port, http, more)| format!("{who} {ip} {port} {http} {more}"))
}

fn verdict(inbound: &Inbound, request: &str) -> Verdict {
    Asked::parse(request).evaluate(&InboundView::compile(inbound).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn sec_21_adding_a_deny_never_allows(base in policies(), deny in policy("DENY"), request in request()) {
        let before = verdict(&base, &request);
        let mut more = base;
        more.policies.extend(inbound(&deny).policies);
        prop_assert!(before.is_allow() || !verdict(&more, &request).is_allow());
    }

    #[test]
    fn sec_21_removing_an_allow_never_allows_more_under_default_deny(base in policies(), request in request(), at in 0_usize..4) {
        let base = Inbound { default: DefaultAction::Deny, ..base };
        let before = verdict(&base, &request);
        let mut less = base;
        if less.policies.get(at).is_some_and(|p| p.action == Action::Allow) {
            less.policies.remove(at);
        } else if let Some(p) = less.policies.iter_mut().find(|p| p.action == Action::Allow) {
            p.rules.pop();
        }
        prop_assert!(before.is_allow() || !verdict(&less, &request).is_allow());
    }

    #[test]
    fn sec_21_audit_and_order_of_policies_change_nothing(base in policies(), request in request()) {
        let before = verdict(&base, &request).is_allow();
        let mut other = base;
        other.policies.retain(|p| p.action != Action::Audit);
        other.policies.reverse();
        prop_assert_eq!(before, verdict(&other, &request).is_allow());
    }

    #[test]
    fn sec_18_the_first_judgement_never_contradicts_the_second(base in policies(), request in request()) {
        let view = InboundView::compile(&base).unwrap();
        let asked = Asked::parse(&request);
        let fin = asked.evaluate(&view);
        match asked.with(|a| evaluate_l4(&view, a)) {
            L4Verdict::Allow { .. } => prop_assert!(fin.is_allow(), "{:?}", fin),
            L4Verdict::Deny { .. } => prop_assert!(!fin.is_allow(), "{:?}", fin),
            L4Verdict::NeedsHttp => prop_assert!(view.reads_http()),
        }
    }

    #[test]
    fn nov_01_a_verdict_names_a_rule_that_is_there(base in policies(), request in request()) {
        let v = verdict(&base, &request);
        if let Some(rule) = v.rule().filter(|r| r.kind.as_str() == "AuthorizationPolicy") {
            let action = base.policies.iter().find(|p| p.origin == rule.document()).map(|p| p.action);
            let deny_rule = matches!(&v, Verdict::Deny { why, .. }
                if !matches!(why, super::DenyReason::NoAllow { .. } | super::DenyReason::NotHttp));
            prop_assert_eq!(action, Some(if deny_rule { Action::Deny } else { Action::Allow }));
        }
    }
}
