//! The server's side of one stream: what its client has, and what to send next.
//!
//! One cursor per subscribed collection. A set starts from the cursors, goes to the newest revision, and moves them when
//! its `Commit` is acknowledged as applied; a rejection leaves them where they are. Everything on its way is shared
//! bytes; a slow client costs its own window and nothing else.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use weft_model::{Digest, Mono, Revision};
use weft_snapshot::fragment::Collection;

use self::plan::Piece;
use super::{Collections, MAX_RESPONSE, REJECTIONS_URL, parse_version, resource, ring::RESERVE};
use crate::{
    fragment::{self, Commit, Item, TYPE_URL},
    name::{COMMIT, parse_collection},
    pb::{
        envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
        google::rpc::Status,
        weft::v1::Rejections,
    },
};

/// After a set that was rejected as a whole, the next try waits: it would most likely be rejected again.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// So many sets in a row may be rejected before the next try waits, whatever each of them named.
const REJECTIONS: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// So many bytes may be on their way unacknowledged, whatever the peer's HTTP/2 window says.
    pub window: usize,
    /// So many bytes of resources go into one response; one resource always does.
    pub response: usize,
    /// Changes wait so long for company.
    pub coalesce: Duration,
    pub subscriptions: usize,
}

/// What to do now.
#[derive(Debug, Default)]
pub struct Poll {
    pub send: Vec<DeltaDiscoveryResponse>,
    /// Poll again then, if nothing else happens before.
    pub wake_at: Option<Mono>,
}

/// The peer does not speak our protocol: the stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("type URL `{0}` is not served on this stream, only {TYPE_URL}")]
    TypeUrl(String),
    #[error("nonce `{0}` acknowledges nothing that is on its way")]
    Nonce(String),
    #[error("more than {0} subscriptions")]
    Subscriptions(usize),
}

/// What an operator may ask about a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionStatus {
    /// The last set that the client applied.
    pub applied: Option<Commit>,
    /// The set on its way.
    pub offered: Option<Revision>,
    /// Entries that the client rejected, and why; they are held until they change.
    pub rejected: Vec<(String, String)>,
    /// Why the last set was rejected as a whole.
    pub rejected_set: Option<String>,
    pub subscriptions: usize,
    pub last_ack: Option<Mono>,
    /// The client has a later revision than this server knows: it is told nothing until the server is there.
    pub waiting_for: Option<Revision>,
}

#[derive(Debug)]
pub struct Session {
    /// Tells this stream's nonces from those of another.
    id: u64,
    limits: Limits,
    /// One cursor per collection.
    subscribed: BTreeMap<Collection, Mark>,
    /// Subscribed, but no name that this version knows: answered as removed.
    unknown: BTreeSet<String>,
    /// Counts requests that changed subscriptions.
    subscriptions_seq: u64,
    /// What the last set took into account.
    answered_seq: u64,
    epoch: u64,
    /// How far `Collections::changed_since` was read.
    seen: u64,
    /// Subscribed collections that may differ from what the client has.
    dirty: BTreeSet<Collection>,
    dirty_since: Option<Mono>,
    /// Rejected entries by name.
    held: BTreeMap<Arc<str>, Held>,
    nonces: u64,
    sending: Option<Sending>,
    /// A set that came back, until the next poll looks into it.
    refused: Option<Sending>,
    /// In a row.
    rejections: u32,
    applied: Option<Commit>,
    /// The client was there already: nothing older is offered to it.
    not_before: Revision,
    rejected_set: Option<String>,
    retry_at: Option<Mono>,
    retry: Duration,
    last_ack: Option<Mono>,
    started: bool,
}

/// What the client has of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Nothing that could be compared.
    Nothing,
    /// What it says it has, from before this stream; `None`: it knows that the collection is not there.
    Claimed(Option<Digest>),
    /// It knows that the collection is not there.
    Absent,
    /// The collection as of `Collections::seq`, counted as `digest` (entries held count as such).
    At { seq: u64, digest: Digest },
}

#[derive(Debug)]
struct Held {
    collection: Collection,
    /// The version that was rejected is no newer than this.
    seq: u64,
    reason: String,
    told: Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    No,
    InThisSet,
    Yes,
}

