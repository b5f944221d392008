//! What one certificate says, read once into plain values. Nothing here trusts it.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use weft_model::{SpiffeError, SpiffeId, Wall};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Longest serial number in bytes (RFC 5280, 4.1.2.2).
pub const MAX_SERIAL: usize = 20;

/// Why bytes are not a certificate that we can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    #[error("certificate is not valid DER ({0})")]
    Der(String),
    #[error("certificate has {0} more bytes after its end")]
    Trailing(usize),
    #[error("certificate has a malformed {0} extension")]
    Extension(&'static str),
    #[error("certificate of `{subject}` has no SPIFFE ID; it needs exactly one URI subject alternative name")]
    NoUri { subject: String },
    #[error("certificate of `{subject}` has {n} URI subject alternative names; an SVID has exactly one")]
    ManyUris { subject: String, n: usize },
    #[error("the URI subject alternative name of `{subject}` is no SPIFFE ID")]
    NotSpiffe {
        subject: String,
        #[source]
        source: SpiffeError,
    },
}

/// A certificate's serial number without leading zeros, printed in hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// SHA-256 of a SubjectPublicKeyInfo: names a key whatever certificate carries it. Printed and parsed as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

/// What one certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The distinguished name, for messages only; never an identity.
    pub subject: String,
    /// The subject and the issuer, DER.
    pub subject_der: Vec<u8>,
    pub issuer_der: Vec<u8>,
    /// URI and DNS subject alternative names in their order.
    pub uris: Vec<String>,
    pub dns_names: Vec<String>,
    /// Subject alternative names of other kinds (addresses, mail …).
    pub other_names: usize,
    pub serial: Serial,
    pub not_before: Wall,
    pub not_after: Wall,
    pub ca: bool,
    pub path_len: Option<u32>,
    /// `None` when the extension is missing.
    pub key_usage: Option<KeyUses>,
    pub extended: Option<ExtendedUses>,
    pub key: KeyHash,
    pub spki: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUses {
    pub digital_signature: bool,
    pub cert_sign: bool,
    pub crl_sign: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedUses {
    pub server_auth: bool,
    pub client_auth: bool,
    /// Uses other than the two of an SVID.
    pub others: bool,
}

// === impl Facts ===

impl Facts {
    pub fn read(der: &[u8]) -> Result<Self, CertError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|e| CertError::Der(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CertError::Trailing(rest.len()));
        }
        let basic = cert.basic_constraints().map_err(|_| CertError::Extension("basic constraints"))?;
        let usage = cert.key_usage().map_err(|_| CertError::Extension("key usage"))?;
        let extended = cert.extended_key_usage().map_err(|_| CertError::Extension("extended key usage"))?;
        let names = cert.subject_alternative_name().map_err(|_| CertError::Extension("subject alternative name"))?;
        let mut facts = Self {
            subject: cert.subject().to_string(),
            subject_der: cert.subject().as_raw().to_vec(),
            issuer_der: cert.issuer().as_raw().to_vec(),
            uris: Vec::new(),
            dns_names: Vec::new(),
            other_names: 0,
            serial: Serial::new(cert.raw_serial()),
            not_before: Wall::secs(cert.validity().not_before.timestamp()),
            not_after: Wall::secs(cert.validity().not_after.timestamp()),
            ca: basic.as_ref().is_some_and(|b| b.value.ca),
            path_len: basic.as_ref().and_then(|b| b.value.path_len_constraint),
            key_usage: usage.map(|u| KeyUses {
                digital_signature: u.value.digital_signature(),
                cert_sign: u.value.key_cert_sign(),
                crl_sign: u.value.crl_sign(),
            }),
            extended: extended.map(|e| ExtendedUses {
                server_auth: e.value.server_auth,
                client_auth: e.value.client_auth,
                others: e.value.any
                    || e.value.code_signing
                    || e.value.email_protection
                    || e.value.time_stamping
                    || e.value.ocsp_signing
                    || !e.value.other.is_empty(),
            }),
            key: KeyHash::of(cert.public_key().raw),
            spki: cert.public_key().raw.to_vec(),
        };
        for name in names.iter().flat_map(|n| n.value.general_names.iter()) {
            match name {
                GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => facts.dns_names.push((*dns).to_owned()),
                // an unreadable name could be a second URI to another verifier
                GeneralName::Invalid(..) => return Err(CertError::Extension("subject alternative name")),
                _ => facts.other_names = facts.other_names.saturating_add(1),
            }
        }
        Ok(facts)
    }

    /// The one SPIFFE ID that the certificate claims.
    pub fn spiffe_id(&self) -> Result<SpiffeId, CertError> {
        let subject = || self.subject.clone();
        match self.uris.as_slice() {
            [] => Err(CertError::NoUri { subject: subject() }),
            [uri] => SpiffeId::parse(uri)
                .map_err(|source| CertError::NotSpiffe { subject: uri.chars().take(256).collect(), source }),
            many => Err(CertError::ManyUris { subject: subject(), n: many.len() }),
        }
    }

    /// Which rule of an X.509-SVID leaf the certificate breaks, if any (SPIFFE X509-SVID, sections 4 and 5).
    pub fn leaf_violation(&self) -> Option<&'static str> {
        if self.ca {
            return Some("is an authority (CA:TRUE), not a leaf");
        }
        let Some(usage) = self.key_usage else { return Some("has no key usage") };
        if !usage.digital_signature {
            return Some("lacks the key usage digitalSignature");
        }
        if usage.cert_sign || usage.crl_sign {
            return Some("may sign certificates or revocation lists");
        }
        match self.extended {
            Some(ExtendedUses { server_auth: true, client_auth: true, .. }) => None,
            Some(ExtendedUses { server_auth: false, .. }) => Some("lacks the extended key usage serverAuth"),
            Some(_) => Some("lacks the extended key usage clientAuth"),
            None => Some("has no extended key usage"),
        }
    }
}

// === impl Serial ===

impl Serial {
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Self(bytes.get(zeros..).unwrap_or_default().to_vec())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("00");
        }
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = CertError;
    fn from_str(s: &str) -> Result<Self, CertError> {
        let bytes = unhex(s).filter(|b| !b.is_empty() && b.len() <= MAX_SERIAL);
        bytes
            .map(|b| Self::new(&b))
            .ok_or_else(|| CertError::Der("a serial number is 1 to 20 bytes in hexadecimal".into()))
    }
}

// === impl KeyHash ===

impl KeyHash {
    /// Of a DER SubjectPublicKeyInfo.
    pub fn of(spki: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
        Self(out)
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyHash {
    type Err = CertError;
    fn from_str(s: &str) -> Result<Self, CertError> {
        let bytes = unhex(s).and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or_else(|| CertError::Der("a key hash is 64 hexadecimal digits".into()))
    }
}

fn unhex(s: &str) -> Option<Vec<u8>> {
    let nibble = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = s.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[hi, lo]| Some(nibble(hi)? << 4 | nibble(lo)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let hash = KeyHash::of(b"key");
        assert_eq!(hash.to_string().parse::<KeyHash>().unwrap(), hash);
        assert_eq!(hash.to_string().len(), 64);
        let serial = Serial::new(&[0, 0x81, 0, 7]);
        assert_eq!(serial.to_string(), "810007");
        assert_eq!("00810007".parse::<Serial>().unwrap(), serial);
        for bad in ["", "0", "xy", "8100zz"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
        assert!("ab".parse::<KeyHash>().is_err());
    }
}
