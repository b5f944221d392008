//! What a replica knows of the registry: the fold of everything committed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::de::DeserializeOwned;
use weft_model::{Health, Name, Protocol, Revision, ServiceKey};
use weft_store::{Change, Entry, Range};

use crate::{
    keys::{self, Key},
    object::{Check, CheckId, Holder, Instance, InstanceId, Lease, LeaseState, Node, Stored},
    value::{self, ValueError},
};

type Checks = BTreeMap<Name, Stored<Check>>;

/// The registry at one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    revision: Revision,
    nodes: BTreeMap<Name, Stored<Node>>,
    instances: BTreeMap<InstanceId, Stored<Instance>>,
    node_checks: BTreeMap<Name, Checks>,
    instance_checks: BTreeMap<InstanceId, Checks>,
    leases: BTreeMap<Holder, Stored<Lease>>,
    // indices
    by_service: BTreeMap<ServiceKey, BTreeSet<InstanceId>>,
    by_node: BTreeMap<Name, BTreeSet<InstanceId>>,
    by_holder: BTreeMap<Holder, BTreeSet<InstanceId>>,
}

/// What a fold changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose instances, or their health, may differ.
    pub services: BTreeSet<ServiceKey>,
    pub instances: BTreeSet<InstanceId>,
    pub nodes: BTreeSet<Name>,
    pub leases: BTreeSet<Holder>,
    pub checks: BTreeSet<CheckId>,
}

/// A service as its instances declare it together. Where they contradict each other the oldest wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    pub key: ServiceKey,
    /// By port number.
    pub ports: BTreeMap<u16, MergedPort>,
    pub conflicts: Vec<Conflict>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// The instance that declared it first.
    pub from: InstanceId,
}

/// A newer instance that contradicts an older one: it is `Conflicted`, and this port of it gets no traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub instance: InstanceId,
    pub port: u16,
    pub with: InstanceId,
    pub what: String,
}

// === impl View ===

impl View {
    /// From a read of everything under [`keys::ROOT`] (or more).
    pub fn load(range: &Range) -> Result<Self, ValueError> {
        let mut view = Self::default();
        for (key, v) in &range.items {
            let change = Change { key: key.clone(), before: None, after: Some(v.clone()) };
            view.change(&change, &mut Touched::default())?;
        }
        view.revision = range.revision;
        Ok(view)
    }

