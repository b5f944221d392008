//! One HTTP/1 connection's stream and buffers, shared by who reads the body and who writes the answer.
//!
//! Both live on one worker, so a `RefCell` suffices; no borrow is held over an await.

use std::{
    cell::RefCell,
    io, mem,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::{
    decode::{Decoder, Step},
    parse::{self, HeadError},
    write,
};
use crate::{
    codec::{BodyError, Frame, Framing},
    io::{Io, READ_SIZE},
};

/// Below this, a chunk is copied behind the head so that both leave in one write.
const COPY_BELOW: usize = 16 * 1024;

#[derive(Debug)]
pub struct Wire {
    io: Io,
    rbuf: BytesMut,
    /// How much of `rbuf` was searched for the end of a head.
    searched: usize,
    eof: bool,
    wbuf: BytesMut,
    /// Goes after `wbuf`, not copied into it.
    big: Bytes,
    /// Goes after `big`.
    tail: BytesMut,
    /// Written into a TLS session that may hold it still.
    unflushed: bool,
    decoder: Decoder,
    /// An error ended it, or the exchange left it in an unknown state.
    broken: bool,
    /// Something left since `mark`.
    written: bool,
    /// Whoever waits for input: it must learn when the other half breaks the connection.
    reader: Option<Waker>,
    /// Whoever watches for the peer's end, which can be seen only once the body is through.
    watcher: Option<Waker>,
}

pub type SharedWire = Rc<RefCell<Wire>>;

/// The body that is being received on a connection.
#[derive(Debug)]
pub struct Incoming {
    wire: SharedWire,
    /// Called when it ended well: a client's connection goes back to its pool.
    on_end: Option<super::client::Lease>,
}

/// The body that is being sent on a connection.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) wire: SharedWire,
    pub(crate) framing: Framing,
    /// Tells the lease that the request went out whole.
    pub(crate) done: Option<Rc<std::cell::Cell<bool>>>,
}

// === impl Wire ===

