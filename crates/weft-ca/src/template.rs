//! What a certificate will say, decided before any key is touched, from parameters only.
//!
//! A request contributes a public key; names, uses, dates and constraints come from the caller's knowledge of who is
//! asking. Every certificate of ours names exactly one SPIFFE ID.

use std::time::Duration;

use weft_identity::{BACKDATE, KeyHash, PublicKey, Serial};
use weft_model::{SpiffeId, TrustDomain, Wall};

use crate::{journal::Kind, ledger::LedgerRecord};

/// Leaf lifetime when nobody says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest leaf lifetime: 90 days.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Shortest: below it a certificate would expire on its way.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// DNS names in one leaf.
pub const MAX_DNS_NAMES: usize = 64;
/// Lifetime of a root.
pub const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Lifetime of a signing slot.
pub const SIGNING_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Clocks beyond this (year 9000) would not fit a certificate's dates once a lifetime is added.
const MAX_CLOCK: Wall = Wall::secs(221_845_392_000);

/// Who shall get a certificate. `dns_names` are for peers outside the mesh that check names; inside nobody reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    pub id: SpiffeId,
    pub public_key: PublicKey,
    pub ttl: Duration,
    pub dns_names: Vec<String>,
}

/// Everything that a certificate will say, except who signs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub id: SpiffeId,
    pub public_key: PublicKey,
    pub serial: Serial,
    pub not_before: Wall,
    pub not_after: Wall,
    pub form: Form,
    /// Key of the signer that this was made for.
    pub issuer: KeyHash,
    /// When it was decided; the ledger's date.
    pub decided: Wall,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    Leaf {
        dns_names: Vec<String>,
    },
    /// An authority of its own slot.
    Authority {
        kind: Kind,
        number: u64,
        path_len: u8,
    },
}

/// What a template needs to know of its signer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds<'a> {
    pub trust_domain: &'a TrustDomain,
    pub not_before: Wall,
    pub not_after: Wall,
    pub key: KeyHash,
}

/// Why nothing will be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("{id} is not of trust domain {trust_domain}, which is all that this authority signs for")]
    ForeignTrustDomain { id: SpiffeId, trust_domain: TrustDomain },
    #[error("{0} names the trust domain itself; a workload's ID has a path such as /ns/default/sa/web")]
    NoPath(SpiffeId),
    #[error("lifetime of {0:?} for {1} is out of bounds; ask for 1 s to 90 days")]
    Ttl(Duration, SpiffeId),
    #[error("`{name}` is no DNS name to certify for {id}")]
    DnsName { name: String, id: SpiffeId },
    #[error("{n} DNS names for {id} are too many, at most {MAX_DNS_NAMES} are signed")]
    DnsNames { n: usize, id: SpiffeId },
    #[error("the signing authority expired at {not_after}, it is now {now}; look at `weft ca status`")]
    SignerExpired { not_after: Wall, now: Wall },
    #[error("the clock says {0}, which no certificate can hold; set the clock")]
    Clock(Wall),
}

/// The template of a leaf. `serial` is fresh randomness.
pub fn leaf(issue: &Issue, signer: Bounds<'_>, serial: Serial, now: Wall) -> Result<Template, TemplateError> {
    let id = || issue.id.clone();
    if issue.id.trust_domain_str() != signer.trust_domain.as_str() {
        return Err(TemplateError::ForeignTrustDomain { id: id(), trust_domain: signer.trust_domain.clone() });
    }
    if issue.id.path().is_empty() {
        return Err(TemplateError::NoPath(id()));
    }
    if issue.ttl < MIN_TTL || issue.ttl > MAX_TTL {
        return Err(TemplateError::Ttl(issue.ttl, id()));
    }
    if issue.dns_names.len() > MAX_DNS_NAMES {
        return Err(TemplateError::DnsNames { n: issue.dns_names.len(), id: id() });
    }
    if let Some(bad) = issue.dns_names.iter().find(|n| !is_dns_name(n)) {
        return Err(TemplateError::DnsName { name: bad.chars().take(64).collect(), id: id() });
    }
    let (not_before, not_after) = dates(signer, issue.ttl, now)?;
    Ok(Template {
        id: id(),
        public_key: issue.public_key.clone(),
        serial,
        not_before,
        not_after,
        form: Form::Leaf { dns_names: issue.dns_names.clone() },
        issuer: signer.key,
        decided: now,
    })
}

