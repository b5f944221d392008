//! The story of a mesh connection: TLS → principal → streams, of which each is a request, a tunnel, or the hello.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use bytes::BytesMut;
use http::{Method, StatusCode};
use weft_rt::{drain, net::Stream, tasks::spawn_local};
use weft_snapshot::failure::FailureKind;
use weft_wire::hello::Hello;

use super::{
    inside::connect,
    requests::{h2_request, refuse_stream},
};
use crate::{
    codec::{
        Body, ResponseHead,
        h2::{self, Windows},
    },
    failure::{Failure, Side},
    http::{Inbound, Role},
    record::{Direction, Handshake, Peer},
    tls,
    tunnel::HELLO_PATH,
    upstream,
    worker::Worker,
};

/// Tunnels on one connection: what its window holds. Our own clients keep to [`Windows::L4`].
const MOST_TUNNELS: u32 = Windows::MESH.connection / Windows::L4.stream;

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
    tunnels: Rc<Cell<u32>>,
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
            let role = Role::Inbound(self.inbound.clone());
            let f = Failure::before_sending(FailureKind::BadRequest, Side::Downstream)
                .with_detail("an HBONE connection carries CONNECT only");
            return spawn_local(async move { refuse_stream(&role, &f, StatusCode::BAD_REQUEST, &reply).await })
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
struct Counted(Rc<Cell<u32>>);

impl Counted {
    fn new(n: &Rc<Cell<u32>>) -> Self {
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
