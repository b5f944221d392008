//! What is compared with the oracle: each answer, each record of each proxy, each request that an application took, and,
//! when the faults are over, everything.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::io::AsyncReadExt as _;
use weft_model::{Mono, Revision};
use weft_proxy::{
    Record,
    control::Standing,
    record::{Direction, Policy, Spoken},
};
use weft_registry::LeaseState;
use weft_snapshot::balance::{self, LoadView};

use crate::{
    calls::{self, Outcome},
    mesh::{Fault, Mesh},
    node::{NODES, key, service_port},
    oracle::{Ask, Route, Rules},
    simulation::SEEN,
};

/// A proxy that just began may still be learning.
const SETTLED: Duration = Duration::from_secs(5);
/// An identity this close to its end is being replaced.
const MARGIN: Duration = Duration::from_secs(10);
/// A Commit and nothing else.
const COMMIT_ONLY: u64 = 512;

/// What was seen of each proxy last, and where things stood when the step began.
pub struct Step {
    revisions: Vec<Revision>,
    serials: Vec<Option<Vec<u8>>>,
    begun: Mono,
    began_with: Vec<Revision>,
}

impl Step {
    pub fn new(nodes: usize) -> Self {
        Self {
            revisions: vec![Revision::ZERO; nodes],
            serials: vec![None; nodes],
            begun: Mono::ZERO,
            began_with: vec![Revision::ZERO; nodes],
        }
    }

    /// Nothing is known of the proxy's next life.
    pub fn begins_anew(&mut self, ix: usize) {
        self.revisions[ix] = Revision::ZERO;
        self.serials[ix] = None;
        self.began_with[ix] = Revision::ZERO;
    }
}

impl Mesh {
    pub fn begin_step(&mut self) {
        self.step.begun = self.now();
        self.step.began_with = self.revisions();
    }

    /// After everything that a step does: the invariants.
    pub async fn end_step(&mut self) {
        // what was decided reaches those whom it concerns
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.look_at_proxies();
        self.look_at_leases();
        for ix in 0..self.nodes.len() {
            for record in self.nodes[ix].records.take() {
                self.look_at_record(ix, &record);
            }
        }
        self.look_at_taken();
        self.look_at_flows().await;
    }

    fn look_at_proxies(&mut self) {
        for ix in 0..self.nodes.len() {
            let Some(ties) = self.nodes[ix].ties() else { continue };
            let (id, revision) = (NODES[ix].id, ties.snapshots.borrow().revision);
            let last = std::mem::replace(&mut self.step.revisions[ix], revision);
            if revision < last {
                self.breaks(format!("{id} went back from {last} to {revision}"));
            }
            if last != revision {
                self.note(format!("{id} is at {revision}"));
            }
            if last == Revision::ZERO && revision != last && self.control.is_none() && ties.since >= self.step.begun {
                SEEN.restored.fetch_add(1, Relaxed);
            }
            let serial = ties.credentials.borrow().as_ref().map(|c| c.svid.serial().as_bytes().to_vec());
            let before = std::mem::replace(&mut self.step.serials[ix], serial.clone());
            if before.is_some() && before != serial {
                SEEN.renewed.fetch_add(1, Relaxed);
                self.note(format!("{id} has a new identity"));
            }
            if serial.is_none() {
                self.breaks(format!("{id} lost its identity"));
            }
        }
    }

    fn look_at_leases(&mut self) {
        let Some(life) = &self.control else { return };
        let state = life.control().replica.state();
        let leases: Vec<_> = state.registry.leases().map(|l| (l.value.holder.to_string(), l.value.state)).collect();
        let lapsed: Vec<_> = leases.into_iter().filter(|(_, s)| *s != LeaseState::Alive).collect();
        SEEN.lapsed.fetch_add(lapsed.len(), Relaxed);
        if !lapsed.is_empty() {
            self.note(format!("lapsed: {lapsed:?}"));
        }
    }

