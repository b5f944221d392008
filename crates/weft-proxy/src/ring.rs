//! The latest records of this proxy, kept so that `weft why` can tell what happened (features.md NOV-01).
//!
//! Two rings: what went well passes quickly, what failed or was denied stays longer. The lock is taken for a push by the
//! worker and, rarely, for as long as a question needs to find its records; they are put into words after that.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use weft_model::{Digest, SpiffeId, Wall};
use weft_snapshot::{
    decision::{Decision, Direction, Policy, Spoken, Try},
    failure::Sent,
    snapshot::Snapshot,
};
use weft_wire::{
    observe,
    v1::{self, DecisionFilter},
};

use crate::record::Record;

/// So many good ones are kept …
const GOOD: usize = 2048;
/// … and so many others.
const BAD: usize = 1024;

#[derive(Default)]
pub struct Ring {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    good: VecDeque<Entry>,
    bad: VecDeque<Entry>,
}

#[derive(Clone)]
struct Entry {
    /// When it ended.
    at: Wall,
    record: Arc<Record>,
}

// === impl Ring ===

impl Ring {
    pub fn push(&self, at: Wall, record: Box<Record>) {
        let record = Arc::from(record);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (ring, most) = if is_bad(&record) { (&mut kept.bad, BAD) } else { (&mut kept.good, GOOD) };
        // what falls out is dropped after the lock is released
        let oldest = if ring.len() >= most { ring.pop_front() } else { None };
        ring.push_back(Entry { at, record });
        drop(kept);
        drop(oldest);
    }

    /// Everything remembered of one request, oldest first.
    /// `snapshot` names the workload whose proxy this is.
    pub fn of_request(&self, id: &str, snapshot: &Snapshot) -> Vec<v1::Decision> {
        self.collect(snapshot, usize::MAX, |r| &*r.request == id, |_| true)
    }

    /// The newest that match, oldest of them first.
    pub fn recent(&self, filter: &DecisionFilter, limit: usize, snapshot: &Snapshot) -> Vec<v1::Decision> {
        let failed = |r: &Record| !filter.failed_only || is_bad(r);
        self.collect(snapshot, limit, failed, |d| observe::matches(filter, d))
    }

    /// `cheap` is asked before a record is put into words, `wanted` afterwards.
    fn collect(
        &self,
        snapshot: &Snapshot,
        limit: usize,
        cheap: impl Fn(&Record) -> bool,
        wanted: impl Fn(&v1::Decision) -> bool,
    ) -> Vec<v1::Decision> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = kept.good.iter().chain(&kept.bad).filter(|e| cheap(&e.record)).cloned().collect();
        drop(kept);
        found.sort_by_key(|e| std::cmp::Reverse(e.at));
        let mut told: Vec<_> =
            found.into_iter().map(|e| told(e.at, &e.record, snapshot)).filter(wanted).take(limit).collect();
        told.reverse();
        told
    }
}

fn is_bad(r: &Record) -> bool {
    let status = r.http.as_ref().map_or(0, |h| h.status);
    r.failure.is_some() || status >= 500 || matches!(r.policy, Policy::Denied { .. })
}

// === a record in the words of the wire ===

fn told(at: Wall, r: &Record, snapshot: &Snapshot) -> v1::Decision {
    let own = r.workload.as_ref().and_then(|uid| snapshot.workload(uid)).map(|v| &v.workload);
    // of an older one nothing but its revision is known
    let digest = if snapshot.revision == r.revision { snapshot.digest } else { Digest::ZERO };
    let proxy = r.workload.as_ref().map(ToString::to_string).unwrap_or_default();
    let http = r.http.clone().unwrap_or_default();
    let mut d = observe::decision(&proxy, digest, &decision(at, r, own.map(|w| &w.identity)));
    d.protocol = protocol(r).into();
    d.source = match r.direction {
        Direction::Inbound => r.downstream.hello.as_ref().map(|h| h.workload.clone()),
        Direction::Outbound => own.map(|w| w.workload.to_string()),
    }
    .unwrap_or_default();
    d.source_addr = r.downstream.addr.map(|a| a.to_string()).unwrap_or_default();
    d.method = http.method.map(|m| m.to_string()).unwrap_or_default();
    d.host = http.host.to_string();
    d.path = String::from_utf8_lossy(&http.path).into_owned();
    d.side = r.side.map(|s| s.as_str().to_owned()).unwrap_or_default();
    (d.rx, d.tx, d.dur_us) = (r.rx, r.tx, micros(r.took));
    if let Some(rule) = &r.rule {
        d.rule = rule.to_string();
    }
    if d.verdict != "deny"
        && let Some(kind) = r.failure
    {
        d.reason = match r.detail.as_deref() {
            Some(detail) => format!("{}: {detail}", kind.sentence()),
            None => kind.sentence().into(),
        };
    }
    d
}

