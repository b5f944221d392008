//! How routes take effect: which attach to a service's port for whom, and in which order their matches are tried.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use weft_model::{Name, Protocol, ServiceKey};
use weft_snapshot::fragment::{
    Backend, HttpMatch, HttpRule, PathMatch, PortRoutes, RetryPolicy, Routes, Target, TcpRule, Timeouts,
};

use super::{BackendRef, BackendTarget, ParentRef, RouteRule, section};
use crate::{
    admit::{Resource, ResourceKey, Spec},
    catalog::World,
    kind::{
        Kind,
        service::{self, Port, effect::Definition},
    },
};

/// Where kinds meet on a port, the most specific takes it whole (GEP-1426).
const BY_SPECIFICITY: [Kind; 3] = [Kind::GrpcRoute, Kind::HttpRoute, Kind::TcpRoute];

pub(crate) fn routes(world: &World, key: &ServiceKey, consumer: &Name) -> Option<Routes> {
    let definition = service::effect::define(world, key)?;
    let mut ports = BTreeMap::new();
    for port in &definition.ports {
        let attached = attached(world, key, port, consumer);
        match attached.kind {
            Some(kind) => drop(ports.insert(port.port, port_routes(world, kind, &attached.routes))),
            None => ports.extend(implicit(world, key, port).map(|routes| (port.port, routes))),
        }
    }
    Some(Routes { service: key.clone(), consumer: consumer.clone(), ports })
}

/// Requests to a Service that merely selects instances of another go there as to a subset, route or no route. (Connections
/// that are not HTTP name an address, and need no help.)
fn implicit(world: &World, key: &ServiceKey, port: &Port) -> Option<PortRoutes> {
    let target =
        service::effect::subset_of(world, key, port.port).filter(|_| speaks(Kind::HttpRoute, port.protocol))?;
    let rule = HttpRule {
        origin: ResourceKey::new(Kind::Service, key.namespace.clone(), key.name.clone()).reference(),
        hosts: Vec::new(),
        matches: Vec::new(),
        filters: Vec::new(),
        backends: vec![Backend { target, weight: 1, filters: Vec::new() }],
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    };
    Some(PortRoutes { http: vec![rule], tcp: Vec::new() })
}

/// What holds on a port for callers of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    /// The kind that takes the port.
    pub kind: Option<Kind>,
    /// Routes of that kind, oldest first.
    pub routes: Vec<Arc<Resource>>,
}

/// Callers of a namespace that has routes of its own for the port follow those alone, all others the service's.
pub(crate) fn attached(world: &World, key: &ServiceKey, port: &Port, consumer: &Name) -> Attached {
    let from = |namespace: &Name| -> Vec<Arc<Resource>> {
        let all = BY_SPECIFICITY.into_iter().flat_map(|kind| world.resources.in_namespace(kind, namespace));
        all.filter(|r| parents(&r.spec).iter().any(|p| attaches(r.key.kind, p, key, port))).cloned().collect()
    };
    let own = if *consumer == key.namespace { Vec::new() } else { from(consumer) };
    let mut routes = if own.is_empty() { from(&key.namespace) } else { own };
    let kind = BY_SPECIFICITY.into_iter().find(|kind| routes.iter().any(|r| r.key.kind == *kind));
    routes.retain(|r| Some(r.key.kind) == kind);
    routes.sort_by(|a, b| a.age().cmp(&b.age()));
    Attached { kind, routes }
}

pub(crate) fn parents(spec: &Spec) -> &[ParentRef] {
    match spec {
        Spec::HttpRoute(route) | Spec::GrpcRoute(route) => &route.parents,
        Spec::TcpRoute(route) => &route.parents,
        _ => &[],
    }
}

pub(crate) fn backend_refs(spec: &Spec) -> Vec<&BackendRef> {
    match spec {
        Spec::HttpRoute(route) | Spec::GrpcRoute(route) => route.rules.iter().flat_map(|r| &r.backends).collect(),
        Spec::TcpRoute(route) => route.rules.iter().flat_map(|r| &r.backends).collect(),
        _ => Vec::new(),
    }
}

pub(crate) fn attaches(kind: Kind, parent: &ParentRef, key: &ServiceKey, port: &Port) -> bool {
    parent.service == *key
        && parent.port.is_none_or(|p| p == port.port)
        && parent.section.as_ref().is_none_or(|s| *s == port.name)
        && speaks(kind, port.protocol)
}

/// Whether routes of the kind can do anything with the protocol.
pub(crate) fn speaks(kind: Kind, protocol: Protocol) -> bool {
    match kind {
        Kind::TcpRoute => !protocol.is_http(),
        _ => !matches!(protocol, Protocol::Tcp | Protocol::Tls),
    }
}

// === rules in their order ===

/// One match of one rule of one route: the unit of precedence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clause<'a> {
    pub resource: &'a Arc<Resource>,
    pub rule: &'a RouteRule,
    pub rule_index: usize,
    pub of_match: &'a HttpMatch,
    pub match_index: usize,
}

/// What a rule without matches has: one that fits everything.
static ANYTHING: HttpMatch = HttpMatch { path: None, method: None, headers: Vec::new(), query: Vec::new() };

