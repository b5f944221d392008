//! The counters of each edge. A series is made at the first request of its kind; later ones find it by pointers and small
//! numbers, with nothing locked that another thread wants.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use weft_model::{ResourceRef, ServiceKey};
use weft_rt::metrics::{Counter, Gauge, Histogram, Metric, Shard, UNKNOWN};
use weft_snapshot::authz::DenyReason;

use super::labels::End;
use crate::{
    failure::{FailureKind, Side},
    record::{Direction, Policy, Record, Spoken, Teller},
};

/// Edges that a worker keeps apart; further ones count as one between unknown ends.
const MAX_EDGES: usize = 2000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeKey {
    pub direction: Direction,
    pub protocol: Protocol,
    pub mutual_tls: bool,
    pub source: End,
    pub destination: End,
    pub service: Option<ServiceKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Http,
    /// Istio's labels do not tell it from HTTP/1; the table of edges does.
    Http2,
    Grpc,
    Tcp,
}

/// How a request or connection ended, as far as series differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub flag: &'static str,
}

#[derive(Debug)]
pub struct Edge {
    key: EdgeKey,
    pub requests: Vec<(Outcome, Requests)>,
    pub connections: Vec<(&'static str, Connections)>,
    denials: Vec<(Reason, Counter)>,
    /// Key exchange, where the peer's connection told.
    pub key_exchange: &'static str,
}

#[derive(Debug)]
pub struct Requests {
    pub total: Counter,
    pub duration: Histogram,
    received: Histogram,
    sent: Histogram,
}

#[derive(Debug)]
pub struct Connections {
    pub opened: Counter,
    pub closed: Counter,
    pub received: Counter,
    pub sent: Counter,
}

/// Keys hash few small numbers of our own making: that needs no defence, and happens at every request.
#[derive(Debug, Default)]
struct Fold(u64);

/// What denied.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reason {
    Rule(Arc<ResourceRef>),
    Word(&'static str),
}

/// Of one worker.
#[derive(Debug)]
pub struct Edges {
    shard: Shard,
    /// For HTTP/2, so that series which scrapers see as one stay apart here.
    shard_http2: Shard,
    known: HashMap<EdgeKey, Edge, BuildHasherDefault<Fold>>,
    unknown: End,
    replies: HashMap<&'static str, Counter>,
    /// By reporter and protocol: there are four.
    open: Vec<((&'static str, &'static str), Gauge)>,
}

// === impl Edges ===

impl Edges {
    /// `unknown`: the end of edges that are one too many.
    pub fn new(shard: Shard, shard_http2: Shard, unknown: End) -> Self {
        Self { shard, shard_http2, known: HashMap::default(), unknown, replies: HashMap::new(), open: Vec::new() }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&EdgeKey, &Edge)> {
        self.known.iter()
    }

    pub fn open(&mut self, reporter: &'static str, protocol: &'static str, delta: i64) {
        let key = (reporter, protocol);
        match self.open.iter().find(|(k, _)| *k == key) {
            Some((_, gauge)) => gauge.add(delta),
            None => {
                let gauge = self.shard.gauge(Metric::OpenFlows, &[reporter, protocol]);
                gauge.add(delta);
                self.open.push((key, gauge));
            }
        }
    }

    /// A request or connection has ended.
    pub fn ended(&mut self, key: EdgeKey, r: &mut Record) {
        let flag = r.failure.map_or("-", FailureKind::flag);
        if let Some(kind) = r.failure.filter(|kind| is_our_own(*kind, r)) {
            let reply = self.replies.entry(kind.label());
            reply.or_insert_with(|| self.shard.counter(Metric::LocalReplies, &[kind.label()])).add(1);
        }
        let reason = reason(r);
        if r.spoken == Spoken::Tcp
            && !r.counted.opened
            && matches!(r.failure, None | Some(FailureKind::DownstreamClosed))
        {
            // it turned out to carry HTTP, whose requests have records, or its caller left before it led anywhere
            return;
        }
        let (shard, edge) = self.edge(key);
        if !r.downstream.tls_group.is_empty() {
            edge.key_exchange = r.downstream.tls_group;
        }
        if r.spoken == Spoken::Tcp {
            edge.moved(shard, flag, r);
            edge.connections(shard, flag).closed.add(1);
        } else {
            edge.request(shard, Outcome::of(r, flag), r);
        }
        if let Some(reason) = reason {
            edge.denied(shard, reason);
        }
    }

    /// A connection goes on.
    pub fn progress(&mut self, key: EdgeKey, r: &mut Record) {
        let (shard, edge) = self.edge(key);
        edge.moved(shard, "-", r);
    }

