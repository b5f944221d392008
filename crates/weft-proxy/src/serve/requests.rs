//! The requests of a connection, whichever role it has and whichever HTTP it speaks.

use std::{future::poll_fn, time::Duration};

use http::{Method, StatusCode};
use weft_rt::tasks::spawn_local;
use weft_snapshot::failure::FailureKind;

use super::IDLE;
use crate::{
    codec::{
        Body, Reply,
        h1::{self, wire::HeadFault},
        h2::{self, Windows},
    },
    failure::{Failure, Side},
    http::Role,
    io::Io,
    local,
};

/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(30);

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
        let mut slow = false;
        let next = {
            let wire = server.handle();
            let mut next = std::pin::pin!(server.next());
            tokio::select! {
                biased; // a request that is there is served
                n = &mut next => Some(n),
                () = &mut draining, if !wire.has_input() => Some(Ok(None)),
                () = &mut idle, if !wire.has_input() => None,
                () = wire.begun() => {
                    let read = tokio::time::timeout(HEAD, next).await.ok();
                    slow = read.is_none();
                    read
                }
            }
        };
        if slow {
            let f = Failure::before_sending(FailureKind::DownstreamIdle, Side::Downstream)
                .with_detail(format_args!("its head did not arrive within {} s", HEAD.as_secs()));
            return Box::pin(refuse(server, role, &f, StatusCode::REQUEST_TIMEOUT)).await;
        }
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
            Err(HeadFault::Head(e)) => return Box::pin(refuse(server, role, &e.into(), e.status())).await,
            Err(HeadFault::Io(_) | HeadFault::Truncated) => return,
        }
    }
}

/// Answers what could not be read, and closes.
async fn refuse(server: h1::server::Server, role: &Role, f: &Failure, status: StatusCode) {
    role.refused(f, status);
    let (head, text) = local::unreadable(f, status);
    server.refuse(&head, &text).await;
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

pub(super) async fn h2_request(role: Role, parts: http::request::Parts, recv: ::h2::RecvStream, reply: h2::Reply) {
    let limit = match role {
        Role::Outbound(_) => h2::Limit::OfApplication,
        Role::Inbound(_) => h2::Limit::OfMesh,
    };
    match h2::request_head(parts, limit) {
        Ok(head) if head.method != Method::CONNECT => {
            role.request(head, Body::h2(recv), &Reply::H2(reply)).await;
        }
        Ok(_) => {
            let f = Failure::before_sending(FailureKind::BadRequest, Side::Downstream)
                .with_detail("CONNECT inside an HTTP/2 connection of an application");
            refuse_stream(&role, &f, StatusCode::METHOD_NOT_ALLOWED, &reply).await;
        }
        Err(e) => refuse_stream(&role, &e.into(), e.status(), &reply).await,
    }
}

/// The same on a stream of a connection that goes on.
pub(super) async fn refuse_stream(role: &Role, f: &Failure, status: StatusCode, reply: &h2::Reply) {
    role.refused(f, status);
    let (head, text) = local::unreadable(f, status);
    // whoever asked may be gone
    let _ = reply.send(&head, Body::full(text)).await;
}
