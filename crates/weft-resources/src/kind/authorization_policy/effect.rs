//! Which policies hold for a workload, and as what (features.md SEC-21).

use weft_model::{Labels, Name};
use weft_snapshot::fragment::{Action, Policy};

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
            rules: policy.rules.clone(),
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
