//! What an operation writes, and what must still be so when it commits.
//!
//! Expectations name everything that was read. Where a group is read as a whole, one key stands for it: whoever adds or
//! removes a check rewrites the instance (or node) it belongs to; whoever deletes an instance touches its node's guard;
//! whoever deletes a lease touches the guard of all leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_model::{Name, ServiceKey, Uid};
use weft_store::{Expect, Format, Key, Txn, Write, guard_key};

use crate::{
    checks::{MIN_DEREGISTER_AFTER, cut_output},
    keys,
    object::{Check, CheckId, Holder, Instance, InstanceId, Lease, LeaseState, Node, Owner, Status, Stored, Unknown},
    value,
    view::View,
};

/// How often a plan that met a conflict is made again before its caller hears of it.
pub const MAX_ATTEMPTS: u32 = 8;
/// Beyond so many leases a plan expects all of them unchanged instead of each.
const MAX_LEASE_EXPECTS: usize = 64;
const LEASES: &str = "reg/lease/";

/// What can be done to the registry.
#[expect(clippy::large_enum_variant, reason = "made, planned and dropped: a box would buy nothing")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces a node and its own checks.
    PutNode {
        node: Node,
        checks: Vec<Check>,
    },
    /// With everything that is registered on it.
    DropNode {
        node: Name,
        by: Owner,
    },
    /// Creates or replaces an instance and its checks, and the node when it is new. Checks that stay keep their state.
    /// With `attach`, the lease of its holder is alive at that server.
    Register {
        instance: Instance,
        checks: Vec<Check>,
        attach: Option<Arc<str>>,
    },
    Deregister {
        instance: InstanceId,
        by: Owner,
    },
    /// Of an instance whose check was critical for too long; nothing when it no longer is.
    Reap {
        check: CheckId,
    },
    /// A transition of a check, or its new output.
    Check {
        check: CheckId,
        status: Status,
        output: Arc<str>,
        by: Owner,
    },
    /// By an operator, whoever owns the object: `None` ends it.
    Maintenance {
        of: Target,
        reason: Option<Arc<str>>,
    },
    Drain {
        instance: InstanceId,
        by: Owner,
    },
    /// The holder's stream is at `server` now.
    Attach {
        holder: Holder,
        server: Arc<str>,
    },
    /// By the server that held the streams. Those that meanwhile attached elsewhere are left alone.
    Lapse {
        holders: Vec<Holder>,
        to: LeaseState,
        server: Arc<str>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Node(Name),
    Instance(InstanceId),
}

/// What to commit, and what to answer when it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub expects: Vec<Expect>,
    /// Empty: there is nothing to commit.
    pub writes: BTreeMap<Key, Write>,
    pub reply: Reply,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It already is as asked for.
    Unchanged,
    Done,
    Registered {
        uid: Uid,
    },
    /// Those whose death would leave a service with nothing to pick: they stay unknown.
    Lapsed {
        spared: Vec<Holder>,
    },
}

/// Why an operation cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{what} belongs to `{owner}`, `{by}` cannot change it; change it through its owner")]
    Owned { what: String, owner: Owner, by: Owner },
    #[error("node `{0}` is not registered")]
    NoNode(Name),
    #[error("instance `{0}` is not registered")]
    NoInstance(InstanceId),
    #[error("check `{0}` is not registered")]
    NoCheck(CheckId),
    #[error("{what} is not valid: {}", .violations.join("; "))]
    Invalid { what: String, violations: Vec<String> },
}

