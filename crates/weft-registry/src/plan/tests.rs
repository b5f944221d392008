use std::collections::BTreeSet;

use proptest::prelude::*;
use weft_model::{Health, Labels, Locality, Protocol, Revision, SpiffeId, Wall};
use weft_store::{CommitError, Dice, EtcdLike, Keep, Memory, Store, TxnId, Watch};

use super::*;
use crate::object::{Port, Thresholds, Tunnel, Weights};

fn n(s: &str) -> Name {
    Name::parse(s).unwrap()
}

fn id(node: &str, id: &str) -> InstanceId {
    InstanceId { node: n(node), namespace: n("default"), id: n(id) }
}

fn instance(service: &str, node: &str, id: &str, owner: Owner) -> Instance {
    Instance {
        service: ServiceKey::new(n("default"), n(service)),
        node: n(node),
        id: n(id),
        owner,
        identity: SpiffeId::parse(&format!("spiffe://td.weft/ns/default/sa/{service}")).unwrap(),
        mesh: Some("10.0.0.1:15008".parse().unwrap()),
        tunnel: Tunnel::Weft1,
        ports: vec![port("", 80, Protocol::Http)],
        locality: Locality::default(),
        labels: Labels::default(),
        meta: Labels::default(),
        workload: "".into(),
        weights: Weights::default(),
        upstreams: vec![],
        admin: None,
        metrics: None,
        bypassable: false,
        draining: false,
        maintenance: None,
        unknown: Unknown::new(),
    }
}

fn port(name: &str, port: u16, protocol: Protocol) -> Port {
    Port { name: name.into(), port, protocol, app: "10.0.0.1:8080".parse().unwrap(), connect: None, preserve: false }
}

fn check(of: InstanceId, id: &str, owner: Owner, status: Status) -> Check {
    Check {
        id: n(id),
        node: of.node.clone(),
        instance: Some(of),
        owner,
        status,
        output: "".into(),
        thresholds: Thresholds::default(),
        ttl: None,
        deregister_after: None,
        unknown: Unknown::new(),
    }
}

fn run_of(i: &str) -> Owner {
    Owner::Run(n(i))
}

/// A replica: plans on its own view, commits, catches up on conflicts.
struct Replica {
    store: std::sync::Arc<Memory>,
    view: View,
    watch: Watch,
    dice: Dice,
}

impl Replica {
    fn new(store: &std::sync::Arc<Memory>, seed: u64) -> Self {
        let range = store.range("reg/", None).unwrap();
        let view = View::load(&range).unwrap();
        Self { store: store.clone(), view, watch: store.watch(range.revision).unwrap(), dice: Dice::seeded(seed) }
    }

    fn catch_up(&mut self) {
        while let Some(entries) = self.watch.try_next().unwrap() {
            for entry in entries {
                self.view.fold(&entry).unwrap();
            }
        }
    }

    /// Waits for what is committed, however late the watch brings it.
    fn catch_up_to(&mut self, revision: Revision) {
        while self.view.revision() < revision {
            for entry in self.watch.wait_next().unwrap() {
                self.view.fold(&entry).unwrap();
            }
        }
    }

    fn attempt(&mut self, op: &Op) -> Result<Result<Reply, PlanError>, CommitError> {
        let planned = plan(&self.view, op.clone());
        if planned.as_ref().map_or(true, Plan::is_idle) && self.view.revision() < self.store.head().unwrap().revision {
            return Err(behind());
        }
        let plan = match planned {
            Ok(plan) => plan,
            Err(e) => return Ok(Err(e)),
        };
        let reply = plan.reply.clone();
        if plan.is_idle() {
            return Ok(Ok(reply));
        }
        let txn_id = TxnId(u128::from(self.dice.roll()) << 64 | u128::from(self.dice.roll()));
        let txn = plan.onto(Txn::new(txn_id, "test", Wall::EPOCH, "test"));
        match self.store.commit(txn) {
            Ok(_) => Ok(Ok(reply)),
            Err(CommitError::Unknown { .. }) => match self.store.lookup(txn_id).unwrap() {
                Some(_) => Ok(Ok(reply)),
                None => Err(behind()),
            },
            Err(e) => Err(e),
        }
    }

