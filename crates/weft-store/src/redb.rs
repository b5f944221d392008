//! The store of one server, in a redb file.
//!
//! One thread commits. It takes whatever has been submitted meanwhile, gives each transaction its own revision, and makes
//! all of them durable with one sync; only then does anyone hear of them. Any failed access makes redb unusable until it
//! is reopened; reopening also tells which transactions of a failed commit are in the file.

mod disk;
mod open;
mod tables;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard},
    thread::{self, JoinHandle},
};

use ::redb::{Database, ReadTransaction, ReadableDatabase};
use weft_model::Revision;

pub use self::{disk::Backends, open::FEATURE_LEVEL};
use self::{
    open::Place,
    tables::{State, Tables, failed},
};
use crate::{
    Done, Store, decide,
    entry::{Entry, Head, Keep, Range, Versioned},
    error::{CommitError, OpenError, ReadError, WatchError},
    snapshot::Snapshot,
    txn::{Txn, TxnId},
    watch::{BATCH, Source, Step, Wakers, Watch, lock},
};

/// A store file. While it is open, no other process can open it.
pub struct Redb {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    place: Place,
    keep: Keep,
    /// Held by whoever writes, until a failure is dealt with.
    writing: Mutex<()>,
    db: RwLock<Db>,
    tail: Mutex<Tail>,
    queue: Mutex<Queue>,
    submitted: Condvar,
    wakers: Wakers,
}

enum Db {
    Open(Database),
    /// The disk takes no writes, not even those of opening: this shows what is in the file.
    ReadOnly(Database, CommitError),
    Broken(CommitError),
    Closed,
}

/// The end of the log, for the watches that are up to date: most of them, most of the time.
struct Tail {
    state: State,
    /// `recent` holds what came after this.
    base: Revision,
    recent: VecDeque<Arc<Entry>>,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Txn, Done)>,
    closed: bool,
}

/// What one write transaction of redb did.
struct Written {
    outcomes: Vec<Result<Revision, CommitError>>,
    entries: Vec<Arc<Entry>>,
    state: State,
}

/// At what point it failed.
enum Failure {
    /// Nothing was written.
    Before(CommitError),
    /// Perhaps it is in the file.
    During(CommitError, Written),
}

/// The most transactions, and bytes of them, under one sync.
const GROUP: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;
const RECENT: usize = 1024;
const RECENT_BYTES: usize = 4 << 20;

// === impl Redb ===

impl Redb {
    /// Opens the store at `path`, which is made when there is none; its directory must exist. Reads the whole file once.
    pub fn open(path: &Path, keep: Keep) -> Result<Self, OpenError> {
        Self::at(open::file(path)?, keep)
    }

    /// On any storage: `name` is for messages.
    pub fn open_on(name: PathBuf, backends: Backends, keep: Keep) -> Result<Self, OpenError> {
        Self::at(Place::new(name, backends), keep)
    }

    fn at(place: Place, keep: Keep) -> Result<Self, OpenError> {
        let db = place.open_verified()?;
        let state = db.begin_read().map_err(failed).and_then(|txn| tables::state(&txn));
        let state = state.map_err(|e| OpenError::Corrupt { path: place.name.clone(), what: e.to_string() })?;
        let name = place.name.clone();
        let shared = Arc::new(Shared {
            place,
            keep,
            writing: Mutex::default(),
            db: RwLock::new(Db::Open(db)),
            tail: Mutex::new(Tail::new(state)),
            queue: Mutex::default(),
            submitted: Condvar::new(),
            wakers: Wakers::default(),
        });
        let its = shared.clone();
        let committer = thread::Builder::new().name("weft-store".into()).spawn(move || its.commit_until_closed());
        let committer = committer.map_err(|source| OpenError::Io { path: name, source })?;
        Ok(Self { shared, committer: Some(committer) })
    }
}

impl Store for Redb {
    fn submit_all(&self, batch: Vec<(Txn, Done)>) {
        let mut queue = lock(&self.shared.queue);
        if queue.closed {
            drop(queue);
            return batch.into_iter().for_each(|(_, done)| done(Err(CommitError::Closed)));
        }
        queue.waiting.extend(batch);
        self.shared.submitted.notify_one();
    }

    fn head(&self) -> Result<Head, ReadError> {
        if matches!(*self.shared.db(), Db::Closed) {
            return Err(ReadError::Closed);
        }
        Ok(lock(&self.shared.tail).state.head.clone())
    }

