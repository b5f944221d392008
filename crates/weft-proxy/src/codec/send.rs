//! Bodies out, and the two ends of an exchange without their protocol: [`Reply`] answers, [`Answer`] was received.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    task::{Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use weft_snapshot::retry::NeverSent;

use super::{
    Body, BodyError, Frame, ResponseHead,
    h1::{self, Outgoing},
    h2 as codec_h2,
};
use crate::io::Io;

/// Gathered before a write, where frames are small.
const GATHER: usize = 16 * 1024;

/// Where a body goes.
pub(crate) enum Sink {
    H1(Outgoing),
    H2(SendStream<Bytes>),
}

/// Why a body did not arrive whole: its source, or the way.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("body broke off")]
    Source(#[source] BodyError),
    #[error("receiver is gone")]
    Sink(#[source] io::Error),
}

/// What an upstream answered.
#[derive(Debug)]
pub struct Answer {
    pub head: ResponseHead,
    pub body: Body,
    /// It is no HTTP any more: 101, or a CONNECT that was accepted.
    pub switched: Option<Io>,
    /// Our end of the connection that it came on.
    pub local: Option<SocketAddr>,
}

/// Why an upstream did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// `nothing_written`: the request cannot have been seen.
    #[error("connection broke before an answer")]
    Io {
        #[source]
        source: io::Error,
        nothing_written: bool,
    },
    #[error("connection closed before an answer")]
    Closed { nothing_written: bool },
    #[error("answer has no acceptable head")]
    Head(#[source] h1::parse::HeadError),
    #[error("stream was refused before it was looked at")]
    Refused,
    #[error("connection was going away before the stream was looked at")]
    AboveGoaway,
    #[error("stream was reset before an answer ({0})")]
    Reset(Reason),
    #[error("request's own body broke off")]
    Body(#[source] BodyError),
}

/// Answers one request, in the protocol in which it came.
#[derive(Debug)]
pub enum Reply {
    H1(h1::server::Reply),
    H2(codec_h2::Reply),
}

// === impl AskError ===

impl AskError {
    /// The proof that the request cannot have been seen by an application, if there is one.
    pub fn never_sent(&self) -> Option<NeverSent> {
        match self {
            Self::Io { nothing_written: true, .. } | Self::Closed { nothing_written: true } => {
                Some(NeverSent::NoByteWritten)
            }
            Self::Refused => Some(NeverSent::RefusedStream),
            Self::AboveGoaway => Some(NeverSent::AboveGoaway),
            Self::Io { .. } | Self::Closed { .. } | Self::Head(_) | Self::Reset(_) | Self::Body(_) => None,
        }
    }
}

// === impl Reply ===

impl Reply {
    pub fn interim(&self, head: &ResponseHead) {
        match self {
            Self::H1(r) => r.interim(head),
            Self::H2(r) => r.interim(head),
        }
    }

    /// Resolves when nobody is there to be answered.
    pub async fn gone(&self) {
        match self {
            Self::H1(r) => r.gone().await,
            Self::H2(r) => r.gone().await,
        }
    }

    pub async fn send(&self, head: &ResponseHead, body: Body) -> Result<u64, SendError> {
        match self {
            Self::H1(r) => r.send(head, body).await,
            Self::H2(r) => r.send(head, body).await,
        }
    }

    /// Ends it as a reset: nothing more will be said.
    pub fn abort(&self) {
        match self {
            Self::H1(r) => r.abort(),
            Self::H2(r) => r.reset(Reason::CANCEL),
        }
    }

    /// Gives the connection away after a 101. Only HTTP/1 can.
    pub async fn switch(&self, head: &ResponseHead) -> io::Result<Io> {
        match self {
            Self::H1(r) => r.switch(head).await,
            Self::H2(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The connection takes no further request after this one, where the protocol says that per request.
    pub fn last(&self) {
        if let Self::H1(r) = self {
            r.last();
        }
    }
}

// === bodies ===

/// Sends a whole body, trailers included. The source's error aborts the sink; the number of bytes is what was handed over.
pub(crate) async fn copy(body: &mut Body, sink: &mut Sink) -> Result<u64, SendError> {
    let mut sent = 0;
    loop {
        let frame = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(f) => Poll::Ready(Ok(f)),
            // Nothing to send: what was gathered goes out, and a receiver that is gone is noticed.
            Poll::Pending => match sink.poll_idle(cx) {
                Poll::Ready(e) => Poll::Ready(Err(SendError::Sink(e))),
                Poll::Pending => Poll::Pending,
            },
        })
        .await?;
        match frame {
            Some(Ok(Frame::Data(b))) => {
                sent += u64::try_from(b.len()).unwrap_or(0);
                if sink.data(b, body.is_end()).await.map_err(SendError::Sink)? {
                    return Ok(sent);
                }
            }
            Some(Ok(Frame::Trailers(t))) => {
                sink.end(Some(t)).await.map_err(SendError::Sink)?;
                return Ok(sent);
            }
            None => {
                sink.end(None).await.map_err(SendError::Sink)?;
                return Ok(sent);
            }
            Some(Err(e)) => {
                sink.abort();
                return Err(SendError::Source(e));
            }
        }
    }
}

impl Sink {
    /// True when that was the end of it.
    pub(crate) async fn data(&mut self, mut b: Bytes, last: bool) -> io::Result<bool> {
        match self {
            Self::H1(out) => {
                out.data(b);
                if out.wire.borrow().queued() >= GATHER {
                    poll_fn(|cx| out.wire.borrow_mut().poll_drained(cx)).await?;
                }
                Ok(false)
            }
            Self::H2(send) => loop {
                let n = granted(send, b.len()).await?;
                let piece = b.split_to(n.min(b.len()));
                let end = last && b.is_empty();
                send.send_data(piece, end).map_err(crate::tunnel::io_error)?;
                if b.is_empty() {
                    return Ok(end);
                }
            },
        }
    }

    async fn end(&mut self, trailers: Option<http::HeaderMap>) -> io::Result<()> {
        match self {
            Self::H1(out) => {
                out.end(trailers.as_ref());
                poll_fn(|cx| out.wire.borrow_mut().poll_flush(cx)).await
            }
            Self::H2(send) => match trailers {
                Some(t) => send.send_trailers(t),
                None => send.send_data(Bytes::new(), true),
            }
            .map_err(crate::tunnel::io_error),
        }
    }

    /// Resolves with the reason why nobody listens any more.
    fn poll_idle(&mut self, cx: &mut std::task::Context<'_>) -> Poll<io::Error> {
        match self {
            Self::H1(out) => match out.wire.borrow_mut().poll_flush(cx) {
                Poll::Ready(Err(e)) => Poll::Ready(e),
                _ => Poll::Pending,
            },
            Self::H2(send) => match ready!(send.poll_reset(cx)) {
                Ok(reason) => Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason))),
                Err(e) => Poll::Ready(crate::tunnel::io_error(e)),
            },
        }
    }

    fn abort(&mut self) {
        match self {
            Self::H1(out) => out.wire.borrow_mut().break_off(),
            Self::H2(send) => send.send_reset(Reason::CANCEL),
        }
    }
}

/// Frames of request streams stay small, so that no stream holds up the others (DESIGN section 6).
const L7_FRAME: usize = 16 * 1024;

async fn granted(send: &mut SendStream<Bytes>, want: usize) -> io::Result<usize> {
    let want = want.min(L7_FRAME);
    if want == 0 {
        return Ok(0);
    }
    send.reserve_capacity(want);
    match poll_fn(|cx| send.poll_capacity(cx)).await {
        Some(Ok(n)) => Ok(n.min(want)),
        Some(Err(e)) => Err(crate::tunnel::io_error(e)),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
