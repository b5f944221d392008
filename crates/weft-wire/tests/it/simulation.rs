//! Servers and clients under adversarial steps: streams cut, requests of dead streams repeated, slow readers, bad
//! fragments, lost resources, a replica that lags, crashes, restores, access given and taken. Then the faults end, and
//! every client must hold exactly what it may see of the newest revision, and get nothing twice.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use prost::Message as _;
use weft_model::{Digest, Mono, Revision};
use weft_sim::seeded::{Dice, Seeds, Sim, World, replays_alike, run_all};
use weft_snapshot::{
    fragment::{Action, Collection, DefaultAction, Fragment},
    snapshot::Rejection,
};
use weft_wire::{
    delta::{Client, Collections, Event, Limits, Presence, Session},
    fragment::{Item, decode, encode},
    grpc::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    name::{COMMIT, EntryName},
    pb::envoy::service::discovery::v3::Resource,
};

use crate::world::{self, Content, History};

const CLIENTS: usize = 3;
const REPLICAS: usize = 2;
const STEPS: usize = 600;

/// What the runs must have seen, or they prove nothing.
static SEEN: Seen = Seen {
    parts: AtomicUsize::new(0),
    applied: AtomicUsize::new(0),
    rejected_entries: AtomicUsize::new(0),
    rejected_sets: AtomicUsize::new(0),
    denied: AtomicUsize::new(0),
    kept: AtomicUsize::new(0),
};

#[derive(Debug)]
struct Seen {
    parts: AtomicUsize,
    applied: AtomicUsize,
    rejected_entries: AtomicUsize,
    rejected_sets: AtomicUsize,
    /// Authorization that was rejected and denies.
    denied: AtomicUsize,
    /// Entries that were rejected and stay at their last version.
    kept: AtomicUsize,
}

struct Mesh {
    history: History,
    replicas: Vec<Replica>,
    peers: Vec<Peer>,
    streams: u64,
    /// Half of the runs leave bad fragments where they are.
    mends: bool,
    healing: Healing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Healing {
    NotYet,
    First,
    /// All streams were cut at rest and opened again: bytes are counted.
    Again,
}

/// A server: publishes the history, perhaps later than another.
struct Replica {
    all: Collections,
    published: usize,
}

struct Peer {
    client: Client,
    stream: Option<Stream>,
    forbidden: BTreeSet<Collection>,
    /// Was forbidden at any time: it may be absent from a set of any revision.
    ever_forbidden: BTreeSet<Collection>,
    /// Acknowledgements of streams that are gone.
    late: Vec<DeltaDiscoveryRequest>,
    last: Option<Revision>,
    /// Every version of an entry that was applied as it is.
    applied: BTreeSet<(String, Digest)>,
    slow: bool,
    received: usize,
}

struct Stream {
    session: Session,
    replica: usize,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
    answers: Vec<DeltaDiscoveryRequest>,
    wake_at: Option<Mono>,
}

#[derive(Debug, Clone)]
enum Act {
    Publish,
    CatchUp(usize),
    Up(usize),
    Down(usize),
    Poll(usize),
    Connect(usize),
    Cut(usize),
    Subscribe(usize),
    Unsubscribe(usize),
    Forbid(usize),
    Allow(usize),
    Repeat(usize),
    Crash(usize),
    Restore,
    Wait,
}

impl World for Mesh {
    type Action = Act;

    fn new(sim: &mut Sim) -> Self {
        let mut mesh = Self {
            history: History(vec![(Revision::new(1, 1), Content::new())]),
            replicas: (0..REPLICAS).map(|_| Replica { all: Collections::new(), published: 0 }).collect(),
            peers: (0..CLIENTS).map(|n| Peer::new(n, sim.dice())).collect(),
            streams: 0,
            mends: sim.dice().chance(500),
            healing: Healing::NotYet,
        };
        for _ in 0..5 {
            mesh.publish(sim.dice(), 100);
        }
        mesh
    }