    fn get(&self, key: &str) -> Result<Option<Versioned>, ReadError> {
        self.shared.read(|txn| tables::get(txn, key))
    }

    fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Range, ReadError> {
        self.shared.read(|txn| tables::range(txn, prefix, at))
    }

    fn watch(&self, after: Revision) -> Result<Watch, WatchError> {
        let State { head, compacted, .. } = &lock(&self.shared.tail).state;
        decide::reaches(after, *compacted, head.revision)?;
        Ok(Watch::new(self.shared.clone(), after))
    }

    fn lookup(&self, txn_id: TxnId) -> Result<Option<Revision>, ReadError> {
        self.shared.read(|txn| tables::lookup(txn, txn_id))
    }

    fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let Range { revision, items } = self.range("", None)?;
        Ok(Snapshot { revision, items })
    }

    fn restore(&self, snapshot: &Snapshot, by: Txn) -> Result<Revision, CommitError> {
        let txn_id = by.txn_id;
        let revision = self.shared.write_alone(txn_id, |tables| {
            decide::may_commit(tables, &by)?;
            let revision = decide::after_restore(tables.state.head.revision, snapshot.revision);
            tables.restore(snapshot, by, revision)?;
            Ok(revision)
        });
        self.shared.wakers.wake_all();
        revision
    }

    fn compact(&self, up_to: Revision) -> Result<(), ReadError> {
        let State { head, compacted, .. } = lock(&self.shared.tail).state.clone();
        match decide::reaches(up_to, compacted, head.revision) {
            Err(ReadError::Compacted { .. }) => return Ok(()),
            other => other?,
        }
        let compacted = self.shared.write_alone(TxnId::default(), |tables| {
            tables.compact(up_to)?;
            Ok(tables.state.compacted)
        });
        compacted.map(drop).map_err(|e| match e {
            CommitError::Full { source } | CommitError::Io { source } => ReadError::Io { source },
            CommitError::Closed => ReadError::Closed,
            e => tables::broken("the file", e),
        })
    }
}

impl Drop for Redb {
    /// Commits what was submitted, then frees the file: watches that are still alive end with `Closed`.
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.submitted.notify_all();
        if let Some(committer) = self.committer.take()
            && committer.thread().id() != thread::current().id()
        {
            // Its panics were reported where they happened.
            drop(committer.join());
        }
        *self.shared.db.write().unwrap_or_else(PoisonError::into_inner) = Db::Closed;
        self.shared.wakers.wake_all();
    }
}

// === impl Shared: reading ===

impl Shared {
    fn db(&self) -> RwLockReadGuard<'_, Db> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let once = || match &*self.db() {
            Db::Open(db) | Db::ReadOnly(db, _) => read(&db.begin_read().map_err(failed)?),
            Db::Broken(CommitError::Corrupt { at, what }) => Err(tables::broken(at, what)),
            Db::Broken(e) => Err(ReadError::Io { source: Arc::new(std::io::Error::other(e.clone())) }),
            Db::Closed => Err(ReadError::Closed),
        };
        match once() {
            // A write that fails takes the readers of its time along. Whoever writes repairs that first.
            Err(ReadError::Io { .. }) => {
                drop(lock(&self.writing));
                once()
            }
            outcome => outcome,
        }
    }
}

impl Source for Shared {
    fn after(&self, after: Revision) -> Result<Step, WatchError> {
        if matches!(*self.db(), Db::Closed) {
            return Err(ReadError::Closed);
        }
        {
            let tail = lock(&self.tail);
            let State { head, compacted, .. } = &tail.state;
            decide::reaches(after, *compacted, head.revision)?;
            if after == head.revision {
                return Ok(Step::Idle);
            }
            if after >= tail.base {
                let first = tail.recent.partition_point(|e| e.revision <= after);
                return Ok(Step::Entries(tail.recent.iter().skip(first).take(BATCH).cloned().collect()));
            }
        }
        self.read(|txn| tables::entries_after(txn, after, BATCH)).map(Step::Entries)
    }

    fn wakers(&self) -> &Wakers {
        &self.wakers
    }
}

// === impl Shared: writing ===