/// A set on its way.
#[derive(Debug)]
struct Sending {
    commit: Commit,
    epoch: u64,
    seq: u64,
    queue: VecDeque<Piece>,
    /// Where the cursors go when it is applied.
    marks: BTreeMap<Collection, Mark>,
    /// Sent and not acknowledged: nonce and size.
    on_the_way: VecDeque<(u64, usize)>,
    bytes_on_the_way: usize,
    commit_nonce: Option<u64>,
    rejections: Vec<crate::v1::Rejection>,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 4 * MAX_RESPONSE,
            response: MAX_RESPONSE - RESERVE / 2,
            coalesce: Duration::from_millis(20),
            subscriptions: 50_000,
        }
    }
}

// === impl Session ===

impl Session {
    /// `id` differs between streams of one server, as far as a client could mix them up.
    pub fn new(id: u64, limits: Limits) -> Self {
        Self {
            id,
            limits,
            subscribed: BTreeMap::new(),
            unknown: BTreeSet::new(),
            subscriptions_seq: 0,
            answered_seq: 0,
            epoch: 0,
            seen: 0,
            dirty: BTreeSet::new(),
            dirty_since: None,
            held: BTreeMap::new(),
            nonces: 0,
            sending: None,
            refused: None,
            rejections: 0,
            applied: None,
            not_before: Revision::ZERO,
            rejected_set: None,
            retry_at: None,
            retry: RETRY,
            last_ack: None,
            started: false,
        }
    }

    /// Takes one request: subscriptions, acknowledgements, or both. Poll afterwards.
    pub fn on_request(&mut self, now: Mono, request: DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        if request.type_url != TYPE_URL && !(self.started && request.type_url.is_empty()) {
            return Err(ProtocolError::TypeUrl(request.type_url));
        }
        if !request.response_nonce.is_empty() {
            self.answered(now, &request.response_nonce, request.error_detail.as_ref())?;
        }
        let initial = if self.started { BTreeMap::new() } else { request.initial_resource_versions };
        self.started = true;
        if let Some(revision) = initial.get(COMMIT).and_then(|text| text.parse().ok()) {
            self.not_before = revision;
        }
        self.subscribe(now, &request.resource_names_subscribe, &request.resource_names_unsubscribe, &initial)
    }

    /// What is to be sent now. `may_subscribe` is asked for collections that changed, and for all after
    /// [`Session::recheck`].
    pub fn poll(&mut self, now: Mono, all: &Collections, may_subscribe: &dyn Fn(&Collection) -> bool) -> Poll {
        self.look_for_changes(now, all);
        if let Some(set) = self.refused.take() {
            self.set_rejected(now, set, all);
        }
        let mut out = Poll::default();
        if self.sending.is_none() {
            match self.due(now, all) {
                Due::Now => self.start(all, may_subscribe),
                Due::At(at) => out.wake_at = Some(at),
                Due::Never => {}
            }
        }
        self.pump(&mut out.send);
        debug_assert_eq!(self.check_invariants(), Ok(()));
        out
    }

    /// Who may see what has changed: the next poll asks again for every subscription.
    pub fn recheck(&mut self, now: Mono) {
        self.dirty.extend(self.subscribed.keys().cloned());
        self.dirty_since.get_or_insert(now);
    }

    pub fn is_subscribed(&self, collection: &Collection) -> bool {
        self.subscribed.contains_key(collection)
    }

    pub fn subscriptions(&self) -> impl Iterator<Item = &Collection> {
        self.subscribed.keys()
    }

    /// Has the client applied this collection as of `seq` ([`Collections::last_change`])? `None`: not subscribed.
    pub fn has_applied(&self, collection: &Collection, seq: u64) -> Option<bool> {
        Some(match self.subscribed.get(collection)? {
            Mark::At { seq: at, .. } => *at >= seq,
            Mark::Nothing | Mark::Claimed(_) | Mark::Absent => false,
        })
    }

    /// Has the client applied everything that concerns it up to `all.head()`? Rejected entries do not count as applied.
    pub fn is_current(&self, all: &Collections) -> bool {
        self.applied.is_some()
            && self.dirty.is_empty()
            && self.held.is_empty()
            && self.rejected_set.is_none()
            && self.answered_seq == self.subscriptions_seq
            && self.is_settled(all)
    }

    /// Has the client rejected something of what is published now, with nothing on its way that could end that?
    pub fn has_rejected(&self, all: &Collections) -> bool {
        // a set that is wrong as a whole is kept to be sent again
        let nothing_planned = self.dirty.is_empty() || self.rejected_set.is_some();
        (self.rejected_set.is_some() || !self.held.is_empty()) && nothing_planned && self.is_settled(all)
    }

    /// Nothing is on its way, and nothing that concerns the client has been published since its last set was made.
    fn is_settled(&self, all: &Collections) -> bool {
        self.sending.is_none()
            && self.refused.is_none()
            && self.epoch == all.epoch()
            && all.changed_since(self.seen).is_some_and(|mut changed| !changed.any(|c| self.subscribed.contains_key(c)))
    }

