//! Everything that is told of a proxy: records go to metrics, the access log and the ring; questions and scrapes are
//! answered from them.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;
use weft_model::Uid;
use weft_rt::{
    Clock, Tasks,
    listen::{self, Bind, BindError},
};
use weft_snapshot::{
    decision::{Direction, Spoken},
    snapshot::Snapshot,
};
use weft_wire::v1::{Answer, server_ask::Ask};

use crate::{
    access_log::{AccessLog, Format},
    admin::{self, Pages},
    control::Answers,
    metrics::Metrics,
    record::{Handshake, Record, Sink},
    ring::Ring,
    tls::Credentials,
};

/// Decisions that one question gets at most.
const MAX_ANSWER: usize = 200;

pub struct Config {
    pub uid: Uid,
    /// Metrics and readiness.
    pub address: Bind,
    pub access_log: Option<Format>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub clock: Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error("cannot listen for metrics and readiness")]
    Bind(#[source] BindError),
    #[error("metrics and readiness need a TCP address")]
    NotTcp,
    #[error("cannot start the access log's thread")]
    Log(#[source] std::io::Error),
}

/// The telling side of one proxy.
pub struct Observability {
    told: Arc<Told>,
    address: SocketAddr,
    ready: watch::Sender<bool>,
    _tasks: Tasks,
}

/// Where records go.
struct Told {
    metrics: Arc<Metrics>,
    ring: Ring,
    log: Option<AccessLog>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    clock: Clock,
}

// === impl Observability ===

impl Observability {
    pub fn start(config: Config) -> Result<Self, ObserveError> {
        let listener = listen::bind(&config.address).map_err(ObserveError::Bind)?;
        let address = listener.addr().tcp().ok_or(ObserveError::NotTcp)?;
        let Config { uid, access_log, snapshots, credentials, clock, .. } = config;
        let metrics = Metrics::new(uid, clock.clone(), snapshots.clone(), credentials.clone());
        let log = access_log.map(|format| AccessLog::start(format, std::io::stderr(), metrics.access_log_dropped()));
        let log = log.transpose().map_err(ObserveError::Log)?;
        let (ready, seen) = watch::channel(false);
        let mut tasks = Tasks::new();
        let pages = Pages {
            metrics: metrics.clone(),
            ready: seen,
            snapshots: snapshots.clone(),
            credentials,
            clock: clock.clone(),
        };
        tasks.spawn("admin", admin::serve(listener, pages));
        let told = Arc::new(Told { metrics, ring: Ring::default(), log, snapshots, clock });
        Ok(Self { told, address, ready, _tasks: tasks })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn sink(&self) -> Arc<dyn Sink> {
        self.told.clone()
    }

    pub fn answers(&self) -> Answers {
        let told = self.told.clone();
        Arc::new(move |ask| told.answer(ask))
    }

    /// What `/healthz/ready` says.
    pub fn ready(&self, ready: bool) {
        self.ready.send_replace(ready);
    }
}

// === impl Told ===

impl Sink for Told {
    fn take(&self, mut record: Box<Record>) {
        let at = self.clock.wall();
        self.metrics.take(&mut record);
        if let Some(log) = &self.log {
            log.write(at, &record);
        }
        record.let_go();
        self.ring.push(at, record);
    }

    fn open(&self, direction: Direction, spoken: Spoken, delta: i64) {
        self.metrics.open(direction, spoken, delta);
    }

    fn progress(&self, record: &mut Record) {
        self.metrics.progress(record);
    }

    fn handshake(&self, handshake: &Handshake<'_>) {
        self.metrics.handshake(handshake);
    }
}

impl Told {
    fn answer(&self, ask: &Ask) -> Answer {
        let snapshot = self.snapshots.borrow().clone();
        match ask {
            Ask::Why(why) => {
                Answer { decisions: self.ring.of_request(&why.request_id, &snapshot), ..Answer::default() }
            }
            Ask::Recent(recent) => {
                let limit = usize::try_from(recent.limit).unwrap_or(MAX_ANSWER).clamp(1, MAX_ANSWER);
                let filter = recent.filter.clone().unwrap_or_default();
                Answer { decisions: self.ring.recent(&filter, limit, &snapshot), ..Answer::default() }
            }
            Ask::Stats(_) => Answer { stats: Some(self.metrics.stats()), ..Answer::default() },
        }
    }
}
