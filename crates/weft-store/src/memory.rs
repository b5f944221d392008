//! The store in memory: for `weft dev`, tests, and, in its etcd-like mode, for everything that etcd does differently.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use weft_model::Revision;

use crate::{
    Done, Store,
    decide::{self, Rows},
    dice::Dice,
    entry::{Entry, Head, Keep, Range, Versioned},
    error::{CommitError, ReadError, WatchError},
    snapshot::Snapshot,
    txn::{Key, Txn, TxnId},
    watch::{BATCH, Source, Step, Wakers, Watch, lock},
};

pub struct Memory {
    shared: Arc<Shared>,
}

/// What makes the memory store behave as etcd does. Beside the faults: revisions are sparse, and expecting a prefix is
/// blind to deletions. Sizes and duplicate keys are refused alike by every store.
#[derive(Debug, Clone)]
pub struct EtcdLike {
    pub dice: Dice,
    /// Of a thousand commits, how many end `Unknown`, half of them applied.
    pub unknown_per_mille: u16,
    /// Of a thousand reads of a watch, how many find that nothing has arrived yet, or only a part.
    pub hold_per_mille: u16,
    /// How many revisions others (other users of the etcd) take between two of ours, at most.
    pub gap: u64,
}

struct Shared {
    state: Mutex<State>,
    wakers: Wakers,
    held: AtomicBool,
}

struct State {
    rows: BTreeMap<Key, Versioned>,
    /// When the keys that are gone went, as far back as the log reaches.
    deleted: BTreeMap<Key, Revision>,
    log: VecDeque<Arc<Entry>>,
    log_bytes: u64,
    txns: BTreeMap<TxnId, Revision>,
    head: Head,
    compacted: Revision,
    keep: Keep,
    etcd: Option<EtcdLike>,
}

// === impl Memory ===

impl Memory {
    pub fn new() -> Self {
        Self::with(Keep::default(), None)
    }

    /// Revisions are sparse and deletions invisible to prefixes; no faults.
    pub fn etcd_like(seed: u64) -> Self {
        Self::with(Keep::default(), Some(EtcdLike::calm(seed)))
    }

    pub fn with(keep: Keep, etcd: Option<EtcdLike>) -> Self {
        let state = State {
            rows: BTreeMap::new(),
            deleted: BTreeMap::new(),
            log: VecDeque::new(),
            log_bytes: 0,
            txns: BTreeMap::new(),
            head: Head::initial(),
            compacted: Revision::ZERO,
            keep,
            etcd,
        };
        let held = AtomicBool::new(false);
        Self { shared: Arc::new(Shared { state: Mutex::new(state), wakers: Wakers::default(), held }) }
    }

    /// While held, watches see nothing new: a view falls behind. Releasing wakes them.
    pub fn hold_watches(&self, held: bool) {
        self.shared.held.store(held, Ordering::SeqCst);
        self.shared.wakers.wake_all();
    }

    /// A commit, and whether its outcome reaches the caller.
    fn commit_one(&self, txn: Txn) -> Result<Revision, CommitError> {
        let mut state = lock(&self.shared.state);
        let txn_id = txn.txn_id;
        let (lost, applied) = state.etcd.as_mut().map_or((false, true), |e| {
            let lost = e.dice.chance(e.unknown_per_mille);
            (lost, !lost || e.dice.chance(500))
        });
        let unknown = Err(CommitError::Unknown { txn_id, source: None });
        if !applied {
            return unknown;
        }
        let revision = state.next();
        let outcome = decide::decide(&*state, txn, revision).map(|entry| state.append(entry));
        if lost { unknown } else { outcome }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for Memory {
    fn submit_all(&self, batch: Vec<(Txn, Done)>) {
        for (txn, done) in batch {
            let outcome = self.commit_one(txn);
            self.shared.wakers.wake_all();
            done(outcome);
        }
    }

    fn head(&self) -> Result<Head, ReadError> {
        Ok(lock(&self.shared.state).head.clone())
    }

    fn get(&self, key: &str) -> Result<Option<Versioned>, ReadError> {
        Ok(lock(&self.shared.state).rows.get(key).cloned())
    }

    fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Range, ReadError> {
        let state = lock(&self.shared.state);
        let head = state.head.revision;
        let items = under(&state.rows, prefix).map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut range = Range { revision: head, items };
        if let Some(at) = at {
            decide::reaches(at, state.compacted, head)?;
            range.undo(prefix, state.log.iter().rev().take_while(|e| e.revision > at));
            range.revision = at;
        }
        Ok(range)
    }

    fn watch(&self, after: Revision) -> Result<Watch, WatchError> {
        let state = lock(&self.shared.state);
        decide::reaches(after, state.compacted, state.head.revision)?;
        Ok(Watch::new(self.shared.clone(), after))
    }

    fn lookup(&self, txn_id: TxnId) -> Result<Option<Revision>, ReadError> {
        Ok(lock(&self.shared.state).txns.get(&txn_id).copied())
    }

    fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let Range { revision, items } = self.range("", None)?;
        Ok(Snapshot { revision, items })
    }

    fn restore(&self, snapshot: &Snapshot, by: Txn) -> Result<Revision, CommitError> {
        let mut state = lock(&self.shared.state);
        decide::may_commit(&*state, &by)?;
        let revision = decide::after_restore(state.head.revision, snapshot.revision);
        state.rows = snapshot.rows_at(revision).collect();
        state.deleted.clear();
        let entry = decide::effect(&*state, by, revision)?;
        let txn_id = entry.txn_id;
        state.append(entry);
        state.compact(revision);
        state.txns = BTreeMap::from([(txn_id, revision)]);
        drop(state);
        self.shared.wakers.wake_all();
        Ok(revision)
    }

    fn compact(&self, up_to: Revision) -> Result<(), ReadError> {
        let mut state = lock(&self.shared.state);
        let head = state.head.revision;
        match decide::reaches(up_to, state.compacted, head) {
            Err(ReadError::Compacted { .. }) => return Ok(()),
            other => other?,
        }
        state.compact(up_to);
        Ok(())
    }
}

// === impl EtcdLike ===

impl EtcdLike {
    pub const fn calm(seed: u64) -> Self {
        Self { dice: Dice::seeded(seed), unknown_per_mille: 0, hold_per_mille: 0, gap: 3 }
    }

