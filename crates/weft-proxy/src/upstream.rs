//! To an endpoint, or to the local application: connect, reuse, TLS to the expected identities, ask.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::Method;
use weft_model::Protocol;
use weft_rt::net::{self, Addr, ConnectError};
use weft_snapshot::{
    failure::FailureKind,
    fragment::{Endpoint, Listen, Tunnel},
    snapshot::EndpointView,
};
use weft_wire::hello::Hello;

use crate::{
    codec::{
        Answer, Body, Origin, RequestHead, ResponseHead,
        h1::{self, Wire},
        h2::{self, Windows},
    },
    failure::{Failure, Side},
    head,
    io::Io,
    loads,
    pool::{Class, Dialled, Key, Stream1, Tunnel2},
    record::{Direction, Handshake},
    tls::{self, Credentials},
    tunnel::{self, HELLO_PATH},
    worker::Worker,
};

/// TCP and TLS together.
pub const CONNECT: Duration = Duration::from_secs(5);

/// A mesh connection takes no new streams this much before a certificate expires, or a tenth of what is left, if less.
const BEFORE_EXPIRY: Duration = Duration::from_secs(60);

type Interim<'a> = &'a dyn Fn(&ResponseHead);

/// One request to one endpoint of a service.
pub async fn ask(
    w: &Rc<Worker>,
    endpoint: &Arc<EndpointView>,
    port: u16,
    request: &RequestHead,
    body: Body,
    interim: Interim<'_>,
) -> Result<Answer, Failure> {
    let address = *endpoint.ports.get(&port).ok_or_else(|| no_port(endpoint, port))?;
    if endpoint.tunnel == Tunnel::Weft1 && request.upgrade.is_none() {
        let stream = mesh_stream(w, endpoint, Class::L7).await?;
        return ask_h2(stream, request, body, interim).await;
    }
    if endpoint.tunnel == Tunnel::None {
        let asking = ask_plain(w, address, wants_h2(Protocol::Undeclared, request), request, body, interim);
        return Box::pin(asking).await;
    }
    // As bytes in a CONNECT of its own: detected and authorized at the far end
    Box::pin(async {
        let io = tunnel(w, endpoint, port).await?;
        ask_inside(io, wants_h2(Protocol::Undeclared, request), request, body, interim).await
    })
    .await
}

/// One request to the local application.
pub async fn ask_app(
    w: &Rc<Worker>,
    listen: &Listen,
    request: &RequestHead,
    body: Body,
    interim: Interim<'_>,
) -> Result<Answer, Failure> {
    let asked = ask_plain(w, listen.connect, wants_h2(listen.protocol, request), request, body, interim).await;
    asked.map_err(|f| match f.kind {
        FailureKind::ConnectFailed | FailureKind::ConnectTimeout => {
            Failure { kind: FailureKind::AppConnectFailed, ..f }
        }
        _ => f,
    })
}

/// A byte stream to an endpoint, whatever lies between.
pub async fn tunnel(w: &Rc<Worker>, endpoint: &Arc<EndpointView>, port: u16) -> Result<Io, Failure> {
    let address = *endpoint.ports.get(&port).ok_or_else(|| no_port(endpoint, port))?;
    if endpoint.tunnel == Tunnel::None {
        return connect_plain(w, address).await;
    }
    let stream = mesh_stream(w, endpoint, Class::L4).await?;
    let connect = tunnel::connect_head(address, w.baggage());
    let client = stream.client();
    let answer = h2::ask(client, &connect, Body::empty(), &|_| {}).await?;
    match answer.switched {
        Some(mut io) => {
            let local = stream.local();
            io.hold(stream.held());
            Ok(io.with_local(local))
        }
        None => Err(tunnel::refused(&answer.head)),
    }
}

/// A byte stream to the local application.
pub async fn connect_app(w: &Rc<Worker>, listen: &Listen) -> Result<Io, Failure> {
    connect_plain(w, listen.connect).await.map_err(|f| Failure { kind: FailureKind::AppConnectFailed, ..f })
}

/// Opens the connection that a request would use.
pub async fn warm(w: &Rc<Worker>, endpoint: &Arc<EndpointView>) {
    if endpoint.tunnel == Tunnel::Weft1 {
        // a failure here is found again, and told, by the request
        let _ = mesh_stream(w, endpoint, Class::L7).await;
    }
}

// === helpers ===

fn no_port(endpoint: &Endpoint, port: u16) -> Failure {
    Failure::before_sending(FailureKind::NoHealthyEndpoint, Side::Upstream)
        .with_detail(format_args!("{} does not serve port {port}", endpoint.uid))
}

