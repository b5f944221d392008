//! Exactly one record per request and per connection, on every path: finished by its story, or by the guard's drop.
//!
//! Whoever counts, logs and traces takes records through a [`Sink`]; the stories know nothing of that.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use weft_model::{Mono, ResourceRef, Revision, ServiceKey, SpiffeId, Uid};
pub use weft_snapshot::decision::{Direction, Policy, Route, Spoken, Teller, Try};
use weft_snapshot::{
    decision::{MAX_TRIES, Pick},
    retry::GiveUp,
};
use weft_wire::hello::Hello;

use crate::{
    failure::{Failure, FailureKind, Sent, Side},
    metrics::Labels,
};

/// Takes finished records. Called on the worker's thread: it must not block.
pub trait Sink: Send + Sync + 'static {
    fn take(&self, record: Box<Record>);

    /// A connection or request begins or ends: for gauges.
    fn open(&self, _direction: Direction, _spoken: Spoken, _delta: i64) {}

    /// A connection that is not HTTP goes on: count what came since the last time.
    fn progress(&self, _record: &mut Record) {}

    /// A mesh connection was made, accepted or refused.
    fn handshake(&self, _handshake: &Handshake<'_>) {}
}

/// How often whoever carries a long connection should call [`Recording::progress`] (features.md OBS-02).
pub const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What is kept of a path for long.
const KEPT_PATH: usize = 512;

/// Drops records.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSink;

impl Sink for NoSink {
    fn take(&self, _: Box<Record>) {}
}

/// What all requests of a connection have in common. Shared, so that a record stays small.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Number of the connection in this process.
    pub conn: u64,
    /// By certificate.
    pub id: Option<SpiffeId>,
    pub addr: Option<SocketAddr>,
    /// What it says of itself, for labels only.
    pub hello: Option<Hello>,
    /// Key exchange, cipher: empty without TLS.
    pub tls_group: &'static str,
    pub tls_cipher: &'static str,
    /// Mesh connections: what was negotiated.
    pub alpn: &'static str,
    /// Our end of the connection.
    pub local: Option<SocketAddr>,
    pub sni: Option<Arc<str>>,
    /// What the sink made of the above.
    pub seen: Seen,
}

/// The sink's own memory of a [`Peer`], so that its labels are looked up once per connection. Starts empty.
#[derive(Debug, Default, Clone)]
pub struct Seen(pub(crate) OnceLock<Arc<Labels>>);

/// One TLS handshake between proxies.
#[derive(Debug, Clone, Copy)]
pub struct Handshake<'a> {
    pub direction: Direction,
    /// Our own identity.
    pub local: Option<&'a SpiffeId>,
    /// By certificate; `None` where it failed before that was known.
    pub peer: Option<&'a SpiffeId>,
    pub tls_group: &'static str,
    pub tls_cipher: &'static str,
    pub failure: Option<FailureKind>,
}

/// One request, or one connection that is not HTTP.
#[derive(Debug)]
pub struct Record {
    /// `x-request-id`, or `conn-<number>`.
    pub request: Arc<str>,
    pub direction: Direction,
    pub spoken: Spoken,
    /// Who asked: the mesh peer (inbound) or the local application (outbound).
    pub downstream: Arc<Peer>,
    /// The workload whose proxy this is.
    pub workload: Option<Uid>,
    pub started: Mono,
    pub took: Duration,
    /// What was asked for.
    pub service: Option<(ServiceKey, u16)>,
    pub http: Option<Http>,
    pub route: Route,
    pub policy: Policy,
    /// Outbound: the balancer's choice.
    pub pick: Option<Box<Pick>>,
    /// Who answered: the endpoint's identity and address (outbound), the application's address (inbound).
    /// An identity means mutual TLS.
    pub upstream_id: Option<SpiffeId>,
    pub upstream_addr: Option<SocketAddr>,
    /// The endpoint: its labels come from the catalog.
    pub upstream_uid: Option<Uid>,
    /// Our end of the connection to the upstream.
    pub upstream_local: Option<SocketAddr>,
    /// From the last byte of the request to the head of the answer.
    pub upstream_took: Option<Duration>,
    pub attempts: u8,
    /// Outbound: every try, oldest first. Empty in the ordinary case, one that was answered: the rest of the record tells it.
    pub tries: Vec<Try>,
    pub gave_up: Option<GiveUp>,
    pub failure: Option<FailureKind>,
    pub side: Option<Side>,
    /// Who speaks of the failure.
    pub teller: Teller,
    /// The clause that ended it later than [`Policy`] could say.
    pub rule: Option<Arc<ResourceRef>>,
    pub detail: Option<Arc<str>>,
    /// Body bytes from and to the downstream.
    pub rx: u64,
    pub tx: u64,
    pub revision: Revision,
    /// What [`Sink::progress`] has counted of it.
    pub counted: Counted,
}