    fn apply(&mut self, op: Op) -> Result<Reply, PlanError> {
        for _ in 0..MAX_ATTEMPTS {
            match self.attempt(&op) {
                Ok(outcome) => {
                    self.catch_up_to(self.store.head().unwrap().revision);
                    return outcome;
                }
                Err(e) if e.is_conflict() => self.catch_up_to(self.store.head().unwrap().revision),
                Err(e) => panic!("{op:?}: {e}"),
            }
        }
        panic!("{op:?}: conflicts without end")
    }
}

fn behind() -> CommitError {
    CommitError::Conflict { expect: Expect::absent("x"), found: None }
}

fn replica() -> Replica {
    Replica::new(&std::sync::Arc::new(Memory::new()), 1)
}

fn register(instance: Instance, checks: Vec<Check>) -> Op {
    Op::Register { instance, checks, attach: Some("s1".into()) }
}

#[test]
fn reg_01_registers_with_node_checks_and_indices() {
    let mut r = replica();
    let web = instance("web", "node-1", "web-1", run_of("r1"));
    let of = web.key();
    let checks = vec![check(of.clone(), "http", run_of("r1"), Status::Critical)];
    let uid = web.uid();
    assert_eq!(r.apply(register(web.clone(), checks.clone())), Ok(Reply::Registered { uid }));
    let stored = r.view.instance(&of).unwrap().clone();
    assert_eq!(stored.created, stored.modified);
    assert_eq!(r.view.node(&n("node-1")).unwrap().value.owner, Owner::Agent(n("node-1")));
    assert_eq!(r.view.health(&web), Health::Critical);
    let c = CheckId::Instance { of: of.clone(), id: n("http") };
    let set = |status| Op::Check { check: c.clone(), status, output: "200".into(), by: run_of("r1") };
    assert_eq!(r.apply(set(Status::Passing)), Ok(Reply::Done));
    assert_eq!(r.apply(set(Status::Passing)), Ok(Reply::Unchanged));
    assert_eq!(r.view.health(&web), Health::Passing);
    assert_eq!(r.view.instance(&of).unwrap().modified, stored.modified, "a check's change is not the instance's");
    // registering the same again commits nothing, and the check keeps its state
    let head = r.store.head().unwrap().revision;
    assert!(r.apply(register(web.clone(), checks.clone())).is_ok());
    assert_eq!(r.store.head().unwrap().revision, head);
    // a change keeps the creation, and takes a new modification
    let mut web2 = web.clone();
    web2.ports.push(port("admin", 81, Protocol::Http));
    web2.ports[0].name = "http".into();
    assert!(r.apply(register(web2.clone(), checks)).is_ok());
    let now = r.view.instance(&of).unwrap();
    assert_eq!(now.created, stored.created);
    assert!(now.modified > stored.modified);
    assert_eq!(r.view.health(&web2), Health::Passing);
    // without the check
    assert!(r.apply(register(web2, vec![])).is_ok());
    assert_eq!(r.view.checks_of(&of).count(), 0);
}

#[test]
fn reg_01_only_the_owner_writes() {
    let mut r = replica();
    let web = instance("web", "node-1", "web-1", run_of("r1"));
    r.apply(register(web.clone(), vec![])).unwrap();
    let uid = "default/web/node-1/web-1";
    let refused = |what: String| Err::<Reply, _>(PlanError::Owned { what, owner: run_of("r1"), by: Owner::Api });
    let mine = Instance { owner: Owner::Api, ..web.clone() };
    assert_eq!(r.apply(register(mine, vec![])), refused(format!("instance `{uid}`")));
    let drop = Op::Deregister { instance: web.key(), by: Owner::Api };
    let error = r.apply(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "instance `default/web/node-1/web-1` belongs to `run/r1`, `api` cannot change it; change it through its owner"
    );
    assert!(r.apply(Op::Drain { instance: web.key(), by: Owner::Api }).is_err());
    // maintenance is an operator's word, and survives a new registration
    let of = Target::Instance(web.key());
    r.apply(Op::Maintenance { of: of.clone(), reason: Some("disk".into()) }).unwrap();
    r.apply(register(web.clone(), vec![])).unwrap();
    assert_eq!(r.view.health(&r.view.instance(&web.key()).unwrap().value), Health::Maintenance);
    r.apply(Op::Maintenance { of, reason: None }).unwrap();
    assert_eq!(r.view.health(&r.view.instance(&web.key()).unwrap().value), Health::Passing);
}

