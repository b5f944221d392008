//! Heads: from bytes to [`RequestHead`] and [`ResponseHead`], strictly.
//!
//! Whatever two parsers could read differently is refused: a request that is forwarded has exactly one reading.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority};

use crate::codec::{
    Framing, HOP_BY_HOP, HOP_BY_HOP_NAMES, MAX_FIELDS, MAX_HEAD, Origin, RequestHead, ResponseHead, content_length,
    has_token,
};

/// Why a head is refused. [`HeadError::status`] is what a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("head is not valid HTTP/1")]
    Syntax,
    #[error("line ends with LF alone")]
    BareLf,
    #[error("head is larger than {MAX_HEAD} bytes")]
    TooLarge,
    #[error("head has more than {MAX_FIELDS} fields")]
    TooManyFields,
    #[error("both Content-Length and Transfer-Encoding are given")]
    LengthAndEncoding,
    #[error("Content-Length is given twice, or is no number")]
    Length,
    #[error("Transfer-Encoding is something else than `chunked`")]
    Encoding,
    #[error("Host is missing, given twice, or no host")]
    Host,
    #[error("target is neither a path, a URI, an authority nor `*`")]
    Target,
    #[error("version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
}

/// A request's head and what the connection needs to know of it.
#[derive(Debug)]
pub struct ParsedRequest {
    pub head: RequestHead,
    pub framing: Framing,
    pub keep_alive: bool,
    pub expects_continue: bool,
}

#[derive(Debug)]
pub struct ParsedResponse {
    pub head: ResponseHead,
    pub framing: Framing,
    pub keep_alive: bool,
}

// === impl HeadError ===

impl HeadError {
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Encoding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The machine code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Syntax => "bad-head",
            Self::BareLf => "bare-lf",
            Self::TooLarge => "head-too-large",
            Self::TooManyFields => "too-many-fields",
            Self::LengthAndEncoding => "length-and-encoding",
            Self::Length => "bad-length",
            Self::Encoding => "bad-encoding",
            Self::Host => "bad-host",
            Self::Target => "bad-target",
            Self::Version => "bad-version",
        }
    }
}

/// Where the head ends: the length up to and with the empty line, or `None` while it is not there.
///
/// `from`: how much of `bytes` was searched before.
pub fn end_of_head(bytes: &[u8], from: usize) -> Result<Option<usize>, HeadError> {
    // the end may straddle what was searched
    let start = from.saturating_sub(3);
    let mut at = start;
    while let Some(lf) = bytes.get(at..).and_then(|b| b.iter().position(|b| *b == b'\n')).map(|p| at + p) {
        if lf == 0 || bytes.get(lf - 1) != Some(&b'\r') {
            return Err(HeadError::BareLf);
        }
        if bytes.get(lf + 1) == Some(&b'\r') && bytes.get(lf + 2) == Some(&b'\n') {
            let end = lf + 3;
            return if end > MAX_HEAD { Err(HeadError::TooLarge) } else { Ok(Some(end)) };
        }
        at = lf + 1;
    }
    if bytes.len() > MAX_HEAD { Err(HeadError::TooLarge) } else { Ok(None) }
}

/// Parses a whole head, as [`end_of_head`] found it.
pub fn request(bytes: &Bytes) -> Result<ParsedRequest, HeadError> {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut r = httparse::Request::new(&mut []);
    match r.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        _ => return Err(HeadError::Syntax),
    }
    let version_10 = match r.version {
        Some(0) => true,
        Some(1) => false,
        _ => return Err(HeadError::Version),
    };
    let method = Method::from_bytes(r.method.unwrap_or_default().as_bytes()).map_err(|_| HeadError::Syntax)?;
    let mut headers = header_map(bytes, r.headers)?;
    let framing = request_framing(&headers, version_10)?;
    let host = host(&headers, version_10)?;
    headers.remove(header::HOST);
    let (authority, path, absolute) = target(bytes, r.path.unwrap_or_default(), &method, host)?;

    let keep_alive = if version_10 {
        has_token(&headers, &header::CONNECTION, "keep-alive")
    } else {
        !has_token(&headers, &header::CONNECTION, "close")
    };
    let upgrade = match headers.get(header::UPGRADE) {
        Some(v) if !version_10 && has_token(&headers, &header::CONNECTION, "upgrade") && leaves_http(v) => {
            Some(v.clone())
        }
        _ => None,
    };
    let expects_continue =
        !version_10 && headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    strip_connection_fields(&mut headers);
    let origin = if version_10 { Origin::Http10 } else { Origin::Http11 { absolute } };
    let head = RequestHead { method, authority, path, headers, origin, upgrade };
    Ok(ParsedRequest { head, framing, keep_alive, expects_continue })
}

/// An upgrade to HTTP/2 or to TLS would carry requests past whoever judges requests. It may be ignored (RFC 9110, section
/// 7.8), and then the request is answered as it stands.
fn leaves_http(protocols: &HeaderValue) -> bool {
    let Ok(text) = protocols.to_str() else { return false };
    let mut names = text.split(',').map(|p| p.trim().split('/').next().unwrap_or_default());
    names.all(|name| !["h2c", "h2", "http", "tls"].iter().any(|n| name.eq_ignore_ascii_case(n)))
}

