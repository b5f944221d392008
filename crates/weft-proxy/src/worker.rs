//! One worker: everything that connections on one thread share. It is not `Send`, and needs no lock.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use weft_identity::{Presented, WallClock};
use weft_model::{ServiceKey, SpiffeId, Uid};
use weft_rt::{Clock, Dice, drain, net::Net};
use weft_snapshot::{
    detect::ServerFirst,
    fragment::{Endpoint, Tunnel},
    snapshot::{EndpointView, ServiceView, Snapshot},
};
use weft_wire::hello::Hello;

use crate::{
    flows::Flows,
    loads::{self, Loads, Shared},
    pool::{AppPool, Class, Key, Lane, SharedPool, Tunnel2},
    record::Sink,
    tls::{self, Credentials},
};

/// How often pools are looked through.
const SWEEP: Duration = Duration::from_secs(2);

/// What a worker is made of.
#[derive(Clone)]
pub struct Deps {
    pub net: Arc<dyn Net>,
    pub clock: Clock,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub shared: Arc<Shared>,
    pub sink: Arc<dyn Sink>,
    /// The workload whose sidecar this is.
    pub workload: Uid,
    /// Addresses at which this process listens: never connected to.
    pub own: Arc<BTreeSet<SocketAddr>>,
    pub cluster: Arc<str>,
}

pub struct Worker {
    pub net: Arc<dyn Net>,
    pub clock: Clock,
    pub wall: WallClock,
    pub dice: RefCell<Dice>,
    pub sink: Arc<dyn Sink>,
    pub workload: Uid,
    loads: Loads,
    pub flows: Rc<Flows>,
    pub shared_conns: Rc<SharedPool>,
    pub app_conns: Rc<AppPool>,
    pub server_first: RefCell<ServerFirst>,
    snapshot: RefCell<Arc<Snapshot>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    credentials: RefCell<Option<Arc<Credentials>>>,
    presented: RefCell<Rc<Presented>>,
    /// Lanes by endpoint, for the current credentials; forgotten when snapshot or credentials change.
    lanes: RefCell<Lanes>,
    own: Arc<BTreeSet<SocketAddr>>,
    cluster: Arc<str>,
    conns: Cell<u64>,
    /// Services whose last instance went away, and when.
    left: RefCell<HashMap<ServiceKey, weft_model::Wall>>,
    /// What this worker carries: for the acceptor, which prefers the least loaded.
    pub load: Arc<std::sync::atomic::AtomicUsize>,
}

type Lanes = HashMap<(*const EndpointView, Class), (Arc<EndpointView>, Rc<Lane>)>;

// === impl Worker ===

impl Worker {
    pub fn new(deps: &Deps, dice: Dice) -> Rc<Self> {
        let clock = deps.clock.clone();
        let wall = {
            let clock = clock.clone();
            WallClock::new(move || clock.wall())
        };
        let w = Self {
            net: deps.net.clone(),
            clock,
            wall,
            dice: RefCell::new(dice),
            sink: deps.sink.clone(),
            workload: deps.workload.clone(),
            loads: Loads::new(deps.shared.clone()),
            flows: Rc::default(),
            shared_conns: Rc::default(),
            app_conns: Rc::default(),
            server_first: RefCell::default(),
            snapshot: RefCell::new(deps.snapshots.borrow().clone()),
            snapshots: deps.snapshots.clone(),
            credentials: RefCell::new(deps.credentials.borrow().clone()),
            presented: RefCell::default(),
            lanes: RefCell::default(),
            own: deps.own.clone(),
            cluster: deps.cluster.clone(),
            conns: Cell::new(0),
            left: RefCell::default(),
            load: Arc::default(),
        };
        w.present();
        Rc::new(w)
    }