/// The template of a signing slot under a root: it signs leaves and nothing else.
pub fn signing_slot(
    public_key: &PublicKey,
    number: u64,
    root: Bounds<'_>,
    serial: Serial,
    now: Wall,
) -> Result<Template, TemplateError> {
    let (not_before, not_after) = dates(root, SIGNING_TTL, now)?;
    Ok(Template {
        id: SpiffeId::authority(root.trust_domain),
        public_key: public_key.clone(),
        serial,
        not_before,
        not_after,
        form: Form::Authority { kind: Kind::Signing, number, path_len: 0 },
        issuer: root.key,
        decided: now,
    })
}

/// The template of a self-signed root.
pub fn root(
    public_key: &PublicKey,
    number: u64,
    td: &TrustDomain,
    serial: Serial,
    now: Wall,
) -> Result<Template, TemplateError> {
    let own = Bounds {
        trust_domain: td,
        not_before: now.minus(BACKDATE),
        not_after: now.plus(ROOT_TTL),
        key: public_key.hash(),
    };
    let (not_before, not_after) = dates(own, ROOT_TTL, now)?;
    Ok(Template {
        id: SpiffeId::authority(td),
        public_key: public_key.clone(),
        serial,
        not_before,
        not_after,
        form: Form::Authority { kind: Kind::Root, number, path_len: 1 },
        issuer: public_key.hash(),
        decided: now,
    })
}

// === impl Template ===

impl Template {
    /// What the ledger keeps; to be committed before [`crate::Signer::sign`].
    pub fn record(&self, node: &str) -> LedgerRecord {
        LedgerRecord {
            serial: self.serial.clone(),
            id: self.id.clone(),
            node: node.to_owned(),
            issued: self.decided,
            not_after: self.not_after,
            issuer: self.issuer,
        }
    }

    /// The distinguished name: unique to the key for authorities (two roots of one name would confuse verifiers), empty
    /// for leaves, whose only name is the SPIFFE ID.
    pub fn common_name(&self) -> Option<String> {
        match &self.form {
            Form::Leaf { .. } => None,
            Form::Authority { kind, number, .. } => {
                let key: String = self.public_key.hash().to_string().chars().take(16).collect();
                // a common name holds 64 characters at most: the trust domain may be longer and stands in the URI
                Some(format!("weft {kind} {number} {key}"))
            }
        }
    }
}

/// Backdated against clocks that are behind, never beyond the signer in either direction; whole seconds, because that is
/// what a certificate holds.
fn dates(signer: Bounds<'_>, ttl: Duration, now: Wall) -> Result<(Wall, Wall), TemplateError> {
    if now < Wall::EPOCH.plus(BACKDATE) || now > MAX_CLOCK {
        return Err(TemplateError::Clock(now));
    }
    if now >= signer.not_after {
        return Err(TemplateError::SignerExpired { not_after: signer.not_after, now });
    }
    let not_before = now.minus(BACKDATE).max(signer.not_before);
    let not_after = now.plus(ttl).min(signer.not_after);
    Ok((Wall::secs(not_before.as_secs()), Wall::secs(not_after.as_secs())))
}

/// Lower-case letters, digits, hyphens; a wildcard would certify names that nobody registered.
fn is_dns_name(s: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    s.len() <= 253 && s.split('.').all(label)
}

#[cfg(test)]
mod tests;
