//! The story of a tunnel: a CONNECT is authorized, and the bytes inside it re-enter the story of a connection.

use std::{cell::RefCell, future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use http::StatusCode;
use weft_model::Protocol;
use weft_snapshot::{
    authz::{self, Attributes, L4Verdict, Verdict},
    decision::Policy,
    detect::Detect,
    failure::FailureKind,
    fragment::Listen,
    resolve::resolve_connect,
};

use super::{
    DETECT, IDLE, peek,
    requests::{http1, http2},
};
use crate::{
    codec::{Body, ResponseHead, h2},
    failure::{Failure, Side},
    flows::{self, Asks},
    http::{Inbound, Role, broke, denied},
    io::Io,
    local,
    pump::{self, Event},
    record::{Direction, Record, Recording, Spoken},
    tunnel::Tunnel,
    upstream,
};

/// Where a policy reads requests, a silent client is waited for that long before it counts as not HTTP.
const SILENT: Duration = Duration::from_secs(10);

/// A CONNECT: resolve → L4 authorize → connect → the bytes inside.
pub(super) async fn connect(i: Rc<Inbound>, authority: &str, reply: h2::Reply, recv: ::h2::RecvStream) {
    let w = i.worker.clone();
    let snapshot = w.snapshot();
    let id: Arc<str> = format!("conn-{}", i.peer.borrow().conn).into();
    let mut record =
        Record::new(id, Direction::Inbound, Spoken::Tcp, i.peer.borrow().clone(), w.clock.mono(), snapshot.revision);
    record.workload = Some(i.workload.clone());
    let mut rec = Recording::begin(w.sink.clone(), w.clock.clone(), record);
    let entered = enter(&i, authority, &mut rec).await;
    let mut ok = ResponseHead::new(StatusCode::OK);
    if let (Some(ours), false) = (w.baggage(), i.peer.borrow().alpn == "weft/1") {
        ok.headers.insert("baggage", ours);
    }
    match entered {
        Err(f) => {
            rec.fail(&f);
            let _ = reply.send(&local::refusal(&f), Body::empty()).await;
            rec.finish();
        }
        Ok((listen, opened)) => {
            let Ok(send) = reply.accept_tunnel(&ok) else { return rec.finish() };
            let io = Io::from(Tunnel::new(send, recv));
            let role = Rc::new(Inbound {
                worker: w,
                peer: RefCell::new(i.peer.borrow().clone()),
                workload: i.workload.clone(),
                principal: i.principal.clone(),
                chain: i.chain.clone(),
                source_ip: i.source_ip,
                sni: i.sni.clone(),
                listen: Some(listen.clone()),
                drain: i.drain.clone(),
            });
            inside(role, &listen, io, opened, rec).await;
        }
    }
}

/// What a CONNECT led to: a connection to the application where L4 alone allows it, or a promise to look inside.
enum Opened {
    App(Io, flows::Guard),
    MustBeHttp,
    /// Declared to be HTTP: each request opens its own way.
    Http,
}

async fn enter(i: &Rc<Inbound>, authority: &str, rec: &mut Recording) -> Result<(Listen, Opened), Failure> {
    let w = &i.worker;
    let snapshot = w.snapshot();
    let gone = || Failure::before_sending(FailureKind::NoSnapshot, Side::Internal).with_detail(&i.workload);
    let view = snapshot.workload(&i.workload).ok_or_else(gone)?;
    let bad = |e| Failure::before_sending(FailureKind::BadTarget, Side::Downstream).with_detail(e);
    let listen = resolve_connect(view, authority).map_err(bad)?.clone();
    let r = rec.get();
    r.service = Some((view.workload.service.clone(), listen.service_port));
    r.upstream_addr = Some(listen.connect);
    match authz::evaluate_l4(&view.inbound, &l4(i, &listen)) {
        L4Verdict::Deny { rule, why } => {
            r.policy = Policy::Denied { rule: rule.clone(), why: why.clone() };
            Err(denied(rule, &why))
        }
        L4Verdict::Allow { rule, why } => {
            r.policy = Policy::Allowed { rule, why };
            if listen.protocol.is_http() {
                return Ok((listen, Opened::Http));
            }
            let asks = if listen.protocol == Protocol::Undeclared { Asks::Unknown } else { Asks::Bytes };
            let flow = w.flows.register(i.admission(&listen, asks));
            let io = dial(i, &listen, &flow).await?;
            Ok((listen, Opened::App(io, flow)))
        }
        L4Verdict::NeedsHttp if matches!(listen.protocol, Protocol::Tcp | Protocol::Tls) => {
            let flow = not_http(i, &listen, rec)?;
            let io = dial(i, &listen, &flow).await?;
            Ok((listen, Opened::App(io, flow)))
        }
        L4Verdict::NeedsHttp => Ok((listen, Opened::MustBeHttp)),
    }
}

fn l4<'a>(i: &'a Inbound, listen: &Listen) -> Attributes<'a> {
    Attributes {
        principal: Some(&i.principal),
        source_ip: i.source_ip,
        dest_ip: listen.app.ip(),
        dest_port: listen.app.port(),
        sni: i.sni.as_deref(),
        http: None,
    }
}

/// A connection to the application, while policy allows it.
async fn dial(i: &Inbound, listen: &Listen, flow: &flows::Guard) -> Result<Io, Failure> {
    tokio::select! {
        biased; // a denial counts, also when the application is there
        f = flow.denied() => Err(f),
        io = upstream::connect_app(&i.worker, listen) => io,
    }
}

