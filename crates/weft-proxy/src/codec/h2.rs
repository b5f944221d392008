//! HTTP/2, both sides, on the `h2` crate.
//!
//! h2 flushes after every frame; here its writes are gathered and leave once per turn of the worker, as few large records
//! (DESIGN section 9: the biggest lever).

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{Method, Request, Response, header, uri::Authority};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Body, Frame, MAX_FIELDS, MAX_HEAD, Origin, RequestHead, ResponseHead,
    h1::parse::HeadError,
    send::{Answer, AskError, SendError, Sink, copy},
};
use crate::io::Io;

/// Windows of a class of connection: `streams × stream ≤ connection`, so that stalled readers on all streams but one leave
/// that one flowing (DESIGN section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    pub streams: u32,
    pub stream: u32,
    pub connection: u32,
    pub frame: u32,
}

impl Windows {
    /// Request streams.
    pub const L7: Self = Self { streams: 100, stream: 256 << 10, connection: 100 * (256 << 10), frame: 16 << 10 };
    /// Tunnels.
    pub const L4: Self = Self { streams: 16, stream: 1 << 20, connection: 16 << 20, frame: 64 << 10 };
    /// What a server of both says before it knows which it gets: it takes the larger frames.
    pub const MESH: Self = Self { frame: 64 << 10, ..Self::L7 };
}

/// Beyond this much unsent output, writers wait for the socket.
const OUT_LIMIT: usize = 256 * 1024;
/// Header lists up to here are read, so that what is beyond [`MAX_HEAD`] is refused in our words. What is larger still is
/// answered by h2 itself, with a bare 431 or by ending the connection.
const MAX_LIST: u32 = 256 * 1024;
/// From here on a write goes to the stream at once.
const DIRECT: usize = 16 * 1024;
/// Kept between turns.
const OUT_KEPT: usize = 16 * 1024;

/// Gathers what h2 writes. Shared by the connection and whoever drives it, on one worker.
#[derive(Debug, Clone)]
struct Gather(Rc<RefCell<Gathered>>);

#[derive(Debug)]
struct Gathered {
    io: Io,
    out: BytesMut,
    /// Output was seen in this turn; the next poll sends it.
    waited: bool,
    unflushed: bool,
}

/// A connection on which requests arrive.
pub struct Server {
    conn: server::Connection<Gather, Bytes>,
    out: Gather,
}

pub type Accepted = (Request<RecvStream>, server::SendResponse<Bytes>);

/// Sends requests; clones share the connection.
pub type Client = client::SendRequest<Bytes>;

/// Must be polled for a client's connection to make progress; ends with it.
pub struct Driver {
    conn: client::Connection<Gather, Bytes>,
    out: Gather,
}

/// Answers one request.
#[derive(Debug)]
pub struct Reply {
    send: RefCell<server::SendResponse<Bytes>>,
}

// === impl Gather ===

impl Gather {
    fn new(io: Io) -> Self {
        let out = BytesMut::new();
        Self(Rc::new(RefCell::new(Gathered { io, out, waited: false, unflushed: false })))
    }

    /// Called at the end of a turn: sends what was gathered, but first lets everything else that can run add to it.
    fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut g = self.0.borrow_mut();
        if g.out.is_empty() && !g.unflushed {
            return Poll::Ready(Ok(()));
        }
        if !g.waited {
            g.waited = true;
            // to the end of the worker's queue
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(g.poll_send(cx))?;
        g.waited = false;
        Poll::Ready(Ok(()))
    }
}

