//! `HTTP_PROXY`, CONNECT and SOCKS5: the client names where it wants to go (features.md CAP-08).
//!
//! Only services of the mesh can be named, as `name`, `name.namespace` or `name.namespace.…`; anything else is refused, so
//! that the listener is no open proxy.

use std::{future::poll_fn, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use ::http::Method;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_model::ServiceKey;
use weft_rt::{drain, net::Stream};
use weft_snapshot::failure::FailureKind;

use crate::{
    codec::{Origin, Reply, RequestHead, h1},
    failure::{Failure, Side},
    head,
    http::{self, Outbound, Role},
    io::Io,
    local::{self, Asked},
    record::{Direction, Peer},
    serve,
    worker::Worker,
};

/// A client that was accepted says what it wants within this time.
const GREETING: Duration = Duration::from_secs(30);
const SOCKS5: u8 = 5;

/// One connection of an explicit proxy client.
pub async fn serve(w: Rc<Worker>, stream: Stream, peer: Option<SocketAddr>, drain: drain::Watch) {
    let mut io = Io::from(stream);
    let peer = Arc::new(Peer { conn: w.next_conn(), addr: peer, ..Peer::default() });
    let mut seen = BytesMut::new();
    let first = poll_fn(|cx| io.poll_read_with(cx, |b| seen.extend_from_slice(b)));
    if !matches!(tokio::time::timeout(GREETING, first).await, Ok(Ok((1.., ())))) {
        return;
    }
    let is_socks = seen.first() == Some(&SOCKS5);
    io.unread(seen);
    if is_socks {
        let asked = tokio::time::timeout(GREETING, socks5(&w, &mut io)).await;
        if let Ok(Ok(Some((service, port)))) = asked {
            serve::any(Rc::new(outbound(&w, &peer, service, port, &drain)), io).await;
        }
        return;
    }
    proxy_requests(&w, &peer, &drain, io).await;
}

fn outbound(w: &Rc<Worker>, peer: &Arc<Peer>, service: ServiceKey, port: u16, drain: &drain::Watch) -> Outbound {
    let host = Worker::service_host(&service);
    Outbound { worker: w.clone(), peer: peer.clone(), service, port, protocol: None, host, drain: drain.clone() }
}

/// Requests with whole URIs, one after the other, or one CONNECT.
async fn proxy_requests(w: &Rc<Worker>, peer: &Arc<Peer>, drain: &drain::Watch, io: Io) {
    let mut server = h1::server::Server::new(io);
    loop {
        let mut x = match tokio::time::timeout(serve::IDLE, server.next()).await {
            Ok(Ok(Some(x))) => x,
            Ok(Err(h1::wire::HeadFault::Head(e))) => {
                let f = Failure::from(e);
                http::refused(w, Direction::Outbound, peer.clone(), &f, e.status());
                let (head, text) = local::unreadable(&f, e.status());
                return Box::pin(server.refuse(&head, &text)).await;
            }
            _ => break,
        };
        let found = named(w, &x.head).await;
        match (found, x.head.method == Method::CONNECT) {
            (Ok((service, port)), true) => {
                let o = Rc::new(outbound(w, peer, service, port, drain));
                if let Ok(io) = x.reply.established().await {
                    serve::any(o, io).await;
                }
                return;
            }
            (Ok((service, port)), false) => {
                if x.head.origin == (Origin::Http11 { absolute: true }) {
                    // a whole URI is for proxies; the service is an origin and gets the path (RFC 9112, 3.2)
                    x.head.origin = Origin::Http11 { absolute: false };
                }
                let reply = Reply::H1(x.reply);
                Role::Outbound(Rc::new(outbound(w, peer, service, port, drain))).request(x.head, x.body, &reply).await;
                let Reply::H1(reply) = reply else { return };
                if !server.settle(&reply).await {
                    break;
                }
            }
            (Err(f), _) => {
                x.reply.last();
                let asked = Asked::of(&x.head);
                let id = head::request_id(&mut x.head, &mut w.dice.borrow_mut());
                let (now, snapshot) = (w.clock.mono(), w.snapshot());
                let mut rec = http::recording(w, id, Direction::Outbound, peer.clone(), &x.head, now, &snapshot);
                http::refuse(&f, asked, &Reply::H1(x.reply), &mut rec).await;
                rec.finish();
                break;
            }
        }
    }
    server.close().await;
}

/// Which service and port a request names.
async fn named(w: &Rc<Worker>, head: &RequestHead) -> Result<(ServiceKey, u16), Failure> {
    let unknown = || Failure::before_sending(FailureKind::UnknownService, Side::Downstream);
    let a = head.authority.as_ref().ok_or_else(unknown)?;
    resolve(w, a.host(), a.port_u16().unwrap_or(80)).ok_or_else(|| unknown().with_detail(a))
}

fn resolve(w: &Rc<Worker>, host: &str, port: u16) -> Option<(ServiceKey, u16)> {
    let snapshot = w.snapshot();
    let from = w.namespace(&snapshot)?;
    let view = snapshot.service_by_host(host, &from)?;
    // `http://web/` means the service's port 80, or the only one that it has
    let port = view.port(port).or_else(|| if port == 80 { view.only_port() } else { None })?;
    Some((view.service.key.clone(), port.port))
}

/// RFC 1928: no authentication, CONNECT only, by name. `None`: refused, and told.
async fn socks5(w: &Rc<Worker>, io: &mut Io) -> std::io::Result<Option<(ServiceKey, u16)>> {
    let _version = io.read_u8().await?;
    let mut methods = vec![0; io.read_u8().await?.into()];
    io.read_exact(&mut methods).await?;
    if !methods.contains(&socks::NO_AUTH) {
        io.write_all(&[SOCKS5, 0xFF]).await?;
        return Ok(None);
    }
    io.write_all(&[SOCKS5, socks::NO_AUTH]).await?;
    let mut request = [0; 4];
    io.read_exact(&mut request).await?;
    let [_, command, _, kind] = request;
    if kind != socks::BY_NAME {
        // addresses name no service
        socks::answer(io, socks::BAD_ADDRESS).await?;
        return Ok(None);
    }
    let mut name = vec![0; io.read_u8().await?.into()];
    io.read_exact(&mut name).await?;
    let port = io.read_u16().await?;
    if command != socks::CONNECT {
        socks::answer(io, socks::BAD_COMMAND).await?;
        return Ok(None);
    }
    let found = std::str::from_utf8(&name).ok().and_then(|host| resolve(w, host, port));
    socks::answer(io, if found.is_some() { socks::OK } else { socks::UNREACHABLE }).await?;
    Ok(found)
}

mod socks {
    use super::{AsyncWriteExt, Io, SOCKS5};

    pub(super) const NO_AUTH: u8 = 0;
    pub(super) const CONNECT: u8 = 1;
    pub(super) const BY_NAME: u8 = 3;
    pub(super) const OK: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 4;
    pub(super) const BAD_COMMAND: u8 = 7;
    pub(super) const BAD_ADDRESS: u8 = 8;

    /// With an empty bound address, which clients ignore.
    pub(super) async fn answer(io: &mut Io, code: u8) -> std::io::Result<()> {
        io.write_all(&[SOCKS5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        io.flush().await
    }
}
