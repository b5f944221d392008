//! A whole store at one revision, and its bytes for a backup file.

use weft_model::Revision;

use crate::{
    entry::Versioned,
    txn::{Key, LEADER_KEY},
};

/// Every key at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    pub items: Vec<(Key, Versioned)>,
}

// === impl Snapshot ===

impl Snapshot {
    /// The rows as a restore writes them: made anew at its revision. Leadership is not restored: whoever held it when
    /// the snapshot was taken does not hold it now.
    pub(crate) fn rows_at(&self, revision: Revision) -> impl Iterator<Item = (Key, Versioned)> + '_ {
        let rows = self.items.iter().filter(|(key, _)| key.as_str() != LEADER_KEY);
        rows.map(move |(key, v)| {
            (key.clone(), Versioned { value: v.value.clone(), created: revision, modified: revision })
        })
    }
}
