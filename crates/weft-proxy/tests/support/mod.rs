//! A mesh made of values: an authority, workloads with identities, snapshots built from fragments, sidecars on loopback.
//!
//! Used by the tests and by the `static_pair` example.
#![allow(dead_code, reason = "each user takes a part")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use weft_identity::{Bundle, Revocations, Svid, Trust};
use weft_model::{Digest, Health, Locality, Name, Protocol, Revision, ServiceKey, SpiffeId, TrustDomain, Uid, Wall};
use weft_proxy::{Config, Credentials, NoSink, PortRef, Record, Sidecar, Sink, Sources, Upstream};
use weft_rt::{
    Clock,
    listen::Bind,
    net::{Net, System},
};
use weft_snapshot::{
    fragment::{
        self, Collection, DefaultAction, Endpoint, Fragment, Inbound, Listen, MtlsMode, Service, ServicePort, Tunnel,
        Workload,
    },
    snapshot::{Fragments, Snapshot},
};

pub struct Authority {
    td: TrustDomain,
    der: CertificateDer<'static>,
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    pub fn new(td: &str) -> Self {
        let td = TrustDomain::parse(td).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("root of {td}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(SpiffeId::authority(&td).as_str().try_into().unwrap())];
        dates(&mut params, Duration::from_secs(360_000));
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { td, der, params, key }
    }

    pub fn id(&self, service: &str) -> SpiffeId {
        let key: ServiceKey = service.parse().unwrap();
        SpiffeId::workload(&self.td, key.namespace.as_str(), key.name.as_str()).unwrap()
    }

    pub fn svid(&self, service: &str, ttl: Duration) -> Svid {
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new();
        p.is_ca = IsCa::ExplicitNoCa;
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        p.subject_alt_names = vec![SanType::URI(self.id(service).as_str().try_into().unwrap())];
        dates(&mut p, ttl);
        let key = KeyPair::generate().unwrap();
        let leaf = p.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap().der().clone();
        Svid::new(vec![leaf], PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
    }

    pub fn trust(&self) -> Trust {
        Trust::new(Bundle::new(self.td.clone(), vec![self.der.clone()]).unwrap(), Revocations::default())
    }

    pub fn credentials(&self, service: &str) -> Arc<Credentials> {
        Arc::new(Credentials { svid: self.svid(service, Duration::from_secs(86_400)), trust: self.trust() })
    }

    pub fn bundle(&self) -> fragment::Bundle {
        fragment::Bundle { trust_domain: self.td.clone(), authorities: vec![Arc::from(self.der.as_ref())] }
    }
}

fn dates(p: &mut CertificateParams, ttl: Duration) {
    let now = Clock::real().wall();
    let at = |w: Wall| date_time_ymd(1970, 1, 1) + w.since(Wall::EPOCH);
    (p.not_before, p.not_after) = (at(now.minus(Duration::from_secs(300))), at(now.plus(ttl)));
}

// === fragments ===

pub fn uid(service: &str, id: &str) -> Uid {
    Uid::of(&service.parse().unwrap(), &Name::parse("n1").unwrap(), &Name::parse(id).unwrap())
}

/// Fragments under construction.
#[derive(Clone, Default)]
pub struct Set(pub Fragments);

impl Set {
    pub fn new(ca: &Authority) -> Self {
        let b = ca.bundle();
        Self::default().with(Collection::Bundle(b.trust_domain.clone()), "", Fragment::Bundle(b))
    }

    pub fn with(mut self, c: Collection, name: &str, f: Fragment) -> Self {
        self.0.entry(c).or_default().insert(name.into(), Arc::new(f));
        self
    }

    /// The workload `id` of `service`, serving `ports`: (service port, protocol, application's address).
    pub fn workload(self, ca: &Authority, service: &str, id: &str, ports: &[(u16, Protocol, SocketAddr)]) -> Self {
        let uid = uid(service, id);
        let key: ServiceKey = service.parse().unwrap();
        let listen = |(port, protocol, app): &(u16, Protocol, SocketAddr)| Listen {
            service_port: *port,
            name: format!("p{port}").into(),
            protocol: *protocol,
            app: *app,
            connect: *app,
            preserve: false,
        };
        let w = Workload {
            identity: ca.id(service),
            sni: uid.sni().into(),
            listens: ports.iter().map(listen).collect(),
            node: Name::parse("n1").unwrap(),
            locality: Locality::default(),
            workload: key.name.as_str().into(),
            app: key.name.as_str().into(),
            version: "v1".into(),
            labels: Default::default(),
            service: key,
            uid: uid.clone(),
        };
        self.with(Collection::Workload(uid), "", Fragment::Workload(w)).inbound(allow_all(service, id))
    }

    pub fn inbound(self, i: Inbound) -> Self {
        self.with(Collection::Inbound(i.uid.clone()), "", Fragment::Inbound(i))
    }

    pub fn service(self, service: &str, ports: &[(u16, Protocol)]) -> Self {
        let key: ServiceKey = service.parse().unwrap();
        let port = |(port, protocol): &(u16, Protocol)| ServicePort {
            name: format!("p{port}").into(),
            port: *port,
            protocol: *protocol,
        };
        let s = Service { key: key.clone(), ports: ports.iter().map(port).collect(), balance: Default::default() };
        self.with(Collection::Service(key), "", Fragment::Service(s))
    }

    pub fn endpoint(self, service: &str, e: Endpoint) -> Self {
        let name = e.uid.to_string();
        self.with(Collection::Endpoints(service.parse().unwrap()), &name, Fragment::Endpoint(e))
    }

    pub fn routes(self, r: fragment::Routes) -> Self {
        let c = Collection::Routes { service: r.service.clone(), consumer: r.consumer.clone() };
        self.with(c, "", Fragment::Routes(r))
    }

    pub fn build(&self, n: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot::build(None, Revision::new(1, n), Digest::of(&n.to_le_bytes()), &self.0).unwrap())
    }
}

pub fn allow_all(service: &str, id: &str) -> Inbound {
    Inbound {
        uid: uid(service, id),
        mtls: MtlsMode::Strict,
        port_mtls: BTreeMap::new(),
        mtls_origin: None,
        default: DefaultAction::AllowAuthenticated,
        policies: Vec::new(),
    }
}

pub fn endpoint(
    ca: &Authority,
    service: &str,
    id: &str,
    mesh: Option<SocketAddr>,
    ports: &[(u16, SocketAddr)],
) -> Endpoint {
    let uid = uid(service, id);
    Endpoint {
        mesh,
        tunnel: if mesh.is_some() { Tunnel::Weft1 } else { Tunnel::None },
        sni: uid.sni().into(),
        identities: vec![ca.id(service)],
        ports: ports.iter().copied().collect(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Passing,
        workload: "w".into(),
        app: "w".into(),
        version: "v1".into(),
        labels: Default::default(),
        uid,
    }
}

// === sidecars ===

/// Keeps records for tests to look at.
#[derive(Default)]
pub struct Records(Mutex<Vec<Record>>, tokio::sync::Notify, std::sync::atomic::AtomicUsize);

impl Sink for Records {
    fn take(&self, record: Box<Record>) {
        tracing::debug!(?record, "record");
        self.0.lock().unwrap().push(*record);
        self.1.notify_waiters();
    }

    fn handshake(&self, h: &weft_proxy::record::Handshake<'_>) {
        if h.failure.is_none() {
            self.2.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

impl Records {
    /// Waits until `find` finds something in the records so far.
    pub async fn when<T>(&self, mut find: impl FnMut(&[Record]) -> Option<T>) -> T {
        let wait = async {
            loop {
                let seen = self.1.notified();
                let mut seen = std::pin::pin!(seen);
                seen.as_mut().enable();
                if let Some(t) = find(&self.0.lock().unwrap()) {
                    return t;
                }
                seen.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("no such record")
    }

    /// Successful TLS handshakes so far.
    pub fn handshakes(&self) -> usize {
        self.2.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub struct Proxy {
    pub sidecar: Arc<Sidecar>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub credentials: watch::Sender<Option<Arc<Credentials>>>,
    pub records: Arc<Records>,
}

impl Proxy {
    /// Waits until the proxy's worker uses revision `n`.
    pub async fn when_revision(&self, n: u64) {
        let applied = self.sidecar.when_applied(Revision::new(1, n));
        tokio::time::timeout(Duration::from_secs(20), applied).await.expect("not applied");
    }
}

pub struct Start {
    pub service: String,
    pub id: String,
    pub inbound: Option<SocketAddr>,
    pub upstreams: Vec<(String, PortRef, SocketAddr)>,
    pub explicit: bool,
    pub quiet: bool,
    pub net: Arc<dyn Net>,
}

impl Start {
    pub fn new(service: &str) -> Self {
        Self {
            service: service.into(),
            id: "1".into(),
            inbound: None,
            upstreams: Vec::new(),
            explicit: false,
            quiet: false,
            net: Arc::new(System),
        }
    }

    pub fn id(mut self, id: &str) -> Self {
        self.id = id.into();
        self
    }

    pub fn inbound(mut self) -> Self {
        self.inbound = Some(any());
        self
    }

    /// Dials by `net`.
    pub fn net(mut self, net: impl Net) -> Self {
        self.net = Arc::new(net);
        self
    }

    pub fn upstream(mut self, service: &str) -> Self {
        self.upstreams.push((service.into(), PortRef::Only, any()));
        self
    }

    pub fn start(self, ca: &Authority, snapshot: Arc<Snapshot>) -> Proxy {
        let records = Arc::new(Records::default());
        let sink: Arc<dyn Sink> = if self.quiet { Arc::new(NoSink) } else { records.clone() };
        let (snapshots, seen) = watch::channel(snapshot);
        let (credentials, believed) = watch::channel(Some(ca.credentials(&self.service)));
        let config = Config {
            workload: uid(&self.service, &self.id),
            inbound: self.inbound.map(|a| Bind::preferred(a.into())),
            upstreams: self
                .upstreams
                .into_iter()
                .map(|(service, port, at)| Upstream {
                    service: service.parse().unwrap(),
                    port,
                    listen: Bind::exact(at.into()),
                    protocol: None,
                })
                .collect(),
            explicit: self.explicit.then(|| Bind::exact(any().into())),
            workers: 1,
            cluster: "test".into(),
        };
        let sources = Sources { snapshots: seen, credentials: believed, sink, net: self.net, clock: Clock::real() };
        Proxy { sidecar: Arc::new(Sidecar::start(config, sources).unwrap()), snapshots, credentials, records }
    }
}

pub fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A caller `shop/web` and a callee `shop/api` with one port, each behind its sidecar.
pub struct Pair {
    pub ca: Authority,
    pub web: Proxy,
    pub api: Proxy,
    /// Where the caller dials.
    pub at: SocketAddr,
    pub origin: SocketAddr,
    pub protocol: Protocol,
}

pub const PORT: u16 = 80;

impl Pair {
    pub fn new(protocol: Protocol, origin: SocketAddr) -> Self {
        Self::with(protocol, origin, |s| s)
    }

    /// `change` changes what the caller is told.
    pub fn with(protocol: Protocol, origin: SocketAddr, change: impl FnOnce(Set) -> Set) -> Self {
        Self::of(Start::new("shop/api").inbound(), protocol, origin, change)
    }

    /// The callee's sidecar is `api`.
    pub fn of(api: Start, protocol: Protocol, origin: SocketAddr, change: impl FnOnce(Set) -> Set) -> Self {
        let ca = Authority::new("mesh.test");
        let api = api.start(&ca, api_set(&ca, protocol, origin).build(1));
        let mesh = api.sidecar.bound().inbound.unwrap();
        let set = change(web_set(&ca, protocol, mesh, origin));
        let web = Start::new("shop/web").upstream("shop/api").start(&ca, set.build(1));
        let at = web.sidecar.bound().upstreams[0].tcp().unwrap();
        Self { ca, web, api, at, origin, protocol }
    }

    pub fn mesh(&self) -> SocketAddr {
        self.api.sidecar.bound().inbound.unwrap()
    }

    /// Replaces what may reach the callee.
    pub fn set_policy(&self, n: u64, inbound: Inbound) {
        let set = api_set(&self.ca, self.protocol, self.origin).inbound(inbound);
        self.api.snapshots.send_replace(set.build(n));
    }
}

pub fn api_set(ca: &Authority, protocol: Protocol, origin: SocketAddr) -> Set {
    Set::new(ca).workload(ca, "shop/api", "1", &[(PORT, protocol, origin)])
}

pub fn web_set(ca: &Authority, protocol: Protocol, mesh: SocketAddr, origin: SocketAddr) -> Set {
    Set::new(ca)
        .workload(ca, "shop/web", "1", &[])
        .service("shop/api", &[(PORT, protocol)])
        .endpoint("shop/api", endpoint(ca, "shop/api", "1", Some(mesh), &[(PORT, origin)]))
}
