//! What a worker measures of each endpoint, as plain numbers.

use std::{cell::Cell, time::Duration};

use weft_model::Mono;

use super::EndpointIx;

/// How fast old latencies fade.
const DECAY: Duration = Duration::from_secs(10);
/// How long a failed connection de-prefers an endpoint here.
const AFTER_CONNECT_FAILURE: Duration = Duration::from_secs(5);
/// As what latency an answer "too many requests" counts (features.md TRF-14).
const RATE_LIMITED: Duration = Duration::from_secs(5);
/// The longest `Retry-After` that is honoured.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A peak-sensitive moving average: it rises at once and falls slowly.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ewma {
    nanos: f64,
    at: Mono,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    pub in_flight: u32,
    pub ewma: Ewma,
    /// Copied from the process-wide [`crate::eject::Ejector`].
    pub ejected_until: Mono,
    /// Set here at once by [`Load::connect_failed`] and [`Load::rate_limited`].
    pub depreferred_until: Mono,
    pub connected: bool,
}

/// One entry per endpoint of a service, by [`EndpointIx`].
#[derive(Debug, Clone, Default)]
pub struct LoadView {
    pub loads: Vec<Load>,
    /// For round robin.
    turn: Cell<u32>,
}

// === impl Ewma ===

impl Ewma {
    pub fn observe(&mut self, took: Duration, now: Mono) {
        let sample = took.as_nanos() as f64;
        let decayed = self.at(now);
        let keep = self.fading(now);
        self.nanos = if sample > decayed { sample } else { self.nanos * keep + sample * (1.0 - keep) };
        self.at = now;
    }

    /// In nanoseconds. It fades while nothing is observed, so that a slow endpoint is tried again.
    pub fn at(&self, now: Mono) -> f64 {
        self.nanos * self.fading(now)
    }

    fn fading(&self, now: Mono) -> f64 {
        let age = now.since(self.at).as_nanos() as f64;
        (-age / DECAY.as_nanos() as f64).exp()
    }
}

// === impl Load ===

impl Load {
    pub fn connect_failed(&mut self, now: Mono) {
        self.depreferred_until = self.depreferred_until.max(now.plus(AFTER_CONNECT_FAILURE));
        self.connected = false;
    }

    pub fn connect_succeeded(&mut self) {
        self.depreferred_until = Mono::ZERO;
        self.connected = true;
    }

    /// 429 or RESOURCE_EXHAUSTED.
    pub fn rate_limited(&mut self, retry_after: Option<Duration>, now: Mono) {
        self.ewma.observe(RATE_LIMITED, now);
        if let Some(after) = retry_after {
            self.depreferred_until = self.depreferred_until.max(now.plus(after.min(MAX_RETRY_AFTER)));
        }
    }
}

// === impl LoadView ===

impl LoadView {
    pub fn new(endpoints: usize) -> Self {
        Self { loads: vec![Load::default(); endpoints], turn: Cell::new(0) }
    }

    /// What is not there counts as unused.
    pub fn of(&self, ix: EndpointIx) -> &Load {
        const UNUSED: &Load = &Load {
            in_flight: 0,
            ewma: Ewma { nanos: 0.0, at: Mono::ZERO },
            ejected_until: Mono::ZERO,
            depreferred_until: Mono::ZERO,
            connected: false,
        };
        usize::try_from(ix.0).ok().and_then(|i| self.loads.get(i)).unwrap_or(UNUSED)
    }

    pub fn get_mut(&mut self, ix: EndpointIx) -> Option<&mut Load> {
        usize::try_from(ix.0).ok().and_then(|i| self.loads.get_mut(i))
    }

    pub(super) fn next_turn(&self) -> u32 {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }
}
