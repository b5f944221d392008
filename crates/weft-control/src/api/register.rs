//! From a registration as it was sent to what the catalog holds. Pure; every violation is said.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use weft_model::{Labels, Locality, Name, Protocol, ServiceKey, SpiffeId};
use weft_registry::{Check, Instance, Owner, Port, Status, Thresholds, Tunnel, Unknown, Upstream, Weights};
use weft_wire::v1;

/// What is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub instance: Instance,
    pub checks: Vec<Check>,
}

/// The longest that a caller may make labels, checks and the like.
const MOST: usize = 256;

/// `who` is the identity of the caller: its namespace and service account are the registration's.
pub fn read(r: &v1::Register, who: &SpiffeId) -> Result<Registration, Vec<String>> {
    let mut bad = Vec::new();
    let (ns, account) = who.workload_parts().unwrap_or_default();
    if r.namespace != ns {
        bad.push(format!("namespace: {who} may register in namespace `{ns}` only, not in `{}`", r.namespace));
    }
    if !r.service_account.is_empty() && r.service_account != account {
        bad.push(format!("service_account: {who} cannot register as `{}`", r.service_account));
    }
    let mut name = |field: &str, s: &str| Name::parse(s).map_err(|e| bad.push(format!("{field}: {e}"))).ok();
    let (namespace, service) = (name("namespace", &r.namespace), name("service", &r.service));
    let (node, id) = (name("node", &r.node), name("id", &r.id));
    let owner = r.owner.parse::<Owner>().map_err(|e| bad.push(format!("owner: {e}"))).ok();
    if owner.as_ref().is_some_and(|o| !matches!(o, Owner::Run(_) | Owner::Agent(_))) {
        bad.push(format!("owner: `{}` does not register through a stream", r.owner));
    }
    for (field, n) in [("ports", r.ports.len()), ("checks", r.checks.len()), ("upstreams", r.upstreams.len())] {
        if n > MOST {
            bad.push(format!("{field}: {n} are too many, at most {MOST} are taken"));
        }
    }
    let ports = r.ports.iter().enumerate().filter_map(|(i, p)| port(i, p, &mut bad)).collect();
    let upstreams = r.upstreams.iter().enumerate().filter_map(|(i, u)| upstream(i, u, &namespace, &mut bad)).collect();
    let mut optional = |field: &str, a: &Option<v1::Address>| a.as_ref().and_then(|a| address(field, a, &mut bad));
    let mesh = optional("mesh_address", &r.mesh_address);
    let (admin, metrics) =
        (optional("admin_address", &r.admin_address), optional("metrics_address", &r.metrics_address));
    let tunnel = tunnel(r.tunnel, &mut bad);
    let mut labels: Labels = r.labels.clone().into_iter().collect();
    for (key, value) in [("app", &r.app), ("version", &r.version)] {
        if !value.is_empty() {
            labels.0.entry(key.into()).or_insert_with(|| value.as_str().into());
        }
    }
    let (Some(namespace), Some(service), Some(node), Some(id), Some(owner)) = (namespace, service, node, id, owner)
    else {
        return Err(bad);
    };
    let weight = r.weight.unwrap_or(1);
    let instance = Instance {
        service: ServiceKey::new(namespace, service),
        node,
        id,
        owner,
        identity: who.clone(),
        mesh,
        tunnel,
        ports,
        locality: r.locality.as_ref().map_or_else(Locality::default, |l| Locality {
            region: l.region.as_str().into(),
            zone: l.zone.as_str().into(),
        }),
        labels,
        meta: r.meta.clone().into_iter().collect(),
        workload: r.workload.as_str().into(),
        weights: Weights { passing: weight, warning: weight },
        upstreams,
        admin,
        metrics,
        bypassable: r.bypassable,
        draining: false,
        maintenance: None,
        unknown: Unknown::new(),
    };
    let checks = r.checks.iter().enumerate().filter_map(|(i, c)| check(i, c, &instance, &mut bad)).collect();
    if bad.is_empty() { Ok(Registration { instance, checks }) } else { Err(bad) }
}

fn port(i: usize, p: &v1::RegisterPort, bad: &mut Vec<String>) -> Option<Port> {
    let number = u16::try_from(p.port).ok().filter(|n| *n > 0);
    if number.is_none() {
        bad.push(format!("ports[{i}].port: {} is no port", p.port));
    }
    let Some(app) = &p.app else {
        bad.push(format!("ports[{i}].app: is missing"));
        return None;
    };
    let app = address(&format!("ports[{i}].app"), app, bad);
    let connect = p.connect.as_ref().and_then(|a| address(&format!("ports[{i}].connect"), a, bad));
    let protocol = protocol(&format!("ports[{i}].protocol"), p.protocol, bad);
    let (port, app) = (number?, app?);
    let connect = connect.filter(|c| *c != app);
    Some(Port { name: p.name.as_str().into(), port, protocol, app, connect, preserve: p.preserve })
}

fn upstream(i: usize, u: &v1::Upstream, ns: &Option<Name>, bad: &mut Vec<String>) -> Option<Upstream> {
    let default = ns.clone().unwrap_or_else(Name::default_namespace);
    let service = ServiceKey::parse_in(&u.service, &default);
    let service = service.map_err(|e| bad.push(format!("upstreams[{i}].service: {e}"))).ok();
    let protocol = protocol(&format!("upstreams[{i}].protocol"), u.protocol, bad);
    Some(Upstream { service: service?, port: u.port.as_str().into(), listen: u.listen.as_str().into(), protocol })
}

