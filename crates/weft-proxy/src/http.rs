//! The story of a request, twice: out of the local application, and into it. Both read forward.
//!
//! Outbound: snapshot → route → edits → deadline → retry plan { pick → pool → send } → response edits → answer → record.
//! Inbound: snapshot → resolve → normalize → authorize → application → answer → record.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use weft_model::{Mono, Protocol, ServiceKey, SpiffeId, Uid};
use weft_rt::drain;
use weft_snapshot::{
    authz::{self, Attributes, DenyReason, Verdict},
    balance::{self, Ask, EndpointIx, Standing},
    decision::{Chosen, Pick},
    eject::{feed_of_failure, feed_of_status},
    failure::{FailureKind, Sent},
    fragment::{Listen, RetryPolicy, Timeouts, Tunnel},
    resolve::resolve_claim,
    retry::{Next, Outcome, Plan},
    route::{self, Destination, Edits, Selected},
    snapshot::{EndpointView, ServiceView, Snapshot, WorkloadView},
};

use crate::{
    codec::{
        Answer, Body, Origin, Reply, RequestHead, ResponseHead, SendError,
        body::{Meter, Replay, grpc_status},
    },
    failure::{Failure, Side},
    flows::{self, Admission},
    head::{self, Borrowed},
    loads,
    local::{self, Asked, Caller},
    pump::{self, End},
    record::{self, Direction, Peer, Policy, Record, Recording, Route, Spoken},
    upstream,
    worker::Worker,
};

/// Where the requests of a connection come from, and where they go.
#[derive(Clone)]
pub enum Role {
    Outbound(Rc<Outbound>),
    Inbound(Rc<Inbound>),
}

/// A connection of the local application to a service.
pub struct Outbound {
    pub worker: Rc<Worker>,
    pub peer: Arc<Peer>,
    pub service: ServiceKey,
    pub port: u16,
    pub protocol: Option<Protocol>,
    /// Replaces a `Host` that names the listener.
    pub host: Option<::http::uri::Authority>,
    pub drain: drain::Watch,
}

/// A connection of a mesh peer, or a tunnel inside one.
pub struct Inbound {
    pub worker: Rc<Worker>,
    pub peer: std::cell::RefCell<Arc<Peer>>,
    pub workload: Uid,
    pub principal: SpiffeId,
    pub chain: Arc<[CertificateDer<'static>]>,
    pub source_ip: IpAddr,
    pub sni: Option<Arc<str>>,
    /// Which port a tunnel leads to; `None`: each request says so by `weft-to`.
    pub listen: Option<Listen>,
    pub drain: drain::Watch,
}

// === impl Role ===

impl Role {
    pub fn drain(&self) -> &drain::Watch {
        match self {
            Self::Outbound(o) => &o.drain,
            Self::Inbound(i) => &i.drain,
        }
    }

    pub fn worker(&self) -> &Rc<Worker> {
        match self {
            Self::Outbound(o) => &o.worker,
            Self::Inbound(i) => &i.worker,
        }
    }

    /// Serves one request to its end: its record is finished when this returns, or when it is dropped.
    pub async fn request(&self, head: RequestHead, body: Body, reply: &Reply) {
        if self.drain().is_draining() {
            reply.last();
        }
        match self {
            Self::Outbound(o) => outbound(o, head, body, reply).await,
            Self::Inbound(i) => inbound(i, head, body, reply).await,
        }
    }