    pub const fn faulty(seed: u64) -> Self {
        Self { dice: Dice::seeded(seed), unknown_per_mille: 100, hold_per_mille: 300, gap: 3 }
    }
}

// === impl Shared ===

impl Source for Shared {
    fn after(&self, after: Revision) -> Result<Step, WatchError> {
        let mut state = lock(&self.state);
        decide::reaches(after, state.compacted, state.head.revision)?;
        let first = state.log.partition_point(|e| e.revision <= after);
        let mut most = state.log.len().saturating_sub(first).min(BATCH);
        if most == 0 || self.held.load(Ordering::SeqCst) {
            return Ok(Step::Idle);
        }
        if let Some(e) = &mut state.etcd
            && e.dice.chance(e.hold_per_mille)
        {
            most = usize::try_from(e.dice.below(most as u64)).unwrap_or(0);
        }
        if most == 0 {
            return Ok(Step::Held);
        }
        Ok(Step::Entries(state.log.range(first..first + most).cloned().collect()))
    }

    fn wakers(&self) -> &Wakers {
        &self.wakers
    }
}

// === impl State ===

impl State {
    fn next(&mut self) -> Revision {
        let skipped = self.etcd.as_mut().map_or(0, |e| e.dice.below(e.gap + 1));
        let Revision { incarnation, n } = self.head.revision;
        Revision::new(incarnation, n.saturating_add(1).saturating_add(skipped))
    }

    fn append(&mut self, entry: Entry) -> Revision {
        for change in &entry.changes {
            if let Some(after) = &change.after {
                self.rows.insert(change.key.clone(), after.clone());
                self.deleted.remove(&change.key);
            } else {
                self.rows.remove(&change.key);
                self.deleted.insert(change.key.clone(), entry.revision);
            }
        }
        self.head = entry.head();
        self.txns.insert(entry.txn_id, entry.revision);
        self.log_bytes += entry.size() as u64;
        self.log.push_back(Arc::new(entry));
        while self.log.len() > 1 && (self.log.len() as u64 > self.keep.entries || self.log_bytes > self.keep.bytes) {
            self.forget_oldest();
        }
        self.head.revision
    }

    fn compact(&mut self, up_to: Revision) {
        while self.log.front().is_some_and(|e| e.revision <= up_to) {
            self.forget_oldest();
        }
        self.compacted = self.compacted.max(up_to);
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.log.pop_front() {
            self.log_bytes -= entry.size() as u64;
            self.txns.remove(&entry.txn_id);
            for change in &entry.changes {
                if self.deleted.get(&change.key) == Some(&entry.revision) {
                    self.deleted.remove(&change.key);
                }
            }
            self.compacted = entry.revision;
        }
    }
}

impl Rows for State {
    fn head(&self) -> Revision {
        self.head.revision
    }

    fn get(&self, key: &str) -> Result<Option<Versioned>, CommitError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(Key, Versioned)>, CommitError> {
        Ok(under(&self.rows, prefix).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn newest(&self, prefix: &str) -> Result<Option<Revision>, CommitError> {
        Ok(under(&self.rows, prefix).map(|(_, v)| v.modified).max())
    }

    fn last_deleted(&self, prefix: &str) -> Result<Option<Revision>, CommitError> {
        if self.etcd.is_some() {
            return Ok(None);
        }
        Ok(under(&self.deleted, prefix).map(|(_, r)| *r).max())
    }

    fn committed(&self, txn: &Txn) -> Result<Option<Revision>, CommitError> {
        Ok(self.txns.get(&txn.txn_id).copied())
    }
}

fn under<'a, V>(map: &'a BTreeMap<Key, V>, prefix: &'a str) -> impl Iterator<Item = (&'a Key, &'a V)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).take_while(move |(k, _)| k.starts_with(prefix))
}
