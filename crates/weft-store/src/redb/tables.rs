//! **[format]** What stands in the file: rows, the log, the ids of its transactions, and one record of where it is.

use std::{
    fmt::Display,
    io,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use ::redb::{
    AccessGuard, Error, ReadTransaction, ReadableTable, ReadableTableMetadata, StorageError, Table, TableDefinition,
    WriteTransaction,
};
use weft_model::Revision;

use crate::{
    codec::{self, Malformed, Reader, Writer},
    decide::{self, Rows},
    entry::{Entry, Head, Keep, Range, Versioned},
    error::{CommitError, ReadError},
    snapshot::Snapshot,
    txn::{Key, Txn, TxnId},
};

const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
/// By `n`; the incarnation is the head's, since a restore starts an empty log.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// When the keys that are gone went, as far back as the log reaches.
const DELETED: TableDefinition<'_, &str, u64> = TableDefinition::new("deleted");
const TXNS: TableDefinition<'_, u128, u64> = TableDefinition::new("txns");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const LEVEL: &str = "feature_level";
const STATE: &str = "state";

/// How many entries one commit trims at most, so that a lowered limit does not stall it.
const TRIM_AT_ONCE: usize = 1024;

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub head: Head,
    /// The log holds what came after this.
    pub compacted: Revision,
    pub log_bytes: u64,
}

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    rows: Table<'t, &'static str, &'static [u8]>,
    deleted: Table<'t, &'static str, u64>,
    log: Table<'t, u64, &'static [u8]>,
    txns: Table<'t, u128, u64>,
    meta: Table<'t, &'static str, &'static [u8]>,
    pub state: State,
}

// === impl State ===

impl State {
    fn initial() -> Self {
        Self { head: Head::initial(), compacted: Revision::ZERO, log_bytes: 0 }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::record();
        w.revision(self.compacted).u64(self.log_bytes);
        codec::head(&mut w, &self.head);
        w.bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::record(bytes)?;
        let (compacted, log_bytes, head) = (r.revision()?, r.u64()?, r.head()?);
        r.end()?;
        Ok(Self { head, compacted, log_bytes })
    }
}

