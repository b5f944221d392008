//! Every byte stream that the proxy holds: plain, TLS, or a tunnel inside HTTP/2.

use std::{
    any::Any,
    cell::RefCell,
    future::Future,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use weft_rt::net::Stream;

use crate::tunnel::Tunnel;

/// What one read takes at most. Larger reads mean fewer system calls; this is where the gain ends (DESIGN section 9).
pub const READ_SIZE: usize = 64 * 1024;

thread_local! {
    /// Reads land here and only what came is copied out, so that an idle connection owns no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);
}

#[derive(Debug)]
pub struct Io {
    /// Read already, while looking; comes before everything else.
    peeked: BytesMut,
    kind: Kind,
    /// Whatever must live as long: a tunnel's claim to its connection.
    hold: Option<Box<dyn Any>>,
    /// Our end of a connection that we opened, or of the one that carries it.
    local: Option<SocketAddr>,
}

#[derive(Debug)]
enum Kind {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
    Tunnel(Box<Tunnel>),
    /// Taken out; nobody should ask any more.
    Gone,
}

// === impl Io ===

impl Io {
    /// Puts back what was read while looking.
    pub fn unread(&mut self, bytes: BytesMut) {
        debug_assert!(self.peeked.is_empty(), "only one look ahead");
        self.peeked = bytes;
    }

    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    #[must_use]
    pub fn with_local(mut self, local: Option<SocketAddr>) -> Self {
        self.local = local;
        self
    }

    /// Keeps `what` until the stream is gone.
    pub fn hold(&mut self, what: Box<dyn Any>) {
        self.hold = Some(what);
    }

    /// Takes the stream out of a place that stays.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self { peeked: BytesMut::new(), kind: Kind::Gone, hold: None, local: None })
    }

    /// From now on dropping it resets: the peer must not take what it got for the whole.
    pub fn reset_on_drop(&mut self) {
        match &mut self.kind {
            Kind::Plain(s) => s.reset_on_drop(),
            Kind::Tls(s) => match s.as_mut() {
                TlsStream::Client(s) => s.get_mut().0.reset_on_drop(),
                TlsStream::Server(s) => s.get_mut().0.reset_on_drop(),
            },
            Kind::Tunnel(t) => t.reset(),
            Kind::Gone => {}
        }
    }

    /// Reads what is there and hands it to `take`; 0 bytes are the end. `take` must not read from an `Io` itself.
    pub fn poll_read_with<R>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Poll<io::Result<(usize, R)>> {
        if !self.peeked.is_empty() {
            let bytes = std::mem::take(&mut self.peeked);
            return Poll::Ready(Ok((bytes.len(), take(&bytes))));
        }
        if let Kind::Tunnel(t) = &mut self.kind {
            let chunk = ready!(t.poll_chunk(cx))?;
            return Poll::Ready(Ok((chunk.len(), take(&chunk))));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(self).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok((buf.filled().len(), take(buf.filled()))))
        })
    }

    /// Reads what is there as an owned chunk; an empty one is the end. `large`: much is expected, so that a buffer is worth
    /// its allocation and the copy out of the scratch is saved.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>, large: bool) -> Poll<io::Result<Bytes>> {
        match &mut self.kind {
            Kind::Tunnel(t) if self.peeked.is_empty() => t.poll_chunk(cx),
            _ if large && self.peeked.is_empty() => {
                let mut chunk = BytesMut::with_capacity(READ_SIZE);
                let read = std::pin::pin!(self.read_buf(&mut chunk));
                ready!(read.poll(cx))?;
                Poll::Ready(Ok(chunk.freeze()))
            }
            _ => self.poll_read_with(cx, Bytes::copy_from_slice).map_ok(|(_, chunk)| chunk),
        }
    }

    /// Writes some of `bytes`, without a copy where it travels as a chunk.
    pub fn poll_write_chunk(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        if let Kind::Tunnel(t) = &mut self.kind {
            return t.poll_write_chunk(cx, bytes);
        }
        let n = ready!(Pin::new(self).poll_write(cx, bytes))?;
        bytes.advance(n);
        Poll::Ready(Ok(n))
    }

    /// Is the peer still there, and silent? Then the connection may be used again. Asks the kernel, not a cache.
    pub fn is_quiet(&self) -> bool {
        let mut one = [MaybeUninit::uninit()];
        let peeked = match &self.kind {
            Kind::Plain(Stream::Tcp(s)) => socket2::SockRef::from(s).peek(&mut one),
            Kind::Plain(Stream::Unix(s)) => socket2::SockRef::from(s).peek(&mut one),
            _ => return true,
        };
        matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

impl From<Stream> for Io {
    fn from(s: Stream) -> Self {
        Self { peeked: BytesMut::new(), kind: Kind::Plain(s), hold: None, local: None }
    }
}

impl From<TlsStream<Stream>> for Io {
    fn from(s: TlsStream<Stream>) -> Self {
        Self { peeked: BytesMut::new(), kind: Kind::Tls(Box::new(s)), hold: None, local: None }
    }
}

impl From<Tunnel> for Io {
    fn from(t: Tunnel) -> Self {
        Self { peeked: BytesMut::new(), kind: Kind::Tunnel(Box::new(t)), hold: None, local: None }
    }
}

macro_rules! each {
    ($self:ident, $s:ident, $gone:expr => $body:expr) => {
        match &mut $self.get_mut().kind {
            Kind::Plain($s) => {
                let $s = Pin::new($s);
                $body
            }
            Kind::Tls($s) => {
                let $s = Pin::new(&mut **$s);
                $body
            }
            Kind::Tunnel($s) => {
                let $s = Pin::new(&mut **$s);
                $body
            }
            Kind::Gone => Poll::Ready($gone),
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.peeked.is_empty() {
            let n = self.peeked.len().min(buf.remaining());
            buf.put_slice(&self.peeked.split_to(n));
            if self.peeked.is_empty() {
                self.peeked = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        each!(self, s, Ok(()) => s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s, gone() => s.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, s, gone() => s.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(s) => s.is_write_vectored(),
            Kind::Tls(s) => s.is_write_vectored(),
            Kind::Tunnel(_) | Kind::Gone => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s, gone() => s.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s, gone() => s.poll_shutdown(cx))
    }
}

fn gone<T>() -> io::Result<T> {
    Err(io::ErrorKind::BrokenPipe.into())
}
