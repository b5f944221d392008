//! A server of one's own, and clients for it.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use weft_ca::JoinToken;
use weft_control::{Config, Server, StoreKind};
use weft_identity::{
    ALPN_H2, Bundle, Revocations, Svid, Trust, WallClock, client_config, control_plane_id, csr::KeyPair,
    join_client_config,
};
use weft_model::{Revision, SpiffeId, TrustDomain};
use weft_rt::{Clock, Tasks, listen::Bind, net::Addr};
use weft_snapshot::{fragment::Collection, snapshot::Fragments};
use weft_wire::{
    delta::{Client, Event},
    grpc::{
        self, AggregatedDiscoveryServiceClient, Channel, DeltaDiscoveryRequest, Status, Streaming, WorkloadApiClient,
    },
    v1::{self, AttachReply, AttachRequest, JoinRequest, attach_reply, attach_request::Message},
};

/// Nothing here takes so long unless it is broken.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Mesh {
    pub server: Server,
    pub dir: tempfile::TempDir,
    pub token: String,
    /// Of clients' connections.
    pub tasks: Tasks,
}

/// An identity with what it needs to connect.
#[derive(Clone)]
pub struct Workload {
    pub svid: Svid,
    pub trust: Trust,
}

pub fn config(dir: &Path) -> Config {
    let any = || Bind::exact(Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))));
    Config {
        data: dir.join("data"),
        http: any(),
        mesh: any(),
        socket: Some(dir.join("weft.sock")),
        ..Config::default()
    }
}

pub fn wall() -> WallClock {
    let clock = Clock::real();
    WallClock::new(move || clock.wall())
}

impl Mesh {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        Self::with(config, dir).await
    }

    pub async fn on_redb(dir: tempfile::TempDir) -> Self {
        let config = Config { store: StoreKind::Redb, ..config(dir.path()) };
        Self::with(config, dir).await
    }

    pub async fn with(config: Config, dir: tempfile::TempDir) -> Self {
        let data = config.data.clone();
        let server = Server::start(config).await.unwrap();
        let token = std::fs::read_to_string(data.join("admin.token")).unwrap();
        Self { server, dir, token, tasks: Tasks::new() }
    }

    /// Ends the server as a signal would, and gives back its directory.
    pub async fn stop(self) -> tempfile::TempDir {
        let Self { server, dir, tasks, .. } = self;
        drop(tasks);
        server.drain(Duration::from_millis(500)).await;
        dir
    }

    // === HTTP ===

    pub async fn http(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, Value) {
        let request = Request::builder().method(method).header("content-type", "application/json");
        self.send(request, path, body.into()).await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.http(Method::GET, path, "").await
    }

    /// With the admin token unless the request brings another.
    pub async fn send(&self, request: hyper::http::request::Builder, path: &str, body: Bytes) -> (StatusCode, Value) {
        let response = self.open(request, path, body).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
        (status, json)
    }

    pub async fn open(
        &self,
        request: hyper::http::request::Builder,
        path: &str,
        body: Bytes,
    ) -> hyper::Response<hyper::body::Incoming> {
        let io = TcpStream::connect(self.server.addresses().http).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
        let mut tasks = Tasks::new();
        tasks.spawn("connection", async move {
            let _ = connection.await;
        });
        let mut request = request.uri(path).header("host", "weft").body(Full::new(body)).unwrap();
        if !request.headers().contains_key("authorization") {
            let bearer = format!("Bearer {}", self.token).parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
        }
        let response = tokio::time::timeout(LONG, sender.send_request(request)).await.unwrap().unwrap();
        // the connection lives as long as the test: streams are read from it
        std::mem::forget(tasks);
        response
    }

    pub async fn apply(&self, yaml: &str) -> Value {
        let (status, json) = self.http(Method::POST, "/weft/v1/apply", yaml.to_owned()).await;
        assert_eq!(status, 200, "{json:#}");
        json
    }

    // === identities ===

    pub async fn new_token(&self, body: &str) -> String {
        let (status, json) = self.http(Method::POST, "/weft/v1/tokens", body.to_owned()).await;
        assert_eq!(status, 201, "{json:#}");
        json["token"].as_str().unwrap().to_owned()
    }

    pub fn pinned(&self, token: &str) -> Channel {
        let config = join_client_config(token.parse::<JoinToken>().unwrap().pin, &[ALPN_H2], &wall());
        channel(self.server.addresses().mesh, config)
    }

    pub fn socket(&self) -> Channel {
        let path = self.server.addresses().socket.clone().unwrap();
        grpc::channel("control.test", move || {
            let path = path.clone();
            async move { UnixStream::connect(path).await }
        })
        .unwrap()
    }

    pub async fn join(&self, ns: &str, account: &str) -> Workload {
        let token = self.new_token("{}").await;
        self.join_by(&token, ns, account, &KeyPair::generate().unwrap()).await.unwrap()
    }

    pub async fn join_by(&self, token: &str, ns: &str, account: &str, key: &KeyPair) -> Result<Workload, Status> {
        let request = join_request(token, ns, account, key);
        let issued = WorkloadApiClient::new(self.pinned(token)).join(request).await?.into_inner();
        Ok(workload(key, issued))
    }

    pub fn channel(&self, who: &Workload) -> Channel {
        self.channel_expecting(who, control_plane_id(&who.svid.id().trust_domain()))
    }

    pub fn channel_expecting(&self, who: &Workload, expected: SpiffeId) -> Channel {
        let config = client_config(&who.svid, &who.trust, &[expected], &[ALPN_H2], &wall());
        channel(self.server.addresses().mesh, config)
    }

    // === waiting on levels ===

    /// Until the JSON at a path satisfies a predicate.
    pub async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let waited = tokio::time::timeout(LONG, async {
            let mut revisions = self.server.control().replica.subscribe();
            let mut progress = self.server.control().sessions.watch_progress();
            loop {
                revisions.mark_unchanged();
                progress.mark_unchanged();
                last = self.get(path).await.1;
                if holds(&last) {
                    return;
                }
                tokio::select! {
                    biased; // either may have changed it
                    _ = revisions.changed() => {}
                    _ = progress.changed() => {}
                }
            }
        });
        assert!(waited.await.is_ok(), "{path} never came to it: {last:#}");
        last
    }
}