    fn actions(&self) -> Vec<(u32, Act)> {
        let mut all = vec![(8, Act::Publish), (3, Act::Wait), (1, Act::Restore)];
        all.extend((0..REPLICAS).flat_map(|r| [(8, Act::CatchUp(r)), (1, Act::Crash(r))]));
        for (n, peer) in self.peers.iter().enumerate() {
            let open = u32::from(peer.stream.is_some());
            let down = if peer.slow { 3 } else { 20 };
            all.extend([
                (20 * open, Act::Up(n)),
                (down * open, Act::Down(n)),
                (20 * open, Act::Poll(n)),
                (8 * (1 - open), Act::Connect(n)),
                (open, Act::Cut(n)),
                (5, Act::Subscribe(n)),
                (2, Act::Unsubscribe(n)),
                (1, Act::Forbid(n)),
                (1, Act::Allow(n)),
                (open, Act::Repeat(n)),
            ]);
        }
        all
    }

    fn act(&mut self, act: Act, sim: &mut Sim) {
        match act {
            Act::Publish => self.publish(sim.dice(), 60),
            Act::CatchUp(r) => self.replicas[r].catch_up(&self.history, 1),
            Act::Up(n) => self.up(n, sim),
            Act::Down(n) => self.down(n, sim),
            Act::Poll(n) => self.poll(n, sim),
            Act::Connect(n) => self.connect(n, sim.dice()),
            Act::Cut(n) => self.peers[n].cut(),
            Act::Subscribe(n) => {
                let some = self.peers[n].some(sim.dice());
                self.peers[n].client.subscribe(some);
                self.peers[n].send_subscriptions();
            }
            Act::Unsubscribe(n) => {
                let some = self.peers[n].some(sim.dice());
                self.peers[n].client.unsubscribe(some);
                self.peers[n].send_subscriptions();
            }
            Act::Forbid(n) => {
                let some = self.peers[n].some(sim.dice());
                self.peers[n].forbid(some, sim.now());
            }
            Act::Allow(n) => {
                self.peers[n].forbidden.clear();
                self.peers[n].recheck(sim.now());
            }
            Act::Repeat(n) => {
                let peer = &mut self.peers[n];
                let late = sim.dice().pick(&peer.late).cloned();
                if let (Some(late), Some(stream)) = (late, &mut peer.stream) {
                    stream.up.push_back(late);
                }
            }
            Act::Crash(r) => {
                self.replicas[r] = Replica { all: Collections::new(), published: 0 };
                let cut = |p: &&mut Peer| p.stream.as_ref().is_some_and(|s| s.replica == r);
                self.peers.iter_mut().filter(cut).for_each(Peer::cut);
            }
            Act::Restore => self.restore(sim.dice()),
            Act::Wait => sim.elapse(Duration::from_secs(2)),
        }
        for peer in &self.peers {
            sim.note(&(peer.client.applied(), peer.received, peer.stream.as_ref().map(|s| (s.up.len(), s.down.len()))));
        }
    }

    fn check_invariants(&self) -> Result<(), String> {
        // the collections check themselves after every change
        for (n, peer) in self.peers.iter().enumerate() {
            peer.client.check_invariants().map_err(|e| format!("client {n}: {e}"))?;
            if let Some(stream) = &peer.stream {
                stream.session.check_invariants().map_err(|e| format!("session of client {n}: {e}"))?;
            }
        }
        Ok(())
    }

    fn heal(&mut self, sim: &mut Sim) -> bool {
        if self.healing == Healing::NotYet {
            self.healing = Healing::First;
            self.mend(sim);
        }
        for replica in &mut self.replicas {
            replica.catch_up(&self.history, usize::MAX);
        }
        let mut wake: Option<Mono> = None;
        let mut busy = false;
        for n in 0..CLIENTS {
            if self.peers[n].stream.is_none() {
                self.connect(n, sim.dice());
            }
            self.up(n, sim);
            self.poll(n, sim);
            self.down(n, sim);
            let stream = self.peers[n].stream.as_ref();
            busy |= stream.is_none_or(|s| !s.up.is_empty() || !s.down.is_empty());
            wake = stream.and_then(|s| s.wake_at).into_iter().chain(wake).min();
        }
        match wake {
            _ if busy => true,
            Some(at) => {
                sim.advance_to(at);
                true
            }
            None if self.healing == Healing::First => {
                self.healing = Healing::Again;
                for peer in &mut self.peers {
                    peer.cut();
                    peer.received = 0;
                }
                true
            }
            None => false,
        }
    }

