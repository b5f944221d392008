//! The committer: everything that was submitted meanwhile under one sync, and what becomes of it when the disk fails.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
};

use ::redb::{Database, ReadableDatabase};
use weft_model::Revision;

use super::{
    Db, Shared, Tail,
    tables::{self, State, Tables, failed},
};
use crate::{
    Done, decide,
    entry::Entry,
    error::{CommitError, ReadError},
    txn::{Txn, TxnId},
    watch::lock,
};

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
    During(CommitError, Box<Written>),
}

/// The most transactions, and bytes of them, under one sync.
const GROUP: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;

// === impl Shared ===

impl Shared {
    pub(super) fn commit_until_closed(&self) {
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
    pub(super) fn write_alone(
        &self,
        id: TxnId,
        write: impl FnOnce(&mut Tables<'_>) -> Result<Revision, CommitError>,
    ) -> Result<Revision, CommitError> {
        let _writing = lock(&self.writing);
        let written = self.write(&[id], |db| group(db, |tables, _| Ok(vec![Ok(write(tables)?)])));
        let outcomes = match written {
            Ok(written) => {
                lock(&self.tail).extend(written.state, vec![]);
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
                self.became_of(source.map_or(e, CommitError::of), *written, ids)
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
        Err(e) => Err(Failure::During(failed(e).into(), Box::new(written))),
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