impl Shared {
    fn commit_until_closed(&self) {
        // However this ends, nobody waits for an answer that does not come.
        let _end = OnDrop(|| {
            let rest = {
                let mut queue = lock(&self.queue);
                queue.closed = true;
                std::mem::take(&mut queue.waiting)
            };
            rest.into_iter().for_each(|(_, done)| done(Err(CommitError::Closed)));
        });
        while let Some(batch) = self.next_batch() {
            let (txns, dones): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let outcomes = self.commit_batch(txns);
            self.wakers.wake_all();
            dones.into_iter().zip(outcomes).for_each(|(done, outcome)| done(outcome));
        }
    }

    /// Waits for transactions; `None` when the store closes and all are done.
    fn next_batch(&self) -> Option<Vec<(Txn, Done)>> {
        let mut queue = lock(&self.queue);
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            queue = self.submitted.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0_usize;
        let fits = queue.waiting.iter().take(GROUP).take_while(|(txn, _)| {
            let before = bytes;
            bytes = bytes.saturating_add(txn.size());
            before == 0 || bytes <= GROUP_BYTES
        });
        let n = fits.count();
        Some(queue.waiting.drain(..n).collect())
    }

    fn commit_batch(&self, txns: Vec<Txn>) -> Vec<Result<Revision, CommitError>> {
        let ids: Vec<_> = txns.iter().map(|t| t.txn_id).collect();
        let _writing = lock(&self.writing);
        let written = self.write(&ids, |db| {
            group(db, |tables, entries| {
                let mut outcomes = Vec::with_capacity(txns.len());
                for txn in txns {
                    let revision = tables.next();
                    let entry = match decide::decide(tables, txn, revision) {
                        Ok(entry) => entry,
                        Err(e) if e.is_refusal() => {
                            outcomes.push(Err(e));
                            continue;
                        }
                        Err(e) => return Err(e),
                    };
                    tables.append(&entry)?;
                    entries.push(Arc::new(entry));
                    outcomes.push(Ok(revision));
                }
                if !entries.is_empty() {
                    tables.trim_to(self.keep)?;
                }
                Ok(outcomes)
            })
        });
        match written {
            Ok(written) => {
                lock(&self.tail).extend(written.state, written.entries);
                written.outcomes
            }
            Err(outcomes) => outcomes,
        }
    }

    /// One write transaction by itself, which starts the log anew or shortens it.
    fn write_alone(
        &self,
        id: TxnId,
        write: impl FnOnce(&mut Tables<'_>) -> Result<Revision, CommitError>,
    ) -> Result<Revision, CommitError> {
        let _writing = lock(&self.writing);
        let written = self.write(&[id], |db| group(db, |tables, _| Ok(vec![Ok(write(tables)?)])));
        let outcomes = match written {
            Ok(written) => {
                lock(&self.tail).rebase(written.state);
                written.outcomes
            }
            Err(outcomes) => outcomes,
        };
        outcomes.into_iter().next().unwrap_or(Err(CommitError::Closed))
    }

    /// Runs `attempt`, and when it fails finds out what became of it.
    fn write(
        &self,
        ids: &[TxnId],
        attempt: impl FnOnce(&Database) -> Result<Written, Failure>,
    ) -> Result<Written, Vec<Result<Revision, CommitError>>> {
        let all = |e: CommitError| Err(vec![Err(e); ids.len()]);
        if self.place.trouble.sync_failed() {
            return all(CommitError::SyncFailed);
        }
        if !matches!(*self.db(), Db::Open(_)) {
            self.reopen();
        }
        self.place.trouble.take();
        let attempted = match &*self.db() {
            Db::Open(db) => catch_unwind(AssertUnwindSafe(|| attempt(db))),
            Db::ReadOnly(_, e) | Db::Broken(e) => return all(e.clone()),
            Db::Closed => return all(CommitError::Closed),
        };
        match attempted {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(Failure::Before(e))) if e.is_refusal() => all(e),
            Ok(Err(Failure::Before(e))) => {
                let e = self.place.trouble.take().map_or(e, CommitError::of);
                self.reopen();
                all(e)
            }
            Ok(Err(Failure::During(e, written))) => {
                let source = self.place.trouble.take();
                self.reopen();
                self.became_of(source.map_or(e, CommitError::of), written, ids)
            }
            // A defect of redb, or of the file, after it was verified.
            Err(_) => {
                self.reopen();
                Err(ids.iter().map(|txn_id| Err(CommitError::Unknown { txn_id: *txn_id, source: None })).collect())
            }
        }
    }

