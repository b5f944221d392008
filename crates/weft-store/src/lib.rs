//! Revisioned keys and watches: memory and redb behind one conformance suite.
//!
//! A store is an event log. A [`Txn`] names everything that its planner read (its expectations) and each key's final
//! write; it commits as one revision or not at all. Views change only by folding the [`Entry`]s of a [`Watch`].
//!
//! Everything is synchronous and callable from any thread. Async shells use [`Store::submit`], whose outcome arrives by
//! callback, and [`Watch::poll_next`]; reads are quick.
//!
//! Architecture invariant: nothing here knows a resource type, a runtime or a clock.

mod codec;
pub mod conformance;
mod decide;
mod dice;
mod entry;
mod error;
mod memory;
pub mod redb;
mod snapshot;
mod txn;
mod watch;

use std::sync::mpsc;

use weft_model::Revision;

pub use crate::{
    dice::Dice,
    entry::{Change, Entry, Head, Keep, Range, Versioned},
    error::{CommitError, OpenError, ReadError, SnapshotError, WatchError},
    memory::{EtcdLike, Memory},
    redb::Redb,
    snapshot::Snapshot,
    txn::{
        Bytes, Expect, Format, FormatError, Key, KeyState, LEADER_KEY, MAX_EXPECTS, MAX_KEY_BYTES, MAX_TXN_BYTES,
        MAX_WRITES, Txn, TxnId, TxnIdError, Write, guard_key,
    },
    watch::Watch,
};

/// Takes the outcome of a submitted transaction; called once, from any thread. It must not block.
pub type Done = Box<dyn FnOnce(Result<Revision, CommitError>) + Send>;

/// Revisioned keys with transactions and watches. **[format]** Every store gives the same answers, and refuses the same.
pub trait Store: Send + Sync {
    /// Commits each transaction by itself, in order, as cheaply together as it can. `Ok` means that nothing short of
    /// losing the disk undoes it, and that reads from now on see it.
    fn submit_all(&self, batch: Vec<(Txn, Done)>);

    /// The revision of the last commit, and who made it.
    fn head(&self) -> Result<Head, ReadError>;

    fn get(&self, key: &str) -> Result<Option<Versioned>, ReadError>;

    /// Every key under `prefix` (all of them for an empty one) in order, now or at a revision that the log reaches.
    fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Range, ReadError>;

    /// Everything committed after `after`.
    fn watch(&self, after: Revision) -> Result<Watch, WatchError>;

    /// Where a transaction committed: what to ask after `Unknown`. Ids are remembered as long as their log entry.
    fn lookup(&self, txn_id: TxnId) -> Result<Option<Revision>, ReadError>;

    fn snapshot(&self) -> Result<Snapshot, ReadError>;

    /// Replaces everything by `snapshot`, when the expectations of `by` hold; its writes go on top. Starts a new
    /// incarnation: each watch ends with [`ReadError::OtherIncarnation`].
    fn restore(&self, snapshot: &Snapshot, by: Txn) -> Result<Revision, CommitError>;

    /// Forgets the log up to a revision (nothing, when it was forgotten before). Values stay.
    fn compact(&self, up_to: Revision) -> Result<(), ReadError>;

    fn submit(&self, txn: Txn, done: Done) {
        self.submit_all(vec![(txn, done)]);
    }

    /// Commits and waits. Not for a thread that runs async tasks: use [`Store::submit`] there.
    fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let (tell, outcome) = mpsc::sync_channel(1);
        self.submit(txn, Box::new(move |o| drop(tell.send(o))));
        outcome.recv().unwrap_or(Err(CommitError::Closed))
    }
}
