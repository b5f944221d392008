//! Writing documents: several in one transaction, each with its precondition, with their history beside them.

use std::{collections::BTreeMap, sync::Arc};

use weft_registry::value;
use weft_resources::{Resource, ResourceKey};
use weft_store::{Expect, Key, TxnId, Write};

use crate::{
    history::{self, HistoryChange, HistoryRecord},
    keys,
    replica::{CommitFailure, Draft, Replica},
    state::{Doc, State},
};

/// One document and what is wanted of it.
#[derive(Debug, Clone)]
pub enum Intent {
    /// Must not be there.
    Create(Box<Resource>),
    /// Must be there, at that `resourceVersion` if one is named.
    Replace(Box<Resource>, Option<String>),
    /// Whatever is there, at that `resourceVersion` if one is named.
    Apply(Box<Resource>, Option<String>),
    /// Must be there, at that `resourceVersion` if one is named.
    Delete(ResourceKey, Option<String>),
    /// Gone afterwards, whatever was there.
    Remove(ResourceKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
    Deleted,
    Absent,
}

/// One document's part of a transaction.
#[derive(Debug, Clone)]
pub struct Done {
    pub key: ResourceKey,
    pub outcome: Outcome,
    /// What is there now; for a deletion, what was there.
    pub resource: Option<Arc<Resource>>,
}

/// Why a document is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("`{0}` already exists")]
    Exists(ResourceKey),
    #[error("`{0}` is not there")]
    Missing(ResourceKey),
    #[error(
        "`{key}` is at resourceVersion {have}, not {want}: somebody changed it; read it again and repeat the change"
    )]
    Conflict { key: ResourceKey, have: u64, want: String },
    #[error("`{0}` is there twice in one set of documents; keep one")]
    Twice(ResourceKey),
}

/// Commits all of them as one transaction, or none.
pub async fn write(
    replica: &Replica,
    who: &str,
    why: &str,
    intents: &[Intent],
) -> Result<crate::replica::Committed<Vec<Done>>, CommitFailure<DocumentError>> {
    replica.commit(who, why, |state, txn| draft(replica, state, txn, who, why, intents)).await
}

/// Says what `write` would do, and does nothing.
pub async fn dry_run(
    replica: &Replica,
    intents: &[Intent],
) -> Result<crate::replica::Committed<Vec<Done>>, CommitFailure<DocumentError>> {
    let state = replica.fresh().await?;
    let draft = draft(replica, &state, TxnId(0), "", "", intents).map_err(CommitFailure::Refused)?;
    Ok(crate::replica::Committed { revision: state.revision, reply: draft.reply, changed: false })
}

fn draft(
    replica: &Replica,
    state: &State,
    txn: TxnId,
    who: &str,
    why: &str,
    intents: &[Intent],
) -> Result<Draft<Vec<Done>>, DocumentError> {
    let mut draft = Draft { expects: Vec::new(), writes: BTreeMap::new(), reply: Vec::new() };
    let mut changes = Vec::new();
    for intent in intents {
        let key = intent.key();
        if draft.reply.iter().any(|d: &Done| d.key == *key) {
            return Err(DocumentError::Twice(key.clone()));
        }
        let done = one(replica, state, intent, &mut draft, &mut changes)?;
        draft.reply.push(done);
    }
    if !changes.is_empty() {
        let record = HistoryRecord { when: replica.clock.wall(), who: who.into(), why: why.into(), changes };
        draft.writes.insert(Key::from(history::key(txn)), Write::Put(value::encode(&record)));
    }
    Ok(draft)
}

