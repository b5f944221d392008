//! The story of a connection.
//!
//! Outbound: accept → wait or peek → detect → HTTP requests, or bytes to one endpoint.
//! Mesh inbound: accept → TLS → principal → streams; a CONNECT is authorized, and the bytes inside it re-enter the story.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use http::{Method, StatusCode};
use weft_model::Protocol;
use weft_rt::{drain, net::Stream, tasks::spawn_local};
use weft_snapshot::{
    authz::{self, Attributes, L4Verdict, Verdict},
    balance::{self, Ask},
    decision::Policy,
    detect::{self, Detect, Waiting},
    failure::FailureKind,
    fragment::Listen,
    resolve::resolve_connect,
    route::{self, SelectedTcp},
};
use weft_wire::hello::Hello;

use crate::{
    codec::{
        Body, Reply, ResponseHead,
        h1::{self, parse::HeadError, wire::HeadFault},
        h2::{self, Windows},
    },
    failure::{Failure, Side},
    flows,
    http::{Inbound, Outbound, Role, broke, denied},
    io::Io,
    local,
    pump::{self, Event, Spoke},
    record::{Direction, Handshake, Peer, Record, Recording, Route, Spoken},
    tls,
    tunnel::{HELLO_PATH, Tunnel},
    upstream,
    worker::Worker,
};

/// A keep-alive connection without requests, and a byte stream without bytes, end after this long (features.md TRF-11).
pub const IDLE: Duration = Duration::from_secs(3600);
/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(30);
/// A client that began to speak is given this long to be understood; then its bytes are carried as they are.
const DETECT: Duration = Duration::from_secs(2);
/// Where a policy reads requests, a silent client is waited for that long before it counts as not HTTP.
const SILENT: Duration = Duration::from_secs(10);
/// Tunnels on one connection: what its window holds. Our own clients keep to [`Windows::L4`].
const MOST_TUNNELS: u32 = Windows::MESH.connection / Windows::L4.stream;
/// Endpoints tried for one byte stream.
const TCP_TRIES: u32 = 3;

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
    let unknown = || Failure::before_sending(FailureKind::UnknownService, Side::Upstream).with_detail(&o.service);
    let mut view = snapshot.service(&o.service).ok_or_else(unknown)?;
    let namespace = w.namespace(&snapshot).unwrap_or_else(|| o.service.namespace.clone());
    let everything = weft_model::Labels::default();
    let (mut port, mut subset) = (o.port, &everything);
    rec.get().route = Route::Default;
    if let Some(SelectedTcp::Rule(rule)) = view.routes(&namespace, o.port).map(route::select_tcp) {
        rec.get().route = Route::Rule(rule.origin.clone());
        let nowhere = |e: route::NoBackend| {
            Failure::before_sending(FailureKind::BackendUnresolved, Side::Upstream)
                .with_rule(Some(rule.origin.clone()))
                .with_detail(e)
        };
        let to = rule.backend(&mut w.throw()).and_then(|b| b.destination()).map_err(nowhere)?;
        (port, subset) = (to.port, to.subset);
        view = snapshot.service(to.service).ok_or_else(unknown)?;
        rec.get().service = Some((to.service.clone(), to.port));
    }
    let service = w.loads.of(view);
    let none = || Failure::before_sending(FailureKind::NoHealthyEndpoint, Side::Upstream);
    let pool = view.pool(port, subset).ok_or_else(none)?;
    let mut tried = Vec::new();
    loop {
        service.refresh();
        let from = snapshot.workload(&w.workload).map(|v| &v.workload.locality);
        let ask = Ask { now: w.clock.mono(), avoid: &tried, from };
        let picked = balance::pick(pool, &service.loads.borrow(), &ask, &mut w.throw());
        let ix = picked.map_err(|e| none().with_detail(e))?.ix;
        let endpoint = view.endpoint(ix).ok_or_else(none)?;
        let r = rec.get();
        r.attempts += 1;
        r.upstream_id = endpoint.identities.first().cloned();
        r.upstream_uid = Some(endpoint.uid.clone());
        r.upstream_addr = endpoint.mesh.or_else(|| endpoint.ports.get(&port).copied());
        match upstream::tunnel(w, endpoint, port).await {
            Ok(io) => return Ok((io, service.begin(ix))),
            Err(f) if f.side == Side::Upstream && f.never_sent.is_some() && tried.len() + 1 < TCP_TRIES as usize => {
                if f.kind != FailureKind::UpstreamRefused {
                    service.connect_failed(ix, w.clock.mono());
                }
                tried.push(ix);
            }
            Err(f) => return Err(f),
        }
    }
}