#[test]
fn refuses_what_is_not_valid_with_every_violation() {
    let r = replica();
    let mut bad = instance("web", "node-1", "web-1", Owner::Agent(n("node-2")));
    bad.ports = vec![port("", 80, Protocol::Http), port("a", 80, Protocol::Http), port("a", 0, Protocol::Http)];
    bad.mesh = None;
    let PlanError::Invalid { violations, .. } = plan(&r.view, register(bad, vec![])).unwrap_err() else { panic!() };
    assert_eq!(
        violations,
        [
            "ports[0].name: each port needs a name when there are several",
            "ports[1].port: 80 is there twice",
            "ports[2]: port 0 cannot be called",
            "ports[2].name: `a` is there twice",
            "mesh: a tunnel needs the proxy's address",
            "node: `node-2`'s agent cannot register on node `node-1`",
        ]
    );
}

#[test]
fn reg_06_a_reap_looks_again() {
    let mut r = replica();
    let web = instance("web", "node-1", "web-1", run_of("r1"));
    let mut c = check(web.key(), "http", run_of("r1"), Status::Critical);
    c.deregister_after = Some(std::time::Duration::from_secs(60));
    let reap = Op::Reap { check: c.key() };
    r.apply(register(web.clone(), vec![c.clone()])).unwrap();
    let set = |status| Op::Check { check: c.key(), status, output: "".into(), by: run_of("r1") };
    r.apply(set(Status::Passing)).unwrap();
    assert_eq!(r.apply(reap.clone()), Ok(Reply::Unchanged), "it recovered meanwhile");
    r.apply(set(Status::Critical)).unwrap();
    assert_eq!(r.apply(reap), Ok(Reply::Done));
    assert!(r.view.instance(&web.key()).is_none());
    assert_eq!(r.view.leases().count(), 0, "a run ends with its last instance");
    assert_eq!(r.view.services().count(), 0);
}

#[test]
fn reg_01_where_instances_contradict_each_other_the_oldest_wins() {
    let mut r = replica();
    let mut first = instance("web", "z-node", "web-1", run_of("r1"));
    first.ports = vec![port("http", 80, Protocol::Http), port("admin", 81, Protocol::Undeclared)];
    let mut second = instance("web", "a-node", "web-2", run_of("r2"));
    second.ports = vec![port("http", 8080, Protocol::Http), port("admin", 81, Protocol::Http)];
    let mut third = instance("web", "a-node", "web-3", run_of("r3"));
    third.ports = vec![port("http", 80, Protocol::Grpc), port("x", 81, Protocol::Http)];
    for i in [&first, &second, &third] {
        r.apply(register(i.clone(), vec![])).unwrap();
    }
    let merged = r.view.merged(&first.service).unwrap();
    let ports: Vec<_> = merged.ports.iter().map(|(n, p)| (*n, &*p.name, p.protocol)).collect();
    assert_eq!(ports, [(80, "http", Protocol::Http), (81, "admin", Protocol::Http)]);
    let conflicts: Vec<_> =
        merged.conflicts.iter().map(|c| (c.instance.id.as_str(), c.port, c.what.as_str())).collect();
    assert_eq!(
        conflicts,
        [
            ("web-2", 8080, "port `http` is 80, not 8080"),
            ("web-3", 80, "port 80 speaks http, not grpc"),
            ("web-3", 81, "port 81 is named `admin`, not `x`"),
        ]
    );
    assert!(merged.serves(&second.key(), 81) && !merged.serves(&third.key(), 80));
}