fn one(
    replica: &Replica,
    state: &State,
    intent: &Intent,
    draft: &mut Draft<Vec<Done>>,
    changes: &mut Vec<HistoryChange>,
) -> Result<Done, DocumentError> {
    let key = intent.key().clone();
    let there = state.docs.get(&key);
    let at = keys::resource(&key);
    draft.expects.push(match there {
        None => Expect::absent(at.clone()),
        Some(doc) => Expect::unchanged(at.clone(), doc.modified),
    });
    intent.holds(state, there)?;
    let before = there.map(|d| d.resource.to_json());
    match intent {
        Intent::Delete(..) | Intent::Remove(_) => {
            let Some(doc) = there else { return Ok(Done { key, outcome: Outcome::Absent, resource: None }) };
            draft.writes.insert(at.into(), Write::Delete);
            if state.statuses.contains_key(&key) {
                draft.writes.insert(keys::status(&key).into(), Write::Delete);
            }
            changes.push(HistoryChange::new(&key, before, None));
            Ok(Done { key, outcome: Outcome::Deleted, resource: Some(doc.resource.clone()) })
        }
        Intent::Create(r) | Intent::Replace(r, _) | Intent::Apply(r, _) => {
            let (resource, outcome) = placed(replica, r, there);
            if outcome == Outcome::Unchanged {
                return Ok(Done { key, outcome, resource: there.map(|d| d.resource.clone()) });
            }
            let json = resource.to_json();
            draft.writes.insert(at.into(), Write::Put(value::encode(&json)));
            changes.push(HistoryChange::new(&key, before, Some(json)));
            Ok(Done { key, outcome, resource: Some(Arc::new(resource)) })
        }
    }
}

/// The resource with what the server writes of its metadata.
fn placed(replica: &Replica, wanted: &Resource, there: Option<&Doc>) -> (Resource, Outcome) {
    let mut resource = wanted.clone();
    let meta = &mut resource.metadata;
    meta.resource_version = None;
    match there {
        None => {
            meta.uid = Some(uid(replica));
            meta.generation = 1;
            meta.creation_timestamp = Some(replica.clock.wall());
            (resource, Outcome::Created)
        }
        Some(doc) => {
            let old = &doc.resource;
            meta.uid.clone_from(&old.metadata.uid);
            meta.creation_timestamp = old.metadata.creation_timestamp;
            meta.created = old.metadata.created;
            let same_spec = old.written == resource.written;
            meta.generation = if same_spec { old.metadata.generation } else { old.metadata.generation + 1 };
            let same = same_spec
                && old.metadata.labels == resource.metadata.labels
                && old.metadata.annotations == resource.metadata.annotations;
            let outcome = if same { Outcome::Unchanged } else { Outcome::Configured };
            (resource, outcome)
        }
    }
}

/// In the form of a UUID of version 4, which Kubernetes' clients expect.
fn uid(replica: &Replica) -> String {
    let (a, b) = (replica.roll(), replica.roll());
    let (a, b) = (a & !0xf000 | 0x4000, b & !(0b11 << 62) | 0b10 << 62);
    format!("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", a >> 32, a >> 16 & 0xffff, a & 0xffff, b >> 48, b & 0xffff_ffff_ffff)
}

// === impl Intent ===

impl Intent {
    pub fn key(&self) -> &ResourceKey {
        match self {
            Self::Create(r) | Self::Replace(r, _) | Self::Apply(r, _) => &r.key,
            Self::Delete(key, _) | Self::Remove(key) => key,
        }
    }

    fn holds(&self, state: &State, there: Option<&Doc>) -> Result<(), DocumentError> {
        let key = || self.key().clone();
        let version = match (self, there) {
            (Self::Create(_), Some(_)) => return Err(DocumentError::Exists(key())),
            (Self::Replace(..) | Self::Delete(..), None) => return Err(DocumentError::Missing(key())),
            (Self::Replace(_, v) | Self::Apply(_, v) | Self::Delete(_, v), _) => v,
            (Self::Create(_) | Self::Remove(_), _) => &None,
        };
        let Some(want) = version.as_ref().filter(|v| !v.is_empty()) else { return Ok(()) };
        let have = state.resource_version(self.key()).unwrap_or(0);
        // a transition of the status is no change of what the operator wrote
        let of_spec = there.map_or(0, |d| d.modified.n);
        let same = want.parse::<u64>().is_ok_and(|w| w == have || w == of_spec);
        if same { Ok(()) } else { Err(DocumentError::Conflict { key: key(), have, want: want.clone() }) }
    }
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Absent => "absent",
        }
    }
}
