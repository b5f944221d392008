//! The server: which parts there are, in which order they start, and how they end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use weft_identity::{PeerInfo, VerifyError, WallClock, recheck};
use weft_model::Mono;
use weft_rt::{
    Clock, Dice, Tasks,
    drain::{self, Observer},
    listen::{Bind, BindError, Listener, bind},
    net::{Addr, Stream},
};
use weft_store::{Keep, Memory, OpenError, ReadError, Redb, Store, TxnId};
use weft_wire::grpc::{self, AggregatedDiscoveryServiceServer, ObserveServer, PeerIo, Routes, WorkloadApiServer};

use crate::{
    api::{self, observe, observe::Observers, peer::Peer, workload, xds},
    authority::{Authority, AuthorityError},
    first_start::{self, StartError},
    https,
    liveness::Liveness,
    metrics::Metrics,
    publish::{self, Publisher},
    replica::Replica,
    sessions::Sessions,
    slots::{self, Bounded, Joined, Slot, Slots},
    state::{FoldError, State},
    status::Pending,
};

/// A peer that does not finish its handshake in time, its wait for a place included, frees its place.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Handshakes at a time: beyond it connections wait in the listener's queue. One address cannot have them all.
const HANDSHAKES: usize = 512;
/// Who has no certificate came to get one.
const JOIN: Duration = Duration::from_secs(10);

pub struct Config {
    pub store: StoreKind,
    /// For the store, the key-encryption key and the admin token. Made if need be, mode 0700.
    pub data: PathBuf,
    pub http: Bind,
    pub mesh: Bind,
    /// The Unix socket at which this user's processes join without a token.
    pub socket: Option<PathBuf>,
    /// Reads over HTTP need no token.
    pub open_reads: bool,
    pub leaf_ttl: Duration,
    /// Under which clients outside the mesh may find the HTTP API, beside `localhost`.
    pub dns_names: Vec<String>,
    /// Names this replica in leases; the same after a restart.
    pub server_id: String,
    pub clock: Clock,
    pub dice: Dice,
}

#[derive(Clone)]
pub enum StoreKind {
    /// Everything is gone at the end.
    Memory,
    /// `<data>/weft.redb`.
    Redb,
    Given(Arc<dyn Store>),
}

/// Where it really listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub http: SocketAddr,
    pub mesh: SocketAddr,
    pub socket: Option<PathBuf>,
}

/// What requests are answered with.
pub struct Control {
    pub replica: Arc<Replica>,
    pub authority: Arc<Authority>,
    pub sessions: Arc<Sessions>,
    pub liveness: Arc<Liveness>,
    pub observers: Arc<Observers>,
    pub metrics: Arc<Metrics>,
    pub open_reads: bool,
    pub store_kind: &'static str,
    pub started: Mono,
    pub draining: Observer,
    addresses: OnceLock<Addresses>,
}

