//! Whole lives of an identity: clocks that step, an authority that is away.

use weft_sim::seeded::{Dice, Seeds};

use super::*;

/// One simulated life: clock steps to at most `skew` ahead and two lives behind, outages of up to `outage`; returns a
/// fingerprint of the trace.
/// True time is what peers and the authority see; the identity's own wall clock is off by `offset`.
fn simulate(seed: u64, ttl: Duration, total: Duration, skew: Duration, outage: Duration) -> u64 {
    let mut rolls = Dice::seeded(seed);
    let mut truth = START.wall;
    let mut mono = START.mono;
    let mut offset: i64 = 0;
    let end = truth.plus(total);
    let (mut state, mut valid) = (State::NONE, None);
    let mut down_until = truth;
    let mut next_outage = truth.plus(ttl);
    let (mut fingerprint, mut renewals) = (seed, 0_u32);
    let skew = i64::try_from(skew.as_millis()).unwrap();
    // a clock that is ahead takes what is valid for expired; one that is behind, by any time, must not keep what expires
    let back = i64::try_from(ttl.as_millis()).unwrap() * 2;
    while truth < end {
        if truth >= next_outage {
            let length = Duration::from_millis(rolls.below(u64::try_from(outage.as_millis()).unwrap()));
            down_until = truth.plus(length);
            // the next one begins when a renewal has surely been answered
            next_outage =
                down_until.plus(ttl / 10 + Duration::from_millis(rolls.below(u64::try_from(ttl.as_millis()).unwrap())));
        }
        if rolls.below(5000) == 0 {
            offset = i64::try_from(rolls.below(u64::try_from(back + skew + 1).unwrap())).unwrap() - back;
        }
        let now = Now { wall: Wall::millis(truth.as_millis() + offset), mono };
        let step = plan(now, &state);
        if let Step::Expired { .. } = step {
            // its own clock says so, which stepped ahead while nobody could answer, or until the next attempt
            let excused = truth < down_until.plus(ttl / 20 + Duration::from_secs(1)) && offset > 0;
            assert!(excused, "seed {seed}: no valid SVID at {truth} (offset {offset} ms)");
        }
        let advance = match step {
            Step::Wait(d) => d.max(Duration::from_millis(1)),
            Step::Expired { retry_in } if retry_in > Duration::ZERO => retry_in,
            Step::Renew | Step::Expired { .. } if truth < down_until => {
                state = state.failed(now, rolls.next_u64());
                Duration::from_millis(50)
            }
            Step::Renew | Step::Expired { .. } => {
                let window = (truth.minus(BACKDATE), truth.plus(ttl));
                state = state.obtained(window.0, window.1, now, rolls.next_u64());
                valid = Some(window);
                renewals += 1;
                Duration::from_millis(rolls.below(200) + 1)
            }
        };
        truth = truth.plus(advance);
        mono = mono.plus(advance);
        let (from, to) = valid.expect("the first answer came at once");
        assert!(truth >= from && truth < to, "seed {seed}: peers saw an expired SVID at {truth}");
        fingerprint = fingerprint.rotate_left(5) ^ u64::try_from(truth.as_millis()).unwrap();
    }
    let lives = u32::try_from(total.as_millis() / ttl.as_millis()).unwrap();
    assert!(renewals < lives * 4, "seed {seed}: {renewals} renewals in {lives} lives");
    fingerprint
}

/// Renewal begins at 0.55 of a life at the latest and a retry comes within 0.05: an authority that is away for less than
/// 0.4 of a life is never noticed by peers.
#[test]
fn sec_04_a_year_without_a_moment_without_a_valid_svid() {
    Seeds::from_env_or(2).each(|seed| {
        simulate(seed, DAY, DAY * 365, HOUR, DAY * 2 / 5);
    });
    Seeds::from_env_or(20).each(|seed| {
        simulate(seed, HOUR, DAY * 10, Duration::from_secs(240), HOUR * 2 / 5);
    });
}

#[test]
fn sec_04_same_seed_same_trace() {
    let run = |seed| simulate(seed, HOUR, DAY * 5, Duration::from_secs(60), HOUR / 4);
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
