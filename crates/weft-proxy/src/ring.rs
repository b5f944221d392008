//! The latest records of this proxy, kept so that `weft why` can tell what happened (features.md NOV-01).
//!
//! Two rings: what went well passes quickly, what failed or was denied stays longer. A record is moved in, not copied;
//! the lock is taken for a push by the worker and, rarely, for a question.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use weft_model::Wall;
use weft_snapshot::{
    decision::{Direction, Pick, Policy, Route, Spoken},
    failure::FailureKind,
};
use weft_wire::v1::{self, Attempt, Decision, DecisionFilter};

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

struct Entry {
    /// When it ended.
    at: Wall,
    record: Box<Record>,
}

// === impl Ring ===

impl Ring {
    pub fn push(&self, at: Wall, record: Box<Record>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (ring, most) = if is_bad(&record) { (&mut kept.bad, BAD) } else { (&mut kept.good, GOOD) };
        // what falls out is dropped after the lock is released
        let oldest = if ring.len() >= most { ring.pop_front() } else { None };
        ring.push_back(Entry { at, record });
        drop(kept);
        drop(oldest);
    }

    /// Everything remembered of one request, oldest first.
    pub fn of_request(&self, id: &str) -> Vec<Decision> {
        self.collect(usize::MAX, |r| &*r.request == id)
    }

    /// The newest that match, oldest of them first.
    pub fn recent(&self, filter: &DecisionFilter, limit: usize) -> Vec<Decision> {
        self.collect(limit, |r| matches(filter, r))
    }

    fn collect(&self, limit: usize, wanted: impl Fn(&Record) -> bool) -> Vec<Decision> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = kept.good.iter().chain(&kept.bad).filter(|e| wanted(&e.record)).collect();
        found.sort_by_key(|e| e.at);
        let skip = found.len().saturating_sub(limit);
        found.into_iter().skip(skip).map(|e| decision(e.at, &e.record)).collect()
    }
}

fn is_bad(r: &Record) -> bool {
    let status = r.http.as_ref().map_or(0, |h| h.status);
    r.failure.is_some() || status >= 500 || matches!(r.policy, Policy::Denied { .. })
}

fn matches(f: &DecisionFilter, r: &Record) -> bool {
    let service = r.service.as_ref().map(|(key, _)| key.to_string()).unwrap_or_default();
    let source = r.downstream.id.as_ref().map_or("", |id| id.as_str());
    let path = r.http.as_ref().map(|h| String::from_utf8_lossy(&h.path)).unwrap_or_default();
    (f.service.is_empty() || f.service == service)
        && (f.source.is_empty() || source.contains(&f.source))
        && (f.verdict.is_empty() || f.verdict == verdict(&r.policy))
        && (f.path.is_empty() || path.contains(&f.path))
        && (!f.failed_only || is_bad(r))
}

// === a record in the words of the wire ===

fn decision(at: Wall, r: &Record) -> Decision {
    let http = r.http.clone().unwrap_or_default();
    Decision {
        request_id: r.request.to_string(),
        at_ms: at.minus(r.took).as_millis(),
        proxy: r.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
        direction: direction(r.direction).into(),
        source: r.downstream.hello.as_ref().map(|h| h.workload.to_string()).unwrap_or_default(),
        source_identity: r.downstream.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        source_addr: r.downstream.addr.map(|a| a.to_string()).unwrap_or_default(),
        service: r.service.as_ref().map(|(key, _)| key.to_string()).unwrap_or_default(),
        port: r.service.as_ref().map_or(0, |(_, port)| u32::from(*port)),
        protocol: protocol(r).into(),
        method: http.method.map(|m| m.to_string()).unwrap_or_default(),
        host: http.host.to_string(),
        path: String::from_utf8_lossy(&http.path).into_owned(),
        route: route(&r.route),
        verdict: verdict(&r.policy).into(),
        rule: rule(r),
        reason: reason(r),
        attempts: attempts(r),
        status: http.status.into(),
        failure: r.failure.map(|k| k.label().to_owned()).unwrap_or_default(),
        side: r.side.map(|s| s.as_str().to_owned()).unwrap_or_default(),
        flag: r.failure.map(|k| k.flag().to_owned()).unwrap_or_default(),
        dur_us: micros(r.took),
        rx: r.rx,
        tx: r.tx,
        revision: Some(v1::Revision { incarnation: r.revision.incarnation, n: r.revision.n }),
        ..Decision::default()
    }
}

