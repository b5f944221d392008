//! The story of a request out of the local application.
//!
//! snapshot → route → edits → deadline → retry plan { pick → pool → send } → response edits → answer → record

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use weft_model::{Mono, ServiceKey};
use weft_snapshot::{
    balance::{self, Ask, EndpointIx, Standing},
    decision::{Chosen, Pick},
    eject::{feed_of_failure, feed_of_status},
    failure::{FailureKind, Sent},
    fragment::{RetryPolicy, Timeouts, Tunnel},
    retry::{Next, Outcome, Plan},
    route::{self, Destination, Edits, Selected},
    snapshot::{EndpointView, ServiceView, Snapshot, WorkloadView},
};

use super::{Outbound, note_request, recording, refuse, respond};
use crate::{
    codec::{Answer, Body, Reply, RequestHead, ResponseHead, body::Replay},
    failure::{Failure, Side},
    head::{self, Borrowed},
    loads,
    local::Asked,
    record::{Direction, Recording, Route},
    upstream,
    worker::Worker,
};

pub(super) async fn outbound(o: &Rc<Outbound>, mut head: RequestHead, mut body: Body, reply: &Reply) {
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

async fn sleep_until(at: Option<Mono>, now: Mono) {
    match at {
        Some(at) => tokio::time::sleep(at.since(now).max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}
