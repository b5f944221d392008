//! What each connected proxy is told and has acknowledged.
//!
//! One lock guards what is published; each stream's own state has its own. Neither is held across an await, and where
//! both are needed the published one comes first.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use weft_model::{Mono, Revision, SpiffeId, TrustDomain, Uid};
use weft_resources::{Affected, World, compile};
use weft_rt::Clock;
use weft_snapshot::fragment::{self, Collection, Fragment};
use weft_wire::{
    delta::{Change, Collections, Limits, Poll, ProtocolError, Session, SessionStatus},
    fragment::encode,
    grpc::DeltaDiscoveryRequest,
    name::parse_collection,
};

use crate::{may_subscribe::may_subscribe, metrics::Metrics};

/// For so many publications it is known when they were made.
const HEADS: usize = 1024;
/// For so many applied sets it is known when a stream acknowledged them.
const ACKS: usize = 64;

pub struct Sessions {
    published: Mutex<Published>,
    /// Counts publications that changed something: streams poll.
    changed: watch::Sender<u64>,
    /// Counts what may let a waiter go on: acknowledgements, publications, streams that come and go.
    progress: watch::Sender<u64>,
    next_id: AtomicU64,
    clock: Clock,
    metrics: Arc<Metrics>,
}

struct Published {
    collections: Collections,
    /// How many streams subscribed to it. Nothing is compiled that nobody wants.
    wanted: BTreeMap<Collection, usize>,
    world: Arc<World>,
    ours: TrustDomain,
    bundle: fragment::Bundle,
    heads: VecDeque<(Revision, Mono)>,
    streams: BTreeMap<u64, Arc<Stream>>,
}

/// One proxy's stream.
pub struct Stream {
    pub id: u64,
    /// As the proxy calls itself; what it may see follows from its principal alone.
    pub node: String,
    pub version: String,
    pub principal: SpiffeId,
    pub since: Mono,
    pub sent_bytes: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    session: Session,
    subscribed: BTreeSet<Collection>,
    acks: VecDeque<(Revision, Mono)>,
    offered_at: Option<Mono>,
}

/// What a change touches.
pub enum Touched<'a> {
    Everything,
    These(&'a Affected),
}

/// Where one stream stands.
#[derive(Debug, Clone)]
pub struct Standing {
    pub node: String,
    pub version: String,
    pub principal: SpiffeId,
    pub status: SessionStatus,
    /// Everything that concerns it is applied.
    pub current: bool,
    pub connected_for: Duration,
    pub sent_bytes: u64,
}

/// Where one stream stands with respect to a revision.
#[derive(Debug, Clone)]
pub struct Acked {
    pub standing: Standing,
    pub done: bool,
    /// It has rejected something of what is published now: waiting does not help.
    pub rejected: bool,
    /// After the publication; `None` when it needed nothing of it, or it is not done.
    pub after: Option<Duration>,
}

// === impl Sessions ===

impl Sessions {
    pub fn new(
        world: Arc<World>,
        revision: Revision,
        bundle: fragment::Bundle,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut collections = Collections::new();
        // nothing is in it yet, so nothing can be too large
        let _ = collections.apply(revision, Vec::new());
        let published = Published {
            collections,
            wanted: BTreeMap::new(),
            ours: world.mesh.trust_domain.clone(),
            world,
            bundle,
            heads: VecDeque::from([(revision, clock.mono())]),
            streams: BTreeMap::new(),
        };
        let ((changed, _), (progress, _)) = (watch::channel(0), watch::channel(0));
        // stream ids differ between starts of a server: a nonce of an earlier one must not be taken for ours
        let next_id = AtomicU64::new(clock.mono().as_nanos() >> 10);
        Self { published: Mutex::new(published), changed, progress, next_id, clock, metrics }
    }

    /// The world at `revision`: compiles what is wanted and touched, and has the streams poll if anything differs.
    pub fn publish(&self, revision: Revision, world: Arc<World>, touched: &Touched<'_>) {
        let now = self.clock.mono();
        let differs = {
            let mut published = self.lock();
            published.world = world;
            published.heads.push_back((revision, now));
            while published.heads.len() > HEADS {
                published.heads.pop_front();
            }
            let wanted: Vec<_> = published
                .wanted
                .keys()
                .filter(|c| match touched {
                    Touched::Everything => true,
                    Touched::These(affected) => affected.touches(c),
                })
                .cloned()
                .collect();
            self.metrics.compiled.add(wanted.len() as u64);
            let changes = wanted.iter().flat_map(|c| published.compile(c)).collect();
            published.apply(revision, changes)
        };
        if differs {
            self.changed.send_modify(|n| *n += 1);
        }
        self.progress();
    }