/// Parses a whole response head; `method` is that of the request.
pub fn response(bytes: &Bytes, method: &Method) -> Result<ParsedResponse, HeadError> {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut r = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut r, bytes, &mut fields) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        _ => return Err(HeadError::Syntax),
    }
    let status = StatusCode::from_u16(r.code.unwrap_or(0)).map_err(|_| HeadError::Syntax)?;
    let version_10 = r.version == Some(0);
    let mut headers = header_map(bytes, r.headers)?;
    let framing = response_framing(&headers, status, method)?;
    let keep_alive = framing != Framing::Close
        && if version_10 {
            has_token(&headers, &header::CONNECTION, "keep-alive")
        } else {
            !has_token(&headers, &header::CONNECTION, "close")
        };
    if status != StatusCode::SWITCHING_PROTOCOLS {
        strip_connection_fields(&mut headers);
    }
    Ok(ParsedResponse { head: ResponseHead { status, headers }, framing, keep_alive })
}

/// Trailers: a block of fields that ends with an empty line. Those that would change framing or routing are dropped.
pub fn trailers(bytes: &Bytes) -> Result<HeaderMap, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete((n, parsed))) if n == bytes.len() => {
            let mut map = header_map(bytes, parsed)?;
            for name in [header::CONTENT_LENGTH, header::HOST, header::AUTHORIZATION, header::TRAILER] {
                map.remove(name);
            }
            strip_connection_fields(&mut map);
            Ok(map)
        }
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooManyFields),
        _ => Err(HeadError::Syntax),
    }
}

fn header_map(whole: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, HeadError> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for f in fields {
        let name = HeaderName::from_bytes(f.name.as_bytes()).map_err(|_| HeadError::Syntax)?;
        // shares the head's bytes
        let value = HeaderValue::from_maybe_shared(whole.slice_ref(f.value)).map_err(|_| HeadError::Syntax)?;
        map.append(name, value);
    }
    Ok(map)
}

fn request_framing(headers: &HeaderMap, version_10: bool) -> Result<Framing, HeadError> {
    let encoded = transfer_encoding(headers)?;
    let length = content_length(headers).map_err(|()| HeadError::Length)?;
    match (encoded, length) {
        (true, Some(_)) => Err(HeadError::LengthAndEncoding),
        (true, None) if version_10 => Err(HeadError::Encoding),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(0) | None) => Ok(Framing::None),
        (false, Some(n)) => Ok(Framing::Length(n)),
    }
}

fn response_framing(headers: &HeaderMap, status: StatusCode, method: &Method) -> Result<Framing, HeadError> {
    let encoded = transfer_encoding(headers)?;
    let length = content_length(headers).map_err(|()| HeadError::Length)?;
    if encoded && length.is_some() {
        return Err(HeadError::LengthAndEncoding);
    }
    if method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok(Framing::None);
    }
    Ok(match (encoded, length) {
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(n)) => Framing::Length(n),
        (false, None) => Framing::Close,
    })
}

/// True for exactly one `chunked`; anything else that is there is refused.
fn transfer_encoding(headers: &HeaderMap) -> Result<bool, HeadError> {
    let mut all = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(false),
        (Some(v), None) if v.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(HeadError::Encoding),
    }
}

fn host(headers: &HeaderMap, version_10: bool) -> Result<Option<Authority>, HeadError> {
    let mut all = headers.get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (None, _) if version_10 => Ok(None),
        (Some(v), None) if v.is_empty() => Ok(None),
        (Some(v), None) => authority(v.as_bytes()).map(Some).ok_or(HeadError::Host),
        _ => Err(HeadError::Host),
    }
}

/// A host and perhaps a port: no user information.
fn authority(bytes: &[u8]) -> Option<Authority> {
    let a = Authority::try_from(bytes).ok()?;
    (!a.as_str().contains('@') && !a.host().is_empty()).then_some(a)
}

fn target(
    whole: &Bytes,
    raw: &str,
    method: &Method,
    host: Option<Authority>,
) -> Result<(Option<Authority>, Bytes, bool), HeadError> {
    let path = |p: &str| {
        // A fragment is never sent, and not everybody would cut it at the same place.
        let ok = p.bytes().all(|b| b > b' ' && b != b'#' && b != 0x7f);
        ok.then(|| whole.slice_ref(p.as_bytes())).ok_or(HeadError::Target)
    };
    if *method == Method::CONNECT {
        let a = authority(raw.as_bytes()).filter(|a| a.port_u16().is_some()).ok_or(HeadError::Target)?;
        return Ok((Some(a), Bytes::new(), false));
    }
    if raw.starts_with('/') {
        return Ok((host, path(raw)?, false));
    }
    if raw == "*" && *method == Method::OPTIONS {
        return Ok((host, path(raw)?, false));
    }
    let rest = raw
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
        .ok_or(HeadError::Target)?
        .1;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (name, tail) = rest.split_at_checked(at).ok_or(HeadError::Target)?;
    // RFC 9112, section 3.2.2: the target's authority replaces Host
    let a = authority(name.as_bytes()).ok_or(HeadError::Target)?;
    let tail = if tail.starts_with('/') { path(tail)? } else { slash(tail)? };
    Ok((Some(a), tail, true))
}

/// `http://host` and `http://host?query` have the path `/`.
fn slash(tail: &str) -> Result<Bytes, HeadError> {
    if tail.bytes().all(|b| b > b' ' && b != b'#' && b != 0x7f) {
        Ok(Bytes::from(format!("/{tail}")))
    } else {
        Err(HeadError::Target)
    }
}

/// Removes what concerns this connection alone, and whatever `Connection` names. `TE: trailers` stays: it is end to end in
/// HTTP/2 and restored with its `Connection` token in HTTP/1.
pub(crate) fn strip_connection_fields(headers: &mut HeaderMap) {
    let wants_trailers = has_token(headers, &header::TE, "trailers");
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|t| HeaderName::from_bytes(t.trim().as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    for name in HOP_BY_HOP_NAMES {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

#[cfg(test)]
mod tests;
