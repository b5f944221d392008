//! Is a failed try followed by another? (features.md TRF-11; DESIGN section 6)
//!
//! Only the source-side proxy asks. What was never sent goes elsewhere at once, within the attempts and the deadline and
//! whatever the policy says of answers. An answer is tried again only if the policy names its status, the body was kept
//! and the [`Budget`] has room. What was sent and then failed is told to the caller: it may have been done.

mod budget;

use std::{fmt, time::Duration};

use weft_model::Mono;

pub use self::budget::Budget;
use crate::{
    fragment::{RetryPolicy, Timeouts},
    route::Dice,
};

/// The longest pause between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Bytes of a request body that are kept for another try.
pub const KEPT_BODY: usize = 64 * 1024;

/// The tries of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    policy: RetryPolicy,
    per_try: Option<Duration>,
    deadline: Option<Mono>,
    retries: u32,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No byte of it reached an application.
    NeverSent(NeverSent),
    Answered {
        status: u16,
    },
    /// A proxy's verdict about the request or its caller, or its own state: the same at every endpoint, whatever the policy
    /// says of its status.
    Refused,
    /// Some of it left, and no answer came.
    Lost,
    /// One try took longer than it may.
    TryTimedOut,
}

/// The only proofs that nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeverSent {
    /// No byte was written (not connected, no handshake, or the connection was found closed).
    NoByteWritten,
    /// RST_STREAM with REFUSED_STREAM.
    RefusedStream,
    /// The stream's id is above the last one that GOAWAY names.
    AboveGoaway,
    /// The far proxy's `weft-failure: …;not-sent`.
    FarProxySays,
}

/// Is the request's body still at hand, whole?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Kept,
    /// Longer than [`KEPT_BODY`], or already given away.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Pick again, avoiding what was tried.
    Retry {
        after: Duration,
    },
    GiveUp {
        why: GiveUp,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// It is the answer.
    Answered,
    /// It may have been done.
    MayBeDone,
    BodyGone,
    Attempts {
        tries: u32,
    },
    Deadline,
    Budget,
}

// === impl Plan ===

impl Plan {
    pub fn new(policy: &RetryPolicy, timeouts: Timeouts, started: Mono) -> Self {
        Self {
            policy: policy.clone(),
            per_try: timeouts.backend,
            deadline: timeouts.request.map(|t| started.plus(t)),
            retries: 0,
        }
    }

    /// When the whole request must be over.
    pub fn deadline(&self) -> Option<Mono> {
        self.deadline
    }

    /// When a try that starts now must be over.
    pub fn try_deadline(&self, now: Mono) -> Option<Mono> {
        match (self.per_try.map(|t| now.plus(t)), self.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Tries so far, once the first has ended.
    pub fn tries(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    /// `body` is asked for anew each time: a never-sent try may have consumed some of it.
    pub fn next(&mut self, outcome: Outcome, body: Body, now: Mono, budget: &Budget, dice: &mut Dice<'_>) -> Next {
        match self.decide(outcome, body, now, budget, dice) {
            Ok(after) => {
                self.retries = self.retries.saturating_add(1);
                Next::Retry { after }
            }
            Err(why) => Next::GiveUp { why },
        }
    }

    fn decide(
        &self,
        outcome: Outcome,
        body: Body,
        now: Mono,
        budget: &Budget,
        dice: &mut Dice<'_>,
    ) -> Result<Duration, GiveUp> {
        let never_sent = match outcome {
            Outcome::NeverSent(_) => true,
            Outcome::Answered { status } if self.policy.statuses.contains(&status) => false,
            Outcome::Answered { .. } | Outcome::Refused => return Err(GiveUp::Answered),
            Outcome::Lost | Outcome::TryTimedOut => return Err(GiveUp::MayBeDone),
        };
        if self.retries >= self.policy.attempts {
            return Err(GiveUp::Attempts { tries: self.tries() });
        }
        if body == Body::Gone {
            return Err(GiveUp::BodyGone);
        }
        // The first try elsewhere of what was never sent costs nobody anything
        let after = if never_sent && self.retries == 0 { Duration::ZERO } else { self.backoff(dice) };
        if self.deadline.is_some_and(|d| now.plus(after) >= d) {
            return Err(GiveUp::Deadline);
        }
        // Asked last: a token is spent only on a retry that happens
        if !never_sent && !budget.withdraw(now) {
            return Err(GiveUp::Budget);
        }
        Ok(after)
    }

    /// Doubling, ± 50 %.
    fn backoff(&self, dice: &mut Dice<'_>) -> Duration {
        let base = self.policy.backoff.saturating_mul(1 << self.retries.min(16)).min(MAX_BACKOFF);
        base / 2 + base.saturating_mul(dice(1001)) / 1000
    }
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("it was answered"),
            Self::MayBeDone => f.write_str("it was sent, so that it may have been done"),
            Self::BodyGone => f.write_str("its body was too long to be kept for another try"),
            Self::Attempts { tries } => write!(f, "all {tries} tries that its route allows were used"),
            Self::Deadline => f.write_str("its deadline leaves no time for another try"),
            Self::Budget => f.write_str("the retry budget is spent"),
        }
    }
}

#[cfg(test)]
mod tests;