#[test]
fn expiry_alone_never_empties_a_service() {
    let mut r = replica();
    let web1 = instance("web", "n1", "web-1", run_of("r1"));
    let web2 = instance("web", "n1", "web-2", run_of("r2"));
    let db = instance("db", "n1", "db-1", run_of("r3"));
    for i in [&web1, &web2, &db] {
        r.apply(register(i.clone(), vec![])).unwrap();
    }
    let holders: Vec<_> = [&web1, &web2, &db].map(Instance::holder).to_vec();
    let lapse = |holders: &[Holder], to| Op::Lapse { holders: holders.to_vec(), to, server: "s1".into() };
    r.apply(lapse(&holders, LeaseState::Unknown)).unwrap();
    assert_eq!(r.view.health(&web1), Health::Unknown);
    let reply = r.apply(lapse(&holders, LeaseState::Dead)).unwrap();
    let spared = vec![db.holder(), web1.holder()];
    assert_eq!(reply, Reply::Lapsed { spared });
    let health = [&web1, &web2, &db].map(|i| r.view.health(i));
    assert_eq!(health, [Health::Unknown, Health::Critical, Health::Unknown]);
    // it speaks again
    r.apply(Op::Attach { holder: web2.holder(), server: "s2".into() }).unwrap();
    assert_eq!(r.view.health(&web2), Health::Passing);
    // and the first server's word about it no longer counts
    r.apply(lapse(&[web2.holder()], LeaseState::Unknown)).unwrap();
    assert_eq!(r.view.health(&web2), Health::Passing);
    // with web-2 back, web-1 may die
    let reply = r.apply(lapse(&[web1.holder()], LeaseState::Dead)).unwrap();
    assert_eq!(reply, Reply::Lapsed { spared: vec![] });
    assert_eq!(r.view.health(&web1), Health::Critical);
}

#[test]
fn dropping_a_node_drops_what_is_on_it_and_sees_newcomers() {
    let store = std::sync::Arc::new(Memory::etcd_like(3));
    let (mut a, mut b) = (Replica::new(&store, 1), Replica::new(&store, 2));
    let agent = Owner::Agent(n("n1"));
    let web = instance("web", "n1", "web-1", agent.clone());
    a.apply(register(web.clone(), vec![check(web.key(), "tcp", agent.clone(), Status::Passing)])).unwrap();
    let drop = Op::DropNode { node: n("n1"), by: agent.clone() };
    let stale = a.view.clone();
    b.catch_up_to(store.head().unwrap().revision);
    let db = instance("db", "n1", "db-1", agent.clone());
    b.apply(register(db.clone(), vec![])).unwrap();
    // planned without knowing of the newcomer: refused
    let planned = plan(&stale, drop.clone()).unwrap();
    let error = store.commit(planned.onto(Txn::new(TxnId(77), "t", Wall::EPOCH, "t"))).unwrap_err();
    assert!(error.is_conflict(), "{error}");
    a.catch_up_to(store.head().unwrap().revision);
    a.apply(drop).unwrap();
    let left: Vec<_> = store.range("reg/", None).unwrap().items.into_iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(left, Vec::<String>::new());
    b.catch_up_to(store.head().unwrap().revision);
    assert_eq!(b.view.instances().count(), 0);
}

#[test]
fn fields_of_a_later_format_survive_a_rewrite() {
    let mut r = replica();
    let mut web = instance("web", "n1", "web-1", run_of("r1"));
    web.unknown.insert("shard".into(), 7.into());
    r.apply(register(web.clone(), vec![])).unwrap();
    web.unknown.clear();
    web.bypassable = true;
    r.apply(register(web.clone(), vec![])).unwrap();
    let stored = &r.view.instance(&web.key()).unwrap().value;
    assert_eq!(stored.unknown.get("shard"), Some(&7.into()));
    assert!(stored.bypassable);
}