/// Every clause, in the order in which they are tried (features.md TRF-02).
pub(crate) fn clauses(routes: &[Arc<Resource>]) -> Vec<Clause<'_>> {
    let mut found = Vec::new();
    for resource in routes {
        let (Spec::HttpRoute(route) | Spec::GrpcRoute(route)) = &resource.spec else { continue };
        for (rule_index, rule) in route.rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() { std::slice::from_ref(&ANYTHING) } else { &rule.matches };
            let clause = |(match_index, of_match)| Clause { resource, rule, rule_index, of_match, match_index };
            found.extend(matches.iter().enumerate().map(clause));
        }
    }
    found.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
    found
}

/// Exact path › regular expression › longest prefix › method › most headers › most query parameters › oldest route ›
/// its name › order in the document. (Gateway API leaves the place of regular expressions to us: they are written for
/// what a prefix is too coarse for, so they come before; the longer text first.)
fn precedence<'a>(clause: &Clause<'a>) -> impl Ord + use<'a> {
    let (rank, length) = match &clause.of_match.path {
        Some(PathMatch::Exact(path)) => (0, path.len()),
        Some(PathMatch::Regex(path)) => (1, path.len()),
        Some(PathMatch::ElementPrefix(path)) => (2, path.len()),
        None => (2, 1),
    };
    let of = clause.of_match;
    let specific = (Reverse(length), Reverse(of.method.is_some()), Reverse(of.headers.len()), Reverse(of.query.len()));
    (rank, specific, clause.resource.age(), clause.rule_index, clause.match_index)
}

impl Clause<'_> {
    /// `rule-0`, or `rule-0.match-1` where the rule has several.
    pub(crate) fn section(&self) -> String {
        let rule = section(self.rule.name.as_ref(), self.rule_index);
        if self.rule.matches.len() > 1 { format!("{rule}.match-{}", self.match_index) } else { rule }
    }

    /// Whether both fit exactly the same requests.
    pub(crate) fn same_requests(&self, other: &Self) -> bool {
        normal(self.of_match) == normal(other.of_match)
    }
}

/// `/` is every path, and the order of headers does not matter.
fn normal(m: &HttpMatch) -> HttpMatch {
    let mut m = m.clone();
    m.path.take_if(|p| matches!(p, PathMatch::ElementPrefix(p) if &**p == "/"));
    m.headers.sort_by(|a, b| a.key.cmp(&b.key));
    m.query.sort_by(|a, b| a.key.cmp(&b.key));
    m
}

fn port_routes(world: &World, kind: Kind, routes: &[Arc<Resource>]) -> PortRoutes {
    if kind == Kind::TcpRoute {
        return PortRoutes { http: Vec::new(), tcp: tcp_rules(world, routes) };
    }
    let http = clauses(routes).into_iter().map(|clause| HttpRule {
        origin: origin(clause.resource, &clause.section()),
        hosts: Vec::new(),
        matches: if *clause.of_match == ANYTHING { Vec::new() } else { vec![clause.of_match.clone()] },
        filters: clause.rule.filters.clone(),
        backends: clause.rule.backends.iter().map(|b| backend(world, b)).collect(),
        timeouts: clause.rule.timeouts,
        retry: clause.rule.retry.clone(),
    });
    PortRoutes { http: http.collect(), tcp: Vec::new() }
}

fn tcp_rules(world: &World, routes: &[Arc<Resource>]) -> Vec<TcpRule> {
    let mut found = Vec::new();
    for resource in routes {
        let Spec::TcpRoute(route) = &resource.spec else { continue };
        found.extend(route.rules.iter().enumerate().map(|(i, rule)| TcpRule {
            origin: origin(resource, &section(rule.name.as_ref(), i)),
            backends: rule.backends.iter().map(|b| backend(world, b)).collect(),
        }));
    }
    found
}

fn origin(resource: &Resource, section: &str) -> weft_model::ResourceRef {
    let whole = resource.key.reference();
    Name::parse(section).map_or_else(|_| whole.clone(), |section| whole.section(section))
}

fn backend(world: &World, backend: &BackendRef) -> Backend {
    let target = match (problem(world, backend), &backend.target) {
        (None, BackendTarget::Service { key, port }) => service::effect::target(world, key, *port),
        (Some(problem), _) => Target::Unresolved { reference: backend.reference().into(), why: problem.message.into() },
        (None, BackendTarget::InvalidKind { .. }) => {
            Target::Unresolved { reference: backend.reference().into(), why: "not a Service".into() }
        }
    };
    Backend { target, weight: backend.weight, filters: backend.filters.clone() }
}

/// Why a backend's share gets 500.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub reason: &'static str,
    pub message: String,
}

pub(crate) fn problem(world: &World, backend: &BackendRef) -> Option<Problem> {
    let (key, port) = match &backend.target {
        BackendTarget::Service { key, port } => (key, port),
        BackendTarget::InvalidKind { kind, .. } => {
            let message = format!("{kind} cannot be a backend; name a Service");
            return Some(Problem { reason: "InvalidKind", message });
        }
    };
    let missing = |message| Some(Problem { reason: "BackendNotFound", message });
    match service::effect::define(world, key) {
        None => missing(format!("Service/{key} does not exist; create it, or start an instance of it")),
        Some(d) if d.ports.iter().any(|p| p.port == *port) => None,
        Some(d) => missing(format!("Service/{key} has no port {port}; {}", ports_text(&d))),
    }
}

pub(crate) fn ports_text(definition: &Definition) -> String {
    let text = |p: &Port| if p.name.is_empty() { p.port.to_string() } else { format!("{} ({})", p.port, p.name) };
    let all: Vec<_> = definition.ports.iter().map(text).collect();
    if all.is_empty() { "it has no ports".into() } else { format!("it has {}", all.join(", ")) }
}
