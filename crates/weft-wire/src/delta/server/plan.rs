//! What a client needs of one collection, given what it has.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use weft_snapshot::fragment::Collection;

use super::{Held, Mark, Told};
use crate::{
    delta::{held_digest, resource, ring::Ring},
    fragment::{Item, encode_item},
    name::{EntryName, collection_name, is_plural},
};

/// One piece of a set; its bytes are shared with every other session.
#[derive(Debug)]
pub enum Piece {
    Resource(Bytes),
    Removed(Arc<str>),
}

impl Piece {
    /// On the wire, roughly from above.
    pub fn len(&self) -> usize {
        // tag and length
        8 + match self {
            Self::Resource(bytes) => bytes.len(),
            Self::Removed(name) => name.len(),
        }
    }
}

/// Queues what leads from `mark` to `ring` (`None`: not there, or not for this client), and returns what the client then
/// has.
pub fn collection(
    collection: &Collection,
    mark: Mark,
    ring: Option<&Ring>,
    seq: u64,
    held: &mut BTreeMap<Arc<str>, Held>,
    queue: &mut VecDeque<Piece>,
) -> Mark {
    let Some(ring) = ring else {
        held.retain(|_, h| h.collection != *collection);
        if !matches!(mark, Mark::Absent | Mark::Claimed(None)) {
            queue.push_back(Piece::Removed(collection_name(collection).into()));
        }
        return Mark::Absent;
    };
    // a newer version, or none: there is nothing to hold any more
    held.retain(|name, h| h.collection != *collection || ring.entries.get(name).is_some_and(|e| e.seq <= h.seq));
    let of_this = |h: &Held| h.collection == *collection;
    let digest = held
        .iter()
        .filter(|(_, h)| of_this(h))
        .filter_map(|(name, _)| Some((name, ring.entries.get(name)?)))
        .fold(ring.digest, |sum, (name, entry)| sum.minus(entry.digest).plus(held_digest(name)));
    let at = Mark::At { seq, digest };
    if mark == Mark::Claimed(Some(digest)) {
        return at;
    }
    let since = match mark {
        Mark::At { seq, .. } => ring.changed_since(seq),
        Mark::Nothing | Mark::Claimed(_) | Mark::Absent => None,
    };
    let names: BTreeSet<&Arc<str>> = match since {
        Some(changed) => changed.collect(),
        None => {
            if is_plural(collection) {
                queue.push_back(Piece::Resource(resource(&ring.name, encode_item(&Item::Whole))));
            }
            // all of it, so what was told of held entries is told anew
            held.values_mut().filter(|h| of_this(h)).for_each(|h| h.told = Told::No);
            ring.entries.keys().collect()
        }
    };
    for name in names {
        match ring.entries.get(name) {
            Some(_) if held.contains_key(name) => {}
            Some(entry) => queue.push_back(Piece::Resource(Bytes::clone(&entry.resource))),
            None => queue.push_back(Piece::Removed(Arc::clone(name))),
        }
    }
    for (name, h) in held.iter_mut().filter(|(_, h)| of_this(h) && h.told == Told::No) {
        h.told = Told::InThisSet;
        queue.push_back(Piece::Resource(resource(name, encode_item(&Item::Held))));
    }
    at
}

/// The collection of a resource by its name.
pub fn collection_of(name: &str) -> Option<Collection> {
    name.parse::<EntryName>().ok().map(|entry| entry.collection)
}
