//! What we have to say about a resource: conditions in Gateway API's form, as plain values.
//!
//! Status follows from the world alone and never triggers a compile. What only the control plane can know (which proxies
//! acknowledged) it adds itself.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_model::{Selector, ServiceKey, SpiffeId, Wall};

use crate::{
    admit::{Resource, ResourceKey, Spec},
    catalog::{Instance, World},
    kind::{
        Kind,
        authorization_policy::{self, AuthorizationPolicy},
        peer_authentication::{self, PeerAuthentication},
        route::{self, ParentRef, effect::Clause},
        service, workload_entry,
    },
    violation::Violations,
};

/// Who speaks in the status of routes.
pub const CONTROLLER: &str = "weft.dev/mesh-controller";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub name: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// Routes: per parent, as written.
    Parents(Vec<(Value, Vec<Condition>)>),
    /// Everything else.
    Conditions(Vec<Condition>),
}

/// `None` when there is no such resource.
pub fn status(world: &World, key: &ResourceKey) -> Option<Status> {
    let resource = world.resources.get(key)?;
    Some(match &resource.spec {
        Spec::HttpRoute(_) | Spec::GrpcRoute(_) | Spec::TcpRoute(_) => {
            let parents = route::effect::parents(&resource.spec).iter();
            Status::Parents(parents.map(|p| (p.written.clone(), route_conditions(world, resource, p))).collect())
        }
        Spec::AuthorizationPolicy(policy) => Status::Conditions(policy_conditions(world, resource, policy)),
        Spec::PeerAuthentication(policy) => Status::Conditions(peer_conditions(world, resource, policy)),
        Spec::WorkloadEntry(entry) => {
            let services = workload_entry::effect::services_of(world, &key.namespace, entry);
            let names: Vec<_> = services.iter().map(|s| format!("Service/{s}")).collect();
            let condition = if names.is_empty() {
                let message = "no Service takes it; give it labels that a Service selects, or the label `app`";
                Condition::no("ResolvedRefs", "ServiceNotFound", message)
            } else {
                Condition::yes("ResolvedRefs", "ResolvedRefs", format!("an instance of {}", names.join(", ")))
            };
            Status::Conditions(vec![accepted(), condition])
        }
        Spec::Service(_) | Spec::MeshDefaults(_) => Status::Conditions(vec![accepted()]),
    })
}

/// For a resource that came from where it cannot be refused: why it has no effect.
pub fn refused(violations: &Violations) -> Condition {
    let reason = if violations.only_unsupported() { "UnsupportedValue" } else { "Invalid" };
    Condition::no("Accepted", reason, violations.to_string())
}

// === impl Condition ===

impl Condition {
    pub fn yes(name: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { name, holds: true, reason, message: message.into() }
    }

    pub fn no(name: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { name, holds: false, reason, message: message.into() }
    }

    /// `before`: the conditions as they were, whose transition times are kept where nothing changed.
    fn to_json(&self, generation: u64, before: Option<&Value>, now: Wall) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let old = before.and_then(Value::as_array).into_iter().flatten().find(|c| c["type"] == self.name);
        let since = old.filter(|c| c["status"] == status).and_then(|c| c["lastTransitionTime"].as_str());
        json!({
            "type": self.name,
            "status": status,
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
            "lastTransitionTime": since.map_or_else(|| now.rfc3339(), Into::into),
        })
    }
}

// === impl Status ===

impl Status {
    /// The `status` of the document. `before` is the one it had.
    pub fn to_json(&self, generation: u64, before: Option<&Value>, now: Wall) -> Value {
        let list = |conditions: &[Condition], before: Option<&Value>| -> Value {
            conditions.iter().map(|c| c.to_json(generation, before, now)).collect()
        };
        match self {
            Self::Conditions(conditions) => {
                json!({ "conditions": list(conditions, before.and_then(|b| b.get("conditions"))) })
            }
            Self::Parents(parents) => {
                let parent = |(written, conditions): &(Value, Vec<Condition>)| {
                    let old = before.and_then(|b| b.get("parents")).and_then(Value::as_array);
                    let old = old.into_iter().flatten().find(|p| p["parentRef"] == *written);
                    let conditions = list(conditions, old.and_then(|p| p.get("conditions")));
                    json!({ "parentRef": written, "controllerName": CONTROLLER, "conditions": conditions })
                };
                json!({ "parents": parents.iter().map(parent).collect::<Vec<_>>() })
            }
        }
    }

