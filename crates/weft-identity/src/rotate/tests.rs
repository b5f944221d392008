use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const START: Now = Now { wall: Wall::secs(1_800_000_000), mono: Mono::secs(1000) };

fn later(now: Now, d: Duration) -> Now {
    Now { wall: now.wall.plus(d), mono: now.mono.plus(d) }
}

fn issued(now: Now, ttl: Duration, roll: u64) -> State {
    State::NONE.obtained(now.wall.minus(BACKDATE), now.wall.plus(ttl), now, roll)
}

/// SplitMix64: the whole year replays from its seed.
struct Rolls(u64);

impl Rolls {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[test]
fn sec_04_renews_at_half_life_within_ten_percent() {
    for roll in [0, 1, 511, 1023, u64::MAX] {
        let state = issued(START, DAY, roll);
        let at = state.renew_at().unwrap().since(START.wall);
        assert!(at >= HOUR * 12 * 9 / 10 && at <= HOUR * 12 * 11 / 10, "{at:?}");
        assert_eq!(plan(START, &state), Step::Wait(RECHECK));
        assert_eq!(plan(later(START, at), &state), Step::Renew);
        let early = at.checked_sub(Duration::from_secs(3)).unwrap();
        assert_eq!(plan(later(START, early), &state), Step::Wait(Duration::from_secs(3)));
    }
    // life counts from when it came: the backdated part of a 20 s leaf is not life
    let at = issued(START, Duration::from_secs(20), 512).renew_at().unwrap().since(START.wall);
    assert!(at >= Duration::from_secs(9) && at <= Duration::from_secs(11), "{at:?}");
}

#[test]
fn sec_04_backs_off_and_keeps_the_valid_one() {
    assert_eq!(plan(START, &State::NONE), Step::Renew);
    let mut state = issued(START, DAY, 0);
    let mut now = later(START, HOUR * 12);
    let mut waits = Vec::new();
    for n in 1..=12 {
        assert_eq!(plan(now, &state), Step::Renew);
        state = state.failed(now, 999);
        assert_eq!(state.failures(), n);
        let Step::Wait(_) = plan(now, &state) else { panic!("the old SVID is still valid") };
        let wait = state.retry_at.unwrap().since(now.mono);
        waits.push(wait);
        now = later(now, wait);
    }
    assert!(waits.windows(2).all(|w| w[0] <= w[1]) && waits[0] < Duration::from_secs(2), "{waits:?}");
    assert!(waits[11] <= MAX_BACKOFF && waits[11] > MAX_BACKOFF / 2);
    assert_eq!(state.obtained(now.wall, now.wall.plus(DAY), now, 0).failures(), 0);
    let without = (0..20).fold(State::NONE, |s, _| s.failed(now, 999));
    assert!(without.retry_at.unwrap().since(now.mono) <= MAX_BACKOFF_WITHOUT);
}

#[test]
fn sec_04_expired_is_said_and_still_renewed() {
    let state = issued(START, HOUR, 0);
    let now = later(START, HOUR * 48); // suspended
    assert_eq!(plan(now, &state), Step::Expired { retry_in: Duration::ZERO });
    let failed = state.failed(now, 0);
    assert!(matches!(plan(now, &failed), Step::Expired { retry_in } if retry_in > Duration::ZERO));
    // our clock is a year ahead: every new SVID is expired on arrival; do not hammer the authority
    let wrong = Now { wall: now.wall.plus(DAY * 365), mono: now.mono };
    let mut state = State::NONE;
    for _ in 0..10 {
        state = state.obtained(now.wall, now.wall.plus(HOUR), wrong, 0);
    }
    assert_eq!(state.failures(), 10);
}

#[test]
fn sec_04_a_wall_clock_that_steps_back_does_not_delay_renewal() {
    let state = issued(START, DAY, 1023);
    let elapsed = HOUR * 14;
    let now = Now { wall: START.wall.minus(HOUR), mono: START.mono.plus(elapsed) };
    assert_eq!(plan(now, &state), Step::Renew);
    assert_eq!(clock_step(START, now), Some(-15 * 3_600_000));
    assert_eq!(clock_step(START, later(START, HOUR)), None);
    let drift = Now { wall: START.wall.plus(Duration::from_millis(2000)), mono: START.mono };
    assert_eq!(clock_step(START, drift), None);
    let step = Now { wall: START.wall.plus(Duration::from_millis(2001)), mono: START.mono };
    assert_eq!(clock_step(START, step), Some(2001));
}

#[test]
fn sec_04_a_restored_svid_is_planned_by_the_wall_clock() {
    let (from, to) = (START.wall.minus(BACKDATE), START.wall.plus(DAY));
    let state = State::restored(from, to, 512);
    let at = state.renew_at().unwrap();
    assert!(at.since(START.wall) > HOUR * 11 && at.since(START.wall) < HOUR * 13);
    assert!(matches!(plan(START, &state), Step::Wait(_)));
    let after = Now { wall: at, mono: Mono::ZERO };
    assert_eq!(plan(after, &state), Step::Renew);
    // the clock says that it is not issued yet: it cannot be trusted to say when half the life is over
    let behind = Now { wall: START.wall.minus(DAY), mono: Mono::ZERO };
    assert_eq!(plan(behind, &state), Step::Renew);
}

/// One simulated life: clock steps of up to ± `skew`, outages of up to `outage`; returns a fingerprint of the trace.
/// True time is what peers and the authority see; the identity's own wall clock is off by `offset`.
fn simulate(seed: u64, ttl: Duration, total: Duration, skew: Duration, outage: Duration) -> u64 {
    let mut rolls = Rolls(seed);
    let mut truth = START.wall;
    let mut mono = START.mono;
    let mut offset: i64 = 0;
    let end = truth.plus(total);
    let (mut state, mut valid) = (State::NONE, None);
    let mut down_until = truth;
    let mut next_outage = truth.plus(ttl);
    let (mut fingerprint, mut renewals) = (seed, 0_u32);
    let skew = i64::try_from(skew.as_millis()).unwrap();
    while truth < end {
        if truth >= next_outage {
            let length = Duration::from_millis(rolls.below(u64::try_from(outage.as_millis()).unwrap()));
            down_until = truth.plus(length);
            // the next one begins when a renewal has surely been answered
            next_outage =
                down_until.plus(ttl / 10 + Duration::from_millis(rolls.below(u64::try_from(ttl.as_millis()).unwrap())));
        }
        if rolls.below(5000) == 0 {
            offset = i64::try_from(rolls.below(u64::try_from(2 * skew + 1).unwrap())).unwrap() - skew;
        }
        let now = Now { wall: Wall::millis(truth.as_millis() + offset), mono };
        let step = plan(now, &state);
        let advance = match step {
            Step::Wait(d) => d.max(Duration::from_millis(1)),
            Step::Expired { .. } => panic!("seed {seed}: no valid SVID at {truth} (offset {offset} ms)"),
            Step::Renew if truth < down_until => {
                state = state.failed(now, rolls.next());
                Duration::from_millis(50)
            }
            Step::Renew => {
                let window = (truth.minus(BACKDATE), truth.plus(ttl));
                state = state.obtained(window.0, window.1, now, rolls.next());
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
    for seed in 1..=2 {
        simulate(seed, DAY, DAY * 365, HOUR, DAY * 2 / 5);
    }
    for seed in 10..30 {
        simulate(seed, HOUR, DAY * 10, Duration::from_secs(240), HOUR * 2 / 5);
    }
}

#[test]
fn sec_04_same_seed_same_trace() {
    let run = |seed| simulate(seed, HOUR, DAY * 5, Duration::from_secs(60), HOUR / 4);
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