    pub fn status(&self) -> SessionStatus {
        SessionStatus {
            applied: self.applied,
            offered: self.sending.as_ref().map(|s| s.commit.revision),
            rejected: self.held.iter().map(|(name, held)| (name.to_string(), held.reason.clone())).collect(),
            rejected_set: self.rejected_set.clone(),
            subscriptions: self.subscribed.len(),
            last_ack: self.last_ack,
            waiting_for: Some(self.not_before).filter(|r| *r > Revision::ZERO && !self.has_answered()),
        }
    }

    /// What must hold between calls.
    pub fn check_invariants(&self) -> Result<(), String> {
        if let Some(c) = self.dirty.iter().find(|c| !self.subscribed.contains_key(*c)) {
            return Err(format!("{c:?} is dirty and not subscribed"));
        }
        if let Some((name, _)) = self.held.iter().find(|(_, h)| !self.subscribed.contains_key(&h.collection)) {
            return Err(format!("`{name}` is held and not subscribed"));
        }
        let Some(s) = &self.sending else {
            let told = self.held.values().all(|h| h.told != Told::InThisSet);
            return if told || self.refused.is_some() {
                Ok(())
            } else {
                Err("held in a set that is not on its way".into())
            };
        };
        let sum: usize = s.on_the_way.iter().map(|(_, bytes)| bytes).sum();
        if sum != s.bytes_on_the_way {
            return Err(format!("{} bytes are counted, {sum} are on their way", s.bytes_on_the_way));
        }
        if s.on_the_way.len() > 1 && sum > self.limits.window + MAX_RESPONSE {
            return Err(format!("{sum} bytes are on their way, more than the window"));
        }
        if s.commit_nonce.is_some() != s.queue.is_empty() {
            return Err("the Commit was sent early or not at all".into());
        }
        Ok(())
    }

    // === requests ===

    fn subscribe(
        &mut self,
        now: Mono,
        more: &[String],
        fewer: &[String],
        initial: &BTreeMap<String, String>,
    ) -> Result<(), ProtocolError> {
        if more.is_empty() && fewer.is_empty() {
            return Ok(());
        }
        self.subscriptions_seq = self.subscriptions_seq.saturating_add(1);
        for collection in fewer.iter().filter_map(|name| parse_collection(name).ok()) {
            self.subscribed.remove(&collection);
            self.dirty.remove(&collection);
            self.held.retain(|_, h| h.collection != collection);
        }
        for name in more {
            let Ok(collection) = parse_collection(name) else {
                self.unknown.insert(name.clone());
                continue;
            };
            let claim = initial.get(name).and_then(|text| parse_version(text));
            let mark = match claim {
                // an empty store has no incarnation that could be compared; `look_for_changes` voids stale claims
                Some((incarnation, digest)) if incarnation == self.not_before.incarnation => Mark::Claimed(digest),
                _ => Mark::Nothing,
            };
            // asked twice: the answer is given again, from what it has
            self.subscribed.entry(collection.clone()).or_insert(mark);
            self.dirty.insert(collection);
        }
        self.dirty_since.get_or_insert(now);
        match self.subscribed.len().saturating_add(self.unknown.len()) {
            n if n > self.limits.subscriptions => Err(ProtocolError::Subscriptions(self.limits.subscriptions)),
            _ => Ok(()),
        }
    }

    fn answered(&mut self, now: Mono, nonce: &str, error: Option<&Status>) -> Result<(), ProtocolError> {
        let unknown = || ProtocolError::Nonce(nonce.chars().take(64).collect());
        let (id, n) = nonce.split_once('-').ok_or_else(unknown)?;
        // of another stream: nothing that concerns this one
        if id.parse() != Ok(self.id) {
            return Ok(());
        }
        let n: u64 = n.parse().map_err(|_| unknown())?;
        let sending = self.sending.as_mut().ok_or_else(unknown)?;
        match sending.on_the_way.front() {
            Some((oldest, bytes)) if *oldest == n => {
                sending.bytes_on_the_way = sending.bytes_on_the_way.saturating_sub(*bytes);
                sending.on_the_way.pop_front();
            }
            _ => return Err(unknown()),
        }
        self.last_ack = Some(now);
        if let Some(error) = error {
            sending.rejections.extend(rejections(error));
        }
        if sending.commit_nonce == Some(n)
            && let Some(sending) = self.sending.take()
        {
            if sending.rejections.is_empty() {
                self.set_applied(sending);
            } else {
                self.refused = Some(sending);
            }
        }
        Ok(())
    }

