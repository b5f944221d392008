//! What a service is made of: its definition, its members, and which of their addresses stands for each of its ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use weft_model::{Labels, ServiceKey, Uid};
use weft_snapshot::fragment::{self, Balance, Listen, Target};

use super::{Port, Service, TargetPort};
use crate::{
    catalog::{Instance, InstancePort, World},
    kind::workload_entry,
};

/// A service, from whoever defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub ports: Vec<Port>,
    pub balance: Balance,
    /// Nobody defined it: it is what its instances have in common.
    pub derived: bool,
}

/// A Service resource, else what was registered, else what its instances bring; `None` when nobody knows it.
pub(crate) fn define(world: &World, key: &ServiceKey) -> Option<Definition> {
    if let Some(Service { ports, balance, .. }) = world.resources.service(key) {
        return Some(Definition { ports: ports.clone(), balance: *balance, derived: false });
    }
    let port = |p: &fragment::ServicePort| Port {
        name: p.name.clone(),
        port: p.port,
        target: TargetPort::Same,
        protocol: p.protocol,
    };
    if let Some(registered) = world.catalog.service(key) {
        let ports = registered.ports.iter().map(port).collect();
        return Some(Definition { ports, balance: Balance::default(), derived: false });
    }
    let members = members(world, key);
    if members.is_empty() {
        return None;
    }
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for p in members.values().flat_map(|i| &i.ports) {
        ports.entry(p.service_port).or_insert_with(|| Port {
            name: p.name.clone(),
            port: p.service_port,
            target: TargetPort::Same,
            protocol: p.protocol,
        });
    }
    Some(Definition { ports: ports.into_values().collect(), balance: Balance::default(), derived: true })
}

/// Whoever answers for the service: registered under its name, selected by its labels, or entered by hand.
pub(crate) fn members(world: &World, key: &ServiceKey) -> BTreeMap<Uid, Arc<Instance>> {
    let of = |i: &Arc<Instance>| (i.uid.clone(), i.clone());
    let mut found: BTreeMap<_, _> = world.catalog.instances_of(key).map(of).collect();
    if let Some(service) = world.resources.service(key).filter(|s| !s.selector.0.is_empty()) {
        let selected = world.catalog.instances_in(&key.namespace).filter(|i| service.selector.matches(&i.labels));
        found.extend(selected.map(of));
    }
    for (resource, entry) in world.resources.workload_entries_in(&key.namespace) {
        if workload_entry::effect::services_of(world, &key.namespace, entry).contains(key)
            && let Some(instance) = workload_entry::effect::instance(world, &resource.key, entry)
        {
            found.insert(instance.uid.clone(), Arc::new(instance));
        }
    }
    found
}

/// Every service that an instance of the catalog answers for, its own first.
pub(crate) fn services_of(world: &World, instance: &Instance) -> Vec<ServiceKey> {
    let own = &instance.service;
    let selecting = world
        .resources
        .services_in(&own.namespace)
        .filter(|(key, s)| key != own && !s.selector.0.is_empty() && s.selector.matches(&instance.labels))
        .map(|(key, _)| key);
    std::iter::once(own.clone()).chain(selecting).collect()
}

/// What stands for each port of the service at this instance. Ports that it does not have are left out.
pub(crate) fn listens(definition: &Definition, instance: &Instance) -> Vec<Listen> {
    definition.ports.iter().filter_map(|port| listen(definition, port, instance)).collect()
}