async fn ask_h2(stream: Stream1, request: &RequestHead, body: Body, interim: Interim<'_>) -> Result<Answer, Failure> {
    let mut answer = h2::ask(stream.client(), request, body, interim).await?;
    answer.local = stream.local();
    answer.body.hold(stream.held());
    Ok(answer)
}

async fn ask_plain(
    w: &Rc<Worker>,
    to: SocketAddr,
    h2: bool,
    request: &RequestHead,
    body: Body,
    interim: Interim<'_>,
) -> Result<Answer, Failure> {
    if h2 {
        let lane = w.shared_conns.lane(Key::App(to));
        let dial = || dial_app(w.clone(), to);
        let stream = match lane.ready(w.clock.wall()) {
            Some(s) => s,
            None => Box::pin(w.shared_conns.stream(lane, w.clock.mono(), dial)).await?,
        };
        return ask_h2(stream, request, body, interim).await;
    }
    let wire = match w.app_conns.take(to, w.clock.mono()) {
        Some(wire) => wire,
        None => Wire::shared(Box::pin(connect_plain(w, to)).await?),
    };
    // What is switched away or closes does not come home
    Ok(h1::client::ask(wire, request, body, Some(w.app_conns.home(to, &w.clock)), interim).await?)
}

async fn ask_inside(
    io: Io,
    h2: bool,
    request: &RequestHead,
    body: Body,
    interim: Interim<'_>,
) -> Result<Answer, Failure> {
    if !h2 {
        return Ok(h1::client::ask(Wire::shared(io), request, body, None, interim).await?);
    }
    let local = io.local();
    let (client, mut driver) = h2::connect(io, Windows::L7).await.map_err(protocol)?;
    let driving = weft_rt::tasks::spawn_local(async move {
        // its end shows in the streams
        let _ = std::future::poll_fn(|cx| driver.poll(cx)).await;
    });
    let mut answer = h2::ask(client, request, body, interim).await?;
    answer.local = local;
    answer.body.hold(Box::new(driving));
    Ok(answer)
}

/// Does the application get HTTP/2?
fn wants_h2(declared: Protocol, request: &RequestHead) -> bool {
    match declared {
        Protocol::Http2 | Protocol::Grpc => request.upgrade.is_none(),
        Protocol::Http => request.origin == Origin::Http2 && request.is_grpc(),
        Protocol::Undeclared | Protocol::Tcp | Protocol::Tls => request.origin == Origin::Http2,
    }
}

async fn connect_plain(w: &Rc<Worker>, to: SocketAddr) -> Result<Io, Failure> {
    if w.is_own_address(to) {
        let f = Failure::before_sending(FailureKind::Loop, Side::Internal);
        return Err(f.with_detail(format_args!("{to} is a listener of this proxy")));
    }
    let connected = net::connect(&w.net, &Addr::Tcp(to), CONNECT).await;
    connected.map(dialled).map_err(|e| {
        let kind = match e {
            ConnectError::Timeout { .. } => FailureKind::ConnectTimeout,
            ConnectError::Io { .. } => FailureKind::ConnectFailed,
        };
        Failure::before_sending(kind, Side::Upstream).with_detail(weft_rt::log::chain(&e))
    })
}

fn dialled(stream: net::Stream) -> Io {
    let local = stream.local_addr();
    Io::from(stream).with_local(local)
}

async fn dial_app(w: Rc<Worker>, to: SocketAddr) -> Result<Dialled, Failure> {
    let io = connect_plain(&w, to).await?;
    let local = io.local();
    let (client, driver) = h2::connect(io, Windows::L7).await.map_err(protocol)?;
    Ok(Dialled { client, driver, limit: Windows::L7.streams, until: None, peer: None, local })
}

/// The usual case, a connection that is there, asks nothing but the cache.
async fn mesh_stream(w: &Rc<Worker>, endpoint: &Arc<EndpointView>, class: Class) -> Result<Stream1, Failure> {
    let now = w.clock.wall();
    if let Some(stream) = w.lane(endpoint, class).and_then(|l| l.ready(now)) {
        return Ok(stream);
    }
    Box::pin(mesh_dialled(w, endpoint, class)).await
}

