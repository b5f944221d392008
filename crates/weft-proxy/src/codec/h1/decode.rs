//! Bodies of HTTP/1: a synchronous decoder over what was read.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::parse;
use crate::codec::{BodyError, Framing, MAX_HEAD};

/// Chunk extensions are ignored; nobody needs long ones.
const MAX_CHUNK_LINE: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoder(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Close,
    Done,
}

#[derive(Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    NeedMore,
}

// === impl Decoder ===

impl Decoder {
    pub(crate) const DONE: Self = Self(State::Done);

    pub(crate) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkSize,
            Framing::Close => State::Close,
        })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// What is still to come, where that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.0 {
            State::Length(n) => Some(n),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Takes what it can out of `buf`. `eof`: nothing will follow.
    pub(crate) fn step(&mut self, buf: &mut BytesMut, eof: bool) -> Result<Step, BodyError> {
        loop {
            match &mut self.0 {
                State::Done => return Ok(Step::End),
                State::Close => {
                    if !buf.is_empty() {
                        return Ok(Step::Data(buf.split().freeze()));
                    }
                    if eof {
                        self.0 = State::Done;
                        continue;
                    }
                    return Ok(Step::NeedMore);
                }
                State::Length(left) | State::Chunk(left) if !buf.is_empty() => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                    let data = buf.split_to(n).freeze();
                    *left -= u64::try_from(n).unwrap_or(0);
                    if *left == 0 {
                        self.0 = if matches!(self.0, State::Chunk(_)) { State::ChunkEnd } else { State::Done };
                    }
                    return Ok(Step::Data(data));
                }
                State::Length(_) | State::Chunk(_) => {}
                State::ChunkEnd => match (buf.first(), buf.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        buf.advance(2);
                        self.0 = State::ChunkSize;
                        continue;
                    }
                    (Some(b'\r'), None) | (None, _) => {}
                    _ => return Err(BodyError::Malformed("chunk does not end with CRLF")),
                },
                State::ChunkSize => {
                    if let Some(line) = line(buf)? {
                        let size = chunk_size(&line)?;
                        self.0 = if size == 0 { State::Trailers } else { State::Chunk(size) };
                        continue;
                    }
                }
                State::Trailers => {
                    if let Some(step) = trailers(buf)? {
                        self.0 = State::Done;
                        return Ok(step);
                    }
                }
            }
            return if eof { Err(BodyError::Truncated) } else { Ok(Step::NeedMore) };
        }
    }
}

/// A line without its CRLF, if it is there.
fn line(buf: &mut BytesMut) -> Result<Option<Bytes>, BodyError> {
    let Some(lf) = buf.iter().take(MAX_CHUNK_LINE).position(|b| *b == b'\n') else {
        return if buf.len() >= MAX_CHUNK_LINE {
            Err(BodyError::Malformed("chunk size line is too long"))
        } else {
            Ok(None)
        };
    };
    let mut l = buf.split_to(lf + 1);
    if lf == 0 || l.get(lf - 1) != Some(&b'\r') {
        return Err(BodyError::Malformed("chunk size line ends with LF alone"));
    }
    l.truncate(lf - 1);
    Ok(Some(l.freeze()))
}

/// Hexadecimal digits, then perhaps an extension.
fn chunk_size(line: &[u8]) -> Result<u64, BodyError> {
    let bad = BodyError::Malformed("chunk size is no hexadecimal number");
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = line.get(digits..).unwrap_or_default();
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let extension_ok = rest.is_empty() || (rest.starts_with(b";") && rest.iter().all(|b| *b >= b' ' || *b == b'\t'));
    if digits == 0 || digits > 15 || !extension_ok {
        return Err(bad);
    }
    let hex = line.get(..digits).and_then(|d| std::str::from_utf8(d).ok()).ok_or(bad)?;
    u64::from_str_radix(hex, 16).map_err(|_| BodyError::Malformed("chunk size is no hexadecimal number"))
}

fn trailers(buf: &mut BytesMut) -> Result<Option<Step>, BodyError> {
    if buf.starts_with(b"\r\n") {
        buf.advance(2);
        return Ok(Some(Step::End));
    }
    if buf.first() == Some(&b'\r') && buf.len() == 1 || buf.is_empty() {
        return Ok(None);
    }
    let refused = |_| BodyError::Malformed("trailers are no valid fields, or too many");
    match parse::end_of_head(buf, 0).map_err(refused)? {
        Some(n) => {
            let block = buf.split_to(n).freeze();
            Ok(Some(Step::Trailers(parse::trailers(&block).map_err(refused)?)))
        }
        None if buf.len() > MAX_HEAD => Err(BodyError::Malformed("trailers are too large")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `input` in pieces of `piece` bytes; answers data, trailers, and what was left over.
    fn decode(framing: Framing, input: &[u8], piece: usize) -> Result<(Vec<u8>, usize, Vec<u8>), BodyError> {
        let (mut d, mut buf) = (Decoder::new(framing), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), 0);
        let mut pieces = input.chunks(piece.max(1));
        loop {
            match d.step(&mut buf, false)? {
                Step::Data(b) => data.extend_from_slice(&b),
                Step::Trailers(t) => trailers += t.len(),
                Step::End => break,
                Step::NeedMore => match pieces.next() {
                    Some(p) => buf.extend_from_slice(p),
                    None => match d.step(&mut buf, true)? {
                        Step::End => break,
                        other => panic!("{other:?} at the end"),
                    },
                },
            }
        }
        let mut left = buf.to_vec();
        pieces.for_each(|p| left.extend_from_slice(p));
        Ok((data, trailers, left))
    }

    #[test]
    fn reads_chunks_in_any_pieces() {
        let wire = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nx-sum: 1\r\n\r\nGET";
        for piece in 1..wire.len() {
            let (data, trailers, left) = decode(Framing::Chunked, wire, piece).unwrap();
            assert_eq!((&data[..], trailers, &left[..]), (&b"hello world"[..], 1, &b"GET"[..]), "{piece}");
        }
    }

    #[test]
    fn refuses_what_others_read_differently() {
        for bad in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello",
            b"+5\r\nhello",
            b"\r\nhello",
            b"5 5\r\nhello",
            b"fffffffffffffffff\r\n",
            b"0\r\nbad trailer\r\n\r\n",
            b"0\r\na: b\n\r\n",
        ] {
            assert!(matches!(decode(Framing::Chunked, bad, 3), Err(BodyError::Malformed(_))), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn an_early_end_is_no_end() {
        for (framing, wire) in [
            (Framing::Length(5), &b"hell"[..]),
            (Framing::Chunked, b"5\r\nhel"),
            (Framing::Chunked, b"5\r\nhello\r\n"),
            (Framing::Chunked, b"5\r\nhello\r\n0\r\n"),
            (Framing::Chunked, b""),
        ] {
            assert!(matches!(decode(framing, wire, 2), Err(BodyError::Truncated)), "{}", wire.escape_ascii());
        }
        assert_eq!(decode(Framing::Close, b"hell", 2).unwrap().0, b"hell");
    }

    proptest! {
        #[test]
        fn never_panics(wire: Vec<u8>, piece in 1..9usize) {
            for f in [Framing::Chunked, Framing::Length(7), Framing::Close, Framing::None] {
                let _ = decode(f, &wire, piece);
            }
        }
    }
}
