//! What a client has, changed in place and undone when the set turns out to be wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_model::Digest;
use weft_snapshot::{
    fragment::{Collection, Fragment},
    snapshot::Fragments,
};

use super::Presence;
use crate::{
    delta::collection_base,
    name::{EntryName, collection_name, is_plural},
};

#[derive(Debug, Default)]
pub struct State {
    /// Only collections that are there.
    fragments: Fragments,
    known: BTreeMap<Collection, Known>,
    /// Wire names of entries that were rejected and stay as they were, or as a stub.
    held: BTreeSet<String>,
    /// Collections whose only entry is a stub of ours.
    stubs: BTreeSet<Collection>,
}

#[derive(Debug)]
enum Known {
    Absent,
    Present {
        digest: Digest,
        /// Per key; entries without a fragment (held, and never applied) included.
        digests: BTreeMap<String, Digest>,
    },
}

/// What a set says of one collection.
#[derive(Debug, Default)]
pub struct Staged {
    pub removed: bool,
    /// Entries that are not named are gone.
    pub whole: bool,
    pub entries: BTreeMap<String, StagedEntry>,
}

#[derive(Debug)]
pub enum StagedEntry {
    Put(Arc<Fragment>, Digest),
    Held(Digest),
    Removed,
}

/// How to get back.
#[derive(Debug, Default)]
pub struct Undo {
    steps: Vec<Step>,
    held: BTreeSet<String>,
    stubs: BTreeSet<Collection>,
}

#[derive(Debug)]
enum Step {
    Collection(Collection, Option<Known>, Option<BTreeMap<String, Arc<Fragment>>>),
    Entry { collection: Collection, key: String, digest: Option<Digest>, fragment: Option<Arc<Fragment>> },
}

/// How a fragment's map names an entry: endpoints by uid, the only entry of others by its collection.
pub fn key(name: &EntryName) -> String {
    match &name.entry {
        Some(uid) => uid.as_str().to_owned(),
        None => collection_name(&name.collection),
    }
}

pub fn wire_name(collection: &Collection, key: &str) -> String {
    if is_plural(collection) { format!("{}#{key}", collection_name(collection)) } else { collection_name(collection) }
}

// === impl State ===

impl State {
    pub fn fragments(&self) -> &Fragments {
        &self.fragments
    }

    pub fn known(&self) -> impl Iterator<Item = &Collection> {
        self.known.keys()
    }

    pub fn held(&self) -> impl Iterator<Item = &String> {
        self.held.iter()
    }

    pub fn presence(&self, collection: &Collection) -> Option<Presence> {
        Some(match self.known.get(collection)? {
            Known::Absent => Presence::Absent,
            Known::Present { .. } => Presence::Present,
        })
    }

    pub fn digest(&self, collection: &Collection) -> Option<Digest> {
        match self.known.get(collection)? {
            Known::Present { digest, .. } => Some(*digest),
            Known::Absent => None,
        }
    }

    pub fn set_digest(&self) -> Digest {
        self.known.keys().filter_map(|c| self.digest(c)).fold(Digest::ZERO, Digest::plus)
    }

    /// Changes what the set changes and drops what does not belong to it.
    pub fn apply(&mut self, staging: BTreeMap<Collection, Staged>, belongs: impl Fn(&Collection) -> bool) -> Undo {
        let mut undo = Undo { steps: Vec::new(), held: self.held.clone(), stubs: self.stubs.clone() };
        let gone: Vec<Collection> = self.known.keys().filter(|c| !belongs(c)).cloned().collect();
        for collection in gone {
            self.forget(collection, &mut undo);
        }
        for (collection, staged) in staging {
            if belongs(&collection) {
                self.apply_one(collection, staged, &mut undo);
            }
        }
        undo
    }

    pub fn undo(&mut self, undo: Undo) {
        self.held = undo.held;
        self.stubs = undo.stubs;
        for step in undo.steps.into_iter().rev() {
            match step {
                Step::Collection(collection, known, fragments) => {
                    restore(&mut self.known, collection.clone(), known);
                    restore(&mut self.fragments, collection, fragments);
                }
                Step::Entry { collection, key, digest, fragment } => {
                    if let Some(Known::Present { digest: sum, digests }) = self.known.get_mut(&collection) {
                        let now = digests.get(&key).copied().unwrap_or_default();
                        *sum = sum.minus(now).plus(digest.unwrap_or_default());
                        restore(digests, key.clone(), digest);
                    }
                    if let Some(entries) = self.fragments.get_mut(&collection) {
                        restore(entries, key, fragment);
                    }
                }
            }
        }
    }

    /// Is what stands there a stub of ours?
    pub fn is_stub(&self, collection: &Collection) -> bool {
        self.stubs.contains(collection)
    }