impl Gathered {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(n);
            self.unflushed = true;
        }
        if self.out.capacity() > OUT_KEPT {
            self.out = BytesMut::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl Gathered {
    /// Sends `buf` behind what was gathered. What of `buf` is taken counts; when nothing can be taken now, it is gathered.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let both = [io::IoSlice::new(&self.out), io::IoSlice::new(buf)];
        let written = match Pin::new(&mut self.io).poll_write_vectored(cx, &both) {
            Poll::Ready(n) => n?,
            Poll::Pending => {
                self.out.extend_from_slice(buf);
                return Poll::Ready(Ok(buf.len()));
            }
        };
        self.unflushed = true;
        let before = written.min(self.out.len());
        self.out.advance(before);
        if self.out.is_empty() && written > before {
            return Poll::Ready(Ok(written - before));
        }
        self.out.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
}

impl AsyncRead for Gather {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut g = self.0.borrow_mut();
        if g.out.len() >= OUT_LIMIT {
            ready!(g.poll_send(cx))?;
        }
        if buf.len() >= DIRECT {
            // Large enough for a write of its own, together with what was gathered: not worth a copy
            return g.poll_direct(cx, buf);
        }
        g.out.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    /// Not yet: `poll_turn` does.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut g = self.0.borrow_mut();
        ready!(g.poll_send(cx))?;
        Pin::new(&mut g.io).poll_shutdown(cx)
    }
}

// === impl Server ===

impl Server {
    pub async fn handshake(io: Io, w: Windows) -> Result<Self, h2::Error> {
        let out = Gather::new(io);
        let handshake = server::Builder::new()
            .initial_window_size(w.stream)
            .initial_connection_window_size(w.connection)
            .max_frame_size(w.frame)
            .max_concurrent_streams(w.streams)
            .max_header_list_size(MAX_LIST)
            .handshake(out.clone());
        let mut handshake = std::pin::pin!(handshake);
        let conn = poll_fn(|cx| {
            let shaken = handshake.as_mut().poll(cx);
            if let Poll::Ready(Err(e)) = out.poll_turn(cx) {
                return Poll::Ready(Err(broken(e)));
            }
            shaken
        })
        .await?;
        Ok(Self { conn, out })
    }

    /// The next request. Must be polled all the time: it drives every stream of the connection.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, h2::Error>>> {
        let next = self.conn.poll_accept(cx);
        match self.out.poll_turn(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Some(Err(broken(e)))),
            // After an accepted stream the caller polls again at once
            _ => next,
        }
    }

    /// Two-step GOAWAY: what the peer sent before it learned of it is still served.
    pub fn go_away(&mut self) {
        self.conn.graceful_shutdown();
    }

    pub fn abort(&mut self, reason: Reason) {
        self.conn.abrupt_shutdown(reason);
    }

    /// It carries tunnels: each gets the larger window.
    pub fn widen(&mut self) {
        // fails while a change is under way, which then is this one
        let _ = self.conn.set_initial_window_size(Windows::L4.stream);
    }
}

// === impl Driver ===

impl Driver {
    /// Runs the connection to its end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let done = Pin::new(&mut self.conn).poll(cx);
        match self.out.poll_turn(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(broken(e))),
            _ => done,
        }
    }
}

pub async fn connect(io: Io, w: Windows) -> Result<(Client, Driver), h2::Error> {
    let out = Gather::new(io);
    let (send, conn) = client::Builder::new()
        .initial_window_size(w.stream)
        .initial_connection_window_size(w.connection)
        .max_frame_size(w.frame)
        .max_header_list_size(MAX_LIST)
        .enable_push(false)
        .initial_max_send_streams(usize::try_from(w.streams).unwrap_or(100))
        .handshake(out.clone())
        .await?;
    Ok((send, Driver { conn, out }))
}

// === heads ===

/// How much a request's head may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    OfApplication,
    /// The first proxy held it to that limit; what proxies add has room here.
    OfMesh,
}

/// Fields that a proxy adds at most.
const ADDED: usize = 16;

