//! Istio's semantics as a table: `check(policies, request, expect)`.
//!
//! Policies: `ALLOW from principals=td/ns/shop/sa/web to methods=GET paths=/a*; DENY …`. Rules of a policy are separated
//! by `|`; `!field=` is the negative list; `{}` is the empty rule, and a policy without anything has no rules. The first
//! words may set `mtls=`, `port-mtls=9090:`, `default=`.
//! Requests: `as=shop/web`, or `plain`; `tcp`, or `GET /path`; `ip= port= dip= sni= host= h:name=value`.
//! Verdicts: `allow p0.1` (rule 1 of policy 0) or `allow default`; `deny p0.1 <reason>`.

mod notation;

pub(super) use self::notation::Asked;
pub(crate) use self::notation::inbound;
use self::notation::{short, told, view};
use super::*;
use crate::fragment::Inbound;

fn check(policies: &str, request: &str, expect: &str) {
    let view = view(policies);
    let request = Asked::parse(request);
    assert_eq!(told(&request.evaluate(&view)), expect, "\npolicies: {policies}\nrequest:  {}", request.text);
}

fn check_l4(policies: &str, request: &str, expect: &str) {
    let view = view(policies);
    let request = Asked::parse(request);
    let said = match request.with(|a| evaluate_l4(&view, a)) {
        L4Verdict::NeedsHttp => "needs-http".into(),
        L4Verdict::Allow { rule, why } => told(&Verdict::Allow { rule, why }),
        L4Verdict::Deny { rule, why } => told(&Verdict::Deny { rule, why }),
    };
    assert_eq!(said, expect, "\npolicies: {policies}\nrequest:  {}", request.text);
}

// === the table ===

#[test]
fn sec_21_order_and_defaults() {
    check("", "as=shop/web GET /", "allow default");
    check("", "plain GET /", "deny - not-authenticated");
    check("", "as=shop/web tcp", "allow default");
    check("default=allow", "plain GET /", "allow default");
    check("default=deny", "as=shop/web GET /", "deny - default");
    // an ALLOW policy without rules matches nothing, so everything is denied
    check("ALLOW", "as=shop/web GET /", "deny p0 no-allow:no-rules");
    check("default=allow ALLOW", "as=shop/web GET /", "deny p0 no-allow:no-rules");
    // the empty rule matches everything
    check("default=deny ALLOW {}", "as=shop/web GET /", "allow p0.0");
    check("default=deny ALLOW {}", "plain tcp", "allow p0.0");
    check("DENY {}", "as=shop/web GET /", "deny p0.0 rule");
    // a DENY policy without rules matches nothing
    check("DENY", "as=shop/web GET /", "allow default");
    // DENY comes before ALLOW whatever the order in the list
    check("ALLOW {}; DENY {}", "as=shop/web GET /", "deny p1.0 rule");
    check("DENY {}; ALLOW {}", "as=shop/web GET /", "deny p0.0 rule");
    check("ALLOW {}; DENY to methods=POST", "as=shop/web GET /", "allow p0.0");
    check("ALLOW {}; DENY to methods=POST", "as=shop/web POST /", "deny p1.0 rule");
    // one ALLOW match among several policies is enough
    check("ALLOW to methods=GET; ALLOW to methods=POST", "as=shop/web POST /", "allow p1.0");
    check("ALLOW to methods=GET; ALLOW to methods=POST", "as=shop/web PUT /", "deny p0.0 no-allow:methods");
    check("ALLOW; ALLOW {}", "as=shop/web GET /", "allow p1.0");
    // AUDIT never changes the verdict
    check("AUDIT {}", "as=shop/web GET /", "allow default");
    check("default=deny AUDIT {}", "as=shop/web GET /", "deny - default");
    check("ALLOW to methods=GET; AUDIT {}", "as=shop/web PUT /", "deny p0.0 no-allow:methods");
}