/// `own`: the identity of the workload whose proxy this is.
fn decision(at: Wall, r: &Record, own: Option<&SpiffeId>) -> Decision {
    let (source, destination) = match r.direction {
        Direction::Inbound => (r.downstream.id.as_ref(), own),
        Direction::Outbound => (own, r.upstream_id.as_ref()),
    };
    Decision {
        request: r.request.clone(),
        at: at.minus(r.took),
        direction: r.direction,
        protocol: r.spoken,
        source: source.cloned(),
        destination: destination.cloned(),
        service: r.service.clone(),
        route: r.route.clone(),
        policy: r.policy.clone(),
        pick: r.pick.clone(),
        attempts: r.attempts,
        tries: tries(r),
        gave_up: r.gave_up,
        failure: r.failure,
        teller: r.teller,
        status: r.http.as_ref().map_or(0, |h| h.status),
        revision: r.revision,
    }
}

/// A single one that brought what was asked for is told by the rest of the record.
fn tries(r: &Record) -> Box<[Try]> {
    let mut all = r.tries.clone();
    let chosen = r.pick.as_ref().and_then(|p| p.chosen.as_ref());
    if let Some(c) = chosen.filter(|_| all.is_empty()) {
        all.push(Try {
            endpoint: c.uid.clone(),
            address: c.address,
            standing: c.standing,
            failure: r.failure,
            status: r.http.as_ref().map_or(0, |h| h.status),
            sent: Sent::Sent,
            took: r.upstream_took.unwrap_or(r.took),
            detail: r.detail.clone(),
        });
    }
    all.into()
}

/// As the live table and the filters name it.
fn protocol(r: &Record) -> &'static str {
    match (r.spoken, &r.http) {
        (Spoken::Tcp, _) => "tcp",
        (Spoken::Http, Some(h)) if h.grpc => "grpc",
        (Spoken::Http, Some(h)) if h.version.starts_with("HTTP/2") => "http2",
        (Spoken::Http, _) => "http",
    }
}

fn micros(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_model::{Mono, Revision};
    use weft_snapshot::{authz::DenyReason, failure::FailureKind};

    use super::*;
    use crate::record::{Http, Peer};

    fn record(id: &str, status: u16) -> Box<Record> {
        let mut r = Record::new(
            id.into(),
            Direction::Inbound,
            Spoken::Http,
            Arc::new(Peer::default()),
            Mono::ZERO,
            Revision::new(1, 7),
        );
        r.http = Some(Http { status, path: "/a".into(), ..Http::default() });
        r.failure = (status >= 500).then_some(FailureKind::NoHealthyEndpoint);
        Box::new(r)
    }

    #[test]
    fn nov_01_failures_outlive_what_went_well() {
        let ring = Ring::default();
        ring.push(Wall::millis(0), record("bad", 503));
        for n in 0..10_000 {
            ring.push(Wall::millis(n), record(&format!("good-{n}"), 200));
        }
        assert_eq!(ring.of_request("bad", &Snapshot::empty()).len(), 1);
        assert_eq!(ring.of_request("good-0", &Snapshot::empty()).len(), 0);
        assert_eq!(ring.of_request("good-9999", &Snapshot::empty()).len(), 1);
        let failed =
            ring.recent(&DecisionFilter { failed_only: true, ..DecisionFilter::default() }, 10, &Snapshot::empty());
        assert_eq!(failed.len(), 1);
        assert_eq!(
            ring.recent(&DecisionFilter::default(), 3, &Snapshot::empty()).last().unwrap().request_id,
            "good-9999"
        );
    }

    #[test]
    fn nov_01_a_denial_carries_rule_and_reason() {
        let ring = Ring::default();
        let mut r = record("r1", 403);
        let rule: Arc<weft_model::ResourceRef> = Arc::new("AuthorizationPolicy/default/deny#rule-0".parse().unwrap());
        let why = DenyReason::Rule;
        r.policy = Policy::Denied { rule: Some(rule), why: why.clone() };
        ring.push(Wall::millis(5), r);
        let found = ring.of_request("r1", &Snapshot::empty());
        assert_eq!((&*found[0].verdict, &*found[0].rule), ("deny", "AuthorizationPolicy/default/deny#rule-0"));
        assert_eq!(found[0].reason, why.to_string());
        assert_eq!(found[0].revision.unwrap().n, 7);
        let filter = DecisionFilter { verdict: "allow".into(), ..DecisionFilter::default() };
        assert!(ring.recent(&filter, 10, &Snapshot::empty()).is_empty());
    }
}
