//! A sidecar as a library: started with its configuration and its sources of truth, drained in two halves.
//!
//! ```ignore
//! let sidecar = Sidecar::start(config, sources)?;          // binds; errors name what is in the way
//! let at = sidecar.bound();                                // where it really listens
//! sidecar.drain_inbound(deadline).await;                   // GOAWAY, then quiet; afterwards signal the application
//! sidecar.stop(deadline).await;                            // outbound too, then the threads
//! ```

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::LocalSet,
};
use weft_model::{Protocol, Revision, ServiceKey, Uid};
use weft_rt::{
    Clock, Dice,
    drain::{self, Hasten, Trigger},
    listen::{self, Bind, BindError, Listener, Reserved},
    net::{Addr, Detached, Net, Stream},
};
use weft_snapshot::snapshot::Snapshot;

use crate::{
    http::Outbound,
    loads::Shared,
    record::{Peer, Sink},
    serve,
    tls::Credentials,
    worker::{Deps, Worker},
};

/// How long a connection to an upstream that is not known yet waits for it to be told.
const UNKNOWN_UPSTREAM: Duration = Duration::from_secs(3);
/// After descriptors ran out, accepting rests.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What a sidecar serves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose sidecar it is.
    pub workload: Uid,
    /// The mesh port (mTLS). `None`: outbound only.
    pub inbound: Option<Bind>,
    pub upstreams: Vec<Upstream>,
    /// For `HTTP_PROXY`, CONNECT and SOCKS5.
    pub explicit: Option<Bind>,
    /// Threads; a sidecar has one.
    pub workers: usize,
    /// For labels only.
    pub cluster: Arc<str>,
}

/// One local listener that leads to one service, whatever `Host` says.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub service: ServiceKey,
    pub port: PortRef,
    pub listen: Bind,
    /// Overrides what the catalog declares.
    pub protocol: Option<Protocol>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    /// The service has one.
    Only,
    Number(u16),
    Name(Arc<str>),
}

/// Where a sidecar gets what it knows, and where its records go.
#[derive(Clone)]
pub struct Sources {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub sink: Arc<dyn Sink>,
    pub net: Arc<dyn Net>,
    pub clock: Clock,
}

/// Where it listens.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    pub inbound: Option<SocketAddr>,
    /// In the order of [`Config::upstreams`].
    pub upstreams: Vec<Addr>,
    pub explicit: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen for {what}")]
    Bind {
        what: String,
        #[source]
        source: BindError,
    },
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

pub struct Sidecar {
    bound: Bound,
    inbound: Mutex<Option<Trigger>>,
    outbound: Mutex<Option<Trigger>>,
    hasten_inbound: Hasten,
    hasten_outbound: Hasten,
    end: Mutex<Option<Trigger>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    applied: watch::Receiver<Vec<Revision>>,
}

/// What a listener is for.
#[derive(Clone)]
enum Door {
    Mesh,
    Upstream(Rc<Upstream>),
    Explicit,
}

/// The same, between threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DoorIx {
    Mesh,
    Upstream(usize),
    Explicit,
}

/// Of inbound and outbound drains.
type Watches = (drain::Watch, drain::Watch);

struct Handed {
    door: DoorIx,
    stream: Detached,
    peer: Option<SocketAddr>,
}

/// What is the same for all workers.
#[derive(Clone)]
struct Plan {
    deps: Deps,
    upstreams: Arc<Vec<Upstream>>,
    inbound: drain::Observer,
    outbound: drain::Observer,
    end: drain::Observer,
    loads: Arc<Vec<Arc<AtomicUsize>>>,
    /// Which snapshot each worker decides by.
    applied: watch::Sender<Vec<Revision>>,
}

// === impl Sidecar ===