    /// The record of what could not even be read.
    pub fn refused(&self, kind: FailureKind, detail: &str) {
        let w = self.worker();
        let (direction, peer) = match self {
            Self::Outbound(o) => (Direction::Outbound, o.peer.clone()),
            Self::Inbound(i) => (Direction::Inbound, i.peer.borrow().clone()),
        };
        let id: Arc<str> = format!("conn-{}", peer.conn).into();
        let record = Record::new(id, direction, Spoken::Http, peer, w.clock.mono(), w.snapshot().revision);
        let mut rec = Recording::begin(w.sink.clone(), w.clock.clone(), record);
        rec.get().http = Some(record::Http { status: kind.http_status(), ..record::Http::default() });
        rec.fail(&Failure::new(kind, Side::Downstream).with_detail(detail));
        rec.finish();
    }
}

// === out of the application ===

async fn outbound(o: &Rc<Outbound>, mut head: RequestHead, mut body: Body, reply: &Reply) {
    let w = &o.worker;
    let (snapshot, started) = (w.snapshot(), w.clock.mono());
    let asked = Asked::of(&head);
    head::strip(&mut head.headers);
    let id = head::request_id(&mut head, &mut w.dice.borrow_mut());
    let mut rec = recording(w, id, Direction::Outbound, o.peer.clone(), &head, started, &snapshot);
    let came = body.meter();
    rec.get().service = Some((o.service.clone(), o.port));
    if head::names_listener(head.authority.as_ref()) {
        head.authority.clone_from(&o.host);
    }
    // one proxy so far: what the application sends begins its way here
    head::count_hop(&mut head.headers);

    match exchange(o, &snapshot, head, body, reply, started, &mut rec).await {
        Ok((mut answer, edits, _in_flight)) => {
            for e in &edits {
                head::apply(e, &mut answer.head.headers);
            }
            respond(w, answer, reply, None, &mut rec).await;
        }
        Err(f) => Box::pin(refuse(&f, asked, reply, &mut rec)).await,
    }
    note_request(came, &mut rec);
    rec.finish();
}

type ResponseEdits = Vec<weft_snapshot::fragment::HeaderEdit>;

/// From the route to the head of the answer.
async fn exchange(
    o: &Rc<Outbound>,
    snapshot: &Arc<Snapshot>,
    mut head: RequestHead,
    body: Body,
    reply: &Reply,
    started: Mono,
    rec: &mut Recording,
) -> Result<(Answer, ResponseEdits, loads::InFlight), Failure> {
    let w = &o.worker;
    let view = snapshot.service(&o.service).ok_or_else(|| unknown(snapshot, &o.service))?;
    let namespace = w.namespace(snapshot).unwrap_or_else(|| o.service.namespace.clone());

    // route
    let everything = weft_model::Labels::default();
    let default_retry = RetryPolicy::default();
    let chosen;
    let (to, edits, mut timeouts, retry) = match view.routes(&namespace, o.port) {
        None => (whole(o, &everything), Edits::default(), Timeouts::default(), &default_retry),
        Some(table) => {
            let selected = route::select(table, &Borrowed(&head).request());
            match selected {
                Selected::Default => (whole(o, &everything), Edits::default(), Timeouts::default(), &default_retry),
                Selected::NotFound => {
                    rec.get().route = Route::NotFound;
                    return Err(Failure::before_sending(FailureKind::NoRoute, Side::Downstream));
                }
                Selected::Rule(m) => {
                    rec.get().route = Route::Rule(m.origin().clone());
                    let no_backend = |e: route::NoBackend| no_backend(&e).with_rule(Some(m.origin().clone()));
                    chosen = m.backend(&mut w.throw()).map_err(no_backend)?;
                    let edits = m.edits(chosen, head.path_str());
                    (chosen.destination().map_err(no_backend)?, edits, m.timeouts(), m.retry())
                }
            }
        }
    };
    if matches!(rec.get().route, Route::NotAsked) {
        rec.get().route = Route::Default;
    }
    edit(&mut head, &edits)?;
    let response_edits = edits.response().cloned().collect();
    let view = if *to.service == o.service {
        view
    } else {
        snapshot.service(to.service).ok_or_else(|| unknown(snapshot, to.service))?
    };
    rec.get().service = Some((to.service.clone(), to.port));

    // deadline
    if let Some(cap) = head::grpc_timeout(&head.headers) {
        timeouts.request = Some(timeouts.request.map_or(cap, |t| t.min(cap)));
    }
    let mut plan = Plan::new(retry, timeouts, started);
    let service = w.loads.of(view);
    service.budget().deposit();
    upstream::prepare(&mut head, &service, to.port);

    // tries
    let mut kept = Kept::of(body);
    let mut tried: Vec<EndpointIx> = Vec::new();
    loop {
        let (endpoint, ix) = pick(w, &service, to, &tried, snapshot.workload(&w.workload), rec)?;
        let in_flight = service.begin(ix);
        let tried_at = w.clock.mono();
        let outcome = one_try(w, &endpoint, to.port, &mut head, &mut kept, reply, &plan).await;
        let now = w.clock.mono();
        rec.get().attempts = u8::try_from(plan.tries()).unwrap_or(u8::MAX);
        let what = judge(&service, ix, &outcome, tried_at, now);
        rec.get().upstream_took = Some(now.since(tried_at));
        let next = plan.next(what, kept.state(), now, service.budget(), &mut w.throw());
        match (next, outcome) {
            (Next::GiveUp { why }, Ok(mut answer)) => {
                if why != weft_snapshot::retry::GiveUp::Answered {
                    rec.get().gave_up = Some(why);
                }
                told_by_far(&mut answer, endpoint.tunnel, rec);
                kept.done();
                return Ok((answer, response_edits, in_flight));
            }
            (Next::GiveUp { why }, Err(f)) => {
                rec.get().gave_up = Some(why);
                return Err(f);
            }
            (Next::Retry { after }, _) => {
                tried.push(ix);
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
            }
        }
    }
}

fn pick(
    w: &Rc<Worker>,
    service: &Rc<loads::Service>,
    to: Destination<'_>,
    tried: &[EndpointIx],
    own: Option<&Arc<WorkloadView>>,
    rec: &mut Recording,
) -> Result<(Arc<EndpointView>, EndpointIx), Failure> {
    service.refresh();
    let none = || Failure::before_sending(FailureKind::NoHealthyEndpoint, Side::Upstream);
    let view: &ServiceView = &service.view;
    let Some(pool) = view.pool(to.port, to.subset) else {
        return Err(none().with_detail(format_args!("{} has no port {}", to.service, to.port)));
    };
    let ask = Ask { now: w.clock.mono(), avoid: tried, from: own.map(|v| &v.workload.locality) };
    let loads = service.loads.borrow();
    let picked = balance::pick(pool, &loads, &ask, &mut w.throw());
    let chosen = picked.as_ref().ok().and_then(|p| {
        let e = view.endpoint(p.ix)?;
        let r = rec.get();
        r.upstream_id = e.identities.first().cloned();
        r.upstream_uid = Some(e.uid.clone());
        r.upstream_addr = e.mesh.or_else(|| e.ports.get(&to.port).copied());
        let over = p.why.over.and_then(|o| view.endpoint(o)).map(|o| o.uid.clone());
        Some(Chosen { uid: e.uid.clone(), address: r.upstream_addr?, standing: p.why.standing, over })
    });
    // Whoever was passed over is of interest when not everything was well; asking costs a look at every endpoint.
    let well = picked.as_ref().is_ok_and(|p| p.why.standing == Standing::Passing) && tried.is_empty();
    let skipped = if well { None } else { Some(balance::skipped(pool, &loads, &ask)) };
    rec.get().pick = Some(Box::new(Pick::new(chosen, skipped.into_iter().flatten(), view)));
    let picked = picked.map_err(|e| none().with_detail(e))?;
    Ok((view.endpoint(picked.ix).ok_or_else(none)?.clone(), picked.ix))
}

async fn one_try(
    w: &Rc<Worker>,
    endpoint: &Arc<EndpointView>,
    port: u16,
    head: &mut RequestHead,
    kept: &mut Kept,
    reply: &Reply,
    plan: &Plan,
) -> Result<Answer, Failure> {
    let now = w.clock.mono();
    let limit = plan.try_deadline(now);
    if let (Some(deadline), true) = (plan.deadline(), head.headers.contains_key(head::GRPC_TIMEOUT)) {
        head.headers.insert(head::GRPC_TIMEOUT, head::grpc_timeout_value(deadline.since(now)));
    }
    let interim = |h: &ResponseHead| reply.interim(h);
    let asking = upstream::ask(w, endpoint, port, head, kept.body(), &interim);
    let answer = tokio::select! {
        biased; // an answer that is there counts, even if its reader just left
        a = asking => a,
        () = reply.gone() => Err(Failure::new(FailureKind::DownstreamClosed, Side::Downstream)),
        () = sleep_until(limit, now) => {
            let whole = plan.deadline().is_some_and(|d| d <= w.clock.mono());
            let kind = if whole { FailureKind::RequestTimeout } else { FailureKind::TryTimeout };
            Err(Failure::new(kind, Side::Upstream))
        }
    };
    // A try that failed because the caller's body broke off is the caller's failure
    answer.map_err(|f| match kept.error() {
        Some(e) => Failure::new(FailureKind::DownstreamClosed, Side::Downstream).with_detail(e),
        None => f,
    })
}

/// What a try says of its endpoint, and how it ended as the retry plan asks.
fn judge(
    service: &loads::Service,
    ix: EndpointIx,
    outcome: &Result<Answer, Failure>,
    started: Mono,
    now: Mono,
) -> Outcome {
    match outcome {
        Ok(a) => {
            let status = a.head.status.as_u16();
            let far = head::far_failure(&a.head.headers);
            service.observe(ix, now.since(started), now);
            service.feed(ix, feed_of_status(status, far.is_some()), now);
            if status == 429 || a.head.headers.get("grpc-status").is_some_and(|v| v == "8") {
                service.rate_limited(ix, head::retry_after(&a.head.headers), now);
            }
            match far {
                Some((kind, Sent::NotSent)) if !is_refusal(kind) => {
                    service.connect_failed(ix, now);
                    Outcome::NeverSent(weft_snapshot::retry::NeverSent::FarProxySays)
                }
                _ => Outcome::Answered { status },
            }
        }
        Err(f) => {
            if f.side == Side::Upstream {
                service.feed(ix, feed_of_failure(f.kind), now);
                // A refused stream says that a connection is full, not that nobody is there
                if f.never_sent.is_some() && f.kind != FailureKind::UpstreamRefused {
                    service.connect_failed(ix, now);
                }
            }
            f.outcome()
        }
    }
}

/// A decision of the far proxy about this request: the same everywhere, so not tried elsewhere.
fn is_refusal(kind: Option<FailureKind>) -> bool {
    use FailureKind as K;
    matches!(
        kind,
        Some(
            K::Denied
                | K::NotHttp
                | K::PlaintextRefused
                | K::BadRequest
                | K::AmbiguousPath
                | K::RequestHeadTooLarge
                | K::Loop
        )
    )
}

/// Only a proxy may speak as one: what a plain endpoint says under our names is dropped.
fn told_by_far(answer: &mut Answer, tunnel: Tunnel, rec: &mut Recording) {
    if tunnel == Tunnel::None {
        head::strip(&mut answer.head.headers);
    } else if let Some((kind, _)) = head::far_failure(&answer.head.headers) {
        let r = rec.get();
        r.failure = kind;
        r.side = Some(Side::Upstream);
        r.by_far = true;
    }
}

fn whole<'a>(o: &'a Outbound, everything: &'a weft_model::Labels) -> Destination<'a> {
    Destination { service: &o.service, port: o.port, subset: everything }
}

fn unknown(snapshot: &Snapshot, service: &ServiceKey) -> Failure {
    let kind = if snapshot.revision == weft_model::Revision::ZERO {
        FailureKind::NoSnapshot
    } else {
        FailureKind::UnknownService
    };
    Failure::before_sending(kind, Side::Upstream).with_detail(service)
}

fn no_backend(e: &route::NoBackend) -> Failure {
    let kind = match e {
        route::NoBackend::AllZero => FailureKind::BackendsAllZero,
        route::NoBackend::Unresolved { .. } | route::NoBackend::None => FailureKind::BackendUnresolved,
    };
    Failure::before_sending(kind, Side::Upstream).with_detail(e)
}

fn edit(head: &mut RequestHead, edits: &Edits<'_>) -> Result<(), Failure> {
    let bad = |what| Failure::before_sending(FailureKind::Internal, Side::Internal).with_detail(what);
    for e in edits.request() {
        head::apply(e, &mut head.headers);
    }
    if let Some(host) = edits.host {
        head.authority = Some(host.parse().map_err(|_| bad("the route's host is no host"))?);
    }
    if let Some(path) = &edits.path {
        if path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(bad("the route's path has a blank or control character"));
        }
        head.path = Bytes::copy_from_slice(path.as_bytes());
    }
    Ok(())
}