#[test]
fn sec_21_audit_records_what_matches() {
    let audited = |policies: &str, request: &str| {
        let (view, mut seen) = (view(policies), Vec::new());
        Asked::parse(request).with(|a| audit(&view, a, &mut |rule| seen.push(short(rule))));
        seen
    };
    assert_eq!(audited("AUDIT to methods=GET | to methods=PUT; DENY {}", "as=shop/web PUT /"), ["p0.1"]);
    assert_eq!(audited("AUDIT {}; AUDIT to paths=/x", "as=shop/web GET /"), ["p0.0"]);
    assert!(audited("DENY {}; ALLOW {}", "as=shop/web GET /").is_empty());
    // as with DENY, conditions on requests are dropped where there is none
    assert_eq!(audited("AUDIT to methods=GET", "as=shop/web tcp"), ["p0.0"]);
}

#[test]
fn sec_20_a_policy_matches_when_any_rule_does() {
    let p = "ALLOW from principals=td/ns/shop/sa/web to methods=GET | from principals=td/ns/shop/sa/job";
    check(p, "as=shop/web GET /", "allow p0.0");
    check(p, "as=shop/job DELETE /", "allow p0.1");
    check(p, "as=shop/web DELETE /", "deny p0.0 no-allow:methods");
    check(p, "as=shop/else GET /", "deny p0.0 no-allow:principals");
}

#[test]
fn sec_20_any_from_and_any_to_and_all_when() {
    let p = "ALLOW from namespaces=shop from namespaces=ops to methods=GET to paths=/free \
             when source.ip=10.0.0.0/8 when request.headers[x-a]=1";
    check(p, "as=shop/web GET /x ip=10.1.1.1 h:x-a=1", "allow p0.0");
    check(p, "as=ops/web PUT /free ip=10.1.1.1 h:x-a=1", "allow p0.0");
    check(p, "as=evil/web GET /x ip=10.1.1.1 h:x-a=1", "deny p0.0 no-allow:namespaces");
    check(p, "as=shop/web PUT /x ip=10.1.1.1 h:x-a=1", "deny p0.0 no-allow:paths");
    check(p, "as=shop/web GET /x ip=11.1.1.1 h:x-a=1", "deny p0.0 no-allow:source.ip");
    check(p, "as=shop/web GET /x ip=10.1.1.1 h:x-a=2", "deny p0.0 no-allow:request.headers[x-a]");
    check(p, "as=shop/web GET /x ip=10.1.1.1", "deny p0.0 no-allow:request.headers[x-a]");
}

#[test]
fn sec_20_fields_of_a_source_are_anded_and_their_values_ored() {
    let p = "ALLOW from namespaces=shop,ops principals=*/sa/web ip=10.0.0.0/8,192.168.0.0/16";
    check(p, "as=shop/web ip=10.9.9.9 GET /", "allow p0.0");
    check(p, "as=ops/web ip=192.168.1.1 GET /", "allow p0.0");
    check(p, "as=dev/web ip=10.9.9.9 GET /", "deny p0.0 no-allow:namespaces");
    check(p, "as=shop/job ip=10.9.9.9 GET /", "deny p0.0 no-allow:principals");
    check(p, "as=shop/web ip=172.16.0.1 GET /", "deny p0.0 no-allow:ipBlocks");
    let n = "ALLOW from namespaces=shop !principals=td/ns/shop/sa/evil !ip=10.6.6.0/24";
    check(n, "as=shop/web ip=10.0.0.1 GET /", "allow p0.0");
    check(n, "as=shop/evil ip=10.0.0.1 GET /", "deny p0.0 no-allow:notPrincipals");
    check(n, "as=shop/web ip=10.6.6.1 GET /", "deny p0.0 no-allow:notIpBlocks");
}