    /// Whom to trust changed.
    pub fn trust(&self, bundle: fragment::Bundle) {
        let differs = {
            let mut published = self.lock();
            published.bundle = bundle;
            let collection = Collection::Bundle(published.ours.clone());
            let head = published.collections.head();
            if published.wanted.contains_key(&collection) {
                let changes = published.compile(&collection);
                published.apply(head, changes)
            } else {
                false
            }
        };
        if differs {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    pub fn open(&self, node: String, version: String, principal: SpiffeId) -> Arc<Stream> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let session = Session::new(id, Limits::default());
        let inner = Inner { session, subscribed: BTreeSet::new(), acks: VecDeque::new(), offered_at: None };
        let stream = Arc::new(Stream {
            id,
            node,
            version,
            principal,
            since: self.clock.mono(),
            sent_bytes: AtomicU64::new(0),
            inner: Mutex::new(inner),
        });
        self.lock().streams.insert(id, stream.clone());
        self.progress();
        stream
    }

    pub fn close(&self, stream: &Stream) {
        {
            let mut published = self.lock();
            published.streams.remove(&stream.id);
            for collection in std::mem::take(&mut stream.lock().subscribed) {
                published.unwant(&collection);
            }
        }
        self.progress();
    }

    /// Compiles what the request asks for first, so that the answer to it can be given at once.
    pub fn on_request(&self, stream: &Stream, request: DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        let now = self.clock.mono();
        let rejected = request.error_detail.is_some();
        let (before, after) = {
            let mut published = self.lock();
            let mut inner = stream.lock();
            let parsed = |names: &[String]| names.iter().filter_map(|n| parse_collection(n).ok()).collect::<Vec<_>>();
            let (more, fewer) =
                (parsed(&request.resource_names_subscribe), parsed(&request.resource_names_unsubscribe));
            for collection in fewer {
                if inner.subscribed.remove(&collection) {
                    published.unwant(&collection);
                }
            }
            for collection in more {
                if inner.subscribed.insert(collection.clone()) {
                    published.want(collection);
                }
            }
            let before = inner.session.status().applied.map(|c| c.revision);
            inner.session.on_request(now, request)?;
            let after = inner.session.status().applied.map(|c| c.revision);
            if let Some(revision) = after.filter(|_| before != after) {
                inner.acks.push_back((revision, now));
                while inner.acks.len() > ACKS {
                    inner.acks.pop_front();
                }
                if let Some(at) = published.published_at(revision) {
                    self.metrics.convergence.observe(now.since(at));
                }
            }
            (before, after)
        };
        if rejected {
            self.metrics.rejects.add(1);
        }
        if rejected || before != after {
            self.progress();
        }
        Ok(())
    }

    /// What to send on the stream now.
    pub fn poll(&self, stream: &Stream) -> Poll {
        let now = self.clock.mono();
        let published = self.lock();
        let mut inner = stream.lock();
        let Published { collections, world, ours, .. } = &*published;
        let allowed = |c: &Collection| may_subscribe(&stream.principal, c, world, ours).is_allow();
        let poll = inner.session.poll(now, collections, &allowed);
        if !poll.send.is_empty() {
            let bytes: usize = poll.send.iter().flat_map(|r| &r.resources).map(bytes::Bytes::len).sum();
            stream.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.metrics.sent_bytes.add(bytes as u64);
            self.metrics.pushes.add(poll.send.len() as u64);
            inner.offered_at = Some(now);
            if let Some((_, at)) = published.heads.back() {
                self.metrics.queue_time.observe(now.since(*at));
            }
        }
        drop(inner);
        drop(published);
        // there and back may also have made it current
        self.progress();
        poll
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn watch_progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Of the streams that are who they say.
    pub fn standings(&self) -> Vec<Standing> {
        let (now, published) = (self.clock.mono(), self.lock());
        published.themselves().map(|s| standing(now, &published, s)).collect()
    }

    /// How each stream that is who it says stands to `revision`. Empty `None`: it is not published yet.
    pub fn acked(&self, revision: Revision) -> Option<Vec<Acked>> {
        let (now, published) = (self.clock.mono(), self.lock());
        if published.collections.head() < revision {
            return None;
        }
        let at = published.published_at(revision);
        let one = |stream: &Arc<Stream>| {
            let standing = standing(now, &published, stream);
            let inner = stream.lock();
            let applied = standing.status.applied.is_some_and(|c| c.revision >= revision);
            // what rejected something of it has not applied it
            let refused = !standing.status.rejected.is_empty() || standing.status.rejected_set.is_some();
            let ack = inner.acks.iter().find(|(r, _)| *r >= revision).map(|(_, t)| *t);
            let done = standing.current || applied && !refused;
            let after = ack.zip(at).filter(|_| done).map(|(ack, at)| ack.since(at));
            let rejected = inner.session.has_rejected(&published.collections);
            Acked { standing, done, rejected, after }
        };
        Some(published.themselves().map(one).collect())
    }

    /// Of the streams that may send to the workload: how many have applied what is published of it now, and how many
    /// there are.
    pub fn callers_of(&self, uid: &Uid) -> (usize, usize) {
        let published = self.lock();
        let is_of = |c: &&Collection| match c {
            Collection::Endpoints(key) => weft_resources::compile_endpoints(&published.world, key).contains_key(uid),
            _ => false,
        };
        let of: Vec<_> = published.wanted.keys().filter(is_of).cloned().collect();
        let (mut applied, mut total) = (0, 0);
        // a caller that is not registered (yet, or any more) may send too: only who says it is another is left out
        let forged = |s: &Stream| {
            is_registered(&published.world, &s.node) && !is_itself(&published.world, &s.node, &s.principal)
        };
        for stream in published.streams.values().filter(|s| !forged(s)) {
            let inner = stream.lock();
            let mine: Vec<_> = of.iter().filter(|c| inner.subscribed.contains(*c)).collect();
            if mine.is_empty() {
                continue;
            }
            total += 1;
            let has = |c: &&Collection| match published.collections.last_change(c) {
                Some(seq) => inner.session.has_applied(c, seq).unwrap_or(true),
                None => true,
            };
            if inner.session.is_current(&published.collections) || mine.iter().all(has) {
                applied += 1;
            }
        }
        (applied, total)
    }

    pub fn counts(&self) -> (usize, usize) {
        let published = self.lock();
        (published.streams.len(), published.wanted.len())
    }

    fn progress(&self) {
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name is a claim; the identity in the catalog under it must be that of the connection.
pub fn is_itself(world: &World, claimed: &str, principal: &SpiffeId) -> bool {
    let Ok(uid) = Uid::parse(claimed) else { return false };
    world.catalog.get(&uid).is_some_and(|i| i.identity.as_ref() == Some(principal))
}

fn is_registered(world: &World, claimed: &str) -> bool {
    Uid::parse(claimed).is_ok_and(|uid| world.catalog.get(&uid).is_some())
}

fn standing(now: Mono, published: &Published, stream: &Stream) -> Standing {
    let inner = stream.lock();
    Standing {
        node: stream.node.clone(),
        version: stream.version.clone(),
        principal: stream.principal.clone(),
        status: inner.session.status(),
        current: inner.session.is_current(&published.collections),
        connected_for: now.since(stream.since),
        sent_bytes: stream.sent_bytes.load(Ordering::Relaxed),
    }
}

// === impl Published ===

impl Published {
    fn want(&mut self, collection: Collection) {
        let n = self.wanted.entry(collection.clone()).or_default();
        *n += 1;
        if *n == 1 {
            let changes = self.compile(&collection);
            let head = self.collections.head();
            self.apply(head, changes);
        }
    }

    fn unwant(&mut self, collection: &Collection) {
        let Some(n) = self.wanted.get_mut(collection) else { return };
        *n -= 1;
        if *n == 0 {
            self.wanted.remove(collection);
            let head = self.collections.head();
            self.apply(head, vec![Change::Drop(collection.clone())]);
        }
    }

    /// The collection as the world has it now.
    fn compile(&self, collection: &Collection) -> Vec<Change> {
        let entries: Vec<(Option<Uid>, bytes::Bytes)> = match collection {
            Collection::Bundle(td) if *td == self.ours => vec![(None, encode(&Fragment::Bundle(self.bundle.clone())))],
            Collection::Bundle(_) => Vec::new(),
            Collection::Revocations => vec![(None, encode(&Fragment::Revocations(fragment::Revocations::default())))],
            _ => compile(&self.world, collection).into_values().map(|f| (entry_of(&f), encode(&f))).collect(),
        };
        // a service without endpoints is there, with none; one that nobody knows is not
        let unknown = match collection {
            Collection::Endpoints(key) => {
                entries.is_empty() && weft_resources::compile_service(&self.world, key).is_none()
            }
            _ => entries.is_empty(),
        };
        if unknown {
            return vec![Change::Drop(collection.clone())];
        }
        vec![Change::Whole(collection.clone(), entries)]
    }

    /// What does not fit a response is left as it was, and told; everything else is taken.
    fn apply(&mut self, revision: Revision, changes: Vec<Change>) -> bool {
        match self.collections.apply(revision, changes.clone()) {
            Ok(differs) => differs,
            Err(_) => {
                let mut differs = false;
                for change in changes {
                    match self.collections.apply(revision, vec![change]) {
                        Ok(d) => differs |= d,
                        Err(e) => tracing::error!(error = %e, "not published: proxies keep what they have of it"),
                    }
                }
                differs
            }
        }
    }

    /// Whoever claims another's name is served what its own principal may see, and counts as nobody.
    fn themselves(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.streams.values().filter(|s| is_itself(&self.world, &s.node, &s.principal))
    }

    fn published_at(&self, revision: Revision) -> Option<Mono> {
        self.heads.iter().find(|(r, _)| *r >= revision).map(|(_, at)| *at)
    }
}

fn entry_of(fragment: &Fragment) -> Option<Uid> {
    match fragment {
        Fragment::Endpoint(e) => Some(e.uid.clone()),
        _ => None,
    }
}
