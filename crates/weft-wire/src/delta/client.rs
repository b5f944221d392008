//! The client's side of one stream: gathers a set, and at its `Commit` yields one new set or names what is wrong with it.
//!
//! What was applied last stays whole until a set is complete, its digest is the server's, and whoever uses it has built
//! from it; a set that fails leaves no trace but its rejection.

mod state;
mod stub;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use weft_model::Revision;
use weft_snapshot::{
    fragment::{Collection, Fragment},
    snapshot::{Fragments, Rejection as BuildRejection},
};

use self::state::{Staged, StagedEntry, State};
use super::{REJECTIONS_URL, entry_digest, held_digest, resource, version};
use crate::{
    fragment::{self, Commit, Item, TYPE_URL},
    name::{COMMIT, EntryName, collection_name, is_plural, parse_collection},
    pb::{
        envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
        google::{protobuf::Any, rpc::Status},
        weft::v1,
    },
};

/// gRPC's `INVALID_ARGUMENT`, what xDS clients reject with.
const INVALID_ARGUMENT: i32 = 3;

/// What is to be built from: closed and complete.
#[derive(Debug)]
pub struct Set<'a> {
    pub commit: Commit,
    pub fragments: &'a Fragments,
    /// Entries that stay at an older version, or at a stub that refuses, and why.
    pub refused: &'a BTreeMap<String, String>,
}

/// What a response led to. The request that answers it is sent in any case.
#[derive(Debug)]
pub enum Event<T> {
    /// Part of a set.
    Received,
    Applied {
        commit: Commit,
        value: T,
    },
    /// What was applied before still holds.
    Rejected(Vec<Rejection>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the entry; empty where the set as a whole is wrong.
    pub resource: String,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Present,
    /// It does not exist, or is not for this client.
    Absent,
}

/// The peer does not speak our protocol: the stream ends, what was applied stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("response has type URL `{0}` instead of {TYPE_URL}")]
    TypeUrl(String),
    #[error("response before the stream was opened")]
    NotConnected,
}

/// Why a saved set is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("saved set is damaged")]
    Decode(#[source] prost::DecodeError),
    #[error("saved set is refused: {}", .0.first().map_or("it is empty", |r| &r.reason))]
    Rejected(Vec<Rejection>),
    #[error("saved set has no end")]
    Incomplete,
}

#[derive(Debug, Default)]
pub struct Client {
    /// Who this is, for logs.
    node: String,
    /// Since which request of this stream.
    subscribed: BTreeMap<Collection, u64>,
    /// Subscribed with one request and unsubscribed with a later one: part of every set that knows of the one alone.
    leaving: BTreeMap<Collection, Vec<(u64, u64)>>,
    more: BTreeSet<Collection>,
    fewer: BTreeSet<Collection>,
    /// Counts requests of this stream that changed subscriptions.
    seq: u64,
    connected: bool,
    state: State,
    applied: Option<Commit>,
    /// The applied set knows of so many requests of *this* stream.
    answered: u64,
    staging: BTreeMap<Collection, Staged>,
    rejections: Vec<Rejection>,
    /// Why entries were rejected, until they are replaced.
    reasons: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
}

// === impl Client ===