#[test]
fn sec_20_principals_compare_without_the_scheme() {
    check("ALLOW from principals=td/ns/shop/sa/web", "as=shop/web GET /", "allow p0.0");
    check("ALLOW from principals=td/ns/shop/sa/we", "as=shop/web GET /", "deny p0.0 no-allow:principals");
    check("ALLOW from principals=td/ns/shop/sa/Web", "as=shop/web GET /", "deny p0.0 no-allow:principals");
    check("ALLOW from principals=spiffe://td/ns/shop/sa/web", "as=shop/web GET /", "deny p0.0 no-allow:principals");
    check("ALLOW from principals=td/ns/shop/*", "as=shop/web GET /", "allow p0.0");
    check("ALLOW from principals=td/ns/sho*", "as=shop/web GET /", "allow p0.0");
    check("ALLOW from principals=other/*", "as=shop/web GET /", "deny p0.0 no-allow:principals");
    check("ALLOW from principals=*/sa/web", "as=shop/web GET /", "allow p0.0");
    check("ALLOW from principals=*/sa/job", "as=shop/web GET /", "deny p0.0 no-allow:principals");
    check("ALLOW from principals=*", "as=shop/web GET /", "allow p0.0");
    check("ALLOW from principals=td/ns/a/sa/b,td/ns/shop/sa/web", "as=shop/web GET /", "allow p0.0");
}

#[test]
fn sec_18_other_source_fields() {
    check("ALLOW from namespaces=shop", "as=shop/web tcp", "allow p0.0");
    check("ALLOW from namespaces=shop", "as=shop2/web tcp", "deny p0.0 no-allow:namespaces");
    check("ALLOW from namespaces=sho*", "as=shop2/web tcp", "allow p0.0");
    check("ALLOW from namespaces=*op", "as=shop/web tcp", "allow p0.0");
    check("ALLOW from !namespaces=shop", "as=shop/web tcp", "deny p0.0 no-allow:notNamespaces");
    check("ALLOW from accounts=shop/web", "as=shop/web tcp", "allow p0.0");
    check("ALLOW from accounts=ops/web", "as=shop/web tcp", "deny p0.0 no-allow:serviceAccounts");
    check("ALLOW from !accounts=shop/web", "as=shop/web tcp", "deny p0.0 no-allow:notServiceAccounts");
    check("ALLOW from !accounts=shop/web", "as=shop/job tcp", "allow p0.0");
    check("ALLOW from domains=td", "as=shop/web tcp", "allow p0.0");
    check("ALLOW from domains=td2", "as=shop/web tcp", "deny p0.0 no-allow:trustDomains");
    check("ALLOW from !domains=td", "as=shop/web tcp", "deny p0.0 no-allow:notTrustDomains");
    check("ALLOW from ip=10.0.0.5/32", "as=shop/web ip=10.0.0.5 tcp", "allow p0.0");
    check("ALLOW from ip=10.0.0.5/32", "as=shop/web ip=10.0.0.6 tcp", "deny p0.0 no-allow:ipBlocks");
    check("ALLOW from ip=fd00::/8", "as=shop/web ip=fd00::1 tcp", "allow p0.0");
    check("ALLOW from ip=10.0.0.0/8", "as=shop/web ip=::ffff:10.0.0.1 tcp", "allow p0.0");
    check("ALLOW to ports=8080", "as=shop/web port=8080 tcp", "allow p0.0");
    check("ALLOW to ports=8080,8081", "as=shop/web port=9000 tcp", "deny p0.0 no-allow:ports");
    check("ALLOW to !ports=8080", "as=shop/web port=8080 tcp", "deny p0.0 no-allow:notPorts");
    check("ALLOW to !ports=8080", "as=shop/web port=8081 tcp", "allow p0.0");
}