async fn mesh_dialled(w: &Rc<Worker>, endpoint: &Arc<EndpointView>, class: Class) -> Result<Stream1, Failure> {
    let no_identity = || Failure::before_sending(FailureKind::NoIdentity, Side::Internal);
    let c = w.credentials().ok_or_else(no_identity)?;
    if w.clock.wall() >= c.svid.not_after() {
        let f = Failure::before_sending(FailureKind::IdentityExpired, Side::Internal);
        return Err(f.with_detail(format_args!("SVID of {} expired at {}", c.svid.id(), c.svid.not_after())));
    }
    let lane = w.new_lane(endpoint, class, &c).ok_or_else(|| {
        Failure::before_sending(FailureKind::NoHealthyEndpoint, Side::Upstream)
            .with_detail(format_args!("{} has no mesh address", endpoint.uid))
    })?;
    let dial = || dial_mesh(w.clone(), lane.key().clone(), c);
    w.shared_conns.stream(lane.clone(), w.clock.mono(), dial).await
}

async fn dial_mesh(w: Rc<Worker>, key: Key, c: Arc<Credentials>) -> Result<Dialled, Failure> {
    let Key::Mesh { address, expected, sni, tunnel, class, .. } = key else {
        return Err(Failure::before_sending(FailureKind::Internal, Side::Internal));
    };
    let dialling = async {
        if w.is_own_address(address) {
            return Err(Failure::before_sending(FailureKind::Loop, Side::Internal));
        }
        let stream = w.net.connect(Addr::Tcp(address)).await.map_err(|e| {
            let e = ConnectError::Io { to: Addr::Tcp(address), source: e };
            Failure::before_sending(FailureKind::ConnectFailed, Side::Upstream).with_detail(weft_rt::log::chain(&e))
        })?;
        let local = stream.local_addr();
        let carriage = if tunnel == Tunnel2::Weft1 { Tunnel::Weft1 } else { Tunnel::Hbone };
        let shaken = tls::connect(stream, &c, &expected, carriage, &sni, address.ip(), &w.wall).await;
        let (peer, group, cipher) = shaken.as_ref().map_or((None, "", ""), |(_, s)| (Some(&s.peer), s.group, s.cipher));
        w.sink.handshake(&Handshake {
            direction: Direction::Outbound,
            local: Some(c.svid.id()),
            peer,
            tls_group: group,
            tls_cipher: cipher,
            failure: shaken.as_ref().err().map(|f| f.kind),
        });
        let (tls, shaken) = shaken?;
        if class == Class::L7 && !shaken.weft1 {
            let f = Failure::before_sending(FailureKind::TlsFailed, Side::Upstream);
            return Err(f.with_detail("the endpoint does not speak weft/1"));
        }
        let windows = if class == Class::L4 { Windows::L4 } else { Windows::L7 };
        let (client, driver) = h2::connect(tls.into(), windows).await.map_err(protocol)?;
        if shaken.weft1 {
            say_hello(client.clone(), w.hello());
        }
        let until = Some(last_call(c.svid.not_after().min(shaken.not_after), w.clock.wall()));
        Ok(Dialled { client, driver, limit: windows.streams, until, peer: Some(shaken.peer), local })
    };
    match tokio::time::timeout(CONNECT, dialling).await {
        Ok(done) => done,
        Err(_) => {
            let f = Failure::before_sending(FailureKind::ConnectTimeout, Side::Upstream);
            Err(f.with_detail(ConnectError::Timeout { to: Addr::Tcp(address), after: CONNECT }))
        }
    }
}

/// Until when a connection takes new streams.
pub fn last_call(not_after: weft_model::Wall, now: weft_model::Wall) -> weft_model::Wall {
    let left = not_after.since(now);
    not_after.minus(BEFORE_EXPIRY.min(left / 10))
}

/// The first stream of a `weft/1` connection. Nothing waits for its answer.
fn say_hello(mut client: h2::Client, hello: Hello) {
    let Some(request) = h2::to_request(&RequestHead {
        method: Method::POST,
        authority: Some(http::uri::Authority::from_static("weft")),
        path: bytes::Bytes::from_static(HELLO_PATH.as_bytes()),
        headers: http::HeaderMap::new(),
        origin: Origin::Http2,
        upgrade: None,
    }) else {
        return;
    };
    if let Ok((answer, mut send)) = client.send_request(request, false)
        && send.send_data(hello.encode().into(), true).is_ok()
    {
        // ends with the connection at the latest
        weft_rt::tasks::spawn_local(async move {
            let _ = answer.await;
        })
        .detach();
    }
}

fn protocol(e: ::h2::Error) -> Failure {
    Failure::before_sending(FailureKind::UpstreamProtocol, Side::Upstream).with_detail(e)
}

/// What a request carries to a `weft1` endpoint besides itself.
pub fn prepare(request: &mut RequestHead, service: &loads::Service, port: u16) {
    if let Some(v) = service.claim(port) {
        request.headers.insert(head::TO, v);
    }
    if let Some(v) = head::orig_value(request.origin) {
        request.headers.insert(head::ORIG, v);
    }
}
