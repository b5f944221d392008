//! Which collections a change can touch. Conservative: what is named may turn out unchanged, what is not named has not
//! changed.

use std::{collections::BTreeSet, sync::Arc};

use weft_model::{Name, ServiceKey, Uid};
use weft_snapshot::fragment::Collection;

use crate::{
    admit::{Resource, ResourceKey, Spec},
    catalog::{Instance, World},
    kind::{Kind, authorization_policy, peer_authentication, route, service, workload_entry},
};

/// One change, with what was there and what is there now.
#[derive(Debug, Clone)]
pub enum Change {
    Resource {
        before: Option<Arc<Resource>>,
        after: Option<Arc<Resource>>,
    },
    /// What was registered of a service itself.
    Service(ServiceKey),
    Instance {
        before: Option<Arc<Instance>>,
        after: Option<Arc<Instance>>,
    },
}

/// Collections by what they are of, and resources whose status may be another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    pub services: BTreeSet<ServiceKey>,
    pub endpoints: BTreeSet<ServiceKey>,
    /// For whichever consumers.
    pub routes: BTreeSet<ServiceKey>,
    pub workloads: BTreeSet<Uid>,
    pub inbounds: BTreeSet<Uid>,
    pub statuses: BTreeSet<ResourceKey>,
}

/// `world` is the one after the change.
pub fn affected(world: &World, change: &Change) -> Affected {
    let mut out = Affected::default();
    match change {
        Change::Resource { before, after } => {
            for resource in [before, after].into_iter().flatten() {
                out.resource(world, resource);
            }
        }
        Change::Service(key) => out.service_changed(world, key),
        Change::Instance { before, after } => {
            for instance in [before, after].into_iter().flatten() {
                out.instance(world, instance);
            }
            // what the status of policies looks at
            let seen = |i: &Arc<Instance>| (i.identity.clone(), i.labels.clone(), i.service.clone(), i.ports.clone());
            if before.as_ref().map(seen) != after.as_ref().map(seen) {
                out.policies_of(world, None);
            }
        }
    }
    out
}

// === impl Affected ===

impl Affected {
    pub fn touches(&self, collection: &Collection) -> bool {
        match collection {
            Collection::Service(key) => self.services.contains(key),
            Collection::Endpoints(key) => self.endpoints.contains(key),
            Collection::Routes { service, .. } => self.routes.contains(service),
            Collection::Workload(uid) => self.workloads.contains(uid),
            Collection::Inbound(uid) => self.inbounds.contains(uid),
            Collection::Bundle(_) | Collection::Revocations => false,
        }
    }