    fn check_healed(&mut self, _: &mut Sim) -> Result<(), String> {
        let (head, content) = self.history.head();
        for (n, peer) in self.peers.iter().enumerate() {
            let fail = |why: String| Err(format!("client {n} {why}"));
            let stream = peer.stream.as_ref().ok_or("no stream")?;
            let commit = peer.client.applied().ok_or_else(|| format!("client {n} never applied anything"))?;
            if commit.revision != head {
                return fail(format!("is at {}, not at {head}", commit.revision));
            }
            let sees = || content.iter().filter(|(c, _)| peer.client.is_subscribed(c) && !peer.forbidden.contains(c));
            let bad: BTreeSet<&String> =
                sees().flat_map(|(_, e)| e).filter(|(_, b)| is_bad(b)).map(|(n, _)| n).collect();
            if bad != peer.client.refused().keys().collect() {
                return fail(format!("refuses {:?}, bad are {bad:?}", peer.client.refused()));
            }
            for collection in stream.session.subscriptions() {
                let there = sees().any(|(c, _)| c == collection);
                let said = peer.client.presence(collection);
                if said != Some(if there { Presence::Present } else { Presence::Absent }) {
                    return fail(format!("thinks that {collection} is {said:?}"));
                }
            }
            let all = &self.replicas[stream.replica].all;
            if bad.is_empty() {
                let want = world::digest(sees());
                if commit.set_digest != want {
                    return fail(format!("has digest {}, the store has {want}", commit.set_digest));
                }
                if peer.received != 0 {
                    return fail(format!("was sent {} bytes that it had", peer.received));
                }
                if !stream.session.is_current(all) {
                    return fail(format!("is current, its session says otherwise: {:?}", stream.session.status()));
                }
            } else if stream.session.is_current(all) {
                return fail("refuses something and counts as current".into());
            }
        }
        Ok(())
    }
}

fn is_bad(bytes: &bytes::Bytes) -> bool {
    match decode(bytes) {
        Ok(Item::Entry(fragment)) => world::is_poison(&fragment),
        _ => true,
    }
}

// === impl Mesh ===

impl Mesh {
    fn publish(&mut self, dice: &mut Dice, poison: u32) {
        let (head, content) = self.history.head();
        let mut content = content.clone();
        for _ in 0..=dice.below(3) {
            world::apply(&mut content, &world::change(dice, poison));
        }
        // sparse, as etcd's are
        let next = Revision::new(head.incarnation, head.n + 1 + dice.below(3));
        self.history.0.push((next, content));
    }

    /// An older state comes back under a new incarnation, above the old head.
    fn restore(&mut self, dice: &mut Dice) {
        let (head, _) = self.history.head();
        let at = usize::try_from(dice.below(self.history.0.len() as u64)).unwrap();
        let content = self.history.0[at].1.clone();
        self.history.0.push((Revision::new(head.incarnation + 1, head.n + 1), content));
    }

    fn mend(&mut self, sim: &mut Sim) {
        let (head, content) = self.history.head();
        let mut content = content.clone();
        if self.mends {
            for entries in content.values_mut() {
                entries.retain(|_, bytes| !is_bad(bytes));
            }
            content.retain(|c, entries| !entries.is_empty() || matches!(c, Collection::Endpoints(_)));
        }
        world::apply(&mut content, &world::last_change());
        self.history.0.push((Revision::new(head.incarnation, head.n + 1), content));
        let first = Collection::Service(world::service_key(0));
        for peer in &mut self.peers {
            peer.client.subscribe([first.clone()]);
            peer.forbidden.remove(&first);
            peer.send_subscriptions();
            peer.recheck(sim.now());
        }
    }

    fn connect(&mut self, n: usize, dice: &mut Dice) {
        self.streams += 1;
        let replica = usize::try_from(dice.below(REPLICAS as u64)).unwrap();
        let limits = Limits { window: 900, response: 500, ..Limits::default() };
        let peer = &mut self.peers[n];
        let first = peer.client.connect();
        peer.stream = Some(Stream {
            session: Session::new(self.streams, limits),
            replica,
            up: [first].into(),
            down: VecDeque::new(),
            answers: Vec::new(),
            wake_at: None,
        });
    }

    fn up(&mut self, n: usize, sim: &Sim) {
        let Some(stream) = &mut self.peers[n].stream else { return };
        if let Some(request) = stream.up.pop_front() {
            stream.session.on_request(sim.now(), request).unwrap();
        }
    }

