//! Private keys at rest: AES-256-GCM under a key-encryption key.
//!
//! **[format]** a sealed value is: one byte 1, 12 bytes of nonce, ciphertext, 16 bytes of tag. The name of what is sealed
//! is authenticated with it, so that a sealed value cannot be put in another's place.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};

const FORMAT: u8 = 1;
const TAG_LEN: usize = 16;

/// Why something cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("key-encryption key is {0} bytes long, it must be 32; make one with `head -c 32 /dev/urandom`")]
    Length(usize),
    #[error("sealed {0} is truncated; restore it from a backup")]
    Short(String),
    #[error("sealed {what} has the unknown format {format}; it was written by a newer version, which must read it")]
    Format { what: String, format: u8 },
    #[error(
        "sealed {0} does not open with this key-encryption key; use the key file it was sealed with, or restore the value from a backup"
    )]
    Open(String),
    #[error("the cryptographic library failed while sealing {0}")]
    Library(String),
}

/// A key-encryption key. `Debug` does not show it.
pub struct Kek {
    bytes: [u8; 32],
    key: RandomizedNonceKey,
}

// === impl Kek ===

impl Kek {
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| SealError::Library("a new key-encryption key".into()))?;
        Self::from_bytes(&bytes)
    }

    /// From the content of a key file: exactly 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| SealError::Length(bytes.len()))?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Library("a key".into()))?;
        Ok(Self { bytes, key })
    }

    /// For writing the key file (mode 0600).
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// `what` names the sealed thing in messages and binds it, such as `key of signing slot 3`.
    pub fn seal(&self, what: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut body = plain.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(what.as_bytes()), &mut body)
            .map_err(|_| SealError::Library(what.into()))?;
        let mut out = vec![FORMAT];
        out.extend_from_slice(nonce.as_ref());
        out.append(&mut body);
        Ok(out)
    }

    pub fn open(&self, what: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let short = || SealError::Short(what.into());
        let (format, rest) = sealed.split_first().ok_or_else(short)?;
        if *format != FORMAT {
            return Err(SealError::Format { what: what.into(), format: *format });
        }
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(short)?;
        if body.len() < TAG_LEN {
            return Err(short());
        }
        let mut body = body.to_vec();
        let plain = self
            .key
            .open_in_place(Nonce::from(nonce), Aad::from(what.as_bytes()), &mut body)
            .map_err(|_| SealError::Open(what.into()))?
            .len();
        body.truncate(plain);
        Ok(body)
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn opens_only_with_its_key_and_its_name() {
        let (kek, other) = (Kek::generate().unwrap(), Kek::generate().unwrap());
        let sealed = kek.seal("key of slot 1", b"secret").unwrap();
        assert_eq!(kek.open("key of slot 1", &sealed).unwrap(), b"secret");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_ne!(kek.seal("key of slot 1", b"secret").unwrap(), sealed, "nonces differ");
        let wrong = SealError::Open("key of slot 1".into());
        assert_eq!(other.open("key of slot 1", &sealed).unwrap_err(), wrong);
        assert_eq!(kek.open("key of slot 2", &sealed).unwrap_err(), SealError::Open("key of slot 2".into()));
        assert!(wrong.to_string().contains("use the key file it was sealed with"));
        assert_eq!(Kek::from_bytes(&[1; 31]).unwrap_err(), SealError::Length(31));
        assert_eq!(format!("{kek:?}"), "Kek(..)");
        assert!(matches!(kek.open("x", &[2; 64]), Err(SealError::Format { format: 2, .. })));
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_opens(plain: Vec<u8>, at: prop::sample::Index, flip in 1_u8..) {
            let kek = Kek::from_bytes(&[7; 32]).unwrap();
            let mut sealed = kek.seal("k", &plain).unwrap();
            prop_assert_eq!(kek.open("k", &sealed).unwrap(), plain);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(kek.open("k", &sealed).is_err());
            prop_assert!(kek.open("k", &sealed[..at]).is_err());
        }
    }
}