fn listen(definition: &Definition, port: &Port, instance: &Instance) -> Option<Listen> {
    let named = |name: &str| instance.ports.iter().find(|p| !name.is_empty() && *p.name == *name);
    let numbered = |n: u16| {
        let by_address = instance.ports.iter().find(|p| p.app.port() == n);
        by_address.or_else(|| instance.ports.iter().find(|p| p.service_port == n))
    };
    let only = || match (definition.ports.as_slice(), instance.ports.as_slice()) {
        ([_], [one]) => Some(one),
        _ => None,
    };
    let found = match &port.target {
        TargetPort::Name(name) => Some(named(name)?),
        TargetPort::Number(n) => numbered(*n).or_else(|| named(&port.name)),
        TargetPort::Same => instance
            .ports
            .iter()
            .find(|p| p.service_port == port.port)
            .or_else(|| named(&port.name))
            .or_else(|| numbered(port.port))
            .or_else(only),
    };
    // Kubernetes lets a Service name a port that nobody declared
    let undeclared = |n| {
        let at = SocketAddr::new(instance.address, n);
        InstancePort {
            name: "".into(),
            service_port: n,
            protocol: port.protocol,
            app: at,
            connect: at,
            preserve: false,
        }
    };
    let made;
    let found = match (found, &port.target) {
        (Some(found), _) => found,
        (None, TargetPort::Number(n)) => {
            made = undeclared(*n);
            &made
        }
        (None, _) if definition.derived => return None,
        (None, _) => {
            made = undeclared(port.port);
            &made
        }
    };
    let protocol = if port.protocol == weft_model::Protocol::Undeclared { found.protocol } else { port.protocol };
    Some(Listen {
        service_port: port.port,
        name: port.name.clone(),
        protocol,
        app: found.app,
        connect: found.connect,
        preserve: found.preserve,
    })
}

/// Where a route that names the service sends. A Service that merely selects some instances of another one is compiled to
/// that subset of the other: its workloads know themselves by the name that they registered under.
pub(crate) fn target(world: &World, key: &ServiceKey, port: u16) -> Target {
    let itself = || Target::Service { key: key.clone(), port, subset: Labels::default() };
    subset_of(world, key, port).unwrap_or_else(itself)
}

/// `None` where the service stands for itself.
pub(crate) fn subset_of(world: &World, key: &ServiceKey, port: u16) -> Option<Target> {
    let selector = &world.resources.service(key).filter(|s| !s.selector.0.is_empty())?.selector;
    let selected = members(world, key);
    let other = selected.values().next().map(|i| i.service.clone()).filter(|other| other != key)?;
    let mut of_other = members(world, &other);
    of_other.retain(|_, i| selector.matches(&i.labels));
    if !selected.keys().eq(of_other.keys()) {
        return None;
    }
    let (here, there) = (define(world, key)?, define(world, &other)?);
    let app =
        |d: &Definition, i: &Instance, port| listens(d, i).into_iter().find(|l| l.service_port == port).map(|l| l.app);
    let same =
        |p: &&Port| selected.values().all(|i| app(&here, i, port).is_some_and(|a| app(&there, i, p.port) == Some(a)));
    let port = there.ports.iter().find(same)?.port;
    Some(Target::Service { key: other, port, subset: Labels(selector.0.clone()) })
}

/// The port's protocol as callers see it.
pub(crate) fn service(world: &World, key: &ServiceKey) -> Option<fragment::Service> {
    let definition = define(world, key)?;
    let port = |p: &Port| fragment::ServicePort { name: p.name.clone(), port: p.port, protocol: p.protocol };
    Some(fragment::Service {
        key: key.clone(),
        ports: definition.ports.iter().map(port).collect(),
        balance: definition.balance,
    })
}

/// Names of all services that anybody knows.
pub(crate) fn known(world: &World) -> BTreeSet<ServiceKey> {
    let mut keys: BTreeSet<ServiceKey> = world.catalog.services().map(|(key, _)| key.clone()).collect();
    keys.extend(world.catalog.instances().map(|i| i.service.clone()));
    for resource in world.resources.iter() {
        match &resource.spec {
            crate::Spec::Service(_) => {
                keys.insert(ServiceKey::new(resource.key.namespace.clone(), resource.key.name.clone()));
            }
            crate::Spec::WorkloadEntry(entry) => {
                keys.extend(workload_entry::effect::services_of(world, &resource.key.namespace, entry));
            }
            _ => {}
        }
    }
    keys
}