    fn poll(&mut self, n: usize, sim: &mut Sim) {
        let peer = &mut self.peers[n];
        let Some(stream) = &mut peer.stream else { return };
        let forbidden = &peer.forbidden;
        let all = &self.replicas[stream.replica].all;
        let polled = stream.session.poll(sim.now(), all, &|c| !forbidden.contains(c));
        stream.wake_at = polled.wake_at;
        for mut response in polled.send {
            // a resource is lost: the digest must tell
            if sim.buggify(5) && response.resources.len() > 1 {
                response.resources.remove(0);
            }
            stream.down.push_back(response);
        }
    }

    fn down(&mut self, n: usize, sim: &mut Sim) {
        let peer = &mut self.peers[n];
        let Some(stream) = &mut peer.stream else { return };
        let Some(response) = stream.down.pop_front() else { return };
        peer.received += payload(&response);
        // a proxy may also refuse for reasons of its own
        let moody = sim.buggify(10);
        let result = peer.client.on_response(response, |set| {
            if moody {
                let mood =
                    Rejection { collection: Collection::Revocations, entry: String::new(), reason: "mood".into() };
                return Err(vec![mood]);
            }
            world::build(set.fragments)
        });
        let (answer, event) = result.unwrap();
        stream.answers.push(answer.clone());
        stream.up.push_back(answer);
        match &event {
            Event::Received => SEEN.parts.fetch_add(1, Relaxed),
            Event::Applied { .. } => SEEN.applied.fetch_add(1, Relaxed),
            Event::Rejected(r) if r.iter().any(|r| r.resource.is_empty()) => SEEN.rejected_sets.fetch_add(1, Relaxed),
            Event::Rejected(_) => SEEN.rejected_entries.fetch_add(1, Relaxed),
        };
        if let Event::Applied { commit, .. } = event {
            sim.note(&commit);
            if let Err(why) = check_applied(&self.history, peer, commit.revision) {
                panic!("client {n} at {}: {why}", commit.revision);
            }
        }
    }
}

/// Is what the client has now exactly the revision's content, as far as it is subscribed, allowed and sound?
fn check_applied(history: &History, peer: &mut Peer, revision: Revision) -> Result<(), String> {
    if let Some(last) = peer.last
        && last > revision
    {
        return Err(format!("it was at {last} before"));
    }
    peer.last = Some(revision);
    let content = history.at(revision).ok_or("there is no such revision")?;
    let refused = peer.client.refused();
    for collection in world::universe() {
        let wanted = content.get(&collection);
        match peer.client.presence(&collection) {
            None => {}
            Some(Presence::Absent) if wanted.is_some() && !peer.ever_forbidden.contains(&collection) => {
                return Err(format!("{collection} is missing"));
            }
            Some(Presence::Absent) => {}
            Some(Presence::Present) => {
                let wanted = wanted.ok_or_else(|| format!("{collection} is not there at that revision"))?;
                let has = peer.client.fragments().get(&collection).ok_or("no entries")?;
                for (name, bytes) in wanted {
                    let entry: EntryName = name.parse().unwrap();
                    let key = entry.entry.map_or_else(|| name.clone(), |uid| uid.as_str().to_owned());
                    check_entry(name, bytes, has.get(&key).map(|f| &**f), refused, &peer.applied)?;
                }
                if has.len() > wanted.len() {
                    return Err(format!("{collection} has more entries than that revision"));
                }
            }
        }
    }
    // also of collections that are leaving
    for (collection, entries) in peer.client.fragments() {
        for (key, fragment) in entries {
            let entry = matches!(collection, Collection::Endpoints(_)).then(|| key.parse().unwrap());
            let name = EntryName { collection: collection.clone(), entry }.to_string();
            if !refused.contains_key(&name) {
                peer.applied.insert((name, Digest::of(&encode(fragment))));
            }
        }
    }
    Ok(())
}

fn check_entry(
    name: &str,
    bytes: &bytes::Bytes,
    has: Option<&Fragment>,
    refused: &BTreeMap<String, String>,
    applied: &BTreeSet<(String, Digest)>,
) -> Result<(), String> {
    if has.is_some_and(world::is_poison) {
        return Err(format!("`{name}` was applied though it is bad"));
    }
    if !refused.contains_key(name) {
        return match has.map(encode) {
            Some(encoded) if encoded == *bytes => Ok(()),
            other => Err(format!("`{name}` is {other:?}, that revision has {bytes:?}")),
        };
    }
    match has {
        // never its older version
        Some(Fragment::Inbound(i)) => {
            let denies = i.default == DefaultAction::Deny && i.policies.iter().all(|p| p.action == Action::Deny);
            SEEN.denied.fetch_add(1, Relaxed);
            if denies && !i.policies.is_empty() { Ok(()) } else { Err(format!("`{name}` was rejected and allows")) }
        }
        Some(Fragment::Service(s)) if s.ports.is_empty() => Ok(()),
        Some(fragment) if applied.contains(&(name.to_owned(), Digest::of(&encode(fragment)))) => {
            SEEN.kept.fetch_add(1, Relaxed);
            Ok(())
        }
        Some(_) => Err(format!("`{name}` was rejected and is at a version that was never applied")),
        None => Ok(()),
    }
}

/// Bytes of configuration: everything but the Commit.
fn payload(response: &DeltaDiscoveryResponse) -> usize {
    let is_commit = |r: &&bytes::Bytes| Resource::decode(Clone::clone(*r)).unwrap().name != COMMIT;
    let resources: usize = response.resources.iter().filter(is_commit).map(bytes::Bytes::len).sum();
    resources + response.removed_resources.iter().map(String::len).sum::<usize>()
}

// === impl Replica ===

impl Replica {
    /// Publishes at most so many revisions that it has not published.
    fn catch_up(&mut self, history: &History, most: usize) {
        if self.published == 0 {
            // it starts from the whole of what is there now, or was a little ago
            let (revision, content) = history.0.get(history.0.len().saturating_sub(2)).unwrap_or(&history.0[0]);
            self.all.apply(*revision, world::whole(content)).unwrap();
            self.published = history.0.len().saturating_sub(1).max(1);
            return;
        }
        for (revision, content) in history.0.iter().skip(self.published).take(most) {
            let mut changes = world::whole(content);
            let gone = self.all.names().filter(|c| !content.contains_key(*c)).cloned();
            changes.extend(gone.map(weft_wire::delta::Change::Drop).collect::<Vec<_>>());
            self.all.apply(*revision, changes).unwrap();
            self.published += 1;
        }
    }
}

// === impl Peer ===

impl Peer {
    fn new(n: usize, dice: &mut Dice) -> Self {
        let mut peer = Self {
            client: Client::new(format!("client-{n}")),
            stream: None,
            forbidden: BTreeSet::new(),
            ever_forbidden: BTreeSet::new(),
            late: Vec::new(),
            last: None,
            applied: BTreeSet::new(),
            slow: dice.chance(300),
            received: 0,
        };
        let some = peer.some(dice);
        peer.client.subscribe(some);
        peer
    }