    fn edge(&mut self, mut key: EdgeKey) -> (&Shard, &mut Edge) {
        if self.known.len() >= MAX_EDGES && !self.known.contains_key(&key) {
            key = EdgeKey { source: self.unknown.clone(), destination: self.unknown.clone(), service: None, ..key };
        }
        let shard = if key.protocol == Protocol::Http2 { &self.shard_http2 } else { &self.shard };
        (shard, self.known.entry(key).or_insert_with_key(Edge::new))
    }
}

// === impl Edge ===

impl Edge {
    fn new(key: &EdgeKey) -> Self {
        let key = key.clone();
        Self { key, requests: Vec::new(), connections: Vec::new(), denials: Vec::new(), key_exchange: "" }
    }

    fn request(&mut self, shard: &Shard, outcome: Outcome, r: &Record) {
        let at = match self.requests.iter().position(|(o, _)| *o == outcome) {
            Some(at) => at,
            None => {
                self.requests.push((outcome, Requests::new(shard, &self.key, outcome)));
                self.requests.len() - 1
            }
        };
        let Some((_, series)) = self.requests.get(at) else { return };
        series.total.add(1);
        series.duration.observe(u64::try_from(r.took.as_micros()).unwrap_or(u64::MAX));
        series.received.observe(r.rx);
        series.sent.observe(r.tx);
    }

    /// Counts what came since the last time, and once that the connection was opened.
    fn moved(&mut self, shard: &Shard, flag: &'static str, r: &mut Record) {
        let series = self.connections(shard, flag);
        if !r.counted.opened {
            series.opened.add(1);
        }
        series.received.add(r.rx.saturating_sub(r.counted.rx));
        series.sent.add(r.tx.saturating_sub(r.counted.tx));
        r.counted = crate::record::Counted { opened: true, rx: r.rx, tx: r.tx };
    }

    fn connections(&mut self, shard: &Shard, flag: &'static str) -> &Connections {
        let at = match self.connections.iter().position(|(f, _)| *f == flag) {
            Some(at) => at,
            None => {
                self.connections.push((flag, Connections::new(shard, &self.key, flag)));
                self.connections.len() - 1
            }
        };
        #[expect(clippy::indexing_slicing, reason = "found or pushed above")]
        &self.connections[at].1
    }

    fn denied(&mut self, shard: &Shard, reason: Reason) {
        let key = &self.key;
        if let Some((_, counter)) = self.denials.iter().find(|(known, _)| *known == reason) {
            return counter.add(1);
        }
        let rule = match &reason {
            Reason::Rule(rule) => rule.to_string(),
            Reason::Word(word) => (*word).into(),
        };
        let (source, destination) = (&*key.source.0.principal, &*key.destination.0.principal);
        let values = [reporter(key.direction), source, destination, key.protocol.label(), &rule];
        let counter = shard.counter(Metric::Denied, &values);
        counter.add(1);
        self.denials.push((reason, counter));
    }
}

/// Did this proxy answer or end it, rather than pass on what the far one said, or suffer what one of the ends did?
fn is_our_own(kind: FailureKind, r: &Record) -> bool {
    let begun = r.counted.opened || r.http.as_ref().is_some_and(|h| (100..400).contains(&h.status));
    let broke_off = begun && r.side == Some(Side::Upstream);
    kind != FailureKind::DownstreamClosed && !broke_off && r.teller == Teller::Proxy
}

/// The clause that denied, or a word for what did without one; `None` where nothing was denied by policy.
fn reason(r: &Record) -> Option<Reason> {
    match (&r.policy, r.failure) {
        (Policy::Denied { rule: Some(rule), .. }, _) => Some(Reason::Rule(rule.clone())),
        (Policy::Denied { rule: None, why }, _) => Some(Reason::Word(match why {
            DenyReason::Plaintext { .. } => "plaintext",
            DenyReason::Rule | DenyReason::RuleWithoutHttp => "rule",
            DenyReason::Unresolved { .. } => "unresolved",
            DenyReason::NoAllow { .. } => "no-allow",
            DenyReason::NotHttp => "not-http",
            DenyReason::NotAuthenticated => "not-authenticated",
            DenyReason::DefaultDeny => "default-deny",
        })),
        // a verdict that came later than the first one
        (
            Policy::NotAsked | Policy::Allowed { .. },
            Some(
                kind @ (FailureKind::Denied
                | FailureKind::PlaintextRefused
                | FailureKind::NotHttp
                | FailureKind::PolicyChanged),
            ),
        ) if r.direction == Direction::Inbound => Some(r.rule.clone().map_or(Reason::Word(kind.label()), Reason::Rule)),
        _ => None,
    }
}

// === keys ===

impl Hash for EdgeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Few services share both ends: equality tells them apart
        let small = (self.direction as u64) << 4 | (self.protocol as u64) << 1 | u64::from(self.mutual_tls);
        state.write_u64(small);
        self.source.hash(state);
        self.destination.hash(state);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        // hash maps look at the highest bits too
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        /// Odd, and its bits are mixed: 2^64 divided by the golden ratio.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(SPREAD);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

// === series ===

impl Outcome {
    fn of(r: &Record, flag: &'static str) -> Self {
        let http = r.http.as_ref();
        let grpc_status = http.filter(|h| h.grpc).map(|h| {
            // where the caller was told by us, or the stream broke before it was told
            let ours = r.failure.map(|k| u16::from(k.grpc_status()));
            h.grpc_status.or(ours).unwrap_or(GRPC_OK)
        });
        Self { status: http.map_or(0, |h| h.status), grpc_status, flag }
    }

