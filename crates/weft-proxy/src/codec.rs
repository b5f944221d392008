//! The seam between the stories and the protocols: the stories see a head, a body in, a head and a body out.
//!
//! HTTP/1 is our own codec on `httparse`: what a request must not look like (DESIGN section 6: CL+TE, obs-fold, bare LF,
//! duplicate Host, NUL) can only be refused where the bytes are seen, and an `httparse` path costs a quarter of hyper's
//! instructions (DESIGN section 9). HTTP/2 is the `h2` crate, for requests and for tunnels.

pub mod body;
pub mod h1;
pub mod h2;
pub mod send;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, uri::Authority};

pub use body::{Body, BodyError, Frame};
pub use send::{Answer, AskError, Reply, SendError};

/// One header limit on both codecs and both sides: bytes of a head, and fields in it.
pub const MAX_HEAD: usize = 64 * 1024;
pub const MAX_FIELDS: usize = 100;

/// The head of a request as the stories see it. Connection-level fields are gone: what they said is in the other members.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    /// `Host` or `:authority`; `None` only in HTTP/1.0.
    pub authority: Option<Authority>,
    /// Path and query, or `*`; empty for CONNECT.
    pub path: Bytes,
    /// Without `Host` and without anything that concerns one connection only.
    pub headers: HeaderMap,
    pub origin: Origin,
    /// The protocols that an `Upgrade` asks for.
    pub upgrade: Option<http::HeaderValue>,
}

/// How a head was written: what has to be restored where it leaves the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Http10,
    Http11 {
        /// The target was a whole URI.
        absolute: bool,
    },
    Http2,
}

#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// How the length of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Ends with the connection (responses only).
    Close,
}

// === impl RequestHead ===

impl RequestHead {
    pub fn path_str(&self) -> &str {
        std::str::from_utf8(&self.path).unwrap_or_default()
    }

    pub fn host_str(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::as_str)
    }

    pub fn is_grpc(&self) -> bool {
        self.headers.get(header::CONTENT_TYPE).is_some_and(|v| {
            v.as_bytes().starts_with(b"application/grpc") && !v.as_bytes().starts_with(b"application/grpc-web")
        })
    }

    pub fn header_str(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new() }
    }
}

/// Fields that concern one connection and are never forwarded, besides those that `Connection` names.
pub(crate) const HOP_BY_HOP: [header::HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE];

/// `Keep-Alive` and `Proxy-Connection` have no constants in `http`.
pub(crate) const HOP_BY_HOP_NAMES: [&str; 2] = ["keep-alive", "proxy-connection"];

/// A content length: digits only, one value.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut all = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(());
    }
    let b = first.as_bytes();
    if b.is_empty() || b.len() > 19 || !b.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    Ok(Some(b.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'))))
}

/// Tells whether a comma-separated field holds a token, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case(token))
}
