//! A byte stream inside one HTTP/2 stream: the carriage of CONNECT, in HBONE and in `weft/1` alike.
//!
//! END_STREAM is the half-close. Everything else that ends a stream is a reset: a peer's RST_STREAM becomes
//! `ConnectionReset`, ours is CONNECT_ERROR, and a tunnel that is dropped half-way is reset by h2 with CANCEL. So a
//! truncated transfer never looks complete.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one DATA frame carries at most; also what is copied per write.
const CHUNK: usize = 64 * 1024;

#[derive(Debug)]
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, not yet read by a reader with a smaller buffer.
    rest: Bytes,
    /// We said END_STREAM.
    finished: bool,
}

// === impl Tunnel ===

impl Tunnel {
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, rest: Bytes::new(), finished: false }
    }

    pub fn reset(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// The next bytes as they came; empty at the half-close.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.rest)));
        }
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    // The reader asks again only when this went on, so the window follows the far socket.
                    self.recv.flow_control().release_capacity(chunk.len()).map_err(io_error)?;
                    if !chunk.is_empty() {
                        return Poll::Ready(Ok(chunk));
                    }
                }
                Some(Err(e)) => return Poll::Ready(Err(io_error(e))),
                None => return Poll::Ready(Ok(Bytes::new())),
            }
        }
    }
}

impl Tunnel {
    /// Sends some of `bytes`, as much as the window takes, without a copy.
    pub fn poll_write_chunk(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let granted = ready!(self.poll_granted(cx, bytes.len()))?;
        self.send.send_data(bytes.split_to(granted), false).map_err(io_error)?;
        Poll::Ready(Ok(granted))
    }

    fn poll_granted(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        let want = want.min(CHUNK);
        self.send.reserve_capacity(want);
        match ready!(self.send.poll_capacity(cx)) {
            Some(Ok(n)) => Poll::Ready(Ok(n.min(want))),
            Some(Err(e)) => Poll::Ready(Err(io_error(e))),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut chunk = ready!(self.poll_chunk(cx))?;
        let n = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk.split_to(n));
        self.rest = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let granted = ready!(self.poll_granted(cx, buf.len()))?;
        let chunk = Bytes::copy_from_slice(buf.get(..granted).unwrap_or(buf));
        self.send.send_data(chunk, false).map_err(io_error)?;
        Poll::Ready(Ok(granted))
    }

    /// h2 flushes by itself, once per turn of the connection.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.send.send_data(Bytes::new(), true).map_err(io_error)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// h2's errors as a socket would say them.
pub fn io_error(e: h2::Error) -> io::Error {
    if e.is_io() {
        return e.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, e)
}

// === CONNECT ===

/// The path of the first stream of a `weft/1` connection. **[format]**
pub const HELLO_PATH: &str = "/.weft/hello";

/// A CONNECT as HBONE has it (features.md 4.7).
pub fn connect_head(to: std::net::SocketAddr, baggage: Option<http::HeaderValue>) -> crate::codec::RequestHead {
    let mut headers = http::HeaderMap::new();
    if let Some(b) = baggage {
        headers.insert("baggage", b);
    }
    crate::codec::RequestHead {
        method: http::Method::CONNECT,
        authority: http::uri::Authority::from_maybe_shared(Bytes::from(to.to_string())).ok(),
        path: Bytes::new(),
        headers,
        origin: crate::codec::Origin::Http2,
        upgrade: None,
    }
}

/// What a refused CONNECT means.
pub fn refused(answer: &crate::codec::ResponseHead) -> crate::failure::Failure {
    use crate::failure::{Failure, FailureKind, Side};
    let (said, _) = crate::head::far_failure(&answer.headers).unwrap_or((None, weft_snapshot::failure::Sent::Sent));
    let kind = said.unwrap_or(match answer.status.as_u16() {
        401 | 403 => FailureKind::Denied,
        400 | 421 => FailureKind::Misdirected,
        _ => FailureKind::UpstreamRefused,
    });
    // A CONNECT carries no bytes before it is accepted.
    let rule = answer.headers.get(crate::head::RULE).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let side = if matches!(kind, FailureKind::Denied | FailureKind::NotHttp) { Side::Policy } else { Side::Upstream };
    Failure::before_sending(kind, side)
        .with_rule(rule.map(std::sync::Arc::new))
        .with_detail(format_args!("the far proxy answered {}", answer.status.as_u16()))
}

/// What an HBONE peer says of itself (features.md 4.7), as a hello says it. Values are cut as a hello's are.
pub fn read_baggage(text: &str) -> weft_wire::hello::Hello {
    let mut hello = weft_wire::hello::Hello::default();
    for (key, value) in text.split(',').filter_map(|p| p.split_once('=')) {
        let value: String =
            value.trim().chars().filter(|c| !c.is_control()).take(weft_wire::hello::MAX_LABEL).collect();
        match key.trim() {
            "k8s.cluster.name" => hello.cluster = value,
            "k8s.pod.name" | "k8s.deployment.name" | "k8s.job.name" | "k8s.cronjob.name" => hello.workload = value,
            "service.name" => hello.app = value,
            "service.version" => hello.version = value,
            "cloud.availability_zone" => hello.zone = value,
            _ => {}
        }
    }
    hello
}

#[cfg(test)]
mod tests {
    #[test]
    fn baggage_is_read_as_a_hello() {
        let said = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=web , service.name=web,service.version=v2,\
                    cloud.availability_zone=a,odd";
        let hello = super::read_baggage(said);
        let got = [&hello.cluster, &hello.workload, &hello.app, &hello.version, &hello.zone].map(String::as_str);
        assert_eq!(got, ["c1", "web", "web", "v2", "a"]);
        assert_eq!(super::read_baggage(&format!("service.name={}", "x".repeat(500))).app.len(), 128);
    }
}