impl Wire {
    /// Our end of the connection, where we opened it.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        self.io.local()
    }

    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            rbuf: BytesMut::new(),
            searched: 0,
            eof: false,
            wbuf: BytesMut::new(),
            big: Bytes::new(),
            tail: BytesMut::new(),
            unflushed: false,
            decoder: Decoder::DONE,
            broken: false,
            written: false,
            reader: None,
            watcher: None,
        }
    }

    pub(crate) fn shared(io: Io) -> SharedWire {
        Rc::new(RefCell::new(Self::new(io)))
    }

    /// Takes the stream out, with what was read beyond the head.
    pub(crate) fn take_io(&mut self) -> Io {
        self.broken = true;
        let mut io = self.io.take();
        io.unread(mem::take(&mut self.rbuf));
        io
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn at_eof(&self) -> bool {
        self.eof
    }

    /// Neither received nor unsent bytes, and the peer silent: fit for another exchange.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.broken
            && !self.eof
            && self.rbuf.is_empty()
            && self.wbuf.is_empty()
            && self.big.is_empty()
            && self.io.is_quiet()
    }

    /// Ends it as a reset.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
        self.io.reset_on_drop();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Begins an exchange: [`Wire::has_written`] is about what follows.
    pub(crate) fn mark(&mut self) {
        self.written = false;
    }

    pub(crate) fn has_written(&self) -> bool {
        self.written
    }

    pub(crate) fn begin_body(&mut self, framing: Framing) {
        self.decoder = Decoder::new(framing);
    }

    pub(crate) fn body_done(&self) -> bool {
        self.decoder.is_done()
    }

    pub(crate) fn body_left(&self) -> Option<u64> {
        self.decoder.left()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let rbuf = &mut self.rbuf;
        let Poll::Ready(read) = self.io.poll_read_with(cx, |b| rbuf.extend_from_slice(b)) else {
            if self.reader.as_ref().is_none_or(|r| !r.will_wake(cx.waker())) {
                self.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        match read {
            Ok((n, ())) => {
                self.eof |= n == 0;
                Poll::Ready(Ok(n))
            }
            Err(e) => {
                self.broken = true;
                Poll::Ready(Err(e))
            }
        }
    }

    /// The next head with its empty line. `Ok(None)`: the peer ended before its first byte.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, HeadFault>> {
        loop {
            if self.searched == 0 {
                // Empty lines before a head are to be ignored (RFC 9112, section 2.2)
                while self.rbuf.starts_with(b"\r\n") {
                    self.rbuf.advance(2);
                }
            }
            if let Some(n) = parse::end_of_head(&self.rbuf, self.searched).map_err(HeadFault::Head)? {
                self.searched = 0;
                let head = self.rbuf.split_to(n).freeze();
                if self.rbuf.is_empty() {
                    self.rbuf = BytesMut::new();
                }
                return Poll::Ready(Ok(Some(head)));
            }
            self.searched = self.rbuf.len();
            if self.eof {
                return Poll::Ready(if self.rbuf.is_empty() { Ok(None) } else { Err(HeadFault::Truncated) });
            }
            ready!(self.poll_fill(cx)).map_err(HeadFault::Io)?;
        }
    }

    /// Has the first byte of a head arrived?
    pub(crate) fn has_input(&self) -> bool {
        !self.rbuf.is_empty()
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            match self.decoder.step(&mut self.rbuf, self.eof) {
                Ok(Step::Data(b)) => return Poll::Ready(Some(Ok(Frame::Data(b)))),
                Ok(Step::Trailers(t)) => return Poll::Ready(Some(Ok(Frame::Trailers(t)))),
                Ok(Step::End) => {
                    if let Some(w) = self.watcher.take() {
                        w.wake();
                    }
                    if self.rbuf.is_empty() {
                        self.rbuf = BytesMut::new();
                    }
                    return Poll::Ready(None);
                }
                Ok(Step::NeedMore) => {
                    if ready!(self.poll_fill(cx)).is_err() {
                        return Poll::Ready(Some(Err(BodyError::Broken)));
                    }
                }
                Err(e) => {
                    self.broken = true;
                    return Poll::Ready(Some(Err(e)));
                }
            }
        }
    }

    /// Resolves when the peer broke the connection, or ended it. Reads ahead at most one buffer: a pipelining peer waits.
    pub(crate) fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<PeerGone> {
        loop {
            if self.broken {
                return Poll::Ready(PeerGone::Broke);
            }
            if self.eof {
                return Poll::Ready(PeerGone::Ended);
            }
            if !self.decoder.is_done() {
                self.watcher = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if self.rbuf.len() >= READ_SIZE {
                return Poll::Pending;
            }
            if ready!(self.poll_fill(cx)).is_err() {
                return Poll::Ready(PeerGone::Broke);
            }
        }
    }

    /// Where the next bytes go.
    pub(crate) fn out(&mut self) -> &mut BytesMut {
        if self.big.is_empty() { &mut self.wbuf } else { &mut self.tail }
    }

    pub(crate) fn has_output(&self) -> bool {
        self.queued() > 0
    }

    /// Bytes that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.wbuf.len() + self.big.len() + self.tail.len()
    }

    /// Queues bytes; `poll_drained` first, so that there is at most one big chunk.
    pub(crate) fn push(&mut self, b: Bytes) {
        if !self.big.is_empty() {
            self.tail.extend_from_slice(&b);
        } else if b.len() < COPY_BELOW {
            self.wbuf.extend_from_slice(&b);
        } else {
            self.big = b;
        }
    }

    /// Queues a chunk and what follows it.
    pub(crate) fn push_then(&mut self, b: Bytes, tail: &[u8]) {
        self.push(b);
        if self.big.is_empty() {
            self.wbuf.extend_from_slice(tail);
        } else {
            self.tail.extend_from_slice(tail);
        }
    }

    /// Everything queued is with the stream (which may be a TLS session).
    pub(crate) fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let r = self.poll_write_out(cx);
        if let Poll::Ready(Err(_)) = &r {
            self.broken = true;
        }
        r
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.wbuf.is_empty() || !self.big.is_empty() {
            let io = Pin::new(&mut self.io);
            let n = if self.big.is_empty() {
                ready!(io.poll_write(cx, &self.wbuf))?
            } else {
                let both = [io::IoSlice::new(&self.wbuf), io::IoSlice::new(&self.big)];
                ready!(io.poll_write_vectored(
                    cx,
                    if self.wbuf.is_empty() { both.get(1..).unwrap_or(&both) } else { &both }
                ))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.written = true;
            let small = n.min(self.wbuf.len());
            self.wbuf.advance(small);
            self.big.advance(n - small);
            if self.wbuf.is_empty() && self.big.is_empty() && !self.tail.is_empty() {
                self.wbuf = mem::take(&mut self.tail);
            }
        }
        // gives the allocation back
        self.wbuf = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drained(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Throws away what the peer sends until it ends.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.eof {
            self.rbuf.clear();
            ready!(self.poll_fill(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerGone {
    /// It will send nothing more; it may still be reading.
    Ended,
    Broke,
}

/// Why no head came.
#[derive(Debug, thiserror::Error)]
pub enum HeadFault {
    #[error("connection broke")]
    Io(#[source] io::Error),
    #[error("connection ended within a head")]
    Truncated,
    #[error("head is refused")]
    Head(#[source] HeadError),
}

// === impl Incoming ===

impl Incoming {
    pub(crate) fn new(wire: SharedWire, on_end: Option<super::client::Lease>) -> Self {
        Self { wire, on_end }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.wire.borrow().body_done()
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.wire.borrow().body_left()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut wire = self.wire.borrow_mut();
        let frame = ready!(wire.poll_body(cx));
        let done = wire.body_done() && !wire.is_broken();
        drop(wire);
        if done && let Some(lease) = self.on_end.take() {
            lease.give_back();
        }
        Poll::Ready(frame)
    }
}

// === impl Outgoing ===

impl Outgoing {
    pub(crate) fn data(&self, b: Bytes) {
        let mut wire = self.wire.borrow_mut();
        match self.framing {
            Framing::Chunked => write::chunk(&mut wire, b),
            _ => wire.push(b),
        }
    }

    /// The end of the body, with trailers where the framing can carry them.
    pub(crate) fn end(&self, trailers: Option<&http::HeaderMap>) {
        if self.framing == Framing::Chunked {
            write::last_chunk(self.wire.borrow_mut().out(), trailers);
        }
        if let Some(done) = &self.done {
            done.set(true);
        }
    }
}