/// The final word on a connection that turned out not to be HTTP, by the policy of now; registered from here on.
fn not_http(i: &Rc<Inbound>, listen: &Listen, rec: &mut Recording) -> Result<flows::Guard, Failure> {
    let snapshot = i.worker.snapshot();
    let gone = || Failure::before_sending(FailureKind::NoSnapshot, Side::Internal).with_detail(&i.workload);
    let view = snapshot.workload(&i.workload).ok_or_else(gone)?;
    let verdict = authz::evaluate(&view.inbound, &l4(i, listen));
    rec.get().policy = Policy::from(verdict.clone());
    match verdict {
        Verdict::Allow { .. } => Ok(i.worker.flows.register(i.admission(listen, Asks::Bytes))),
        Verdict::Deny { rule, why } => Err(denied(rule, &why)),
    }
}

/// The bytes inside a CONNECT: HTTP, declared or detected, meets the same rules as everywhere.
async fn inside(i: Rc<Inbound>, listen: &Listen, mut io: Io, opened: Opened, mut rec: Recording) {
    let mut seen = BytesMut::new();
    let (found, app, allowed) = match opened {
        Opened::Http if listen.protocol == Protocol::Http => {
            (peek(&mut io, &mut seen, None, Some(IDLE)).await, None, None)
        }
        Opened::Http => (Ok(Detect::Http2), None, None),
        Opened::MustBeHttp => (peek(&mut io, &mut seen, Some(SILENT), Some(DETECT)).await, None, None),
        Opened::App(mut app, flow) if listen.protocol == Protocol::Undeclared => {
            // Whichever side speaks first decides: a server that greets must not wait for a client that listens
            let found = tokio::select! {
                biased; // silence may last for hours: a denial ends it
                f = flow.denied() => Err(f),
                found = race(&mut io, &mut seen, &mut app) => Ok(found),
            };
            match found {
                Ok(found) => (found, Some(app), None),
                Err(f) => {
                    stop(&i, &f, io, app, &mut rec);
                    return rec.finish();
                }
            }
        }
        Opened::App(app, flow) => (Ok(Detect::Opaque), Some(app), Some(flow)),
    };
    io.unread(seen);
    let http = match found {
        Err(_) => return rec.finish(),
        Ok(Detect::Http1) => Some(Detect::Http1),
        Ok(Detect::Http2) => Some(Detect::Http2),
        Ok(_) if listen.protocol == Protocol::Http => Some(Detect::Http1),
        Ok(_) => None,
    };
    if let Some(http) = http {
        // Its requests have records of their own; the connection's says only that it was there.
        drop(app);
        let role = Role::Inbound(i);
        if http == Detect::Http2 {
            http2(io, role).await
        } else {
            http1(io, &role).await
        }
        return rec.finish();
    }
    let allowed = match (app, allowed) {
        (Some(app), Some(flow)) => Ok((app, flow)),
        (app, _) => opaque(&i, listen, app, &mut rec).await,
    };
    match allowed {
        Ok((app, flow)) => carry(&i, &flow, io, app, &mut rec).await,
        Err(f) => {
            io.reset_on_drop();
            rec.fail(&f);
        }
    }
    rec.finish();
}

/// What is not HTTP is judged as that, and led to the application.
async fn opaque(
    i: &Rc<Inbound>,
    listen: &Listen,
    app: Option<Io>,
    rec: &mut Recording,
) -> Result<(Io, flows::Guard), Failure> {
    match (not_http(i, listen, rec), app) {
        (Ok(flow), Some(app)) => Ok((app, flow)),
        (Ok(flow), None) => Ok((dial(i, listen, &flow).await?, flow)),
        (Err(f), app) => {
            if let Some(mut app) = app {
                app.reset_on_drop();
            }
            Err(f)
        }
    }
}

/// Bytes between a peer and the application, while policy allows it.
async fn carry(i: &Inbound, flow: &flows::Guard, mut down: Io, mut up: Io, rec: &mut Recording) {
    let mut forced = i.drain.clone();
    rec.progress(0, 0);
    let mut going_on = |event| {
        if let Event::Moved { forth, back } = event {
            rec.progress(forth, back);
        }
    };
    let ended = tokio::select! {
        biased; // a denial must not wait for a busy stream
        f = flow.denied() => Err(f),
        () = forced.forced() => Err(Failure::new(FailureKind::Draining, Side::Internal)),
        p = pump::pump(&mut down, &mut up, Some(IDLE), &mut going_on) => Ok(p),
    };
    let stopped = match ended {
        Ok(p) => {
            (rec.get().rx, rec.get().tx) = (p.forth, p.back);
            if let Some(f) = broke(&p.end) {
                rec.fail(&f);
            }
            return;
        }
        Err(f) => f,
    };
    stop(i, &stopped, down, up, rec);
}

/// Ends what was allowed before, so that neither side takes it for an end of the other's.
fn stop(i: &Inbound, stopped: &Failure, mut down: Io, mut up: Io, rec: &mut Recording) {
    down.reset_on_drop();
    up.reset_on_drop();
    tracing::info!(
        conn = i.peer.borrow().conn,
        rule = stopped.rule.as_ref().map(tracing::field::display),
        failure = stopped.kind.label(),
        "live connection ended"
    );
    rec.fail(stopped);
}

/// Who speaks first? The application's bytes, if it is it, stay with its stream.
async fn race(io: &mut Io, seen: &mut BytesMut, app: &mut Io) -> std::io::Result<Detect> {
    let mut greeting = BytesMut::new();
    let found = {
        let app_speaks = poll_fn(|cx| app.poll_read_with(cx, |b| greeting.extend_from_slice(b)));
        tokio::select! {
            biased; // the client's bytes decide the protocol, if they are there
            found = peek(io, seen, None, Some(DETECT)) => found,
            _ = app_speaks => Ok(Detect::Opaque),
        }
    };
    app.unread(greeting);
    found
}
