//! How many retries a process may add to its traffic.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use weft_model::Mono;

/// In thousandths of a retry.
const RETRY: i64 = 1000;
/// Each request earns this much: one retry for five requests.
const EARNED: i64 = RETRY / 5;
/// What is earned without any request, so that a quiet service can retry at all.
const PER_SECOND: i64 = 10 * RETRY;
/// What may be saved up.
const CAP: i64 = 100 * RETRY;

/// Tokens; one per process and service, shared by its workers.
#[derive(Debug)]
pub struct Budget {
    tokens: AtomicI64,
    filled: AtomicU64,
}

impl Default for Budget {
    /// With one second's worth.
    fn default() -> Self {
        Self { tokens: AtomicI64::new(PER_SECOND), filled: AtomicU64::new(0) }
    }
}

impl Budget {
    /// For each request (not for its retries).
    pub fn deposit(&self) {
        self.add(EARNED);
    }

    /// For each retry of an answer; `false`: there may be none now.
    pub fn withdraw(&self, now: Mono) -> bool {
        self.fill(now);
        let take = |tokens: i64| (tokens >= RETRY).then(|| tokens - RETRY);
        self.tokens.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// Whole retries at hand.
    pub fn left(&self) -> u32 {
        u32::try_from(self.tokens.load(Relaxed) / RETRY).unwrap_or(0)
    }

    fn fill(&self, now: Mono) {
        let before = self.filled.load(Relaxed);
        let passed = now.since(Mono::nanos(before)).min(Duration::from_secs(60));
        let earned = i64::try_from(passed.as_millis()).unwrap_or(0).saturating_mul(PER_SECOND) / 1000;
        // One of several workers wins; whatever is below a millisecond is left for the next
        if earned > 0 && self.filled.compare_exchange(before, now.as_nanos(), Relaxed, Relaxed).is_ok() {
            self.add(earned);
        }
    }

    fn add(&self, earned: i64) {
        let _ = self.tokens.fetch_update(Relaxed, Relaxed, |t| (t < CAP).then(|| t.saturating_add(earned).min(CAP)));
    }
}