#[test]
fn sec_19_operations() {
    check("ALLOW to methods=GET", "as=shop/web GET /", "allow p0.0");
    check("ALLOW to methods=get", "as=shop/web GET /", "deny p0.0 no-allow:methods");
    check("ALLOW to methods=*", "as=shop/web PURGE /", "allow p0.0");
    check("ALLOW to methods=GET,HEAD paths=/a,/b", "as=shop/web HEAD /b", "allow p0.0");
    check("ALLOW to methods=GET,HEAD paths=/a,/b", "as=shop/web HEAD /c", "deny p0.0 no-allow:paths");
    check("ALLOW to !methods=DELETE", "as=shop/web DELETE /", "deny p0.0 no-allow:notMethods");
    check("ALLOW to !methods=DELETE", "as=shop/web GET /", "allow p0.0");
    check("ALLOW to paths=/a", "as=shop/web GET /a?x=1", "allow p0.0");
    check("ALLOW to paths=/a", "as=shop/web GET /a/", "deny p0.0 no-allow:paths");
    check("ALLOW to paths=/A", "as=shop/web GET /a", "deny p0.0 no-allow:paths");
    check("ALLOW to paths=/admin*", "as=shop/web GET /administer", "allow p0.0");
    check("ALLOW to paths=*.html", "as=shop/web GET /x/y.html?z", "allow p0.0");
    check("ALLOW to paths=/u/{*}/edit", "as=shop/web GET /u/7/edit", "allow p0.0");
    check("ALLOW to paths=/u/{*}/edit", "as=shop/web GET /u/7/8/edit", "deny p0.0 no-allow:paths");
    check("ALLOW to paths=/u/{**}", "as=shop/web GET /u/7/8/edit", "allow p0.0");
    check("ALLOW to paths=/* !paths=/admin*", "as=shop/web GET /admin/x", "deny p0.0 no-allow:notPaths");
    check("DENY to paths=/admin*", "as=shop/web GET /admin", "deny p0.0 rule");
    check("DENY to !paths=/public*", "as=shop/web GET /public/x", "allow default");
    check("DENY to !paths=/public*", "as=shop/web GET /x", "deny p0.0 rule");
}

#[test]
fn sec_20_hosts_ignore_case_and_a_port_hides_nothing() {
    check("ALLOW to hosts=a.example", "as=shop/web GET / host=a.example", "allow p0.0");
    check("ALLOW to hosts=a.example", "as=shop/web GET / host=A.Example", "allow p0.0");
    check("ALLOW to hosts=a.example", "as=shop/web GET / host=b.example", "deny p0.0 no-allow:hosts");
    check("ALLOW to hosts=*.example", "as=shop/web GET / host=x.EXAMPLE", "allow p0.0");
    check("ALLOW to hosts=a.*", "as=shop/web GET / host=A.b", "allow p0.0");
    check("ALLOW to hosts=*", "as=shop/web GET / host=x", "allow p0.0");
    check("DENY to hosts=a.example", "as=shop/web GET / host=a.example:8080", "deny p0.0 rule");
    check("DENY to hosts=a.example", "as=shop/web GET / host=a.example.", "deny p0.0 rule");
    check("DENY to hosts=a.example:*", "as=shop/web GET / host=a.example:8080", "deny p0.0 rule");
    check("ALLOW to !hosts=a.example", "as=shop/web GET / host=a.example:1", "deny p0.0 no-allow:notHosts");
}

#[test]
fn sec_20_conditions() {
    check("ALLOW when source.namespace=shop", "as=shop/web tcp", "allow p0.0");
    check("ALLOW when source.namespace=ops", "as=shop/web tcp", "deny p0.0 no-allow:source.namespace");
    check("ALLOW when source.principal=td/ns/shop/*", "as=shop/web tcp", "allow p0.0");
    check("ALLOW when source.serviceAccount=shop/web", "as=shop/web tcp", "allow p0.0");
    check("ALLOW when source.trustDomain=td", "as=shop/web tcp", "allow p0.0");
    check("ALLOW when source.ip=10.0.0.1", "as=shop/web ip=10.0.0.1 tcp", "allow p0.0");
    check("ALLOW when source.ip!=10.0.0.1", "as=shop/web ip=10.0.0.1 tcp", "deny p0.0 no-allow:source.ip");
    check("ALLOW when remote.ip=10.0.0.0/24", "as=shop/web ip=10.0.0.1 tcp", "allow p0.0");
    check("ALLOW when destination.ip=10.7.0.1", "as=shop/web dip=10.7.0.1 tcp", "allow p0.0");
    check("ALLOW when destination.ip=10.7.0.1", "as=shop/web tcp", "deny p0.0 no-allow:destination.ip");
    check("ALLOW when destination.port=8080,9090", "as=shop/web port=9090 tcp", "allow p0.0");
    check("ALLOW when destination.port!=9090", "as=shop/web port=9090 tcp", "deny p0.0 no-allow:destination.port");
    check("ALLOW when connection.sni=*.internal", "as=shop/web sni=w-1.internal tcp", "allow p0.0");
    check("ALLOW when connection.sni=*.internal", "as=shop/web tcp", "deny p0.0 no-allow:connection.sni");
    check("ALLOW when connection.sni!=*.internal", "as=shop/web tcp", "allow p0.0");
    // values and notValues of one condition must both hold
    check(
        "ALLOW when source.ip=10.0.0.0/8!=10.6.0.0/16",
        "as=shop/web ip=10.6.0.1 tcp",
        "deny p0.0 no-allow:source.ip",
    );
    check("ALLOW when source.ip=10.0.0.0/8!=10.6.0.0/16", "as=shop/web ip=10.7.0.1 tcp", "allow p0.0");
    check("DENY when source.namespace!=shop", "as=ops/web tcp", "deny p0.0 rule");
}