    /// Takes in one committed transaction. On an error the view must not be used further: a value is unreadable.
    pub fn fold(&mut self, entry: &Entry) -> Result<Touched, ValueError> {
        debug_assert!(entry.revision > self.revision, "folded {} into a view at {}", entry.revision, self.revision);
        let mut touched = Touched::default();
        for change in &entry.changes {
            self.change(change, &mut touched)?;
        }
        self.revision = entry.revision;
        Ok(touched)
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn node(&self, name: &Name) -> Option<&Stored<Node>> {
        self.nodes.get(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Stored<Node>> {
        self.nodes.values()
    }

    pub fn instance(&self, id: &InstanceId) -> Option<&Stored<Instance>> {
        self.instances.get(id)
    }

    pub fn instances(&self) -> impl Iterator<Item = &Stored<Instance>> {
        self.instances.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_service.keys()
    }

    pub fn instances_of(&self, service: &ServiceKey) -> impl Iterator<Item = &Stored<Instance>> {
        self.by_service.get(service).into_iter().flatten().filter_map(|id| self.instances.get(id))
    }

    pub fn on_node(&self, node: &Name) -> impl Iterator<Item = &Stored<Instance>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|id| self.instances.get(id))
    }

    pub fn held_by(&self, holder: &Holder) -> impl Iterator<Item = &Stored<Instance>> {
        self.by_holder.get(holder).into_iter().flatten().filter_map(|id| self.instances.get(id))
    }

    pub fn check(&self, id: &CheckId) -> Option<&Stored<Check>> {
        match id {
            CheckId::Node { node, id } => self.node_checks.get(node)?.get(id),
            CheckId::Instance { of, id } => self.instance_checks.get(of)?.get(id),
        }
    }

    pub fn checks_of(&self, instance: &InstanceId) -> impl Iterator<Item = &Stored<Check>> {
        self.instance_checks.get(instance).into_iter().flat_map(BTreeMap::values)
    }

    pub fn checks_of_node(&self, node: &Name) -> impl Iterator<Item = &Stored<Check>> {
        self.node_checks.get(node).into_iter().flat_map(BTreeMap::values)
    }

    pub fn checks(&self) -> impl Iterator<Item = &Stored<Check>> {
        let nodes = self.node_checks.values().flat_map(BTreeMap::values);
        nodes.chain(self.instance_checks.values().flat_map(BTreeMap::values))
    }

    pub fn lease(&self, holder: &Holder) -> Option<&Stored<Lease>> {
        self.leases.get(holder)
    }

    pub fn leases(&self) -> impl Iterator<Item = &Stored<Lease>> {
        self.leases.values()
    }

    /// The worst of everything that is known of an instance: its lease, its node's and its own checks, maintenance,
    /// draining.
    pub fn health(&self, instance: &Instance) -> Health {
        self.health_if(instance, None)
    }

    /// As [`Self::health`], were the lease in that state.
    pub(crate) fn health_if(&self, instance: &Instance, lease: Option<LeaseState>) -> Health {
        let lease = lease.or_else(|| self.leases.get(&instance.holder()).map(|l| l.value.state));
        // without a lease nobody renews anything: what `api` registers lives until it is deregistered
        let mut health = lease.map_or(Health::Passing, Health::from);
        let id = instance.key();
        let checks = self.checks_of(&id).chain(self.checks_of_node(&instance.node));
        health = checks.map(|c| c.value.status.into()).fold(health, Health::max);
        if instance.draining {
            health = health.max(Health::Draining);
        }
        let node_out = self.nodes.get(&instance.node).is_some_and(|n| n.value.maintenance.is_some());
        if instance.maintenance.is_some() || node_out {
            health = Health::Maintenance;
        }
        health
    }

    /// What the instances of a service declare together; `None` when there are none.
    pub fn merged(&self, service: &ServiceKey) -> Option<Merged> {
        let mut instances: Vec<_> = self.instances_of(service).collect();
        instances.sort_by(|a, b| (a.created, &a.value.id).cmp(&(b.created, &b.value.id)));
        if instances.is_empty() {
            return None;
        }
        let mut merged = Merged { key: service.clone(), ports: BTreeMap::new(), conflicts: Vec::new() };
        for instance in instances {
            merged.take(&instance.value);
        }
        Some(merged)
    }

    fn change(&mut self, change: &Change, touched: &mut Touched) -> Result<(), ValueError> {
        // what is not in our layout belongs to others, or to a later format
        let Some(key) = Key::parse(&change.key) else { return Ok(()) };
        match key {
            Key::Node(name) => {
                put(&mut self.nodes, name.clone(), change)?;
                self.touch_node(&name, touched);
                touched.nodes.insert(name);
            }
            Key::Instance(id) => {
                let before = put(&mut self.instances, id.clone(), change)?;
                let after = self.instances.get(&id).map(|s| s.value.clone());
                if let Some(old) = &before {
                    self.unindex(&old.value, &id);
                }
                if let Some(new) = &after {
                    self.index(new, &id);
                }
                let services = [before.map(|b| b.value.service.clone()), after.map(|a| a.service.clone())];
                touched.services.extend(services.into_iter().flatten());
                touched.instances.insert(id);
            }
            Key::Check(id) => {
                match &id {
                    CheckId::Node { node, id } => {
                        put_check(&mut self.node_checks, node, id, change)?;
                        self.touch_node(node, touched);
                    }
                    CheckId::Instance { of, id } => {
                        put_check(&mut self.instance_checks, of, id, change)?;
                        let service = self.instances.get(of).map(|s| s.value.service.clone());
                        touched.services.extend(service);
                    }
                }
                touched.checks.insert(id);
            }
            Key::Lease(holder) => {
                put(&mut self.leases, holder.clone(), change)?;
                let services = self.held_by(&holder).map(|i| i.value.service.clone());
                touched.services.extend(services);
                touched.leases.insert(holder);
            }
        }
        Ok(())
    }

    fn touch_node(&self, node: &Name, touched: &mut Touched) {
        touched.services.extend(self.on_node(node).map(|i| i.value.service.clone()));
    }

    fn index(&mut self, instance: &Instance, id: &InstanceId) {
        self.by_service.entry(instance.service.clone()).or_default().insert(id.clone());
        self.by_node.entry(instance.node.clone()).or_default().insert(id.clone());
        self.by_holder.entry(instance.holder()).or_default().insert(id.clone());
    }

    fn unindex(&mut self, instance: &Instance, id: &InstanceId) {
        remove(&mut self.by_service, &instance.service, id);
        remove(&mut self.by_node, &instance.node, id);
        remove(&mut self.by_holder, &instance.holder(), id);
    }
}

/// Is the key one that a view folds?
pub fn is_ours(key: &str) -> bool {
    key.starts_with(keys::ROOT)
}

// === impl Merged ===

impl Merged {
    /// Whether traffic for the port may go to the instance.
    pub fn serves(&self, instance: &InstanceId, port: u16) -> bool {
        !self.conflicts.iter().any(|c| c.instance == *instance && c.port == port)
    }

