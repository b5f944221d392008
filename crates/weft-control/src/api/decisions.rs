//! Decisions and edges of the proxies as JSON, by the names of their protobuf fields.

use serde_json::{Value, json};
use weft_wire::v1::{Attempt, Decision, Edge, Revision};

pub fn revision(r: Option<&Revision>) -> Option<String> {
    r.map(|r| weft_model::Revision::new(r.incarnation, r.n).to_string())
}

pub fn decision(d: &Decision) -> Value {
    json!({
        "request_id": d.request_id, "at_ms": d.at_ms, "proxy": d.proxy, "direction": d.direction, "listener": d.listener,
        "source": d.source, "source_identity": d.source_identity, "source_addr": d.source_addr, "service": d.service,
        "port": d.port, "protocol": d.protocol, "method": d.method, "host": d.host, "path": d.path, "route": d.route,
        "verdict": d.verdict, "rule": d.rule, "reason": d.reason, "explanation": d.explanation,
        "attempts": d.attempts.iter().map(attempt).collect::<Vec<_>>(), "status": d.status, "failure": d.failure,
        "side": d.side, "flag": d.flag, "dur_us": d.dur_us, "rx": d.rx, "tx": d.tx, "revision": revision(d.revision.as_ref()),
        "digest": crate::first_start::hex(&d.digest), "audits": d.audits, "attributes": d.attributes,
    })
}

fn attempt(a: &Attempt) -> Value {
    json!({
        "endpoint": a.endpoint, "addr": a.addr, "failure": a.failure, "status": a.status, "dur_us": a.dur_us,
        "sent": a.sent, "reason": a.reason,
    })
}

pub fn edge(e: &Edge) -> Value {
    let latency: Vec<_> = e.latency.iter().map(|b| json!({ "le_us": b.le_us, "count": b.count })).collect();
    json!({
        "direction": e.direction, "source": e.source, "source_identity": e.source_identity, "destination": e.destination,
        "destination_identity": e.destination_identity, "destination_version": e.destination_version,
        "protocol": e.protocol, "key_exchange": e.key_exchange, "requests": e.requests, "succeeded": e.succeeded,
        "failed": e.failed, "denied": e.denied, "open": e.open, "rx": e.rx, "tx": e.tx, "latency": latency,
    })
}