/// Opens the way before the client speaks, without deciding where its request goes.
async fn warm(o: Rc<Outbound>, after: Duration) {
    tokio::time::sleep(after).await;
    let w = &o.worker;
    let snapshot = w.snapshot();
    let Some(view) = snapshot.service(&o.service) else { return };
    let service = w.loads.of(view);
    let ask = Ask { now: w.clock.mono(), avoid: &[], from: None };
    let picked =
        view.pool_of_all(o.port).and_then(|p| balance::pick(p, &service.loads.borrow(), &ask, &mut w.throw()).ok());
    if let Some(endpoint) = picked.and_then(|p| view.endpoint(p.ix)) {
        upstream::warm(w, endpoint).await;
    }
}

/// One connection on the mesh port.
pub async fn mesh(w: Rc<Worker>, stream: Stream, from: SocketAddr, mut drain: drain::Watch) {
    let local = stream.local_addr();
    let dest = local.map_or(IpAddr::from([0, 0, 0, 0]), |a| a.ip().to_canonical());
    let Some(c) = w.credentials() else {
        tracing::debug!(src.addr = %from, failure = FailureKind::NoIdentity.label(), "mesh connection refused");
        return;
    };
    let presented = w.presented();
    let accepted = tls::accept(stream, &presented, Some(&w.workload), dest, &c.trust, w.clock.wall()).await;
    let (tls, workload, shaken) = match accepted {
        Ok(a) => a,
        Err(f) => {
            tracing::info!(
                src.addr = %from, failure = f.kind.label(), detail = f.detail.as_deref(), "mesh handshake refused"
            );
            w.sink.handshake(&Handshake {
                direction: Direction::Inbound,
                local: Some(c.svid.id()),
                peer: None,
                tls_group: "",
                tls_cipher: "",
                failure: Some(f.kind),
            });
            return;
        }
    };
    w.sink.handshake(&Handshake {
        direction: Direction::Inbound,
        local: Some(c.svid.id()),
        peer: Some(&shaken.peer),
        tls_group: shaken.group,
        tls_cipher: shaken.cipher,
        failure: None,
    });
    let peer = Peer {
        conn: w.next_conn(),
        id: Some(shaken.peer.clone()),
        addr: Some(from),
        hello: None,
        tls_group: shaken.group,
        tls_cipher: shaken.cipher,
        alpn: if shaken.weft1 { "weft/1" } else { "h2" },
        local,
        sni: shaken.sni.clone(),
        ..Peer::default()
    };
    let last_call = upstream::last_call(c.svid.not_after().min(shaken.not_after), w.clock.wall());
    let inbound = Rc::new(Inbound {
        worker: w.clone(),
        peer: RefCell::new(Arc::new(peer)),
        workload,
        principal: shaken.peer,
        chain: shaken.chain,
        source_ip: from.ip().to_canonical(),
        sni: shaken.sni,
        listen: None,
        drain: drain.clone(),
    });
    let windows = if shaken.weft1 { Windows::MESH } else { Windows::L4 };
    let Ok(mut server) = h2::Server::handshake(tls.into(), windows).await else { return };
    let mut conn = MeshConn { inbound, weft1: shaken.weft1, tunnels: Rc::default(), widened: false };
    let (mut going, mut forced) = (false, drain.clone());
    let renewed = w.clock.sleep_until_wall(last_call);
    let mut renewed = std::pin::pin!(renewed);
    loop {
        tokio::select! {
            biased; // what arrived is served before we say goodbye
            next = poll_fn(|cx| server.poll_next(cx)) => match next {
                Some(Ok((request, send))) => conn.stream(&mut server, request, send),
                Some(Err(e)) => {
                    tracing::debug!(src.addr = %from, error = %e, "mesh connection broke");
                    return;
                }
                None => return,
            },
            () = drain.draining(), if !going => {
                going = true;
                server.go_away();
            }
            () = &mut renewed, if !going => {
                going = true;
                server.go_away();
            }
            () = forced.forced(), if going => return,
        }
    }
}

