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

mod simulation;