    fn set_applied(&mut self, set: Sending) {
        // one that was left and subscribed again meanwhile moves too: the client has kept it
        for (collection, mark) in set.marks.into_iter().filter(|_| set.epoch == self.epoch) {
            if let Some(cursor) = self.subscribed.get_mut(&collection) {
                *cursor = mark;
            }
        }
        for held in self.held.values_mut().filter(|h| h.told == Told::InThisSet) {
            held.told = Told::Yes;
        }
        self.applied = Some(set.commit);
        self.rejected_set = None;
        self.rejections = 0;
        self.retry = RETRY;
    }

    /// The client is back at the last set that it applied, and so are the cursors. An entry that it named is held; where
    /// that leads nowhere, the set is wrong as a whole and is sent anew in full, later.
    fn set_rejected(&mut self, now: Mono, set: Sending, all: &Collections) {
        for held in self.held.values_mut().filter(|h| h.told == Told::InThisSet) {
            held.told = Told::No;
        }
        self.rejections = self.rejections.saturating_add(1);
        let (mut progress, mut whole) = (false, None);
        for crate::v1::Rejection { resource, reason } in set.rejections {
            let named = plan::collection_of(&resource);
            let left = self.subscriptions_seq > set.commit.subscriptions_seq;
            let changed =
                named.as_ref().is_some_and(|c| self.dirty.contains(c) || (left && !self.subscribed.contains_key(c)));
            let subscribed = named.as_ref().filter(|c| self.subscribed.contains_key(*c));
            let entry = subscribed.and_then(|c| all.get(c)).and_then(|ring| ring.entries.get(&*resource));
            let again = self.held.get(&*resource).is_some_and(|h| h.seq >= set.seq);
            match named {
                // what it rejected is not what it would get now
                Some(_) if changed => progress = true,
                Some(collection) if entry.is_some() && !again => {
                    progress = true;
                    let held = Held { collection, seq: set.seq, reason, told: Told::No };
                    self.held.insert(resource.into(), held);
                }
                _ if resource.is_empty() => whole = Some(reason),
                _ => whole = whole.or_else(|| Some(format!("{resource}: {reason}"))),
            }
        }
        self.dirty.extend(set.marks.into_keys().filter(|c| self.subscribed.contains_key(c)));
        self.dirty.extend(self.held.values().filter(|h| h.told == Told::No).map(|h| h.collection.clone()));
        self.dirty_since.get_or_insert(now);
        // what it changed must be said again
        self.answered_seq = self.applied.map_or(0, |c| c.subscriptions_seq);
        let whole = whole.filter(|_| !progress);
        if whole.is_some() {
            self.forget();
            self.rejected_set = whole;
        }
        if self.rejected_set.is_some() || self.rejections > REJECTIONS {
            self.retry_at = Some(now.plus(self.retry));
            self.retry = self.retry.saturating_mul(2).min(RETRY_MOST);
        }
    }

    /// Nothing that the client has may be compared any more.
    fn forget(&mut self) {
        for cursor in self.subscribed.values_mut() {
            *cursor = Mark::Nothing;
        }
        for held in self.held.values_mut() {
            held.told = Told::No;
        }
        self.dirty.extend(self.subscribed.keys().cloned());
    }

    // === sets ===

    fn look_for_changes(&mut self, now: Mono, all: &Collections) {
        let restored = self.epoch != all.epoch();
        if restored {
            // at the start of a stream what the client has from this incarnation still counts
            let same = !self.has_answered() && self.not_before.incarnation == all.head().incarnation;
            if !same {
                self.forget();
                self.held.clear();
            }
            self.epoch = all.epoch();
        }
        match all.changed_since(self.seen) {
            Some(changed) => self.dirty.extend(changed.filter(|c| self.subscribed.contains_key(*c)).cloned()),
            None => self.dirty.extend(self.subscribed.keys().cloned()),
        }
        self.seen = all.seq();
        if self.dirty.is_empty() {
            self.dirty_since = None;
        } else {
            self.dirty_since.get_or_insert(now);
        }
    }

    fn has_answered(&self) -> bool {
        self.nonces > 0
    }

