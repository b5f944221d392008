//! The store of one server, in a redb file.
//!
//! One thread commits. It takes whatever has been submitted meanwhile, gives each transaction its own revision, and makes
//! all of them durable with one sync; only then does anyone hear of them. Any failed access makes redb unusable until it
//! is reopened; reopening also tells which transactions of a failed commit are in the file.

mod disk;
mod open;
mod tables;
mod write;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard},
    thread::{self, JoinHandle},
};

use ::redb::{Database, ReadTransaction, ReadableDatabase};
use weft_model::Revision;

pub use self::{disk::Backends, open::FEATURE_LEVEL};
use self::{
    open::Place,
    tables::{State, failed},
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

// === impl Shared ===

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

// === impl Tail ===

impl Tail {
    fn new(state: State) -> Self {
        Self { base: state.head.revision, state, recent: VecDeque::new(), bytes: 0 }
    }

    /// What is older than a restore or a compaction does no harm: no watch gets past `reaches` to ask for it.
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
}
