//! Judging a peer: chain → SPIFFE rules → trust domain → expiry → revocation → expected identity.
//!
//! The verdict is one function of plain values, [`recheck`]; the verifiers of `peers` call it in the handshake, and
//! whoever holds a live connection calls it again when trust changes or time passes. DNS names are never consulted.

use std::sync::Arc;

use rustls::{CertificateError, OtherError};
use rustls_pki_types::{CertificateDer, UnixTime};
use weft_model::{SpiffeId, TrustDomain, Wall};

use crate::{
    bundle::{Bundle, Revocations},
    cert::{CertError, Facts, KeyHash, Serial},
    tls::provider,
};

/// Why a peer is refused. `reason()` is the label for metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("peer presented no certificate")]
    NoCertificate,
    #[error("peer's certificate chain is longer than {MAX_CHAIN} certificates")]
    ChainTooLong,
    #[error("peer's certificate cannot be used as an identity")]
    Certificate(#[source] CertError),
    #[error("certificate of {id} is no SVID: it {rule}")]
    Rule { id: SpiffeId, rule: &'static str },
    #[error(
        "certificate of {who} expired at {not_after}, it is now {now}; it was not renewed, or one of the clocks is wrong"
    )]
    Expired { who: String, not_after: Wall, now: Wall },
    #[error("certificate of {who} is not valid before {not_before}, it is now {now}; one of the clocks is wrong")]
    NotYetValid { who: String, not_before: Wall, now: Wall },
    #[error("{got} is of another trust domain than {want}")]
    ForeignTrustDomain { got: SpiffeId, want: TrustDomain },
    #[error("certificate of {id} is signed by no authority that trust domain {trust_domain} has now")]
    UnknownAuthority { id: SpiffeId, trust_domain: TrustDomain },
    #[error("an intermediate in the chain of {id} goes beyond the path length that its issuer allows")]
    PathTooLong { id: SpiffeId },
    #[error("certificate chain of {id} is not valid")]
    Chain {
        id: SpiffeId,
        #[source]
        source: webpki::Error,
    },
    #[error("{id} is revoked (by {by})")]
    Revoked { id: SpiffeId, by: RevokedBy },
    #[error("peer is {got}, expected {}", wanted(want))]
    UnexpectedId { got: SpiffeId, want: Vec<SpiffeId> },
    #[error(
        "the server's chain does not contain the root key {pin} that the join token names; the token is of another mesh, or something stands between"
    )]
    ForeignRoot { pin: KeyHash },
}

/// Which entry of [`Revocations`] hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedBy {
    Serial(Serial),
    Id,
    IssuerKey(KeyHash),
}

/// Who the peer is and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    pub id: SpiffeId,
    pub serial: Serial,
    /// When the first certificate of the chain expires, its authority included: the connection must end before.
    pub not_after: Wall,
    /// The key of the root it hangs on: lets an operator prove that nothing lives on an old root.
    pub authority: KeyHash,
}

/// Leaf, a few intermediates, perhaps the root; more is an attack on the path search.
pub const MAX_CHAIN: usize = 8;

// === verdict ===

/// The principal that a chain claims. Only meaningful for the chain of a finished handshake of ours.
pub fn principal(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    Facts::read(leaf).and_then(|f| f.spiffe_id()).map_err(VerifyError::Certificate)
}

/// Judges a presented chain, leaf first. Pure: the same answer for the same values.
pub fn recheck(
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    revocations: &Revocations,
    now: Wall,
) -> Result<PeerInfo, VerifyError> {
    let (leaf, above) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(VerifyError::ChainTooLong);
    }
    let facts = Facts::read(leaf).map_err(VerifyError::Certificate)?;
    let id = facts.spiffe_id().map_err(VerifyError::Certificate)?;
    if id.path().is_empty() {
        return Err(VerifyError::Rule { id, rule: "names an authority, not a workload" });
    }
    if id.trust_domain_str() != bundle.trust_domain().as_str() {
        return Err(VerifyError::ForeignTrustDomain { got: id, want: bundle.trust_domain().clone() });
    }
    if let Some(rule) = facts.leaf_violation() {
        return Err(VerifyError::Rule { id, rule });
    }
    in_time(id.as_str(), facts.not_before, facts.not_after, now)?;
    let path = verified_path(&id, leaf, above, bundle, now)?;
    revoked(&id, &facts.serial, &path, revocations)?;
    Ok(PeerInfo { not_after: path.not_after.min(facts.not_after), id, serial: facts.serial, authority: path.authority })
}

/// What remains of a verified path after webpki's borrows end.
struct Path {
    authority: KeyHash,
    /// Keys of all issuers, the authority's included.
    issuers: Vec<KeyHash>,
    serials: Vec<Serial>,
    not_after: Wall,
}

