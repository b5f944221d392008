//! Services, endpoints and workloads.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use bytes::Bytes;
use weft_model::SpiffeId;
use weft_snapshot::fragment::{Endpoint, Listen, Service, ServicePort, Workload};

use super::{
    DecodeError, Leaf as _, Within as _, bad, each, port, required,
    words::{
        balance, health, labels, locality, protocol, read_balance, read_health, read_labels, read_locality,
        read_protocol, read_tunnel, tunnel,
    },
};
use crate::pb::weft::v1 as pb;

pub fn service(s: &Service) -> pb::Service {
    let Service { key, ports, balance: b } = s;
    pb::Service { key: key.to_string(), ports: ports.iter().map(service_port).collect(), balance: balance(*b) }
}

pub fn read_service(s: pb::Service) -> Result<Service, DecodeError> {
    Ok(Service {
        key: s.key.parse().leaf("key")?,
        ports: each("ports", s.ports, read_service_port)?,
        balance: read_balance("balance", s.balance)?,
    })
}

fn service_port(p: &ServicePort) -> pb::ServicePort {
    let ServicePort { name, port, protocol: proto } = p;
    pb::ServicePort { name: name.to_string(), port: u32::from(*port), protocol: protocol(*proto) }
}

fn read_service_port(p: pb::ServicePort) -> Result<ServicePort, DecodeError> {
    Ok(ServicePort {
        name: p.name.into(),
        port: port("port", p.port)?,
        protocol: read_protocol("protocol", p.protocol)?,
    })
}

pub fn endpoint(e: &Endpoint) -> pb::Endpoint {
    let Endpoint {
        uid,
        mesh,
        tunnel: t,
        sni,
        identities,
        ports,
        locality: l,
        weight,
        health: h,
        workload,
        app,
        version,
        labels: ls,
    } = e;
    pb::Endpoint {
        uid: uid.to_string(),
        mesh: mesh.map(address),
        tunnel: tunnel(*t),
        sni: sni.to_string(),
        identities: identities.iter().map(ToString::to_string).collect(),
        ports: ports.iter().map(|(p, a)| (u32::from(*p), address(*a))).collect(),
        locality: locality(l),
        weight: *weight,
        health: health(*h),
        workload: workload.to_string(),
        app: app.to_string(),
        version: version.to_string(),
        labels: labels(ls),
    }
}

pub fn read_endpoint(e: pb::Endpoint) -> Result<Endpoint, DecodeError> {
    let ports = e.ports.into_iter().map(|(p, a)| {
        let field = format!("ports[{p}]");
        Ok((port(&field, p)?, read_address(&a).within(&field)?))
    });
    Ok(Endpoint {
        uid: e.uid.parse().leaf("uid")?,
        mesh: e.mesh.as_ref().map(read_address).transpose().within("mesh")?,
        tunnel: read_tunnel("tunnel", e.tunnel)?,
        sni: e.sni.into(),
        identities: each("identities", e.identities, |i| SpiffeId::parse(&i).leaf(""))?,
        ports: ports.collect::<Result<BTreeMap<_, _>, DecodeError>>()?,
        locality: read_locality(e.locality),
        weight: e.weight,
        health: read_health("health", e.health)?,
        workload: e.workload.into(),
        app: e.app.into(),
        version: e.version.into(),
        labels: read_labels(e.labels),
    })
}

pub fn workload(w: &Workload) -> pb::Workload {
    let Workload { uid, service, identity, sni, listens, node, locality: l, workload, app, version, labels: ls } = w;
    pb::Workload {
        uid: uid.to_string(),
        service: service.to_string(),
        identity: identity.to_string(),
        sni: sni.to_string(),
        listens: listens.iter().map(listen).collect(),
        node: node.to_string(),
        locality: locality(l),
        workload: workload.to_string(),
        app: app.to_string(),
        version: version.to_string(),
        labels: labels(ls),
    }
}

pub fn read_workload(w: pb::Workload) -> Result<Workload, DecodeError> {
    Ok(Workload {
        uid: w.uid.parse().leaf("uid")?,
        service: w.service.parse().leaf("service")?,
        identity: SpiffeId::parse(&w.identity).leaf("identity")?,
        sni: w.sni.into(),
        listens: each("listens", w.listens, read_listen)?,
        node: w.node.parse().leaf("node")?,
        locality: read_locality(w.locality),
        workload: w.workload.into(),
        app: w.app.into(),
        version: w.version.into(),
        labels: read_labels(w.labels),
    })
}

fn listen(l: &Listen) -> pb::Listen {
    let Listen { service_port, name, protocol: proto, app, connect, preserve } = l;
    pb::Listen {
        service_port: u32::from(*service_port),
        name: name.to_string(),
        protocol: protocol(*proto),
        app: Some(address(*app)),
        connect: Some(address(*connect)),
        preserve: *preserve,
    }
}

fn read_listen(l: pb::Listen) -> Result<Listen, DecodeError> {
    Ok(Listen {
        service_port: port("service_port", l.service_port)?,
        name: l.name.into(),
        protocol: read_protocol("protocol", l.protocol)?,
        app: read_address(&required("app", l.app)?).within("app")?,
        connect: read_address(&required("connect", l.connect)?).within("connect")?,
        preserve: l.preserve,
    })
}

/// An IPv6 flow label is not carried: it is no part of where something is.
pub fn address(a: SocketAddr) -> pb::Address {
    let scope = match a {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    };
    pb::Address { ip: ip(a.ip()), port: u32::from(a.port()), scope }
}

pub fn read_address(a: &pb::Address) -> Result<SocketAddr, DecodeError> {
    let port = port("port", a.port)?;
    Ok(match read_ip("ip", &a.ip)? {
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, a.scope).into(),
        v4 => SocketAddr::new(v4, port),
    })
}

pub fn ip(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

pub fn read_ip(field: &str, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or(v6).map_err(|_| bad(field, format!("has {} bytes, an address has 4 or 16", bytes.len())))
}
