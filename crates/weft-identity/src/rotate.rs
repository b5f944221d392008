//! When to renew an SVID: a pure plan over two clocks.
//!
//! An SVID is renewed at half of its remaining life ± 10 %, by the wall clock or by the monotonic one, whichever says so
//! first: a wall clock that stepped back must not let an SVID expire, one that stepped forward only renews early. The
//! old SVID stays in use until the new one is there. The shell plans again at least every [`RECHECK`], which is what
//! makes a suspended machine or a stepped clock harmless: nothing waits on a time computed before the step.

use std::time::Duration;

use weft_model::{Mono, Wall};

use crate::BACKDATE;

/// Longest single wait: both clocks are read again at least this often.
pub const RECHECK: Duration = Duration::from_secs(10);
/// Beyond this the wall clock was stepped (or one of the clocks is broken).
pub const CLOCK_STEP: Duration = Duration::from_secs(2);
/// Renewals of one identity are never closer together, whatever the clocks say.
const MIN_GAP: Duration = Duration::from_secs(1);
/// Back-off never exceeds this share of a life, so that an authority that comes back late is still found in time …
const BACKOFF_SHARE: u32 = 20;
/// … nor this.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Nobody can work without a first SVID: ask more eagerly.
const MAX_BACKOFF_WITHOUT: Duration = Duration::from_secs(10);

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub wall: Wall,
    pub mono: Mono,
}

/// What is known of one identity's SVID. Made anew by each event; never mutated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    svid: Option<Held>,
    failures: u32,
    /// No attempt before this.
    retry_at: Option<Mono>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    not_after: Wall,
    life: Duration,
    renew_at: Wall,
    /// `None` after a restart: how long ago the SVID came is then only known by the wall clock.
    renew_at_mono: Option<Mono>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing; plan again after this long (at most [`RECHECK`]).
    Wait(Duration),
    /// Ask the authority, with a new key. What is held stays in use.
    Renew,
    /// What is held has expired: refuse by name, and ask the authority after this long (zero: now).
    Expired { retry_in: Duration },
}

// === plan ===

pub fn plan(now: Now, state: &State) -> Step {
    let blocked = state.retry_at.map_or(Duration::ZERO, |at| at.since(now.mono));
    let Some(held) = state.svid else {
        return if blocked.is_zero() { Step::Renew } else { Step::Wait(blocked.min(RECHECK)) };
    };
    if now.wall >= held.not_after {
        return Step::Expired { retry_in: blocked };
    }
    let due = held.due_in(now).max(blocked);
    if due.is_zero() { Step::Renew } else { Step::Wait(due.min(RECHECK)) }
}

/// How far the wall clock moved against the monotonic one between two readings, in milliseconds, when that is more than
/// [`CLOCK_STEP`]. For telling an operator; planning does not need it.
pub fn clock_step(before: Now, now: Now) -> Option<i64> {
    let wall = now.wall.as_millis().saturating_sub(before.wall.as_millis());
    let mono = millis(now.mono.since(before.mono));
    let step = wall.saturating_sub(mono);
    (step.unsigned_abs() > CLOCK_STEP.as_secs() * 1000).then_some(step)
}

// === impl State ===

impl State {
    /// Nothing held yet.
    pub const NONE: Self = Self { svid: None, failures: 0, retry_at: None };

    /// The authority answered with an SVID valid from `not_before` to `not_after`. `roll` is any random number; it fixes
    /// the jitter for the life of this SVID.
    #[must_use]
    pub fn obtained(&self, not_before: Wall, not_after: Wall, now: Now, roll: u64) -> Self {
        // a clock that is behind sees a validity that has not begun: count life from its beginning
        let life = not_after.since(now.wall.max(not_before));
        let delay = half(life, roll).max(MIN_GAP);
        let held = Held {
            not_after,
            life,
            renew_at: now.wall.max(not_before).plus(delay),
            renew_at_mono: Some(now.mono.plus(delay)),
        };
        let fresh = Self { svid: Some(held), failures: 0, retry_at: Some(now.mono.plus(MIN_GAP)) };
        if now.wall < not_after {
            return fresh;
        }
        // expired on arrival: our clock is far ahead, and asking faster will not change it
        Self { failures: self.failures, ..fresh }.failed(now, roll)
    }

    /// An SVID found on disk after a restart. The time it came is estimated from its backdated `not_before`.
    #[must_use]
    pub fn restored(not_before: Wall, not_after: Wall, roll: u64) -> Self {
        let guess = not_before.plus(BACKDATE);
        let start = if guess < not_after { guess } else { not_before };
        let life = not_after.since(start);
        let held = Held { not_after, life, renew_at: start.plus(half(life, roll)), renew_at_mono: None };
        Self { svid: Some(held), failures: 0, retry_at: None }
    }

    /// The authority did not answer, or refused. What is held stays.
    #[must_use]
    pub fn failed(&self, now: Now, roll: u64) -> Self {
        let cap = self.svid.map_or(MAX_BACKOFF_WITHOUT, |h| (h.life / BACKOFF_SHARE).clamp(MIN_GAP, MAX_BACKOFF));
        let doubled = MIN_GAP.saturating_mul(2_u32.saturating_pow(self.failures.min(16))).min(cap);
        // the upper half is random, so that a fleet does not return in step
        let delay = doubled / 2 + share(doubled / 2, roll, 1000);
        Self { svid: self.svid, failures: self.failures.saturating_add(1), retry_at: Some(now.mono.plus(delay)) }
    }

    /// When the renewal is due by the wall clock; `None` without an SVID.
    pub fn renew_at(&self) -> Option<Wall> {
        self.svid.map(|h| h.renew_at)
    }

    pub fn not_after(&self) -> Option<Wall> {
        self.svid.map(|h| h.not_after)
    }

    /// Failed attempts since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

impl Held {
    fn due_in(&self, now: Now) -> Duration {
        let by_wall = self.renew_at.since(now.wall);
        match self.renew_at_mono {
            Some(at) => by_wall.min(at.since(now.mono)),
            // restored, and the wall clock says that it is yet to be issued: the clock cannot be trusted, renew
            None if by_wall > self.life => Duration::ZERO,
            None => by_wall,
        }
    }
}

/// Half of a life, ± 10 % of that half.
fn half(life: Duration, roll: u64) -> Duration {
    let half = life / 2;
    let tenth = half / 10;
    half.saturating_sub(tenth).saturating_add(share(tenth.saturating_mul(2), roll, 1024))
}

/// A random share of `d` in `parts` steps.
fn share(d: Duration, roll: u64, parts: u32) -> Duration {
    let n = u32::try_from(roll % u64::from(parts.max(1))).unwrap_or(0);
    d.checked_div(parts).unwrap_or_default().saturating_mul(n)
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
