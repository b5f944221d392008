//! What the publisher knows: every collection once, encoded once, with a ring of what changed lately.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use weft_model::{Digest, Revision, Uid};
use weft_snapshot::fragment::Collection;

use super::{MAX_RESPONSE, collection_base, entry_digest, resource};
use crate::name::{EntryName, collection_name, is_plural};

/// Room in a response for what is not resources.
pub(super) const RESERVE: usize = 64 << 10;
/// So many changed entries a collection remembers at least; more when it has more entries, since beyond that resending
/// all of it is the smaller thing.
const RING: usize = 32;
/// So many changed collections are remembered; a session behind that looks at all of its own.
const CHANGES: usize = 4096;

/// One change of one revision. Encoded bytes come from [`crate::fragment::encode`].
#[derive(Debug, Clone)]
pub enum Change {
    Put(EntryName, Bytes),
    /// Of a collection with one entry: the collection goes.
    Remove(EntryName),
    /// All of the collection: entries that are not named go. The uid is there for collections with many entries.
    Whole(Collection, Vec<(Option<Uid>, Bytes)>),
    /// The collection goes, with its entries.
    Drop(Collection),
}

/// An entry that fits no response. Nothing of its revision was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is {bytes} bytes long, at most {} fit into a response; split it", MAX_RESPONSE - RESERVE)]
pub struct TooLarge {
    pub name: String,
    pub bytes: usize,
}

#[derive(Debug, Default)]
pub struct Collections {
    head: Revision,
    /// Counts the calls that changed something: cursors are compared by it, since a revision may be published in parts.
    seq: u64,
    /// Counts incarnations: when it moves, nothing that a client has may be compared.
    epoch: u64,
    all: BTreeMap<Collection, Ring>,
    changes: VecDeque<(u64, Collection)>,
    /// Changes up to here were forgotten.
    changes_floor: u64,
}

/// One collection.
#[derive(Debug)]
pub(super) struct Ring {
    pub name: Arc<str>,
    pub digest: Digest,
    pub entries: BTreeMap<Arc<str>, Entry>,
    /// When it last changed.
    pub seq: u64,
    /// Which entries changed when, oldest first.
    log: VecDeque<(u64, Arc<str>)>,
    /// Changes up to here were forgotten: a cursor behind it needs the whole collection.
    floor: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub digest: Digest,
    /// The encoded resource, as it is spliced into streams.
    pub resource: Bytes,
    pub seq: u64,
}

// === impl Collections ===

impl Collections {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn head(&self) -> Revision {
        self.head
    }

    pub fn contains(&self, collection: &Collection) -> bool {
        self.all.contains_key(collection)
    }

    /// `None`: not there.
    pub fn digest(&self, collection: &Collection) -> Option<Digest> {
        self.all.get(collection).map(|ring| ring.digest)
    }

    /// When the collection last changed, to be compared with [`super::Session::has_applied`].
    pub fn last_change(&self, collection: &Collection) -> Option<u64> {
        self.all.get(collection).map(|ring| ring.seq)
    }

    pub fn names(&self) -> impl Iterator<Item = &Collection> {
        self.all.keys()
    }

    /// Takes everything that `revision` changed, together. Within an incarnation `revision` never goes back; another
    /// incarnation means that every session starts anew. Returns whether anything differs from before: sessions need to
    /// be polled then.
    pub fn apply(&mut self, revision: Revision, changes: Vec<Change>) -> Result<bool, TooLarge> {
        check_sizes(&changes)?;
        let restored = revision.incarnation != self.head.incarnation;
        debug_assert!(restored || revision >= self.head, "revision {revision} after {}", self.head);
        let seq = self.seq.saturating_add(1);
        let mut changed = Vec::new();
        for change in changes {
            let (collection, differs) = match change {
                Change::Put(name, bytes) => {
                    let text: Arc<str> = name.to_string().into();
                    let differs = self.ring(&name.collection, seq).put(text, bytes, seq);
                    (name.collection, differs)
                }
                Change::Remove(name) if is_plural(&name.collection) => {
                    let differs = match self.all.get_mut(&name.collection) {
                        Some(ring) => ring.remove(&name.to_string(), seq),
                        None => false,
                    };
                    (name.collection, differs)
                }
                Change::Remove(EntryName { collection, .. }) | Change::Drop(collection) => {
                    let differs = self.all.remove(&collection).is_some();
                    (collection, differs)
                }
                Change::Whole(collection, entries) if entries.is_empty() && !is_plural(&collection) => {
                    let differs = self.all.remove(&collection).is_some();
                    (collection, differs)
                }
                Change::Whole(collection, entries) => {
                    let new = !self.all.contains_key(&collection);
                    let differs = self.ring(&collection, seq).replace(&collection, entries, seq);
                    (collection, new || differs)
                }
            };
            if differs {
                changed.push(collection);
            }
        }
        self.head = revision;
        if restored {
            self.epoch = self.epoch.saturating_add(1);
        }
        if changed.is_empty() {
            return Ok(restored);
        }
        self.seq = seq;
        self.remember(changed);
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok(true)
    }

