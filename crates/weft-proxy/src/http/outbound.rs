//! The story of a request out of the local application.
//!
//! snapshot → route → edits → deadline → retry plan { pick → pool → send } → response edits → answer → record

use std::{ops::ControlFlow, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use weft_model::Mono;
use weft_snapshot::{
    balance::EndpointIx,
    eject::{feed_of_failure, feed_of_status},
    failure::{FailureKind, Sent},
    fragment::{RetryPolicy, Timeouts, Tunnel},
    retry::{GiveUp, NeverSent, Next, Outcome, Plan},
    route::{self, Destination, Edits, Selected},
    snapshot::{EndpointView, Snapshot},
};

use super::{Outbound, note_request, recording, refuse, respond};
use crate::{
    codec::{Answer, Body, Reply, RequestHead, ResponseHead, body::Replay},
    failure::{Failure, Side},
    head::{self, Borrowed},
    loads,
    local::Asked,
    pick,
    record::{Direction, Record, Recording, Route, Teller},
    upstream,
    worker::Worker,
};

pub(super) async fn outbound(o: &Rc<Outbound>, mut head: RequestHead, mut body: Body, reply: &Reply) {
    let w = &o.worker;
    let (snapshot, started) = (w.snapshot(), w.clock.mono());
    let asked = Asked::of(&head);
    if o.port == 0 {
        // which port is meant was asked for in vain; the next connection asks anew
        reply.last();
    }
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
        Err(mut f) => {
            if let (None, Route::Rule(rule)) = (&f.rule, &rec.get().route) {
                f.rule = Some(rule.clone());
            }
            Box::pin(refuse(&f, asked, reply, &mut rec)).await;
        }
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
    let view = snapshot.service(&o.service).ok_or_else(|| pick::absent(w, snapshot, &o.service))?;
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
        snapshot.service(to.service).ok_or_else(|| pick::absent(w, snapshot, to.service))?
    };
    rec.get().service = Some((to.service.clone(), to.port));

    // deadline
    if let Some(cap) = head::grpc_timeout(&head.headers) {
        timeouts.request = Some(timeouts.request.map_or(cap, |t| t.min(cap)));
    }
    let mut plan = Plan::new(retry, timeouts, started);
    let service = w.loads(view);
    service.budget().deposit();
    upstream::prepare(&mut head, &service, to.port);
    let asking = Asking { w, snapshot, service, to, reply };
    let mut kept = Kept::of(body);
    let (answer, in_flight) = tries(&asking, &mut plan, &mut head, &mut kept, rec).await?;
    Ok((answer, response_edits, in_flight))
}

/// What all tries of a request have in common.
struct Asking<'a> {
    w: &'a Rc<Worker>,
    snapshot: &'a Snapshot,
    service: Rc<loads::Service>,
    to: Destination<'a>,
    reply: &'a Reply,
}

/// What went before.
#[derive(Default)]
struct Before {
    tried: Vec<EndpointIx>,
    /// Some try was, or may have been, sent: then nobody may be told that the request was not.
    sent: bool,
}

/// pick → pool → send, until there is an answer to pass on, or no try is left.
async fn tries(
    a: &Asking<'_>,
    plan: &mut Plan,
    head: &mut RequestHead,
    kept: &mut Kept,
    rec: &mut Recording,
) -> Result<(Answer, loads::InFlight), Failure> {
    let mut before = Before::default();
    loop {
        let picked = pick::pick(a.w, a.snapshot, &a.service, a.to, &before.tried, rec);
        let (endpoint, ix) = picked.map_err(|f| f.unless_sent(before.sent))?;
        let in_flight = a.service.begin(ix);
        let started = a.w.clock.mono();
        let outcome = one_try(a.w, &endpoint, a.to.port, head, kept, a.reply, plan).await;
        let tried = Tried { endpoint, ix, started };
        match after(a, tried, outcome, plan, kept, &mut before, rec.get()) {
            ControlFlow::Break(done) => return done.map(|answer| (answer, in_flight)),
            ControlFlow::Continue(pause) if pause.is_zero() => {}
            ControlFlow::Continue(pause) => tokio::time::sleep(pause).await,
        }
    }
}

struct Tried {
    endpoint: Arc<EndpointView>,
    ix: EndpointIx,
    started: Mono,
}