pub fn join_request(token: &str, ns: &str, account: &str, key: &KeyPair) -> JoinRequest {
    let mut parts = token.split('.').map(ToOwned::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    JoinRequest {
        token_id: part(),
        secret: part(),
        csr_der: key.csr().unwrap().into(),
        namespace: ns.into(),
        service_account: account.into(),
        node: "n1".into(),
        service: account.into(),
    }
}

pub fn workload(key: &KeyPair, issued: v1::Issued) -> Workload {
    let der = |b: &Bytes| CertificateDer::from(b.to_vec());
    let svid = key.into_svid(issued.chain_der.iter().map(der).collect()).unwrap();
    let td = TrustDomain::parse(&issued.trust_domain).unwrap();
    let authorities = issued.bundle.unwrap().authorities.iter().map(der).collect();
    Workload { svid, trust: Trust::new(Bundle::new(td, authorities).unwrap(), Revocations::default()) }
}

fn channel(to: SocketAddr, config: Arc<rustls::ClientConfig>) -> Channel {
    grpc::channel("control.test", move || {
        let config = config.clone();
        async move {
            let io = TcpStream::connect(to).await?;
            TlsConnector::from(config).connect(ServerName::IpAddress(to.ip().into()), io).await
        }
    })
    .unwrap()
}

/// Of a failed call: what the transport said, or the status' message.
pub fn told(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => weft_rt::log::chain(source).to_string(),
        None => status.message().to_owned(),
    }
}

// === attach ===

pub struct Attached {
    pub send: mpsc::Sender<AttachRequest>,
    pub replies: Streaming<AttachReply>,
    seq: u64,
}

pub fn register(ns: &str, service: &str, id: &str) -> v1::Register {
    let local = |port| Some(v1::Address { ip: vec![127, 0, 0, 1].into(), port, scope: 0 });
    v1::Register {
        namespace: ns.into(),
        service: service.into(),
        node: "n1".into(),
        id: id.into(),
        owner: format!("run/{id}"),
        ports: vec![v1::RegisterPort {
            name: "http".into(),
            port: 80,
            protocol: v1::Protocol::Http.into(),
            app: local(8080),
            connect: local(8081),
            preserve: false,
        }],
        mesh_address: local(15008),
        tunnel: v1::Tunnel::Weft1.into(),
        ..Default::default()
    }
}

