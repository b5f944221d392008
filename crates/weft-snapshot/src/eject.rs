//! Taking an endpoint out for a while after it failed several times in a row.
//!
//! Shared by the workers of a process (the numbers users set would otherwise multiply by the threads), hence atomics;
//! all decisions are functions of the numbers and `now`. What a far *proxy* refuses never counts: it is no sign of a
//! broken application.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use weft_model::Mono;

use crate::{balance::EndpointIx, failure::FailureKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Gateway failures in a row that eject.
    pub consecutive: u32,
    /// How long the first time; the n-th time n times as long.
    pub base: Duration,
    pub max: Duration,
    /// Never more than this share of the endpoints at once.
    pub max_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { consecutive: 5, base: Duration::from_secs(30), max: Duration::from_secs(300), max_percent: 50 }
    }
}

/// What a try says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    Success,
    GatewayFailure,
    /// Says nothing of it.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    pub until: Mono,
    /// How often so far, this time included.
    pub times: u32,
}

/// The endpoints of one service, by [`EndpointIx`].
#[derive(Debug)]
pub struct Ejector {
    settings: Settings,
    records: Vec<Record>,
}

#[derive(Debug, Default)]
struct Record {
    in_a_row: AtomicU32,
    times: AtomicU32,
    until: AtomicU64,
}

/// Of an answer. `by_proxy`: it carries `weft-failure`, so the far proxy made it and not the application.
pub fn feed_of_status(status: u16, by_proxy: bool) -> Feed {
    match status {
        401 | 403 | 421 | 429 if by_proxy => Feed::Nothing,
        502..=504 => Feed::GatewayFailure,
        _ => Feed::Success,
    }
}

/// Of a try without an answer.
pub fn feed_of_failure(kind: FailureKind) -> Feed {
    match kind {
        FailureKind::ConnectFailed
        | FailureKind::ConnectTimeout
        | FailureKind::AppConnectFailed
        | FailureKind::TlsFailed
        | FailureKind::IdentityMismatch
        | FailureKind::UpstreamClosed
        | FailureKind::UpstreamReset
        | FailureKind::UpstreamProtocol
        | FailureKind::ResponseHeadTooLarge
        | FailureKind::RequestTimeout
        | FailureKind::TryTimeout
        | FailureKind::UpstreamIdle => Feed::GatewayFailure,
        _ => Feed::Nothing,
    }
}

// === impl Ejector ===

impl Ejector {
    pub fn new(settings: Settings, endpoints: usize) -> Self {
        Self { settings, records: std::iter::repeat_with(Record::default).take(endpoints).collect() }
    }

    /// For a new list of endpoints: `place_before(ix)` is where an endpoint stood in `self`.
    #[must_use]
    pub fn carried(&self, endpoints: usize, place_before: impl Fn(EndpointIx) -> Option<EndpointIx>) -> Self {
        let record = |ix| {
            let old = place_before(EndpointIx(ix)).and_then(|old| self.record(old));
            old.map_or_else(Record::default, |r| Record {
                in_a_row: r.in_a_row.load(Relaxed).into(),
                times: r.times.load(Relaxed).into(),
                until: r.until.load(Relaxed).into(),
            })
        };
        let count = u32::try_from(endpoints).unwrap_or(u32::MAX);
        Self { settings: self.settings, records: (0..count).map(record).collect() }
    }

    /// Says how long the endpoint is now out, if this ejected it.
    pub fn feed(&self, ix: EndpointIx, feed: Feed, now: Mono) -> Option<Ejected> {
        let record = self.record(ix)?;
        match feed {
            Feed::Nothing => None,
            Feed::Success => {
                // Written only when it changes: workers share the line
                if record.in_a_row.load(Relaxed) != 0 {
                    record.in_a_row.store(0, Relaxed);
                }
                None
            }
            Feed::GatewayFailure => {
                let in_a_row = record.in_a_row.fetch_add(1, Relaxed).saturating_add(1);
                let due = in_a_row >= self.settings.consecutive && record.until.load(Relaxed) <= now.as_nanos();
                if due && self.has_room(now) { Some(self.eject(record, now)) } else { None }
            }
        }
    }

    pub fn ejected_until(&self, ix: EndpointIx) -> Mono {
        self.record(ix).map_or(Mono::ZERO, |r| Mono::nanos(r.until.load(Relaxed)))
    }

    pub fn ejected(&self, now: Mono) -> usize {
        self.records.iter().filter(|r| r.until.load(Relaxed) > now.as_nanos()).count()
    }

    fn record(&self, ix: EndpointIx) -> Option<&Record> {
        self.records.get(usize::try_from(ix.0).ok()?)
    }

    /// May one more be taken out? Two workers that ask at once may both hear yes: the balancer's panic rule holds anyway.
    fn has_room(&self, now: Mono) -> bool {
        let percent = usize::try_from(self.settings.max_percent).unwrap_or(0);
        (self.ejected(now) + 1) * 100 <= self.records.len() * percent
    }

    fn eject(&self, record: &Record, now: Mono) -> Ejected {
        // As long in peace as the longest ejection: earlier ones are forgiven
        let peace = now.since(Mono::nanos(record.until.load(Relaxed)));
        let before = if peace >= self.settings.max { 0 } else { record.times.load(Relaxed) };
        let times = before.saturating_add(1);
        let until = now.plus(self.settings.base.saturating_mul(times).min(self.settings.max));
        record.times.store(times, Relaxed);
        record.in_a_row.store(0, Relaxed);
        record.until.store(until.as_nanos(), Relaxed);
        Ejected { until, times }
    }

    /// # Panics
    /// When more is ejected than may be (by one worker alone).
    pub fn check_invariants(&self, now: Mono) {
        let percent = usize::try_from(self.settings.max_percent).unwrap_or(0);
        assert!(self.ejected(now) * 100 <= self.records.len() * percent, "more than {percent} % are ejected");
        for r in &self.records {
            assert!(
                r.until.load(Relaxed) <= now.plus(self.settings.max).as_nanos(),
                "ejected for longer than the longest"
            );
        }
    }
}

#[cfg(test)]
mod tests;
