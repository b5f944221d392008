//! What the store keeps of the authorities of one kind: an append-and-advance list of slots.
//!
//! A slot goes prepared → active → old → gone. Every transition makes a new `Journal`, which is committed before anyone
//! acts on it; signers are only ever opened from a journal, so nothing is signed by a key that the store does not know.

use std::fmt;

use rustls_pki_types::CertificateDer;
use weft_identity::{Bundle, BundleError};
use weft_model::{TrustDomain, Wall};

use crate::codec::{DecodeError, Reader, Writer};

const FORMAT: u8 = 1;
const WHAT: &str = "journal of authorities";

/// Which authorities a journal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Root,
    /// Under a root; signs leaves.
    Signing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Known and (a root) trusted by everyone, but signs nothing yet.
    Prepared,
    Active,
    /// Signs nothing any more; what it signed may still live.
    Old,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub number: u64,
    pub status: Status,
    /// When its life began (not backdated).
    pub issued: Wall,
    pub not_after: Wall,
    pub certificate: CertificateDer<'static>,
    /// See [`crate::kek`]. Empty when the key is held elsewhere.
    pub sealed_key: Vec<u8>,
}

/// **[format]** by [`Journal::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    trust_domain: TrustDomain,
    kind: Kind,
    /// Ascending numbers.
    entries: Vec<Entry>,
    next_number: u64,
}

/// Why a transition is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    #[error("{kind} slot {number} is already prepared; activate it first")]
    AlreadyPrepared { kind: Kind, number: u64 },
    #[error("no {kind} slot is prepared; prepare one before activating")]
    NothingPrepared { kind: Kind },
    #[error("{kind} slot {number} expired at {not_after} before it was activated; prepare a new one")]
    PreparedExpired { kind: Kind, number: u64, not_after: Wall },
    #[error("{kind} slot {got} does not follow the journal, which expects number {want}; read the journal again")]
    Number { kind: Kind, got: u64, want: u64 },
}

// === impl Journal ===

impl Journal {
    pub fn new(trust_domain: TrustDomain, kind: Kind) -> Self {
        Self { trust_domain, kind, entries: Vec::new(), next_number: 1 }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn current(&self) -> Option<&Entry> {
        self.entries.iter().find(|e| e.status == Status::Active)
    }

    pub fn next(&self) -> Option<&Entry> {
        self.entries.iter().find(|e| e.status == Status::Prepared)
    }

    /// The number of the slot to prepare next: the sealed key is bound to it.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// With a new prepared slot. A prepared one that expired unused is replaced.
    pub fn prepare(&self, entry: Entry, now: Wall) -> Result<Self, JournalError> {
        let mut new = self.clone();
        new.entries.retain(|e| e.status != Status::Prepared || e.not_after > now);
        if let Some(e) = new.next() {
            return Err(JournalError::AlreadyPrepared { kind: self.kind, number: e.number });
        }
        if entry.number != self.next_number {
            return Err(JournalError::Number { kind: self.kind, got: entry.number, want: self.next_number });
        }
        new.next_number = self.next_number.saturating_add(1);
        new.entries.push(Entry { status: Status::Prepared, ..entry });
        new.check_invariants();
        Ok(new)
    }

    /// The prepared slot signs from now on, the one before it is old, and what has long expired is dropped.
    pub fn activate(&self, now: Wall) -> Result<Self, JournalError> {
        let next = self.next().ok_or(JournalError::NothingPrepared { kind: self.kind })?;
        if next.not_after <= now {
            let Entry { number, not_after, .. } = *next;
            return Err(JournalError::PreparedExpired { kind: self.kind, number, not_after });
        }
        let mut new = self.clone();
        for e in &mut new.entries {
            e.status = match e.status {
                Status::Prepared => Status::Active,
                Status::Active | Status::Old => Status::Old,
            };
        }
        new.entries.retain(|e| e.status != Status::Old || e.not_after > now);
        new.check_invariants();
        Ok(new)
    }

    /// Every certificate that peers must trust now: of roots, the prepared one included, before it signs anything.
    pub fn bundle(&self, now: Wall) -> Result<Bundle, BundleError> {
        let live = self.entries.iter().filter(|e| e.not_after > now);
        Bundle::new(self.trust_domain.clone(), live.map(|e| e.certificate.clone()).collect())
    }

    fn consistent(&self) -> bool {
        let count = |s| self.entries.iter().filter(|e| e.status == s).count();
        let ascending = self.entries.is_sorted_by(|a, b| a.number < b.number);
        let below = self.entries.iter().all(|e| e.number < self.next_number);
        // prepared comes after active, active after old: the order of numbers is the order of lives
        let rank = |e: &Entry| match e.status {
            Status::Old => 0,
            Status::Active => 1,
            Status::Prepared => 2,
        };
        count(Status::Active) <= 1
            && count(Status::Prepared) <= 1
            && ascending
            && below
            && self.entries.is_sorted_by_key(rank)
    }

    fn check_invariants(&self) {
        debug_assert!(self.consistent(), "{self:?}");
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new(FORMAT);
        w.text(self.trust_domain.as_str()).byte(self.kind.tag()).u64(self.next_number);
        w.u64(u64::try_from(self.entries.len()).unwrap_or(u64::MAX));
        for e in &self.entries {
            w.u64(e.number).byte(e.status.tag()).wall(e.issued).wall(e.not_after);
            w.bytes(&e.certificate).bytes(&e.sealed_key);
        }
        w.done()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes, WHAT, FORMAT)?;
        let trust_domain = TrustDomain::parse(r.text()?).map_err(|_| r.corrupt())?;
        let kind = Kind::from_tag(r.byte()?).ok_or_else(|| r.corrupt())?;
        let next_number = r.u64()?;
        let mut this = Self { trust_domain, kind, entries: Vec::new(), next_number };
        for _ in 0..r.u64()? {
            this.entries.push(Entry {
                number: r.u64()?,
                status: Status::from_tag(r.byte()?).ok_or_else(|| r.corrupt())?,
                issued: r.wall()?,
                not_after: r.wall()?,
                certificate: CertificateDer::from(r.bytes()?.to_vec()),
                sealed_key: r.bytes()?.to_vec(),
            });
        }
        r.done()?;
        if this.consistent() { Ok(this) } else { Err(DecodeError::Corrupt(WHAT)) }
    }
}

// === impl Kind, Status ===

impl Kind {
    fn tag(self) -> u8 {
        match self {
            Self::Root => 1,
            Self::Signing => 2,
        }
    }

    fn from_tag(tag: u8) -> Option<Self> {
        [Self::Root, Self::Signing].into_iter().find(|k| k.tag() == tag)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Signing => "signing",
        })
    }
}

impl Status {
    fn tag(self) -> u8 {
        match self {
            Self::Prepared => 1,
            Self::Active => 2,
            Self::Old => 3,
        }
    }

    fn from_tag(tag: u8) -> Option<Self> {
        [Self::Prepared, Self::Active, Self::Old].into_iter().find(|s| s.tag() == tag)
    }
}

#[cfg(test)]
mod tests;
