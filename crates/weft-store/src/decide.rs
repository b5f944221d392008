//! The decision of a commit, over any rows: do the expectations hold, and what changes.

use std::collections::BTreeMap;

use weft_model::Revision;

use crate::{
    entry::{Change, Entry, Versioned},
    error::{CommitError, ReadError},
    txn::{Expect, Key, KeyState, LEADER_KEY, Txn, Write},
};

/// What a store holds, as a commit in progress sees it: with the effects of those before it.
pub(crate) trait Rows {
    fn head(&self) -> Revision;
    fn get(&self, key: &str) -> Result<Option<Versioned>, CommitError>;
    fn scan(&self, prefix: &str) -> Result<Vec<(Key, Versioned)>, CommitError>;
    /// The last write under `prefix`.
    fn newest(&self, prefix: &str) -> Result<Option<Revision>, CommitError>;
    /// The last deletion under `prefix`, as far back as the log reaches; `None` also where the store does not keep it.
    fn last_deleted(&self, prefix: &str) -> Result<Option<Revision>, CommitError>;
    fn committed(&self, txn: &Txn) -> Result<Option<Revision>, CommitError>;
}

/// The entry that `txn` becomes at `revision`, when all its expectations hold.
pub(crate) fn decide(rows: &impl Rows, txn: Txn, revision: Revision) -> Result<Entry, CommitError> {
    may_commit(rows, &txn)?;
    effect(rows, txn, revision)
}

/// Everything that can refuse `txn`.
pub(crate) fn may_commit(rows: &impl Rows, txn: &Txn) -> Result<(), CommitError> {
    txn.check()?;
    if let Some(revision) = rows.committed(txn)? {
        return Err(CommitError::AlreadyCommitted { txn_id: txn.txn_id, revision });
    }
    for expect in &txn.expects {
        if let Err(found) = holds(rows, expect)? {
            return Err(CommitError::Conflict { expect: expect.clone(), found });
        }
    }
    Ok(())
}

/// What `txn`, which may commit, does to `rows`.
pub(crate) fn effect(rows: &impl Rows, txn: Txn, revision: Revision) -> Result<Entry, CommitError> {
    let changes = changes(rows, &txn, revision)?;
    let Txn { txn_id, who, when, why, .. } = txn;
    Ok(Entry { revision, txn_id, who, when, why, changes })
}

/// The first revision after a restore of a snapshot taken at `snapshot` into a store at `head`: of an incarnation that
/// neither has seen, and above both, since some clients compare `n` alone.
pub(crate) fn after_restore(head: Revision, snapshot: Revision) -> Revision {
    Revision::new(
        head.incarnation.max(snapshot.incarnation).saturating_add(1),
        head.n.max(snapshot.n).saturating_add(1),
    )
}

/// Whether the log, which holds what came after `compacted` up to `head`, can show what came after `from`.
pub(crate) fn reaches(from: Revision, compacted: Revision, head: Revision) -> Result<(), ReadError> {
    if from.incarnation != head.incarnation {
        return Err(ReadError::OtherIncarnation { from, head });
    }
    if from > head {
        return Err(ReadError::Ahead { from, head });
    }
    if from < compacted {
        return Err(ReadError::Compacted { from, oldest: compacted });
    }
    Ok(())
}

/// `Err` carries what was found instead.
fn holds(rows: &impl Rows, expect: &Expect) -> Result<Result<(), Option<Revision>>, CommitError> {
    let key_is = |key: &str, want: Option<Revision>| -> Result<_, CommitError> {
        let found = rows.get(key)?.map(|v| v.modified);
        Ok(if found == want { Ok(()) } else { Err(found) })
    };
    match expect {
        Expect::Key { key, state: KeyState::Absent } => key_is(key, None),
        Expect::Key { key, state: KeyState::ModRevision(r) } => key_is(key, Some(*r)),
        Expect::Leader { term } => key_is(LEADER_KEY, Some(*term)),
        Expect::Prefix { prefix, unchanged_since: since } => {
            let last = rows.newest(prefix)?.max(rows.last_deleted(prefix)?);
            // Revisions of different incarnations do not compare.
            let changed = since.incarnation != rows.head().incarnation || last.is_some_and(|r| r > *since);
            Ok(if changed { Err(last) } else { Ok(()) })
        }
    }
}

fn changes(rows: &impl Rows, txn: &Txn, revision: Revision) -> Result<Vec<Change>, CommitError> {
    let mut changes = BTreeMap::new();
    for (key, write) in &txn.writes {
        let before = rows.get(key)?;
        let after = match write {
            Write::Put(value) => {
                let created = before.as_ref().map_or(revision, |b| b.created);
                Some(Versioned { value: value.clone(), created, modified: revision })
            }
            Write::Delete => None,
        };
        if before.is_some() || after.is_some() {
            changes.insert(key.clone(), Change { key: key.clone(), before, after });
        }
    }
    for prefix in &txn.delete_prefixes {
        for (key, before) in rows.scan(prefix)? {
            changes.insert(key.clone(), Change { key, before: Some(before), after: None });
        }
    }
    Ok(changes.into_values().collect())
}