    /// A stub in place of the only entry of a collection; it counts as the entry that was rejected.
    pub fn put_stub(&mut self, collection: &Collection, stub: Fragment, undo: &mut Undo) {
        let key = key(&EntryName::only(collection.clone()));
        let Some(Known::Present { digests, .. }) = self.known.get(collection) else { return };
        let Some(digest) = digests.get(&key).copied() else { return };
        self.stubs.insert(collection.clone());
        let same = self.fragments.get(collection).and_then(|e| e.get(&key)).is_some_and(|f| **f == stub);
        // the same allocation, so that whoever built from it sees that nothing changed
        if !same {
            self.set(collection, key, Some(digest), Some(Arc::new(stub)), undo);
        }
    }

    pub fn check_invariants(&self) -> Result<(), String> {
        for (collection, known) in &self.known {
            let entries = self.fragments.get(collection);
            match known {
                Known::Absent if entries.is_some() => return Err(format!("{collection} is absent and has entries")),
                Known::Absent => {}
                Known::Present { digest, digests } => {
                    let sum = digests.values().fold(collection_base(collection), |sum, d| sum.plus(*d));
                    if sum != *digest {
                        return Err(format!("{collection} has digest {digest}, its entries say {sum}"));
                    }
                    let Some(entries) = entries else { return Err(format!("{collection} has no map of entries")) };
                    if let Some(key) = entries.keys().find(|k| !digests.contains_key(*k)) {
                        return Err(format!("{collection} has `{key}` without a digest"));
                    }
                    let bare = digests.iter().find(|(key, _)| {
                        !entries.contains_key(*key) && !self.held.contains(&wire_name(collection, key))
                    });
                    if let Some((key, _)) = bare {
                        return Err(format!("{collection} has no fragment of `{key}`, which is not held"));
                    }
                }
            }
        }
        match self.fragments.keys().find(|c| !self.known.contains_key(*c)) {
            Some(c) => Err(format!("{c} has entries and is not known")),
            None => Ok(()),
        }
    }

    /// Takes everything of a collection out, to be put back by undo.
    fn forget(&mut self, collection: Collection, undo: &mut Undo) {
        let (known, fragments) = (self.known.remove(&collection), self.fragments.remove(&collection));
        if let Some(Known::Present { digests, .. }) = &known {
            for key in digests.keys() {
                self.held.remove(&wire_name(&collection, key));
            }
        }
        self.stubs.remove(&collection);
        undo.steps.push(Step::Collection(collection, known, fragments));
    }

    fn apply_one(&mut self, collection: Collection, staged: Staged, undo: &mut Undo) {
        if staged.removed {
            self.forget(collection.clone(), undo);
            self.known.insert(collection, Known::Absent);
            return;
        }
        // what is held stays at its last version even where everything else of the collection is new
        let last = self.fragments.get(&collection).filter(|_| staged.whole).cloned().unwrap_or_default();
        if staged.whole || !matches!(self.known.get(&collection), Some(Known::Present { .. })) {
            self.forget(collection.clone(), undo);
            let digest = collection_base(&collection);
            self.known.insert(collection.clone(), Known::Present { digest, digests: BTreeMap::new() });
            self.fragments.insert(collection.clone(), BTreeMap::new());
        }
        for (key, entry) in staged.entries {
            let name = wire_name(&collection, &key);
            match entry {
                StagedEntry::Put(fragment, digest) => {
                    self.held.remove(&name);
                    self.stubs.remove(&collection);
                    self.set(&collection, key, Some(digest), Some(fragment), undo);
                }
                StagedEntry::Removed => {
                    self.held.remove(&name);
                    self.set(&collection, key, None, None, undo);
                }
                StagedEntry::Held(digest) => {
                    self.held.insert(name);
                    let now = self.fragments.get(&collection).and_then(|entries| entries.get(&key));
                    let fragment = now.or_else(|| last.get(&key)).cloned();
                    self.set(&collection, key, Some(digest), fragment, undo);
                }
            }
        }
    }

    fn set(
        &mut self,
        collection: &Collection,
        key: String,
        digest: Option<Digest>,
        fragment: Option<Arc<Fragment>>,
        undo: &mut Undo,
    ) {
        let Some(Known::Present { digest: sum, digests }) = self.known.get_mut(collection) else { return };
        let old = restore(digests, key.clone(), digest);
        *sum = sum.minus(old.unwrap_or_default()).plus(digest.unwrap_or_default());
        let entries = self.fragments.entry(collection.clone()).or_default();
        let before = restore(entries, key.clone(), fragment);
        undo.steps.push(Step::Entry { collection: collection.clone(), key, digest: old, fragment: before });
    }
}

fn restore<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}