/// What `op` means for `view`. Committing it on a store that has moved on conflicts: fold, and plan again. An error and
/// an idle plan commit nothing that could conflict, so they count only when the view has reached the store's head.
pub fn plan(view: &View, op: Op) -> Result<Plan, PlanError> {
    match op {
        Op::PutNode { node, checks } => put_node(view, node, checks),
        Op::DropNode { node, by } => drop_node(view, &node, &by),
        Op::Register { instance, checks, attach } => register(view, instance, checks, attach),
        Op::Deregister { instance, by } => {
            let stored = view.instance(&instance).ok_or(PlanError::NoInstance(instance))?;
            owned(|| format!("instance `{}`", stored.value.uid()), &stored.value.owner, &by)?;
            Ok(deregister(view, stored))
        }
        Op::Reap { check } => Ok(reap(view, &check)),
        Op::Check { check, status, output, by } => set_check(view, &check, status, &output, &by),
        Op::Maintenance { of, reason } => maintenance(view, of, reason),
        Op::Drain { instance, by } => drain(view, instance, &by),
        Op::Attach { holder, server } => {
            let mut plan = Plan::new(Reply::Unchanged);
            if plan.attach(view, holder, server) {
                plan.reply = Reply::Done;
            }
            Ok(plan)
        }
        Op::Lapse { holders, to, server } => Ok(lapse(view, holders, to, &server)),
    }
}

// === impl Op ===

impl Op {
    /// For the log: why the commit was made.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PutNode { .. } => "put node",
            Self::DropNode { .. } => "drop node",
            Self::Register { .. } => "register",
            Self::Deregister { .. } => "deregister",
            Self::Reap { .. } => "reap",
            Self::Check { .. } => "check",
            Self::Maintenance { .. } => "maintenance",
            Self::Drain { .. } => "drain",
            Self::Attach { .. } => "attach",
            Self::Lapse { .. } => "lapse",
        }
    }
}

// === impl Plan ===

impl Plan {
    fn new(reply: Reply) -> Self {
        Self { expects: Vec::new(), writes: BTreeMap::new(), reply }
    }

    /// There is nothing to commit.
    pub fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Adds what is planned to a transaction.
    pub fn onto(self, mut txn: Txn) -> Txn {
        txn.expects.extend(self.expects);
        txn.writes.extend(self.writes);
        txn
    }

    fn put<T: serde::Serialize>(&mut self, key: String, value: &T) {
        self.writes.insert(key.into(), Write::Put(value::encode(value)));
    }

    fn delete(&mut self, key: String) {
        self.writes.insert(key.into(), Write::Delete);
    }

    fn touch(&mut self, group: &str) {
        self.writes.insert(guard_key(group), Write::Put(Format::Raw.wrap(&[])));
    }

    /// `key` was read and `stored` found.
    fn read<T>(&mut self, key: String, stored: Option<&Stored<T>>) {
        self.expects.push(match stored {
            None => Expect::absent(key),
            Some(s) => Expect::unchanged(key, s.modified),
        });
    }

    /// Whether it changes anything.
    fn attach(&mut self, view: &View, holder: Holder, server: Arc<str>) -> bool {
        let stored = view.lease(&holder);
        let key = keys::lease(&holder);
        self.read(key.clone(), stored);
        let lease = match stored {
            Some(s) if s.value.state == LeaseState::Alive && s.value.server == server => return false,
            Some(s) => Lease { state: LeaseState::Alive, server, ..Lease::clone(&s.value) },
            None => Lease { holder, state: LeaseState::Alive, server, unknown: Unknown::new() },
        };
        self.put(key, &lease);
        true
    }

    /// Makes the stored checks those given; a check that was there keeps its state. Whether that changes anything.
    fn set_checks<'a>(&mut self, stored: impl Iterator<Item = &'a Stored<Check>>, wanted: Vec<Check>) -> bool {
        let stored: BTreeMap<CheckId, &Stored<Check>> = stored.map(|s| (s.value.key(), s)).collect();
        let mut kept = BTreeSet::new();
        let mut changed = false;
        for mut check in wanted {
            let id = check.key();
            if let Some(old) = stored.get(&id) {
                check.status = old.value.status;
                check.output = old.value.output.clone();
                check.unknown.clone_from(&old.value.unknown);
                self.read(keys::check(&id), Some(old));
            }
            if stored.get(&id).is_none_or(|old| *old.value != check) {
                self.put(keys::check(&id), &check);
                changed = true;
            }
            kept.insert(id);
        }
        for (id, old) in stored.iter().filter(|(id, _)| !kept.contains(id)) {
            self.read(keys::check(id), Some(old));
            self.delete(keys::check(id));
            changed = true;
        }
        changed
    }
}

