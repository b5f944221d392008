//! A WorkloadEntry as an instance of the services that take it.

use std::net::SocketAddr;

use weft_model::{Health, Labels, Name, Protocol, ServiceKey, SpiffeId, Uid};
use weft_snapshot::fragment::Tunnel;

use super::WorkloadEntry;
use crate::{
    admit::ResourceKey,
    catalog::{Instance, InstancePort, World},
};

/// Where HBONE is taken (features.md 4.9).
const HBONE_PORT: u16 = 15008;

/// The node of what runs on none that we know.
const NODE: &str = "resource";

/// By annotation alone where there is one; else every Service whose selector takes it; else the one that its `app` label
/// names, unless that one has a selector, which then did not take it.
pub(crate) fn services_of(world: &World, namespace: &Name, entry: &WorkloadEntry) -> Vec<ServiceKey> {
    if let Some(service) = &entry.service {
        return vec![ServiceKey::new(namespace.clone(), service.clone())];
    }
    let selecting: Vec<_> = world
        .resources
        .services_in(namespace)
        .filter(|(_, s)| !s.selector.0.is_empty() && s.selector.matches(&entry.labels))
        .map(|(key, _)| key)
        .collect();
    if !selecting.is_empty() {
        return selecting;
    }
    let named = app_service(namespace, &entry.labels);
    let takes = |key: &ServiceKey| world.resources.service(key).is_none_or(|s| s.selector.0.is_empty());
    named.into_iter().filter(takes).collect()
}

pub(crate) fn app_service(namespace: &Name, labels: &Labels) -> Option<ServiceKey> {
    let app = Name::parse(labels.get("app")?).ok()?;
    Some(ServiceKey::new(namespace.clone(), app))
}

/// `None` where its identity cannot be written down; admission has seen to that, but not to the namespace's name.
pub(crate) fn instance(world: &World, key: &ResourceKey, entry: &WorkloadEntry) -> Option<Instance> {
    let own = entry.service.clone().map(|name| ServiceKey::new(key.namespace.clone(), name));
    let own = own.or_else(|| app_service(&key.namespace, &entry.labels));
    let service = own.unwrap_or_else(|| ServiceKey::new(key.namespace.clone(), key.name.clone()));
    let identity = match &entry.service_account {
        Some(account) => {
            let id = SpiffeId::workload(&world.mesh.trust_domain, key.namespace.as_str(), account.as_str());
            Some(id.ok()?)
        }
        None => None,
    };
    let port = |(name, number): (&std::sync::Arc<str>, &u16)| {
        let at = SocketAddr::new(entry.address, *number);
        let protocol = Protocol::of_port(None, Some(name));
        InstancePort { name: name.clone(), service_port: *number, protocol, app: at, connect: at, preserve: false }
    };
    let node = Name::parse(NODE).ok()?;
    Some(Instance {
        // by its own name alone: which services take it may change, who it is may not
        uid: Uid::of(&ServiceKey::new(key.namespace.clone(), key.name.clone()), &node, &key.name),
        service,
        node,
        identity,
        ports: entry.ports.iter().map(port).collect(),
        address: entry.address,
        mesh: (entry.tunnel != Tunnel::None).then(|| SocketAddr::new(entry.address, HBONE_PORT)),
        tunnel: entry.tunnel,
        labels: entry.labels.clone(),
        locality: entry.locality.clone(),
        weight: entry.weight,
        health: Health::Passing,
        workload: key.name.as_str().into(),
    })
}
