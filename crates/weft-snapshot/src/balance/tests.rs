use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use weft_model::{Labels, Locality};

use super::*;
use crate::{
    fragment::{Balance, Endpoint},
    samples,
};

const NOW: Mono = Mono::secs(100);
const LATER: Mono = Mono::secs(110);

/// A small generator of our own, so that a failure replays from its seed.
pub(super) fn dice(seed: u64) -> impl FnMut(u32) -> u32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(((state >> 32) * u64::from(n)) >> 32).unwrap()
    }
}

/// One letter per endpoint: `p`assing, `w`arning, `u`nknown, `c`ritical, `d`raining, `m`aintenance, `0` weight, `x` port.
fn endpoints(letters: &str) -> Vec<Endpoint> {
    letters
        .chars()
        .enumerate()
        .map(|(i, c)| {
            let mut e = samples::endpoint("shop/cart", &format!("cart-{i:03}"));
            e.health = match c {
                'w' => Health::Warning,
                'u' => Health::Unknown,
                'c' => Health::Critical,
                'd' => Health::Draining,
                'm' => Health::Maintenance,
                _ => Health::Passing,
            };
            match c {
                '0' => e.weight = 0,
                'x' => e.ports.clear(),
                _ => {}
            }
            e
        })
        .collect()
}

fn pool_of(list: &[Endpoint], balance: Balance) -> Pool {
    Pool::build(balance, list.iter(), 80, &Labels::default())
}

/// One letter per endpoint: `e`jected, `f`ailed to connect, anything else is fine.
fn loads(letters: &str) -> LoadView {
    let mut view = LoadView::new(letters.len());
    for (load, c) in view.loads.iter_mut().zip(letters.chars()) {
        load.connected = true;
        match c {
            'e' => load.ejected_until = LATER,
            'f' => load.connect_failed(NOW),
            _ => {}
        }
    }
    view
}

fn ask(avoid: &[EndpointIx]) -> Ask<'_> {
    Ask { now: NOW, avoid, own: &[], from: None }
}

/// Which endpoints 300 draws reach, and as what; under every way of balancing.
fn check(health: &str, load: &str, avoid: &[u32], want_reached: &[u32], want: Standing) {
    let avoid: Vec<_> = avoid.iter().copied().map(EndpointIx).collect();
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let (pool, load) = (pool_of(&endpoints(health), balance), loads(load));
        let (mut dice, mut reached) = (dice(7), BTreeMap::<u32, u32>::new());
        for _ in 0..300 {
            let picked = pick(&pool, &load, &ask(&avoid), &mut dice).unwrap();
            assert_eq!(picked.why.standing, want, "{balance:?}");
            *reached.entry(picked.ix.0).or_default() += 1;
        }
        assert_eq!(reached.keys().copied().collect::<Vec<_>>(), want_reached, "{health} {load:?} {balance:?}");
    }
}

#[test]
fn trf_14_what_leads_back_to_the_asking_proxy_is_never_picked() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let picked = |health: &str, own: &[EndpointIx], avoid: &[EndpointIx]| {
            let (pool, mut dice) = (pool_of(&endpoints(health), balance), dice(7));
            let ask = Ask { own, ..ask(avoid) };
            let draws = (0..100).map(|_| pick(&pool, &loads(".."), &ask, &mut dice).map(|p| p.ix.0));
            draws.collect::<Result<std::collections::BTreeSet<_>, _>>()
        };
        let ix = [EndpointIx(0), EndpointIx(1)];
        assert_eq!(picked("pp", &ix[..1], &[]), Ok([1].into()));
        assert_eq!(picked("pp", &ix[..1], &ix[1..]), Ok([1].into()), "rather the same again");
        assert_eq!(picked("pw", &ix[..1], &[]), Ok([1].into()), "rather a worse one");
        let nobody = picked("pc", &ix[..1], &[]).unwrap_err();
        assert_eq!(nobody.reasons, [(ix[1], Skipped::Health(Health::Critical)), (ix[0], Skipped::Own)]);
        assert!(!nobody.is_own());
        assert!(picked("p", &ix[..1], &[]).unwrap_err().is_own());
    }
}

#[test]
fn trf_14_passing_then_warning_then_unknown_then_depreferred_then_ejected() {
    check("ppwuc", ".....", &[], &[0, 1], Standing::Passing);
    check("wwuc", "....", &[], &[0, 1], Standing::Warning);
    check("uucdm0x", ".......", &[], &[0, 1], Standing::Unknown);
    check("ppw", "e..", &[], &[1], Standing::Passing);
    check("ppw", "f..", &[], &[1], Standing::Passing);
    check("ppw", "ff.", &[], &[2], Standing::Warning);
    check("ppu", "ff.", &[], &[2], Standing::Unknown);
    check("pp", "ff", &[], &[0, 1], Standing::Depreferred);
    check("ppwc", "ffe.", &[], &[0, 1], Standing::Depreferred);
    check("ww", "ee", &[], &[0, 1], Standing::Ejected);
    check("wu", "fe", &[], &[0], Standing::Depreferred);
}

