//! When authorities follow each other, and the steps themselves.
//!
//! Each step is: make the new [`Journal`] → commit it → open signers from it. Thresholds are functions of one slot's own
//! life, so that roots of ten years and signing slots of seven days share one machine.

use std::time::Duration;

use weft_identity::{
    CsrError,
    csr::KeyPair,
    seal::{Kek, SealError},
};
use weft_model::{TrustDomain, Wall};

use crate::{
    issue::{IssueError, Signer, SignerError, random_serial, self_sign},
    journal::{Entry, Journal, JournalError, Kind, Status},
    kek,
    template::{self, Template},
    validate,
};

/// A successor is never prepared earlier than this before the end, however long the life.
const PREPARE_AT_MOST: Duration = Duration::from_secs(365 * 24 * 3600);
const ACTIVATE_AT_MOST: Duration = Duration::from_secs(180 * 24 * 3600);

/// What the authorities of one kind need now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    Prepare,
    Activate,
}

/// The two journals with which a mesh begins, to be committed together with the trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstStart {
    pub roots: Journal,
    pub signing: Journal,
}

/// Why a slot could not be made or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("there is no active {0} slot; was the first start completed?")]
    NoCurrent(Kind),
    #[error("the {kind} slot's key is not kept here; ask the replica that holds it")]
    KeyElsewhere { kind: Kind },
    #[error("no root that signed {kind} slot {number} is in the journal of roots")]
    NoRoot { kind: Kind, number: u64 },
    #[error("a new {kind} key cannot be made")]
    Key {
        kind: Kind,
        #[source]
        source: CsrError,
    },
    #[error("the key of the {kind} slot cannot be sealed or opened")]
    Seal {
        kind: Kind,
        #[source]
        source: SealError,
    },
    #[error("the {kind} certificate was not issued")]
    Issue {
        kind: Kind,
        #[source]
        source: IssueError,
    },
    #[error("the {kind} slot does not fit its journal")]
    Journal {
        kind: Kind,
        #[source]
        source: JournalError,
    },
    #[error("the {kind} slot cannot sign")]
    Signer {
        kind: Kind,
        #[source]
        source: SignerError,
    },
}

// === decisions ===

/// Half of its life is over: make the successor, so that it can be distributed in peace.
pub fn should_prepare(now: Wall, issued: Wall, not_after: Wall) -> bool {
    remaining_within(now, issued, not_after, 2, PREPARE_AT_MOST)
}

/// A third of its life remains: let the successor sign, before leaves would have to be cut short.
pub fn should_activate(now: Wall, issued: Wall, not_after: Wall) -> bool {
    remaining_within(now, issued, not_after, 3, ACTIVATE_AT_MOST)
}

pub fn plan(now: Wall, journal: &Journal) -> Step {
    let next = journal.next().filter(|e| e.not_after > now);
    match (journal.current(), next) {
        (Some(c), Some(_)) if should_activate(now, c.issued, c.not_after) => Step::Activate,
        (Some(_), Some(_)) => Step::Nothing,
        (Some(c), None) if should_prepare(now, c.issued, c.not_after) => Step::Prepare,
        (Some(_), None) => Step::Nothing,
        (None, Some(_)) => Step::Activate,
        (None, None) => Step::Prepare,
    }
}

fn remaining_within(now: Wall, issued: Wall, not_after: Wall, share: u32, cap: Duration) -> bool {
    let threshold = (not_after.since(issued) / share).min(cap);
    not_after.since(now) <= threshold
}

// === steps ===

/// Root and signing slot of a new mesh, both active.
pub fn first_start(td: &TrustDomain, kek: &Kek, now: Wall) -> Result<FirstStart, SlotError> {
    let roots = prepare_root(&Journal::new(td.clone(), Kind::Root), kek, now)?;
    let roots = activate(&roots, now)?;
    let root = root_signer(&roots, kek)?;
    let signing = prepare_signing(&Journal::new(td.clone(), Kind::Signing), &root, kek, now)?;
    Ok(FirstStart { roots, signing: activate(&signing, now)? })
}

