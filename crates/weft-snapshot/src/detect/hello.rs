//! A TLS ClientHello, joined over records and segments (RFC 8446, sections 4.1.2 and 5.1).

use std::borrow::Cow;

use super::{Detect, MAX_PEEK};

/// Content type of a handshake record.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// RFC 8446, section 5.1.
const MAX_RECORD: usize = 1 << 14;

const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;
const EXT_ECH: u16 = 0xfe0d;

/// What a client says before anything is encrypted. None of it is authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// In lower case.
    pub sni: Option<String>,
    /// In the client's order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// Encrypted ClientHello: `sni` is the outer name, which says nothing of where it goes (features.md L4T-02).
    pub ech: bool,
}

/// `bytes` begin with a handshake record.
pub(super) fn parse(bytes: &[u8]) -> Detect {
    match message(bytes) {
        Ok(body) => hello(&body).map_or(Detect::Opaque, Detect::Tls),
        Err(open) => open,
    }
}

/// The body of the ClientHello, without copying where one record holds it.
fn message(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Detect> {
    let mut rest = bytes;
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        let (part, complete, next) = record(rest)?;
        joined = if joined.is_empty() { Cow::Borrowed(part) } else { Cow::Owned([&joined, part].concat()) };
        if joined.first().is_some_and(|t| *t != CLIENT_HELLO) {
            return Err(Detect::Opaque);
        }
        if let Some(head) = joined.first_chunk::<4>() {
            let len = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if len > MAX_PEEK {
                return Err(Detect::Opaque);
            }
            if joined.len() >= 4 + len {
                return Ok(match joined {
                    Cow::Borrowed(b) => Cow::Borrowed(b.get(4..4 + len).unwrap_or_default()),
                    Cow::Owned(b) => Cow::Owned(b.get(4..4 + len).unwrap_or_default().to_vec()),
                });
            }
        }
        if !complete {
            return Err(Detect::NeedMore);
        }
        rest = next;
    }
}

/// One record: what is there of its payload, whether that is all of it, and what follows.
fn record(bytes: &[u8]) -> Result<(&[u8], bool, &[u8]), Detect> {
    match bytes {
        [t, ..] if *t != HANDSHAKE => return Err(Detect::Opaque),
        [_, major, ..] if *major != 3 => return Err(Detect::Opaque),
        [_, _, minor, ..] if *minor > 4 => return Err(Detect::Opaque),
        _ => {}
    }
    let Some((head, rest)) = bytes.split_first_chunk::<5>() else { return Err(Detect::NeedMore) };
    let len = usize::from(head[3]) << 8 | usize::from(head[4]);
    if len == 0 || len > MAX_RECORD {
        return Err(Detect::Opaque);
    }
    match rest.split_at_checked(len) {
        Some((payload, next)) => Ok((payload, true, next)),
        None => Ok((rest, false, &[])),
    }
}

fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut r = Reader(body);
    let version = r.u16()?;
    if version >> 8 != 3 {
        return None;
    }
    r.take(32)?; // random
    r.vec8()?; // session id
    let suites = r.vec16()?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return None;
    }
    r.vec8()?; // compression
    let mut found = ClientHello::default();
    if r.0.is_empty() {
        return Some(found); // TLS 1.2 allows a hello without extensions
    }
    let mut extensions = Reader(r.vec16()?);
    if !r.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = Reader(extensions.vec16()?);
        match kind {
            EXT_SERVER_NAME => found.sni = Some(server_name(data)?),
            EXT_ALPN => found.alpn = protocols(data)?,
            EXT_ECH => found.ech = true,
            _ => {}
        }
    }
    Some(found)
}

/// RFC 6066, section 3: a list with one entry of type 0.
fn server_name(mut data: Reader<'_>) -> Option<String> {
    let mut list = Reader(data.vec16()?);
    let kind = list.take(1)?;
    let name = list.vec16()?;
    let plain = !name.is_empty() && name.iter().all(|b| b.is_ascii_graphic());
    (kind == [0] && plain && list.0.is_empty() && data.0.is_empty())
        .then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
}

fn protocols(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(data.vec16()?);
    let mut out = Vec::new();
    while !list.0.is_empty() {
        let name = list.vec8()?;
        if name.is_empty() {
            return None;
        }
        out.push(name.to_vec());
    }
    (!out.is_empty() && data.0.is_empty()).then_some(out)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// A vector with a length of one byte.
    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = *self.take(1)?.first()?;
        self.take(usize::from(n))
    }

    /// A vector with a length of two bytes.
    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}