#[test]
fn trf_14_ejection_is_ignored_when_it_leaves_fewer_than_half() {
    check("pppp", "ee..", &[], &[2, 3], Standing::Passing);
    check("pppp", "eee.", &[], &[0, 1, 2, 3], Standing::Panic);
    check("ppppp", "eee..", &[], &[0, 1, 2, 3, 4], Standing::Panic);
    check("pp", "ee", &[], &[0, 1], Standing::Panic);
    check("pppw", "eee.", &[], &[0, 1, 2], Standing::Panic);
    // … but not what failed to connect just now
    check("pppp", "eef.", &[], &[3], Standing::Passing);
}

#[test]
fn what_was_tried_is_taken_only_when_nothing_else_is_left() {
    check("ppp", "...", &[0], &[1, 2], Standing::Passing);
    check("pw", "..", &[0], &[1], Standing::Warning);
    check("pp", ".e", &[0], &[1], Standing::Ejected);
    check("pp", "..", &[0, 1], &[0, 1], Standing::Passing);
    check("p", ".", &[0], &[0], Standing::Passing);
}

#[test]
fn trf_14_nothing_to_pick_says_why_for_each() {
    let list = endpoints("cdm0x");
    let err = pick(&pool_of(&list, Balance::PeakEwma), &loads("....."), &ask(&[]), &mut dice(1)).unwrap_err();
    let health = |i, h| (EndpointIx(i), Skipped::Health(h));
    assert_eq!(
        err.reasons,
        [
            health(0, Health::Critical),
            health(1, Health::Draining),
            health(2, Health::Maintenance),
            (EndpointIx(3), Skipped::WeightZero),
            (EndpointIx(4), Skipped::NoPort),
        ]
    );
    assert_eq!(err.to_string(), "none of 5 endpoints can be used");
    let none = pick(&pool_of(&[], Balance::Random), &LoadView::default(), &ask(&[]), &mut dice(1)).unwrap_err();
    assert_eq!(none.to_string(), "the service has no endpoints");
}

#[test]
fn nov_01_what_was_passed_over_is_told() {
    let (pool, load) = (pool_of(&endpoints("ppppc"), Balance::PeakEwma), loads(".ef.."));
    let avoid = [EndpointIx(3)];
    let ask = ask(&avoid);
    let told: Vec<_> = skipped(&pool, &load, &ask).collect();
    assert_eq!(
        told,
        [
            (EndpointIx(4), Skipped::Health(Health::Critical)),
            (EndpointIx(1), Skipped::Ejected { until: LATER }),
            (EndpointIx(2), Skipped::Depreferred { until: Mono::secs(105) }),
            (EndpointIx(3), Skipped::Tried),
        ]
    );
}

fn shares(pool: &Pool, load: &LoadView, draws: u32) -> Vec<u32> {
    let mut dice = dice(42);
    let mut counts = vec![0; load.loads.len()];
    for _ in 0..draws {
        counts[pick(pool, load, &ask(&[]), &mut dice).unwrap().ix.0 as usize] += 1;
    }
    counts
}

#[test]
fn trf_14_weights_are_shares_when_idle() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let mut list = endpoints("pp");
        list[1].weight = 3;
        let counts = shares(&pool_of(&list, balance), &loads(".."), 4000);
        assert!((900..1100).contains(&counts[0]), "{balance:?}: {counts:?}");
    }
}

#[test]
fn trf_14_round_robin_takes_turns() {
    let pool = pool_of(&endpoints("ppp"), Balance::RoundRobin);
    let load = loads("...");
    let order: Vec<_> = (0..6).map(|_| pick(&pool, &load, &ask(&[]), &mut dice(1)).unwrap().ix.0).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    let mut list = endpoints("ppp");
    (list[0].weight, list[1].weight, list[2].weight) = (5, 3, 2);
    assert_eq!(shares(&pool_of(&list, Balance::RoundRobin), &loads("..."), 100), [50, 30, 20]);
    // who cannot take a turn loses it to another
    let counts = shares(&pool_of(&endpoints("ppp"), Balance::RoundRobin), &loads(".f."), 90);
    assert_eq!((counts[1], counts[0] + counts[2]), (0, 90));
}

