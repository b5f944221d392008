//! The only loop: the log → the state → the fragments whose inputs changed → the streams that subscribed to them.

use std::{future::poll_fn, sync::Arc};

use weft_resources::{Affected, affected};
use weft_snapshot::fragment;
use weft_store::{Entry, ReadError, Watch};

use crate::{
    authority::Authority,
    liveness::Liveness,
    metrics::Metrics,
    replica::Replica,
    sessions::{Sessions, Touched},
    state::{FoldError, State},
    status::Pending,
};

pub struct Publisher {
    pub replica: Arc<Replica>,
    pub sessions: Arc<Sessions>,
    pub liveness: Arc<Liveness>,
    pub authority: Arc<Authority>,
    pub statuses: Arc<Pending>,
    pub metrics: Arc<Metrics>,
}

/// Why the loop ended. The server must end with it: a view that stands still would look like the truth.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the store cannot be followed")]
    Watch(#[source] ReadError),
    #[error("what was committed cannot be taken in")]
    Fold(#[source] FoldError),
}

impl Publisher {
    /// Follows the log from the state that the replica has, until the store is closed.
    pub async fn run(self) -> Result<(), PublishError> {
        let mut state = State::clone(&self.replica.state());
        let mut watch = self.replica.store.watch(state.revision).map_err(PublishError::Watch)?;
        self.statuses.add(state.docs.keys().cloned());
        loop {
            match next(&mut watch).await {
                Ok(entries) => self.take(&mut state, &entries)?,
                Err(ReadError::Closed) => return Ok(()),
                Err(e @ (ReadError::Compacted { .. } | ReadError::OtherIncarnation { .. })) => {
                    tracing::warn!(error = %e, "reading everything anew");
                    let range = self.replica.store.range("", None).map_err(PublishError::Watch)?;
                    state = State::load(&range).map_err(PublishError::Fold)?;
                    watch = self.replica.store.watch(state.revision).map_err(PublishError::Watch)?;
                    self.trust(&state);
                    self.sessions.publish(state.revision, state.world.clone(), &Touched::Everything);
                    self.statuses.add(state.docs.keys().cloned());
                    self.replica.publish(Arc::new(state.clone()));
                }
                Err(e) => return Err(PublishError::Watch(e)),
            }
        }
    }

    fn take(&self, state: &mut State, entries: &[Arc<Entry>]) -> Result<(), PublishError> {
        let begun = self.replica.clock.mono();
        let mut touched = Affected::default();
        let mut ca = false;
        for entry in entries {
            let folded = state.fold(entry).map_err(PublishError::Fold)?;
            for change in &folded.changes {
                touched.extend(affected(&state.world, change));
            }
            self.liveness.folded(state, &folded);
            ca |= folded.ca;
        }
        if ca {
            self.trust(state);
        }
        self.sessions.publish(state.revision, state.world.clone(), &Touched::These(&touched));
        if !touched.statuses.is_empty() {
            self.statuses.add(touched.statuses);
        }
        self.metrics.push_time.observe(self.replica.clock.mono().since(begun));
        // last: whoever waits for a revision finds it published
        self.replica.publish(Arc::new(state.clone()));
        Ok(())
    }

    fn trust(&self, state: &State) {
        match self.authority.reopen(state) {
            Ok(()) => self.sessions.trust(bundle(&self.authority)),
            // the keys in use stay in use
            Err(e) => tracing::error!(error = %weft_rt::log::chain(&e), "the authorities in the store cannot be used"),
        }
    }
}

/// What proxies are told to trust.
pub fn bundle(authority: &Authority) -> fragment::Bundle {
    let signing = authority.signing();
    let mut authorities: Vec<Arc<[u8]>> =
        signing.trust.bundle.certificates().map(|der| Arc::from(der.as_ref())).collect();
    authorities.sort();
    fragment::Bundle { trust_domain: signing.trust.bundle.trust_domain().clone(), authorities }
}

async fn next(watch: &mut Watch) -> Result<Vec<Arc<Entry>>, ReadError> {
    poll_fn(|cx| watch.poll_next(cx)).await
}