/// A mesh connection's streams.
struct MeshConn {
    inbound: Rc<Inbound>,
    weft1: bool,
    tunnels: Rc<std::cell::Cell<u32>>,
    widened: bool,
}

impl MeshConn {
    fn stream(
        &mut self,
        server: &mut h2::Server,
        request: http::Request<::h2::RecvStream>,
        send: ::h2::server::SendResponse<bytes::Bytes>,
    ) {
        let (parts, recv) = request.into_parts();
        let reply = h2::Reply::new(send);
        if parts.method == Method::CONNECT {
            if self.weft1 && !self.widened {
                self.widened = true;
                server.widen();
            }
            let tunnels = self.tunnels.clone();
            let authority = parts.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
            let inbound = self.inbound.clone();
            if !self.weft1 && inbound.peer.borrow().hello.is_none() {
                let said = parts.headers.get("baggage").and_then(|b| b.to_str().ok()).map(crate::tunnel::read_baggage);
                inbound.introduce(said);
            }
            // its end is waited for by the drain's token in `inbound`
            return spawn_local(async move {
                // Counted here and not on arrival: streams that ended in the same batch of frames go first
                tokio::task::yield_now().await;
                if tunnels.get() >= MOST_TUNNELS {
                    return reply.reset(::h2::Reason::REFUSED_STREAM);
                }
                let _counted = Counted::new(&tunnels);
                connect(inbound, &authority, reply, recv).await;
            })
            .detach();
        }
        if !self.weft1 {
            // strict HBONE
            let head = ResponseHead::new(StatusCode::BAD_REQUEST);
            return spawn_local(async move {
                let _ = reply.send(&head, Body::empty()).await;
            })
            .detach();
        }
        if parts.uri.path() == HELLO_PATH && parts.method == Method::POST {
            let inbound = self.inbound.clone();
            return spawn_local(hello(inbound, reply, recv)).detach();
        }
        let role = Role::Inbound(self.inbound.clone());
        spawn_local(h2_request(role, parts, recv, reply)).detach();
    }
}

impl Inbound {
    /// What the peer says of itself: for labels of what follows.
    fn introduce(&self, said: Option<Hello>) {
        let peer = {
            let before: &Peer = &self.peer.borrow();
            Peer { hello: said, seen: crate::record::Seen::default(), ..before.clone() }
        };
        *self.peer.borrow_mut() = Arc::new(peer);
    }
}

/// Counts a tunnel while it lives.
struct Counted(Rc<std::cell::Cell<u32>>);

