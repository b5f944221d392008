//! What this proxy is told: the delta stream, and the snapshot that each complete set of it becomes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_model::{Name, ServiceKey, TrustDomain, Uid};
use weft_snapshot::{
    fragment::{Collection, Fragment, Target},
    snapshot::Snapshot,
};
use weft_wire::{
    delta::{Client, Event, Set},
    grpc::{AggregatedDiscoveryServiceClient, DeltaDiscoveryResponse, Status},
};

use super::{connect::Dialer, kept::Kept};

/// Shortest and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a set waits for the services that its routes name before it is used without them.
const CLOSURE: Duration = Duration::from_secs(2);

/// The stream of one proxy.
pub struct Discovery {
    client: Client,
    consumer: Name,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Services asked for: declared upstreams, and others at first use.
    wanted: watch::Receiver<BTreeSet<ServiceKey>>,
    kept: Option<Kept>,
    /// A set whose routes name services that were subscribed only now.
    pending: Option<Arc<Snapshot>>,
}

impl Discovery {
    /// For one workload. A configuration kept on disk is published at once.
    pub fn new(
        uid: &Uid,
        trust_domain: &TrustDomain,
        consumer: Name,
        wanted: watch::Receiver<BTreeSet<ServiceKey>>,
        kept: Option<Kept>,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let restored = kept
            .as_ref()
            .and_then(Kept::configuration)
            .map(|saved| Client::restore(uid.as_str(), saved.into(), |set| build(None, set)));
        let (mut client, first) = match restored {
            Some(Ok((client, snapshot))) => (client, snapshot),
            Some(Err(e)) => {
                tracing::warn!(error = %weft_rt::log::chain(&e), "the configuration kept on disk cannot be used");
                (Client::new(uid.as_str()), Snapshot::empty())
            }
            None => (Client::new(uid.as_str()), Snapshot::empty()),
        };
        client.subscribe([
            Collection::Workload(uid.clone()),
            Collection::Inbound(uid.clone()),
            Collection::Bundle(trust_domain.clone()),
            Collection::Revocations,
        ]);
        let (snapshots, published) = watch::channel(Arc::new(first));
        (Self { client, consumer, snapshots, wanted, kept, pending: None }, published)
    }

    /// Follows the stream, and opens it anew after every loss, for ever. What was published last stays.
    pub async fn run(mut self, dialer: Dialer) {
        let mut pause = PAUSE.0;
        loop {
            let before = self.client.applied();
            if let Err(status) = self.once(&dialer).await {
                tracing::debug!(why = status.message(), "configuration stream ended");
            }
            self.client.disconnect();
            pause = if self.client.applied() == before { (pause * 2).min(PAUSE.1) } else { PAUSE.0 };
            tokio::time::sleep(pause).await;
        }
    }

    async fn once(&mut self, dialer: &Dialer) -> Result<(), Status> {
        let (requests, stream) = mpsc::channel(16);
        self.subscribe();
        requests.send(self.client.connect()).await.map_err(|_| ended())?;
        let mut service = AggregatedDiscoveryServiceClient::new(dialer.channel()?);
        let mut responses = service.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        let mut deadline = None;
        loop {
            tokio::select! {
                biased; // what arrived may answer what is about to be asked
                response = responses.message() => {
                    let answer = self.take(response?.ok_or_else(ended)?)?;
                    requests.send(answer).await.map_err(|_| ended())?;
                    deadline = self.pending.as_ref().map(|_| tokio::time::Instant::now() + CLOSURE);
                }
                changed = self.wanted.changed() => {
                    changed.map_err(|_| ended())?;
                    self.subscribe();
                }
                () = until(deadline) => {
                    deadline = None;
                    if let Some(snapshot) = self.pending.take() {
                        self.publish(snapshot);
                    }
                }
            }
            if let Some(request) = self.client.take_request() {
                requests.send(request).await.map_err(|_| ended())?;
            }
        }
    }

    /// One response, and the request that answers it.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<weft_wire::grpc::DeltaDiscoveryRequest, Status> {
        let previous = self.pending.clone().unwrap_or_else(|| self.snapshots.borrow().clone());
        let taken = self.client.on_response(response, |set| build(Some(&previous), set));
        let (answer, event) = taken.map_err(|e| Status::internal(e.to_string()))?;
        match event {
            Event::Received => {}
            Event::Applied { value, .. } => {
                let snapshot = Arc::new(value);
                if self.subscribe() {
                    self.pending = Some(snapshot);
                } else {
                    self.pending = None;
                    self.publish(snapshot);
                }
            }
            Event::Rejected(rejections) => {
                for r in rejections {
                    tracing::error!(
                        resource = r.resource,
                        reason = r.reason,
                        "configuration rejected: the last good one stays"
                    );
                }
            }
        }
        Ok(answer)
    }

    /// Subscribes what is wanted and what routes lead to. True when something was missing: the set is not closed yet.
    fn subscribe(&mut self) -> bool {
        let mut all: BTreeSet<Collection> = BTreeSet::new();
        for service in self.wanted.borrow_and_update().iter() {
            all.insert(Collection::Service(service.clone()));
            all.insert(Collection::Endpoints(service.clone()));
            all.insert(Collection::Routes { service: service.clone(), consumer: self.consumer.clone() });
        }
        for backend in self.backends() {
            all.insert(Collection::Service(backend.clone()));
            all.insert(Collection::Endpoints(backend));
        }
        let missing: Vec<_> = all.into_iter().filter(|c| !self.client.is_subscribed(c)).collect();
        let any = !missing.is_empty();
        self.client.subscribe(missing);
        any
    }

    /// Every service that an applied route may send to.
    fn backends(&self) -> BTreeSet<ServiceKey> {
        let fragments = self.client.fragments().values().flat_map(|entries| entries.values());
        let routes = fragments.filter_map(|f| match &**f {
            Fragment::Routes(routes) => Some(routes),
            _ => None,
        });
        let ports = routes.flat_map(|r| r.ports.values());
        let backends =
            ports.flat_map(|p| p.http.iter().flat_map(|r| &r.backends).chain(p.tcp.iter().flat_map(|r| &r.backends)));
        let services = backends.filter_map(|b| match &b.target {
            Target::Service { key, .. } => Some(key.clone()),
            Target::Unresolved { .. } => None,
        });
        services.collect()
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        tracing::info!(rev = %snapshot.revision, digest = %snapshot.digest, "configuration applied");
        self.snapshots.send_replace(snapshot);
        if let (Some(kept), Some(saved)) = (&self.kept, self.client.save())
            && let Err(e) = kept.keep_configuration(&saved)
        {
            tracing::warn!(error = %weft_rt::log::chain(&e), "configuration cannot be kept on disk");
        }
    }
}

fn build(previous: Option<&Snapshot>, set: &Set<'_>) -> Result<Snapshot, Vec<weft_snapshot::snapshot::Rejection>> {
    Snapshot::build(previous, set.commit.revision, set.commit.set_digest, set.fragments)
}

fn ended() -> Status {
    Status::unavailable("the stream has ended")
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