// === operations ===

fn put_node(view: &View, mut node: Node, checks: Vec<Check>) -> Result<Plan, PlanError> {
    check_ids(&format!("node `{}`", node.name), &checks, |c| c.instance.is_none() && c.node == node.name)?;
    let stored = view.node(&node.name);
    if let Some(s) = stored {
        owned(|| format!("node `{}`", node.name), &s.value.owner, &node.owner)?;
        node.maintenance.clone_from(&s.value.maintenance);
        node.unknown.clone_from(&s.value.unknown);
    }
    let mut plan = Plan::new(Reply::Done);
    let key = keys::node(&node.name);
    plan.read(key.clone(), stored);
    let checks_changed = plan.set_checks(view.checks_of_node(&node.name), checks);
    if !checks_changed && stored.is_some_and(|s| *s.value == node) {
        return Ok(Plan::new(Reply::Unchanged));
    }
    plan.put(key, &node);
    Ok(plan)
}

fn drop_node(view: &View, name: &Name, by: &Owner) -> Result<Plan, PlanError> {
    let stored = view.node(name).ok_or_else(|| PlanError::NoNode(name.clone()))?;
    owned(|| format!("node `{name}`"), &stored.value.owner, by)?;
    let mut plan = Plan::new(Reply::Done);
    plan.read(keys::node(name), Some(stored));
    // one transaction reads the node's whole group, so that nothing can be registered on it meanwhile
    plan.expects.extend(Expect::group(&keys::instances_of(name), view.revision()));
    for instance in view.on_node(name) {
        plan.writes.extend(deregister(view, instance).writes);
    }
    for check in view.checks_of_node(name) {
        plan.delete(keys::check(&check.value.key()));
    }
    let holder = Holder::Agent(name.clone());
    if view.lease(&holder).is_some() {
        plan.delete(keys::lease(&holder));
        plan.touch(LEASES);
    }
    plan.delete(keys::node(name));
    Ok(plan)
}

fn register(
    view: &View,
    mut instance: Instance,
    checks: Vec<Check>,
    attach: Option<Arc<str>>,
) -> Result<Plan, PlanError> {
    let id = instance.key();
    validate(&instance)?;
    check_ids(&format!("instance `{}`", instance.uid()), &checks, |c| c.instance.as_ref() == Some(&id))?;
    let stored = view.instance(&id);
    if let Some(s) = stored {
        owned(|| format!("instance `{}`", s.value.uid()), &s.value.owner, &instance.owner)?;
        // an operator's word and a later format's fields survive a new registration
        instance.maintenance.clone_from(&s.value.maintenance);
        instance.unknown.clone_from(&s.value.unknown);
    }
    let mut plan = Plan::new(Reply::Registered { uid: instance.uid() });
    let node = view.node(&instance.node);
    plan.read(keys::node(&instance.node), node);
    if node.is_none() {
        plan.put(keys::node(&instance.node), &node_of(&instance));
    }
    plan.read(keys::instance(&id), stored);
    let checks_changed = plan.set_checks(view.checks_of(&id), checks);
    if checks_changed || stored.is_none_or(|s| *s.value != instance) {
        plan.put(keys::instance(&id), &instance);
    }
    if let Some(server) = attach {
        plan.attach(view, instance.holder(), server);
    }
    Ok(plan)
}

fn deregister(view: &View, stored: &Stored<Instance>) -> Plan {
    let id = stored.value.key();
    let mut plan = Plan::new(Reply::Done);
    plan.read(keys::instance(&id), Some(stored));
    plan.delete(keys::instance(&id));
    plan.touch(&keys::instances_of(&id.node));
    plan.set_checks(view.checks_of(&id), Vec::new());
    let holder = stored.value.holder();
    // a run ends with its last instance; an agent outlives what is registered on its node
    let last = matches!(holder, Holder::Run(_)) && view.held_by(&holder).all(|i| i.value.key() == id);
    if let Some(lease) = view.lease(&holder).filter(|_| last) {
        plan.read(keys::lease(&holder), Some(lease));
        plan.delete(keys::lease(&holder));
        plan.touch(LEASES);
    }
    plan
}

