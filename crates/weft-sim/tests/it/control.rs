//! One life of the control plane: the real server, its gRPC services on a host of the simulated network.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use weft_ca::{Allowed, token};
use weft_control::{
    Config, Server, StoreKind,
    api::{
        observe::Observation,
        peer::{Joined, Peer},
        workload::Workloads,
        xds::Discovery,
    },
    documents::{self, DocumentError, Intent},
    keys,
    replica::Draft,
    server::Control,
};
use weft_identity::recheck;
use weft_rt::{
    Clock, Dice, Tasks,
    listen::Bind,
    net::{Addr, Stream},
};
use weft_sim::pipe_net::{Host, Listener};
use weft_store::{Expect, Format, Store, Write};
use weft_wire::grpc::{self, AggregatedDiscoveryServiceServer, ObserveServer, PeerIo, Routes, WorkloadApiServer};

use crate::oracle::Change;

pub const PORT: u16 = 15012;
/// Short, so that identities are renewed and connections replaced within a run.
pub const LEAF: Duration = Duration::from_secs(300);

pub struct Life {
    server: Server,
    serving: Tasks,
}

impl Life {
    /// `None`: the store did not take the first start; a person would try again.
    pub async fn start(host: &Host, store: Arc<dyn Store>, data: &Path, clock: Clock, dice: Dice) -> Option<Self> {
        // the server's own listeners are the kernel's and stay silent here
        let any = || Bind::exact(Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))));
        let config = Config {
            store: StoreKind::Given(store),
            data: data.into(),
            http: any(),
            mesh: any(),
            leaf_ttl: LEAF,
            clock,
            dice,
            ..Config::default()
        };
        let server = Server::start(config).await.ok()?;
        let listener = host.listen(PORT).unwrap();
        let (peers, incoming) = mpsc::channel(16);
        let control = server.control().clone();
        let routes = Routes::new(WorkloadApiServer::new(Workloads(control.clone())))
            .add_service(AggregatedDiscoveryServiceServer::new(Discovery(control.clone())))
            .add_service(ObserveServer::new(Observation(control.clone())));
        let mut serving = Tasks::new();
        serving.spawn("accept", accept(listener, control.clone(), peers));
        let mut draining = control.draining.clone();
        serving.spawn("grpc", async move {
            let incoming = ReceiverStream::new(incoming).map(Ok);
            grpc::serve(routes, incoming, async move { draining.draining().await }).await.unwrap();
        });
        Some(Self { server, serving })
    }

    pub fn control(&self) -> &Arc<Control> {
        self.server.control()
    }

    pub async fn drain(self) {
        self.server.drain(Duration::from_secs(10)).await;
        self.serving.drain(Duration::from_secs(10)).await;
    }

    /// As `weft token create` does. `None`: it was not committed.
    pub async fn token(&self) -> Option<String> {
        let control = self.control();
        let root = control.authority.signing().signer.root().authorities()[0].key;
        let expires = control.replica.clock.wall().plus(Duration::from_secs(3600));
        let (token, record) = token::mint(Allowed::any(), expires, root).unwrap();
        let committed = control.replica.commit::<(), DocumentError>("sim", "create a join token", |_, _| {
            let key = keys::token(&record.id);
            let mut draft = Draft::idle(());
            draft.expects.push(Expect::absent(key.clone()));
            draft.writes.insert(key.into(), Write::Put(Format::Raw.wrap(&record.encode())));
            Ok(draft)
        });
        committed.await.ok().map(|_| token.to_string())
    }

    /// As `weft apply` does. An error says nothing of whether it was written.
    pub async fn write(&self, change: Change) -> Result<weft_model::Revision, String> {
        let control = self.control();
        let (resource, there) = change.document(control.authority.trust_domain().as_str());
        let intent = if there { Intent::Apply(Box::new(resource), None) } else { Intent::Remove(resource.key) };
        let written = documents::write(&control.replica, "sim", "simulated", &[intent]).await;
        written.map(|w| w.revision).map_err(|e| e.told())
    }
}

async fn accept(
    mut listener: Listener,
    control: Arc<Control>,
    peers: mpsc::Sender<PeerIo<tokio_rustls::server::TlsStream<Stream>, Peer>>,
) {
    let mut handshakes = Tasks::new();
    loop {
        let accepted = tokio::select! {
            biased; // ended handshakes are forgotten first
            Some(_) = handshakes.next_ended(), if !handshakes.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let Some((stream, _)) = accepted else { return };
        let (control, peers) = (control.clone(), peers.clone());
        handshakes.spawn("handshake", async move {
            let Some(config) = control.authority.tls() else { return };
            let shaking = TlsAcceptor::from(config).accept(stream);
            let Ok(Ok(io)) = tokio::time::timeout(Duration::from_secs(10), shaking).await else { return };
            let peer = match io.get_ref().1.peer_certificates() {
                None | Some([]) => Peer::Anonymous(Joined::default()),
                Some(chain) => {
                    let trust = &control.authority.signing().trust;
                    let now = control.replica.clock.wall();
                    match recheck(chain, &trust.bundle, &trust.revocations, now) {
                        Ok(info) => Peer::Identified(Arc::new(info)),
                        Err(_) => return,
                    }
                }
            };
            let _ = peers.send(PeerIo { io, peer }).await;
        });
    }
}
