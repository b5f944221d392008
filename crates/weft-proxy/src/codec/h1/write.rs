//! Heads and chunks, written.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};

use super::Wire;
use crate::codec::{Framing, Origin, RequestHead, ResponseHead};

/// A request as it leaves the mesh. `framing` decides the length fields; whatever the map says of them is left out.
pub(crate) fn request(out: &mut BytesMut, head: &RequestHead, framing: Framing) {
    out.reserve(estimate(&head.headers) + head.path.len());
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    match (head.origin, &head.authority) {
        (Origin::Http11 { absolute: true }, Some(a)) if head.path != "*" => {
            out.put_slice(b"http://");
            out.put_slice(a.as_str().as_bytes());
        }
        _ => {}
    }
    out.put_slice(&head.path);
    out.put_slice(if head.origin == Origin::Http10 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    if let Some(a) = &head.authority {
        field(out, b"host", a.as_str().as_bytes());
    }
    if let Some(u) = &head.upgrade {
        field(out, b"connection", b"upgrade");
        field(out, b"upgrade", u.as_bytes());
    } else if head.headers.contains_key(header::TE) {
        field(out, b"connection", b"te");
    }
    fields(out, &head.headers);
    let length = match framing {
        // A request without a body says so where its method suggests one.
        Framing::None if matches!(head.method, http::Method::POST | http::Method::PUT | http::Method::PATCH) => {
            Framing::Length(0)
        }
        other => other,
    };
    framing_fields(out, length);
    out.put_slice(b"\r\n");
}

/// How a response is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResponseStyle {
    pub(crate) framing: Framing,
    /// A length to announce although no body follows (HEAD, 304).
    pub(crate) announced: Option<u64>,
    /// What the connection will do, where the version's default would say otherwise.
    pub(crate) connection: Option<&'static str>,
}

pub(crate) fn response(out: &mut BytesMut, head: &ResponseHead, style: ResponseStyle) {
    out.reserve(estimate(&head.headers));
    status_line(out, head.status);
    fields(out, &head.headers);
    match style.announced {
        Some(n) => framing_fields(out, Framing::Length(n)),
        None => framing_fields(out, style.framing),
    }
    if let Some(c) = style.connection {
        field(out, b"connection", c.as_bytes());
    }
    out.put_slice(b"\r\n");
}

/// A 1xx answer, or the 101 that ends HTTP on the connection: no framing fields; `Connection` and `Upgrade` as they are.
pub(crate) fn bare(out: &mut BytesMut, head: &ResponseHead) {
    status_line(out, head.status);
    for (name, value) in &head.headers {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.put_slice(b"\r\n");
}

pub(crate) fn chunk(wire: &mut Wire, b: Bytes) {
    if b.is_empty() {
        return; // would be the last chunk
    }
    let out = wire.out();
    put_hex(out, b.len());
    out.put_slice(b"\r\n");
    wire.push_then(b, b"\r\n");
}

pub(crate) fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.put_slice(b"\r\n");
}

fn status_line(out: &mut BytesMut, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.put_slice(b"\r\n");
}

fn fields(out: &mut BytesMut, map: &HeaderMap) {
    for (name, value) in map {
        if *name != header::CONTENT_LENGTH {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

fn framing_fields(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::Length(n) => {
            out.put_slice(b"content-length: ");
            put_decimal(out, n);
            out.put_slice(b"\r\n");
        }
        Framing::Chunked => field(out, b"transfer-encoding", b"chunked"),
        Framing::None | Framing::Close => {}
    }
}

fn field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_decimal(out: &mut BytesMut, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut len = 0;
    for d in digits.iter_mut().rev() {
        *d = b'0' + u8::try_from(n % 10).unwrap_or(0);
        n /= 10;
        len += 1;
        if n == 0 {
            break;
        }
    }
    out.put_slice(digits.get(digits.len() - len..).unwrap_or_default());
}

fn put_hex(out: &mut BytesMut, n: usize) {
    use std::fmt::Write as _;
    // writing to a BytesMut does not fail
    let _ = write!(out, "{n:x}");
}

/// Average field, so that a head is written without growing the buffer twice.
fn estimate(map: &HeaderMap) -> usize {
    256 + map.len() * 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_numbers() {
        for n in [0, 7, 10, 99, 100, 65_536, u64::MAX] {
            let mut out = BytesMut::new();
            put_decimal(&mut out, n);
            assert_eq!(out, n.to_string().as_bytes());
        }
    }
}
