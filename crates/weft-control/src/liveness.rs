//! What silence means: leases and checks of the streams that end here, and the clock that moves them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use weft_registry::{
    CheckId, Holder, LeaseState, Op, PlanError, Reply, Status,
    checks::{self, Board},
    lease::{Lapse, Leases},
};

use crate::{
    replica::{CommitFailure, Replica},
    state::{Folded, State},
};

const TICK: Duration = Duration::from_secs(1);

pub struct Liveness {
    replica: Arc<Replica>,
    /// Which replica this is, in leases.
    server: Arc<str>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    leases: Leases,
    board: Board,
}

// === impl Liveness ===

impl Liveness {
    /// Leases and TTLs that were found in the store begin anew at full length.
    pub fn new(replica: Arc<Replica>, server: Arc<str>) -> Self {
        let this = Self { replica, server, inner: Mutex::default() };
        let (state, now) = (this.replica.state(), this.replica.clock.mono());
        {
            let mut inner = this.lock();
            for lease in state.registry.leases().filter(|l| l.value.server == this.server) {
                inner.leases.adopt(now, lease.value.holder.clone(), lease.value.state);
            }
            for check in state.registry.checks() {
                inner.board.put(now, check.value.clone());
            }
        }
        this
    }

    pub fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// What was committed, by whomever.
    pub fn folded(&self, state: &State, folded: &Folded) {
        let now = self.replica.clock.mono();
        let mut inner = self.lock();
        for holder in &folded.registry.leases {
            match state.registry.lease(holder).filter(|l| l.value.server == self.server) {
                Some(lease) if inner.leases.contains(holder) => inner.leases.committed(holder, lease.value.state),
                Some(lease) => inner.leases.adopt(now, holder.clone(), lease.value.state),
                None => inner.leases.forget(holder),
            }
        }
        for id in &folded.registry.checks {
            match state.registry.check(id) {
                Some(check) => inner.board.put(now, check.value.clone()),
                None => inner.board.forget(id),
            }
        }
    }

    /// A word of the holder's. `false`: its lease is not held here (any more).
    pub async fn renew(&self, holder: &Holder) -> Result<bool, CommitFailure<PlanError>> {
        let now = self.replica.clock.mono();
        let (known, lapsed) = {
            let mut inner = self.lock();
            (inner.leases.contains(holder), inner.leases.renew(now, holder))
        };
        if lapsed {
            tracing::info!(holder = %holder, "alive again");
            let op = Op::Attach { holder: holder.clone(), server: self.server.clone() };
            self.replica.register("lease", op).await?;
        }
        Ok(known)
    }

    /// The result of a check: committed only when it changes something. `false`: no such check.
    pub async fn report(
        &self,
        check: &CheckId,
        result: Status,
        output: &str,
    ) -> Result<bool, CommitFailure<PlanError>> {
        let now = self.replica.clock.mono();
        let (known, change) = {
            let mut inner = self.lock();
            (inner.board.knows(check), inner.board.report(now, check, result, output))
        };
        if let Some(change) = change {
            self.commit(change).await?;
        }
        Ok(known)
    }

    /// Moves time, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.replica.clock.mono();
            let (lapses, changes) = {
                let mut inner = self.lock();
                (inner.leases.tick(now), inner.board.tick(now))
            };
            for lapse in lapses {
                self.lapse(lapse).await;
            }
            for change in changes {
                if let Err(e) = self.commit(change).await {
                    tracing::warn!(error = e.told(), "a check's state was not committed");
                }
            }
        }
    }

    async fn lapse(&self, Lapse { holders, to }: Lapse) {
        let names = holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        match self.replica.register("lease", Op::Lapse { holders, to, server: self.server.clone() }).await {
            Ok(done) => {
                if let Reply::Lapsed { spared } = &done.reply
                    && !spared.is_empty()
                {
                    self.lock().leases.spared(self.replica.clock.mono(), spared);
                }
                if done.changed {
                    let state = if to == LeaseState::Dead { "dead" } else { "unknown" };
                    tracing::warn!(holders = names, state, "nothing was heard of them");
                }
            }
            // offered again at the next tick
            Err(e) => tracing::warn!(error = e.told(), "a lapse was not committed"),
        }
    }

    async fn commit(&self, change: checks::Change) -> Result<(), CommitFailure<PlanError>> {
        let (checks::Change::Set { check, .. } | checks::Change::Reap { check }) = &change;
        let check = check.clone();
        let op = match change {
            checks::Change::Reap { check } => Op::Reap { check },
            checks::Change::Set { check, status, output } => {
                // whoever was let to report it speaks for its owner
                let state = self.replica.state();
                let Some(stored) = state.registry.check(&check) else { return Ok(()) };
                Op::Check { check, status, output, by: stored.value.owner.clone() }
            }
        };
        match self.replica.register("check", op).await {
            // gone meanwhile
            Err(CommitFailure::Refused(PlanError::NoCheck(_))) | Ok(_) => Ok(()),
            Err(e) => {
                self.take_back(&check);
                Err(e)
            }
        }
    }

    /// The board took the change as made. Nothing will be folded that says otherwise: left alone, it would take the next
    /// result of the kind for old news, and the catalog would keep what is no longer so.
    fn take_back(&self, check: &CheckId) {
        let state = self.replica.state();
        let mut inner = self.lock();
        if let Some(stored) = state.registry.check(check).filter(|_| inner.board.knows(check)) {
            inner.board.put(self.replica.clock.mono(), stored.value.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
