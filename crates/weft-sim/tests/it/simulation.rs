//! The seeded loop around the mesh: what may happen, what must always hold, and what must hold when the faults are over.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use tokio::{runtime::Runtime, task::LocalSet};
use weft_sim::seeded::{Dice, Seeds, Sim, World, replays_alike, run_all};

use crate::{
    mesh::{Fault, Mesh},
    oracle::Change,
};

const STEPS: usize = 60;
/// Each is a mesh of five proxies and minutes of its time.
const SEEDS: u64 = 8;
/// Five seconds each: longer than an identity lives and a back-off lasts.
const MAX_HEALING: usize = 80;

struct Simulated {
    // before the runtime: what is dropped may look for it
    mesh: Option<Mesh>,
    local: LocalSet,
    runtime: Runtime,
    healed: usize,
}

#[derive(Clone, Debug)]
enum Action {
    Calls,
    /// A fault while calls are on their way.
    CallsAmid(Fault),
    /// A connection that stays open.
    Flow,
    Change,
    Fault(Fault),
    Rest(Duration),
}

/// What happened at all, over every seed.
#[derive(Debug, Default)]
pub struct Seen {
    pub allowed: AtomicUsize,
    pub denied: AtomicUsize,
    pub failed: AtomicUsize,
    pub strict: AtomicUsize,
    pub without_control: AtomicUsize,
    pub restored: AtomicUsize,
    pub renewed: AtomicUsize,
    pub lapsed: AtomicUsize,
    pub flows_denied: AtomicUsize,
    // what went wrong
    pub servers_killed: AtomicUsize,
    pub proxies_killed: AtomicUsize,
    pub parted: AtomicUsize,
    pub clocks_stepped: AtomicUsize,
    pub changed: AtomicUsize,
}

pub static SEEN: Seen = Seen {
    allowed: AtomicUsize::new(0),
    denied: AtomicUsize::new(0),
    failed: AtomicUsize::new(0),
    strict: AtomicUsize::new(0),
    without_control: AtomicUsize::new(0),
    restored: AtomicUsize::new(0),
    renewed: AtomicUsize::new(0),
    lapsed: AtomicUsize::new(0),
    flows_denied: AtomicUsize::new(0),
    servers_killed: AtomicUsize::new(0),
    proxies_killed: AtomicUsize::new(0),
    parted: AtomicUsize::new(0),
    clocks_stepped: AtomicUsize::new(0),
    changed: AtomicUsize::new(0),
};

impl World for Simulated {
    type Action = Action;

    fn new(sim: &mut Sim) -> Self {
        weft_identity::warm_up();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let local = LocalSet::new();
        let mesh = local.block_on(&runtime, Mesh::start(sim.dice()));
        Self { mesh: Some(mesh), local, runtime, healed: 0 }
    }

    fn actions(&self) -> Vec<(u32, Action)> {
        let Some(mesh) = &self.mesh else { return Vec::new() };
        let secs = Duration::from_secs;
        let mut all = vec![
            (120, Action::Calls),
            (20, Action::Flow),
            (30, Action::Change),
            (30, Action::Rest(secs(5))),
            (40, Action::Rest(secs(60))),
        ];
        // what is broken is mended sooner than it broke: most of the mesh runs most of the time
        let toggle = |is_on: bool, begin: u32, end: u32| if is_on { end } else { begin };
        let mut faults = vec![
            (toggle(mesh.control.is_none(), 8, 10), Fault::Control),
            (toggle(mesh.held, 4, 10), Fault::HoldStore),
            (toggle(mesh.is_stormy(), 4, 20), Fault::Weather),
            (toggle(mesh.control_skew() != 0, 2, 20), Fault::ControlClock(90_000)),
            (3, Fault::CutPeers(0, 2)),
            (toggle(mesh.are_parted(0, 1), 2, 20), Fault::PartPeers(0, 1)),
            (toggle(mesh.are_parted(0, 4), 2, 20), Fault::PartPeers(0, 4)),
        ];
        for (ix, node) in mesh.nodes.iter().enumerate() {
            let clock = |by| (toggle(mesh.skew(ix) != 0, 1, 10), Fault::Clock(ix, by));
            faults.extend([
                (toggle(mesh.is_alone(ix), 2, 3), Fault::Part(ix)),
                (1, Fault::CutControl(ix)),
                (toggle(node.is_off(), 2, 20), Fault::Power { ix, wipe: false }),
                (toggle(node.is_off(), 1, 0), Fault::Power { ix, wipe: true }),
                (toggle(!*node.app.borrow(), 1, 20), Fault::App(ix)),
                clock(100_000),
                clock(-100_000),
            ]);
        }
        for (weight, fault) in faults {
            // half of them while something is on its way
            let amid = !matches!(fault, Fault::Control) || mesh.control.is_some();
            all.push((weight, Action::Fault(fault.clone())));
            all.push((if amid { weight } else { 0 }, Action::CallsAmid(fault)));
        }
        all
    }

