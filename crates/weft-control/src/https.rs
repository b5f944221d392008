//! HTTP and HTTPS on one port: whoever begins with a TLS record gets TLS.
//!
//! Command lines on the same host speak plain HTTP; `kubectl` sends tokens over TLS only, and nobody should send one
//! over a network in the clear.
//!
//! Anyone who reaches the port may open connections, so each has a time by which it has to say something, and there are
//! only so many: this port must not take the descriptors that the mesh port and the store need.

use std::{future::pending, io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use weft_rt::{Tasks, drain::Observer, listen::Listener, net::Stream};

use crate::{authority::Authority, slots};

/// First byte of a TLS handshake record; no HTTP method begins with it.
const RECORD: u8 = 0x16;
/// From the connection to the end of the TLS handshake; of plain HTTP, to the first byte.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From then on, and after each answer, to the end of the next head: also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(10);
/// Connections at a time: beyond it they wait in the listener's queue.
const CONNECTIONS: usize = 1024;

/// Until the drain; returns when the open connections have ended (the caller bounds how long).
pub async fn serve(mut listener: Listener, authority: Arc<Authority>, router: Router, mut draining: Observer) {
    let most = slots::descriptors().map_or(CONNECTIONS, |n| CONNECTIONS.min(n / 4).max(1));
    let mut connections = Tasks::new();
    loop {
        tokio::select! {
            biased; // ended connections make room for new ones
            Some(_) = connections.next_ended(), if !connections.is_empty() => {}
            () = draining.draining() => break,
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => {
                    let (authority, router, draining) = (authority.clone(), router.clone(), draining.clone());
                    connections.spawn("http connection", connection(stream, authority, router, draining));
                }
                Err(e) => slots::accept_failed(&e).await,
            },
        }
    }
    drop(listener);
    while connections.next_ended().await.is_some() {}
}

async fn connection(stream: Stream, authority: Arc<Authority>, router: Router, mut draining: Observer) {
    let opened = tokio::select! {
        biased; // nothing was asked yet
        () = draining.draining() => return,
        opened = tokio::time::timeout(HANDSHAKE, open(stream, &authority)) => opened,
    };
    match opened {
        Ok(Ok(Opened::Plain(io))) => answer(io, router, draining).await,
        Ok(Ok(Opened::Tls(io))) => answer(*io, router, draining).await,
        Ok(Err(e)) => tracing::debug!(error = %e, "an HTTP connection did not come about"),
        Err(_) => tracing::debug!("an HTTP connection said nothing in time"),
    }
}

enum Opened {
    Plain(Stream),
    Tls(Box<tokio_rustls::server::TlsStream<Stream>>),
}

async fn open(stream: Stream, authority: &Authority) -> io::Result<Opened> {
    let Stream::Tcp(tcp) = &stream else { return Ok(Opened::Plain(stream)) };
    let mut first = [0];
    let n = tcp.peek(&mut first).await?;
    match authority.https().filter(|_| n == 1 && first == [RECORD]) {
        Some(config) => Ok(Opened::Tls(Box::new(TlsAcceptor::from(config).accept(stream).await?))),
        None => Ok(Opened::Plain(stream)),
    }
}

async fn answer<I>(io: I, router: Router, mut draining: Observer)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let connection = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let mut told = false;
    loop {
        let drained = async {
            match told {
                false => draining.draining().await,
                true => pending().await,
            }
        };
        tokio::select! {
            biased; // an end is an end
            ended = connection.as_mut() => {
                if let Err(e) = ended {
                    tracing::debug!(error = %weft_rt::log::chain(&e), "an HTTP connection ended");
                }
                return;
            }
            () = drained => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