#[test]
fn trf_14_load_decides_between_two() {
    let pool = pool_of(&endpoints("pp"), Balance::LeastRequest);
    let mut load = loads("..");
    load.loads[0].in_flight = 1;
    assert_eq!(shares(&pool, &load, 100), [0, 100]);
    // capacity: three in flight on three times the weight is as good as one on one
    let mut list = endpoints("pp");
    list[1].weight = 3;
    (load.loads[0].in_flight, load.loads[1].in_flight) = (1, 2);
    assert_eq!(shares(&pool_of(&list, Balance::LeastRequest), &load, 100), [0, 100]);

    let pool = pool_of(&endpoints("pp"), Balance::PeakEwma);
    let mut load = loads("..");
    load.loads[0].ewma.observe(Duration::from_millis(50), NOW);
    load.loads[1].ewma.observe(Duration::from_millis(5), NOW);
    // ten times as slow: a hundredth
    let counts = shares(&pool, &load, 10_000);
    assert!((50..150).contains(&counts[0]), "{counts:?}");
    load.loads[1].in_flight = 20;
    assert_eq!(shares(&pool, &load, 100), [100, 0], "who is busy is not in danger of being forgotten");
}

#[test]
fn trf_14_the_price_of_trying_the_slower_is_bounded() {
    for ratio in (10..20_000).map(|n| f64::from(n) / 10.0) {
        let share = share_of_slower(3.0, 3.0 * ratio, 1.0);
        let mean = 1.0 - share + share * ratio;
        assert!(share > 0.0 && share <= 0.5 && mean < 1.2072, "{ratio}: {share}, {mean}");
    }
    // a dead one is not tried for the sake of it
    assert!(share_of_slower(1.0, 1e6, 1.0) < 1e-11);
    // weights stay shares among equals
    assert!((share_of_slower(5.0, 5.0, 9.0) - 0.1).abs() < 1e-9);
}

/// A steady 50 requests a second to endpoints that take so long, one after the other; how many each got.
fn steadily(millis: [f64; 2], weights: [u32; 2], seconds: u32) -> [u32; 2] {
    let mut list = endpoints("pp");
    (list[0].weight, list[1].weight) = (weights[0], weights[1]);
    let (pool, mut load, mut dice) = (pool_of(&list, Balance::PeakEwma), loads(".."), dice(5));
    let mut counts = [0, 0];
    let mut now = NOW;
    for _ in 0..seconds * 50 {
        let at = pick(&pool, &load, &Ask { now, ..ask(&[]) }, &mut dice).unwrap().ix.0 as usize;
        counts[at] += 1;
        // within a tenth of what it takes, as real ones do
        let took = millis[at] * (0.9 + f64::from(dice(200)) / 1000.0);
        now = now.plus(Duration::from_millis(20));
        load.loads[at].ewma.observe(Duration::from_secs_f64(took / 1000.0), now);
    }
    counts
}

#[test]
fn trf_14_the_slower_of_two_versions_keeps_a_share() {
    let share = |[_, slower]: [u32; 2], seconds: u32| f64::from(slower) / f64::from(seconds * 50);
    let twice = share(steadily([1.5, 3.0], [1, 1], 600), 600);
    assert!((0.15..0.25).contains(&twice), "{twice}");
    let thrice = share(steadily([1.0, 3.0], [1, 1], 600), 600);
    assert!((0.07..0.15).contains(&thrice), "{thrice}");
    let hair = share(steadily([1.0, 1.05], [1, 1], 600), 600);
    assert!((0.4..0.6).contains(&hair), "{hair}");
    // a hundred times as slow is tried about as often as its estimate fades, and no more
    let [_, hardly] = steadily([2.0, 200.0], [1, 1], 600);
    assert!((5..60).contains(&hardly), "{hardly}");
    // a canary by weight stays one, faster or slower
    for millis in [[1.0, 1.2], [1.2, 1.0]] {
        let canary = share(steadily(millis, [19, 1], 600), 600);
        assert!((0.02..0.1).contains(&canary), "{millis:?}: {canary}");
    }
}

#[test]
fn trf_14_ewma_rises_at_once_and_falls_slowly() {
    let mut e = Ewma::default();
    assert_eq!(e.at(NOW), 0.0);
    e.observe(Duration::from_millis(100), NOW);
    assert_eq!(e.at(NOW), 1e8);
    e.observe(Duration::from_millis(1), NOW.plus(Duration::from_millis(10)));
    assert!(e.at(NOW.plus(Duration::from_millis(10))) > 0.99e8);
    // after a while without a sample it is forgotten, so that the endpoint is tried again
    assert!(e.at(NOW.plus(Duration::from_secs(100))) < 0.001e8);
    e.observe(Duration::from_millis(200), NOW.plus(Duration::from_secs(1)));
    assert_eq!(e.at(NOW.plus(Duration::from_secs(1))), 2e8);
}