/// A request's head in our form.
pub fn request_head(parts: http::request::Parts, limit: Limit) -> Result<RequestHead, HeadError> {
    let fields = if limit == Limit::OfMesh { MAX_FIELDS + ADDED } else { MAX_FIELDS };
    if parts.headers.len() > fields {
        return Err(HeadError::TooManyFields);
    }
    if limit == Limit::OfApplication {
        let target = parts.uri.path_and_query().map_or(0, |p| p.as_str().len());
        within(target, &parts.headers)?;
    }
    let mut headers = parts.headers;
    let host = match (headers.get_all(header::HOST).iter().count(), headers.remove(header::HOST)) {
        (0 | 1, Some(v)) => Some(Authority::try_from(v.as_bytes()).map_err(|_| HeadError::Host)?),
        (0, None) => None,
        _ => return Err(HeadError::Host),
    };
    let uri = parts.uri.into_parts();
    let authority = match (uri.authority, host) {
        (Some(a), Some(h)) if !a.as_str().eq_ignore_ascii_case(h.as_str()) => return Err(HeadError::Host),
        (Some(a), _) => Some(a),
        (None, h) => h,
    };
    if authority.as_ref().is_some_and(|a| a.as_str().contains('@')) {
        return Err(HeadError::Host);
    }
    let path = match uri.path_and_query {
        Some(p) => Bytes::copy_from_slice(p.as_str().as_bytes()),
        None if parts.method == Method::CONNECT => Bytes::new(),
        None => Bytes::from_static(b"/"),
    };
    Ok(RequestHead { method: parts.method, authority, path, headers, origin: Origin::Http2, upgrade: None })
}

/// A head's size as HTTP/1 would write it.
fn within(first: usize, headers: &http::HeaderMap) -> Result<(), HeadError> {
    /// `: ` and the end of the line.
    const AROUND: usize = 4;
    let size = headers.iter().fold(first, |sum, (k, v)| sum + k.as_str().len() + v.len() + AROUND);
    if size > MAX_HEAD { Err(HeadError::TooLarge) } else { Ok(()) }
}

/// Our head as h2 wants it. `None` when method, authority and path make no URI.
pub(crate) fn to_request(head: &RequestHead) -> Option<Request<()>> {
    let mut uri = http::uri::Parts::default();
    uri.authority = head.authority.clone();
    if head.method != Method::CONNECT {
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.path_and_query = Some(http::uri::PathAndQuery::from_maybe_shared(head.path.clone()).ok()?);
    }
    uri.authority.as_ref()?;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = http::Uri::from_parts(uri).ok()?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    Some(request)
}

fn to_response(head: &ResponseHead) -> Response<()> {
    let mut r = Response::new(());
    *r.status_mut() = head.status;
    *r.version_mut() = http::Version::HTTP_2;
    *r.headers_mut() = head.headers.clone();
    r
}

// === asking ===

/// Sends a request and waits for the head of its answer, as [`super::h1::client::ask`] does.
pub(crate) async fn ask(
    client: Client,
    head: &RequestHead,
    body: Body,
    interim: &dyn Fn(&ResponseHead),
) -> Result<Answer, AskError> {
    let request = to_request(head).ok_or(AskError::Head(HeadError::Target))?;
    let connect = head.method == Method::CONNECT;
    let mut client = client.ready().await.map_err(|e| not_sent(&e))?;
    let end = !connect && body.is_end();
    let (mut answer, send) = client.send_request(request, end).map_err(|e| not_sent(&e))?;
    let (mut sender, mut tunnel) = (None, None);
    if connect {
        tunnel = Some(send);
    } else if !end {
        sender = send_body(body, send).await.map_err(AskError::Body)?;
    }
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(r))) = answer.poll_informational(cx) {
            let (parts, ()) = r.into_parts();
            interim(&ResponseHead { status: parts.status, headers: parts.headers });
        }
        Pin::new(&mut answer).poll(cx)
    })
    .await
    .map_err(ask_error)?;
    let (parts, recv) = response.into_parts();
    if parts.headers.len() > MAX_FIELDS {
        return Err(AskError::Head(HeadError::TooManyFields));
    }
    within(0, &parts.headers).map_err(AskError::Head)?;
    let head = ResponseHead { status: parts.status, headers: parts.headers };
    if head.status.is_success()
        && let Some(send) = tunnel.take()
    {
        let tunnel = crate::tunnel::Tunnel::new(send, recv);
        return Ok(Answer { head, body: Body::empty(), switched: Some(tunnel.into()), local: None });
    }
    let mut body = Body::h2(recv);
    body.sender = sender;
    Ok(Answer { head, body, switched: None, local: None })
}