fn reap(view: &View, check: &CheckId) -> Plan {
    let CheckId::Instance { of, .. } = check else { return Plan::new(Reply::Unchanged) };
    match (view.check(check), view.instance(of)) {
        (Some(c), Some(instance)) if c.value.status == Status::Critical && c.value.deregister_after.is_some() => {
            deregister(view, instance)
        }
        _ => Plan::new(Reply::Unchanged),
    }
}

fn set_check(view: &View, id: &CheckId, status: Status, output: &str, by: &Owner) -> Result<Plan, PlanError> {
    let stored = view.check(id).ok_or_else(|| PlanError::NoCheck(id.clone()))?;
    owned(|| format!("check `{id}`"), &stored.value.owner, by)?;
    let check = Check { status, output: cut_output(output).into(), ..Check::clone(&stored.value) };
    if *stored.value == check {
        return Ok(Plan::new(Reply::Unchanged));
    }
    let mut plan = Plan::new(Reply::Done);
    plan.read(keys::check(id), Some(stored));
    plan.put(keys::check(id), &check);
    Ok(plan)
}

fn maintenance(view: &View, of: Target, reason: Option<Arc<str>>) -> Result<Plan, PlanError> {
    let mut plan = Plan::new(Reply::Done);
    let same = match of {
        Target::Node(name) => {
            let stored = view.node(&name).ok_or_else(|| PlanError::NoNode(name.clone()))?;
            plan.read(keys::node(&name), Some(stored));
            let node = Node { maintenance: reason, ..Node::clone(&stored.value) };
            plan.put(keys::node(&name), &node);
            *stored.value == node
        }
        Target::Instance(id) => {
            let stored = view.instance(&id).ok_or_else(|| PlanError::NoInstance(id.clone()))?;
            plan.read(keys::instance(&id), Some(stored));
            let instance = Instance { maintenance: reason, ..Instance::clone(&stored.value) };
            plan.put(keys::instance(&id), &instance);
            *stored.value == instance
        }
    };
    Ok(if same { Plan::new(Reply::Unchanged) } else { plan })
}

fn drain(view: &View, id: InstanceId, by: &Owner) -> Result<Plan, PlanError> {
    let stored = view.instance(&id).ok_or_else(|| PlanError::NoInstance(id.clone()))?;
    owned(|| format!("instance `{}`", stored.value.uid()), &stored.value.owner, by)?;
    if stored.value.draining {
        return Ok(Plan::new(Reply::Unchanged));
    }
    let mut plan = Plan::new(Reply::Done);
    plan.read(keys::instance(&id), Some(stored));
    plan.put(keys::instance(&id), &Instance { draining: true, ..Instance::clone(&stored.value) });
    Ok(plan)
}

fn lapse(view: &View, holders: Vec<Holder>, to: LeaseState, server: &str) -> Plan {
    let mut lapsing: Vec<&Stored<Lease>> = holders
        .iter()
        .filter_map(|h| view.lease(h))
        // forwards only, and only our own: whoever attached elsewhere, or again, is somebody else's to judge
        .filter(|l| *l.value.server == *server && l.value.state < to)
        .collect();
    let mut spared = Vec::new();
    let mut plan = Plan::new(Reply::Unchanged);
    if to == LeaseState::Dead {
        spared = spare(view, &mut lapsing);
        // what is left to pick depends on everything that is registered
        plan.expects.extend(Expect::group(keys::ROOT, view.revision()));
    } else if lapsing.len() > MAX_LEASE_EXPECTS {
        plan.expects.extend(Expect::group(LEASES, view.revision()));
    } else {
        lapsing.iter().for_each(|l| plan.read(keys::lease(&l.value.holder), Some(l)));
    }
    for lease in &lapsing {
        plan.put(keys::lease(&lease.value.holder), &Lease { state: to, ..Lease::clone(&lease.value) });
    }
    plan.reply = Reply::Lapsed { spared };
    plan
}