pub struct Server {
    control: Arc<Control>,
    addresses: Addresses,
    /// What answers, and ends when it is told to.
    serving: Tasks,
    /// Loops without an end of their own.
    loops: Tasks,
    drain: drain::Trigger,
    fatal: mpsc::Receiver<String>,
    /// Whether this start made the mesh.
    pub first_start: bool,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the store cannot be read")]
    Read(#[source] ReadError),
    #[error("what the store holds cannot be taken in")]
    Fold(#[source] FoldError),
    #[error("the authority does not work")]
    Authority(#[source] AuthorityError),
    #[error(transparent)]
    Bind(BindError),
    #[error("{0} is not a TCP address")]
    NotTcp(Addr),
}

impl Default for Config {
    fn default() -> Self {
        let at = |port| Bind::preferred(Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
        Self {
            store: StoreKind::Memory,
            data: PathBuf::from(".weft"),
            http: at(8500),
            mesh: at(15012),
            socket: None,
            open_reads: false,
            leaf_ttl: weft_ca::template::DEFAULT_TTL,
            dns_names: Vec::new(),
            server_id: "server".into(),
            clock: Clock::real(),
            dice: Dice::from_os(),
        }
    }
}

// === impl Server ===

impl Server {
    /// Binds first; accepts when everything behind the listeners is ready.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        let Config { clock, mut dice, .. } = config;
        first_start::make_directory(&config.data)?;
        // before anything is made: a port that is taken must not leave half a mesh behind
        let http = listen(&config.http)?;
        let mesh = listen(&config.mesh)?;
        let socket = config.socket.map(|path| listen(&Bind::exact(Addr::Unix(path)))).transpose()?;
        let (store, store_kind) = open(&config.store, &config.data)?;
        let txn_id = TxnId(u128::from(dice.next_u64()) << 64 | u128::from(dice.next_u64()));
        if matches!(config.store, StoreKind::Redb) {
            first_start::refuse_lost(&*store, &config.data)?;
        }
        let started = first_start::start(&*store, &config.data, clock.wall(), txn_id)?;
        let range = store.range("", None).map_err(ServerError::Read)?;
        let state = State::load(&range).map_err(ServerError::Fold)?;
        tracing::info!(
            trust_domain = %state.mesh.trust_domain, rev = %state.revision, first = started.first,
            instances = state.registry.instances().count(), resources = state.docs.len(), "mesh loaded"
        );
        let wall = {
            let clock = clock.clone();
            WallClock::new(move || clock.wall())
        };
        let metrics = Arc::new(Metrics::default());
        let (world, revision) = (state.world.clone(), state.revision);
        let replica = Arc::new(Replica::new(store, clock.clone(), dice.split(), state));
        let authority = Authority::open(replica.clone(), started.kek, config.leaf_ttl, config.dns_names, wall.clone());
        let authority = Arc::new(authority.map_err(ServerError::Authority)?);
        let bundle = publish::bundle(&authority);
        let sessions = Arc::new(Sessions::new(world, revision, bundle, clock.clone(), metrics.clone()));
        let liveness = Arc::new(Liveness::new(replica.clone(), config.server_id.as_str().into()));
        let statuses = Arc::new(Pending::default());
        let (drain, watch) = drain::new();
        drop(watch);
        let control = Arc::new(Control {
            replica: replica.clone(),
            authority: authority.clone(),
            sessions: sessions.clone(),
            liveness: liveness.clone(),
            observers: Arc::default(),
            metrics: metrics.clone(),
            open_reads: config.open_reads,
            store_kind,
            started: clock.mono(),
            draining: drain.observer(),
            addresses: OnceLock::new(),
        });

        let (mut loops, mut serving) = (Tasks::new(), Tasks::new());
        let (die, fatal) = mpsc::channel(1);
        let publisher = Publisher {
            replica: replica.clone(),
            sessions,
            liveness: liveness.clone(),
            authority: authority.clone(),
            statuses: statuses.clone(),
            metrics: metrics.clone(),
        };
        loops.spawn("publisher", async move {
            let ended = publisher.run().await.map_err(|e| weft_rt::log::chain(&e).to_string());
            if let Err(why) = ended {
                let _ = die.send(why).await;
            }
        });
        authority.renew_own().await.map_err(ServerError::Authority)?;
        first_start::write_bundle(&config.data, &authority.signing().trust.bundle.to_pem())?;
        loops.spawn("authority", authority.clone().tend());
        loops.spawn("liveness", liveness.run());
        loops.spawn("statuses", statuses.run(replica.clone(), metrics));
        loops.spawn("housekeeping", crate::housekeeping::run(replica));

        let addresses = Addresses {
            http: tcp(&http)?,
            mesh: tcp(&mesh)?,
            socket: socket.as_ref().and_then(|l| match l.addr() {
                Addr::Unix(path) => Some(path.clone()),
                Addr::Tcp(_) => None,
            }),
        };
        let _ = control.addresses.set(addresses.clone());
        let router = api::router(control.clone());
        let secure = control.authority.clone();
        serving.spawn("http", https::serve(http, secure, router, control.draining.clone()));
        let (peers, incoming) = mpsc::channel(16);
        serving.spawn("mesh accept", accept_mesh(mesh, control.clone(), wall, peers));
        serving.spawn("mesh", serve_grpc(control.clone(), incoming));
        if let Some(socket) = socket {
            let (peers, incoming) = mpsc::channel(16);
            serving.spawn("socket accept", accept_socket(socket, control.clone(), peers));
            serving.spawn("socket", serve_grpc(control.clone(), incoming));
        }
        tracing::info!(http = %addresses.http, mesh = %addresses.mesh, "server ready");
        Ok(Self { control, addresses, serving, loops, drain, fatal, first_start: started.first })
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Resolves, with why, when the server cannot go on.
    pub async fn failed(&mut self) -> String {
        match self.fatal.recv().await {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// Tells every stream, and ends, at the latest at the deadline. Nothing in the store is touched: a server that comes
    /// back finds everything as it was.
    pub async fn drain(self, deadline: Duration) {
        let Self { control, serving, loops, drain, .. } = self;
        // nobody holds a watch: streams observe the phase and end
        drain.drain(deadline).await;
        let answering = serving.drain(deadline).await;
        let looping = loops.drain(Duration::ZERO).await;
        let panicked: Vec<_> = answering.panicked.into_iter().chain(looping.panicked).collect();
        if !panicked.is_empty() {
            tracing::error!(tasks = panicked.join(" "), "tasks had panicked");
        }
        drop(control);
    }
}

impl Control {
    /// Where the server listens; before that, nowhere.
    pub fn addresses(&self) -> Addresses {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        self.addresses.get().cloned().unwrap_or(Addresses { http: nowhere, mesh: nowhere, socket: None })
    }
}

fn open(kind: &StoreKind, data: &std::path::Path) -> Result<(Arc<dyn Store>, &'static str), ServerError> {
    Ok(match kind {
        StoreKind::Memory => (Arc::new(Memory::new()), "memory"),
        StoreKind::Redb => {
            first_start::make_directory(data)?;
            (Arc::new(Redb::open(&data.join("weft.redb"), Keep::default())?), "redb")
        }
        StoreKind::Given(store) => (store.clone(), "given"),
    })
}

fn listen(want: &Bind) -> Result<Listener, ServerError> {
    bind(want).map_err(ServerError::Bind)
}

fn tcp(listener: &Listener) -> Result<SocketAddr, ServerError> {
    listener.addr().tcp().ok_or_else(|| ServerError::NotTcp(listener.addr().clone()))
}

// === connections ===

type MeshIo = Bounded<tokio_rustls::server::TlsStream<Stream>>;

/// 15012: each handshake by itself, so that a slow one holds up nobody.
async fn accept_mesh(
    mut listener: Listener,
    control: Arc<Control>,
    wall: WallClock,
    peers: mpsc::Sender<PeerIo<MeshIo, Peer>>,
) {
    let (mut handshakes, slots) = (Tasks::new(), Slots::default());
    let mut draining = control.draining.clone();
    loop {
        tokio::select! {
            biased; // ended handshakes make room for new ones
            Some(_) = handshakes.next_ended(), if !handshakes.is_empty() => {}
            () = draining.draining() => return,
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES => match accepted {
                Ok((stream, from)) => {
                    let source = from.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |f| f.ip());
                    let Some(turn) = slots.enter(source) else {
                        tracing::info!(src.addr = ?from, "too many connections of one address that show no identity");
                        continue;
                    };
                    let (control, wall, peers) = (control.clone(), wall.clone(), peers.clone());
                    handshakes.spawn("handshake", async move {
                        let shaking = async {
                            let slot = turn.slot().await.ok_or("there is no place")?;
                            handshake(&control, &wall, stream, slot).await
                        };
                        match tokio::time::timeout(HANDSHAKE, shaking).await {
                            Ok(Ok(peer)) => drop(peers.send(peer).await),
                            Ok(Err(why)) => tracing::info!(src.addr = ?from, why, "handshake failed"),
                            Err(_) => tracing::info!(src.addr = ?from, "handshake took too long"),
                        }
                    });
                }
                Err(e) => slots::accept_failed(&e).await,
            },
        }
    }
}

async fn handshake(
    control: &Control,
    wall: &WallClock,
    stream: Stream,
    slot: Slot,
) -> Result<PeerIo<MeshIo, Peer>, String> {
    let config = control.authority.tls().ok_or("the server has no identity yet")?;
    let io = TlsAcceptor::from(config).accept(stream).await.map_err(|e| handshake_error(&e))?;
    let peer = match io.get_ref().1.peer_certificates() {
        None | Some([]) => {
            let joined = Joined::default();
            let io = Bounded::unproven(io, slot, joined.clone(), JOIN);
            return Ok(PeerIo { io, peer: Peer::Anonymous(joined) });
        }
        Some(chain) => {
            let trust = &control.authority.signing().trust;
            let info: PeerInfo = recheck(chain, &trust.bundle, &trust.revocations, wall.now())
                .map_err(|e| weft_rt::log::chain(&e).to_string())?;
            Peer::Identified(Arc::new(info))
        }
    };
    Ok(PeerIo { io: Bounded::proven(io), peer })
}

/// In the verifier's own words, where it was the one who refused.
fn handshake_error(e: &io::Error) -> String {
    let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.and_then(VerifyError::in_handshake) {
        Some(refused) => weft_rt::log::chain(refused).to_string(),
        None => weft_rt::log::chain(e).to_string(),
    }
}

/// The Unix socket: only this user's processes, and root's, which could read the data directory anyway.
async fn accept_socket(mut listener: Listener, control: Arc<Control>, peers: mpsc::Sender<PeerIo<Stream, Peer>>) {
    let own = weft_rt::process::user_id();
    let mut draining = control.draining.clone();
    loop {
        let accepted = tokio::select! {
            biased; // the end comes first
            () = draining.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((Stream::Unix(io), _)) => match io.peer_cred() {
                Ok(cred) if cred.uid() == own || cred.uid() == 0 => {
                    let _ = peers.send(PeerIo { io: Stream::Unix(io), peer: Peer::Local }).await;
                }
                Ok(cred) => tracing::warn!(uid = cred.uid(), "another user at the socket was refused"),
                Err(e) => tracing::warn!(error = %e, "the peer at the socket is unknown and was refused"),
            },
            Ok(_) => {}
            Err(e) => slots::accept_failed(&e).await,
        }
    }
}

async fn serve_grpc<I>(control: Arc<Control>, incoming: mpsc::Receiver<PeerIo<I, Peer>>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let routes = Routes::new(WorkloadApiServer::new(workload::Workloads(control.clone())))
        .add_service(AggregatedDiscoveryServiceServer::new(xds::Discovery(control.clone())))
        .add_service(ObserveServer::new(observe::Observation(control.clone())));
    let mut draining = control.draining.clone();
    let incoming = tokio_stream::StreamExt::map(ReceiverStream::new(incoming), Ok);
    if let Err(e) = grpc::serve(routes, incoming, async move { draining.draining().await }).await {
        tracing::error!(error = %weft_rt::log::chain(&e), "gRPC ended");
    }
}