/// A request's body, for as many tries as it can be read.
enum Kept {
    None,
    Replay(Replay),
}

impl Kept {
    fn of(body: Body) -> Self {
        if body.is_end() { Self::None } else { Self::Replay(Replay::new(body)) }
    }

    fn body(&self) -> Body {
        match self {
            Self::None => Body::empty(),
            Self::Replay(r) => r.body(),
        }
    }

    fn state(&self) -> weft_snapshot::retry::Body {
        match self {
            Self::Replay(r) if !r.is_whole() => weft_snapshot::retry::Body::Gone,
            _ => weft_snapshot::retry::Body::Kept,
        }
    }

    fn error(&self) -> Option<crate::codec::BodyError> {
        match self {
            Self::None => None,
            Self::Replay(r) => r.error(),
        }
    }

    fn done(&self) {
        if let Self::Replay(r) = self {
            r.keep_no_more();
        }
    }
}

// === into the application ===

async fn inbound(i: &Rc<Inbound>, mut head: RequestHead, mut body: Body, reply: &Reply) {
    let w = &i.worker;
    let (snapshot, started) = (w.snapshot(), w.clock.mono());
    let asked = Asked::of(&head);
    let id = head::request_id(&mut head, &mut w.dice.borrow_mut());
    let mut rec = recording(w, id, Direction::Inbound, i.peer.borrow().clone(), &head, started, &snapshot);
    rec.get().workload = Some(i.workload.clone());
    let came = body.meter();

    match admit(i, &snapshot, head, &mut rec) {
        Ok((listen, head, flow)) => {
            let interim = |h: &ResponseHead| reply.interim(h);
            let answer = tokio::select! {
                biased; // an answer that is there counts
                a = upstream::ask_app(w, &listen, &head, body, &interim) => a,
                f = flow.denied() => Err(f),
                () = reply.gone() => Err(Failure::new(FailureKind::DownstreamClosed, Side::Downstream)),
            };
            match answer {
                Ok(mut answer) => {
                    rec.get().attempts = 1;
                    // an application that speaks under our names would be believed
                    head::strip(&mut answer.head.headers);
                    respond(w, answer, reply, Some(&flow), &mut rec).await;
                }
                Err(f) => Box::pin(refuse(&f, asked, reply, &mut rec)).await,
            }
        }
        Err(f) => Box::pin(refuse(&f, asked, reply, &mut rec)).await,
    }
    note_request(came, &mut rec);
    rec.finish();
}

