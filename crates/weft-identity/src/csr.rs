//! A new key with its certificate request, and what an authority takes from one: a public key whose owner proved that
//! it holds the private half. Everything else that a request may ask for is ignored.

use rcgen::{CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::{
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    prelude::{FromDer, X509CertificationRequest},
    x509::SubjectPublicKeyInfo,
};

use crate::{
    cert::KeyHash,
    svid::{Svid, SvidError},
};

/// Largest request that is looked at: a P-256 one is about 200 bytes.
pub const MAX_CSR: usize = 8 * 1024;

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("certificate request is {0} bytes long, at most {MAX_CSR} are read")]
    TooLong(usize),
    #[error("certificate request is not valid DER ({0}); send a PKCS #10 request")]
    Der(String),
    #[error("certificate request is not signed by the key in it; sign it with the new key")]
    Signature,
    #[error("certificate request has a key of another kind than P-256; make one with `prime256v1`")]
    Kind,
    #[error("no key could be made: {0}")]
    Generate(String),
}

/// A P-256 public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
}

/// A fresh private key. Never leaves the process except sealed or inside an [`Svid`].
pub struct KeyPair(rcgen::KeyPair);

// === impl KeyPair ===

impl KeyPair {
    pub fn generate() -> Result<Self, CsrError> {
        rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|e| CsrError::Generate(e.to_string()))
    }

    /// From PKCS #8 DER, as [`KeyPair::pkcs8`] gives it.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, CsrError> {
        let der = PrivatePkcs8KeyDer::from(der);
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|e| CsrError::Generate(e.to_string()))
    }

    /// The private key in clear.
    pub fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }

    pub fn public_key(&self) -> PublicKey {
        use rcgen::PublicKeyData as _;
        PublicKey { spki: self.0.subject_public_key_info() }
    }

    /// The request, DER. It names nobody: the authority decides who this is.
    pub fn csr(&self) -> Result<Vec<u8>, CsrError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&self.0).map_err(|e| CsrError::Generate(e.to_string()))?;
        Ok(csr.der().to_vec())
    }

    /// The answer of the authority together with this key.
    pub fn into_svid(&self, chain: Vec<CertificateDer<'static>>) -> Result<Svid, SvidError> {
        Svid::new(chain, PrivateKeyDer::Pkcs8(self.pkcs8().to_vec().into()))
    }

    /// For signing certificates; authorities only.
    pub fn signer(&self) -> &rcgen::KeyPair {
        &self.0
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyPair({})", self.public_key().hash())
    }
}

// === impl PublicKey ===

impl PublicKey {
    /// From a DER SubjectPublicKeyInfo; proves nothing about the private half.
    pub fn from_spki(spki: &[u8]) -> Result<Self, CsrError> {
        let (rest, parsed) = SubjectPublicKeyInfo::from_der(spki).map_err(|e| CsrError::Der(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Der("bytes after the end of the public key".into()));
        }
        check_p256(&parsed)?;
        Ok(Self { spki: spki.to_vec() })
    }

    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.spki)
    }
}

/// Verifies the request's own signature and yields its public key, and only that.
pub fn parse_csr(der: &[u8]) -> Result<PublicKey, CsrError> {
    if der.len() > MAX_CSR {
        return Err(CsrError::TooLong(der.len()));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|e| CsrError::Der(e.to_string()))?;
    if !rest.is_empty() {
        return Err(CsrError::Der("bytes after the end of the request".into()));
    }
    let key = &csr.certification_request_info.subject_pki;
    check_p256(key)?;
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    Ok(PublicKey { spki: key.raw.to_vec() })
}

/// An uncompressed point on P-256; whether it lies on the curve the signature check decides.
fn check_p256(key: &SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let point = &key.subject_public_key.data;
    let is_p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|c| c == OID_EC_P256)
        && point.len() == 65
        && point.first() == Some(&4);
    if is_p256 { Ok(()) } else { Err(CsrError::Kind) }
}

#[cfg(test)]
mod tests;