    fn take(&mut self, instance: &Instance) {
        let from = instance.key();
        for port in &instance.ports {
            let conflict = |with: &MergedPort, what: String| Conflict {
                instance: from.clone(),
                port: port.port,
                with: with.from.clone(),
                what,
            };
            let namesake =
                self.ports.iter().find(|(n, p)| **n != port.port && !p.name.is_empty() && p.name == port.name);
            if let Some((number, other)) = namesake {
                let what = format!("port `{}` is {number}, not {}", port.name, port.port);
                self.conflicts.push(conflict(other, what));
                continue;
            }
            match self.ports.get_mut(&port.port) {
                None => {
                    let new = MergedPort { name: port.name.clone(), protocol: port.protocol, from: from.clone() };
                    self.ports.insert(port.port, new);
                }
                Some(old) if old.name != port.name => {
                    let what = format!("port {} is named `{}`, not `{}`", port.port, old.name, port.name);
                    self.conflicts.push(conflict(old, what));
                }
                // to declare nothing contradicts nobody
                Some(old) if old.protocol == Protocol::Undeclared => old.protocol = port.protocol,
                Some(old) if port.protocol != Protocol::Undeclared && port.protocol != old.protocol => {
                    let what = format!("port {} speaks {}, not {}", port.port, old.protocol, port.protocol);
                    self.conflicts.push(conflict(old, what));
                }
                Some(_) => {}
            }
        }
    }
}

// === impl Touched ===

impl Touched {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn extend(&mut self, other: Self) {
        self.services.extend(other.services);
        self.instances.extend(other.instances);
        self.nodes.extend(other.nodes);
        self.leases.extend(other.leases);
        self.checks.extend(other.checks);
    }
}

// === helpers ===

fn put<K: Ord, T: DeserializeOwned>(
    map: &mut BTreeMap<K, Stored<T>>,
    key: K,
    change: &Change,
) -> Result<Option<Stored<T>>, ValueError> {
    match &change.after {
        None => Ok(map.remove(&key)),
        Some(v) => {
            let value = Arc::new(value::decode(&change.key, &v.value)?);
            Ok(map.insert(key, Stored { value, created: v.created, modified: v.modified }))
        }
    }
}

fn put_check<K: Ord + Clone>(
    map: &mut BTreeMap<K, Checks>,
    of: &K,
    id: &Name,
    change: &Change,
) -> Result<(), ValueError> {
    let checks = map.entry(of.clone()).or_default();
    put(checks, id.clone(), change)?;
    if checks.is_empty() {
        map.remove(of);
    }
    Ok(())
}

fn remove<K: Ord>(index: &mut BTreeMap<K, BTreeSet<InstanceId>>, key: &K, id: &InstanceId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
