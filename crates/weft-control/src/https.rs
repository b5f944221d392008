//! HTTP and HTTPS on one port: whoever begins with a TLS record gets TLS.
//!
//! Command lines on the same host speak plain HTTP; `kubectl` sends tokens over TLS only, and nobody should send one
//! over a network in the clear.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};
use weft_rt::net::Stream;

/// First byte of a TLS handshake record; no HTTP method begins with it.
const HANDSHAKE: u8 = 0x16;

/// A connection that decides by itself, when it is first read, so that accepting never waits for a peer.
pub enum MaybeTls {
    Fresh(Stream, Option<Arc<rustls::ServerConfig>>),
    Shaking(Box<Accept<Stream>>),
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
    Failed,
}

impl MaybeTls {
    pub fn new(stream: Stream, config: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self::Fresh(stream, config)
    }

    /// Ready when the kind is known and a handshake, if any, is over.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self {
                Self::Plain(_) | Self::Tls(_) => return Poll::Ready(Ok(())),
                Self::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                Self::Fresh(stream, _) => {
                    let tls = ready!(poll_is_tls(stream, cx))?;
                    let Self::Fresh(stream, config) = std::mem::replace(self, Self::Failed) else { continue };
                    *self = match config.filter(|_| tls) {
                        Some(config) => Self::Shaking(Box::new(TlsAcceptor::from(config).accept(stream))),
                        None => Self::Plain(stream),
                    };
                }
                Self::Shaking(accept) => match ready!(Pin::new(accept.as_mut()).poll(cx)) {
                    Ok(tls) => *self = Self::Tls(Box::new(tls)),
                    Err(e) => {
                        *self = Self::Failed;
                        return Poll::Ready(Err(e));
                    }
                },
            }
        }
    }
}

fn poll_is_tls(stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
    let Stream::Tcp(tcp) = stream else { return Poll::Ready(Ok(false)) };
    let mut first = [0];
    let mut buf = ReadBuf::new(&mut first);
    let n = ready!(tcp.poll_peek(cx, &mut buf))?;
    Poll::Ready(Ok(n == 1 && buf.filled() == [HANDSHAKE]))
}

impl AsyncRead for MaybeTls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_settled(cx))?;
        match this {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_settled(cx))?;
        match this {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
            // nothing was written yet
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) | Self::Fresh(io, _) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}
