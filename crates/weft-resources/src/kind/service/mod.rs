//! `Service` (Kubernetes core v1): a name with ports. Its instances come from the catalog, by registration or by selector.

pub(crate) mod effect;

use std::{collections::BTreeSet, sync::Arc};

use weft_model::{Protocol, Selector};
use weft_snapshot::fragment::Balance;

use crate::{
    admit::Subject,
    schema::{At, Decode, Entries, Ignored, IntOrText, schema},
    violation::{Sink, Spot},
    words,
};

/// Chooses how endpoints are balanced; a Service has no field for it.
pub const BALANCE_ANNOTATION: &str = "weft.dev/balance";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub ports: Vec<Port>,
    /// Empty: only what was registered under the service's name.
    pub selector: Selector,
    pub balance: Balance,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Empty only where there is one port.
    pub name: Arc<str>,
    pub port: u16,
    pub target: TargetPort,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// Not said: the instance's port of the same name or number, or its only one.
    Same,
    Number(u16),
    Name(Arc<str>),
}

schema! {
    struct RawService {
        ports: Vec<At<RawPort>> = "ports",
        selector: Entries<String> = "selector",
        r#type: String = "type",
        _cluster_ip: Ignored = "clusterIP",
        _cluster_ips: Ignored = "clusterIPs",
        _external_ips: Ignored = "externalIPs",
        external_name: String = "externalName",
        _external_traffic_policy: Ignored = "externalTrafficPolicy",
        _internal_traffic_policy: Ignored = "internalTrafficPolicy",
        _ip_families: Ignored = "ipFamilies",
        _ip_family_policy: Ignored = "ipFamilyPolicy",
        _health_check_node_port: Ignored = "healthCheckNodePort",
        _allocate: Ignored = "allocateLoadBalancerNodePorts",
        _load_balancer_class: Ignored = "loadBalancerClass",
        _load_balancer_ip: Ignored = "loadBalancerIP",
        _load_balancer_source_ranges: Ignored = "loadBalancerSourceRanges",
        _publish: Ignored = "publishNotReadyAddresses",
        session_affinity: String = "sessionAffinity",
        _session_affinity_config: Ignored = "sessionAffinityConfig",
        _traffic_distribution: Ignored = "trafficDistribution",
    }

    struct RawPort {
        name: String = "name",
        port: i64 = "port",
        target_port: IntOrText = "targetPort",
        protocol: String = "protocol",
        app_protocol: String = "appProtocol",
        _node_port: Ignored = "nodePort",
    }
}

// === impl Service ===

impl Service {
    pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Self> {
        let raw = RawService::decode(&subject.doc.spec, &subject.spot, out)?;
        if let Some(at) = raw.r#type.as_ref().filter(|t| t.value != "ClusterIP") {
            match at.value.as_str() {
                "ExternalName" => {
                    out.unsupported(&at.spot, "ExternalName is not supported; use a WorkloadEntry with the address")
                }
                "NodePort" | "LoadBalancer" => {
                    out.warn(&at.spot, format!("{} has no effect here beyond ClusterIP", at.value))
                }
                other => out.invalid(&at.spot, format!("unknown type `{other}`; did you mean `ClusterIP`?")),
            }
        } else if let Some(at) = &raw.external_name {
            out.unsupported(&at.spot, "is not supported; use a WorkloadEntry with the address");
        }
        if let Some(at) = raw.session_affinity.as_ref().filter(|a| a.value != "None") {
            out.warn(&at.spot, "session affinity is not supported yet and has no effect");
        }
        let ports = raw.ports.map(|at| at.value).unwrap_or_default();
        let several = ports.len() > 1;
        let read = |p: &At<RawPort>| Some((p.spot.clone(), admit_port(p, several, out)?));
        let ports: Vec<_> = ports.iter().filter_map(read).collect();
        refuse_twins(&ports, out);
        let ports: Vec<_> = ports.into_iter().map(|(_, port)| port).collect();
        if ports.is_empty() && !several {
            out.warn(&subject.spot.absent("ports"), "a service without TCP ports cannot be called");
        }
        let selector = raw.selector.map(|s| words::selector(&s.value, out)).unwrap_or_default();
        Some(Self { ports, selector, balance: admit_balance(subject, out) })
    }
}

/// Ports that are not TCP are left out.
fn admit_port(At { spot, value: raw }: &At<RawPort>, several: bool, out: &mut Sink) -> Option<Port> {
    let port = match &raw.port {
        Some(at) => words::port(at, out),
        None => {
            out.missing(spot, "port", "is missing");
            None
        }
    };
    if let Some(at) = &raw.protocol {
        match at.value.as_str() {
            "TCP" => {}
            "UDP" | "SCTP" => {
                out.warn(&at.spot, format!("{} ports are ignored: the mesh carries TCP", at.value));
                return None;
            }
            other => out.invalid(
                &at.spot,
                format!("unknown protocol `{other}`; write `TCP`, and the application's in appProtocol"),
            ),
        }
    }
    if several && raw.name.is_none() {
        out.missing(spot, "name", "is missing; every port needs a name where there are several");
    }
    let target = match raw.target_port.as_ref().map(|at| (&at.value, at)) {
        None => TargetPort::Same,
        Some((IntOrText::Int(n), at)) => {
            TargetPort::Number(words::port(&At { spot: at.spot.clone(), value: *n }, out)?)
        }
        Some((IntOrText::Text(name), at)) => {
            if name.is_empty() {
                out.invalid(&at.spot, "is empty; write a port's number or name, or leave it out");
            }
            TargetPort::Name(name.as_str().into())
        }
    };
    let text = |field: &Option<At<String>>| field.as_ref().map(|at| at.value.clone());
    let (name, app) = (text(&raw.name), text(&raw.app_protocol));
    if let Some(at) = &raw.app_protocol
        && Protocol::from_app_protocol(&at.value).is_none()
    {
        let message =
            format!("`{}` is no protocol that the mesh knows; the port is looked at as if undeclared", at.value);
        out.warn(&at.spot, message);
    }
    let protocol = Protocol::of_port(app.as_deref(), name.as_deref());
    Some(Port { name: name.unwrap_or_default().into(), port: port?, target, protocol })
}

fn refuse_twins(ports: &[(Spot, Port)], out: &mut Sink) {
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (spot, port) in ports {
        if !numbers.insert(port.port) {
            out.invalid(spot, format!("port {} is there twice", port.port));
        }
        if !port.name.is_empty() && !names.insert(&port.name) {
            out.invalid(spot, format!("two ports are named `{}`", port.name));
        }
    }
}

fn admit_balance(subject: &Subject<'_>, out: &mut Sink) -> Balance {
    match subject.doc.metadata.annotations.get(BALANCE_ANNOTATION).map(String::as_str) {
        None | Some("peak-ewma") => Balance::PeakEwma,
        Some("least-request") => Balance::LeastRequest,
        Some("round-robin") => Balance::RoundRobin,
        Some("random") => Balance::Random,
        Some(other) => {
            let spot = Spot::new(format!("metadata.annotations[{BALANCE_ANNOTATION}]"), subject.doc.line, 0);
            let known = "peak-ewma, least-request, round-robin, random";
            out.invalid(&spot, format!("unknown balancing `{other}`; known: {known}"));
            Balance::default()
        }
    }
}
