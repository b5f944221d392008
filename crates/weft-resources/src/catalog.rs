//! What compilation knows of the catalog: plain values that whoever holds the registry fills in.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use weft_model::{Health, Labels, Locality, Name, Protocol, ServiceKey, SpiffeId, TrustDomain, Uid};
use weft_snapshot::fragment::{MtlsMode, ServicePort, Tunnel};

use crate::{root, set::ResourceSet};

/// Everything that compilation depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    pub mesh: Mesh,
    pub resources: ResourceSet,
    pub catalog: Catalog,
}

/// What holds for the whole mesh and does not change while it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    pub trust_domain: TrustDomain,
    /// Policies of this namespace hold mesh-wide.
    pub root_namespace: Name,
    /// Where no operator said anything: strict outside Kubernetes, permissive in it.
    pub mtls: MtlsMode,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    services: BTreeMap<ServiceKey, Registered>,
    instances: BTreeMap<Uid, Arc<Instance>>,
    /// By namespace: selectors look at every instance of one.
    by_namespace: BTreeMap<Name, BTreeMap<Uid, Arc<Instance>>>,
    by_service: BTreeMap<ServiceKey, BTreeMap<Uid, Arc<Instance>>>,
    /// How many instances run as each identity.
    identities: BTreeMap<SpiffeId, usize>,
}

/// A service as its instances registered it. A Service resource of the same name wins over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registered {
    pub ports: Vec<ServicePort>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub uid: Uid,
    pub service: ServiceKey,
    pub node: Name,
    /// `None`: it has none, and others reach it in the clear.
    pub identity: Option<SpiffeId>,
    pub ports: Vec<InstancePort>,
    /// Where ports that it did not declare would be (a Service resource may name any by number).
    pub address: std::net::IpAddr,
    /// Where its proxy takes mesh connections.
    pub mesh: Option<SocketAddr>,
    pub tunnel: Tunnel,
    /// With `app` defaulting to the service's name once it is in the catalog.
    pub labels: Labels,
    pub locality: Locality,
    pub weight: u32,
    pub health: Health,
    /// Its name in metrics; empty: the service's name.
    pub workload: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePort {
    pub name: Arc<str>,
    /// The number by which the service knows the port.
    pub service_port: u16,
    pub protocol: Protocol,
    /// The application's address as others know it.
    pub app: SocketAddr,
    /// Where its own proxy connects.
    pub connect: SocketAddr,
    pub preserve: bool,
}

// === impl Mesh ===

impl Mesh {
    pub const ROOT_NAMESPACE: &str = root::ROOT_NAMESPACE;

    /// Policies in `weft-system` hold mesh-wide, mTLS is strict unless somebody says otherwise.
    #[expect(clippy::expect_used, reason = "a constant of ours that is a name")]
    pub fn new(trust_domain: TrustDomain) -> Self {
        let root_namespace = Name::parse(Self::ROOT_NAMESPACE).expect("the root namespace is a name");
        Self { trust_domain, root_namespace, mtls: MtlsMode::Strict }
    }
}

// === impl World ===

impl World {
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh, resources: ResourceSet::default(), catalog: Catalog::default() }
    }
}

// === impl Catalog ===

impl Catalog {
    pub fn insert_service(&mut self, key: ServiceKey, service: Registered) -> Option<Registered> {
        self.services.insert(key, service)
    }

    pub fn remove_service(&mut self, key: &ServiceKey) -> Option<Registered> {
        self.services.remove(key)
    }

    /// Puts it in, and returns what was there under the same uid.
    pub fn insert(&mut self, mut instance: Instance) -> Option<Arc<Instance>> {
        let before = self.remove(&instance.uid);
        // so that `app: web` selects what was registered as `web`
        let app = || instance.service.name.as_str().into();
        instance.labels.0.entry("app".into()).or_insert_with(app);
        let instance = Arc::new(instance);
        let uid = || instance.uid.clone();
        if let Some(identity) = &instance.identity {
            *self.identities.entry(identity.clone()).or_default() += 1;
        }
        self.instances.insert(uid(), instance.clone());
        let namespace = instance.service.namespace.clone();
        self.by_namespace.entry(namespace).or_default().insert(uid(), instance.clone());
        self.by_service.entry(instance.service.clone()).or_default().insert(uid(), instance.clone());
        before
    }

    pub fn remove(&mut self, uid: &Uid) -> Option<Arc<Instance>> {
        let instance = self.instances.remove(uid)?;
        if let Some(identity) = &instance.identity
            && let Some(count) = self.identities.get_mut(identity)
        {
            *count -= 1;
            if *count == 0 {
                self.identities.remove(identity);
            }
        }
        drop_from(&mut self.by_namespace, &instance.service.namespace, uid);
        drop_from(&mut self.by_service, &instance.service, uid);
        Some(instance)
    }

    pub fn get(&self, uid: &Uid) -> Option<&Arc<Instance>> {
        self.instances.get(uid)
    }

    pub fn service(&self, key: &ServiceKey) -> Option<&Registered> {
        self.services.get(key)
    }

    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Registered)> {
        self.services.iter()
    }

    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    pub fn instances_in(&self, namespace: &Name) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_namespace.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// Those registered for the service itself.
    pub fn instances_of(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_service.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether anything runs as this identity.
    pub fn has_identity(&self, id: &SpiffeId) -> bool {
        self.identities.contains_key(id)
    }
}

fn drop_from<K: Ord + Clone>(index: &mut BTreeMap<K, BTreeMap<Uid, Arc<Instance>>>, key: &K, uid: &Uid) {
    if let Some(members) = index.get_mut(key) {
        members.remove(uid);
        if members.is_empty() {
            index.remove(key);
        }
    }
}
