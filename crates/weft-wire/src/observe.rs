//! Decisions as they travel to whoever asks: names and numbers, and the sentences of the proxy that made them.

use bytes::Bytes;
use weft_model::Digest;
use weft_snapshot::{
    decision::{Decision, Direction, Policy, Route, Spoken, Try, explain},
    failure::Sent,
};

use crate::{fragment::revision, v1};

/// `proxy` is the uid of the workload whose proxy decided; `digest` that of the set it decided from.
pub fn decision(proxy: &str, digest: Digest, d: &Decision) -> v1::Decision {
    let text = |id: &Option<weft_model::SpiffeId>| id.as_ref().map(ToString::to_string).unwrap_or_default();
    let (source, destination) = (text(&d.source), text(&d.destination));
    let (verdict, rule, reason) = match &d.policy {
        Policy::NotAsked => ("", None, String::new()),
        Policy::Allowed { rule, why } => ("allow", rule.as_ref(), why.to_string()),
        Policy::Denied { rule, why } => ("deny", rule.as_ref(), why.to_string()),
    };
    let mut out = v1::Decision {
        request_id: d.request.to_string(),
        at_ms: d.at.as_millis(),
        proxy: proxy.to_owned(),
        direction: match d.direction {
            Direction::Inbound => "inbound".to_owned(),
            Direction::Outbound => "outbound".to_owned(),
        },
        source_identity: source,
        protocol: match d.protocol {
            Spoken::Http => "http".to_owned(),
            Spoken::Tcp => "tcp".to_owned(),
        },
        route: match &d.route {
            Route::Rule(rule) => rule.to_string(),
            Route::NotAsked | Route::Default | Route::NotFound => String::new(),
        },
        verdict: verdict.to_owned(),
        rule: rule.map(ToString::to_string).unwrap_or_default(),
        reason,
        status: u32::from(d.status),
        revision: Some(revision(d.revision)),
        digest: Bytes::copy_from_slice(digest.as_bytes()),
        explanation: explain(d),
        ..v1::Decision::default()
    };
    if let Some((service, port)) = &d.service {
        (out.service, out.port) = (service.to_string(), u32::from(*port));
    }
    if let Some(kind) = d.failure {
        (out.failure, out.flag) = (kind.label().to_owned(), kind.flag().to_owned());
    }
    let mut say = |key: &str, value: String| out.attributes.insert(key.to_owned(), value);
    if !destination.is_empty() {
        say("destination_identity", destination);
    }
    if matches!(d.route, Route::NotFound) {
        say("route", "not found".to_owned());
    }
    if d.attempts > 1 {
        say("attempts", d.attempts.to_string());
    }
    if let Some(why) = d.gave_up {
        say("gave_up", why.to_string());
    }
    if let Some(pick) = &d.pick {
        for (uid, why) in &pick.skipped {
            say(&format!("skipped/{uid}"), why.to_string());
        }
        if pick.others > 0 {
            say("skipped_others", pick.others.to_string());
        }
    }
    out.attempts = d.tries.iter().map(attempt).collect();
    out
}

fn attempt(t: &Try) -> v1::Attempt {
    v1::Attempt {
        endpoint: t.endpoint.to_string(),
        addr: t.address.to_string(),
        failure: t.failure.map(|kind| kind.label().to_owned()).unwrap_or_default(),
        status: u32::from(t.status),
        dur_us: u64::try_from(t.took.as_micros()).unwrap_or(u64::MAX),
        sent: t.sent == Sent::Sent,
        reason: match (&t.detail, t.failure) {
            (Some(detail), _) => detail.to_string(),
            (None, Some(kind)) => kind.sentence().to_owned(),
            (None, None) => t.standing.to_string(),
        },
    }
}

/// Does the filter let it through? Empty fields match everything.
pub fn matches(filter: &v1::DecisionFilter, d: &v1::Decision) -> bool {
    let v1::DecisionFilter { service, source, verdict, path, failed_only } = filter;
    let same = |want: &str, is: &str| want.is_empty() || want == is;
    same(service, &d.service)
        && (source.is_empty() || *source == d.source || *source == d.source_identity)
        && same(verdict, &d.verdict)
        && (path.is_empty() || d.path.contains(path))
        && !(*failed_only && d.failure.is_empty() && d.verdict != "deny" && d.status < 500)
}

#[cfg(test)]
mod tests {
    use weft_model::{Revision, Wall};
    use weft_snapshot::{authz::DenyReason, failure::FailureKind};

    use super::*;

    #[test]
    fn nov_01_a_denial_travels_with_its_rule() {
        let d = Decision {
            request: "req-1".into(),
            at: Wall::secs(9),
            direction: Direction::Inbound,
            protocol: Spoken::Http,
            source: Some("spiffe://td/ns/shop/sa/web".parse().unwrap()),
            destination: Some("spiffe://td/ns/shop/sa/cart".parse().unwrap()),
            service: Some(("shop/cart".parse().unwrap(), 80)),
            route: Route::NotAsked,
            policy: Policy::Denied {
                rule: Some(std::sync::Arc::new("AuthorizationPolicy/shop/p#rule-2".parse().unwrap())),
                why: DenyReason::Rule,
            },
            pick: None,
            attempts: 1,
            tries: Box::default(),
            gave_up: None,
            failure: Some(FailureKind::Denied),
            teller: Default::default(),
            status: 403,
            revision: Revision::new(1, 42),
        };
        let out = decision("shop/cart/n/1", Digest::of(b"x"), &d);
        assert_eq!((&*out.verdict, &*out.rule), ("deny", "AuthorizationPolicy/shop/p#rule-2"));
        assert_eq!((&*out.service, out.port, out.status), ("shop/cart", 80, 403));
        assert_eq!(out.flag, FailureKind::Denied.flag());
        assert!(out.explanation.contains("AuthorizationPolicy/shop/p#rule-2"), "{}", out.explanation);
        let filter = |f: fn(&mut v1::DecisionFilter)| {
            let mut filter = v1::DecisionFilter::default();
            f(&mut filter);
            matches(&filter, &out)
        };
        assert!(filter(|_| {}));
        assert!(filter(|f| f.failed_only = true));
        assert!(filter(|f| f.source = "spiffe://td/ns/shop/sa/web".into()));
        assert!(!filter(|f| f.verdict = "allow".into()));
        assert!(!filter(|f| f.service = "shop/other".into()));
    }
}