// === impl Tables ===

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, ReadError> {
        let (rows, log) = (txn.open_table(ROWS).map_err(failed)?, txn.open_table(LOG).map_err(failed)?);
        let (txns, meta) = (txn.open_table(TXNS).map_err(failed)?, txn.open_table(META).map_err(failed)?);
        let deleted = txn.open_table(DELETED).map_err(failed)?;
        let state = state_of(&meta)?;
        Ok(Self { rows, deleted, log, txns, meta, state })
    }

    /// `None` in a file that is no store yet.
    pub(super) fn level(&self) -> Result<Option<u32>, ReadError> {
        if let Some(level) = self.meta.get(LEVEL).map_err(failed)? {
            return level_of(&level).map(Some);
        }
        if self.state != State::initial() || self.rows.len().map_err(failed)? > 0 {
            return Err(broken("table meta", "the feature level is missing"));
        }
        Ok(None)
    }

    pub(super) fn set_level(&mut self, level: u32) -> Result<(), ReadError> {
        self.meta.insert(LEVEL, &level.to_be_bytes()[..]).map_err(failed)?;
        Ok(())
    }

    /// The revision after the last.
    pub(super) fn next(&self) -> Revision {
        let Revision { incarnation, n } = self.state.head.revision;
        Revision::new(incarnation, n.saturating_add(1))
    }

    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), ReadError> {
        self.apply(entry)?;
        let record = codec::entry(entry);
        self.state.log_bytes = self.state.log_bytes.saturating_add(record.len() as u64);
        self.log.insert(entry.revision.n, &record[..]).map_err(failed)?;
        Ok(())
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), ReadError> {
        for change in &entry.changes {
            let key = &*change.key;
            if let Some(after) = &change.after {
                self.rows.insert(key, &codec::row(after)[..]).map_err(failed)?;
                self.deleted.remove(key).map_err(failed)?;
            } else {
                self.rows.remove(key).map_err(failed)?;
                self.deleted.insert(key, entry.revision.n).map_err(failed)?;
            }
        }
        self.txns.insert(entry.txn_id.0, entry.revision.n).map_err(failed)?;
        self.state.head = entry.head();
        Ok(())
    }

    /// Replaces all rows, and begins an empty log at `revision`.
    pub(super) fn restore(&mut self, snapshot: &Snapshot, by: Txn, revision: Revision) -> Result<(), CommitError> {
        self.rows.retain(|_, _| false).map_err(failed)?;
        self.deleted.retain(|_, _| false).map_err(failed)?;
        self.log.retain(|_, _| false).map_err(failed)?;
        self.txns.retain(|_, _| false).map_err(failed)?;
        for (key, v) in snapshot.rows_at(revision) {
            self.rows.insert(&*key, &codec::row(&v)[..]).map_err(failed)?;
        }
        let entry = decide::effect(self, by, revision)?;
        self.apply(&entry)?;
        self.state.compacted = revision;
        self.state.log_bytes = 0;
        Ok(())
    }

    pub(super) fn compact(&mut self, up_to: Revision) -> Result<(), ReadError> {
        self.trim(|_, oldest| oldest > up_to.n)?;
        self.state.compacted = self.state.compacted.max(up_to);
        Ok(())
    }

    /// Forgets what is beyond the limits, but never the last entry.
    pub(super) fn trim_to(&mut self, keep: Keep) -> Result<(), ReadError> {
        let mut left = self.log.len().map_err(failed)?;
        let mut now = 0;
        let head = self.state.head.revision.n;
        self.trim(|state, oldest| {
            let fits = (left <= keep.entries && state.log_bytes <= keep.bytes) || oldest == head || now == TRIM_AT_ONCE;
            left = left.saturating_sub(1);
            now += 1;
            fits
        })
    }

    /// Forgets the oldest entries until `done`, which sees the state and the oldest entry's `n`.
    fn trim(&mut self, mut done: impl FnMut(&State, u64) -> bool) -> Result<(), ReadError> {
        loop {
            let oldest = self.log.first().map_err(failed)?.map(|(n, _)| n.value());
            let Some(oldest) = oldest.filter(|n| !done(&self.state, *n)) else { return Ok(()) };
            if let Some(record) = self.log.remove(oldest).map_err(failed)? {
                let entry = entry_of(oldest, &record)?;
                self.txns.remove(entry.txn_id.0).map_err(failed)?;
                for key in entry.changes.iter().filter(|c| c.after.is_none()).map(|c| &*c.key) {
                    if self.deleted.get(key).map_err(failed)?.is_some_and(|n| n.value() == oldest) {
                        self.deleted.remove(key).map_err(failed)?;
                    }
                }
                self.state.log_bytes = self.state.log_bytes.saturating_sub(record.value().len() as u64);
                self.state.compacted = entry.revision;
            }
        }
    }

    /// The last write of a transaction.
    pub(super) fn put_state(mut self) -> Result<State, ReadError> {
        self.meta.insert(STATE, &self.state.to_bytes()[..]).map_err(failed)?;
        Ok(self.state)
    }
}