/// What is there goes at once; the rest in a task of its own.
async fn send_body(mut body: Body, mut send: SendStream<Bytes>) -> Result<Option<weft_rt::Task>, super::BodyError> {
    /// Within every initial window: no need to ask.
    const SMALL: usize = 16 * 1024;
    let mut held = None;
    // A stream that was reset meanwhile says so in its answer, so errors of sending are not looked at here.
    match poll_fn(|cx| Poll::Ready(body.poll_frame(cx))).await {
        Poll::Pending => {}
        Poll::Ready(None) => {
            let _ = send.send_data(Bytes::new(), true);
            return Ok(None);
        }
        Poll::Ready(Some(Err(e))) => {
            send.send_reset(Reason::CANCEL);
            return Err(e);
        }
        Poll::Ready(Some(Ok(Frame::Trailers(t)))) => {
            let _ = send.send_trailers(t);
            return Ok(None);
        }
        Poll::Ready(Some(Ok(Frame::Data(b)))) if b.len() <= SMALL => {
            let end = body.is_end();
            let _ = send.send_data(b, end);
            if end {
                return Ok(None);
            }
        }
        Poll::Ready(Some(Ok(Frame::Data(b)))) => held = Some(b),
    }
    Ok(Some(weft_rt::tasks::spawn_local(async move {
        let mut sink = Sink::H2(send);
        if let Some(b) = held
            && !matches!(sink.data(b, body.is_end()).await, Ok(false))
        {
            return;
        }
        // The source's error resets the stream; whoever waits for the answer asks the source why.
        let _ = copy(&mut body, &mut sink).await;
    })))
}

// === impl Reply ===

impl Reply {
    pub fn new(send: server::SendResponse<Bytes>) -> Self {
        Self { send: RefCell::new(send) }
    }

    pub fn interim(&self, head: &ResponseHead) {
        // a stream that is gone is noticed by `gone`
        let _ = self.send.borrow_mut().send_informational(to_response(head));
    }

    pub async fn gone(&self) {
        let _ = poll_fn(|cx| self.send.borrow_mut().poll_reset(cx)).await;
    }

    pub async fn send(&self, head: &ResponseHead, mut body: Body) -> Result<u64, SendError> {
        let end = body.is_end();
        let sent = self.send.borrow_mut().send_response(to_response(head), end);
        let send = sent.map_err(|e| SendError::Sink(crate::tunnel::io_error(e)))?;
        if end {
            return Ok(0);
        }
        copy(&mut body, &mut Sink::H2(send)).await
    }

    /// Accepts a CONNECT: the stream becomes bytes.
    pub fn accept_tunnel(&self, head: &ResponseHead) -> Result<SendStream<Bytes>, h2::Error> {
        self.send.borrow_mut().send_response(to_response(head), false)
    }

    pub fn reset(&self, reason: Reason) {
        self.send.borrow_mut().send_reset(reason);
    }
}

/// The socket's error, as far as h2's type can say it. The streams hear of it by the connection's end.
fn broken(e: io::Error) -> h2::Error {
    tracing::debug!(error = %e, "connection broke while writing");
    Reason::INTERNAL_ERROR.into()
}

/// Errors before a stream existed.
fn not_sent(e: &h2::Error) -> AskError {
    AskError::Closed { nothing_written: !e.is_reset() }
}

fn ask_error(e: h2::Error) -> AskError {
    if e.is_remote() && e.reason() == Some(Reason::REFUSED_STREAM) {
        return AskError::Refused;
    }
    // h2 gives a GOAWAY's error to the streams above its last id, and to those alone: never processed. Streams below that
    // die with the connection get an I/O error.
    if e.is_go_away() && e.is_remote() {
        return AskError::AboveGoaway;
    }
    if e.is_io() {
        return AskError::Io { source: crate::tunnel::io_error(e), nothing_written: false };
    }
    AskError::Reset(e.reason().unwrap_or(Reason::INTERNAL_ERROR))
}