/// Which port is meant, and may this peer do this? The head comes back as the application gets it.
fn admit(
    i: &Rc<Inbound>,
    snapshot: &Snapshot,
    mut head: RequestHead,
    rec: &mut Recording,
) -> Result<(Listen, Rc<RequestHead>, flows::Guard), Failure> {
    let view = snapshot
        .workload(&i.workload)
        .ok_or_else(|| Failure::before_sending(FailureKind::NoSnapshot, Side::Internal).with_detail(&i.workload))?;
    if head::count_hop(&mut head.headers).is_none() {
        return Err(Failure::before_sending(FailureKind::Loop, Side::Downstream));
    }
    let listen = match &i.listen {
        Some(l) => l.clone(),
        None => {
            let claim = head.header_str("weft-to").unwrap_or_default();
            let misdirected = |e| Failure::before_sending(FailureKind::Misdirected, Side::Downstream).with_detail(e);
            let listen = resolve_claim(view, claim).map_err(misdirected)?.clone();
            head.origin = head::orig(&head.headers);
            listen
        }
    };
    head::strip(&mut head.headers);
    let r = rec.get();
    r.service = Some((view.workload.service.clone(), listen.service_port));
    r.upstream_addr = Some(listen.connect);

    let ambiguous = |e| Failure::before_sending(FailureKind::AmbiguousPath, Side::Downstream).with_detail(e);
    let path = if view.inbound.reads_paths() {
        authz::normalize(head.path_str()).map_err(ambiguous)?
    } else {
        authz::normalize_keeping_slashes(head.path_str()).map_err(ambiguous)?
    };
    if let std::borrow::Cow::Owned(p) = path {
        head.path = p.into();
    }
    let borrowed = Borrowed(&head);
    let attributes = Attributes {
        principal: Some(&i.principal),
        source_ip: i.source_ip,
        dest_ip: listen.app.ip(),
        dest_port: listen.app.port(),
        sni: i.sni.as_deref(),
        http: Some(borrowed.request()),
    };
    let verdict = authz::evaluate(&view.inbound, &attributes);
    rec.get().policy = Policy::from(verdict.clone());
    if let Verdict::Deny { rule, why } = verdict {
        return Err(denied(rule, &why));
    }
    let head = Rc::new(head);
    let flow = i.worker.flows.register(i.admission(&listen, Some(head.clone())));
    Ok((listen, head, flow))
}

