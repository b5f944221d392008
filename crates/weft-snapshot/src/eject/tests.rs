use proptest::prelude::*;

use super::*;

const NOW: Mono = Mono::secs(1000);

fn fail(e: &Ejector, ix: u32, times: u32, now: Mono) -> Option<Ejected> {
    (0..times).fold(None, |last, _| e.feed(EndpointIx(ix), Feed::GatewayFailure, now).or(last))
}

fn after(s: u64) -> Mono {
    NOW.plus(Duration::from_secs(s))
}

#[test]
fn failures_in_a_row_eject_for_growing_times() {
    let e = Ejector::new(Settings::default(), 4);
    assert_eq!(fail(&e, 0, 4, NOW), None);
    assert_eq!(e.feed(EndpointIx(0), Feed::Success, NOW), None);
    assert_eq!(fail(&e, 0, 4, NOW), None);
    assert_eq!(fail(&e, 0, 1, NOW), Some(Ejected { until: after(30), times: 1 }));
    assert_eq!((e.ejected(NOW), e.ejected(after(30))), (1, 0));
    // while out, nothing more happens to it
    assert_eq!(fail(&e, 0, 20, after(10)), None);
    assert_eq!(e.ejected_until(EndpointIx(0)), after(30));
    // the next time it is out for longer, up to the longest
    assert_eq!(fail(&e, 0, 5, after(31)), Some(Ejected { until: after(31 + 60), times: 2 }));
    let mut now = after(100);
    for times in 3..15 {
        let e = fail(&e, 0, 5, now).unwrap();
        assert_eq!((e.times, e.until), (times, now.plus(Duration::from_secs(300.min(30 * u64::from(times))))));
        now = e.until.plus(Duration::from_secs(1));
    }
    // in peace for as long as the longest ejection: forgiven
    assert_eq!(fail(&e, 0, 5, now.plus(Duration::from_secs(300))).unwrap().times, 1);
}

#[test]
fn at_most_half_are_out() {
    let e = Ejector::new(Settings::default(), 5);
    for ix in 0..5 {
        fail(&e, ix, 9, NOW);
        e.check_invariants(NOW);
    }
    assert_eq!(e.ejected(NOW), 2);
    let one = Ejector::new(Settings::default(), 1);
    assert_eq!(fail(&one, 0, 9, NOW), None);
    assert_eq!(Ejector::new(Settings::default(), 0).feed(EndpointIx(3), Feed::GatewayFailure, NOW), None);
    // as soon as one is back, the next failure of another ejects it
    assert!(fail(&e, 4, 1, after(30)).is_some());
}

#[test]
fn what_a_far_proxy_refuses_never_counts() {
    for status in [401, 403, 421, 429] {
        assert_eq!(feed_of_status(status, true), Feed::Nothing, "{status}");
        assert_eq!(feed_of_status(status, false), Feed::Success, "{status}");
    }
    for by_proxy in [true, false] {
        for status in [502, 503, 504] {
            assert_eq!(feed_of_status(status, by_proxy), Feed::GatewayFailure);
        }
        for status in [200, 301, 404, 500, 501, 505] {
            assert_eq!(feed_of_status(status, by_proxy), Feed::Success);
        }
    }
    for kind in [FailureKind::ConnectFailed, FailureKind::UpstreamReset, FailureKind::TryTimeout] {
        assert_eq!(feed_of_failure(kind), Feed::GatewayFailure);
    }
    for kind in
        [FailureKind::DownstreamClosed, FailureKind::Denied, FailureKind::UpstreamRefused, FailureKind::Draining]
    {
        assert_eq!(feed_of_failure(kind), Feed::Nothing);
    }
}

#[test]
fn a_new_list_of_endpoints_keeps_what_is_known() {
    let e = Ejector::new(Settings::default(), 4);
    fail(&e, 2, 5, NOW);
    fail(&e, 3, 4, NOW);
    // the first is gone, a new one came last
    let new = e.carried(4, |ix| (ix.0 < 3).then_some(EndpointIx(ix.0 + 1)));
    assert_eq!(new.ejected_until(EndpointIx(1)), after(30));
    assert_eq!(new.ejected_until(EndpointIx(3)), Mono::ZERO);
    assert!(fail(&new, 2, 1, NOW).is_some());
}

proptest! {
    #[test]
    fn never_more_than_the_share_and_never_without_cause(
        endpoints in 1_usize..9,
        steps in prop::collection::vec((0_u32..9, 0_u8..10, 0_u64..40), 1..300),
    ) {
        let e = Ejector::new(Settings::default(), endpoints);
        let mut now = NOW;
        let mut row = vec![0; endpoints];
        for (ix, what, secs) in steps {
            let at = ix as usize % endpoints;
            let ix = EndpointIx(at as u32);
            if secs > 35 {
                now = now.plus(Duration::from_secs(secs));
            }
            let feed = if what < 7 { Feed::GatewayFailure } else { Feed::Success };
            row[at] = if feed == Feed::Success { 0 } else { row[at] + 1 };
            if let Some(out) = e.feed(ix, feed, now) {
                prop_assert!(row[at] >= 5 && out.until > now);
                row[at] = 0;
            }
            e.check_invariants(now);
        }
    }
}