impl Sidecar {
    /// Binds everything, then starts its threads. Needs no runtime of the caller.
    pub fn start(config: Config, sources: Sources) -> Result<Self, StartError> {
        weft_identity::warm_up();
        let (bound, listeners) = reserve(&config)?;
        let own: BTreeSet<SocketAddr> = bound
            .inbound
            .into_iter()
            .chain(bound.explicit)
            .chain(bound.upstreams.iter().filter_map(Addr::tcp))
            .collect();
        let deps = Deps {
            net: sources.net,
            clock: sources.clock,
            snapshots: sources.snapshots,
            credentials: sources.credentials,
            shared: Arc::new(Shared::default()),
            sink: sources.sink,
            workload: config.workload,
            own: Arc::new(own),
            cluster: config.cluster,
        };
        let (inbound, inbound_watch) = drain::new();
        let (outbound, outbound_watch) = drain::new();
        let (end, _) = drain::new();
        let count = config.workers.max(1);
        let plan = Plan {
            deps,
            upstreams: Arc::new(config.upstreams),
            inbound: inbound.observer(),
            outbound: outbound.observer(),
            end: end.observer(),
            loads: Arc::new(std::iter::repeat_with(Arc::default).take(count).collect()),
            applied: watch::Sender::new(vec![Revision::ZERO; count]),
        };
        let threads =
            start_threads(&plan, (inbound_watch, outbound_watch), count, listeners).map_err(StartError::Thread)?;
        Ok(Self {
            bound,
            hasten_inbound: inbound.hasten(),
            hasten_outbound: outbound.hasten(),
            inbound: Mutex::new(Some(inbound)),
            outbound: Mutex::new(Some(outbound)),
            end: Mutex::new(Some(end)),
            threads: Mutex::new(threads),
            applied: plan.applied.subscribe(),
        })
    }

    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// The revision by which every worker decides.
    pub fn applied(&self) -> Revision {
        least(&self.applied.borrow())
    }

    /// Resolves when every worker decides by `revision` or a later one: what was open was judged by it.
    pub async fn when_applied(&self, revision: Revision) {
        let mut seen = self.applied.clone();
        // an error means that the workers are gone: they decide nothing any more
        let _ = seen.wait_for(|all| least(all) >= revision).await;
    }

    /// Stops taking mesh connections, says GOAWAY, and waits until what is in flight has ended. True: it ended in time.
    /// Whoever calls this has told its subscribers before, and signals the application afterwards.
    pub async fn drain_inbound(&self, deadline: Duration) -> bool {
        match take(&self.inbound) {
            Some(t) => t.drain(deadline).await,
            None => true,
        }
    }

    /// Ends everything: drains what was not drained, then stops the threads.
    pub async fn stop(&self, deadline: Duration) -> bool {
        let inbound = self.drain_inbound(deadline).await;
        let outbound = match take(&self.outbound) {
            Some(t) => t.drain(deadline).await,
            None => true,
        };
        drop(take(&self.end));
        let threads = std::mem::take(&mut *lock(&self.threads));
        let joined = tokio::task::spawn_blocking(move || {
            for t in threads {
                let _ = t.join(); // a worker that panicked said so
            }
        });
        let _ = joined.await;
        inbound && outbound
    }

    /// A second signal: what is being waited for ends at once. What the application itself calls goes on until
    /// [`Sidecar::stop`] waits for that too: the application has yet to hear of its end, and may have last things to say.
    pub fn hasten(&self) {
        self.hasten_inbound.force();
        if lock(&self.outbound).is_none() {
            self.hasten_outbound.force();
        }
    }
}

impl Drop for Sidecar {
    /// Not drained: its connections break.
    fn drop(&mut self) {
        self.hasten_inbound.force();
        self.hasten_outbound.force();
        drop(take(&self.end));
    }
}

fn least(all: &[Revision]) -> Revision {
    all.iter().copied().min().unwrap_or(Revision::ZERO)
}