pub(crate) fn denied(rule: Option<Arc<weft_model::ResourceRef>>, why: &DenyReason) -> Failure {
    let kind = match why {
        DenyReason::Plaintext { .. } => FailureKind::PlaintextRefused,
        DenyReason::NotHttp => FailureKind::NotHttp,
        _ => FailureKind::Denied,
    };
    Failure::before_sending(kind, Side::Policy).with_rule(rule).with_detail(why)
}

impl Inbound {
    pub(crate) fn admission(self: &Rc<Self>, listen: &Listen, http: Option<Rc<RequestHead>>) -> Admission {
        Admission { by: self.clone(), dest_ip: listen.app.ip(), dest_port: listen.app.port(), http }
    }
}

// === both ===

fn recording(
    w: &Worker,
    id: Arc<str>,
    direction: Direction,
    peer: Arc<Peer>,
    head: &RequestHead,
    started: Mono,
    snapshot: &Snapshot,
) -> Recording {
    let mut record = Record::new(id, direction, Spoken::Http, peer, started, snapshot.revision);
    record.workload = Some(w.workload.clone());
    record.http = Some(record::Http {
        method: Some(head.method.clone()),
        host: head.host_str().into(),
        path: head.path.clone(),
        version: version(head),
        status: 0,
        grpc: head.is_grpc(),
        grpc_status: None,
        user_agent: head.headers.get(http::header::USER_AGENT).cloned(),
        forwarded_for: head.headers.get("x-forwarded-for").cloned(),
        traceparent: head.headers.get(head::TRACEPARENT).cloned(),
    });
    Recording::begin(w.sink.clone(), w.clock.clone(), record)
}