#[test]
fn sec_20_a_denied_header_is_not_hidden_by_company() {
    let deny = "DENY when request.headers[x-role]=admin";
    for (headers, want) in [
        ("h:x-role=admin", "deny p0.0 rule"),
        ("h:x-role=admin h:x-role=admin", "deny p0.0 rule"),
        ("h:x-role=user h:x-role=admin", "deny p0.0 rule"),
        ("h:x-role=admin,", "deny p0.0 rule"),
        ("h:x-role=user,admin", "deny p0.0 rule"),
        ("h:x-role=user", "allow default"),
        ("h:x-role=administrator h:x-role=user", "allow default"),
        ("", "allow default"),
    ] {
        check(deny, &format!("as=shop/web GET / {headers}"), want);
    }
    check("DENY when request.headers[x-role]!=user", "as=shop/web GET / h:x-role=user,admin", "deny p0.0 rule");
    check("DENY when request.headers[x-role]!=user", "as=shop/web GET / h:x-role=user h:x-role=user", "deny p0.0 rule");
}

#[test]
fn sec_20_header_conditions() {
    check("ALLOW when request.headers[x-v]=1,2", "as=shop/web GET / h:X-V=2", "allow p0.0");
    check("ALLOW when request.headers[x-v]=a*", "as=shop/web GET / h:x-v=abc", "allow p0.0");
    check("ALLOW when request.headers[x-v]=*", "as=shop/web GET / h:x-v=z", "allow p0.0");
    check("ALLOW when request.headers[x-v]=*", "as=shop/web GET /", "deny p0.0 no-allow:request.headers[x-v]");
    check("ALLOW when request.headers[x-v]=*", "as=shop/web GET / h:x-v=", "deny p0.0 no-allow:request.headers[x-v]");
    check("ALLOW when request.headers[x-v]!=bad", "as=shop/web GET /", "allow p0.0");
    check(
        "ALLOW when request.headers[x-v]!=bad",
        "as=shop/web GET / h:x-v=bad",
        "deny p0.0 no-allow:request.headers[x-v]",
    );
    // several fields count as one, joined by commas
    check(
        "ALLOW when request.headers[x-v]=1",
        "as=shop/web GET / h:x-v=1 h:x-v=2",
        "deny p0.0 no-allow:request.headers[x-v]",
    );
    check("ALLOW when request.headers[x-v]=1,2", "as=shop/web GET / h:x-v=1", "allow p0.0");
    check("ALLOW when request.headers[x-v]=1*", "as=shop/web GET / h:x-v=1 h:x-v=2", "allow p0.0");
}

#[test]
fn sec_20_a_key_that_cannot_be_answered_counts_against_the_peer() {
    check("ALLOW when request.auth.claims[a]=1", "as=shop/web GET /", "deny p0.0 no-allow:request.auth.claims[a]");
    check("ALLOW when request.auth.claims[a]!=1", "as=shop/web GET /", "deny p0.0 no-allow:request.auth.claims[a]");
    check("DENY when request.auth.claims[a]=1", "as=shop/web GET /", "deny p0.0 rule");
    check("DENY from namespaces=ops when request.auth.claims[a]=1", "as=shop/web GET /", "allow default");
}