impl Rows for Tables<'_> {
    fn head(&self) -> Revision {
        self.state.head.revision
    }

    fn get(&self, key: &str) -> Result<Option<Versioned>, CommitError> {
        Ok(get_row(&self.rows, key)?)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(Key, Versioned)>, CommitError> {
        Ok(scan_rows(&self.rows, prefix)?)
    }

    fn newest(&self, prefix: &str) -> Result<Option<Revision>, CommitError> {
        let mut newest = None;
        each_row(&self.rows, prefix, |_, record| {
            newest = newest.max(Some(codec::read_modified(record)?));
            Ok(())
        })?;
        Ok(newest)
    }

    fn last_deleted(&self, prefix: &str) -> Result<Option<Revision>, CommitError> {
        let mut last = None;
        for row in self.deleted.range(prefix..).map_err(failed)? {
            let (key, n) = row.map_err(failed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            last = last.max(Some(Revision::new(self.state.head.revision.incarnation, n.value())));
        }
        Ok(last)
    }

    fn committed(&self, txn: &Txn) -> Result<Option<Revision>, CommitError> {
        let n = self.txns.get(txn.txn_id.0).map_err(failed)?;
        Ok(n.map(|n| Revision::new(self.state.head.revision.incarnation, n.value())))
    }
}

// === reads ===

pub(super) fn state(txn: &ReadTransaction) -> Result<State, ReadError> {
    state_of(&txn.open_table(META).map_err(failed)?)
}

pub(super) fn get(txn: &ReadTransaction, key: &str) -> Result<Option<Versioned>, ReadError> {
    get_row(&txn.open_table(ROWS).map_err(failed)?, key)
}

pub(super) fn range(txn: &ReadTransaction, prefix: &str, at: Option<Revision>) -> Result<Range, ReadError> {
    let state = state(txn)?;
    let items = scan_rows(&txn.open_table(ROWS).map_err(failed)?, prefix)?;
    let mut range = Range { revision: state.head.revision, items };
    if let Some(at) = at {
        decide::reaches(at, state.compacted, state.head.revision)?;
        let later = entries_after(txn, at, usize::MAX)?;
        range.undo(prefix, later.iter().rev());
        range.revision = at;
    }
    Ok(range)
}

/// The oldest entries after `after`, at most `most`.
pub(super) fn entries_after(txn: &ReadTransaction, after: Revision, most: usize) -> Result<Vec<Arc<Entry>>, ReadError> {
    let state = state(txn)?;
    decide::reaches(after, state.compacted, state.head.revision)?;
    log_entries(&txn.open_table(LOG).map_err(failed)?, (Bound::Excluded(after.n), Bound::Unbounded), most)
}

pub(super) fn lookup(txn: &ReadTransaction, id: TxnId) -> Result<Option<Revision>, ReadError> {
    let n = txn.open_table(TXNS).map_err(failed)?.get(id.0).map_err(failed)?.map(|n| n.value());
    let incarnation = state(txn)?.head.revision.incarnation;
    Ok(n.map(|n| Revision::new(incarnation, n)))
}

// === helpers ===

fn state_of(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<State, ReadError> {
    let Some(record) = meta.get(STATE).map_err(failed)? else { return Ok(State::initial()) };
    State::from_bytes(record.value()).map_err(|e| broken("table meta, key state", e))
}

fn level_of(record: &AccessGuard<'_, &'static [u8]>) -> Result<u32, ReadError> {
    let level = record.value().try_into().map(u32::from_be_bytes);
    level.map_err(|_| broken("table meta, key feature_level", Malformed::Short))
}

fn entry_of(n: u64, record: &AccessGuard<'_, &'static [u8]>) -> Result<Entry, ReadError> {
    codec::read_entry(record.value()).map_err(|e| broken(format_args!("table log, entry {n}"), e))
}

fn log_entries(
    log: &impl ReadableTable<u64, &'static [u8]>,
    range: impl RangeBounds<u64>,
    most: usize,
) -> Result<Vec<Arc<Entry>>, ReadError> {
    let range = log.range(range).map_err(failed)?;
    let entry = |row: Result<(AccessGuard<'_, u64>, AccessGuard<'_, &'static [u8]>), StorageError>| {
        let (n, record) = row.map_err(failed)?;
        entry_of(n.value(), &record).map(Arc::new)
    };
    range.take(most).map(entry).collect()
}

fn get_row(rows: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<Versioned>, ReadError> {
    let Some(record) = rows.get(key).map_err(failed)? else { return Ok(None) };
    codec::read_row(record.value()).map(Some).map_err(|e| broken(format_args!("table rows, key `{key}`"), e))
}

fn scan_rows(
    rows: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
) -> Result<Vec<(Key, Versioned)>, ReadError> {
    let mut items = vec![];
    each_row(rows, prefix, |key, record| {
        items.push((Key::from(key), codec::read_row(record)?));
        Ok(())
    })?;
    Ok(items)
}

fn each_row(
    rows: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
    mut each: impl FnMut(&str, &[u8]) -> Result<(), Malformed>,
) -> Result<(), ReadError> {
    for row in rows.range(prefix..).map_err(failed)? {
        let (key, record) = row.map_err(failed)?;
        let key = key.value();
        if !key.starts_with(prefix) {
            break;
        }
        each(key, record.value()).map_err(|e| broken(format_args!("table rows, key `{key}`"), e))?;
    }
    Ok(())
}

pub(super) fn broken(at: impl Display, what: impl Display) -> ReadError {
    ReadError::Corrupt { at: at.to_string(), what: what.to_string() }
}

/// redb's error in our words.
pub(super) fn failed(e: impl Into<Error>) -> ReadError {
    match e.into() {
        Error::Io(e) => ReadError::Io { source: Arc::new(e) },
        Error::DatabaseClosed => ReadError::Closed,
        e @ (Error::PreviousIo | Error::LockPoisoned(_) | Error::Backend(_) | Error::Unsupported) => {
            ReadError::Io { source: Arc::new(io::Error::other(e)) }
        }
        e => broken("the file", e),
    }
}
