//! The defaults in force.

use weft_snapshot::fragment::{DefaultAction, MtlsMode};

use super::MeshDefaults;
use crate::{admit::ResourceKey, catalog::World};

pub(crate) fn authorization(world: &World) -> DefaultAction {
    world.resources.mesh_defaults().map_or(MeshDefaults::AUTHORIZATION, |(_, d)| d.authorization)
}

/// The mode, and the resource that set it, if one did.
pub(crate) fn mtls(world: &World) -> (MtlsMode, Option<&ResourceKey>) {
    match world.resources.mesh_defaults() {
        Some((resource, MeshDefaults { mtls: Some(mode), .. })) => (*mode, Some(&resource.key)),
        _ => (world.mesh.mtls, None),
    }
}
