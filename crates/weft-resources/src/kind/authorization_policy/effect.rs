//! Which policies hold for a workload, and as what (features.md SEC-21).

use weft_model::{Labels, Name, TrustDomain};
use weft_snapshot::fragment::{Action, ConditionKey, Policy, Rule, StringMatch, Values};

use super::AuthorizationPolicy;
use crate::{
    admit::ResourceKey,
    catalog::{Instance, World},
    kind::service,
};

/// In the order of evaluation, then by name: DENY, ALLOW, AUDIT.
pub(crate) fn policies(world: &World, instance: &Instance) -> Vec<Policy> {
    let namespace = &instance.service.namespace;
    let root = &world.mesh.root_namespace;
    let mut scopes = vec![root];
    if namespace != root {
        scopes.push(namespace);
    }
    let mut found: Vec<Policy> = scopes
        .into_iter()
        .flat_map(|scope| world.resources.policies_in(scope))
        .filter(|(resource, policy)| selects(world, &resource.key, policy, instance))
        .map(|(resource, policy)| Policy {
            origin: resource.key.reference(),
            action: policy.action,
            rules: policy.rules.iter().map(|rule| at_home(rule.clone(), &world.mesh.trust_domain)).collect(),
        })
        .collect();
    let order = |action| match action {
        Action::Deny => 0,
        Action::Allow => 1,
        Action::Audit => 2,
    };
    found.sort_by(|a, b| (order(a.action), &a.origin).cmp(&(order(b.action), &b.origin)));
    found
}

/// The trust domain of Istio's examples means the mesh's own, whatever that is called, as it does there.
const LOCAL: &str = "cluster.local";

fn at_home(mut rule: Rule, own: &TrustDomain) -> Rule {
    for source in &mut rule.from {
        principals(&mut source.principals, own);
        domains(&mut source.trust_domains, own);
    }
    for condition in &mut rule.when {
        match condition.key {
            ConditionKey::SourcePrincipal => principals(&mut condition.values, own),
            ConditionKey::SourceTrustDomain => domains(&mut condition.values, own),
            _ => {}
        }
    }
    rule
}

fn principals(values: &mut Values, own: &TrustDomain) {
    for value in values.any.iter_mut().chain(&mut values.none) {
        if let StringMatch::Exact(text) | StringMatch::Prefix(text) = value
            && let Some(rest) = text.strip_prefix(LOCAL).filter(|rest| rest.starts_with('/'))
        {
            *text = format!("{own}{rest}").into();
        }
    }
}

fn domains(values: &mut Values, own: &TrustDomain) {
    for value in values.any.iter_mut().chain(&mut values.none) {
        if *value == StringMatch::Exact(LOCAL.into()) {
            *value = StringMatch::Exact(own.as_str().into());
        }
    }
}

pub(crate) fn selects(world: &World, key: &ResourceKey, policy: &AuthorizationPolicy, instance: &Instance) -> bool {
    if !in_scope(&world.mesh.root_namespace, key, policy, &instance.service.namespace, &instance.labels) {
        return false;
    }
    policy.targets.is_empty() || {
        let services = service::effect::services_of(world, instance);
        policy.targets.iter().any(|target| services.contains(&target.service))
    }
}

/// Whether namespace and selector fit; targets aside.
pub(crate) fn in_scope(
    root: &Name,
    key: &ResourceKey,
    policy: &AuthorizationPolicy,
    namespace: &Name,
    labels: &Labels,
) -> bool {
    (key.namespace == *root || key.namespace == *namespace) && policy.selector.matches(labels)
}
