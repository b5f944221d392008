//! What a commit, a read, and opening a store can fail with.

use std::{io, path::PathBuf, sync::Arc};

use weft_model::Revision;

use crate::txn::{Expect, Key, TxnId};

/// Why a transaction did not commit. Only `Unknown` leaves open whether it did.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    #[error("it is no longer so that {expect}; read again and plan again")]
    Conflict {
        expect: Expect,
        /// Where the key, or the newest key under the prefix, is now; `None` when it is absent or no longer known.
        found: Option<Revision>,
    },
    #[error("the transaction has {size} {what}, more than the {most} that one may have; split it")]
    TooLarge { what: &'static str, size: usize, most: usize },
    #[error("the transaction writes `{key}` and also deletes `{prefix}*`; give each key one fate")]
    DuplicateKey { key: Key, prefix: Key },
    #[error("key `{key}` cannot be written: {why}")]
    Invalid { key: Key, why: String },
    #[error("transaction {txn_id} already committed at {revision}; use a new id for a new transaction")]
    AlreadyCommitted { txn_id: TxnId, revision: Revision },
    #[error("whether transaction {txn_id} committed is unknown; look its id up before trying again")]
    Unknown {
        txn_id: TxnId,
        #[source]
        source: Option<Arc<io::Error>>,
    },
    #[error("the disk of the store is full, nothing was written; free some space and try again")]
    Full {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the store cannot be written, nothing was; check its disk")]
    Io {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the store takes no more writes since a sync to its disk failed; check the disk, then restart the server")]
    SyncFailed,
    #[error("the store is corrupt at {at}: {what}; restore a snapshot")]
    Corrupt { at: String, what: String },
    #[error("the store is closed")]
    Closed,
}

/// Why a read or a watch failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The log no longer reaches back to `from`. A watch can start at `oldest` or later, so: read everything, and watch
    /// from the revision of that read.
    #[error("revision {from} is compacted, the log starts after {oldest}; read everything and watch from there")]
    Compacted { from: Revision, oldest: Revision },
    #[error("revision {from} is of another incarnation, the store was restored and is at {head}; read everything anew")]
    OtherIncarnation { from: Revision, head: Revision },
    #[error("revision {from} lies ahead of the store, which is at {head}; an older copy of it may have been put back")]
    Ahead { from: Revision, head: Revision },
    #[error("the store cannot be read; check its disk")]
    Io {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the store is corrupt at {at}: {what}; restore a snapshot")]
    Corrupt { at: String, what: String },
    #[error("the store is closed")]
    Closed,
}

/// A watch fails as a read does.
pub type WatchError = ReadError;

/// Why a store file was not opened. The file is never changed by a refusal.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store file {} is in use by another process; stop that one, or give this one another data directory", path.display())]
    Locked { path: PathBuf },
    #[error(
        "store file {} is corrupt and was refused: {what}; the file was kept as it is: copy it away for analysis, \
         then restore the last snapshot into a new data directory", path.display()
    )]
    Corrupt { path: PathBuf, what: String },
    #[error(
        "store file {} has feature level {level}, this version knows {known}; start a version at least as new as the \
         one that wrote it", path.display()
    )]
    Newer { path: PathBuf, level: u32, known: u32 },
    #[error("store file {} cannot be opened; check its directory, permissions and disk space", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why bytes are no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("this is no weft snapshot, or one of a newer format")]
    Unknown,
    #[error("the snapshot is damaged: its checksum does not match; take another copy of it")]
    Checksum,
    #[error("the snapshot is damaged: {0}")]
    Malformed(String),
}

// === impl CommitError ===

impl CommitError {
    /// Whether catching up and planning again may help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { expect, .. } if !matches!(expect, Expect::Leader { .. }))
    }

    /// Whether the transaction itself, and not the state of the store's disk, is the reason.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Conflict { .. } | Self::TooLarge { .. } | Self::DuplicateKey { .. } => true,
            Self::Invalid { .. } | Self::AlreadyCommitted { .. } => true,
            Self::Unknown { .. } | Self::Full { .. } | Self::Io { .. } | Self::SyncFailed => false,
            Self::Corrupt { .. } | Self::Closed => false,
        }
    }

    /// Of a transaction that an I/O error kept from the disk.
    pub(crate) fn of(source: Arc<io::Error>) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { source },
            _ => Self::Io { source },
        }
    }
}

impl From<ReadError> for CommitError {
    /// For what a commit reads on its way; it never asks for a revision of the past.
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Io { source } => Self::of(source),
            ReadError::Corrupt { at, what } => Self::Corrupt { at, what },
            ReadError::Closed => Self::Closed,
            e @ (ReadError::Compacted { .. } | ReadError::OtherIncarnation { .. } | ReadError::Ahead { .. }) => {
                Self::Corrupt { at: "the log".into(), what: e.to_string() }
            }
        }
    }
}

impl From<OpenError> for CommitError {
    /// For a store that had to be reopened.
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Io { source, .. } => Self::of(Arc::new(source)),
            OpenError::Locked { .. } => Self::Io { source: Arc::new(io::Error::other(e)) },
            OpenError::Corrupt { path, what } => Self::Corrupt { at: path.display().to_string(), what },
            OpenError::Newer { ref path, .. } => Self::Corrupt { at: path.display().to_string(), what: e.to_string() },
        }
    }
}