impl Client {
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// From what [`Client::save`] wrote: serves until a server is there, and tells it what needs no resending.
    pub fn restore<T>(
        node: impl Into<String>,
        saved: Bytes,
        build: impl FnOnce(&Set<'_>) -> Result<T, Vec<BuildRejection>>,
    ) -> Result<(Self, T), RestoreError> {
        let response = DeltaDiscoveryResponse::decode(saved).map_err(RestoreError::Decode)?;
        let mut client = Self::new(node);
        for bytes in &response.resources {
            let resource = Resource::decode(bytes.clone()).map_err(RestoreError::Decode)?;
            if let Ok(name) = resource.name.parse::<EntryName>() {
                client.subscribed.insert(name.collection, 0);
            }
        }
        client
            .subscribed
            .extend(response.removed_resources.iter().filter_map(|n| Some((parse_collection(n).ok()?, 0))));
        client.connected = true;
        match client.on_response(response, build) {
            Ok((_, Event::Applied { value, .. })) => {
                client.connected = false;
                Ok((client, value))
            }
            Ok((_, Event::Rejected(rejections))) => Err(RestoreError::Rejected(rejections)),
            Ok((_, Event::Received)) | Err(_) => Err(RestoreError::Incomplete),
        }
    }

    /// The applied set as bytes, for [`Client::restore`]; `None` before there is one.
    pub fn save(&self) -> Option<Bytes> {
        let applied = self.applied?;
        let mut response = DeltaDiscoveryResponse { type_url: TYPE_URL.to_owned(), ..Default::default() };
        let mut digest = weft_model::Digest::ZERO;
        for collection in self.state.known() {
            let name = collection_name(collection);
            let Some(entries) =
                self.state.fragments().get(collection).filter(|_| self.state.digest(collection).is_some())
            else {
                response.removed_resources.push(name);
                continue;
            };
            if is_plural(collection) {
                response.resources.push(resource(&name, fragment::encode_item(&Item::Whole)));
            }
            digest = digest.plus(super::collection_base(collection));
            for (key, entry) in entries {
                let (name, bytes) = (state::wire_name(collection, key), fragment::encode(entry));
                digest = digest.plus(entry_digest(&name, &bytes));
                response.resources.push(resource(&name, bytes));
            }
        }
        let commit = Commit { revision: applied.revision, set_digest: digest, subscriptions_seq: 0 };
        response.resources.push(resource(COMMIT, fragment::encode_item(&Item::Commit(commit))));
        Some(response.encode_to_vec().into())
    }

    /// Takes effect with the next [`Client::take_request`] or [`Client::connect`]. What belongs together (a service, its
    /// endpoints, its routes) is subscribed together, so that it arrives in one set.
    pub fn subscribe(&mut self, collections: impl IntoIterator<Item = Collection>) {
        for collection in collections {
            if !self.fewer.remove(&collection) && !self.subscribed.contains_key(&collection) {
                self.more.insert(collection);
            }
        }
    }

    pub fn unsubscribe(&mut self, collections: impl IntoIterator<Item = Collection>) {
        for collection in collections {
            if !self.more.remove(&collection) && self.subscribed.contains_key(&collection) {
                self.fewer.insert(collection);
            }
        }
    }

    pub fn is_subscribed(&self, collection: &Collection) -> bool {
        self.more.contains(collection) || (self.subscribed.contains_key(collection) && !self.fewer.contains(collection))
    }

    /// What the server said of a collection; `None`: nothing yet.
    pub fn presence(&self, collection: &Collection) -> Option<Presence> {
        self.subscribed.get(collection).filter(|since| **since <= self.answered || !self.connected)?;
        self.state.presence(collection)
    }

    pub fn applied(&self) -> Option<Commit> {
        self.applied
    }

    pub fn refused(&self) -> &BTreeMap<String, String> {
        &self.refused
    }

    pub fn fragments(&self) -> &Fragments {
        self.state.fragments()
    }

    /// Opens a stream: the first request tells what is subscribed and what of it is here already.
    pub fn connect(&mut self) -> DeltaDiscoveryRequest {
        self.disconnect();
        for collection in std::mem::take(&mut self.fewer) {
            self.subscribed.remove(&collection);
        }
        self.subscribed.extend(std::mem::take(&mut self.more).into_iter().map(|c| (c, 0)));
        self.connected = true;
        self.seq = u64::from(!self.subscribed.is_empty());
        self.answered = 0;
        let mut request = DeltaDiscoveryRequest {
            node: Some(Node { id: self.node.clone(), ..Node::default() }),
            type_url: TYPE_URL.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        for (collection, since) in &mut self.subscribed {
            *since = 1;
            let name = collection_name(collection);
            if let (Some(commit), Some(presence)) = (self.applied, self.state.presence(collection)) {
                let digest = self.state.digest(collection).filter(|_| presence == Presence::Present);
                request.initial_resource_versions.insert(name.clone(), version(commit.revision.incarnation, digest));
            }
            request.resource_names_subscribe.push(name);
        }
        if let Some(commit) = self.applied {
            request.initial_resource_versions.insert(COMMIT.to_owned(), commit.revision.to_string());
        }
        request
    }

    /// The stream is gone; what was applied stays.
    pub fn disconnect(&mut self) {
        self.connected = false;
        self.staging.clear();
        self.rejections.clear();
        self.leaving.clear();
        for since in self.subscribed.values_mut() {
            *since = 0;
        }
    }

    /// A request for changed subscriptions, when there are any and a stream is open.
    pub fn take_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.connected || (self.more.is_empty() && self.fewer.is_empty()) {
            return None;
        }
        self.seq = self.seq.saturating_add(1);
        let mut request = DeltaDiscoveryRequest { type_url: TYPE_URL.to_owned(), ..Default::default() };
        for collection in std::mem::take(&mut self.fewer) {
            request.resource_names_unsubscribe.push(collection_name(&collection));
            let since = self.subscribed.remove(&collection).unwrap_or_default();
            self.leaving.entry(collection).or_default().push((since, self.seq));
        }
        for collection in std::mem::take(&mut self.more) {
            request.resource_names_subscribe.push(collection_name(&collection));
            self.subscribed.insert(collection, self.seq);
        }
        Some(request)
    }

    /// Takes one response; `build` is asked when it completes a set, and may refuse entries by name.
    pub fn on_response<T>(
        &mut self,
        response: DeltaDiscoveryResponse,
        build: impl FnOnce(&Set<'_>) -> Result<T, Vec<BuildRejection>>,
    ) -> Result<(DeltaDiscoveryRequest, Event<T>), ClientError> {
        if response.type_url != TYPE_URL {
            return Err(ClientError::TypeUrl(response.type_url.chars().take(128).collect()));
        }
        if !self.connected {
            return Err(ClientError::NotConnected);
        }
        for name in response.removed_resources {
            self.stage_removal(&name);
        }
        let mut commit = None;
        for bytes in response.resources {
            commit = self.stage(bytes).or(commit);
        }
        let event = match commit {
            None => Event::Received,
            Some(commit) => self.finish(commit, build),
        };
        let error_detail = match &event {
            Event::Rejected(rejections) => Some(status(rejections)),
            Event::Received | Event::Applied { .. } => None,
        };
        let answer = DeltaDiscoveryRequest {
            type_url: TYPE_URL.to_owned(),
            response_nonce: response.nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok((answer, event))
    }

    /// What must hold between calls.
    pub fn check_invariants(&self) -> Result<(), String> {
        if let Some(c) = self.more.iter().find(|c| self.subscribed.contains_key(*c)) {
            return Err(format!("{c} is subscribed and yet to be"));
        }
        if let Some(c) = self.fewer.iter().find(|c| !self.subscribed.contains_key(*c)) {
            return Err(format!("{c} is not subscribed and yet to be unsubscribed"));
        }
        self.state.check_invariants()
    }

    // === staging ===

    fn reject(&mut self, resource: impl Into<String>, reason: impl Into<String>) {
        self.rejections.push(Rejection { resource: resource.into(), reason: reason.into() });
    }

    fn stage_removal(&mut self, name: &str) {
        // an unknown name is the answer to a subscription of that name: there never was anything
        let Ok(EntryName { collection, entry }) = name.parse() else { return };
        match entry {
            Some(uid) => {
                let staged = self.staging.entry(collection).or_default();
                staged.entries.insert(uid.as_str().to_owned(), StagedEntry::Removed);
            }
            None => {
                self.staging.insert(collection, Staged { removed: true, ..Staged::default() });
            }
        }
    }

    /// Returns the Commit, if it is one. What cannot be read is noted, and the set is rejected at its end.
    fn stage(&mut self, bytes: Bytes) -> Option<Commit> {
        let Resource { name, resource, .. } = match Resource::decode(bytes) {
            Ok(resource) => resource,
            Err(e) => {
                self.reject("", format!("a resource cannot be read: {e}"));
                return None;
            }
        };
        let value = match resource {
            Some(any) if any.type_url == TYPE_URL => any.value,
            _ => {
                self.reject(name, "the resource has another type than the stream");
                return None;
            }
        };
        let item = match fragment::decode(&value) {
            Ok(item) => item,
            Err(e) => {
                self.reject(name, e.to_string());
                return None;
            }
        };
        if let Item::Commit(commit) = item {
            return Some(commit);
        }
        match name.parse::<EntryName>() {
            Ok(entry) => self.stage_item(name, entry, item, &value),
            Err(e) => self.reject(name, e.to_string()),
        }
        None
    }

    fn stage_item(&mut self, name: String, entry: EntryName, item: Item, value: &[u8]) {
        let plural = is_plural(&entry.collection);
        let is_head = plural && entry.entry.is_none();
        match item {
            Item::Whole if is_head => self.staging.entry(entry.collection).or_default().whole = true,
            Item::Held if !is_head => self.stage_entry(entry, StagedEntry::Held(held_digest(&name))),
            Item::Entry(fragment) if belongs(&entry, &fragment) => {
                let staged = StagedEntry::Put(Arc::new(fragment), entry_digest(&name, value));
                self.stage_entry(entry, staged);
            }
            _ => self.reject(name, "the resource is of another kind, or of something else, than its name says"),
        }
    }

    fn stage_entry(&mut self, name: EntryName, entry: StagedEntry) {
        let key = state::key(&name);
        let staged = self.staging.entry(name.collection).or_default();
        staged.removed = false;
        staged.entries.insert(key, entry);
    }

    // === the end of a set ===

    fn finish<T>(
        &mut self,
        commit: Commit,
        build: impl FnOnce(&Set<'_>) -> Result<T, Vec<BuildRejection>>,
    ) -> Event<T> {
        let staging = std::mem::take(&mut self.staging);
        let mut rejections = std::mem::take(&mut self.rejections);
        if rejections.is_empty() {
            match self.try_apply(commit, staging, build) {
                Ok(value) => return Event::Applied { commit, value },
                Err(why) => rejections = why,
            }
        }
        for r in rejections.iter().filter(|r| !r.resource.is_empty()) {
            self.reasons.insert(r.resource.clone(), r.reason.clone());
        }
        Event::Rejected(rejections)
    }

    fn try_apply<T>(
        &mut self,
        commit: Commit,
        staging: BTreeMap<Collection, Staged>,
        build: impl FnOnce(&Set<'_>) -> Result<T, Vec<BuildRejection>>,
    ) -> Result<T, Vec<Rejection>> {
        let whole = |reason: String| vec![Rejection { resource: String::new(), reason }];
        self.check_revision(&commit, &staging).map_err(whole)?;
        let (subscribed, leaving) = (&self.subscribed, &self.leaving);
        let mut undo = self.state.apply(staging, |c| is_in_set(subscribed, leaving, c, commit.subscriptions_seq));
        let refused: BTreeMap<String, String> =
            self.state.held().map(|name| (name.clone(), self.reason(name))).collect();
        let built = self.check(&commit).map_err(whole).and_then(|()| {
            let hidden = stub::fill(&mut self.state, &refused, &mut undo).map_err(whole)?;
            let fragments = hidden.as_ref().unwrap_or(self.state.fragments());
            build(&Set { commit, fragments, refused: &refused }).map_err(named)
        });
        match built {
            Ok(value) => {
                self.reasons.retain(|name, _| refused.contains_key(name));
                self.refused = refused;
                self.leaving.retain(|_, spans| {
                    spans.retain(|(_, left)| *left > commit.subscriptions_seq);
                    !spans.is_empty()
                });
                self.applied = Some(commit);
                self.answered = commit.subscriptions_seq;
                Ok(value)
            }
            Err(why) => {
                self.state.undo(undo);
                Err(why)
            }
        }
    }

    fn reason(&self, name: &str) -> String {
        self.reasons.get(name).cloned().unwrap_or_else(|| "it was rejected before this proxy started".to_owned())
    }

    fn belongs_to(&self, collection: &Collection, seq: u64) -> bool {
        is_in_set(&self.subscribed, &self.leaving, collection, seq)
    }

    fn check_revision(&self, commit: &Commit, staging: &BTreeMap<Collection, Staged>) -> Result<(), String> {
        if commit.subscriptions_seq > self.seq {
            return Err(format!("the set knows of {} requests, {} were sent", commit.subscriptions_seq, self.seq));
        }
        let Some(Commit { revision: before, .. }) = self.applied else { return Ok(()) };
        if commit.revision < before {
            return Err(format!("the set is of revision {}, older than {before}", commit.revision));
        }
        let Revision { incarnation, .. } = commit.revision;
        if incarnation == before.incarnation {
            return Ok(());
        }
        // nothing from before may stay unless it was said again
        let kept = self.subscribed.keys().chain(self.leaving.keys()).find(|c| {
            self.belongs_to(c, commit.subscriptions_seq)
                && !staging.get(*c).is_some_and(|s| s.removed || s.whole || !is_plural(c))
        });
        match kept {
            Some(c) => Err(format!("{c} is not in the first set of incarnation {incarnation}")),
            None => Ok(()),
        }
    }

    fn check(&self, commit: &Commit) -> Result<(), String> {
        let asked = self.subscribed.keys().chain(self.leaving.keys());
        for collection in asked.filter(|c| self.belongs_to(c, commit.subscriptions_seq)) {
            if self.state.presence(collection).is_none() {
                return Err(format!("the set does not answer for {collection}"));
            }
        }
        match self.state.set_digest() {
            sum if sum == commit.set_digest => Ok(()),
            sum => Err(format!("the set's digest is {}, what was received has {sum}", commit.set_digest)),
        }
    }
}

/// Is this collection part of a set that knows of `seq` requests?
fn is_in_set(
    subscribed: &BTreeMap<Collection, u64>,
    leaving: &BTreeMap<Collection, Vec<(u64, u64)>>,
    collection: &Collection,
    seq: u64,
) -> bool {
    subscribed.get(collection).is_some_and(|since| *since <= seq)
        || leaving.get(collection).is_some_and(|spans| spans.iter().any(|(since, left)| (*since..*left).contains(&seq)))
}

/// Is the fragment what its name says?
fn belongs(name: &EntryName, fragment: &Fragment) -> bool {
    match (&name.collection, fragment) {
        (Collection::Endpoints(_), Fragment::Endpoint(e)) => name.entry.as_ref() == Some(&e.uid),
        (Collection::Endpoints(_), _) | (_, Fragment::Endpoint(_)) => false,
        (Collection::Service(key), Fragment::Service(s)) => *key == s.key,
        (Collection::Routes { service, consumer }, Fragment::Routes(r)) => {
            *service == r.service && *consumer == r.consumer
        }
        (Collection::Workload(uid), Fragment::Workload(w)) => *uid == w.uid,
        (Collection::Inbound(uid), Fragment::Inbound(i)) => *uid == i.uid,
        (Collection::Bundle(td), Fragment::Bundle(b)) => *td == b.trust_domain,
        (Collection::Revocations, Fragment::Revocations(_)) => true,
        _ => false,
    }
}

fn named(rejections: Vec<BuildRejection>) -> Vec<Rejection> {
    let name = |r: BuildRejection| match r.entry.is_empty() {
        // it misses something: no entry of its own is to blame
        true => Rejection { resource: collection_name(&r.collection), reason: r.reason },
        false => Rejection { resource: state::wire_name(&r.collection, &r.entry), reason: r.reason },
    };
    rejections.into_iter().map(name).collect()
}

fn status(rejections: &[Rejection]) -> Status {
    let list = v1::Rejections {
        rejections: rejections
            .iter()
            .map(|r| v1::Rejection { resource: r.resource.clone(), reason: r.reason.clone() })
            .collect(),
    };
    let first = rejections.first().map(|r| match r.resource.as_str() {
        "" => r.reason.clone(),
        name => format!("{name}: {}", r.reason),
    });
    Status {
        code: INVALID_ARGUMENT,
        message: first.unwrap_or_default(),
        details: vec![Any { type_url: REJECTIONS_URL.to_owned(), value: list.encode_to_vec().into() }],
    }
}