    /// Every verdict is that of the oracle for the revision it was made by, and that is no old one.
    fn look_at_record(&mut self, ix: usize, r: &Record) {
        if r.failure.is_some() {
            let told = (r.direction, r.failure, r.side, r.attempts, r.gave_up, &r.upstream_uid, &r.detail);
            self.note(format!("{}: {told:?}", NODES[ix].id));
        }
        let allowed = match &r.policy {
            Policy::NotAsked => return,
            Policy::Allowed { .. } => true,
            Policy::Denied { .. } => false,
        };
        if r.direction != Direction::Inbound {
            return self.breaks(format!("an outbound record has a verdict: {r:?}"));
        }
        let (spec, id) = (&NODES[ix], r.downstream.id.as_ref());
        let Some((ns, from)) = id.and_then(|id| id.workload_parts()) else {
            return self.breaks(format!("{} decided about nobody: {r:?}", spec.id));
        };
        let http = r.http.as_ref();
        let method = http.and_then(|h| h.method.as_ref()).map_or("", |m| m.as_str());
        let path = http.map(|h| String::from_utf8_lossy(&h.path).into_owned()).unwrap_or_default();
        let (from, ns) = (from.to_owned(), ns.to_owned());
        let rules = self.history.at(r.revision);
        let ought = |rules: &Rules| ns == "shop" && rules.allows(spec.service, &from, method, &path);
        if (r.spoken == Spoken::Tcp) != (spec.service == "db") {
            self.breaks(format!("{} carried {:?}", spec.id, r.spoken));
        } else if !rules.iter().any(|rules| ought(rules) == allowed) {
            self.breaks(format!(
                "{} at {} let {from} {method} {path}: {allowed}, but the rules were {rules:?} ({:?})",
                spec.id, r.revision, r.policy
            ));
        }
        if r.started >= self.step.begun && r.revision < self.step.began_with[ix] {
            let newer = self.step.began_with[ix];
            self.breaks(format!("{} decided by {} and had {newer} already", spec.id, r.revision));
        }
    }

    /// No application took what no rule since the request was made allows; nothing that changes things twice.
    fn look_at_taken(&mut self) {
        let taken: Vec<_> = std::mem::take(&mut *self.taken.lock().unwrap());
        for (name, number) in taken {
            let ix = NODES.iter().position(|n| n.id == name).unwrap();
            let Some((ask, revisions)) = self.asked.get(&number).cloned() else {
                self.breaks(format!("{name} took request {number}, which nobody made"));
                continue;
            };
            let now = self.step.revisions[ix].max(revisions[ix]);
            let rules = self.history.during(revisions[ix], now);
            if !rules.iter().any(|r| r.allows(NODES[ix].service, ask.from, ask.method, ask.path)) {
                self.breaks(format!("{name} took {ask:?}, which the rules forbid: {rules:?}"));
            }
            if ask.method == "POST" && !self.posted.insert(number) {
                self.breaks(format!("{name} took POST {number} a second time"));
            }
        }
    }

    /// What is open and forbidden by now has been reset.
    async fn look_at_flows(&mut self) {
        let mut open = Vec::new();
        for mut flow in std::mem::take(&mut self.flows) {
            let mut byte = [0];
            let ended = tokio::time::timeout(Duration::from_millis(1), flow.stream.read(&mut byte)).await;
            let from = NODES[flow.from].service;
            match ended {
                Ok(Ok(0) | Err(_)) => {
                    if self.denies_flow(from) {
                        SEEN.flows_denied.fetch_add(1, Relaxed);
                    }
                    self.note(format!("a flow of {from} has ended"));
                }
                Ok(Ok(_)) => self.breaks(format!("a flow of {from} said what nobody had sent")),
                Err(_) => {
                    if self.denies_flow(from) && !self.is_disturbed() {
                        self.breaks(format!("a flow of {from} is open though the rules in force forbid it"));
                    }
                    open.push(flow);
                }
            }
        }
        self.flows = open;
    }

    fn denies_flow(&self, from: &str) -> bool {
        let db = NODES.iter().position(|n| n.service == "db").unwrap();
        let Some(snapshot) = self.nodes[db].snapshot() else { return false };
        self.history.at(snapshot.revision).iter().all(|r| !r.allows("db", from, "", ""))
    }

    // === answers ===

