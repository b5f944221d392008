//! The mesh under simulation: one control plane, five proxies, and what goes wrong with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;
use weft_model::{Mono, Revision, Wall};
use weft_rt::{Clock, net::Stream};
use weft_sim::{
    pipe_net::{Host, PipeNet, Weather},
    seeded::Dice,
};
use weft_store::{EtcdLike, Keep, Memory, Store};

use crate::{
    calls::{self, Taken},
    control::Life,
    judge::Step,
    node::{CONTROL, NODES, Node, Phase},
    oracle::{Ask, Change, History, Rules},
    simulation::SEEN,
};

/// When the world begins: any time does.
const BEGINNING: Wall = Wall::secs(1_800_000_000);
/// After a fault of the data path, what it broke may show for so long: a stream breaks within 30 s.
const AFTERMATH: Duration = Duration::from_secs(45);
const BAD: Weather = Weather { refused: 50, cut: 200, truncated: 50, crumbs: 100, delay: Duration::from_millis(100) };

/// What goes wrong, or, the second time, right again.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The control plane is killed, or started on the same store.
    Control,
    /// Nothing that is committed becomes visible: whoever waits for it waits, the authority too.
    HoldStore,
    Weather,
    /// This proxy and the control plane do not reach each other.
    Part(usize),
    /// Their connections are reset.
    CutControl(usize),
    /// The host of a workload is killed, or started again.
    Power {
        ix: usize,
        wipe: bool,
    },
    /// The application alone.
    App(usize),
    Clock(usize, i64),
    ControlClock(i64),
    PartPeers(usize, usize),
    CutPeers(usize, usize),
}

pub struct Mesh {
    pub net: PipeNet,
    pub store: Arc<Memory>,
    pub control: Option<Life>,
    pub nodes: Vec<Node>,
    pub history: History,
    pub taken: Taken,
    /// What was asked, by number, and how far each proxy was then.
    pub asked: BTreeMap<u64, (Ask, Vec<Revision>)>,
    /// Of those that were taken, what may be taken only once.
    pub posted: BTreeSet<u64>,
    pub flows: Vec<Flow>,
    pub step: Step,
    pub held: bool,
    pub broken: Option<String>,
    disk: tempfile::TempDir,
    control_host: Host,
    control_clock: Clock,
    control_skew: i64,
    skews: Vec<i64>,
    stormy: bool,
    parted_peers: Vec<(IpAddr, IpAddr)>,
    disturbed_until: Instant,
    dice: Dice,
    /// Join tokens, made while there was a control plane.
    spare: Vec<String>,
    trust_domain: String,
    notes: Vec<String>,
}

/// A connection that stays open.
pub struct Flow {
    pub from: usize,
    pub stream: Stream,
}

// === impl Mesh ===

impl Mesh {
    pub async fn start(dice: &mut Dice) -> Self {
        let mut dice = Dice::seeded(dice.next_u64());
        let net = PipeNet::new(dice.next_u64());
        let disk = tempfile::tempdir().unwrap();
        let clock = || Clock::tokio(BEGINNING);
        let taken = Taken::default();
        let nodes = (0..NODES.len()).map(|ix| {
            let dice = weft_rt::Dice::seeded(dice.next_u64());
            Node::new(ix, &net, disk.path(), clock(), taken.clone(), dice)
        });
        let nodes: Vec<_> = nodes.collect();
        let etcd = EtcdLike { unknown_per_mille: 30, ..EtcdLike::faulty(dice.next_u64()) };
        let mut mesh = Self {
            control_host: net.host(CONTROL),
            control_clock: clock(),
            control_skew: 0,
            skews: vec![0; nodes.len()],
            store: Arc::new(Memory::with(Keep::default(), Some(etcd))),
            step: Step::new(nodes.len()),
            net,
            control: None,
            nodes,
            history: History::default(),
            taken,
            asked: BTreeMap::new(),
            posted: BTreeSet::new(),
            flows: Vec::new(),
            held: false,
            broken: None,
            disk,
            stormy: false,
            parted_peers: Vec::new(),
            disturbed_until: Instant::now(),
            dice,
            spare: Vec::new(),
            trust_domain: "no mesh yet".into(),
            notes: Vec::new(),
        };
        mesh.start_control().await;
        if let Some(life) = &mesh.control {
            mesh.trust_domain = life.control().authority.trust_domain().to_string();
        }
        mesh.history.push(Revision::ZERO, Revision::ZERO, Rules::FIRST);
        mesh.start_what_is_off().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        mesh.end_step().await;
        if let Err(why) = mesh.converged() {
            panic!("the mesh did not start: {why}");
        }
        mesh
    }

