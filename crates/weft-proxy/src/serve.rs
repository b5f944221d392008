//! The story of a connection.
//!
//! Outbound: accept → wait or peek → detect → HTTP requests, or bytes to one endpoint.
//! Mesh inbound: accept → TLS → principal → streams; a CONNECT is authorized, and the bytes inside it re-enter the story.

mod inside;
mod mesh;
mod requests;

use std::{future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use weft_model::Protocol;
use weft_rt::{net::Stream, tasks::spawn_local};
use weft_snapshot::{
    balance::{self, Ask},
    detect::{self, Detect, Waiting},
    failure::FailureKind,
    retry::GiveUp,
    route::{self, Destination, SelectedTcp},
};

pub use self::{
    mesh::mesh,
    requests::{http1, http2},
};
use crate::{
    failure::{Failure, Sent, Side},
    http::{Outbound, Role, broke},
    io::Io,
    pick,
    pump::{self, Event, Spoke},
    record::{Direction, Record, Recording, Route, Spoken},
    upstream,
};

/// A keep-alive connection without requests, and a byte stream without bytes, end after this long (features.md TRF-11).
pub const IDLE: Duration = Duration::from_secs(3600);
/// A client that began to speak is given this long to be understood; then its bytes are carried as they are.
const DETECT: Duration = Duration::from_secs(2);
/// Endpoints tried for one byte stream.
const TCP_TRIES: usize = 3;

/// One of the application's connections to an upstream.
pub async fn outbound(o: Rc<Outbound>, stream: Stream) {
    any(o, stream.into()).await;
}

/// The same for whatever leads to it: a CONNECT or SOCKS client's bytes.
pub async fn any(o: Rc<Outbound>, mut io: Io) {
    let w = o.worker.clone();
    let declared = o.protocol.unwrap_or_else(|| w.declared(&o.service, o.port));
    let has_route = {
        let snapshot = w.snapshot();
        let namespace = w.namespace(&snapshot).unwrap_or_else(|| o.service.namespace.clone());
        snapshot.service(&o.service).and_then(|s| s.routes(&namespace, o.port)).is_some_and(route::PortTable::has_http)
    };
    let server_first = w.server_first.borrow().knows(&o.service, o.port, w.clock.mono());
    let mut seen = BytesMut::new();
    let found = match detect::waiting(declared, has_route, server_first) {
        Waiting::ForHead if declared == Protocol::Http => peek(&mut io, &mut seen, None, Some(IDLE)).await,
        Waiting::ForHead => Ok(Detect::Http2),
        Waiting::Not => Ok(Detect::Opaque),
        Waiting::Race(limit) => peek(&mut io, &mut seen, Some(limit), Some(DETECT)).await,
        Waiting::Warm(limit) => {
            let warming = spawn_local(warm(o.clone(), limit));
            let found = peek(&mut io, &mut seen, None, Some(DETECT)).await;
            warming.detach();
            found
        }
    };
    io.unread(seen);
    match found {
        Err(_) => {}
        Ok(Detect::Http1) => http1(io, &Role::Outbound(o)).await,
        Ok(Detect::Http2) => http2(io, Role::Outbound(o)).await,
        // Declared HTTP: whatever it is, the codec answers it
        Ok(_) if declared == Protocol::Http => http1(io, &Role::Outbound(o)).await,
        Ok(_) => forward(&o, io).await,
    }
}

/// Bytes to one endpoint of the service.
pub async fn forward(o: &Outbound, mut down: Io) {
    let w = &o.worker;
    let (snapshot, started) = (w.snapshot(), w.clock.mono());
    let id: Arc<str> = format!("conn-{}", o.peer.conn).into();
    let mut record = Record::new(id, Direction::Outbound, Spoken::Tcp, o.peer.clone(), started, snapshot.revision);
    record.workload = Some(w.workload.clone());
    record.service = Some((o.service.clone(), o.port));
    let mut rec = Recording::begin(w.sink.clone(), w.clock.clone(), record);
    match open(o, &mut rec).await {
        Ok((mut up, _in_flight)) => {
            let mut forced = o.drain.clone();
            rec.progress(0, 0);
            let mut going_on = |event| match event {
                Event::Spoke(Spoke::Second) => {
                    w.server_first.borrow_mut().note(&o.service, o.port, w.clock.mono());
                }
                Event::Spoke(Spoke::First) => {}
                Event::Moved { forth, back } => rec.progress(forth, back),
            };
            let ended = tokio::select! {
                biased; // out of time beats more bytes
                () = forced.forced() => None,
                p = pump::pump(&mut down, &mut up, Some(IDLE), &mut going_on) => Some(p),
            };
            match ended {
                None => {
                    down.reset_on_drop();
                    up.reset_on_drop();
                    rec.fail(&Failure::new(FailureKind::Draining, Side::Internal));
                }
                Some(p) => {
                    (rec.get().rx, rec.get().tx) = (p.forth, p.back);
                    if let Some(f) = broke(&p.end) {
                        rec.fail(&f);
                    }
                }
            }
        }
        Err(f) => {
            // A connection that was taken and led nowhere: a reset says so, an end would be an empty answer
            down.reset_on_drop();
            tracing::debug!(conn = o.peer.conn, failure = f.kind.label(), detail = f.detail.as_deref(), "no upstream");
            rec.fail(&f);
        }
    }
    rec.finish();
}

/// route → pick → connect, elsewhere when that fails: nothing was sent yet.
async fn open(o: &Outbound, rec: &mut Recording) -> Result<(Io, crate::loads::InFlight), Failure> {
    let w = &o.worker;
    let snapshot = w.snapshot();
    let absent = |service| pick::absent(w, &snapshot, service);
    let mut view = snapshot.service(&o.service).ok_or_else(|| absent(&o.service))?;
    let namespace = w.namespace(&snapshot).unwrap_or_else(|| o.service.namespace.clone());
    let everything = weft_model::Labels::default();
    let mut to = Destination { service: &o.service, port: o.port, subset: &everything };
    rec.get().route = Route::Default;
    if let Some(SelectedTcp::Rule(rule)) = view.routes(&namespace, o.port).map(route::select_tcp) {
        rec.get().route = Route::Rule(rule.origin.clone());
        let nowhere = |e: route::NoBackend| {
            Failure::before_sending(FailureKind::BackendUnresolved, Side::Upstream)
                .with_rule(Some(rule.origin.clone()))
                .with_detail(e)
        };
        to = rule.backend(&mut w.throw()).and_then(|b| b.destination()).map_err(nowhere)?;
        view = snapshot.service(to.service).ok_or_else(|| absent(to.service))?;
        rec.get().service = Some((to.service.clone(), to.port));
    }
    let service = w.loads(view);
    let mut tried = Vec::new();
    loop {
        let (endpoint, ix) = pick::pick(w, &snapshot, &service, to, &tried, rec)?;
        let tried_at = w.clock.mono();
        rec.get().attempts += 1;
        let f = match upstream::tunnel(w, &endpoint, to.port).await {
            Ok(io) => {
                let r = rec.get();
                r.upstream_local = io.local();
                if !tried.is_empty() {
                    r.tried(None, 0, Sent::Sent, w.clock.mono().since(tried_at), None);
                }
                return Ok((io, service.begin(ix)));
            }
            Err(f) => f,
        };
        rec.get().failed_try(&f, w.clock.mono().since(tried_at));
        if f.side != Side::Upstream || f.never_sent.is_none() {
            return Err(f);
        }
        if f.kind != FailureKind::UpstreamRefused {
            service.connect_failed(ix, w.clock.mono());
        }
        tried.push(ix);
        if tried.len() >= TCP_TRIES {
            rec.get().gave_up = Some(GiveUp::Attempts { tries: u32::from(rec.get().attempts) });
            return Err(f.exhausted(tried.len(), &endpoint.uid, None));
        }
    }
}

/// Opens the way before the client speaks, without deciding where its request goes.
async fn warm(o: Rc<Outbound>, after: Duration) {
    tokio::time::sleep(after).await;
    let w = &o.worker;
    let snapshot = w.snapshot();
    let Some(view) = snapshot.service(&o.service) else { return };
    let service = w.loads(view);
    let ask = Ask { now: w.clock.mono(), avoid: &[], own: service.own(), from: None };
    let picked =
        view.pool_of_all(o.port).and_then(|p| balance::pick(p, &service.loads.borrow(), &ask, &mut w.throw()).ok());
    if let Some(endpoint) = picked.and_then(|p| view.endpoint(p.ix)) {
        upstream::warm(w, endpoint).await;
    }
}

/// Reads until it is known what is spoken. `first`: how long to wait for the first byte (`None`: for ever); silence is
/// [`Detect::Opaque`]. `rest`: how long for the bytes after it.
async fn peek(
    io: &mut Io,
    seen: &mut BytesMut,
    first: Option<Duration>,
    rest: Option<Duration>,
) -> std::io::Result<Detect> {
    loop {
        let limit = if seen.is_empty() { first } else { rest };
        let read = poll_fn(|cx| io.poll_read_with(cx, |b| seen.extend_from_slice(b)));
        let n = match limit {
            None => read.await?.0,
            Some(limit) => match tokio::time::timeout(limit, read).await {
                Ok(r) => r?.0,
                Err(_) => return Ok(Detect::Opaque),
            },
        };
        match detect::detect(seen, n == 0) {
            Detect::NeedMore => {}
            found => return Ok(found),
        }
        if n == 0 {
            return Ok(Detect::Opaque);
        }
    }
}
