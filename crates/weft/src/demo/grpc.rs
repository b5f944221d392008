//! The ratings service's gRPC: `bookshop.v1.Ratings/Stars`, unary.
//!
//! ```proto
//! message Ask { string isbn = 1; }
//! message Answer { uint32 stars = 1; }
//! ```
//! Two messages of one field each do not need a code generator.

use anyhow::{Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Frame},
    header::HeaderValue,
};

use super::call::{Body, Http2};

const METHOD: &str = "/bookshop.v1.Ratings/Stars";
const NOT_FOUND: u16 = 5;
const UNIMPLEMENTED: u16 = 12;
const INVALID_ARGUMENT: u16 = 3;

/// Asks for the stars of a book.
pub async fn stars(ratings: &Http2, isbn: &str, id: Option<HeaderValue>) -> Result<u8> {
    let mut message = vec![0x0a, u8::try_from(isbn.len())?];
    message.extend_from_slice(isbn.as_bytes());
    let mut req = Request::post(format!("http://ratings{METHOD}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(id) = id {
        req = req.header("x-request-id", id);
    }
    let reply = ratings.send(req.body(Body::new(Full::new(framed(&message))))?).await?;
    let head = reply.headers().clone();
    ensure!(reply.status() == StatusCode::OK, "HTTP {}", reply.status());
    let body = reply.into_body().collect().await?;
    let trailers = body.trailers().cloned().unwrap_or(head);
    let status = trailers.get("grpc-status").and_then(|s| s.to_str().ok()).unwrap_or("missing");
    if status != "0" {
        let why = trailers.get("grpc-message").and_then(|s| s.to_str().ok()).unwrap_or_default();
        bail!("grpc-status {status} {why}");
    }
    match body.to_bytes().get(5..) {
        Some([0x08, stars]) => Ok(*stars),
        _ => bail!("an answer that is no Answer"),
    }
}

/// The server's side of the same.
pub fn serve_stars(path: &str, body: &[u8]) -> Response<Body> {
    if path != METHOD {
        return status(UNIMPLEMENTED);
    }
    let Some([0x0a, len, isbn @ ..]) = body.get(5..) else {
        return status(INVALID_ARGUMENT);
    };
    if usize::from(*len) != isbn.len() {
        return status(INVALID_ARGUMENT);
    }
    if !super::shop::BOOKS.iter().any(|(i, _)| i.as_bytes() == isbn) {
        return status(NOT_FOUND);
    }
    let stars = 3 + isbn.last().map_or(0, |d| d % 3);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(framed(&[0x08, stars]))), Ok(Frame::trailers(trailers))];
    reply(Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames))))
}

/// A message behind its length, uncompressed.
fn framed(message: &[u8]) -> Bytes {
    let mut out = vec![0];
    out.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(message);
    out.into()
}

fn status(code: u16) -> Response<Body> {
    let mut r = reply(Body::new(http_body_util::Empty::new()));
    r.headers_mut().insert("grpc-status", code.into());
    r
}

fn reply(body: Body) -> Response<Body> {
    let mut r = Response::new(body);
    r.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    r
}