    /// Must this call be answered as if nothing ever went wrong? A control plane that is away is no excuse.
    pub fn is_steady_for(&self, from: usize, ask: &Ask) -> bool {
        let Some(snapshot) = self.nodes[from].snapshot() else { return false };
        let asked: &[&str] = if ask.to == "db" { &["db"] } else { &["api", "beta"] };
        let involved = |ix: usize| ix == from || asked.contains(&NODES[ix].service);
        let picks = |service: &str| {
            let view = snapshot.service(&key(service))?;
            let pool = view.pool_of_all(service_port(service))?;
            let load = LoadView::new(view.endpoints().len());
            let ask = balance::Ask { now: self.now(), avoid: &[], own: &[], from: None };
            balance::pick(pool, &load, &ask, &mut |_| 0).ok()
        };
        let mut routed = self.history.at(snapshot.revision).into_iter().flat_map(|rules| match rules.route(ask) {
            Route::To(services) => services.to_vec(),
            Route::Broken => Vec::new(),
        });
        !self.is_disturbed()
            && (0..NODES.len()).filter(|ix| involved(*ix)).all(|ix| self.is_steady(ix))
            && picks(ask.to).is_some()
            && routed.all(|service| picks(service).is_some())
    }

    fn is_steady(&self, ix: usize) -> bool {
        let node = &self.nodes[ix];
        let Some(ties) = node.ties() else { return false };
        let identified = ties
            .credentials
            .borrow()
            .as_ref()
            .is_some_and(|c| c.svid.not_after() > node.clock.wall().plus(MARGIN + calls::PATIENCE));
        let told = ties.snapshots.borrow().workload(&node.uid()).is_some();
        *node.app.borrow() && identified && told && self.now().since(ties.since) > SETTLED
    }

    pub fn judge(&mut self, from: usize, ask: &Ask, outcome: &Outcome, before: &[Revision], strict: bool) {
        let after = self.revisions();
        let during = |ix: usize| self.history.during(before[ix], after[ix].max(before[ix]));
        let routes: Vec<Route> = during(from).iter().map(|rules| rules.route(ask)).collect();
        let leads_to = |service: &str| routes.iter().any(|r| matches!(r, Route::To(s) if s.contains(&service)));
        let verdicts = |ix: usize| {
            let allows = |rules: &Rules| rules.allows(NODES[ix].service, ask.from, ask.method, ask.path);
            during(ix).iter().map(allows).collect::<Vec<_>>()
        };
        let named = |by: &str| NODES.iter().position(|n| n.id == by);
        let is_denied = (0..NODES.len()).any(|ix| leads_to(NODES[ix].service) && verdicts(ix).contains(&false));
        let fine = match outcome {
            Outcome::Http(200, by) | Outcome::Echo(by) => {
                SEEN.allowed.fetch_add(1, Relaxed);
                named(by).is_some_and(|ix| leads_to(NODES[ix].service) && verdicts(ix).contains(&true))
            }
            Outcome::Http(403, _) => {
                SEEN.denied.fetch_add(1, Relaxed);
                is_denied
            }
            Outcome::Http(500, _) => routes.contains(&Route::Broken),
            // no proxy connects to itself
            Outcome::Http(508, _) => leads_to(ask.from),
            Outcome::Http(502..=504, _) | Outcome::Timeout => {
                SEEN.failed.fetch_add(1, Relaxed);
                !strict
            }
            Outcome::Broken => !strict || ask.to == "db" && is_denied,
            Outcome::Http(..) => false,
        };
        if strict {
            SEEN.strict.fetch_add(1, Relaxed);
            if self.is_alone(from) {
                SEEN.without_control.fetch_add(1, Relaxed);
            }
        }
        if !fine {
            let id = NODES[from].id;
            self.breaks(format!("{id} {ask:?} got {outcome}; routes {routes:?}, strict: {strict}"));
        }
    }

    // === when the faults are over ===