    /// Every condition, of whichever parent.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let (parents, own) = match self {
            Self::Parents(parents) => (parents.as_slice(), [].as_slice()),
            Self::Conditions(conditions) => ([].as_slice(), conditions.as_slice()),
        };
        parents.iter().flat_map(|(_, conditions)| conditions).chain(own)
    }
}

fn accepted() -> Condition {
    Condition::yes("Accepted", "Accepted", "")
}

// === routes ===

fn route_conditions(world: &World, resource: &Arc<Resource>, parent: &ParentRef) -> Vec<Condition> {
    let mut conditions = vec![route_accepted(world, resource, parent), resolved_refs(world, &resource.spec)];
    conditions.extend(shadowed(world, resource, parent));
    conditions
}

fn route_accepted(world: &World, resource: &Resource, parent: &ParentRef) -> Condition {
    let key = &parent.service;
    let kind = resource.key.kind;
    let lost = |message| Condition::no("Accepted", "NoMatchingParent", message);
    let Some(definition) = service::effect::define(world, key) else {
        return lost(format!("Service/{key} does not exist; create it, or start an instance of it"));
    };
    let named = |p: &&service::Port| {
        parent.port.is_none_or(|n| n == p.port) && parent.section.as_ref().is_none_or(|s| *s == p.name)
    };
    let ports: Vec<_> = definition.ports.iter().filter(named).collect();
    if ports.is_empty() {
        let wanted = match (&parent.section, parent.port) {
            (Some(section), _) => format!("no port named `{section}`"),
            (None, Some(port)) => format!("no port {port}"),
            (None, None) => "no port to attach to".into(),
        };
        return lost(format!("Service/{key} has {wanted}; {}", route::effect::ports_text(&definition)));
    }
    let able: Vec<_> = ports.iter().filter(|p| route::effect::speaks(kind, p.protocol)).collect();
    if able.is_empty() {
        let text: Vec<_> = ports.iter().map(|p| format!("port {} is declared {}", p.port, p.protocol)).collect();
        let next =
            if kind == Kind::TcpRoute { "attach an HTTPRoute" } else { "attach a TCPRoute, or change appProtocol" };
        return lost(format!("Service/{key}: {}; {next}", text.join(", ")));
    }
    // the most specific kind takes a port whole
    let taken = |p: &&service::Port| {
        let attached = route::effect::attached(world, key, p, &resource.key.namespace);
        let by = attached.kind.filter(|by| *by != kind)?;
        attached.routes.first().map(|r| (p.port, by, r.key.clone()))
    };
    let taken: Vec<_> = able.iter().filter_map(|p| taken(p)).collect();
    let text: Vec<_> = taken
        .iter()
        .map(|(port, by, first)| format!("port {port} goes by {first}, since {by} comes before {kind}"))
        .collect();
    if taken.len() == able.len() {
        return Condition::no("Accepted", "Conflicted", text.join("; "));
    }
    Condition::yes("Accepted", "Accepted", text.join("; "))
}

fn resolved_refs(world: &World, spec: &Spec) -> Condition {
    let problem = |b| route::effect::problem(world, b).map(|p| (b, p));
    let problems: Vec<_> = route::effect::backend_refs(spec).into_iter().filter_map(problem).collect();
    let Some((_, first)) = problems.first() else {
        return Condition::yes("ResolvedRefs", "ResolvedRefs", "");
    };
    let share = if matches!(spec, Spec::TcpRoute(_)) { "refused" } else { "answered with 500" };
    let text = problems.iter().map(|(b, p)| format!("{}: {}; its share is {share}", b.path, p.message));
    Condition::no("ResolvedRefs", first.reason, text.collect::<Vec<_>>().join("\n"))
}