/// Takes out of `dying` those that are the last to be picked for some service: expiry alone never empties one.
fn spare(view: &View, dying: &mut Vec<&Stored<Lease>>) -> Vec<Holder> {
    let mut dead: BTreeSet<Holder> = dying.iter().map(|l| l.value.holder.clone()).collect();
    let services: BTreeSet<ServiceKey> =
        dead.iter().flat_map(|h| view.held_by(h)).map(|i| i.value.service.clone()).collect();
    let mut spared = Vec::new();
    for service in services {
        let pickable: Vec<_> = view.instances_of(&service).filter(|i| view.health(&i.value).is_pickable()).collect();
        let survives = pickable.iter().any(|i| !dead.contains(&i.value.holder()));
        if let (false, Some(first)) = (survives, pickable.first()) {
            let holder = first.value.holder();
            dead.remove(&holder);
            spared.push(holder);
        }
    }
    dying.retain(|l| dead.contains(&l.value.holder));
    spared
}

// === helpers ===

fn owned(what: impl FnOnce() -> String, owner: &Owner, by: &Owner) -> Result<(), PlanError> {
    if owner == by {
        return Ok(());
    }
    Err(PlanError::Owned { what: what(), owner: owner.clone(), by: by.clone() })
}

/// A host that nobody registered before something on it.
fn node_of(instance: &Instance) -> Node {
    Node {
        name: instance.node.clone(),
        owner: Owner::Agent(instance.node.clone()),
        address: instance.mesh.map(|a| a.ip()).or_else(|| instance.ports.first().map(|p| p.app.ip())),
        locality: instance.locality.clone(),
        meta: weft_model::Labels::default(),
        maintenance: None,
        unknown: Unknown::new(),
    }
}

fn validate(instance: &Instance) -> Result<(), PlanError> {
    let mut violations = Vec::new();
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in instance.ports.iter().enumerate() {
        if port.port == 0 || port.app.port() == 0 {
            violations.push(format!("ports[{i}]: port 0 cannot be called"));
        }
        if !numbers.insert(port.port) {
            violations.push(format!("ports[{i}].port: {} is there twice", port.port));
        }
        if port.name.is_empty() && instance.ports.len() > 1 {
            violations.push(format!("ports[{i}].name: each port needs a name when there are several"));
        } else if !port.name.is_empty() && !names.insert(&port.name) {
            violations.push(format!("ports[{i}].name: `{}` is there twice", port.name));
        }
    }
    if instance.mesh.is_none() && instance.tunnel != crate::Tunnel::None {
        violations.push("mesh: a tunnel needs the proxy's address".into());
    }
    match &instance.owner {
        Owner::Agent(node) if *node != instance.node => {
            violations.push(format!("node: `{node}`'s agent cannot register on node `{}`", instance.node));
        }
        _ => {}
    }
    if violations.is_empty() {
        return Ok(());
    }
    Err(PlanError::Invalid { what: format!("instance `{}`", instance.uid()), violations })
}

fn check_ids(what: &str, checks: &[Check], belongs: impl Fn(&Check) -> bool) -> Result<(), PlanError> {
    let mut violations = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, check) in checks.iter().enumerate() {
        if !belongs(check) {
            violations.push(format!("checks[{i}]: `{}` is of something else", check.id));
        }
        if !seen.insert(&check.id) {
            violations.push(format!("checks[{i}].id: `{}` is there twice", check.id));
        }
        if check.deregister_after.is_some_and(|d| d < MIN_DEREGISTER_AFTER) {
            violations.push(format!("checks[{i}].deregister_after: at least {MIN_DEREGISTER_AFTER:?}"));
        }
    }
    if violations.is_empty() {
        return Ok(());
    }
    Err(PlanError::Invalid { what: what.into(), violations })
}

#[cfg(test)]
mod tests;