/// What of a connection is in the counters already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub opened: bool,
    pub rx: u64,
    pub tx: u64,
}

/// The part of a record that only requests have.
#[derive(Debug, Clone, Default)]
pub struct Http {
    pub method: Option<http::Method>,
    pub host: Arc<str>,
    pub path: bytes::Bytes,
    pub version: &'static str,
    /// 0: nothing was answered.
    pub status: u16,
    pub grpc: bool,
    pub grpc_status: Option<u16>,
    pub user_agent: Option<http::HeaderValue>,
    pub forwarded_for: Option<http::HeaderValue>,
    pub traceparent: Option<http::HeaderValue>,
}

/// Holds a record until its story ends. Dropped unfinished (a cancelled future, a panic), it finishes as "caller went away".
pub struct Recording {
    record: Option<Box<Record>>,
    sink: Arc<dyn Sink>,
    clock: weft_rt::Clock,
}

// === impl Recording ===

impl Recording {
    pub fn begin(sink: Arc<dyn Sink>, clock: weft_rt::Clock, record: Record) -> Self {
        sink.open(record.direction, record.spoken, 1);
        Self { record: Some(Box::new(record)), sink, clock }
    }

    /// The record while the story goes on.
    pub fn get(&mut self) -> &mut Record {
        #[expect(clippy::expect_used, reason = "taken only by finish, which consumes self, and by drop")]
        self.record.as_deref_mut().expect("recording is open")
    }

    pub fn fail(&mut self, f: &Failure) {
        let r = self.get();
        r.failure = Some(f.kind);
        r.side = Some(f.side);
        r.rule = f.rule.clone();
        r.detail = f.detail.clone();
    }

    /// A long connection goes on; cheap, and to be called every [`REPORT_EVERY`] with the bytes so far. The first call also
    /// counts the connection as opened, so make one when its upstream is connected.
    pub fn progress(&mut self, rx: u64, tx: u64) {
        if let Some(r) = self.record.as_deref_mut() {
            (r.rx, r.tx) = (rx, tx);
            self.sink.progress(r);
        }
    }

    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut r) = self.record.take() {
            r.took = self.clock.mono().since(r.started);
            self.sink.open(r.direction, r.spoken, -1);
            self.sink.take(r);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(r) = self.record.as_mut() {
            r.failure.get_or_insert(FailureKind::DownstreamClosed);
            r.side.get_or_insert(Side::Downstream);
            self.end();
        }
    }
}

// === impl Record ===

impl Record {
    pub fn new(
        request: Arc<str>,
        direction: Direction,
        spoken: Spoken,
        downstream: Arc<Peer>,
        started: Mono,
        revision: Revision,
    ) -> Self {
        Self {
            request,
            direction,
            spoken,
            downstream,
            workload: None,
            started,
            took: Duration::ZERO,
            service: None,
            http: None,
            route: Route::NotAsked,
            policy: Policy::NotAsked,
            pick: None,
            upstream_id: None,
            upstream_addr: None,
            upstream_uid: None,
            upstream_local: None,
            upstream_took: None,
            attempts: 0,
            tries: Vec::new(),
            gave_up: None,
            failure: None,
            side: None,
            teller: Teller::Proxy,
            rule: None,
            detail: None,
            rx: 0,
            tx: 0,
            revision,
            counted: Counted::default(),
        }
    }

    pub fn failed_try(&mut self, f: &Failure, took: Duration) {
        self.tried(Some(f.kind), 0, f.sent(), took, f.detail.clone());
    }

    /// A try at what was picked has ended. Of more than can be kept, the first ones and the last are.
    pub fn tried(
        &mut self,
        failure: Option<FailureKind>,
        status: u16,
        sent: Sent,
        took: Duration,
        detail: Option<Arc<str>>,
    ) {
        let Some(c) = self.pick.as_ref().and_then(|p| p.chosen.as_ref()) else { return };
        let (endpoint, address, standing) = (c.uid.clone(), c.address, c.standing);
        let t = Try { endpoint, address, standing, failure, status, sent, took, detail };
        if self.tries.len() == MAX_TRIES {
            self.tries.pop();
        }
        self.tries.push(t);
    }

    /// Lets go of the connection's read buffers, of which head fields are slices: for whoever keeps records for long.
    pub fn let_go(&mut self) {
        let Some(http) = &mut self.http else { return };
        let path = http.path.get(..KEPT_PATH).unwrap_or(&http.path);
        http.path = bytes::Bytes::copy_from_slice(path);
        (http.user_agent, http.forwarded_for, http.traceparent) = (None, None, None);
    }
}