fn check(i: usize, c: &v1::CheckDefinition, of: &Instance, bad: &mut Vec<String>) -> Option<Check> {
    let id = Name::parse(&c.id).map_err(|e| bad.push(format!("checks[{i}].id: {e}"))).ok();
    let ttl = match &c.kind {
        Some(v1::check_definition::Kind::Ttl(ttl)) if ttl.ttl_ms == 0 => {
            bad.push(format!("checks[{i}].ttl: 0 would never pass"));
            None
        }
        Some(v1::check_definition::Kind::Ttl(ttl)) => Some(Duration::from_millis(ttl.ttl_ms)),
        Some(_) => None,
        None => {
            bad.push(format!("checks[{i}]: has no kind that this version knows"));
            None
        }
    };
    Some(Check {
        id: id?,
        node: of.node.clone(),
        instance: Some(of.key()),
        owner: of.owner.clone(),
        // until it was looked at once
        status: status(c.initial).unwrap_or(Status::Critical),
        output: "".into(),
        thresholds: Thresholds {
            success_before_passing: c.success_before_passing,
            failures_before_warning: c.failures_before_warning,
            failures_before_critical: c.failures_before_critical,
        },
        ttl,
        deregister_after: Some(c.deregister_critical_after_ms).filter(|ms| *ms > 0).map(Duration::from_millis),
        unknown: Unknown::new(),
    })
}

/// `None`: no status that a check can have.
pub fn status(health: i32) -> Option<Status> {
    match v1::Health::try_from(health) {
        Ok(v1::Health::Passing) => Some(Status::Passing),
        Ok(v1::Health::Warning) => Some(Status::Warning),
        Ok(v1::Health::Critical) => Some(Status::Critical),
        _ => None,
    }
}

fn protocol(field: &str, p: i32, bad: &mut Vec<String>) -> Protocol {
    match v1::Protocol::try_from(p) {
        Ok(v1::Protocol::Unspecified | v1::Protocol::Undeclared) => Protocol::Undeclared,
        Ok(v1::Protocol::Http) => Protocol::Http,
        Ok(v1::Protocol::Http2) => Protocol::Http2,
        Ok(v1::Protocol::Grpc) => Protocol::Grpc,
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Tls) => Protocol::Tls,
        Err(_) => {
            bad.push(format!("{field}: {p} is no protocol that this version knows"));
            Protocol::Undeclared
        }
    }
}

fn tunnel(t: i32, bad: &mut Vec<String>) -> Tunnel {
    match v1::Tunnel::try_from(t) {
        Ok(v1::Tunnel::Unspecified | v1::Tunnel::None) => Tunnel::None,
        Ok(v1::Tunnel::Hbone) => Tunnel::Hbone,
        Ok(v1::Tunnel::Weft1) => Tunnel::Weft1,
        Err(_) => {
            bad.push(format!("tunnel: {t} is none that this version knows"));
            Tunnel::None
        }
    }
}

fn address(field: &str, a: &v1::Address, bad: &mut Vec<String>) -> Option<SocketAddr> {
    let port = u16::try_from(a.port).ok();
    let ip: &[u8] = &a.ip;
    let address = match (<[u8; 4]>::try_from(ip), <[u8; 16]>::try_from(ip), port) {
        (Ok(v4), _, Some(port)) => Some(SocketAddr::new(IpAddr::from(v4), port)),
        (_, Ok(v6), Some(port)) => Some(SocketAddr::V6(SocketAddrV6::new(v6.into(), port, 0, a.scope))),
        _ => None,
    };
    if address.is_none() {
        bad.push(format!("{field}: is no address"));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(port: u32) -> Option<v1::Address> {
        Some(v1::Address { ip: vec![127, 0, 0, 1].into(), port, scope: 0 })
    }

    fn register() -> v1::Register {
        v1::Register {
            namespace: "shop".into(),
            service: "web".into(),
            node: "n1".into(),
            id: "web-1".into(),
            owner: "run/r1".into(),
            ports: vec![v1::RegisterPort { port: 80, app: local(8080), connect: local(8080), ..Default::default() }],
            mesh_address: local(15008),
            tunnel: v1::Tunnel::Weft1.into(),
            version: "v2".into(),
            checks: vec![v1::CheckDefinition {
                id: "http".into(),
                kind: Some(v1::check_definition::Kind::Tcp(v1::TcpCheck::default())),
                ..Default::default()
            }],
            upstreams: vec![v1::Upstream { service: "api".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn reg_05_reads_what_is_sent() {
        let who = SpiffeId::parse("spiffe://td/ns/shop/sa/web").unwrap();
        let Registration { instance, checks } = read(&register(), &who).unwrap();
        assert_eq!(instance.uid().as_str(), "shop/web/n1/web-1");
        assert_eq!(instance.identity, who);
        assert_eq!(instance.labels.get("version"), Some("v2"));
        assert_eq!(instance.upstreams[0].service.to_string(), "shop/api");
        assert_eq!(instance.ports[0].connect, None, "the same address is said once");
        assert_eq!(checks[0].status, Status::Critical);
    }

    #[test]
    fn says_every_violation() {
        let who = SpiffeId::parse("spiffe://td/ns/bank/sa/web").unwrap();
        let mut r = register();
        r.service_account = "root".into();
        r.id = String::new();
        r.owner = "api".into();
        r.tunnel = 99;
        r.ports[0].port = 70000;
        r.mesh_address = Some(v1::Address { ip: vec![1, 2, 3].into(), port: 1, scope: 0 });
        let bad = read(&r, &who).unwrap_err();
        for field in [
            "namespace: spiffe://td/ns/bank",
            "service_account",
            "id",
            "owner",
            "tunnel",
            "ports[0].port",
            "mesh_address",
        ] {
            assert!(bad.iter().any(|b| b.starts_with(field)), "{field} is not in {bad:#?}");
        }
    }
}