    /// Follows snapshot and credentials, judges what is open anew, and looks after the pools. Ends with `stop`. `applied`
    /// is told each revision by which this worker decides from then on.
    pub async fn keep(self: &Rc<Self>, deps: &Deps, mut stop: drain::Observer, applied: &dyn Fn(weft_model::Revision)) {
        let (mut snapshots, mut credentials) = (deps.snapshots.clone(), deps.credentials.clone());
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut snapshots_end, mut credentials_end) = (false, false);
        applied(self.snapshot().revision);
        loop {
            tokio::select! {
                biased; // a change of policy goes before everything
                r = snapshots.changed(), if !snapshots_end => match r {
                    Ok(()) => {
                        let new = snapshots.borrow_and_update().clone();
                        let revision = new.revision;
                        self.swap(new);
                        applied(revision);
                    }
                    // Its maker is gone: we serve on what we have
                    Err(_) => snapshots_end = true,
                },
                r = credentials.changed(), if !credentials_end => match r {
                    Ok(()) => self.believe(credentials.borrow_and_update().clone()),
                    Err(_) => credentials_end = true,
                },
                _ = sweep.tick() => self.sweep(),
                () = stop.forced() => return,
            }
        }
    }

    fn swap(&self, new: Arc<Snapshot>) {
        tracing::debug!(rev = %new.revision, digest = %new.digest, "snapshot");
        for s in new.services() {
            for p in s.service.ports.iter().filter(|p| p.protocol != weft_model::Protocol::Undeclared) {
                self.server_first.borrow_mut().forget(&s.service.key, Some(p.port));
            }
        }
        self.note_left(&new);
        self.loads.retain(|k| new.service(k).is_some());
        self.lanes.borrow_mut().clear();
        *self.snapshot.borrow_mut() = new;
        self.present();
        self.judge();
    }

    /// Remembers of which services `new` is the first without instances.
    fn note_left(&self, new: &Snapshot) {
        /// Upstreams are few; what is used once and by name may be many.
        const REMEMBERED: usize = 256;
        let is_empty = |k: &ServiceKey| new.service(k).is_none_or(|s| s.endpoints().is_empty());
        let mut left = self.left.borrow_mut();
        left.retain(|k, _| is_empty(k));
        let before = self.snapshot.borrow();
        let peopled = before.services().filter(|s| !s.endpoints().is_empty());
        for s in peopled.filter(|s| is_empty(&s.service.key)) {
            if left.len() >= REMEMBERED {
                left.clear();
            }
            left.insert(s.service.key.clone(), self.clock.wall());
        }
    }

    /// When the last instance of a service went away, if that was seen and none is there again.
    pub fn left(&self, service: &ServiceKey) -> Option<weft_model::Wall> {
        self.left.borrow().get(service).copied()
    }

    fn believe(&self, new: Option<Arc<Credentials>>) {
        self.lanes.borrow_mut().clear();
        *self.credentials.borrow_mut() = new;
        self.present();
        self.judge();
        self.sweep();
    }

    fn judge(&self) {
        let (snapshot, credentials) = (self.snapshot(), self.credentials());
        let denied = self.flows.judge(&snapshot, credentials.as_ref().map(|c| &c.trust), self.clock.wall());
        if denied > 0 {
            tracing::info!(rev = %snapshot.revision, flows = denied, "live flows denied by changed policy");
        }
    }

    fn present(&self) {
        let presented = match &*self.credentials.borrow() {
            Some(c) => tls::presented(c, &self.snapshot.borrow(), &self.wall),
            None => Presented::default(),
        };
        *self.presented.borrow_mut() = Rc::new(presented);
    }

    fn sweep(&self) {
        let (mono, wall) = (self.clock.mono(), self.clock.wall());
        self.app_conns.sweep(mono);
        let c = self.credentials();
        self.shared_conns.sweep(mono, wall, |key| match (key, &c) {
            (Key::Mesh { source_serial, trust, .. }, Some(c)) => {
                **source_serial == *c.svid.serial().as_bytes() && *trust == c.trust.bundle.digest()
            }
            (Key::Mesh { .. }, None) => false,
            (Key::App(_), _) => true,
        });
    }

    /// Resolves when a snapshot is here for which `holds` is true.
    pub async fn when(&self, mut holds: impl FnMut(&Snapshot) -> bool) {
        let mut seen = self.snapshots.clone();
        // an error means that there will be no other: the caller's limit ends the wait
        if seen.wait_for(|s| holds(s)).await.is_err() {
            std::future::pending::<()>().await;
        }
        let new = seen.borrow().clone();
        if !Arc::ptr_eq(&new, &self.snapshot.borrow()) {
            self.swap(new);
        }
    }

    /// Loaded once per decision.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.borrow().clone()
    }

    pub fn presented(&self) -> Rc<Presented> {
        self.presented.borrow().clone()
    }

    /// Does the endpoint lead back to this proxy?
    pub fn is_own(&self, e: &Endpoint) -> bool {
        let plain = || e.tunnel == Tunnel::None && e.ports.values().any(|a| self.is_own_address(*a));
        e.uid == self.workload || e.mesh.is_some_and(|a| self.is_own_address(a)) || plain()
    }

    /// What this worker measured of a service.
    pub fn loads(&self, view: &Arc<ServiceView>) -> Rc<loads::Service> {
        self.loads.of(view, |e| self.is_own(e))
    }

    pub fn is_own_address(&self, a: SocketAddr) -> bool {
        self.own.contains(&a)
            || self.own.iter().any(|o| o.ip().is_unspecified() && o.port() == a.port() && a.ip().is_loopback())
    }

    pub fn next_conn(&self) -> u64 {
        self.conns.set(self.conns.get() + 1);
        self.conns.get()
    }

    /// The lane to an endpoint, if a request of these credentials went there before.
    pub fn lane(&self, e: &Arc<EndpointView>, class: Class) -> Option<Rc<Lane>> {
        self.lanes.borrow().get(&(Arc::as_ptr(e), class)).map(|(_, lane)| lane.clone())
    }

    pub fn new_lane(&self, e: &Arc<EndpointView>, class: Class, c: &Credentials) -> Option<Rc<Lane>> {
        let lane = self.shared_conns.lane(self.mesh_key(e, class, c)?);
        // the endpoint is kept, so that its address stays its own
        self.lanes.borrow_mut().insert((Arc::as_ptr(e), class), (e.clone(), lane.clone()));
        Some(lane)
    }

    fn mesh_key(&self, e: &Endpoint, class: Class, c: &Credentials) -> Option<Key> {
        let tunnel = Tunnel2::of(e.tunnel)?;
        Some(Key::Mesh {
            source: self.workload.clone(),
            source_serial: c.svid.serial().as_bytes().into(),
            trust: c.trust.bundle.digest(),
            expected: e.identities.clone(),
            address: e.mesh?,
            sni: e.sni.clone(),
            tunnel,
            class,
        })
    }

    /// What we say of ourselves.
    pub fn hello(&self) -> Hello {
        let snapshot = self.snapshot();
        let Some(w) = snapshot.workload(&self.workload).map(|v| &v.workload) else {
            return Hello { uid: self.workload.to_string(), ..Hello::default() };
        };
        Hello {
            uid: w.uid.to_string(),
            workload: w.workload.to_string(),
            app: w.app.to_string(),
            version: w.version.to_string(),
            cluster: self.cluster(&w.identity).to_owned(),
            zone: w.locality.zone.to_string(),
        }
    }

    /// What we were told, or what everybody of one group of servers shares.
    fn cluster<'a>(&'a self, identity: &'a SpiffeId) -> &'a str {
        if self.cluster.is_empty() { identity.trust_domain_str() } else { &self.cluster }
    }

    /// The same for HBONE peers (features.md 4.7).
    pub fn baggage(&self) -> Option<http::HeaderValue> {
        let snapshot = self.snapshot();
        let w = &snapshot.workload(&self.workload)?.workload;
        let text = format!(
            "k8s.cluster.name={},k8s.namespace.name={},k8s.pod.name={},service.name={},service.version={}",
            self.cluster(&w.identity),
            w.service.namespace,
            w.workload,
            w.app,
            w.version
        );
        http::HeaderValue::from_str(&text).ok()
    }

    /// A dice throw as decisions want it.
    pub fn throw(&self) -> impl FnMut(u32) -> u32 + '_ {
        |n| u32::try_from(self.dice.borrow_mut().below(u64::from(n))).unwrap_or(0)
    }

    /// The namespace whose routes apply to what our application sends.
    pub fn namespace(&self, snapshot: &Snapshot) -> Option<weft_model::Name> {
        Some(snapshot.workload(&self.workload)?.workload.service.namespace.clone())
    }

    /// What the catalog says is spoken on a port.
    pub fn declared(&self, service: &ServiceKey, port: u16) -> weft_model::Protocol {
        let snapshot = self.snapshot();
        snapshot.service(service).and_then(|s| s.port(port)).map_or(weft_model::Protocol::Undeclared, |p| p.protocol)
    }

    pub fn service_host(service: &ServiceKey) -> Option<http::uri::Authority> {
        http::uri::Authority::from_maybe_shared(bytes::Bytes::from(service.host())).ok()
    }
}