    /// Answered, to its end, with neither a 5xx nor a gRPC status other than OK. A caller that leaves says nothing of whom
    /// it called.
    pub fn is_success(self) -> bool {
        let broke_off = self.status < 400 && !ended_well(self.flag);
        let bad_status = self.status == 0 || self.status >= 500 || self.grpc_status.is_some_and(|s| s != GRPC_OK);
        !bad_status && !broke_off
    }
}

const GRPC_OK: u16 = 0;

/// As far as the upstream is concerned.
pub fn ended_well(flag: &str) -> bool {
    flag == "-" || flag == FailureKind::DownstreamClosed.flag()
}

impl Requests {
    /// Bytes from and to whoever asked.
    pub fn add_bytes(&self, rx: &mut u64, tx: &mut u64) {
        *rx += self.received.sum();
        *tx += self.sent.sum();
    }

    fn new(shard: &Shard, key: &EdgeKey, outcome: Outcome) -> Self {
        let status = outcome.status.to_string();
        let grpc = outcome.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        let host = key.service.as_ref().map(ServiceKey::host);
        let mut values = labels(key, host.as_deref(), outcome.flag).to_vec();
        values.extend([&*status, &*grpc]);
        Self {
            total: shard.counter(Metric::RequestsTotal, &values),
            duration: shard.histogram(Metric::RequestDuration, &values),
            received: shard.histogram(Metric::RequestBytes, &values),
            sent: shard.histogram(Metric::ResponseBytes, &values),
        }
    }
}

impl Connections {
    fn new(shard: &Shard, key: &EdgeKey, flag: &'static str) -> Self {
        let host = key.service.as_ref().map(ServiceKey::host);
        let values = labels(key, host.as_deref(), flag);
        Self {
            opened: shard.counter(Metric::TcpOpened, &values),
            closed: shard.counter(Metric::TcpClosed, &values),
            received: shard.counter(Metric::TcpReceivedBytes, &values),
            sent: shard.counter(Metric::TcpSentBytes, &values),
        }
    }
}

/// In the order of `weft_rt::metrics::TCP_LABELS`.
fn labels<'a>(key: &'a EdgeKey, host: Option<&'a str>, flag: &'a str) -> [&'a str; 23] {
    let (s, d) = (&*key.source.0, &*key.destination.0);
    let service = key.service.as_ref();
    [
        reporter(key.direction),
        &s.workload,
        &s.namespace,
        s.canonical_service(),
        s.canonical_revision(),
        &s.principal,
        &s.app,
        &s.version,
        &s.cluster,
        host.unwrap_or(UNKNOWN),
        service.map_or(UNKNOWN, |k| k.name.as_str()),
        service.map_or(UNKNOWN, |k| k.namespace.as_str()),
        &d.workload,
        &d.namespace,
        d.canonical_service(),
        d.canonical_revision(),
        &d.principal,
        &d.app,
        &d.version,
        &d.cluster,
        key.protocol.label(),
        flag,
        if key.mutual_tls { "mutual_tls" } else { "none" },
    ]
}

/// Istio's word for whose view it is.
pub fn reporter(d: Direction) -> &'static str {
    match d {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

impl Protocol {
    pub fn of(r: &Record) -> Self {
        match (r.spoken, &r.http) {
            (Spoken::Tcp, _) => Self::Tcp,
            (Spoken::Http, Some(h)) if h.grpc => Self::Grpc,
            (Spoken::Http, Some(h)) if h.version == "HTTP/2" => Self::Http2,
            (Spoken::Http, _) => Self::Http,
        }
    }

    /// Istio's word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Http | Self::Http2 => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http2 => "http2",
            Self::Http | Self::Grpc | Self::Tcp => self.label(),
        }
    }
}