    pub fn extend(&mut self, other: Self) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.routes.extend(other.routes);
        self.workloads.extend(other.workloads);
        self.inbounds.extend(other.inbounds);
        self.statuses.extend(other.statuses);
    }

    fn resource(&mut self, world: &World, resource: &Arc<Resource>) {
        let key = &resource.key;
        self.statuses.insert(key.clone());
        match &resource.spec {
            Spec::Service(service) => {
                let name = ServiceKey::new(key.namespace.clone(), key.name.clone());
                self.service_changed(world, &name);
                // whoever it selects, or selected, may answer for other ports, and for other services
                if !service.selector.0.is_empty() {
                    for instance in world.catalog.instances_in(&key.namespace) {
                        if service.selector.matches(&instance.labels) {
                            self.workloads.insert(instance.uid.clone());
                            self.inbounds.insert(instance.uid.clone());
                        }
                    }
                    self.policies_of(world, None);
                }
                for (entry_of, entry) in world.resources.workload_entries_in(&key.namespace) {
                    self.statuses.insert(entry_of.key.clone());
                    self.entry(world, &key.namespace, entry);
                }
            }
            Spec::WorkloadEntry(entry) => {
                self.entry(world, &key.namespace, entry);
                self.modes_by_label(world, Some(&key.namespace));
            }
            Spec::HttpRoute(_) | Spec::GrpcRoute(_) | Spec::TcpRoute(_) => {
                for parent in route::effect::parents(&resource.spec) {
                    self.routes.insert(parent.service.clone());
                    self.routes_on(world, &parent.service);
                }
            }
            Spec::AuthorizationPolicy(policy) => {
                for instance in self.reach(world, &key.namespace) {
                    let root = &world.mesh.root_namespace;
                    let namespace = &instance.service.namespace;
                    if authorization_policy::effect::in_scope(root, key, policy, namespace, &instance.labels) {
                        self.inbounds.insert(instance.uid.clone());
                        // who is guarded is not sent plaintext
                        self.mode_of(world, &instance);
                    }
                }
            }
            Spec::PeerAuthentication(policy) => {
                for instance in self.reach(world, &key.namespace) {
                    let namespace = &instance.service.namespace;
                    if peer_authentication::effect::selects(world, key, policy, namespace, &instance.labels) {
                        self.mode_of(world, &instance);
                    }
                }
                self.entries_by_mode(world, Some(&key.namespace).filter(|ns| **ns != world.mesh.root_namespace));
                let of_kind = world.resources.in_namespace(Kind::PeerAuthentication, &key.namespace);
                self.statuses.extend(of_kind.map(|r| r.key.clone()));
            }
            Spec::MeshDefaults(_) => {
                for instance in world.catalog.instances() {
                    self.mode_of(world, instance);
                }
                self.entries_by_mode(world, None);
            }
        }
    }

    /// The instances that a policy of the namespace can be about.
    fn reach(&self, world: &World, namespace: &Name) -> Vec<Arc<Instance>> {
        if *namespace == world.mesh.root_namespace {
            world.catalog.instances().cloned().collect()
        } else {
            world.catalog.instances_in(namespace).cloned().collect()
        }
    }

    /// Its mTLS mode may be another: others reach it by other means.
    fn mode_of(&mut self, world: &World, instance: &Instance) {
        self.inbounds.insert(instance.uid.clone());
        self.endpoints.extend(service::effect::services_of(world, instance));
    }

    fn entries_by_mode(&mut self, world: &World, namespace: Option<&Name>) {
        for resource in world.resources.of_kind(Kind::WorkloadEntry) {
            if let Spec::WorkloadEntry(entry) = &resource.spec
                && namespace.is_none_or(|ns| *ns == resource.key.namespace)
            {
                self.endpoints.extend(workload_entry::effect::services_of(world, &resource.key.namespace, entry));
            }
        }
    }

    /// Every service that an entry can be, or have been, an instance of.
    fn entry(&mut self, world: &World, namespace: &Name, entry: &workload_entry::WorkloadEntry) {
        let by_name = entry.service.clone().map(|s| ServiceKey::new(namespace.clone(), s));
        let by_label = workload_entry::effect::app_service(namespace, &entry.labels);
        let services: BTreeSet<_> = workload_entry::effect::services_of(world, namespace, entry)
            .into_iter()
            .chain(by_name)
            .chain(by_label)
            .collect();
        for key in services {
            self.members_changed(world, &key);
        }
    }

    fn instance(&mut self, world: &World, instance: &Instance) {
        self.workloads.insert(instance.uid.clone());
        self.inbounds.insert(instance.uid.clone());
        for key in service::effect::services_of(world, instance) {
            self.members_changed(world, &key);
        }
    }

    /// Who answers for a service changed. Where nobody defines it, that changes what it is.
    fn members_changed(&mut self, world: &World, key: &ServiceKey) {
        let resource = world.resources.service(key);
        if resource.is_some() || world.catalog.service(key).is_some() {
            self.endpoints.insert(key.clone());
            // a selection is routed to as a subset of what it selects
            if resource.is_some_and(|s| !s.selector.0.is_empty()) {
                self.routes_on(world, key);
                self.routes.insert(key.clone());
            }
        } else {
            self.service_changed(world, key);
        }
    }

    /// A service is another: its ports, or whether it exists.
    fn service_changed(&mut self, world: &World, key: &ServiceKey) {
        self.services.insert(key.clone());
        self.endpoints.insert(key.clone());
        self.routes.insert(key.clone());
        let mut selections = BTreeSet::from([key.clone()]);
        for (uid, instance) in service::effect::members(world, key) {
            selections.extend(service::effect::services_of(world, &instance));
            self.workloads.insert(uid.clone());
            self.inbounds.insert(uid);
        }
        for key in selections {
            self.routes_on(world, &key);
            self.routes.insert(key);
        }
        self.policies_of(world, Some(key));
    }

    /// Routes that attach to the service or send to it: their status, and the services whose callers they route.
    fn routes_on(&mut self, world: &World, key: &ServiceKey) {
        for kind in [Kind::GrpcRoute, Kind::HttpRoute, Kind::TcpRoute] {
            for resource in world.resources.of_kind(kind) {
                let parents = route::effect::parents(&resource.spec);
                let sends = route::effect::backend_refs(&resource.spec)
                    .into_iter()
                    .any(|b| matches!(&b.target, route::BackendTarget::Service { key: to, .. } if to == key));
                if sends {
                    self.routes.extend(parents.iter().map(|p| p.service.clone()));
                }
                if sends || parents.iter().any(|p| p.service == *key) {
                    self.statuses.insert(resource.key.clone());
                }
            }
        }
    }

    /// The status of policies that name the service, or anything in the catalog.
    fn policies_of(&mut self, world: &World, key: Option<&ServiceKey>) {
        for resource in world.resources.of_kind(Kind::AuthorizationPolicy) {
            let Spec::AuthorizationPolicy(policy) = &resource.spec else { continue };
            let names = |key: &ServiceKey| policy.targets.iter().any(|t| t.service == *key);
            let looks = !policy.accounts.is_empty()
                || !policy.http_rules.is_empty()
                || !policy.targets.is_empty()
                || !policy.selector.0.is_empty();
            if key.map_or(looks, |key| names(key) || !policy.http_rules.is_empty()) {
                self.statuses.insert(resource.key.clone());
            }
        }
        if key.is_none() {
            self.modes_by_label(world, None);
        }
    }

    /// The status of what sets the mode of workloads by their labels.
    fn modes_by_label(&mut self, world: &World, namespace: Option<&Name>) {
        for resource in world.resources.of_kind(Kind::PeerAuthentication) {
            if let Spec::PeerAuthentication(policy) = &resource.spec
                && !policy.selector.0.is_empty()
                && namespace.is_none_or(|ns| *ns == resource.key.namespace)
            {
                self.statuses.insert(resource.key.clone());
            }
        }
    }
}