#[test]
fn sec_22_conditions_on_requests_where_there_is_no_http() {
    // ALLOW: the rule is dropped
    check("ALLOW to methods=GET", "as=shop/web tcp", "deny p0.0 not-http");
    check("ALLOW to methods=GET ports=8080", "as=shop/web tcp", "deny p0.0 not-http");
    check("ALLOW to methods=GET to ports=8080", "as=shop/web tcp", "deny p0.0 not-http");
    check("ALLOW when request.headers[a]!=b", "as=shop/web tcp", "deny p0.0 not-http");
    check("ALLOW to !paths=/x", "as=shop/web tcp", "deny p0.0 not-http");
    check("ALLOW to methods=GET | to ports=8080", "as=shop/web tcp", "allow p0.1");
    // … and what fails before is told
    check("ALLOW from namespaces=ops to methods=GET", "as=shop/web tcp", "deny p0.0 no-allow:namespaces");
    // DENY: only the condition is dropped, which denies more
    check("DENY to methods=POST", "as=shop/web tcp", "deny p0.0 rule-without-http");
    check("DENY to methods=POST ports=9090", "as=shop/web tcp", "allow default");
    check("DENY to methods=POST ports=8080", "as=shop/web tcp", "deny p0.0 rule-without-http");
    check("DENY to paths=/x ports=9090 to hosts=y", "as=shop/web tcp", "deny p0.0 rule-without-http");
    check("DENY when request.headers[a]=b when source.ip=10.9.0.0/16", "as=shop/web tcp", "allow default");
    check("DENY from namespaces=ops to methods=POST", "as=shop/web tcp", "allow default");
    check("DENY from namespaces=shop to !methods=GET", "as=shop/web tcp", "deny p0.0 rule-without-http");
}

#[test]
fn sec_23_peers_without_identity() {
    let plain = |p: &str, expect: &str| check(&format!("mtls=permissive default=allow {p}"), "plain GET /", expect);
    plain("", "allow default");
    plain("ALLOW from principals=*", "deny p0.0 no-allow:principals");
    plain("ALLOW from namespaces=*", "deny p0.0 no-allow:namespaces");
    plain("ALLOW from accounts=*", "deny p0.0 no-allow:serviceAccounts");
    plain("ALLOW from domains=*", "deny p0.0 no-allow:trustDomains");
    plain("ALLOW from !principals=td/ns/a/sa/b", "allow p0.0");
    plain("ALLOW from !namespaces=shop", "allow p0.0");
    plain("DENY from !principals=*", "deny p0.0 rule");
    plain("DENY from principals=*", "allow default");
    plain("DENY when source.principal!=*", "deny p0.0 rule");
    check("DENY from !principals=*", "as=shop/web GET /", "allow default");
}

#[test]
fn sec_12_strict_refuses_plaintext_by_name() {
    check("mtls=strict default=allow", "plain GET /", "deny mtls plaintext");
    check("mtls=strict default=allow ALLOW {}", "plain tcp", "deny mtls plaintext");
    check("mtls=strict", "as=shop/web GET /", "allow default");
    check("mtls=permissive default=allow", "plain GET /", "allow default");
    check("mtls=disable default=allow", "plain GET /", "allow default");
    // per port of the workload, both ways
    check("mtls=strict port-mtls=9090:permissive default=allow", "plain port=9090 tcp", "allow default");
    check("mtls=strict port-mtls=9090:permissive default=allow", "plain port=8080 tcp", "deny mtls plaintext");
    check("mtls=permissive port-mtls=9090:strict default=allow", "plain port=9090 tcp", "deny mtls plaintext");
}

#[test]
fn sec_33_one_default_for_those_whom_no_policy_selects() {
    check("default=deny", "plain GET /", "deny - default");
    check("default=deny DENY to methods=PUT", "as=shop/web GET /", "deny - default");
    check("default=authenticated", "as=shop/web GET /", "allow default");
    check("default=authenticated", "plain GET /", "deny - not-authenticated");
    // an ALLOW policy takes the default's place
    check("default=authenticated ALLOW from namespaces=ops", "as=shop/web GET /", "deny p0.0 no-allow:namespaces");
}

