//! From the registry to what compilation reads of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use weft_model::{Health, ServiceKey, Uid};
use weft_registry::{Instance, Merged, Tunnel, View};
use weft_resources::{Catalog, Change, InstancePort, Registered};
use weft_snapshot::fragment;

/// Makes `catalog` say of one service what the registry says, and tells what that changed.
pub fn sync(catalog: &mut Catalog, view: &View, service: &ServiceKey, changes: &mut Vec<Change>) {
    let merged = view.merged(service);
    let wanted: Vec<_> = match &merged {
        Some(merged) => view.instances_of(service).map(|i| instance(view, merged, &i.value)).collect(),
        None => Vec::new(),
    };
    let kept: BTreeSet<Uid> = wanted.iter().map(|i| i.uid.clone()).collect();
    let gone: Vec<Uid> = catalog.instances_of(service).map(|i| i.uid.clone()).filter(|u| !kept.contains(u)).collect();
    for uid in gone {
        changes.push(Change::Instance { before: catalog.remove(&uid), after: None });
    }
    for instance in wanted {
        let uid = instance.uid.clone();
        if catalog.get(&uid).is_none_or(|there| **there != instance) {
            let before = catalog.insert(instance);
            changes.push(Change::Instance { before, after: catalog.get(&uid).cloned() });
        }
    }
    let registered = merged.as_ref().map(definition);
    if catalog.service(service) == registered.as_ref() {
        return;
    }
    match registered {
        Some(registered) => drop(catalog.insert_service(service.clone(), registered)),
        None => drop(catalog.remove_service(service)),
    }
    changes.push(Change::Service(service.clone()));
}

fn definition(merged: &Merged) -> Registered {
    let port = |(number, p): (&u16, &weft_registry::view::MergedPort)| fragment::ServicePort {
        name: p.name.clone(),
        port: *number,
        protocol: p.protocol,
    };
    Registered { ports: merged.ports.iter().map(port).collect() }
}

fn instance(view: &View, merged: &Merged, i: &Instance) -> weft_resources::Instance {
    let id = i.key();
    let health = view.health(i);
    let ports = i.ports.iter().filter(|p| merged.serves(&id, p.port)).map(|p| InstancePort {
        name: p.name.clone(),
        service_port: p.port,
        // declared once is declared for all: the service's word where the instance has none
        protocol: merged.ports.get(&p.port).map_or(p.protocol, |m| m.protocol),
        app: p.app,
        connect: p.connect.unwrap_or(p.app),
        preserve: p.preserve,
    });
    let address = i.ports.first().map(|p| p.app.ip()).or_else(|| i.mesh.map(|m| m.ip()));
    let mut labels = i.labels.clone();
    // as the catalog does itself: so that what is there compares equal
    labels.0.entry("app".into()).or_insert_with(|| i.service.name.as_str().into());
    weft_resources::Instance {
        uid: i.uid(),
        service: i.service.clone(),
        node: i.node.clone(),
        identity: Some(i.identity.clone()).filter(|_| i.tunnel != Tunnel::None),
        ports: ports.collect(),
        address: address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        mesh: i.mesh,
        tunnel: match i.tunnel {
            Tunnel::None => fragment::Tunnel::None,
            Tunnel::Hbone => fragment::Tunnel::Hbone,
            Tunnel::Weft1 => fragment::Tunnel::Weft1,
        },
        labels,
        locality: i.locality.clone(),
        weight: if health == Health::Warning { i.weights.warning } else { i.weights.passing },
        health,
        workload: i.workload.clone(),
    }
}
