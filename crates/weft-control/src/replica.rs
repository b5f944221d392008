//! One replica's hold on the store: the current state for readers, and the loop of plan, commit, catch up for writers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};
use weft_model::Revision;
use weft_registry::{Op, PlanError, Reply, plan::MAX_ATTEMPTS};
use weft_rt::{Clock, Dice};
use weft_store::{CommitError, Expect, Key, ReadError, Store, Txn, TxnId, Write};

use crate::state::State;

/// How long a reader waits for the view to catch up before it says that it cannot.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Shared by everything that reads or writes.
pub struct Replica {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    state: ArcSwap<State>,
    reached: watch::Sender<Revision>,
    dice: Mutex<Dice>,
}

/// What to commit, and what to say when it did.
#[derive(Debug)]
pub struct Draft<T> {
    pub expects: Vec<Expect>,
    /// Empty: nothing to commit; the reply counts only on a state that has reached the store's head.
    pub writes: BTreeMap<Key, Write>,
    pub reply: T,
}

#[derive(Debug)]
pub struct Committed<T> {
    pub revision: Revision,
    pub reply: T,
    /// False: it already was as asked for.
    pub changed: bool,
}

/// Why nothing was committed, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum CommitFailure<E> {
    /// The planner's own refusal.
    #[error("refused")]
    Refused(E),
    #[error("others kept changing the same things {MAX_ATTEMPTS} times; try again")]
    Contended,
    #[error("the store did not take it")]
    Store(#[source] CommitError),
    #[error("the store cannot be read")]
    Read(#[source] ReadError),
    #[error("this server has fallen behind the store; try again, or another server")]
    Behind,
}

// === impl Replica ===

impl Replica {
    pub fn new(store: Arc<dyn Store>, clock: Clock, dice: Dice, state: State) -> Self {
        let (reached, _) = watch::channel(state.revision);
        Self { store, clock, state: ArcSwap::from_pointee(state), reached, dice: Mutex::new(dice) }
    }

    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Sees each revision that the state has reached.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.reached.subscribe()
    }

    /// By the publisher alone: the only writer of the state.
    pub(crate) fn publish(&self, state: Arc<State>) {
        let revision = state.revision;
        self.state.store(state);
        self.reached.send_replace(revision);
    }

    /// The state, once it has reached `revision`. `None`: it did not in time.
    pub async fn reached(&self, revision: Revision) -> Option<Arc<State>> {
        let mut seen = self.subscribe();
        let wait = seen.wait_for(|r| *r >= revision);
        tokio::time::timeout(CATCH_UP, wait).await.ok()?.ok()?;
        Some(self.state())
    }

    /// A consistent read: at least what was committed when it was asked.
    pub async fn fresh<E>(&self) -> Result<Arc<State>, CommitFailure<E>> {
        let head = self.store.head().map_err(CommitFailure::Read)?;
        self.reached(head.revision).await.ok_or(CommitFailure::Behind)
    }

    pub fn roll(&self) -> u64 {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    fn txn_id(&self) -> TxnId {
        TxnId(u128::from(self.roll()) << 64 | u128::from(self.roll()))
    }

    /// Plans on the state and commits; on a conflict catches up and plans again, a few times. Returns when the state has
    /// reached the commit: whoever asks next sees it.
    pub async fn commit<T, E>(
        &self,
        who: &str,
        why: &str,
        mut planner: impl FnMut(&State, TxnId) -> Result<Draft<T>, E>,
    ) -> Result<Committed<T>, CommitFailure<E>> {
        let mut caught_up = None;
        for _ in 0..MAX_ATTEMPTS {
            let mut state = self.state();
            let txn_id = self.txn_id();
            let mut planned = planner(&state, txn_id);
            let is_idle = |p: &Result<Draft<T>, E>| p.as_ref().map_or(true, |d| d.writes.is_empty());
            // what commits nothing cannot conflict, so it counts only on a state that has what was committed before it
            // was asked for
            if is_idle(&planned) && caught_up.is_none_or(|head| state.revision < head) {
                state = self.fresh().await?;
                caught_up = Some(state.revision);
                planned = planner(&state, txn_id);
            }
            let idle = is_idle(&planned);
            let draft = planned.map_err(CommitFailure::Refused)?;
            if idle {
                return Ok(Committed { revision: state.revision, reply: draft.reply, changed: false });
            }
            let mut txn = Txn::new(txn_id, who, self.clock.wall(), why);
            txn.expects = draft.expects;
            txn.writes = draft.writes;
            match self.submit(txn).await {
                Ok(revision) => {
                    self.reached(revision).await.ok_or(CommitFailure::Behind)?;
                    return Ok(Committed { revision, reply: draft.reply, changed: true });
                }
                Err(e) if e.is_conflict() => drop(self.fresh::<E>().await?),
                Err(e) => return Err(CommitFailure::Store(e)),
            }
        }
        Err(CommitFailure::Contended)
    }

    /// One operation on the registry.
    pub async fn register(&self, who: &str, op: Op) -> Result<Committed<Reply>, CommitFailure<PlanError>> {
        let why = op.name();
        self.commit(who, why, |state, _| {
            let plan = weft_registry::plan(&state.registry, op.clone())?;
            Ok(Draft { expects: plan.expects, writes: plan.writes, reply: plan.reply })
        })
        .await
    }

    /// An unknown outcome is looked up, never tried again blindly.
    async fn submit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let txn_id = txn.txn_id;
        let (tell, outcome) = oneshot::channel();
        self.store.submit(txn, Box::new(move |o| drop(tell.send(o))));
        match outcome.await.unwrap_or(Err(CommitError::Closed)) {
            Err(CommitError::Unknown { txn_id: lost, source }) => match self.store.lookup(txn_id) {
                Ok(Some(revision)) => Ok(revision),
                // it did not commit: nothing is known to be different, so planning again is right
                Ok(None) => Err(CommitError::Conflict { expect: Expect::absent(lost.to_string()), found: None }),
                Err(_) => Err(CommitError::Unknown { txn_id: lost, source }),
            },
            outcome => outcome,
        }
    }
}

impl<T> Draft<T> {
    pub fn idle(reply: T) -> Self {
        Self { expects: Vec::new(), writes: BTreeMap::new(), reply }
    }
}

impl<E: std::error::Error + 'static> CommitFailure<E> {
    /// Everything that is known, on one line.
    pub fn told(&self) -> String {
        match self {
            Self::Refused(e) => weft_rt::log::chain(e).to_string(),
            other => weft_rt::log::chain(other).to_string(),
        }
    }
}