fn verified_path(
    id: &SpiffeId,
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    bundle: &Bundle,
    now: Wall,
) -> Result<Path, VerifyError> {
    let refuse = |e| chain_error(id, bundle, now, e);
    let end = webpki::EndEntityCert::try_from(leaf).map_err(refuse)?;
    let algorithms = provider().signature_verification_algorithms.all;
    // an SVID carries both uses (checked above), so one stands for both roles
    let usage = webpki::KeyUsage::server_auth();
    let path =
        end.verify_for_usage(algorithms, bundle.anchors(), above, unix(now), usage, None, None).map_err(refuse)?;

    let key = KeyHash::of(&webpki::spki_for_anchor(path.anchor()));
    // the path search does not look at an authority's own dates
    let authority = bundle
        .authority(&key)
        .ok_or_else(|| VerifyError::UnknownAuthority { id: id.clone(), trust_domain: bundle.trust_domain().clone() })?;
    in_time(&format!("authority `{}`", authority.subject), authority.not_before, authority.not_after, now)?;

    let mut out = Path { authority: key, issuers: vec![key], serials: Vec::new(), not_after: authority.not_after };
    for cert in path.intermediate_certificates() {
        let facts = Facts::read(&cert.der()).map_err(VerifyError::Certificate)?;
        out.issuers.push(facts.key);
        out.serials.push(facts.serial);
        out.not_after = out.not_after.min(facts.not_after);
    }
    Ok(out)
}

fn in_time(who: &str, not_before: Wall, not_after: Wall, now: Wall) -> Result<(), VerifyError> {
    if now > not_after {
        return Err(VerifyError::Expired { who: who.into(), not_after, now });
    }
    if now < not_before {
        return Err(VerifyError::NotYetValid { who: who.into(), not_before, now });
    }
    Ok(())
}

fn revoked(id: &SpiffeId, serial: &Serial, path: &Path, revocations: &Revocations) -> Result<(), VerifyError> {
    let refuse = |by| Err(VerifyError::Revoked { id: id.clone(), by });
    if revocations.ids.contains(id) {
        return refuse(RevokedBy::Id);
    }
    if let Some(s) = std::iter::once(serial).chain(&path.serials).find(|s| revocations.serials.contains(s)) {
        return refuse(RevokedBy::Serial(s.clone()));
    }
    match path.issuers.iter().find(|k| revocations.issuer_keys.contains(k)) {
        Some(key) => refuse(RevokedBy::IssuerKey(*key)),
        None => Ok(()),
    }
}

pub(crate) fn expect(info: PeerInfo, expected: &[SpiffeId]) -> Result<PeerInfo, VerifyError> {
    if expected.contains(&info.id) {
        return Ok(info);
    }
    Err(VerifyError::UnexpectedId { got: info.id, want: expected.to_vec() })
}

fn chain_error(id: &SpiffeId, bundle: &Bundle, now: Wall, e: webpki::Error) -> VerifyError {
    let above = || format!("an intermediate above {id}");
    match e {
        // a signature that does not fit is what two roots of one name look like (a mesh that was made anew)
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            VerifyError::UnknownAuthority { id: id.clone(), trust_domain: bundle.trust_domain().clone() }
        }
        webpki::Error::CertExpired { not_after, .. } => {
            VerifyError::Expired { who: above(), not_after: wall(not_after), now }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            VerifyError::NotYetValid { who: above(), not_before: wall(not_before), now }
        }
        webpki::Error::PathLenConstraintViolated => VerifyError::PathTooLong { id: id.clone() },
        source => VerifyError::Chain { id: id.clone(), source },
    }
}

fn wanted(ids: &[SpiffeId]) -> String {
    match ids {
        [] => "nobody: no identity is known for this endpoint".into(),
        [one] => one.to_string(),
        many => format!("one of {}", many.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(", ")),
    }
}

pub(crate) fn unix(now: Wall) -> UnixTime {
    UnixTime::since_unix_epoch(now.since(Wall::EPOCH))
}

pub(crate) fn wall(t: UnixTime) -> Wall {
    Wall::secs(i64::try_from(t.as_secs()).unwrap_or(i64::MAX))
}

// === impl VerifyError ===

impl VerifyError {
    /// One of a closed set of words.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ChainTooLong | Self::Chain { .. } => "bad_chain",
            Self::Certificate(CertError::NoUri { .. }) => "no_spiffe_id",
            Self::Certificate(_) => "bad_certificate",
            Self::Rule { .. } => "not_an_svid",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::ForeignTrustDomain { .. } => "foreign_trust_domain",
            Self::UnknownAuthority { .. } => "unknown_authority",
            Self::PathTooLong { .. } => "path_too_long",
            Self::Revoked { .. } => "revoked",
            Self::UnexpectedId { .. } => "unexpected_id",
            Self::ForeignRoot { .. } => "foreign_root",
        }
    }

    /// The verdict inside a failed handshake's error, when our verifier made it.
    pub fn in_handshake(e: &rustls::Error) -> Option<&Self> {
        match e {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(source))) => source.downcast_ref(),
            _ => None,
        }
    }

    pub(crate) fn into_tls(self) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }
}

impl std::fmt::Display for RevokedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serial(s) => write!(f, "serial {s}"),
            Self::Id => f.write_str("its SPIFFE ID"),
            Self::IssuerKey(k) => write!(f, "issuer key {k}"),
        }
    }
}

#[cfg(test)]
mod tests;