impl Attached {
    pub async fn open(channel: Channel, register: v1::Register) -> (Self, attach_reply::Message) {
        let (send, requests) = mpsc::channel(16);
        let first = AttachRequest { seq: 1, message: Some(Message::Register(register)) };
        send.send(first).await.unwrap();
        let replies = WorkloadApiClient::new(channel).attach(ReceiverStream::new(requests)).await.unwrap().into_inner();
        let mut this = Self { send, replies, seq: 1 };
        let first = this.reply().await;
        (this, first)
    }

    pub async fn say(&mut self, message: Message) {
        self.seq += 1;
        self.send.send(AttachRequest { seq: self.seq, message: Some(message) }).await.unwrap();
    }

    pub async fn reply(&mut self) -> attach_reply::Message {
        let reply = tokio::time::timeout(LONG, self.replies.message()).await.expect("no reply");
        reply.unwrap().expect("the stream ended").message.unwrap()
    }
}

/// Registers, and expects to be.
pub async fn attach(mesh: &Mesh, who: &Workload, register: v1::Register) -> (Attached, v1::Registered) {
    match Attached::open(mesh.channel(who), register).await {
        (attached, attach_reply::Message::Registered(registered)) => (attached, registered),
        (_, other) => panic!("{other:?}"),
    }
}

// === xDS ===

/// A proxy as far as its configuration goes.
pub struct Proxy {
    pub client: Client,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<grpc::DeltaDiscoveryResponse>,
    pub applied: Fragments,
    pub revision: Revision,
    /// Bytes of resources that came.
    pub received: usize,
}

impl Proxy {
    pub async fn open(channel: Channel, uid: &str, collections: impl IntoIterator<Item = Collection>) -> Self {
        let mut client = Client::new(uid);
        client.subscribe(collections);
        Self::reopen(channel, client).await
    }

    pub async fn reopen(channel: Channel, mut client: Client) -> Self {
        let (requests, stream) = mpsc::channel(16);
        requests.send(client.connect()).await.unwrap();
        let mut xds = AggregatedDiscoveryServiceClient::new(channel);
        let responses = xds.delta_aggregated_resources(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let (applied, revision) = (Fragments::new(), Revision::ZERO);
        Self { client, requests, responses, applied, revision, received: 0 }
    }

    /// One response, judged by `build`; whether a set was applied.
    pub async fn step(&mut self, refuse: Option<&str>) -> io::Result<bool> {
        let response = tokio::time::timeout(LONG, self.responses.message()).await.map_err(io::Error::other)?;
        let response = response.map_err(io::Error::other)?.ok_or_else(|| io::Error::other("the stream ended"))?;
        self.received += response.resources.iter().map(Bytes::len).sum::<usize>();
        let build = |set: &weft_wire::delta::Set<'_>| -> Result<Fragments, Vec<weft_snapshot::snapshot::Rejection>> {
            let refused = set.fragments.keys().find(|c| refuse == Some(&weft_wire::name::collection_name(c)));
            match refused {
                Some(collection) => Err(vec![weft_snapshot::snapshot::Rejection {
                    collection: collection.clone(),
                    entry: String::new(),
                    reason: "I do not like it".into(),
                }]),
                None => Ok(set.fragments.clone()),
            }
        };
        let (answer, event) = self.client.on_response(response, build).map_err(io::Error::other)?;
        self.requests.send(answer).await.map_err(io::Error::other)?;
        match event {
            Event::Applied { commit, value } => {
                self.applied = value;
                self.revision = commit.revision;
                Ok(true)
            }
            Event::Received | Event::Rejected(_) => Ok(false),
        }
    }

    /// Until a set is applied for which the predicate holds.
    pub async fn until(&mut self, holds: impl Fn(&Fragments) -> bool) {
        while !(self.step(None).await.unwrap() && holds(&self.applied)) {}
    }

    pub async fn subscribe(&mut self, more: impl IntoIterator<Item = Collection>) {
        self.client.subscribe(more);
        if let Some(request) = self.client.take_request() {
            self.requests.send(request).await.unwrap();
        }
    }
}
