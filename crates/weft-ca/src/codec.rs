//! The bytes of stored values: a format byte, then fields in order; integers big-endian, byte strings with a 32-bit length.

use weft_identity::KeyHash;
use weft_model::Wall;

/// Why stored bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("stored {what} has the unknown format {format}; it was written by a newer version, which must read it")]
    Format { what: &'static str, format: u8 },
    #[error("stored {0} is truncated or corrupt; restore it from a snapshot")]
    Corrupt(&'static str),
}

pub(crate) struct Writer(Vec<u8>);

pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

// === impl Writer ===

impl Writer {
    pub(crate) fn new(format: u8) -> Self {
        Self(vec![format])
    }

    pub(crate) fn byte(&mut self, b: u8) -> &mut Self {
        self.0.push(b);
        self
    }

    pub(crate) fn u64(&mut self, n: u64) -> &mut Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub(crate) fn wall(&mut self, t: Wall) -> &mut Self {
        self.0.extend_from_slice(&t.as_millis().to_be_bytes());
        self
    }

    /// At most 4 GiB, which nothing here comes near.
    pub(crate) fn bytes(&mut self, b: &[u8]) -> &mut Self {
        let n = u32::try_from(b.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&n.to_be_bytes());
        self.0.extend_from_slice(b);
        self
    }

    pub(crate) fn text(&mut self, s: &str) -> &mut Self {
        self.bytes(s.as_bytes())
    }

    pub(crate) fn key(&mut self, k: &KeyHash) -> &mut Self {
        self.0.extend_from_slice(k.as_bytes());
        self
    }

    pub(crate) fn done(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str, format: u8) -> Result<Self, DecodeError> {
        match bytes.split_first() {
            None => Err(DecodeError::Corrupt(what)),
            Some((f, rest)) if *f == format => Ok(Self { rest, what }),
            Some((f, _)) => Err(DecodeError::Format { what, format: *f }),
        }
    }

    pub(crate) fn corrupt(&self) -> DecodeError {
        DecodeError::Corrupt(self.what)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Corrupt(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn wall(&mut self) -> Result<Wall, DecodeError> {
        self.array().map(i64::from_be_bytes).map(Wall::millis)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = usize::try_from(self.array().map(u32::from_be_bytes)?).map_err(|_| self.corrupt())?;
        let (head, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Corrupt(self.what))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.corrupt())
    }

    pub(crate) fn key(&mut self) -> Result<KeyHash, DecodeError> {
        self.array().map(KeyHash::from_bytes)
    }

    pub(crate) fn done(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt()) }
    }
}
