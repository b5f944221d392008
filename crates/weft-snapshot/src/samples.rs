//! Small fragments for tests.

use std::{net::SocketAddr, sync::Arc};

use weft_model::{Digest, Health, Locality, Name, Protocol, Revision, ServiceKey, SpiffeId, TrustDomain, Uid};

use crate::{
    fragment::{
        Balance, Bundle, Collection, DefaultAction, Endpoint, Fragment, Inbound, Listen, MtlsMode, Routes, Service,
        ServicePort, Tunnel, Workload,
    },
    snapshot::{Fragments, Rejection, Snapshot},
};

pub(crate) fn key(s: &str) -> ServiceKey {
    s.parse().unwrap()
}

pub(crate) fn uid(service: &str, id: &str) -> Uid {
    Uid::of(&key(service), &name("n1"), &name(id))
}

pub(crate) fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn identity(service: &ServiceKey) -> SpiffeId {
    format!("spiffe://td/ns/{}/sa/{}", service.namespace, service.name).parse().unwrap()
}

pub(crate) fn service(service: &str, ports: &[(u16, &str)]) -> Service {
    let port = |(port, name): &(u16, &str)| ServicePort { name: (*name).into(), port: *port, protocol: Protocol::Http };
    Service { key: key(service), ports: ports.iter().map(port).collect(), balance: Balance::PeakEwma }
}

/// Serves ports 80 and 90.
pub(crate) fn endpoint(service: &str, id: &str) -> Endpoint {
    let uid = uid(service, id);
    let service = key(service);
    Endpoint {
        mesh: Some("10.0.0.1:15008".parse().unwrap()),
        tunnel: Tunnel::Weft1,
        sni: uid.sni().into(),
        identities: vec![identity(&service)],
        ports: [(80, "10.0.0.1:8080".parse().unwrap()), (90, "10.0.0.1:9090".parse().unwrap())].into(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Passing,
        workload: service.name.as_str().into(),
        app: service.name.as_str().into(),
        version: "v1".into(),
        labels: [("version", "v1")].into_iter().collect(),
        uid,
    }
}

pub(crate) fn workload(service: &str, id: &str) -> Workload {
    let (uid, service) = (uid(service, id), key(service));
    Workload {
        identity: identity(&service),
        sni: uid.sni().into(),
        listens: vec![listen(80, "http", "10.0.0.1:8080")],
        node: name("n1"),
        locality: Locality::default(),
        workload: service.name.as_str().into(),
        app: service.name.as_str().into(),
        version: "v1".into(),
        labels: Default::default(),
        service,
        uid,
    }
}

pub(crate) fn listen(service_port: u16, name: &str, app: &str) -> Listen {
    let app: SocketAddr = app.parse().unwrap();
    Listen {
        service_port,
        name: name.into(),
        protocol: Protocol::Http,
        app,
        connect: SocketAddr::new("127.0.0.1".parse().unwrap(), app.port()),
        preserve: false,
    }
}

pub(crate) fn inbound(uid: &Uid) -> Inbound {
    Inbound {
        uid: uid.clone(),
        mtls: MtlsMode::Strict,
        port_mtls: Default::default(),
        mtls_origin: None,
        default: DefaultAction::AllowAuthenticated,
        policies: Vec::new(),
    }
}

pub(crate) fn bundle() -> Bundle {
    Bundle { trust_domain: TrustDomain::parse("td").unwrap(), authorities: vec![Arc::from(&b"root"[..])] }
}

/// Fragments under construction.
#[derive(Clone, Default)]
pub(crate) struct Set(pub Fragments);

impl Set {
    /// With the bundle of `td`.
    pub fn new() -> Self {
        Self::default().entry(Collection::Bundle(bundle().trust_domain), "", Fragment::Bundle(bundle()))
    }

    pub fn entry(mut self, collection: Collection, name: &str, fragment: Fragment) -> Self {
        self.0.entry(collection).or_default().insert(name.into(), Arc::new(fragment));
        self
    }

    pub fn without(mut self, collection: &Collection) -> Self {
        self.0.remove(collection).expect("it was there");
        self
    }

    pub fn service(self, s: Service) -> Self {
        self.entry(Collection::Service(s.key.clone()), "", Fragment::Service(s))
    }

    pub fn endpoint(self, service: &str, e: Endpoint) -> Self {
        let name = e.uid.as_str().to_owned();
        self.entry(Collection::Endpoints(key(service)), &name, Fragment::Endpoint(e))
    }

    pub fn routes(self, r: Routes) -> Self {
        let collection = Collection::Routes { service: r.service.clone(), consumer: r.consumer.clone() };
        self.entry(collection, "", Fragment::Routes(r))
    }

    /// With its inbound.
    pub fn workload(self, w: Workload) -> Self {
        let inbound = inbound(&w.uid);
        self.inbound(inbound).entry(Collection::Workload(w.uid.clone()), "", Fragment::Workload(w))
    }

    pub fn inbound(self, i: Inbound) -> Self {
        self.entry(Collection::Inbound(i.uid.clone()), "", Fragment::Inbound(i))
    }

    pub fn build(&self) -> Snapshot {
        self.build_after(None)
    }

    pub fn build_after(&self, prev: Option<&Snapshot>) -> Snapshot {
        self.try_build(prev).unwrap_or_else(|r| panic!("{r:?}"))
    }

    pub fn try_build(&self, prev: Option<&Snapshot>) -> Result<Snapshot, Vec<Rejection>> {
        Snapshot::build(prev, Revision::new(1, 1), Digest::ZERO, &self.0)
    }
}