#[test]
fn trf_14_too_many_requests_counts_as_slow_and_is_honoured() {
    let mut load = Load::default();
    load.rate_limited(None, NOW);
    assert_eq!((load.ewma.at(NOW), load.depreferred_until), (5e9, Mono::ZERO));
    load.rate_limited(Some(Duration::from_secs(10)), NOW);
    assert_eq!(load.depreferred_until, Mono::secs(110));
    load.rate_limited(Some(Duration::from_secs(100_000)), NOW);
    assert_eq!(load.depreferred_until, Mono::secs(400));
    load.connect_succeeded();
    assert_eq!(load.depreferred_until, Mono::ZERO);
}

#[test]
fn connected_endpoints_are_preferred_and_others_still_tried() {
    let mut load = loads("..");
    load.loads[1].connected = false;
    let counts = shares(&pool_of(&endpoints("pp"), Balance::PeakEwma), &load, 1000);
    assert!((20..150).contains(&counts[1]), "{counts:?}");
}

#[test]
fn the_callers_zone_is_preferred_while_half_of_it_is_well() {
    let locality = |zone: &str| Locality { region: "r".into(), zone: zone.into() };
    let mut list = endpoints("pppp");
    for (e, zone) in list.iter_mut().zip(["a", "a", "b", "b"]) {
        e.locality = locality(zone);
    }
    let pool = pool_of(&list, Balance::PeakEwma);
    let reached = |load: &str, from: &Locality| {
        let (load, mut dice) = (loads(load), dice(3));
        let ask = Ask { from: Some(from), ..ask(&[]) };
        let picks: Vec<_> = (0..200).map(|_| pick(&pool, &load, &ask, &mut dice).unwrap()).collect();
        let mut reached: Vec<_> = picks.iter().map(|p| p.ix.0).collect();
        reached.sort_unstable();
        reached.dedup();
        (reached, picks.iter().all(|p| p.why.zone))
    };
    assert_eq!(reached("....", &locality("a")), (vec![0, 1], true));
    assert_eq!(reached("....", &locality("b")), (vec![2, 3], true));
    assert_eq!(reached("e...", &locality("a")), (vec![1], true));
    assert_eq!(reached("ee..", &locality("a")), (vec![2, 3], false));
    assert_eq!(reached("....", &locality("c")), (vec![0, 1, 2, 3], false));
    assert_eq!(reached("....", &locality("")), (vec![0, 1, 2, 3], false));
}

#[test]
fn a_subset_is_what_carries_its_labels() {
    let mut list = endpoints("ppp");
    list[1].labels = [("version", "v2"), ("tier", "1")].into_iter().collect();
    let subset: Labels = [("version", "v2")].into_iter().collect();
    let pool = Pool::build(Balance::Random, list.iter(), 80, &subset);
    assert_eq!(pool.members().map(|m| m.ix.0).collect::<Vec<_>>(), [1]);
    let nothing = Pool::build(Balance::Random, list.iter(), 80, &[("version", "v3")].into_iter().collect());
    let err = pick(&nothing, &loads("..."), &ask(&[]), &mut dice(1)).unwrap_err();
    assert!(nothing.is_empty() && err.reasons.is_empty());
}

proptest! {
    #[test]
    fn trf_14_forbidden_endpoints_are_never_picked_and_others_never_starve(
        health in "[pppwucdm0x]{1,12}",
        load in "[..ef]{12}",
        weights in prop::collection::vec(1_u32..200_000, 12),
        balance in prop::sample::select(vec![Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random]),
        avoid in prop::collection::vec(0_u32..12, 0..3),
        seed: u64,
    ) {
        let mut list = endpoints(&health);
        for (e, w) in list.iter_mut().zip(&weights) {
            if e.weight > 0 {
                e.weight = *w;
            }
        }
        let pool = pool_of(&list, balance);
        let load = loads(&load[..health.len()]);
        let avoid: Vec<_> = avoid.into_iter().map(EndpointIx).collect();
        let mut dice = dice(seed);
        let allowed = |e: &Endpoint| e.health.is_pickable() && e.weight > 0 && e.ports.contains_key(&80);
        match pick(&pool, &load, &ask(&avoid), &mut dice) {
            Err(none) => {
                prop_assert!(!list.iter().any(allowed));
                prop_assert_eq!(none.reasons.len(), list.len());
            }
            Ok(picked) => {
                let chosen = &list[picked.ix.0 as usize];
                prop_assert!(allowed(chosen));
                // nobody better was passed over
                let fine = |i: usize| load.loads[i].ejected_until <= NOW && load.loads[i].depreferred_until <= NOW
                    && !avoid.contains(&EndpointIx(i as u32));
                let best = (0..list.len()).filter(|i| allowed(&list[*i]) && fine(*i)).map(|i| list[i].health).min();
                if let Some(best) = best && picked.why.standing != Standing::Panic {
                    prop_assert_eq!(chosen.health, best);
                    prop_assert!(fine(picked.ix.0 as usize));
                }
            }
        }
    }
}

mod simulation;