    /// What must hold between calls.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (collection, ring) in &self.all {
            let sum = ring.entries.values().fold(collection_base(collection), |sum, e| sum.plus(e.digest));
            if sum != ring.digest {
                return Err(format!("{} has digest {}, its entries say {sum}", ring.name, ring.digest));
            }
            if ring.seq > self.seq || ring.floor > ring.seq || ring.entries.values().any(|e| e.seq > ring.seq) {
                return Err(format!("{} is ahead of itself", ring.name));
            }
            if !is_plural(collection) && ring.entries.len() != 1 {
                return Err(format!("{} has {} entries", ring.name, ring.entries.len()));
            }
        }
        Ok(())
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn get(&self, collection: &Collection) -> Option<&Ring> {
        self.all.get(collection)
    }

    /// The collections that changed after `seq`, with repetitions; `None` when that is too long ago.
    pub(super) fn changed_since(&self, seq: u64) -> Option<impl Iterator<Item = &Collection>> {
        let from = self.changes.partition_point(|(at, _)| *at <= seq);
        (seq >= self.changes_floor).then(|| self.changes.range(from..).map(|(_, c)| c))
    }

    fn ring(&mut self, collection: &Collection, seq: u64) -> &mut Ring {
        self.all.entry(collection.clone()).or_insert_with(|| Ring::new(collection, seq))
    }

    fn remember(&mut self, changed: Vec<Collection>) {
        let seq = self.seq;
        self.changes.extend(changed.into_iter().map(|c| (seq, c)));
        while self.changes.len() > CHANGES {
            if let Some((at, _)) = self.changes.pop_front() {
                self.changes_floor = at;
            }
        }
    }
}

fn check_sizes(changes: &[Change]) -> Result<(), TooLarge> {
    let check = |name: &dyn Fn() -> String, bytes: &Bytes| match bytes.len() {
        len if len > MAX_RESPONSE - RESERVE => Err(TooLarge { name: name(), bytes: len }),
        _ => Ok(()),
    };
    changes.iter().try_for_each(|change| match change {
        Change::Put(name, bytes) => check(&|| name.to_string(), bytes),
        Change::Whole(collection, entries) => entries.iter().try_for_each(|(entry, bytes)| {
            check(&|| EntryName { collection: collection.clone(), entry: entry.clone() }.to_string(), bytes)
        }),
        Change::Remove(_) | Change::Drop(_) => Ok(()),
    })
}

// === impl Ring ===

impl Ring {
    fn new(collection: &Collection, seq: u64) -> Self {
        Self {
            name: collection_name(collection).into(),
            digest: collection_base(collection),
            entries: BTreeMap::new(),
            seq,
            log: VecDeque::new(),
            // whoever knew an earlier collection of this name needs all of this one
            floor: seq,
        }
    }

    /// The entries that changed after `seq`; `None` when the ring does not reach back so far.
    pub fn changed_since(&self, seq: u64) -> Option<impl Iterator<Item = &Arc<str>>> {
        let from = self.log.partition_point(|(at, _)| *at <= seq);
        (seq >= self.floor).then(|| self.log.range(from..).map(|(_, name)| name))
    }

    fn put(&mut self, name: Arc<str>, value: Bytes, seq: u64) -> bool {
        let digest = entry_digest(&name, &value);
        let old = self.entries.get(&name).map(|e| e.digest);
        if old == Some(digest) {
            return false;
        }
        self.digest = self.digest.minus(old.unwrap_or_default()).plus(digest);
        let entry = Entry { digest, resource: resource(&name, value), seq };
        self.entries.insert(Arc::clone(&name), entry);
        self.note(name, seq);
        true
    }

    fn remove(&mut self, name: &str, seq: u64) -> bool {
        let Some((name, entry)) = self.entries.remove_entry(name) else { return false };
        self.digest = self.digest.minus(entry.digest);
        self.note(name, seq);
        true
    }

    fn replace(&mut self, collection: &Collection, entries: Vec<(Option<Uid>, Bytes)>, seq: u64) -> bool {
        let mut gone: BTreeSet<Arc<str>> = self.entries.keys().cloned().collect();
        let mut differs = false;
        for (entry, bytes) in entries {
            let name: Arc<str> = EntryName { collection: collection.clone(), entry }.to_string().into();
            gone.remove(&name);
            differs |= self.put(name, bytes, seq);
        }
        for name in gone {
            differs |= self.remove(&name, seq);
        }
        differs
    }

    fn note(&mut self, name: Arc<str>, seq: u64) {
        self.seq = seq;
        self.log.push_back((seq, name));
        while self.log.len() > self.entries.len().max(RING) {
            if let Some((at, _)) = self.log.pop_front() {
                self.floor = at;
            }
        }
    }
}