fn direction(d: Direction) -> &'static str {
    match d {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
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

fn route(r: &Route) -> String {
    match r {
        Route::NotAsked => String::new(),
        Route::Default => "none attached: the service itself".into(),
        Route::Rule(rule) => rule.to_string(),
        Route::NotFound => "none matches".into(),
    }
}

fn verdict(p: &Policy) -> &'static str {
    match p {
        Policy::NotAsked => "",
        Policy::Allowed { .. } => "allow",
        Policy::Denied { .. } => "deny",
    }
}

fn rule(r: &Record) -> String {
    let of_policy = match &r.policy {
        Policy::Allowed { rule, .. } | Policy::Denied { rule, .. } => rule.as_ref(),
        Policy::NotAsked => None,
    };
    r.rule.as_ref().or(of_policy).map(ToString::to_string).unwrap_or_default()
}

/// Why it ended as it did: the policy's words for a denial, else the failure's, else what allowed it.
fn reason(r: &Record) -> String {
    let detail = r.detail.as_deref().unwrap_or_default();
    match (&r.policy, r.failure) {
        (Policy::Denied { why, .. }, _) => why.to_string(),
        (_, Some(kind)) => {
            let gave_up = r.gave_up.map(|g| format!("; no further try: {g}")).unwrap_or_default();
            match detail {
                "" => format!("{}{gave_up}", kind.sentence()),
                detail => format!("{}: {detail}{gave_up}", kind.sentence()),
            }
        }
        (Policy::Allowed { why, .. }, None) => why.to_string(),
        (Policy::NotAsked, None) => String::new(),
    }
}

/// The last try, with what was passed over for it; earlier tries as a number.
fn attempts(r: &Record) -> Vec<Attempt> {
    let Some(pick) = &r.pick else { return Vec::new() };
    let failure = r.failure.filter(|k| *k != FailureKind::DownstreamClosed);
    let mut reason = chosen(pick);
    if r.attempts > 1 {
        reason = format!("try {} of {}; {reason}", r.attempts, r.attempts);
    }
    vec![Attempt {
        endpoint: pick.chosen.as_ref().map(|c| c.uid.to_string()).unwrap_or_default(),
        addr: pick.chosen.as_ref().map(|c| c.address.to_string()).unwrap_or_default(),
        failure: failure.map(|k| k.label().to_owned()).unwrap_or_default(),
        status: r.http.as_ref().map_or(0, |h| h.status.into()),
        dur_us: r.upstream_took.map(micros).unwrap_or_default(),
        sent: r.upstream_took.is_some(),
        reason,
    }]
}

fn chosen(pick: &Pick) -> String {
    let mut parts = Vec::new();
    match &pick.chosen {
        Some(c) => {
            parts.push(c.standing.to_string());
            parts.extend(c.over.as_ref().map(|over| format!("preferred to {over}")));
        }
        None => parts.push("nothing could be picked".into()),
    }
    parts.extend(pick.skipped.iter().map(|(uid, why)| format!("{uid} skipped: {why}")));
    if pick.others > 0 {
        parts.push(format!("{} others skipped", pick.others));
    }
    parts.join("; ")
}

fn micros(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_model::{Mono, Revision};
    use weft_snapshot::authz::DenyReason;

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
        Box::new(r)
    }

    #[test]
    fn nov_01_failures_outlive_what_went_well() {
        let ring = Ring::default();
        ring.push(Wall::millis(0), record("bad", 503));
        for n in 0..10_000 {
            ring.push(Wall::millis(n), record(&format!("good-{n}"), 200));
        }
        assert_eq!(ring.of_request("bad").len(), 1);
        assert_eq!(ring.of_request("good-0").len(), 0);
        assert_eq!(ring.of_request("good-9999").len(), 1);
        let failed = ring.recent(&DecisionFilter { failed_only: true, ..DecisionFilter::default() }, 10);
        assert_eq!(failed.len(), 1);
        assert_eq!(ring.recent(&DecisionFilter::default(), 3).last().unwrap().request_id, "good-9999");
    }

    #[test]
    fn nov_01_a_denial_carries_rule_and_reason() {
        let ring = Ring::default();
        let mut r = record("r1", 403);
        let rule: Arc<weft_model::ResourceRef> = Arc::new("AuthorizationPolicy/default/deny#rule-0".parse().unwrap());
        let why = DenyReason::Rule;
        r.policy = Policy::Denied { rule: Some(rule), why: why.clone() };
        ring.push(Wall::millis(5), r);
        let found = ring.of_request("r1");
        assert_eq!((&*found[0].verdict, &*found[0].rule), ("deny", "AuthorizationPolicy/default/deny#rule-0"));
        assert_eq!(found[0].reason, why.to_string());
        assert_eq!(found[0].revision.unwrap().n, 7);
        let filter = DecisionFilter { verdict: "allow".into(), ..DecisionFilter::default() };
        assert!(ring.recent(&filter, 10).is_empty());
    }
}
