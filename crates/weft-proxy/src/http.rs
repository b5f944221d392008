//! The story of a request, twice: out of the local application, and into it. Both read forward.
//!
//! Outbound: snapshot → route → edits → deadline → retry plan { pick → pool → send } → response edits → answer → record.
//! Inbound: snapshot → resolve → normalize → authorize → application → answer → record.

mod inbound;
mod outbound;

use std::{net::IpAddr, rc::Rc, sync::Arc};

use ::http::StatusCode;
use rustls_pki_types::CertificateDer;
use weft_model::{Mono, Protocol, ServiceKey, SpiffeId, Uid};
use weft_rt::drain;
use weft_snapshot::{failure::FailureKind, fragment::Listen, snapshot::Snapshot};

pub(crate) use self::inbound::denied;
use self::{inbound::inbound, outbound::outbound};
use crate::{
    codec::{
        Answer, Body, Origin, Reply, RequestHead, ResponseHead, SendError,
        body::{Meter, grpc_status},
    },
    failure::{Failure, Side},
    flows, head,
    local::{self, Asked, Caller},
    pump::{self, End},
    record::{self, Direction, Peer, Record, Recording, Spoken},
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

    /// The record of what was refused before it became a request.
    pub fn refused(&self, f: &Failure, status: StatusCode) {
        let (direction, peer) = match self {
            Self::Outbound(o) => (Direction::Outbound, o.peer.clone()),
            Self::Inbound(i) => (Direction::Inbound, i.peer.borrow().clone()),
        };
        refused(self.worker(), direction, peer, f, status);
    }
}

pub(crate) fn refused(w: &Worker, direction: Direction, peer: Arc<Peer>, f: &Failure, status: StatusCode) {
    let id: Arc<str> = format!("conn-{}", peer.conn).into();
    let mut record = Record::new(id, direction, Spoken::Http, peer, w.clock.mono(), w.snapshot().revision);
    record.workload = Some(w.workload.clone());
    record.http = Some(record::Http { status: status.as_u16(), ..record::Http::default() });
    let mut rec = Recording::begin(w.sink.clone(), w.clock.clone(), record);
    rec.fail(f);
    rec.finish();
}

// === both ===

pub(crate) fn recording(
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
    let Answer { head, mut body, switched, .. } = answer;
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

pub(crate) async fn refuse(f: &Failure, asked: Asked, reply: &Reply, rec: &mut Recording) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream;

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
        let respond = size(|| respond(unreachable!(), unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let out = size(|| outbound(unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let inb = size(|| inbound(unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let request = size(|| Role::request(unreachable!(), unreachable!(), unreachable!(), unreachable!()));
        let sizes = [
            ("ask", ask),
            ("ask_app", ask_app),
            ("respond", respond),
            ("outbound", out),
            ("inbound", inb),
            ("request", request),
        ];
        eprintln!("{sizes:?}");
        assert!(request <= 4096, "{sizes:?}");
    }
}