    pub fn now(&self) -> Mono {
        self.control_clock.mono()
    }

    pub fn note(&mut self, note: String) {
        // a mesh's name is as random as its keys
        self.notes.push(note.replace(&self.trust_domain, "mesh"));
    }

    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    pub fn breaks(&mut self, why: String) {
        self.broken.get_or_insert(why);
    }

    pub fn check(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// May something fail that would not in fair weather? An absent control plane is no excuse.
    pub fn is_disturbed(&self) -> bool {
        let skewed = self.control_skew != 0 || self.skews.iter().any(|s| *s != 0);
        self.stormy || skewed || !self.parted_peers.is_empty() || Instant::now() < self.disturbed_until
    }

    pub fn is_stormy(&self) -> bool {
        self.stormy
    }

    pub fn are_parted(&self, a: usize, b: usize) -> bool {
        self.net.are_parted(self.nodes[a].host.ip(), self.nodes[b].host.ip())
    }

    pub fn skew(&self, ix: usize) -> i64 {
        self.skews[ix]
    }

    pub fn control_skew(&self) -> i64 {
        self.control_skew
    }

    /// Can this proxy hear the control plane?
    pub fn is_alone(&self, ix: usize) -> bool {
        self.control.is_none() || self.held || self.net.are_parted(CONTROL, self.nodes[ix].host.ip())
    }

    pub fn revisions(&self) -> Vec<Revision> {
        self.nodes.iter().map(|n| n.snapshot().map_or(Revision::ZERO, |s| s.revision)).collect()
    }

    // === what operators do ===

    pub async fn change(&mut self, change: Change) {
        let Some(life) = &self.control else { return self.note("nobody to tell".into()) };
        let key = change.document("x").0.key;
        let key = weft_control::keys::resource(&key);
        let state = |store: &Memory| (store.head().unwrap().revision, store.get(&key).unwrap().map(|v| v.modified));
        let (head, before) = state(&self.store);
        let rules = self.history.last().with(change);
        let written = tokio::time::timeout(Duration::from_secs(120), life.write(change)).await;
        let (now, after) = state(&self.store);
        let told = match &written {
            Ok(Ok(_)) => "written",
            Ok(Err(_)) => "an error",
            Err(_) => "no answer",
        };
        if before == after {
            let same = matches!(written, Ok(Ok(_))) && rules != self.history.last();
            if same {
                self.breaks(format!("{change:?} was acknowledged and is not in the store"));
            }
        } else {
            // what is deleted has no revision of its own: the reply knows it, or it lies somewhere up to now
            let certain = match (&written, after) {
                (Ok(Ok(revision)), _) => *revision,
                (_, Some(modified)) => modified,
                (_, None) => now,
            };
            self.history.push(head, certain, rules);
            SEEN.changed.fetch_add(1, Relaxed);
        }
        self.note(format!("{change:?}: {told}"));
    }

    // === what applications do ===

    fn some_call(&mut self, dice: &mut Dice) -> (usize, Ask, u64) {
        let callers: Vec<usize> = (0..NODES.len()).filter(|ix| !NODES[*ix].calls.is_empty()).collect();
        let from = *dice.pick(&callers).unwrap();
        let ask = Ask {
            from: NODES[from].service,
            to: dice.pick(NODES[from].calls).unwrap(),
            method: if dice.chance(300) { "POST" } else { "GET" },
            path: dice.pick(&["/items/1", "/admin/x", "/other"]).unwrap(),
            canary: dice.chance(300),
        };
        (from, ask, self.number(ask))
    }

    pub fn number(&mut self, ask: Ask) -> u64 {
        let number = self.asked.len() as u64 + 1;
        self.asked.insert(number, (ask, self.revisions()));
        number
    }

    /// A few calls at once, and perhaps a fault in the middle of them.
    pub async fn calls(&mut self, dice: &mut Dice, amid: Option<Fault>) {
        let calls: Vec<_> = (0..1 + dice.below(4)).map(|_| self.some_call(dice)).collect();
        let strict: Vec<bool> = calls.iter().map(|(from, ask, _)| self.is_steady_for(*from, ask)).collect();
        let before = self.revisions();
        let calling = join_all(calls.iter().map(|(from, ask, number)| {
            let node = &self.nodes[*from];
            calls::call(node.host.clone(), node.port_to(ask.to), *ask, *number)
        }));
        let wait = Duration::from_millis(dice.below(20));
        let outcomes = match amid {
            None => calling.await,
            Some(fault) => {
                tokio::join!(calling, async {
                    tokio::time::sleep(wait).await;
                    self.fault(fault).await;
                })
                .0
            }
        };
        for (((from, ask, _), strict), outcome) in calls.into_iter().zip(strict).zip(outcomes) {
            let strict = strict && self.is_steady_for(from, &ask);
            self.judge(from, &ask, &outcome, &before, strict);
            self.note(format!("{} {} {} {}: {outcome}", NODES[from].id, ask.method, ask.to, ask.path));
        }
    }

    pub async fn open_flow(&mut self, dice: &mut Dice) {
        let callers: Vec<usize> = (0..NODES.len()).filter(|ix| NODES[*ix].calls.contains(&"db")).collect();
        let from = *dice.pick(&callers).unwrap();
        let (host, port) = (self.nodes[from].host.clone(), self.nodes[from].port_to("db"));
        let opened = tokio::time::timeout(calls::PATIENCE, calls::open(&host, port)).await.ok().flatten();
        self.note(format!("{} opens a flow: {}", NODES[from].id, opened.is_some()));
        self.flows.extend(opened.map(|(stream, _)| Flow { from, stream }));
    }

    // === what goes wrong ===

    pub async fn fault(&mut self, fault: Fault) {
        let ip = |ix: usize| IpAddr::from([10, 0, 1, u8::try_from(ix + 1).unwrap()]);
        let counted = match fault {
            Fault::Control if self.control.is_some() => Some(&SEEN.servers_killed),
            Fault::Power { ix, .. } if !self.nodes[ix].is_off() => Some(&SEEN.proxies_killed),
            Fault::Part(_) | Fault::PartPeers(..) => Some(&SEEN.parted),
            Fault::Clock(..) | Fault::ControlClock(_) => Some(&SEEN.clocks_stepped),
            _ => None,
        };
        counted.map(|n| n.fetch_add(1, Relaxed));
        match fault {
            Fault::Control if self.control.is_some() => self.kill_control(),
            Fault::Control => self.start_control().await,
            Fault::HoldStore => self.hold(!self.held),
            Fault::Weather => {
                self.stormy = !self.stormy;
                self.net.set_weather(if self.stormy { BAD } else { Weather::default() });
                self.disturb();
            }
            Fault::Part(ix) if self.net.are_parted(CONTROL, ip(ix)) => self.net.rejoin(CONTROL, ip(ix)),
            Fault::Part(ix) => self.net.part(CONTROL, ip(ix)),
            Fault::CutControl(ix) => self.net.cut(CONTROL, ip(ix)),
            Fault::Power { ix, .. } if self.nodes[ix].is_off() => {
                self.disturb();
                self.power_on(ix).await;
            }
            Fault::Power { ix, wipe } => {
                self.disturb();
                self.nodes[ix].crash(wipe);
                self.step.begins_anew(ix);
            }
            Fault::App(ix) => {
                self.disturb();
                self.nodes[ix].app.send_modify(|up| *up = !*up);
            }
            Fault::Clock(ix, by) => {
                let by = if self.skews[ix] == 0 { by } else { -self.skews[ix] };
                self.step_clock(ix, by);
            }
            Fault::ControlClock(by) => {
                let by = if self.control_skew == 0 { by } else { -self.control_skew };
                self.step_control_clock(by);
            }
            Fault::PartPeers(a, b) => {
                self.disturb();
                let pair = (ip(a), ip(b));
                match self.parted_peers.iter().position(|p| *p == pair) {
                    Some(at) => {
                        self.parted_peers.remove(at);
                        self.net.rejoin(pair.0, pair.1);
                    }
                    None => {
                        self.parted_peers.push(pair);
                        self.net.part(pair.0, pair.1);
                    }
                }
            }
            Fault::CutPeers(a, b) => {
                self.disturb();
                self.net.cut(ip(a), ip(b));
            }
        }
    }

    fn disturb(&mut self) {
        self.disturbed_until = Instant::now() + AFTERMATH;
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        self.store.hold_watches(held);
    }

    fn step_clock(&mut self, ix: usize, by: i64) {
        self.disturb();
        self.skews[ix] += by;
        self.nodes[ix].clock.step_wall(by);
    }

    fn step_control_clock(&mut self, by: i64) {
        self.disturb();
        self.control_skew += by;
        self.control_clock.step_wall(by);
    }

    pub fn kill_control(&mut self) {
        self.control = None;
        self.net.crash(CONTROL);
    }

    pub async fn start_control(&mut self) {
        for _ in 0..50 {
            let dice = weft_rt::Dice::seeded(self.dice.next_u64());
            let data = self.disk.path().join("control");
            let starting = Life::start(&self.control_host, self.store.clone(), &data, self.control_clock.clone(), dice);
            // while the store shows nothing, a server waits for what it committed itself
            if let Ok(Some(life)) = tokio::time::timeout(Duration::from_secs(15), starting).await {
                self.control = Some(life);
                return self.make_tokens().await;
            }
            self.net.crash(CONTROL);
            if self.held {
                break;
            }
        }
        self.note("the control plane does not start".into());
    }

    async fn make_tokens(&mut self) {
        let Some(life) = &self.control else { return };
        for _ in 0..40 {
            if self.spare.len() > NODES.len() || self.held {
                return;
            }
            self.spare.extend(life.token().await);
        }
    }

    async fn power_on(&mut self, ix: usize) {
        self.make_tokens().await;
        let token = self.spare.pop();
        self.step.begins_anew(ix);
        self.nodes[ix].start(token);
    }

    // === and what ends it ===

    pub async fn end_faults(&mut self) {
        self.hold(false);
        self.stormy = false;
        self.net.set_weather(Weather::default());
        for (a, b) in std::mem::take(&mut self.parted_peers) {
            self.net.rejoin(a, b);
        }
        for ix in 0..NODES.len() {
            self.net.rejoin(CONTROL, self.nodes[ix].host.ip());
            self.nodes[ix].app.send_replace(true);
            self.step_clock(ix, -self.skews[ix]);
        }
        self.step_control_clock(-self.control_skew);
        if self.control.is_none() {
            self.start_control().await;
        }
    }

    /// What a person would do about workloads that do not run: those that crashed, those that were refused, and those whose
    /// identity expired while nobody could renew it.
    pub async fn start_what_is_off(&mut self) {
        for ix in 0..NODES.len() {
            let node = &self.nodes[ix];
            let expired = node.ties().is_some_and(|t| {
                t.credentials.borrow().as_ref().is_none_or(|c| c.svid.not_after() <= node.clock.wall())
            });
            let refused = match &*node.phase.borrow() {
                Phase::Refused(why) => Some(why.clone()),
                _ => None,
            };
            if expired || refused.is_some() {
                let why = refused.unwrap_or_else(|| "expired".into());
                self.note(format!("{} needs a new token: {}", NODES[ix].id, why.split(':').next().unwrap_or_default()));
                self.nodes[ix].crash(true);
            }
            if self.nodes[ix].is_off() {
                self.power_on(ix).await;
            }
        }
    }

    /// Everything ends in order, and nothing is left.
    pub async fn stop(mut self) -> Result<(), String> {
        self.flows.clear();
        for node in &mut self.nodes {
            let ended = node.stop().await.ok_or("a proxy did not run at the end")?;
            if !(ended.inbound_in_time && ended.outbound_in_time && ended.empty) {
                return Err(format!("{} did not end in order: {ended:?}", node.spec.id));
            }
        }
        let life = self.control.take().ok_or("the control plane did not run at the end")?;
        let left: Vec<_> =
            life.control().replica.state().registry.instances().map(|i| i.value.uid().to_string()).collect();
        if !left.is_empty() {
            return Err(format!("still registered after everything was deregistered: {left:?}"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (streams, wanted) = life.control().sessions.counts();
        if streams + wanted > 0 {
            return Err(format!("{streams} streams and {wanted} wanted collections of proxies that are gone"));
        }
        life.drain().await;
        self.nodes.clear();
        tokio::time::sleep(Duration::from_secs(30)).await;
        match self.net.open_ends() {
            0 => Ok(()),
            n => Err(format!("{n} ends of streams are still held")),
        }
    }
}