/// What follows from how a try ended: another one after a pause, or the end.
fn after(
    a: &Asking<'_>,
    at: Tried,
    mut outcome: Result<Answer, Failure>,
    plan: &mut Plan,
    kept: &Kept,
    before: &mut Before,
    r: &mut Record,
) -> ControlFlow<Result<Answer, Failure>, Duration> {
    let Tried { endpoint, ix, started } = at;
    let now = a.w.clock.mono();
    if let (Ok(answer), true) = (&mut outcome, endpoint.tunnel != Tunnel::Weft1) {
        // Only a proxy of ours may speak as one
        head::strip(&mut answer.head.headers);
    }
    let told = Told::of(&outcome);
    let what = judge(&a.service, ix, &outcome, &told, started, now);
    r.attempts = u8::try_from(plan.tries()).unwrap_or(u8::MAX);
    r.upstream_took = Some(now.since(started));
    r.upstream_local = outcome.as_ref().ok().and_then(|a| a.local);
    let next = plan.next(what, kept.state(), now, a.service.budget(), &mut a.w.throw());
    if told != Told::Answered || !before.tried.is_empty() || matches!(next, Next::Retry { .. }) {
        note(r, &outcome, &told, now.since(started));
    }
    let why = match next {
        Next::Retry { after } => {
            before.sent |= !matches!(what, Outcome::NeverSent(_));
            before.tried.push(ix);
            return ControlFlow::Continue(after);
        }
        Next::GiveUp { why } => why,
    };
    if why != GiveUp::Answered {
        r.gave_up = Some(why);
    }
    let exhausted = match why {
        GiveUp::Attempts { tries: tries @ 2.. } => Some(tries),
        _ => None,
    };
    let failure = match (outcome, exhausted) {
        (Ok(mut answer), None) => {
            told_by_far(&mut answer, &told, before.sent, r);
            kept.done();
            return ControlFlow::Break(Ok(answer));
        }
        (Ok(answer), Some(_)) if told == Told::Answered => {
            // The application's own, like the ones before it
            (r.failure, r.side) = (Some(FailureKind::RetriesExhausted), Some(Side::Upstream));
            r.teller = Teller::Application;
            kept.done();
            return ControlFlow::Break(Ok(answer));
        }
        (Ok(_), Some(tries)) => told.failure().exhausted(tries, &endpoint.uid, Some("its proxy")),
        (Err(f), Some(tries)) => f.exhausted(tries, &endpoint.uid, None),
        (Err(f), None) => f,
    };
    ControlFlow::Break(Err(failure.unless_sent(before.sent)))
}

/// Who speaks in a try's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The application, or whoever stands for it.
    Answered,
    /// The endpoint's proxy.
    ByFar(Option<FailureKind>, Sent),
    /// This proxy: there is no answer.
    Failed(FailureKind, Sent),
}

impl Told {
    fn of(outcome: &Result<Answer, Failure>) -> Self {
        match outcome {
            Err(f) => Self::Failed(f.kind, f.sent()),
            Ok(a) => head::far_failure(&a.head.headers).map_or(Self::Answered, |(kind, sent)| Self::ByFar(kind, sent)),
        }
    }

    /// What the endpoint's proxy says, as if it were ours.
    fn failure(self) -> Failure {
        let (kind, sent) = match self {
            Self::Answered => (None, Sent::Sent),
            Self::ByFar(kind, sent) => (kind, sent),
            Self::Failed(kind, sent) => (Some(kind), sent),
        };
        let never_sent = (sent == Sent::NotSent).then_some(NeverSent::FarProxySays);
        Failure { never_sent, ..Failure::new(kind.unwrap_or(FailureKind::Internal), Side::Upstream) }
    }
}

fn note(r: &mut Record, outcome: &Result<Answer, Failure>, told: &Told, took: Duration) {
    match (outcome, *told) {
        (Err(f), _) => r.failed_try(f, took),
        (Ok(a), Told::ByFar(kind, sent)) => r.tried(kind, a.head.status.as_u16(), sent, took, None),
        (Ok(a), _) => r.tried(None, a.head.status.as_u16(), Sent::Sent, took, None),
    }
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
    told: &Told,
    started: Mono,
    now: Mono,
) -> Outcome {
    match outcome {
        Ok(a) => {
            let status = a.head.status.as_u16();
            service.observe(ix, now.since(started), now);
            service.feed(ix, feed_of_status(status, *told != Told::Answered), now);
            if status == 429 || a.head.headers.get("grpc-status").is_some_and(|v| v == "8") {
                service.rate_limited(ix, head::retry_after(&a.head.headers), now);
            }
            match told {
                Told::ByFar(Some(kind), _) if kind.is_verdict() => Outcome::Refused,
                Told::ByFar(_, Sent::NotSent) => {
                    service.connect_failed(ix, now);
                    Outcome::NeverSent(NeverSent::FarProxySays)
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
            match f.side {
                // our own state, which no other endpoint would change
                Side::Internal => Outcome::Refused,
                _ => f.outcome(),
            }
        }
    }
}

/// What the endpoint's proxy says is passed on, and remembered.
fn told_by_far(answer: &mut Answer, told: &Told, sent_before: bool, r: &mut Record) {
    let Told::ByFar(kind, sent) = *told else { return };
    let headers = &mut answer.head.headers;
    (r.failure, r.side, r.teller) = (kind, Some(Side::Upstream), Teller::FarProxy);
    r.rule = headers.get(head::RULE).and_then(|v| v.to_str().ok()?.parse().ok()).map(Arc::new);
    if sent_before && sent == Sent::NotSent {
        let said = headers.get(head::FAILURE).and_then(|v| v.to_str().ok()?.split(';').next());
        let doubtful = said.and_then(|label| http::HeaderValue::from_str(&format!("{label};sent")).ok());
        headers.insert(head::FAILURE, doubtful.unwrap_or(http::HeaderValue::from_static("internal;sent")));
    }
}

fn whole<'a>(o: &'a Outbound, everything: &'a weft_model::Labels) -> Destination<'a> {
    Destination { service: &o.service, port: o.port, subset: everything }
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