/// Rules of which no request can come to a match, because an earlier one fits exactly the same requests.
fn shadowed(world: &World, resource: &Arc<Resource>, parent: &ParentRef) -> Option<Condition> {
    let definition = service::effect::define(world, &parent.service)?;
    let mut lost = Vec::new();
    for port in &definition.ports {
        if !route::effect::attaches(resource.key.kind, parent, &parent.service, port) {
            continue;
        }
        let attached = route::effect::attached(world, &parent.service, port, &resource.key.namespace);
        if attached.kind != Some(resource.key.kind) {
            continue;
        }
        let number = port.port;
        if resource.key.kind == Kind::TcpRoute {
            let first = attached.routes.first().filter(|first| first.key != resource.key);
            lost.extend(
                first.map(|first| format!("port {number}: connections go by {}, {}", first.key, why(first, resource))),
            );
            continue;
        }
        let clauses = route::effect::clauses(&attached.routes);
        let of_this = |c: &&Clause<'_>| c.resource.key == resource.key;
        for clause in clauses.iter().filter(of_this) {
            let winner = clauses.iter().take_while(|c| !same_clause(c, clause)).find(|c| c.same_requests(clause));
            lost.extend(winner.map(|winner| {
                let (section, by) = (clause.section(), format!("{}#{}", winner.resource.key, winner.section()));
                format!("port {number}: the requests of {section} go by {by}, {}", why(winner.resource, resource))
            }));
        }
    }
    (!lost.is_empty()).then(|| Condition::yes("Conflicted", "RuleShadowed", lost.join("\n")))
}

fn why(winner: &Resource, loser: &Resource) -> &'static str {
    let born = |r: &Resource| (r.metadata.created, r.metadata.creation_timestamp);
    if winner.key == loser.key {
        "which comes first"
    } else if born(winner) == born(loser) {
        "which is as old and comes first by name"
    } else {
        "which is older"
    }
}

fn same_clause(a: &Clause<'_>, b: &Clause<'_>) -> bool {
    a.resource.key == b.resource.key && (a.rule_index, a.match_index) == (b.rule_index, b.match_index)
}

// === policies ===

fn policy_conditions(world: &World, resource: &Resource, policy: &AuthorizationPolicy) -> Vec<Condition> {
    let missing: Vec<_> =
        policy.targets.iter().filter(|t| service::effect::define(world, &t.service).is_none()).collect();
    let targets = missing
        .iter()
        .map(|t| format!("{}: Service/{} does not exist; the policy selects nothing until it does", t.path, t.service));
    let targets: Vec<_> = targets.collect();
    let accepted = if !missing.is_empty() && missing.len() == policy.targets.len() {
        Condition::no("Accepted", "TargetNotFound", targets.join("\n"))
    } else {
        accepted()
    };
    let accounts = policy.accounts.iter().filter(|a| {
        let id = SpiffeId::workload(&world.mesh.trust_domain, a.namespace.as_str(), a.account.as_str());
        id.is_ok_and(|id| !world.catalog.has_identity(&id))
    });
    let accounts: Vec<_> = accounts
        .map(|a| {
            format!("{}: nothing runs as service account {}/{}, so this matches nobody", a.path, a.namespace, a.account)
        })
        .collect();
    let mut of_namespace = candidates(world, &resource.key);
    let about = |i: &Arc<Instance>| authorization_policy::effect::selects(world, &resource.key, policy, i);
    let selected = (!policy.selector.0.is_empty() && !of_namespace.any(about)).then(|| {
        let effect = match policy.action {
            weft_snapshot::fragment::Action::Deny => "this denies nothing",
            _ => "this policy holds for nothing",
        };
        selects_nothing(world, &resource.key, &policy.selector, effect)
    });
    let reason = match (targets.is_empty(), &selected) {
        (false, _) => "TargetNotFound",
        (true, Some(_)) => "WorkloadNotFound",
        (true, None) => "SourceNotFound",
    };
    let unresolved: Vec<_> = targets.into_iter().chain(selected).chain(accounts).collect();
    let resolved = if unresolved.is_empty() {
        Condition::yes("ResolvedRefs", "ResolvedRefs", "")
    } else {
        Condition::no("ResolvedRefs", reason, unresolved.join("\n"))
    };
    let mut conditions = vec![accepted, resolved];
    conditions.extend(http_on_tcp(world, resource, policy));
    conditions
}