#[test]
fn sec_20_an_unresolved_reference_never_allows_and_may_deny() {
    check("ALLOW unresolved=shop/gone", "as=shop/web GET /", "deny p0.0 no-allow:unresolved");
    check("ALLOW unresolved=shop/gone | {}", "as=shop/web GET /", "allow p0.1");
    check("DENY unresolved=shop/gone", "as=shop/web GET /", "deny p0.0 unresolved");
    check("DENY unresolved=shop/gone to methods=PUT", "as=shop/web GET /", "allow default");
    check("DENY unresolved=shop/gone to methods=PUT", "as=shop/web PUT /", "deny p0.0 unresolved");
}

#[test]
fn sec_18_what_stands_in_for_a_rejected_fragment_denies_everybody_by_name() {
    let uid = format!("{}/x/n/i", "long".repeat(60)).parse().unwrap();
    let view = InboundView::compile(&Inbound::refusing(&uid, "unknown field")).unwrap();
    for request in ["as=shop/web GET /", "as=shop/web tcp"] {
        let Verdict::Deny { rule, why } = Asked::parse(request).evaluate(&view) else { panic!("allowed") };
        assert_eq!(why, DenyReason::Unresolved { reference: "unknown field".into() });
        assert_eq!(rule.unwrap().kind.as_str(), "Inbound");
    }
    assert!(!Asked::parse("plain tcp").evaluate(&view).is_allow());
}

#[test]
fn sec_18_connections_are_judged_before_http_is_known() {
    check_l4("", "as=shop/web", "allow default");
    check_l4("mtls=strict default=allow", "plain", "deny mtls plaintext");
    check_l4("ALLOW from namespaces=shop", "as=shop/web", "allow p0.0");
    check_l4("ALLOW from namespaces=ops", "as=shop/web", "deny p0.0 no-allow:namespaces");
    check_l4("ALLOW to methods=GET", "as=shop/web", "needs-http");
    check_l4("ALLOW from namespaces=ops to methods=GET", "as=shop/web", "deny p0.0 no-allow:namespaces");
    check_l4("ALLOW to methods=GET to ports=8080", "as=shop/web", "needs-http");
    check_l4("ALLOW to methods=GET | to ports=8080", "as=shop/web", "allow p0.1");
    check_l4("DENY to methods=POST", "as=shop/web", "needs-http");
    check_l4("DENY to methods=POST ports=9090", "as=shop/web", "allow default");
    check_l4("DENY from namespaces=shop", "as=shop/web", "deny p0.0 rule");
    check_l4("DENY to methods=POST; ALLOW from namespaces=ops", "as=shop/web", "deny p1.0 no-allow:namespaces");
    check_l4("DENY when request.headers[a]=b; ALLOW {}", "as=shop/web", "needs-http");
    check_l4("ALLOW when request.headers[a]=b", "as=shop/web", "needs-http");
    check_l4("DENY to methods=GET | from namespaces=shop", "as=shop/web", "deny p0.1 rule");
}

#[test]
fn sec_20_what_cannot_be_honoured_is_refused_when_compiled() {
    let refused = |p: &str, says: &str| {
        let why = InboundView::compile(&inbound(p)).expect_err(p);
        assert!(why.contains(says) && why.contains("AuthorizationPolicy/shop/p0#rule-0"), "{p}: {why}");
    };
    refused("ALLOW from accounts=web", "namespace/name");
    refused("ALLOW from accounts=shop/*", "namespace/name");
    refused("ALLOW from !accounts=web", "namespace/name");
    refused("ALLOW from ip=10.0.0.0/33", "prefix");
    refused("ALLOW to methods=/{*}", "paths only");
    refused("ALLOW to paths=/{**}/{*}", "after `{**}`");
    refused("ALLOW when destination.port=http", "`http`");
    refused("ALLOW when destination.port=*", "Present");
    refused("ALLOW when source.ip=10.0.0.0/40", "10.0.0.0/40");
    refused("ALLOW when source.namespace=", "neither");
}

#[test]
fn sec_24_a_view_says_whether_paths_matter() {
    assert!(view("ALLOW to paths=/a").reads_paths() && view("DENY to !paths=/a").reads_paths());
    assert!(!view("ALLOW to methods=GET").reads_paths() && view("ALLOW to methods=GET").reads_http());
    assert!(!view("ALLOW to ports=1").reads_http());
}