    fn act(&mut self, action: Action, sim: &mut Sim) {
        self.block_on(sim, async |mesh, dice| {
            mesh.begin_step();
            match action {
                Action::Calls => mesh.calls(dice, None).await,
                Action::CallsAmid(fault) => mesh.calls(dice, Some(fault)).await,
                Action::Flow => mesh.open_flow(dice).await,
                Action::Change => mesh.change(Change::some(dice)).await,
                Action::Fault(fault) => mesh.fault(fault).await,
                Action::Rest(most) => {
                    let most = u64::try_from(most.as_millis()).unwrap();
                    tokio::time::sleep(Duration::from_millis(dice.below(most))).await;
                }
            }
            mesh.end_step().await;
        });
    }

    fn check_invariants(&self) -> Result<(), String> {
        self.mesh.as_ref().map_or(Ok(()), Mesh::check)
    }

    fn heal(&mut self, sim: &mut Sim) -> bool {
        self.healed += 1;
        let first = self.healed == 1;
        let last = self.healed == MAX_HEALING;
        let mut converged = false;
        self.block_on(sim, async |mesh, _| {
            mesh.begin_step();
            if first {
                mesh.end_faults().await;
            }
            mesh.start_what_is_off().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            mesh.end_step().await;
            match mesh.converged() {
                Ok(()) => converged = true,
                Err(why) => assert!(!last, "it did not converge: {why}"),
            }
        });
        !converged
    }

    fn check_healed(&mut self, sim: &mut Sim) -> Result<(), String> {
        self.block_on(sim, async |mesh, _| {
            mesh.begin_step();
            mesh.everything_as_it_ought_to_be().await;
            mesh.restarts_without_resending().await;
            mesh.end_step().await;
        });
        self.check_invariants()?;
        let Self { mesh, local, runtime, .. } = self;
        let mesh = mesh.take().ok_or("the mesh is gone")?;
        local.block_on(runtime, mesh.stop())?;
        match runtime.metrics().num_alive_tasks() {
            0 => Ok(()),
            n => Err(format!("{n} tasks outlived everything")),
        }
    }
}

impl Simulated {
    fn block_on(&mut self, sim: &mut Sim, act: impl AsyncFnOnce(&mut Mesh, &mut Dice)) {
        let Self { mesh: Some(mesh), local, runtime, .. } = self else { return };
        let at = local.block_on(runtime, async {
            act(mesh, sim.dice()).await;
            mesh.now()
        });
        sim.advance_to(at);
        for note in mesh.take_notes() {
            if std::env::var_os("WEFT_SIM_TELL").is_some() {
                eprintln!("{:?} {note}", sim.now());
            }
            sim.note(&note);
        }
    }
}

#[test]
fn the_mesh_converges_after_faults() {
    let seeds = Seeds::from_env_or(SEEDS);
    run_all::<Simulated>(&seeds, STEPS);
    let Seen { allowed, denied, failed, strict, without_control, restored, renewed, lapsed, flows_denied, .. } = &SEEN;
    let Seen { servers_killed, proxies_killed, parted, clocks_stepped, changed, .. } = &SEEN;
    let seen = [allowed, denied, failed, strict, without_control, restored, renewed, lapsed, flows_denied];
    let done = [servers_killed, proxies_killed, parted, clocks_stepped, changed];
    let happened = seen.iter().chain(&done).all(|n| n.load(Relaxed) > 0);
    assert!(seeds.count() < 8 || happened, "something never happened: {SEEN:?}");
    println!("{SEEN:?}");
}

#[test]
fn the_same_seed_leaves_the_same_trace() {
    // in the tenth an identity expires and is told of by name
    replays_alike::<Simulated>(10, STEPS);
}
