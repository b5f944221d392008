use super::*;
use crate::{
    authz::{AllowReason, Clause, DenyReason, SourceField},
    balance::{Skipped, Standing},
    decision::Chosen,
    failure::FailureKind,
    retry::GiveUp,
    samples,
};
use weft_model::{Health, Mono, Revision, Wall};

fn decision() -> Decision {
    Decision {
        request: "req-1".into(),
        at: Wall::secs(1_790_158_777),
        direction: Direction::Outbound,
        protocol: Spoken::Http,
        source: Some("spiffe://td/ns/shop/sa/web".parse().unwrap()),
        destination: None,
        service: Some((samples::key("shop/cart"), 80)),
        route: Route::Default,
        policy: Policy::NotAsked,
        pick: None,
        attempts: 1,
        tries: Box::default(),
        gave_up: None,
        failure: None,
        teller: Teller::Proxy,
        status: 200,
        revision: Revision::new(1, 42),
    }
}

fn chosen() -> Chosen {
    Chosen {
        uid: samples::uid("shop/cart", "cart-1"),
        address: "10.0.0.1:15008".parse().unwrap(),
        standing: Standing::Passing,
        over: Some(samples::uid("shop/cart", "cart-2")),
    }
}

#[test]
fn nov_01_an_ordinary_success() {
    let mut d = decision();
    d.route = Route::Rule(std::sync::Arc::new("HTTPRoute/shop/split#rule-0".parse().unwrap()));
    let skipped = vec![(samples::uid("shop/cart", "cart-3"), Skipped::Health(Health::Critical))];
    d.pick = Some(Box::new(Pick { chosen: Some(chosen()), skipped, others: 2 }));
    insta::assert_snapshot!(explain(&d), @"
    2026-09-23T10:19:37.000Z: request req-1 went out from spiffe://td/ns/shop/sa/web for shop/cart:80.
    Route HTTPRoute/shop/split#rule-0 matched.
    Endpoint shop/cart/n1/cart-1 at 10.0.0.1:15008 was picked (passing) over shop/cart/n1/cart-2.
    Endpoint shop/cart/n1/cart-3 was passed over: critical.
    So were 2 others.
    It was answered 200, at revision 1.42.
    ");
}

#[test]
fn nov_01_a_denial_names_rule_and_clause() {
    let mut d = decision();
    (d.direction, d.route, d.status) = (Direction::Inbound, Route::NotAsked, 403);
    d.destination = Some("spiffe://td/ns/shop/sa/cart".parse().unwrap());
    d.policy = Policy::Denied {
        rule: Some(std::sync::Arc::new("AuthorizationPolicy/shop/cart#rule-1".parse().unwrap())),
        why: DenyReason::NoAllow { failing: Clause::From(SourceField::Principals) },
    };
    d.failure = Some(FailureKind::Denied);
    insta::assert_snapshot!(explain(&d), @"
    2026-09-23T10:19:37.000Z: request req-1 came in from spiffe://td/ns/shop/sa/web for shop/cart:80 to spiffe://td/ns/shop/sa/cart.
    Denied by AuthorizationPolicy/shop/cart#rule-1: no ALLOW rule matched; of the nearest one `from.source.principals` did not hold.
    It was answered 403 by the proxy itself (DENY, denied): policy denies it, at revision 1.42.
    ");
}

#[test]
fn nov_01_no_healthy_endpoint() {
    let mut d = decision();
    let skipped = vec![
        (samples::uid("shop/cart", "cart-1"), Skipped::Ejected { until: Mono::secs(9) }),
        (samples::uid("shop/cart", "cart-2"), Skipped::Health(Health::Draining)),
    ];
    d.pick = Some(Box::new(Pick { chosen: None, skipped, others: 0 }));
    (d.failure, d.status) = (Some(FailureKind::NoHealthyEndpoint), 503);
    insta::assert_snapshot!(explain(&d), @"
    2026-09-23T10:19:37.000Z: request req-1 went out from spiffe://td/ns/shop/sa/web for shop/cart:80.
    No route is attached: it goes to the service itself.
    No endpoint could be picked.
    Endpoint shop/cart/n1/cart-1 was passed over: ejected after consecutive failures.
    Endpoint shop/cart/n1/cart-2 was passed over: draining.
    It was answered 503 by the proxy itself (UH, no_healthy_endpoint): the service has no endpoint that may be used, at revision 1.42.
    ");
}

#[test]
fn nov_01_an_exhausted_retry_on_a_plain_connection() {
    let mut d = decision();
    (d.source, d.protocol, d.status) = (None, Spoken::Tcp, 0);
    d.policy = Policy::Allowed { rule: None, why: AllowReason::Default };
    (d.attempts, d.gave_up) = (3, Some(GiveUp::Attempts { tries: 3 }));
    d.failure = Some(FailureKind::ConnectFailed);
    insta::assert_snapshot!(explain(&d), @"
    2026-09-23T10:19:37.000Z: connection req-1 went out from a peer without an identity for shop/cart:80.
    No route is attached: it goes to the service itself.
    Allowed: no ALLOW policy selects the workload and the default allows everyone.
    It was tried 3 times.
    No further try was made: all 3 tries that its route allows were used.
    It was ended by the proxy itself (UF, connect_failed): the endpoint could not be connected to, at revision 1.42.
    ");
}

#[test]
fn nov_01_every_try_of_an_exhausted_retry_is_told() {
    let mut d = decision();
    d.route = Route::Rule(std::sync::Arc::new("HTTPRoute/shop/split#rule-0".parse().unwrap()));
    let one = |id, failure, status, detail: Option<&str>| Try {
        endpoint: samples::uid("shop/cart", id),
        address: "10.0.0.1:15008".parse().unwrap(),
        standing: Standing::Passing,
        failure,
        status,
        sent: if failure.is_some() { Sent::NotSent } else { Sent::Sent },
        took: std::time::Duration::from_micros(2500),
        detail: detail.map(Into::into),
    };
    d.tries = Box::new([
        one("cart-1", Some(FailureKind::ConnectFailed), 0, Some("connection refused")),
        one("cart-2", None, 503, None),
    ]);
    (d.attempts, d.gave_up) = (2, Some(GiveUp::Attempts { tries: 2 }));
    (d.failure, d.status, d.teller) = (Some(FailureKind::RetriesExhausted), 503, Teller::Application);
    insta::assert_snapshot!(explain(&d), @"
    2026-09-23T10:19:37.000Z: request req-1 went out from spiffe://td/ns/shop/sa/web for shop/cart:80.
    Route HTTPRoute/shop/split#rule-0 matched.
    It was tried 2 times.
    Try 1 went to shop/cart/n1/cart-1 at 10.0.0.1:15008 (passing) and failed: the endpoint could not be connected to (connect_failed), nothing of it had been sent, after 2 ms: connection refused.
    Try 2 went to shop/cart/n1/cart-2 at 10.0.0.1:15008 (passing) and was answered 503, after 2 ms.
    No further try was made: all 2 tries that its route allows were used.
    It was answered 503 by the application (URX, retries_exhausted): every try failed, at revision 1.42.
    ");
}

#[test]
fn nov_01_a_record_stays_small() {
    assert!(size_of::<Decision>() <= 256, "{}", size_of::<Decision>());
}
