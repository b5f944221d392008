//! Signing: a template and the current slot's key make a certificate, which is read back before it leaves.

use std::fmt;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use weft_identity::{Bundle, BundleError, CertError, CsrError, Facts, KeyHash, Serial, csr::KeyPair};
use weft_model::{TrustDomain, Wall};

use crate::{
    journal::Kind,
    template::{self, Bounds, Form, Issue, Template, TemplateError},
    validate::{self, Violation},
};

/// Why a certificate was not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error("the request cannot be certified")]
    Template(#[source] TemplateError),
    #[error("the signing slot changed since the certificate was planned (key {planned}, now {current}); plan it anew")]
    OtherSigner { planned: KeyHash, current: KeyHash },
    #[error("signing the certificate of {id} failed ({why})")]
    Sign { id: String, why: String },
    #[error(
        "the certificate of {id} was signed but not let out, because reading it back failed; this is a defect of the authority"
    )]
    Invalid {
        id: String,
        #[source]
        source: Violation,
    },
    #[error("no random serial number could be made")]
    Random,
}

/// Why a slot's certificate and key do not make a signer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    #[error("certificate of the {kind} authority cannot be read")]
    Cert {
        kind: Kind,
        #[source]
        source: CertError,
    },
    #[error("the {kind} authority's private key is not that of its certificate; restore both from one backup")]
    KeyMismatch { kind: Kind },
    #[error("the certificate of the {kind} authority is not signed by the root `{root}`")]
    NotUnderRoot { kind: Kind, root: String },
    #[error("the root cannot be trusted")]
    Root(#[source] BundleError),
    #[error("the {kind} authority's key cannot be used")]
    Key {
        kind: Kind,
        #[source]
        source: CsrError,
    },
}

/// An authority that can sign now: certificate, key, and the root above it.
pub struct Signer {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) kind: Kind,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) facts: Facts,
    pub(crate) root: Bundle,
    key: KeyPair,
}

/// A certificate that may leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf first, without the root: what the workload presents.
    pub chain: Vec<CertificateDer<'static>>,
    pub serial: Serial,
    pub not_before: Wall,
    pub not_after: Wall,
    pub issuer: KeyHash,
}

// === impl Signer ===

impl Signer {
    /// `root` is the certificate itself when `kind` is a root.
    pub fn new(
        trust_domain: TrustDomain,
        kind: Kind,
        certificate: CertificateDer<'static>,
        root: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Self, SignerError> {
        let facts = Facts::read(&certificate).map_err(|source| SignerError::Cert { kind, source })?;
        if facts.key != key.public_key().hash() {
            return Err(SignerError::KeyMismatch { kind });
        }
        let root_facts = Facts::read(&root).map_err(|source| SignerError::Cert { kind: Kind::Root, source })?;
        if !validate::signed_by(&certificate, &root) {
            return Err(SignerError::NotUnderRoot { kind, root: root_facts.subject });
        }
        let root = Bundle::new(trust_domain.clone(), vec![root]).map_err(SignerError::Root)?;
        Ok(Self { trust_domain, kind, certificate, facts, root, key })
    }

    /// Plans a leaf: draws the serial and fixes every field. Commit [`Template::record`] before [`Signer::sign`].
    pub fn plan(&self, issue: &Issue, now: Wall) -> Result<Template, IssueError> {
        template::leaf(issue, self.bounds(), random_serial()?, now).map_err(IssueError::Template)
    }

    /// Signs what was planned and lets it out only when it reads back as planned.
    pub fn sign(&self, template: &Template) -> Result<Issued, IssueError> {
        if template.issuer != self.facts.key {
            return Err(IssueError::OtherSigner { planned: template.issuer, current: self.facts.key });
        }
        let leaf = self.sign_unchecked(template)?;
        validate::check(template, &leaf, self)
            .map_err(|source| IssueError::Invalid { id: template.id.to_string(), source })?;
        Ok(Issued {
            chain: self.chain_of(leaf),
            serial: template.serial.clone(),
            not_before: template.not_before,
            not_after: template.not_after,
            issuer: self.facts.key,
        })
    }

    /// Without a ledger: for tests, tools and an authority's own certificates.
    pub fn issue(&self, issue: &Issue, now: Wall) -> Result<Issued, IssueError> {
        self.sign(&self.plan(issue, now)?)
    }

    pub fn bounds(&self) -> Bounds<'_> {
        Bounds {
            trust_domain: &self.trust_domain,
            not_before: self.facts.not_before,
            not_after: self.facts.not_after,
            key: self.facts.key,
        }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn not_after(&self) -> Wall {
        self.facts.not_after
    }

    pub fn key_hash(&self) -> KeyHash {
        self.facts.key
    }

    /// The one root that this signer hangs on.
    pub fn root(&self) -> &Bundle {
        &self.root
    }

    pub(crate) fn chain_of(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        match self.kind {
            Kind::Root => vec![leaf],
            Kind::Signing => vec![leaf, self.certificate.clone()],
        }
    }

    pub(crate) fn sign_unchecked(&self, template: &Template) -> Result<CertificateDer<'static>, IssueError> {
        let failed = |e: rcgen::Error| IssueError::Sign { id: template.id.to_string(), why: e.to_string() };
        let issuer = Issuer::from_ca_cert_der(&self.certificate, self.key.signer()).map_err(failed)?;
        let key = SubjectPublicKeyInfo::from_der(template.public_key.spki()).map_err(failed)?;
        let mut params = params(template).map_err(failed)?;
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&key, &issuer).map_err(failed)?.der().clone())
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("kind", &self.kind)
            .field("subject", &self.facts.subject)
            .field("not_after", &self.facts.not_after)
            .finish_non_exhaustive()
    }
}

/// Signs a root with its own key.
pub(crate) fn self_sign(template: &Template, key: &KeyPair) -> Result<CertificateDer<'static>, IssueError> {
    let failed = |e: rcgen::Error| IssueError::Sign { id: template.id.to_string(), why: e.to_string() };
    let cert = params(template).and_then(|p| p.self_signed(key.signer())).map_err(failed)?;
    Ok(cert.der().clone())
}

/// 16 random bytes, the first of them 0x40..0x80: positive and always of the same length.
pub(crate) fn random_serial() -> Result<Serial, IssueError> {
    let mut bytes = [0_u8; 16];
    rand::fill(&mut bytes).map_err(|_| IssueError::Random)?;
    let [first, ..] = &mut bytes;
    *first = *first & 0x3f | 0x40;
    Ok(Serial::new(&bytes))
}

fn params(t: &Template) -> Result<CertificateParams, rcgen::Error> {
    let at = |w: Wall| date_time_ymd(1970, 1, 1) + w.since(Wall::EPOCH);
    let mut p = CertificateParams::default();
    p.serial_number = Some(SerialNumber::from_slice(t.serial.as_bytes()));
    (p.not_before, p.not_after) = (at(t.not_before), at(t.not_after));
    p.distinguished_name = DistinguishedName::new();
    if let Some(name) = t.common_name() {
        p.distinguished_name.push(DnType::CommonName, name);
    }
    p.subject_alt_names = vec![SanType::URI(t.id.as_str().try_into()?)];
    match &t.form {
        Form::Leaf { dns_names } => {
            for name in dns_names {
                p.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
            }
            p.is_ca = IsCa::ExplicitNoCa;
            p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        }
        Form::Authority { path_len, .. } => {
            p.is_ca = IsCa::Ca(BasicConstraints::Constrained(*path_len));
            p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
    }
    Ok(p)
}

#[cfg(test)]
pub(crate) mod tests;