fn version(head: &RequestHead) -> &'static str {
    let origin = if head.origin == Origin::Http2 { head::orig(&head.headers) } else { head.origin };
    match origin {
        Origin::Http10 => "HTTP/1.0",
        Origin::Http11 { .. } => "HTTP/1.1",
        Origin::Http2 => "HTTP/2",
    }
}

async fn respond(w: &Rc<Worker>, answer: Answer, reply: &Reply, flow: Option<&flows::Guard>, rec: &mut Recording) {
    let Answer { head, mut body, switched } = answer;
    note_status(&head, rec);
    if let Some(mut up) = switched {
        let _ = w;
        return Box::pin(switch(&head, &mut up, reply, flow, rec)).await;
    }
    let trailers = if rec.get().http.as_ref().is_some_and(|h| h.grpc) { body.meter() } else { None };
    let sent = match flow {
        None => reply.send(&head, body).await,
        Some(flow) => tokio::select! {
            biased; // a denial must not wait for a busy stream
            f = flow.denied() => {
                reply.abort();
                return rec.fail(&f);
            }
            sent = reply.send(&head, body) => sent,
        },
    };
    if let (Some(told), Some(h)) = (trailers.and_then(|t| t.grpc_status()), &mut rec.get().http) {
        h.grpc_status = Some(told);
    }
    match sent {
        Ok(n) => rec.get().tx = n,
        Err(SendError::Sink(e)) => {
            rec.fail(&Failure::new(FailureKind::DownstreamClosed, Side::Downstream).with_detail(e))
        }
        Err(SendError::Source(e)) => rec.fail(&Failure::new(FailureKind::UpstreamReset, Side::Upstream).with_detail(e)),
    }
}