impl Counted {
    fn new(n: &Rc<std::cell::Cell<u32>>) -> Self {
        n.set(n.get() + 1);
        Self(n.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The first stream of a `weft/1` connection: who speaks, for labels only.
async fn hello(i: Rc<Inbound>, reply: h2::Reply, recv: ::h2::RecvStream) {
    /// A hello is six short labels.
    const MOST: usize = 8 * 1024;
    let (mut body, mut bytes) = (Body::h2(recv), BytesMut::new());
    while let Some(Ok(crate::codec::Frame::Data(b))) = poll_fn(|cx| body.poll_frame(cx)).await {
        if bytes.len() + b.len() > MOST {
            return reply.reset(::h2::Reason::ENHANCE_YOUR_CALM);
        }
        bytes.extend_from_slice(&b);
    }
    let Ok(said) = Hello::decode(&bytes) else {
        return reply.reset(::h2::Reason::PROTOCOL_ERROR);
    };
    i.introduce(Some(said));
    let ours = Body::full(i.worker.hello().encode());
    let _ = reply.send(&ResponseHead::new(StatusCode::OK), ours).await;
}

/// A CONNECT: resolve → L4 authorize → connect → the bytes inside.
async fn connect(i: Rc<Inbound>, authority: &str, reply: h2::Reply, recv: ::h2::RecvStream) {
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
    App(Io),
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
            let io = upstream::connect_app(w, &listen).await?;
            Ok((listen, Opened::App(io)))
        }
        L4Verdict::NeedsHttp if matches!(listen.protocol, Protocol::Tcp | Protocol::Tls) => {
            not_http(i, &listen, rec)?;
            let io = upstream::connect_app(w, &listen).await?;
            Ok((listen, Opened::App(io)))
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

/// The final word on a connection that turned out not to be HTTP.
fn not_http(i: &Inbound, listen: &Listen, rec: &mut Recording) -> Result<(), Failure> {
    let snapshot = i.worker.snapshot();
    let gone = || Failure::before_sending(FailureKind::NoSnapshot, Side::Internal).with_detail(&i.workload);
    let view = snapshot.workload(&i.workload).ok_or_else(gone)?;
    let verdict = authz::evaluate(&view.inbound, &l4(i, listen));
    rec.get().policy = Policy::from(verdict.clone());
    match verdict {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { rule, why } => Err(denied(rule, &why)),
    }
}

/// The bytes inside a CONNECT: HTTP, declared or detected, meets the same rules as everywhere.
async fn inside(i: Rc<Inbound>, listen: &Listen, mut io: Io, opened: Opened, mut rec: Recording) {
    let mut seen = BytesMut::new();
    let (found, app) = match opened {
        Opened::Http if listen.protocol == Protocol::Http => (peek(&mut io, &mut seen, None, Some(IDLE)).await, None),
        Opened::Http => (Ok(Detect::Http2), None),
        Opened::MustBeHttp => (peek(&mut io, &mut seen, Some(SILENT), Some(DETECT)).await, None),
        Opened::App(app) if listen.protocol == Protocol::Undeclared => {
            // Whichever side speaks first decides: a server that greets must not wait for a client that listens
            let (found, app) = race(&mut io, &mut seen, app).await;
            (found, Some(app))
        }
        Opened::App(app) => (Ok(Detect::Opaque), Some(app)),
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
    let app = match app {
        Some(app) => Ok(app),
        None => match not_http(&i, listen, &mut rec) {
            Ok(()) => upstream::connect_app(&i.worker, listen).await,
            Err(f) => Err(f),
        },
    };
    match app {
        Ok(app) => carry(&i, listen, io, app, &mut rec).await,
        Err(f) => {
            io.reset_on_drop();
            rec.fail(&f);
        }
    }
    rec.finish();
}

/// Bytes between a peer and the application, while policy allows it.
async fn carry(i: &Rc<Inbound>, listen: &Listen, mut down: Io, mut up: Io, rec: &mut Recording) {
    let flow: flows::Guard = i.worker.flows.register(i.admission(listen, None));
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
    down.reset_on_drop();
    up.reset_on_drop();
    tracing::info!(
        conn = i.peer.borrow().conn,
        rule = stopped.rule.as_ref().map(tracing::field::display),
        failure = stopped.kind.label(),
        "live connection ended"
    );
    rec.fail(&stopped);
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

/// Who speaks first? The application's bytes, if it is it, stay with its stream.
async fn race(io: &mut Io, seen: &mut BytesMut, mut app: Io) -> (std::io::Result<Detect>, Io) {
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
    (found, app)
}

// === HTTP, whichever role ===

/// Requests of an HTTP/1 connection, one after the other.
pub async fn http1(io: Io, role: &Role) {
    let mut server = h1::server::Server::new(io);
    let (mut drain, mut end) = (role.drain().clone(), role.drain().clone());
    let mut forced = std::pin::pin!(end.forced());
    let mut draining = std::pin::pin!(drain.draining());
    // One timer for the connection: it is not set anew per request, but looked at when it fires
    let mut idle = std::pin::pin!(tokio::time::sleep(IDLE));
    let mut since = tokio::time::Instant::now();
    loop {
        let next = {
            let wire = server.handle();
            let mut next = std::pin::pin!(server.next());
            tokio::select! {
                biased; // a request that is there is served
                n = &mut next => Some(n),
                () = &mut draining, if !wire.has_input() => Some(Ok(None)),
                () = &mut idle, if !wire.has_input() => None,
                () = wire.begun() => tokio::time::timeout(HEAD, next).await.ok().or(Some(Err(HeadFault::Truncated))),
            }
        };
        let Some(next) = next else {
            if since.elapsed() >= IDLE {
                return Box::pin(server.close()).await;
            }
            idle.as_mut().reset(since + IDLE);
            continue;
        };
        match next {
            Ok(None) => return Box::pin(server.close()).await,
            Ok(Some(x)) => {
                let reply = Reply::H1(x.reply);
                tokio::select! {
                    biased; // an answer that is ready goes out
                    // in a box of its own: an idle connection must not hold room for a request
                    () = Box::pin(role.request(x.head, x.body, &reply)) => {}
                    // out of time: what was sent so far must not look complete
                    () = &mut forced => return reply.abort(),
                }
                let Reply::H1(reply) = reply else { return };
                if !server.settle(&reply).await {
                    return Box::pin(server.close()).await;
                }
                since = tokio::time::Instant::now();
            }
            Err(HeadFault::Head(e)) => {
                let kind = refusal_kind(e);
                role.refused(kind, e.code());
                let mut head = ResponseHead::new(e.status());
                if let Ok(v) = http::HeaderValue::from_str(&kind.header(weft_snapshot::failure::Sent::NotSent)) {
                    head.headers.insert(crate::head::FAILURE, v);
                }
                return Box::pin(server.refuse(&head, &format!("weft: {}: {e}\n", e.code()))).await;
            }
            Err(HeadFault::Io(_) | HeadFault::Truncated) => return,
        }
    }
}

fn refusal_kind(e: HeadError) -> FailureKind {
    match e {
        HeadError::TooLarge | HeadError::TooManyFields => FailureKind::RequestHeadTooLarge,
        _ => FailureKind::BadRequest,
    }
}

/// Streams of an HTTP/2 connection without TLS: of an application, or inside a tunnel.
pub async fn http2(io: Io, role: Role) {
    let Ok(mut server) = h2::Server::handshake(io, Windows::L7).await else { return };
    let mut drain = role.drain().clone();
    let (mut going, mut forced) = (false, drain.clone());
    loop {
        tokio::select! {
            biased; // what arrived is served before we say goodbye
            next = poll_fn(|cx| server.poll_next(cx)) => match next {
                Some(Ok((request, send))) => {
                    let (parts, recv) = request.into_parts();
                    spawn_local(h2_request(role.clone(), parts, recv, h2::Reply::new(send))).detach();
                }
                Some(Err(_)) | None => return,
            },
            () = drain.draining(), if !going => {
                going = true;
                server.go_away();
            }
            () = forced.forced(), if going => return,
        }
    }
}

async fn h2_request(role: Role, parts: http::request::Parts, recv: ::h2::RecvStream, reply: h2::Reply) {
    match h2::request_head(parts) {
        Ok(head) if head.method != Method::CONNECT => {
            role.request(head, Body::h2(recv), &Reply::H2(reply)).await;
        }
        Ok(_) => {
            role.refused(FailureKind::BadRequest, "CONNECT inside an HTTP/2 connection of an application");
            let _ = reply.send(&ResponseHead::new(StatusCode::METHOD_NOT_ALLOWED), Body::empty()).await;
        }
        Err(e) => {
            role.refused(refusal_kind(e), e.code());
            let _ = reply.send(&ResponseHead::new(e.status()), Body::empty()).await;
        }
    }
}