fn take<T>(m: &Mutex<Option<T>>) -> Option<T> {
    lock(m).take()
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn reserve(config: &Config) -> Result<(Bound, Vec<(DoorIx, Reserved)>), StartError> {
    let bind = |what: String, b: &Bind| listen::reserve(b).map_err(|source| StartError::Bind { what, source });
    let mut listeners = Vec::new();
    let mut bound = Bound::default();
    if let Some(b) = &config.inbound {
        let l = bind("mesh connections".into(), b)?;
        bound.inbound = l.addr().tcp();
        listeners.push((DoorIx::Mesh, l));
    }
    for (i, u) in config.upstreams.iter().enumerate() {
        let l = bind(format!("upstream {}", u.service), &u.listen)?;
        bound.upstreams.push(l.addr().clone());
        listeners.push((DoorIx::Upstream(i), l));
    }
    if let Some(b) = &config.explicit {
        let l = bind("HTTP_PROXY and SOCKS5".into(), b)?;
        bound.explicit = l.addr().tcp();
        listeners.push((DoorIx::Explicit, l));
    }
    Ok((bound, listeners))
}

// === threads ===

fn start_threads(
    plan: &Plan,
    watches: Watches,
    count: usize,
    listeners: Vec<(DoorIx, Reserved)>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
    let mut listeners = Some(listeners);
    let mut threads = Vec::new();
    for (ix, handed) in receivers.into_iter().enumerate() {
        let (plan, watches) = (plan.clone(), watches.clone());
        // the first worker accepts for all
        let mine = listeners.take().unwrap_or_default();
        let senders = if ix == 0 { senders.clone() } else { Vec::new() };
        let thread = std::thread::Builder::new().name(format!("weft-worker-{ix}"));
        threads.push(thread.spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(r) => r,
                Err(e) => return tracing::error!(error = %e, "worker has no runtime"),
            };
            LocalSet::new().block_on(&runtime, worker(plan, watches, ix, mine, senders, handed));
        })?);
    }
    Ok(threads)
}

/// One worker, until the end. The first one accepts.
async fn worker(
    plan: Plan,
    (inbound, outbound): Watches,
    ix: usize,
    listeners: Vec<(DoorIx, Reserved)>,
    senders: Vec<mpsc::UnboundedSender<Handed>>,
    mut handed: mpsc::UnboundedReceiver<Handed>,
) {
    let w = Worker::new(&plan.deps, Dice::from_os());
    let upstreams: Rc<Vec<Rc<Upstream>>> = Rc::new(plan.upstreams.iter().cloned().map(Rc::new).collect());
    let here = Rc::new(Here {
        w: w.clone(),
        upstreams,
        inbound: RefCell::new(Some(inbound)),
        outbound: RefCell::new(Some(outbound)),
        ix,
        plan: plan.clone(),
    });
    let mut tasks = weft_rt::Tasks::new();
    tasks.spawn_local("closing", closing(here.clone()));
    for (door, reserved) in listeners {
        match reserved.open() {
            Ok(l) => tasks.spawn_local("acceptor", accept(here.clone(), door, l, senders.clone())),
            Err(e) => tracing::error!(error = %e, "listener was lost"),
        }
    }
    drop(senders);
    let taking = async move {
        while let Some(h) = handed.recv().await {
            if let Ok(stream) = h.stream.attach() {
                here.serve(h.door, stream, h.peer);
            }
        }
    };
    tasks.spawn_local("taking", taking);
    let told = |revision| plan.applied.send_modify(|all| all.iter_mut().skip(ix).take(1).for_each(|r| *r = revision));
    w.keep(&plan.deps, plan.end.clone(), &told).await;
}

/// What a worker needs to serve a connection.
struct Here {
    w: Rc<Worker>,
    upstreams: Rc<Vec<Rc<Upstream>>>,
    /// Given to connections until the drain begins.
    inbound: RefCell<Option<drain::Watch>>,
    outbound: RefCell<Option<drain::Watch>>,
    ix: usize,
    plan: Plan,
}

/// A worker is no reason to wait: from the beginning of a drain its connections alone are.
async fn closing(here: Rc<Here>) {
    let (mut inbound, mut outbound) = (here.plan.inbound.clone(), here.plan.outbound.clone());
    tokio::join!(
        async {
            inbound.draining().await;
            *here.inbound.borrow_mut() = None;
        },
        async {
            outbound.draining().await;
            *here.outbound.borrow_mut() = None;
        },
    );
}

