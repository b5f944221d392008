//! What a workload tells the registry of itself.

use std::net::SocketAddr;

use weft_wire::fragment::{address, protocol};
use weft_wire::v1::{self, CheckDefinition, Locality, Register, RegisterPort, Upstream};

use super::{
    Flags, Plan,
    spec::{ListenSpec, PortSpec, UpstreamSpec},
};

pub fn register(
    flags: &Flags,
    plan: &Plan,
    mesh: SocketAddr,
    metrics: SocketAddr,
    checks: Vec<CheckDefinition>,
) -> Register {
    let (region, zone) = match flags.zone.as_deref().map(|z| z.split_once('/').unwrap_or(("", z))) {
        Some((region, zone)) => (region, zone),
        None => ("", ""),
    };
    Register {
        namespace: plan.service.namespace.to_string(),
        service: plan.service.name.to_string(),
        node: plan.node.to_string(),
        id: plan.id.to_string(),
        ports: plan.ports.iter().map(|p| port(p, mesh)).collect(),
        mesh_address: Some(address(mesh)),
        tunnel: v1::Tunnel::Weft1.into(),
        labels: plan.labels.iter().cloned().collect(),
        locality: Some(Locality { region: region.into(), zone: zone.into() }),
        workload: plan.service.name.to_string(),
        app: plan.label("app").into(),
        version: plan.label("version").into(),
        admin_address: None,
        metrics_address: Some(address(metrics)),
        upstreams: plan.upstreams.iter().map(upstream).collect(),
        checks,
        owner: format!("run/{}", plan.id),
        bypassable: false,
        weight: None,
        service_account: plan.service_account.clone(),
        ..Register::default()
    }
}

/// Peers know the application by the host of the mesh address; the proxy connects to loopback.
fn port(spec: &PortSpec, mesh: SocketAddr) -> RegisterPort {
    RegisterPort {
        name: spec.name.clone(),
        port: spec.service_port.into(),
        protocol: protocol(spec.protocol),
        app: Some(address(SocketAddr::new(mesh.ip(), spec.port))),
        connect: Some(address(SocketAddr::from(([127, 0, 0, 1], spec.port)))),
        preserve: false,
    }
}

fn upstream(spec: &UpstreamSpec) -> Upstream {
    Upstream {
        service: spec.service.to_string(),
        port: spec.port.clone().unwrap_or_default(),
        listen: match &spec.listen {
            ListenSpec::Tcp(addr) => addr.to_string(),
            ListenSpec::Unix(path) => format!("unix:{}", path.display()),
        },
        protocol: protocol(spec.protocol),
    }
}
