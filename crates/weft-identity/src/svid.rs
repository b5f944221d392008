//! An X.509-SVID: chain, private key, and what the leaf says. It cannot be made without having been checked.

use std::{fmt, sync::Arc};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use weft_model::{SpiffeId, Wall};

use crate::{
    cert::{CertError, Facts, KeyHash, Serial},
    tls::provider,
};

/// Why a chain and a key do not make an SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    #[error("SVID has no certificate")]
    Empty,
    #[error("SVID is not valid PEM: the {0} cannot be read")]
    Pem(&'static str),
    #[error("certificate {at} of the SVID's chain cannot be read")]
    Cert {
        at: usize,
        #[source]
        source: CertError,
    },
    #[error("SVID of {id} {rule}")]
    Rule { id: SpiffeId, rule: &'static str },
    #[error("certificate {at} above the SVID of {id} is no authority")]
    Chain { id: SpiffeId, at: usize },
    #[error("the private key of {id} cannot be used ({why})")]
    Key { id: SpiffeId, why: String },
    #[error("the private key does not belong to the certificate of {id}; both must come from the same request")]
    KeyMismatch { id: SpiffeId },
}

/// One identity of a workload with its private key. Cheap to clone; `Debug` never shows the key.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

struct Inner {
    id: SpiffeId,
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
    serial: Serial,
    public_key: KeyHash,
    not_before: Wall,
    not_after: Wall,
}

// === impl Svid ===

impl Svid {
    /// `chain`: leaf first, then intermediates; the root is not needed.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, SvidError> {
        let (leaf, above) = chain.split_first().ok_or(SvidError::Empty)?;
        let facts = Facts::read(leaf).map_err(|source| SvidError::Cert { at: 0, source })?;
        let id = facts.spiffe_id().map_err(|source| SvidError::Cert { at: 0, source })?;
        if id.path().is_empty() {
            return Err(SvidError::Rule { id, rule: "has no path: that is the ID of an authority, not of a workload" });
        }
        if let Some(rule) = facts.leaf_violation() {
            return Err(SvidError::Rule { id, rule });
        }
        for (at, cert) in (1..).zip(above) {
            let facts = Facts::read(cert).map_err(|source| SvidError::Cert { at, source })?;
            if !facts.ca {
                return Err(SvidError::Chain { id, at });
            }
        }
        let signing = provider()
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|e| SvidError::Key { id: id.clone(), why: e.to_string() })?;
        let certified = CertifiedKey::new(chain, signing);
        if certified.keys_match().is_err() {
            return Err(SvidError::KeyMismatch { id });
        }
        Ok(Self(Arc::new(Inner {
            id,
            key,
            certified: Arc::new(certified),
            serial: facts.serial,
            public_key: facts.key,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })))
    }

    /// From PEM texts; they may be the same text.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, SvidError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| SvidError::Pem("chain"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| SvidError::Pem("private key"))?;
        Self::new(chain, key)
    }

    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certified.cert
    }

    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.0.key
    }

    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }

    /// Of the SVID's own public key.
    pub fn public_key(&self) -> KeyHash {
        self.0.public_key
    }

    pub fn not_before(&self) -> Wall {
        self.0.not_before
    }

    pub fn not_after(&self) -> Wall {
        self.0.not_after
    }

    /// What rustls presents.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.0.certified
    }

    /// The same SVID with an authority at the end of the presented chain: what the join listener shows, since a client
    /// that holds only a pin must find the root in the chain.
    pub fn with_authority(&self, root: &CertificateDer<'static>) -> Result<Self, SvidError> {
        let mut chain = self.chain().to_vec();
        chain.push(root.clone());
        Self::new(chain, self.0.key.clone_key())
    }

    pub fn chain_pem(&self) -> String {
        self.chain().iter().map(|c| crate::pem::encode("CERTIFICATE", c)).collect()
    }

    /// The key in clear: for a file of mode 0600 or a sealed one.
    pub fn key_pem(&self) -> String {
        let label = match &self.0.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        crate::pem::encode(label, self.0.key.secret_der())
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.0.id)
            .field("serial", &self.0.serial)
            .field("not_after", &self.0.not_after)
            .finish_non_exhaustive()
    }
}
