//! What requests and connections are counted by: Istio's metrics under Istio's names (features.md OBS-01, OBS-02), and ours.

mod edges;
mod labels;
mod stats;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use weft_model::{Mono, SpiffeId, Uid};
use weft_rt::{
    Clock,
    metrics::{Counter, Format, Metric, Registry, Shard, UNKNOWN, observe_process},
};
use weft_snapshot::snapshot::Snapshot;

pub use self::labels::Labels;
use self::{
    edges::{EdgeKey, Edges, Protocol, reporter},
    labels::Ends,
};
use crate::{
    record::{Direction, Handshake, Record, Spoken},
    tls::Credentials,
};

/// Threads that count without ever meeting; more would share.
const WORKERS: usize = 8;

/// Peers whose key exchange is remembered.
const MAX_PEERS: usize = 4096;

/// Counts what a proxy does. Whoever takes records calls it on the worker's thread.
pub struct Metrics {
    uid: Uid,
    clock: Clock,
    started: Mono,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    registry: Arc<Registry>,
    /// Each thread locks its own, so that nobody waits but for a question about edges.
    workers: Box<[Mutex<Worker>]>,
}

/// What one thread counts.
struct Worker {
    shard: Shard,
    ends: Ends,
    edges: Edges,
    /// Key exchange of the latest connection to each peer.
    groups: HashMap<SpiffeId, &'static str>,
}

// === impl Metrics ===

impl Metrics {
    pub fn new(
        uid: Uid,
        clock: Clock,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
    ) -> Arc<Self> {
        let registry = Registry::new();
        observe_process(&registry, "proxy", env!("CARGO_PKG_VERSION"));
        let config = snapshots.clone();
        registry.collect(move |out| {
            let snapshot = config.borrow().clone();
            let (revision, digest) = (snapshot.revision.to_string(), snapshot.digest.to_string());
            out.push(Metric::ConfigInfo, &[&revision, &digest], 1_u64);
        });
        registry.collect(move |out| {
            if let Some(c) = &*credentials.borrow() {
                let expiry = u64::try_from(c.svid.not_after().as_secs()).unwrap_or(0);
                out.push(Metric::CertificateExpiry, &[c.svid.id().as_str()], expiry);
            }
        });
        let workers = (0..WORKERS).map(|_| Mutex::new(Worker::new(&registry))).collect();
        let started = clock.mono();
        Arc::new(Self { uid, clock, started, snapshots, registry, workers })
    }

    /// Where others may count too.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub fn take(&self, record: &mut Record) {
        let mut worker = self.mine();
        let key = worker.key(self, record);
        worker.edges.ended(key, record);
    }

    pub fn open(&self, direction: Direction, spoken: Spoken, delta: i64) {
        let protocol = match spoken {
            Spoken::Http => "http",
            Spoken::Tcp => "tcp",
        };
        self.mine().edges.open(reporter(direction), protocol, delta);
    }

    pub fn progress(&self, record: &mut Record) {
        let mut worker = self.mine();
        let key = worker.key(self, record);
        worker.edges.progress(key, record);
    }

    pub fn handshake(&self, h: &Handshake<'_>) {
        let mut worker = self.mine();
        if let (Some(peer), None, Direction::Outbound) = (h.peer, h.failure, h.direction) {
            if worker.groups.len() >= MAX_PEERS {
                worker.groups.clear();
            }
            worker.groups.insert(peer.clone(), h.tls_group);
        }
        let id = |id: Option<&SpiffeId>| id.map_or(UNKNOWN.into(), |id| id.as_str().to_owned());
        let (local, peer) = (id(h.local), id(h.peer));
        let (source, destination) = match h.direction {
            Direction::Outbound => (local, peer),
            Direction::Inbound => (peer, local),
        };
        let or_unknown = |s: &'static str| if s.is_empty() { UNKNOWN } else { s };
        let result = h.failure.map_or("ok", |k| k.label());
        let (group, cipher) = (or_unknown(h.tls_group), or_unknown(h.tls_cipher));
        let values = [reporter(h.direction), &*source, &*destination, group, cipher, result];
        worker.shard.counter(Metric::Handshakes, &values).add(1);
    }

    /// In Prometheus' text format.
    pub fn exposition(&self) -> String {
        self.expose(Format::Prometheus)
    }

    pub fn expose(&self, format: Format) -> String {
        self.registry.render(format)
    }

    /// For lines of the access log that nobody took in time.
    pub fn access_log_dropped(&self) -> Counter {
        self.registry.counter(Metric::AccessLogDropped, &[])
    }

    fn mine(&self) -> MutexGuard<'_, Worker> {
        let ix = thread_index() % self.workers.len().max(1);
        #[expect(clippy::indexing_slicing, reason = "by the remainder")]
        lock(&self.workers[ix])
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("uid", &self.uid).finish_non_exhaustive()
    }
}

/// Threads that count, in the order in which they began to.
fn thread_index() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    MINE.with(|mine| *mine)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Worker ===

impl Worker {
    fn new(registry: &Arc<Registry>) -> Self {
        let (shard, ends) = (registry.shard(), Ends::default());
        let edges = Edges::new(shard.clone(), registry.shard(), ends.unknown());
        Self { shard, ends, edges, groups: HashMap::new() }
    }

    /// Who asked whom for what, in whose view.
    fn key(&mut self, metrics: &Metrics, r: &Record) -> EdgeKey {
        self.ends.at(r.revision);
        let snapshot = || metrics.snapshots.borrow().clone();
        let own = self.ends.own(r.workload.as_ref().unwrap_or(&metrics.uid), &snapshot);
        let (source, destination, mutual_tls) = match r.direction {
            Direction::Inbound => (self.ends.peer(&r.downstream), own, r.downstream.id.is_some()),
            Direction::Outbound => {
                let asked = r.service.as_ref().zip(r.upstream_uid.as_ref());
                let found = asked.and_then(|((service, _), uid)| self.ends.endpoint(service, uid, &snapshot));
                let (destination, meshed) = found.unwrap_or_else(|| {
                    let namespace = r.service.as_ref().map(|(key, _)| key.namespace.as_str());
                    (self.ends.stranger(r.upstream_id.as_ref(), namespace), r.upstream_id.is_some())
                });
                (own, destination, meshed)
            }
        };
        let service = r.service.as_ref().map(|(key, _)| key.clone());
        EdgeKey { direction: r.direction, protocol: Protocol::of(r), mutual_tls, source, destination, service }
    }
}

#[cfg(test)]
mod tests;