    /// A commit that failed half-way is in the file as a whole, or not at all.
    fn became_of(
        &self,
        e: CommitError,
        written: Written,
        ids: &[TxnId],
    ) -> Result<Written, Vec<Result<Revision, CommitError>>> {
        let head = match &*self.db() {
            Db::Open(db) | Db::ReadOnly(db, _) => db.begin_read().map_err(failed).and_then(|txn| tables::state(&txn)),
            Db::Broken(_) | Db::Closed => Err(ReadError::Closed),
        };
        match head {
            // Reopening made durable what it found.
            Ok(state) if state == written.state => Ok(written),
            Ok(_) => Err(vec![Err(e); ids.len()]),
            Err(_) => {
                let source = match e {
                    CommitError::Full { source } | CommitError::Io { source } => Some(source),
                    _ => None,
                };
                let unknown = |id: &TxnId| Err(CommitError::Unknown { txn_id: *id, source: source.clone() });
                Err(ids.iter().map(unknown).collect())
            }
        }
    }

    /// As after a crash, but without losing sight of what is in the file.
    fn reopen(&self) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*db, Db::Closed) {
            return;
        }
        // Closes it, which frees the file's lock.
        *db = Db::Broken(CommitError::Closed);
        let acknowledged = lock(&self.tail).state.head.revision;
        let state_of = |db: &Database| -> Result<State, CommitError> {
            Ok(db.begin_read().map_err(failed).and_then(|txn| tables::state(&txn))?)
        };
        let reopened = if self.place.trouble.sync_failed() {
            Err(CommitError::SyncFailed)
        } else {
            self.place.open().map_err(CommitError::from).and_then(|opened| {
                let state = state_of(&opened)?;
                if state.head.revision < acknowledged {
                    let what = format!("it is at {}, before {acknowledged}, which was committed", state.head.revision);
                    return Err(CommitError::Corrupt { at: "the head".into(), what });
                }
                if state.head.revision > acknowledged {
                    *lock(&self.tail) = Tail::new(state);
                }
                Ok(opened)
            })
        };
        *db = match reopened {
            Ok(opened) => Db::Open(opened),
            // What is newer than the last acknowledged commit may be in the kernel's cache only: nobody may see it.
            Err(e) => match self.place.open_overlaid().map_err(CommitError::from) {
                Ok(seen) if state_of(&seen).is_ok_and(|s| s.head.revision == acknowledged) => Db::ReadOnly(seen, e),
                _ => Db::Broken(e),
            },
        };
    }
}

/// One write transaction of redb; refused transactions leave no trace in it.
fn group(
    db: &Database,
    fill: impl FnOnce(&mut Tables<'_>, &mut Vec<Arc<Entry>>) -> Result<Vec<Result<Revision, CommitError>>, CommitError>,
) -> Result<Written, Failure> {
    let before = |e: ReadError| Failure::Before(e.into());
    let txn = db.begin_write().map_err(|e| before(failed(e)))?;
    let mut tables = Tables::open(&txn).map_err(before)?;
    let unchanged = tables.state.clone();
    let mut entries = vec![];
    let outcomes = fill(&mut tables, &mut entries).map_err(Failure::Before)?;
    if tables.state == unchanged {
        return Ok(Written { outcomes, entries, state: unchanged });
    }
    let state = tables.put_state().map_err(before)?;
    let written = Written { outcomes, entries, state };
    match txn.commit() {
        Ok(()) => Ok(written),
        Err(e) => Err(Failure::During(failed(e).into(), written)),
    }
}

// === impl Tail ===

impl Tail {
    fn new(state: State) -> Self {
        Self { base: state.head.revision, state, recent: VecDeque::new(), bytes: 0 }
    }

    fn extend(&mut self, state: State, entries: Vec<Arc<Entry>>) {
        self.state = state;
        self.bytes += entries.iter().map(|e| e.size()).sum::<usize>();
        self.recent.extend(entries);
        while self.recent.len() > RECENT || (self.bytes > RECENT_BYTES && self.recent.len() > 1) {
            if let Some(oldest) = self.recent.pop_front() {
                self.bytes -= oldest.size();
                self.base = oldest.revision;
            }
        }
    }

    /// After a restore nothing recent counts any more; after a compaction it still does, as far as the log reaches.
    fn rebase(&mut self, state: State) {
        if state.head.revision == self.state.head.revision {
            self.state = state;
        } else {
            *self = Self::new(state);
        }
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