/// The instances that a policy can be about, whatever it selects of them.
fn candidates<'a>(world: &'a World, key: &'a ResourceKey) -> Box<dyn Iterator<Item = &'a Arc<Instance>> + 'a> {
    if key.namespace == world.mesh.root_namespace {
        Box::new(world.catalog.instances())
    } else {
        Box::new(world.catalog.instances_in(&key.namespace))
    }
}

/// A typing error in a selector opens a door without a word: it has to be told here.
fn selects_nothing(world: &World, key: &ResourceKey, selector: &Selector, effect: &str) -> String {
    let labels: Vec<_> = selector.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mesh_wide = key.kind == Kind::AuthorizationPolicy && key.namespace == world.mesh.root_namespace;
    let place = if mesh_wide { "the mesh".into() } else { format!("namespace {}", key.namespace) };
    format!("spec.selector: no workload in {place} has the labels {}, so {effect}", labels.join(", "))
}

/// features.md SEC-22: an HTTP condition cannot be asked of a port that carries bytes.
fn http_on_tcp(world: &World, resource: &Resource, policy: &AuthorizationPolicy) -> Option<Condition> {
    if policy.http_rules.is_empty() {
        return None;
    }
    let mut tcp: std::collections::BTreeSet<(ServiceKey, u16)> = std::collections::BTreeSet::new();
    for instance in candidates(world, &resource.key) {
        if !authorization_policy::effect::selects(world, &resource.key, policy, instance) {
            continue;
        }
        let Some(definition) = service::effect::define(world, &instance.service) else { continue };
        for listen in service::effect::listens(&definition, instance) {
            let asked = policy.http_rules.iter().any(|r| r.ports.is_empty() || r.ports.contains(&listen.app.port()));
            if asked && !route::effect::speaks(Kind::HttpRoute, listen.protocol) {
                tcp.insert((instance.service.clone(), listen.service_port));
            }
        }
    }
    let effect = match policy.action {
        weft_snapshot::fragment::Action::Allow => {
            "rules that ask for hosts, methods, paths or headers never match there"
        }
        _ => "hosts, methods, paths and headers are not asked for there, so that these rules match more",
    };
    let ports: Vec<_> = tcp.iter().map(|(service, port)| format!("Service/{service}:{port}")).collect();
    let message = || format!("{} carries TCP: {effect}", ports.join(", "));
    (!ports.is_empty()).then(|| Condition::yes("PartiallyInvalid", "HttpRuleOnTcpPort", message()))
}

fn peer_conditions(world: &World, resource: &Resource, policy: &PeerAuthentication) -> Vec<Condition> {
    let key = &resource.key;
    let accepted = match peer_authentication::effect::overruled_by(world, key, policy) {
        Some(by) => {
            let message = format!("{by} selects the same workloads and is older, so it holds; remove one of them");
            Condition::no("Accepted", "Conflicted", message)
        }
        None => accepted(),
    };
    if policy.selector.0.is_empty() {
        return vec![accepted];
    }
    let mut labels = world
        .catalog
        .instances_in(&key.namespace)
        .map(|i| &i.labels)
        .chain(world.resources.workload_entries_in(&key.namespace).map(|(_, entry)| &entry.labels));
    let resolved = if labels.any(|l| policy.selector.matches(l)) {
        Condition::yes("ResolvedRefs", "ResolvedRefs", "")
    } else {
        let message = selects_nothing(world, key, &policy.selector, "this mode holds for nothing");
        Condition::no("ResolvedRefs", "WorkloadNotFound", message)
    };
    vec![accepted, resolved]
}
