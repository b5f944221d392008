//! The side that answers.

use std::{cell::Cell, future::poll_fn, io, task::Poll, time::Duration};

use http::Method;

use super::{
    Incoming, Outgoing, SharedWire, Wire, parse,
    wire::{HeadFault, PeerGone},
    write::{self, ResponseStyle},
};
use crate::{
    codec::{
        Body, Framing, Origin, RequestHead, ResponseHead, content_length,
        send::{SendError, Sink, copy},
    },
    io::Io,
};

/// What a client that was answered early may still send before the connection is closed under it.
const LINGER: Duration = Duration::from_secs(2);
/// Less than this is read and thrown away for the sake of the connection.
const DISCARD_BELOW: u64 = 64 * 1024;
/// A peer that ended its sending side may be half-closed and waiting, or gone. It is waited for that long.
pub const HALF_CLOSED: Duration = Duration::from_secs(5);

/// A connection on which requests arrive.
pub struct Server {
    wire: SharedWire,
}

/// One request and the way to answer it.
pub struct Exchange {
    pub head: RequestHead,
    pub body: Body,
    pub reply: Reply,
}

/// Answers one request.
#[derive(Debug)]
pub struct Reply {
    wire: SharedWire,
    head_only: bool,
    version_10: bool,
    keep_alive: Cell<bool>,
    answered: Cell<bool>,
    /// The client waits for a 100 before it sends the body.
    held_back: Cell<bool>,
}

/// Sees what arrives on a connection.
pub struct Handle(SharedWire);

impl Handle {
    /// Has part of a head arrived?
    pub fn has_input(&self) -> bool {
        self.0.borrow().has_input()
    }

    /// Resolves when part of a head has arrived. `next` must be polled before it, in the same task: it reads.
    pub async fn begun(&self) {
        poll_fn(|_| if self.has_input() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

// === impl Server ===

impl Server {
    pub fn new(io: Io) -> Self {
        Self { wire: Wire::shared(io) }
    }

    /// The next request; `None` when the client is done. The exchange before must be settled.
    pub async fn next(&mut self) -> Result<Option<Exchange>, HeadFault> {
        let bytes = poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            if let Poll::Ready(Err(e)) = wire.poll_flush(cx) {
                return Poll::Ready(Err(HeadFault::Io(e)));
            }
            wire.poll_head(cx)
        })
        .await?;
        let Some(bytes) = bytes else { return Ok(None) };
        let parsed = parse::request(&bytes).map_err(HeadFault::Head)?;
        self.wire.borrow_mut().begin_body(parsed.framing);
        let body = match parsed.framing {
            Framing::None => Body::empty(),
            _ => Body::h1(Incoming::new(self.wire.clone(), None)),
        };
        let reply = Reply {
            wire: self.wire.clone(),
            head_only: parsed.head.method == Method::HEAD,
            version_10: parsed.head.origin == Origin::Http10,
            keep_alive: Cell::new(parsed.keep_alive),
            answered: Cell::new(false),
            // Whoever asks first is not answered with "go on" by an answer
            held_back: Cell::new(parsed.expects_continue),
        };
        Ok(Some(Exchange { head: parsed.head, body, reply }))
    }

    /// To look at while [`Server::next`] waits.
    pub fn handle(&self) -> Handle {
        Handle(self.wire.clone())
    }

    /// Answers what was no request, and closes.
    pub async fn refuse(self, head: &ResponseHead, text: &str) {
        let length = u64::try_from(text.len()).unwrap_or(0);
        {
            let mut wire = self.wire.borrow_mut();
            let style = ResponseStyle { framing: Framing::Length(length), announced: None, connection: Some("close") };
            write::response(wire.out(), head, style);
            wire.out().extend_from_slice(text.as_bytes());
        }
        self.close().await;
    }

    /// After an exchange: true when another request may come. The client of an unread body is given up.
    pub async fn settle(&mut self, reply: &Reply) -> bool {
        if !reply.keep_alive.get() || !reply.answered.get() {
            return false;
        }
        let left = {
            let wire = self.wire.borrow();
            if wire.is_broken() {
                return false;
            }
            wire.body_left()
        };
        match left {
            Some(0) => true,
            // It may send the body yet, or not: nobody knows where the next request would begin
            _ if reply.held_back.get() => false,
            Some(n) if n <= DISCARD_BELOW => {
                let mut rest = Incoming::new(self.wire.clone(), None);
                let read = async {
                    while let Some(frame) = poll_fn(|cx| rest.poll_frame(cx)).await {
                        if frame.is_err() {
                            return false;
                        }
                    }
                    true
                };
                tokio::time::timeout(LINGER, read).await.unwrap_or(false)
            }
            _ => false,
        }
    }

    /// Ends the connection so that what was written arrives: a close with unread input would be a reset.
    pub async fn close(self) {
        let wire = &self.wire;
        if wire.borrow().is_broken() {
            return;
        }
        let lingering = async {
            poll_fn(|cx| wire.borrow_mut().poll_shutdown(cx)).await?;
            poll_fn(|cx| wire.borrow_mut().poll_discard(cx)).await
        };
        // a client that goes on sending gets its reset
        let _: Result<io::Result<()>, _> = tokio::time::timeout(LINGER, lingering).await;
    }

    /// Ends it as a reset: what was sent is not the whole.
    pub fn break_off(&self) {
        self.wire.borrow_mut().break_off();
    }
}

// === impl Reply ===

impl Reply {
    /// A 1xx answer before the answer.
    pub fn interim(&self, head: &ResponseHead) {
        if !self.version_10 {
            if head.status == http::StatusCode::CONTINUE {
                self.held_back.set(false);
            }
            write::bare(self.wire.borrow_mut().out(), head);
        }
    }

