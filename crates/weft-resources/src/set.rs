//! All resources of a mesh.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use weft_model::{Name, ServiceKey};

use crate::{
    admit::{Resource, ResourceKey, Spec},
    kind::{
        Kind, authorization_policy::AuthorizationPolicy, mesh_defaults::MeshDefaults,
        peer_authentication::PeerAuthentication, service::Service, workload_entry::WorkloadEntry,
    },
};

/// Resources by kind, namespace and name. What was created first is told by each resource itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceSet {
    by_key: BTreeMap<ResourceKey, Arc<Resource>>,
}

// === impl ResourceSet ===

impl ResourceSet {
    /// Puts it in, and returns what was there under the same key.
    pub fn insert(&mut self, resource: impl Into<Arc<Resource>>) -> Option<Arc<Resource>> {
        let resource = resource.into();
        self.by_key.insert(resource.key.clone(), resource)
    }

    pub fn remove(&mut self, key: &ResourceKey) -> Option<Arc<Resource>> {
        self.by_key.remove(key)
    }

    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.by_key.get(key)
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// In the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_key.values()
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        self.between(kind, None)
    }

    pub fn in_namespace(&self, kind: Kind, namespace: &Name) -> impl Iterator<Item = &Arc<Resource>> + use<'_> {
        self.between(kind, Some(namespace.clone()))
    }

    fn between(&self, kind: Kind, namespace: Option<Name>) -> impl Iterator<Item = &Arc<Resource>> + use<'_> {
        // " " is the least name there is: names are not empty, and control characters are none
        let least = least_name();
        let from = ResourceKey::new(kind, namespace.clone().unwrap_or_else(|| least.clone()), least);
        self.by_key
            .range((Bound::Included(from), Bound::Unbounded))
            .map(|(_, resource)| resource)
            .take_while(move |r| r.key.kind == kind && namespace.as_ref().is_none_or(|ns| r.key.namespace == *ns))
    }

    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&Service> {
        let key = ResourceKey::new(Kind::Service, key.namespace.clone(), key.name.clone());
        match &self.by_key.get(&key)?.spec {
            Spec::Service(service) => Some(service),
            _ => None,
        }
    }

    pub(crate) fn services_in(&self, ns: &Name) -> impl Iterator<Item = (ServiceKey, &Service)> + use<'_> {
        self.in_namespace(Kind::Service, ns).filter_map(|r| match &r.spec {
            Spec::Service(service) => Some((ServiceKey::new(r.key.namespace.clone(), r.key.name.clone()), service)),
            _ => None,
        })
    }

    pub(crate) fn workload_entries_in(
        &self,
        ns: &Name,
    ) -> impl Iterator<Item = (&Arc<Resource>, &WorkloadEntry)> + use<'_> {
        self.in_namespace(Kind::WorkloadEntry, ns).filter_map(|r| match &r.spec {
            Spec::WorkloadEntry(entry) => Some((r, entry)),
            _ => None,
        })
    }

    pub(crate) fn policies_in(
        &self,
        ns: &Name,
    ) -> impl Iterator<Item = (&Arc<Resource>, &AuthorizationPolicy)> + use<'_> {
        self.in_namespace(Kind::AuthorizationPolicy, ns).filter_map(|r| match &r.spec {
            Spec::AuthorizationPolicy(policy) => Some((r, policy)),
            _ => None,
        })
    }

    pub(crate) fn peer_authentications_in(
        &self,
        ns: &Name,
    ) -> impl Iterator<Item = (&Arc<Resource>, &PeerAuthentication)> + use<'_> {
        self.in_namespace(Kind::PeerAuthentication, ns).filter_map(|r| match &r.spec {
            Spec::PeerAuthentication(policy) => Some((r, policy)),
            _ => None,
        })
    }

    pub(crate) fn mesh_defaults(&self) -> Option<(&Arc<Resource>, &MeshDefaults)> {
        self.of_kind(Kind::MeshDefaults).find_map(|r| match &r.spec {
            Spec::MeshDefaults(defaults) => Some((r, defaults)),
            _ => None,
        })
    }
}

#[expect(clippy::expect_used, reason = "a constant of ours that is a name")]
fn least_name() -> Name {
    Name::parse(" ").expect("a space is a name")
}