    /// Every proxy runs, is registered, is alive, has what the control plane has, and nothing waits.
    pub fn converged(&self) -> Result<(), String> {
        let life = self.control.as_ref().ok_or("there is no control plane")?;
        let control = life.control();
        let state = control.replica.state();
        let head = control.replica.store.head().map_err(|e| e.to_string())?.revision;
        if state.revision != head {
            return Err(format!("the control plane is at {}, the store at {head}", state.revision));
        }
        let standings = control.sessions.standings();
        for node in &self.nodes {
            let id = node.spec.id;
            let ties = node.ties().ok_or_else(|| format!("{id} does not run"))?;
            if !matches!(*ties.standing.borrow(), Standing::Registered { .. }) {
                let stream = standings.iter().find(|s| s.node == node.uid().as_str()).map(|s| s.connected_for);
                let standing = ties.standing.borrow().clone();
                return Err(format!("{id} is not registered: {standing:?}; its stream has been open for {stream:?}"));
            }
            let instance = state.registry.instances().find(|i| i.value.uid() == node.uid());
            let health = instance.map(|i| state.registry.health(&i.value));
            if health != Some(weft_model::Health::Passing) {
                return Err(format!("{id} is {health:?} in the catalog"));
            }
            let snapshot = ties.snapshots.borrow().clone();
            let mut mine = standings.iter().filter(|s| s.node == node.uid().as_str());
            let standing = mine.next().ok_or_else(|| format!("{id} has no stream"))?;
            let applied = standing.status.applied.map(|c| (c.revision, c.set_digest));
            if !standing.current || applied != Some((snapshot.revision, snapshot.digest)) || mine.next().is_some() {
                let has = (snapshot.revision, snapshot.digest);
                return Err(format!("{id} has {has:?}, the control plane says {standing:?}"));
            }
            if !standing.status.rejected.is_empty() || standing.status.rejected_set.is_some() {
                return Err(format!("{id} rejects: {:?}", standing.status));
            }
            let valid = ties.credentials.borrow().as_ref().is_some_and(|c| c.svid.not_after() > node.clock.wall());
            if !valid {
                return Err(format!("the identity of {id} has expired"));
            }
        }
        if self.is_disturbed() { Err("the last fault is too recent".into()) } else { Ok(()) }
    }

    /// Each question that there is, each answer as the oracle says.
    pub async fn everything_as_it_ought_to_be(&mut self) {
        for from in 0..NODES.len() {
            for to in NODES[from].calls {
                let http = [("GET", "/items/1"), ("POST", "/items/1"), ("GET", "/admin/x"), ("GET", "/other")];
                let questions = if *to == "db" { &http[..1] } else { &http[..] };
                for (method, path) in questions {
                    for canary in [false, true] {
                        let ask = Ask { from: NODES[from].service, to, method, path, canary };
                        self.ask_strictly(from, ask).await;
                    }
                }
            }
        }
    }

    async fn ask_strictly(&mut self, from: usize, ask: Ask) {
        let number = self.number(ask);
        let before = self.revisions();
        let node = &self.nodes[from];
        let outcome = calls::call(node.host.clone(), node.port_to(ask.to), ask, number).await;
        self.judge(from, &ask, &outcome, &before, true);
        self.note(format!("at rest {} {ask:?}: {outcome}", NODES[from].id));
    }

    /// A new life of the control plane tells nobody what everybody has.
    pub async fn restarts_without_resending(&mut self) {
        let digests = |mesh: &Self| mesh.nodes.iter().map(|n| n.snapshot().map(|s| s.digest)).collect::<Vec<_>>();
        let before = digests(self);
        self.kill_control();
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.fault(Fault::Control).await;
        let mut why = Ok(());
        for _ in 0..120 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            why = self.converged();
            if why.is_ok() {
                break;
            }
        }
        if let Err(why) = why {
            return self.breaks(format!("after a restart of the control plane: {why}"));
        }
        if digests(self) != before {
            self.breaks("a restart of the control plane changed what proxies have".into());
        }
        let Some(life) = &self.control else { return };
        let sent: Vec<_> = life.control().sessions.standings().into_iter().map(|s| s.sent_bytes).collect();
        if sent.iter().any(|bytes| *bytes > COMMIT_ONLY) {
            self.breaks(format!("a restart of the control plane resent what proxies had: {sent:?} bytes"));
        }
    }
}
