//! What is read: values with their revisions, log entries, the head, and a whole snapshot.

use std::sync::Arc;

use weft_model::{Revision, Wall};

use crate::txn::{Bytes, Key, TxnId};

/// A value and when it was made and last changed. Recreating a deleted key makes it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    pub value: Bytes,
    pub created: Revision,
    pub modified: Revision,
}

/// One committed transaction, as views fold it. A transaction that changed nothing is an entry without changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub revision: Revision,
    pub txn_id: TxnId,
    pub who: String,
    pub when: Wall,
    pub why: String,
    /// In the order of keys, each key once; a deleted prefix is spelled out.
    pub changes: Vec<Change>,
}

/// `before` is absent for a creation, `after` for a deletion; never both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub before: Option<Versioned>,
    pub after: Option<Versioned>,
}

/// The last commit: where the store stands, and who brought it there. Wall time is advisory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub revision: Revision,
    pub txn_id: TxnId,
    pub who: String,
    pub when: Wall,
    pub why: String,
}

/// What lies under a prefix at one revision: fold it, then `watch(revision)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub revision: Revision,
    pub items: Vec<(Key, Versioned)>,
}

/// How much of the log a store keeps for watches, reads of the past, and `lookup`: whatever is within *both* limits,
/// and at least the last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub entries: u64,
    pub bytes: u64,
}

// === impl Entry ===

impl Entry {
    pub fn head(&self) -> Head {
        let Self { revision, txn_id, who, when, why, .. } = self;
        Head { revision: *revision, txn_id: *txn_id, who: who.clone(), when: *when, why: why.clone() }
    }

    /// About what it takes to hold, in bytes.
    pub fn size(&self) -> usize {
        let value = |v: &Option<Versioned>| v.as_ref().map_or(0, |v| v.value.len());
        let changes = self.changes.iter().map(|c| c.key.len() + value(&c.before) + value(&c.after) + 64);
        changes.sum::<usize>() + self.who.len() + self.why.len() + 64
    }
}

// === impl Head ===

impl Head {
    /// Of a store that nobody has written to.
    pub fn initial() -> Self {
        Self {
            revision: Revision::ZERO,
            txn_id: TxnId::default(),
            who: String::new(),
            when: Wall::EPOCH,
            why: String::new(),
        }
    }
}

// === impl Range ===

impl Range {
    /// Takes back `later` (newest first), so that the range shows what was before them.
    pub(crate) fn undo<'a>(&mut self, prefix: &str, later: impl Iterator<Item = &'a Arc<Entry>>) {
        let mut rows: std::collections::BTreeMap<_, _> = std::mem::take(&mut self.items).into_iter().collect();
        for entry in later {
            for change in entry.changes.iter().filter(|c| c.key.starts_with(prefix)) {
                match &change.before {
                    Some(before) => rows.insert(change.key.clone(), before.clone()),
                    None => rows.remove(&change.key),
                };
            }
        }
        self.items = rows.into_iter().collect();
    }
}

impl Default for Keep {
    /// Enough that a replica that was away for minutes catches up from the log.
    fn default() -> Self {
        Self { entries: 100_000, bytes: 64 << 20 }
    }
}