// === properties ===

fn any_op() -> impl Strategy<Value = Op> {
    let name = (0..3u8, 0..3u8, 0..4u8);
    (0..10u8, name, any::<bool>()).prop_map(|(kind, (node, service, i), flag)| {
        let (node, service, i) = (format!("n{node}"), format!("s{service}"), format!("i{i}"));
        let owner = if flag { Owner::Agent(n(&node)) } else { run_of(&i) };
        let of = id(&node, &i);
        match kind {
            0..4 => {
                let status = if flag { Status::Passing } else { Status::Critical };
                let checks = vec![check(of, "c", owner.clone(), status)];
                register(instance(&service, &node, &i, owner), if kind == 0 { vec![] } else { checks })
            }
            4 => Op::Deregister { instance: of, by: owner },
            5 => Op::Check {
                check: CheckId::Instance { of, id: n("c") },
                status: if service == "s0" { Status::Passing } else { Status::Critical },
                output: service.into(),
                by: owner,
            },
            6 => Op::Maintenance { of: Target::Node(n(&node)), reason: flag.then(|| "x".into()) },
            7 => Op::Drain { instance: of, by: owner },
            8 => Op::Lapse {
                holders: vec![Holder::Agent(n(&node)), Holder::Run(n(&i))],
                to: if flag { LeaseState::Unknown } else { LeaseState::Dead },
                server: "s1".into(),
            },
            _ => Op::DropNode { node: n(&node), by: Owner::Agent(n(&node)) },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn folding_equals_replaying_from_a_snapshot(ops in prop::collection::vec(any_op(), 1..40), cut in 0..40usize) {
        let mut r = replica();
        let mut from = Replica::new(&r.store, 9);
        for (i, op) in ops.into_iter().enumerate() {
            let _ = r.apply(op);
            if i == cut {
                from = Replica::new(&r.store, 9);
            }
        }
        from.catch_up();
        prop_assert_eq!(&from.view, &r.view);
        let fresh = View::load(&r.store.range("reg/", None).unwrap()).unwrap();
        prop_assert_eq!(&fresh, &r.view);
        for service in r.view.services() {
            prop_assert!(r.view.instances_of(service).count() > 0, "an index outlived its entries");
        }
    }

    /// Each acknowledged registration is there at the end unless an acknowledged deregistration followed it.
    #[test]
    fn two_writers_never_lose_an_acknowledged_operation(
        ops in prop::collection::vec((any::<bool>(), any_op()), 1..40),
        seed: u64,
    ) {
        let store = std::sync::Arc::new(Memory::with(Keep::default(), Some(EtcdLike::faulty(seed))));
        let mut writers = [Replica::new(&store, seed ^ 1), Replica::new(&store, seed ^ 2)];
        let mut there: BTreeSet<InstanceId> = BTreeSet::new();
        for (first, op) in ops {
            let writer = &mut writers[usize::from(first)];
            // neither catches up by itself: plans are made on what the other has not seen
            let outcome = (0..MAX_ATTEMPTS).find_map(|_| match writer.attempt(&op) {
                Ok(outcome) => Some(outcome),
                Err(e) if e.is_conflict() => {
                    writer.catch_up_to(store.head().unwrap().revision);
                    None
                }
                Err(e) => panic!("{e}"),
            });
            match (op, outcome.expect("conflicts without end")) {
                (Op::Register { instance, .. }, Ok(_)) => { there.insert(instance.key()); }
                (Op::Deregister { instance, .. }, Ok(_)) => { there.remove(&instance); }
                (Op::DropNode { node, .. }, Ok(_)) => there.retain(|i| i.node != node),
                _ => {}
            }
        }
        let head = store.head().unwrap().revision;
        writers.iter_mut().for_each(|w| w.catch_up_to(head));
        let [a, b] = &writers;
        prop_assert_eq!(&a.view, &b.view);
        let have: BTreeSet<_> = a.view.instances().map(|i| i.value.key()).collect();
        prop_assert_eq!(have, there);
    }
}