fn note_status(head: &ResponseHead, rec: &mut Recording) {
    if let Some(h) = &mut rec.get().http {
        h.status = head.status.as_u16();
        h.grpc_status = grpc_status(&head.headers);
    }
}

/// How much of the request's body was read; what was switched away counts by itself.
fn note_request(came: Option<Rc<Meter>>, rec: &mut Recording) {
    if let Some(came) = came {
        rec.get().rx += came.bytes();
    }
}

/// Both sides agreed to speak something else: from here on it is bytes.
async fn switch(
    head: &ResponseHead,
    up: &mut crate::io::Io,
    reply: &Reply,
    flow: Option<&flows::Guard>,
    rec: &mut Recording,
) {
    let mut down = match reply.switch(head).await {
        Ok(down) => down,
        Err(e) => return rec.fail(&Failure::new(FailureKind::DownstreamClosed, Side::Downstream).with_detail(e)),
    };
    let denied = async {
        match flow {
            Some(flow) => flow.denied().await,
            None => std::future::pending().await,
        }
    };
    let mut quiet = |_| {};
    let pumped = tokio::select! {
        biased; // a denial must not wait for a busy stream
        f = denied => Err(f),
        p = pump::pump(&mut down, up, None, &mut quiet) => Ok(p),
    };
    match pumped {
        Ok(p) => {
            let r = rec.get();
            (r.rx, r.tx) = (p.forth, p.back);
            if let Some(f) = broke(&p.end) {
                rec.fail(&f);
            }
        }
        Err(f) => {
            down.reset_on_drop();
            up.reset_on_drop();
            rec.fail(&f);
        }
    }
}

/// How a pair of streams broke, seen from the connection whose downstream is the first.
pub(crate) fn broke(end: &End) -> Option<Failure> {
    match end {
        End::Closed => None,
        End::FirstBroke(e) => Some(Failure::new(FailureKind::DownstreamClosed, Side::Downstream).with_detail(e)),
        End::SecondBroke(e) => Some(Failure::new(FailureKind::UpstreamReset, Side::Upstream).with_detail(e)),
        End::Idle => Some(Failure::new(FailureKind::DownstreamIdle, Side::Downstream)),
    }
}

async fn refuse(f: &Failure, asked: Asked, reply: &Reply, rec: &mut Recording) {
    rec.fail(f);
    if f.kind == FailureKind::DownstreamClosed {
        return reply.abort();
    }
    // Both kinds of caller that there are so far, the application beside us and mesh peers, are of the mesh
    let (head, body) = local::answer(f, &asked, Caller::Meshed);
    note_status(&head, rec);
    if let Ok(n) = reply.send(&head, body).await {
        rec.get().tx = n;
    }
}

async fn sleep_until(at: Option<Mono>, now: Mono) {
    match at {
        Some(at) => tokio::time::sleep(at.since(now).max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }

    /// A future is moved when it is made and lies in memory while it waits: what grows it is boxed where it is rare.
    #[expect(unreachable_code, reason = "only the types are asked")]
    #[test]
    fn futures_stay_small() {
        let ask =
            size(|| upstream::ask(unreachable!(), unreachable!(), 0, unreachable!(), unreachable!(), unreachable!()));
        let ask_app =
            size(|| upstream::ask_app(unreachable!(), unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let one_try = size(|| {
            one_try(unreachable!(), unreachable!(), 0, unreachable!(), unreachable!(), unreachable!(), unreachable!())
        });
        let respond = size(|| respond(unreachable!(), unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let out = size(|| outbound(unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let inb = size(|| inbound(unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let request = size(|| Role::request(unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let sizes = [
            ("ask", ask),
            ("ask_app", ask_app),
            ("one_try", one_try),
            ("respond", respond),
            ("outbound", out),
            ("inbound", inb),
            ("request", request),
        ];
        eprintln!("{sizes:?}");
        assert!(request <= 4096, "{sizes:?}");
    }
}
