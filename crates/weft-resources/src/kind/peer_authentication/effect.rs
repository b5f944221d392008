//! Which mode holds for a workload (features.md SEC-12): workload before namespace before mesh, the oldest of equals;
//! what is unset inherits.

use std::{collections::BTreeMap, sync::Arc};

use weft_model::{Labels, Name};
use weft_snapshot::fragment::MtlsMode;

use super::PeerAuthentication;
use crate::{
    admit::{Resource, ResourceKey},
    catalog::{Instance, World},
    kind::mesh_defaults,
};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Modes {
    pub mode: MtlsMode,
    pub ports: BTreeMap<u16, MtlsMode>,
    /// Who set the mode.
    pub origin: Option<ResourceKey>,
}

pub(crate) fn modes(world: &World, instance: &Instance) -> Modes {
    let namespace = &instance.service.namespace;
    let workload = oldest(world, namespace, |p| !p.selector.0.is_empty() && p.selector.matches(&instance.labels));
    let whole = |p: &PeerAuthentication| p.selector.0.is_empty();
    let in_namespace = oldest(world, namespace, whole);
    let in_mesh = oldest(world, &world.mesh.root_namespace, whole);
    let mut mode = None;
    for (resource, policy) in [workload, in_namespace, in_mesh].into_iter().flatten() {
        if let (None, Some(found)) = (&mode, policy.mode) {
            mode = Some((found, Some(resource.key.clone())));
        }
    }
    let (mode, origin) = mode.unwrap_or_else(|| {
        let (mode, key) = mesh_defaults::effect::mtls(world);
        (mode, key.cloned())
    });
    let ports = workload.into_iter().flat_map(|(_, p)| &p.ports);
    let ports = ports.filter_map(|(port, mode)| Some((*port, (*mode)?))).collect();
    Modes { mode, ports, origin }
}

type Found<'a> = (&'a Arc<Resource>, &'a PeerAuthentication);

fn oldest<'a>(world: &'a World, namespace: &Name, which: impl Fn(&PeerAuthentication) -> bool) -> Option<Found<'a>> {
    let all = world.resources.peer_authentications_in(namespace).filter(|(_, p)| which(p));
    all.min_by(|(a, _), (b, _)| a.age().cmp(&b.age()))
}

/// Whether it may hold for workloads with these labels in this namespace.
pub(crate) fn selects(
    world: &World,
    key: &ResourceKey,
    policy: &PeerAuthentication,
    namespace: &Name,
    labels: &Labels,
) -> bool {
    let mesh_wide = key.namespace == world.mesh.root_namespace && policy.selector.0.is_empty();
    mesh_wide || (key.namespace == *namespace && policy.selector.matches(labels))
}

/// The older policy of the same scope, which holds in its place.
pub(crate) fn overruled_by(world: &World, key: &ResourceKey, policy: &PeerAuthentication) -> Option<ResourceKey> {
    let same_scope = |p: &PeerAuthentication| p.selector == policy.selector;
    let (first, _) = oldest(world, &key.namespace, same_scope)?;
    (first.key != *key).then(|| first.key.clone())
}
