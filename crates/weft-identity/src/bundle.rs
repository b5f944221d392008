//! What a verifier believes: the authorities of a trust domain, and what has been revoked.

use std::{collections::BTreeSet, sync::Arc};

use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject as _};
use weft_model::{Digest, SpiffeId, TrustDomain, Wall};

use crate::cert::{CertError, Facts, KeyHash, Serial};

/// Why certificates do not make a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("bundle of trust domain {0} has no authority; without one nothing can be verified")]
    Empty(TrustDomain),
    #[error("bundle is not valid PEM")]
    Pem,
    #[error("authority {at} of the bundle cannot be read")]
    Cert {
        at: usize,
        #[source]
        source: CertError,
    },
    #[error(
        "authority `{subject}` may not sign certificates (CA:FALSE or no keyCertSign); a leaf belongs in a chain, not in a bundle"
    )]
    NotAuthority { subject: String },
    #[error("authority `{subject}` names {got}, the bundle is that of {want}")]
    Foreign { subject: String, got: String, want: TrustDomain },
}

/// The authorities of one trust domain. Immutable; its digest does not depend on their order.
#[derive(Debug, Clone)]
pub struct Bundle {
    trust_domain: TrustDomain,
    authorities: Vec<Authority>,
    anchors: Vec<TrustAnchor<'static>>,
    digest: Digest,
}

#[derive(Debug, Clone)]
pub struct Authority {
    pub der: CertificateDer<'static>,
    pub key: KeyHash,
    pub subject: String,
    pub not_before: Wall,
    pub not_after: Wall,
}

/// What verifiers refuse although the chain is good. A mesh-wide collection; empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Of a leaf or of any certificate above it.
    pub serials: BTreeSet<Serial>,
    pub ids: BTreeSet<SpiffeId>,
    /// Keys of authorities and intermediates: everything that they signed.
    pub issuer_keys: BTreeSet<KeyHash>,
}

/// What must be seen together when a peer is judged: one value, one swap.
#[derive(Debug, Clone)]
pub struct Trust {
    pub bundle: Arc<Bundle>,
    pub revocations: Arc<Revocations>,
}

// === impl Bundle ===

impl Bundle {
    pub fn new(trust_domain: TrustDomain, certs: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut this = Self { trust_domain, authorities: Vec::new(), anchors: Vec::new(), digest: Digest::ZERO };
        for (at, der) in certs.into_iter().enumerate() {
            let facts = Facts::read(&der).map_err(|source| BundleError::Cert { at, source })?;
            if this.authorities.iter().any(|a| a.der == der) {
                continue;
            }
            this.check(&facts)?;
            let anchor = webpki::anchor_from_trusted_cert(&der)
                .map_err(|e| BundleError::Cert { at, source: CertError::Der(e.to_string()) })?;
            this.anchors.push(anchor.to_owned());
            this.digest = this.digest.plus(Digest::of_named(this.trust_domain.as_str(), &der));
            let Facts { subject, key, not_before, not_after, .. } = facts;
            this.authorities.push(Authority { der, key, subject, not_before, not_after });
        }
        if this.authorities.is_empty() {
            return Err(BundleError::Empty(this.trust_domain));
        }
        Ok(this)
    }

    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
        let certs = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| BundleError::Pem)?;
        Self::new(trust_domain, certs)
    }

    pub fn to_pem(&self) -> String {
        self.authorities.iter().map(|a| crate::pem::encode("CERTIFICATE", &a.der)).collect()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.authorities.iter().map(|a| &a.der)
    }

    /// Changes when the set of authorities does: the trust revision of a pool key.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn authority(&self, key: &KeyHash) -> Option<&Authority> {
        self.authorities.iter().find(|a| a.key == *key)
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Authorities of others' making (Istio's `cacerts`) often carry no SPIFFE ID; one that they carry must be ours.
    fn check(&self, facts: &Facts) -> Result<(), BundleError> {
        let subject = || facts.subject.clone();
        if !facts.ca || facts.key_usage.is_some_and(|u| !u.cert_sign) {
            return Err(BundleError::NotAuthority { subject: subject() });
        }
        let ours = SpiffeId::authority(&self.trust_domain);
        match facts.uris.iter().find(|u| u.starts_with("spiffe://") && **u != ours.as_str()) {
            Some(got) => {
                Err(BundleError::Foreign { subject: subject(), got: got.clone(), want: self.trust_domain.clone() })
            }
            None => Ok(()),
        }
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.digest == other.digest
    }
}
impl Eq for Bundle {}

// === impl Trust ===

impl Trust {
    pub fn new(bundle: Bundle, revocations: Revocations) -> Self {
        Self { bundle: Arc::new(bundle), revocations: Arc::new(revocations) }
    }
}
