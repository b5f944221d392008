//! What a connection speaks, from its first bytes (features.md L4T-04).
//!
//! The answer depends on the bytes alone, and an answer once given holds for every continuation: [`Detect::NeedMore`]
//! is given only while it is open. What cannot be told within [`MAX_PEEK`] bytes is opaque.

mod hello;
mod server_first;

pub use hello::ClientHello;
pub use server_first::{ServerFirst, Waiting, waiting};

/// The most that is looked at.
pub const MAX_PEEK: usize = 16 * 1024;

/// Longest method that is still believed to be one; the registered ones have at most 17 letters.
const MAX_METHOD: usize = 32;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const H1_VERSION: &[u8] = b" HTTP/";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detect {
    /// A request line. Whether the rest is acceptable is for the codec to say, with a status.
    Http1,
    /// The connection preface of HTTP/2.
    Http2,
    Tls(ClientHello),
    /// Something else, or undecided at the end of what may be looked at.
    Opaque,
    /// Read on, if the peer sends more.
    NeedMore,
}

/// `eof`: nothing will follow `bytes`.
pub fn detect(bytes: &[u8], eof: bool) -> Detect {
    let (bytes, last) = match bytes.get(..MAX_PEEK) {
        Some(head) => (head, true),
        None => (bytes, eof),
    };
    let found = match bytes.first() {
        None => Detect::NeedMore,
        Some(&hello::HANDSHAKE) => hello::parse(bytes),
        Some(_) => http(bytes, bytes.len() == MAX_PEEK),
    };
    if last && found == Detect::NeedMore { Detect::Opaque } else { found }
}

// === helpers ===

fn http(bytes: &[u8], full: bool) -> Detect {
    if bytes.starts_with(H2_PREFACE) {
        return Detect::Http2;
    }
    if H2_PREFACE.starts_with(bytes) {
        return Detect::NeedMore;
    }
    // Empty lines before a request are to be ignored (RFC 9112, section 2.2)
    let skip = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    request_line(bytes.get(skip..).unwrap_or_default(), full)
}

/// `method SP … SP HTTP/` within one line. That some text protocols begin with a word and a space (NATS says
/// `CONNECT {…}`) is why the version must be seen.
fn request_line(line: &[u8], full: bool) -> Detect {
    let method = line.iter().take_while(|b| is_token(**b)).count();
    match line.get(method) {
        _ if method > MAX_METHOD => return Detect::Opaque,
        None => return Detect::NeedMore,
        Some(b' ') if method > 0 => {}
        Some(_) => return Detect::Opaque,
    }
    let rest = line.get(method..).unwrap_or_default();
    let end = rest.iter().position(|b| *b == b'\n');
    let seen = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    if seen.contains(&0) {
        return Detect::Opaque;
    }
    let has_version = seen.windows(H1_VERSION.len()).any(|w| w == H1_VERSION);
    match end {
        Some(_) if has_version => Detect::Http1,
        Some(_) => Detect::Opaque,
        // A target longer than all that is looked at: the codec will refuse it, with a status
        None if full && seen.starts_with(b" /") => Detect::Http1,
        None => Detect::NeedMore,
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests;