    fn some(&self, dice: &mut Dice) -> Vec<Collection> {
        let mut all = world::universe();
        dice.shuffle(&mut all);
        all.truncate(usize::try_from(1 + dice.below(4)).unwrap());
        all
    }

    fn cut(&mut self) {
        self.late.extend(self.stream.take().into_iter().flat_map(|s| s.answers));
        self.client.disconnect();
    }

    fn send_subscriptions(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.up.extend(self.client.take_request());
        }
    }

    fn forbid(&mut self, some: Vec<Collection>, now: Mono) {
        self.ever_forbidden.extend(some.iter().cloned());
        self.forbidden.extend(some);
        self.recheck(now);
    }

    fn recheck(&mut self, now: Mono) {
        if let Some(stream) = &mut self.stream {
            stream.session.recheck(now);
        }
    }
}

#[test]
fn reg_12_every_client_converges_after_faults() {
    let seeds = Seeds::from_env();
    run_all::<Mesh>(&seeds, STEPS);
    let Seen { parts, applied, rejected_entries, rejected_sets, denied, kept } = &SEEN;
    let all = [parts, applied, rejected_entries, rejected_sets, denied, kept];
    assert!(seeds.count() < 16 || all.iter().all(|n| n.load(Relaxed) > 0), "something never happened: {SEEN:?}");
    println!("{SEEN:?}");
}

#[test]
fn the_same_seed_leaves_the_same_trace() {
    replays_alike::<Mesh>(11, STEPS);
}