/// Accepts until the drain begins, for the least loaded worker.
async fn accept(here: Rc<Here>, door: DoorIx, mut l: Listener, senders: Vec<mpsc::UnboundedSender<Handed>>) {
    let mut stop = if door == DoorIx::Mesh { here.plan.inbound.clone() } else { here.plan.outbound.clone() };
    loop {
        let accepted = tokio::select! {
            biased; // a listener that drains takes nothing new
            () = stop.draining() => return,
            a = l.accept() => a,
        };
        let (stream, peer) = match accepted {
            Ok(a) => a,
            Err(e) => {
                tracing::warn!(error = %e, listener = %l.addr(), "accept failed");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let least =
            here.plan.loads.iter().enumerate().min_by_key(|(_, l)| l.load(Ordering::Relaxed)).map_or(0, |(i, _)| i);
        if least == here.ix {
            here.serve(door, stream, peer);
        } else if let (Some(to), Ok(stream)) = (senders.get(least), stream.detach()) {
            // a worker that is gone takes its connections along
            let _ = to.send(Handed { door, stream, peer });
        }
    }
}

impl Here {
    fn serve(&self, door: DoorIx, stream: Stream, peer: Option<SocketAddr>) {
        let door = match door {
            DoorIx::Mesh => Door::Mesh,
            DoorIx::Explicit => Door::Explicit,
            DoorIx::Upstream(i) => match self.upstreams.get(i) {
                Some(u) => Door::Upstream(u.clone()),
                None => return,
            },
        };
        let load = self.plan.loads.get(self.ix).cloned().map(Loaded::new);
        let w = self.w.clone();
        let watch = if matches!(door, Door::Mesh) { &self.inbound } else { &self.outbound };
        // draining: what was accepted at the last moment is let go, unserved
        let Some(watch) = watch.borrow().clone() else { return };
        // its end is waited for by the drain's token that it holds
        weft_rt::tasks::spawn_local(async move {
            let _load = load;
            match door {
                Door::Mesh => match peer {
                    Some(from) => serve::mesh(w, stream, from, watch).await,
                    None => tracing::debug!("mesh connection without an address"),
                },
                Door::Upstream(u) => upstream(w, &u, stream, peer, watch).await,
                Door::Explicit => crate::explicit::serve(w, stream, peer, watch).await,
            }
        })
        .detach();
    }
}

async fn upstream(w: Rc<Worker>, u: &Upstream, stream: Stream, peer: Option<SocketAddr>, drain: drain::Watch) {
    let port = port_of(&w, &u.service, &u.port).await;
    let peer = Arc::new(Peer { conn: w.next_conn(), addr: peer, ..Peer::default() });
    let host = Worker::service_host(&u.service);
    let o = Outbound { worker: w, peer, service: u.service.clone(), port, protocol: u.protocol, host, drain };
    serve::outbound(Rc::new(o), stream).await;
}

/// The port's number; waits a little for a service that is not known yet. 0 when it stays unknown: the request then fails by name.
pub(crate) async fn port_of(w: &Worker, service: &ServiceKey, port: &PortRef) -> u16 {
    let find = || {
        let snapshot = w.snapshot();
        let view = snapshot.service(service)?;
        Some(match port {
            PortRef::Only => view.only_port().map_or(0, |p| p.port),
            PortRef::Number(n) => *n,
            PortRef::Name(n) => view.port_named(n).map_or(0, |p| p.port),
        })
    };
    if let Some(n) = find() {
        return n;
    }
    let told = w.when(|s| s.service(service).is_some());
    // in vain: what was asked for decides how it fails
    let _ = tokio::time::timeout(UNKNOWN_UPSTREAM, told).await;
    find().unwrap_or(if let PortRef::Number(n) = port { *n } else { 0 })
}

/// Counts a connection while it lives.
struct Loaded(Arc<AtomicUsize>);

impl Loaded {
    fn new(n: Arc<AtomicUsize>) -> Self {
        n.fetch_add(1, Ordering::Relaxed);
        Self(n)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
