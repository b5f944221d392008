//! What requests and connections are counted by: Istio's metrics under Istio's names (features.md OBS-01, OBS-02), and ours.

use std::sync::Arc;

use tokio::sync::watch;
use weft_model::{Mono, Uid};
use weft_rt::{
    Clock,
    metrics::{Format, Registry, observe_process},
};
use weft_snapshot::snapshot::Snapshot;
use weft_wire::v1::EdgeStats;

use crate::{
    record::{Direction, Handshake, Record, Spoken},
    tls::Credentials,
};

/// One end of an edge, as metrics name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub principal: Arc<str>,
    pub cluster: Arc<str>,
    pub zone: Arc<str>,
}

/// Counts what a proxy does. Whoever takes records calls it on the worker's thread.
#[derive(Debug)]
pub struct Metrics {
    #[expect(dead_code, reason = "next commit")]
    uid: Uid,
    clock: Clock,
    started: Mono,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    #[expect(dead_code, reason = "next commit")]
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    registry: Arc<Registry>,
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
        let started = clock.mono();
        Arc::new(Self { uid, clock, started, snapshots, credentials, registry })
    }

    /// Where others may count too.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub fn take(&self, _record: &Record) {}

    pub fn open(&self, _direction: Direction, _spoken: Spoken, _delta: i64) {}

    pub fn progress(&self, _record: &mut Record) {}

    pub fn handshake(&self, _handshake: &Handshake<'_>) {}

    /// In Prometheus' text format.
    pub fn exposition(&self) -> String {
        self.expose(Format::Prometheus)
    }

    pub fn expose(&self, format: Format) -> String {
        self.registry.render(format)
    }

    /// For the live table of edges.
    pub fn stats(&self) -> EdgeStats {
        let snapshot = self.snapshots.borrow().clone();
        EdgeStats {
            edges: Vec::new(),
            revision: Some(weft_wire::v1::Revision { incarnation: snapshot.revision.incarnation, n: snapshot.revision.n }),
            digest: snapshot.digest.as_bytes().to_vec().into(),
            uptime_ms: u64::try_from(self.clock.mono().since(self.started).as_millis()).unwrap_or(u64::MAX),
        }
    }
}