    /// The connection ends after this answer.
    pub fn last(&self) {
        self.keep_alive.set(false);
    }

    /// Resolves when nobody is there to be answered. Meanwhile it sends interim answers.
    pub async fn gone(&self) {
        let ended = poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            if wire.has_output() && matches!(wire.poll_flush(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(PeerGone::Broke);
            }
            wire.poll_peer(cx)
        })
        .await;
        if ended == PeerGone::Ended {
            tokio::time::sleep(HALF_CLOSED).await;
        }
    }

    /// Answers. Returns how many body bytes went out.
    pub async fn send(&self, head: &ResponseHead, mut body: Body) -> Result<u64, SendError> {
        let style = self.style(head, &body);
        if style.framing == Framing::Close || self.wire.borrow().at_eof() {
            self.keep_alive.set(false);
        }
        self.answered.set(true);
        write::response(self.wire.borrow_mut().out(), head, self.with_connection(style));
        if style.framing == Framing::None {
            body = Body::empty();
        }
        let mut sink = Sink::H1(Outgoing { wire: self.wire.clone(), framing: style.framing, done: None });
        let sent = copy(&mut body, &mut sink).await;
        if sent.is_err() {
            // Never a clean end: neither a last chunk nor a closed connection in its place.
            self.wire.borrow_mut().break_off();
        } else if style.framing == Framing::Close {
            self.keep_alive.set(false);
        }
        sent
    }

    /// Answers 101, and gives the connection away.
    pub async fn switch(&self, head: &ResponseHead) -> io::Result<Io> {
        self.keep_alive.set(false);
        self.answered.set(true);
        write::bare(self.wire.borrow_mut().out(), head);
        self.hand_over().await
    }

    /// Answers 200 to a CONNECT, and gives the connection away.
    pub async fn established(&self) -> io::Result<Io> {
        self.keep_alive.set(false);
        self.answered.set(true);
        self.wire.borrow_mut().out().extend_from_slice(b"HTTP/1.1 200 Connection Established\r\n\r\n");
        self.hand_over().await
    }

    pub fn abort(&self) {
        self.wire.borrow_mut().break_off();
    }

    pub fn is_answered(&self) -> bool {
        self.answered.get()
    }

    async fn hand_over(&self) -> io::Result<Io> {
        poll_fn(|cx| self.wire.borrow_mut().poll_flush(cx)).await?;
        Ok(self.wire.borrow_mut().take_io())
    }

    fn style(&self, head: &ResponseHead, body: &Body) -> ResponseStyle {
        let announced = content_length(&head.headers).ok().flatten();
        let bodiless = self.head_only
            || head.status == http::StatusCode::NO_CONTENT
            || head.status == http::StatusCode::NOT_MODIFIED
            || head.status.is_informational();
        if bodiless {
            let announced = if head.status == http::StatusCode::NO_CONTENT { None } else { announced };
            return ResponseStyle { framing: Framing::None, announced, connection: None };
        }
        let framing = match (body.length(), announced) {
            (Some(n), _) | (None, Some(n)) => Framing::Length(n),
            (None, None) if self.version_10 => Framing::Close,
            (None, None) => Framing::Chunked,
        };
        ResponseStyle { framing, announced: None, connection: None }
    }

    fn with_connection(&self, style: ResponseStyle) -> ResponseStyle {
        let connection = match (self.keep_alive.get(), self.version_10) {
            (true, true) => Some("keep-alive"),
            (false, false) => Some("close"),
            _ => None,
        };
        ResponseStyle { connection, ..style }
    }
}