    fn due(&self, now: Mono, all: &Collections) -> Due {
        let asked = self.answered_seq != self.subscriptions_seq;
        // what has not read its store yet would answer that nothing is there; incarnations, too, only go forward
        let behind = all.head() < self.not_before || all.head() == Revision::ZERO;
        if !self.started || behind || !(asked || self.dirty_since.is_some()) {
            return Due::Never;
        }
        let coalesced = match self.dirty_since {
            Some(since) if !asked => since.plus(self.limits.coalesce),
            _ => now,
        };
        match coalesced.max(self.retry_at.unwrap_or(now)) {
            at if at > now => Due::At(at),
            _ => Due::Now,
        }
    }

    /// Plans a set from the cursors to the newest revision.
    fn start(&mut self, all: &Collections, may_subscribe: &dyn Fn(&Collection) -> bool) {
        self.retry_at = None;
        self.dirty_since = None;
        let mut marks = BTreeMap::new();
        let mut queue = VecDeque::new();
        for name in std::mem::take(&mut self.unknown) {
            queue.push_back(Piece::Removed(name.into()));
        }
        for collection in std::mem::take(&mut self.dirty) {
            let Some(&cursor) = self.subscribed.get(&collection) else { continue };
            let ring = all.get(&collection).filter(|_| may_subscribe(&collection));
            let mark = plan::collection(&collection, cursor, ring, all.seq(), &mut self.held, &mut queue);
            if mark != cursor {
                marks.insert(collection, mark);
            }
        }
        let asked = self.answered_seq != self.subscriptions_seq;
        if queue.is_empty() && !asked && self.applied.is_some() {
            // it changed there and back, or it concerned what this client may not see
            for (collection, mark) in marks {
                if let Some(cursor) = self.subscribed.get_mut(&collection) {
                    *cursor = mark;
                }
            }
            return;
        }
        let digest = |(collection, cursor): (&Collection, &Mark)| match marks.get(collection).unwrap_or(cursor) {
            Mark::At { digest, .. } => *digest,
            Mark::Nothing | Mark::Claimed(_) | Mark::Absent => Digest::ZERO,
        };
        let set_digest = self.subscribed.iter().map(digest).fold(Digest::ZERO, Digest::plus);
        self.answered_seq = self.subscriptions_seq;
        let commit = Commit { revision: all.head(), set_digest, subscriptions_seq: self.subscriptions_seq };
        queue.push_back(Piece::Resource(resource(COMMIT, fragment::encode_item(&Item::Commit(commit)))));
        self.sending = Some(Sending {
            commit,
            epoch: self.epoch,
            seq: all.seq(),
            queue,
            marks,
            on_the_way: VecDeque::new(),
            bytes_on_the_way: 0,
            commit_nonce: None,
            rejections: Vec::new(),
        });
    }

    /// As many responses as the window takes.
    fn pump(&mut self, out: &mut Vec<DeltaDiscoveryResponse>) {
        let Some(sending) = &mut self.sending else { return };
        while !sending.queue.is_empty()
            && (sending.on_the_way.is_empty() || sending.bytes_on_the_way < self.limits.window)
        {
            self.nonces = self.nonces.saturating_add(1);
            let mut response = DeltaDiscoveryResponse {
                system_version_info: sending.commit.revision.to_string(),
                type_url: TYPE_URL.to_owned(),
                nonce: format!("{}-{}", self.id, self.nonces),
                ..DeltaDiscoveryResponse::default()
            };
            let mut bytes = 0;
            while let Some(piece) = sending.queue.front() {
                bytes += piece.len();
                if bytes > self.limits.response
                    && !(response.resources.is_empty() && response.removed_resources.is_empty())
                {
                    bytes -= piece.len();
                    break;
                }
                match sending.queue.pop_front() {
                    Some(Piece::Resource(resource)) => response.resources.push(resource),
                    Some(Piece::Removed(name)) => response.removed_resources.push(name.to_string()),
                    None => break,
                }
            }
            sending.on_the_way.push_back((self.nonces, bytes));
            sending.bytes_on_the_way += bytes;
            if sending.queue.is_empty() {
                sending.commit_nonce = Some(self.nonces);
            }
            out.push(response);
        }
    }
}

enum Due {
    Now,
    At(Mono),
    Never,
}

/// What a rejection names; as a whole where it names nothing that can be read.
fn rejections(error: &Status) -> Vec<crate::v1::Rejection> {
    let named: Vec<_> = error
        .details
        .iter()
        .filter(|any| any.type_url == REJECTIONS_URL)
        .filter_map(|any| Rejections::decode(Bytes::clone(&any.value)).ok())
        .flat_map(|r| r.rejections)
        .collect();
    if named.is_empty() {
        return vec![crate::v1::Rejection { resource: String::new(), reason: error.message.clone() }];
    }
    named
}