/// A journal with a new self-signed root, prepared. It is to be trusted by everyone before it is activated.
pub fn prepare_root(journal: &Journal, kek: &Kek, now: Wall) -> Result<Journal, SlotError> {
    let kind = Kind::Root;
    let issue = |source| SlotError::Issue { kind, source };
    let key = KeyPair::generate().map_err(|source| SlotError::Key { kind, source })?;
    let number = journal.next_number();
    let serial = random_serial().map_err(issue)?;
    let template = template::root(&key.public_key(), number, journal.trust_domain(), serial, now)
        .map_err(|e| issue(IssueError::Template(e)))?;
    let certificate = self_sign(&template, &key).map_err(issue)?;
    validate::check_root(&template, &certificate)
        .map_err(|source| issue(IssueError::Invalid { id: template.id.to_string(), source }))?;
    append(journal, &template, number, certificate, &key, kek, now)
}

/// A journal with a new signing slot under `root`, prepared.
pub fn prepare_signing(journal: &Journal, root: &Signer, kek: &Kek, now: Wall) -> Result<Journal, SlotError> {
    let kind = Kind::Signing;
    let issue = |source| SlotError::Issue { kind, source };
    let key = KeyPair::generate().map_err(|source| SlotError::Key { kind, source })?;
    let number = journal.next_number();
    let serial = random_serial().map_err(issue)?;
    let template = template::signing_slot(&key.public_key(), number, root.bounds(), serial, now)
        .map_err(|e| issue(IssueError::Template(e)))?;
    let mut issued = root.sign(&template).map_err(issue)?;
    let certificate = issued.chain.swap_remove(0);
    append(journal, &template, number, certificate, &key, kek, now)
}

/// The prepared slot becomes the signing one. Commit the result before opening it.
pub fn activate(journal: &Journal, now: Wall) -> Result<Journal, SlotError> {
    journal.activate(now).map_err(|source| SlotError::Journal { kind: journal.kind(), source })
}

fn append(
    journal: &Journal,
    template: &Template,
    number: u64,
    certificate: rustls_pki_types::CertificateDer<'static>,
    key: &KeyPair,
    kek: &Kek,
    now: Wall,
) -> Result<Journal, SlotError> {
    let kind = journal.kind();
    let sealed_key =
        kek::wrap(kek, journal.trust_domain(), kind, number, key).map_err(|source| SlotError::Seal { kind, source })?;
    let entry =
        Entry { number, status: Status::Prepared, issued: now, not_after: template.not_after, certificate, sealed_key };
    journal.prepare(entry, now).map_err(|source| SlotError::Journal { kind, source })
}

// === signers ===

/// The active root, to sign slots with.
pub fn root_signer(roots: &Journal, kek: &Kek) -> Result<Signer, SlotError> {
    let entry = roots.current().ok_or(SlotError::NoCurrent(Kind::Root))?;
    open(roots, entry, entry, kek)
}

/// The active signing slot, to issue leaves with.
pub fn current_signer(signing: &Journal, roots: &Journal, kek: &Kek) -> Result<Signer, SlotError> {
    let kind = signing.kind();
    let entry = signing.current().ok_or(SlotError::NoCurrent(kind))?;
    let root = roots
        .entries()
        .iter()
        .find(|r| validate::signed_by(&entry.certificate, &r.certificate))
        .ok_or(SlotError::NoRoot { kind, number: entry.number })?;
    open(signing, entry, root, kek)
}

fn open(journal: &Journal, entry: &Entry, root: &Entry, kek: &Kek) -> Result<Signer, SlotError> {
    let (kind, td) = (journal.kind(), journal.trust_domain());
    if entry.sealed_key.is_empty() {
        return Err(SlotError::KeyElsewhere { kind });
    }
    let key = kek::unwrap(kek, td, kind, entry.number, &entry.sealed_key)
        .map_err(|source| SlotError::Seal { kind, source })?;
    Signer::new(td.clone(), kind, entry.certificate.clone(), root.certificate.clone(), key)
        .map_err(|source| SlotError::Signer { kind, source })
}

#[cfg(test)]
mod tests;
