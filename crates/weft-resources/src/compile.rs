//! From a world to fragments, one collection at a time. Pure: the same world gives the same fragments.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_model::{Name, ServiceKey, Uid};
use weft_snapshot::fragment::{
    Collection, DefaultAction, Endpoint, Fragment, Inbound, Listen, MtlsMode, Routes, Service, Tunnel, Workload,
};

pub use crate::kind::service::effect::Definition;
use crate::{
    catalog::{Instance, World},
    kind::{authorization_policy, mesh_defaults, peer_authentication, route, service},
};

/// The entries of a collection by name: uids for endpoints, otherwise one entry without a name. Nothing where there is
/// nothing by that name, and for the collections that are not compiled from resources (bundles, revocations).
pub fn compile(world: &World, collection: &Collection) -> BTreeMap<String, Fragment> {
    let one = |fragment: Option<Fragment>| fragment.map(|f| (String::new(), f)).into_iter().collect();
    match collection {
        Collection::Service(key) => one(compile_service(world, key).map(Fragment::Service)),
        Collection::Endpoints(key) => compile_endpoints(world, key)
            .into_iter()
            .map(|(uid, endpoint)| (uid.to_string(), Fragment::Endpoint(endpoint)))
            .collect(),
        Collection::Routes { service, consumer } => one(compile_routes(world, service, consumer).map(Fragment::Routes)),
        Collection::Workload(uid) => one(compile_workload(world, uid).map(Fragment::Workload)),
        Collection::Inbound(uid) => one(compile_inbound(world, uid).map(Fragment::Inbound)),
        Collection::Bundle(_) | Collection::Revocations => BTreeMap::new(),
    }
}

/// `None` when nobody knows the service.
pub fn compile_service(world: &World, key: &ServiceKey) -> Option<Service> {
    service::effect::service(world, key)
}

/// Every address of the service, whatever its health: who may be picked is decided by those who pick.
pub fn compile_endpoints(world: &World, key: &ServiceKey) -> BTreeMap<Uid, Endpoint> {
    let Some(definition) = service::effect::define(world, key) else { return BTreeMap::new() };
    let members = service::effect::members(world, key);
    members.into_iter().filter_map(|(uid, i)| endpoint(world, &definition, &i).map(|e| (uid, e))).collect()
}

fn endpoint(world: &World, definition: &Definition, instance: &Instance) -> Option<Endpoint> {
    let listens = service::effect::listens(definition, instance);
    if listens.is_empty() {
        return None;
    }
    // whoever is told to take no mTLS is sent none, unless that would lead around somebody who decides
    let plain = instance.tunnel == Tunnel::None || (takes_plaintext(world, instance) && !is_guarded(world, instance));
    if !plain && (instance.identity.is_none() || instance.mesh.is_none()) {
        // nobody could tell whether it is the right one that answers
        return None;
    }
    let tunnel = if plain { Tunnel::None } else { instance.tunnel };
    let names = labels(instance);
    Some(Endpoint {
        uid: instance.uid.clone(),
        mesh: instance.mesh.filter(|_| !plain),
        tunnel,
        sni: if tunnel == Tunnel::Weft1 { instance.uid.sni().into() } else { "".into() },
        identities: instance.identity.iter().filter(|_| !plain).cloned().collect(),
        ports: listens.iter().map(|l| (l.service_port, l.app)).collect(),
        locality: instance.locality.clone(),
        weight: instance.weight,
        health: instance.health,
        workload: names.workload,
        app: names.app,
        version: names.version,
        labels: instance.labels.clone(),
    })
}

fn takes_plaintext(world: &World, instance: &Instance) -> bool {
    let modes = peer_authentication::effect::modes(world, instance);
    modes.mode == MtlsMode::Disable && modes.ports.values().all(|mode| *mode == MtlsMode::Disable)
}

/// Whether an operator has decided who may reach it: plaintext goes to the application itself, where nobody asks.
fn is_guarded(world: &World, instance: &Instance) -> bool {
    mesh_defaults::effect::authorization(world) == DefaultAction::Deny
        || !authorization_policy::effect::policies(world, instance).is_empty()
}

/// Every route of the service as callers of the namespace see it; `None` when nobody knows the service.
pub fn compile_routes(world: &World, service: &ServiceKey, consumer: &Name) -> Option<Routes> {
    route::effect::routes(world, service, consumer)
}

/// `None` when there is no such instance in the catalog, or it has no identity.
pub fn compile_workload(world: &World, uid: &Uid) -> Option<Workload> {
    let instance = world.catalog.get(uid)?;
    let mut listens: Vec<Listen> = Vec::new();
    for key in service::effect::services_of(world, instance) {
        let Some(definition) = service::effect::define(world, &key) else { continue };
        for listen in service::effect::listens(&definition, instance) {
            // an address is one port, called as its own service calls it
            let known = |l: &Listen| l.app == listen.app || l.service_port == listen.service_port;
            if !listens.iter().any(known) {
                listens.push(listen);
            }
        }
    }
    let names = labels(instance);
    Some(Workload {
        uid: uid.clone(),
        service: instance.service.clone(),
        identity: instance.identity.clone()?,
        sni: uid.sni().into(),
        listens,
        node: instance.node.clone(),
        locality: instance.locality.clone(),
        workload: names.workload,
        app: names.app,
        version: names.version,
        labels: instance.labels.clone(),
    })
}

/// `None` when there is no such instance in the catalog: then nobody reaches it.
pub fn compile_inbound(world: &World, uid: &Uid) -> Option<Inbound> {
    let instance = world.catalog.get(uid)?;
    let modes = peer_authentication::effect::modes(world, instance);
    Some(Inbound {
        uid: uid.clone(),
        mtls: modes.mode,
        port_mtls: modes.ports,
        mtls_origin: modes.origin.map(|key| key.reference()),
        default: mesh_defaults::effect::authorization(world),
        policies: authorization_policy::effect::policies(world, instance),
    })
}

/// The definition of a service, from whoever defines it; `None` when nobody knows it.
pub fn define(world: &World, key: &ServiceKey) -> Option<Definition> {
    service::effect::define(world, key)
}

/// Every service that anybody knows.
pub fn known_services(world: &World) -> BTreeSet<ServiceKey> {
    service::effect::known(world)
}

/// Every workload that answers for the service, those entered by hand included.
pub fn members(world: &World, key: &ServiceKey) -> BTreeMap<Uid, Arc<Instance>> {
    service::effect::members(world, key)
}

struct Names {
    workload: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
}

/// Istio's canonical names, by the labels that Istio looks at, in its order.
fn labels(instance: &Instance) -> Names {
    let first = |keys: [&str; 3], or: &str| keys.into_iter().find_map(|k| instance.labels.get(k)).unwrap_or(or).into();
    let service = instance.service.name.as_str();
    Names {
        workload: if instance.workload.is_empty() { service.into() } else { instance.workload.clone() },
        app: first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], service),
        version: first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"], "latest"),
    }
}
