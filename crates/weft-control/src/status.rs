//! What we say back about resources: conditions, committed only when one changes, at most once a second per object.
//! It never triggers a compile: a status lives under a key of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use weft_model::Mono;
use weft_registry::value;
use weft_resources::{ResourceKey, status};
use weft_store::{Expect, Write};

use crate::{
    keys,
    metrics::Metrics,
    replica::{CommitFailure, Draft, Replica},
    state::State,
};

const EVERY: Duration = Duration::from_secs(1);
/// Statuses in one transaction: two expectations each.
const AT_ONCE: usize = 32;

/// The status of one resource as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRecord {
    /// Of the resource that it is about.
    pub generation: u64,
    /// As the API shows it.
    pub status: serde_json::Value,
}

/// Resources whose status may be another.
#[derive(Default)]
pub struct Pending {
    keys: Mutex<BTreeSet<ResourceKey>>,
    more: Notify,
}

// === impl Pending ===

impl Pending {
    pub fn add(&self, keys: impl IntoIterator<Item = ResourceKey>) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        self.more.notify_one();
    }

    fn take(&self) -> BTreeSet<ResourceKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes what changed, for ever.
    pub async fn run(self: Arc<Self>, replica: Arc<Replica>, metrics: Arc<Metrics>) {
        let mut written: BTreeMap<ResourceKey, Mono> = BTreeMap::new();
        let mut waiting = BTreeSet::new();
        loop {
            if waiting.is_empty() {
                self.more.notified().await;
            } else {
                // the earliest of those that were written a moment ago
                let _ = tokio::time::timeout(EVERY / 4, self.more.notified()).await;
            }
            waiting.extend(self.take());
            let now = replica.clock.mono();
            written.retain(|_, at| now.since(*at) < EVERY);
            let due: Vec<_> = waiting.iter().filter(|k| !written.contains_key(*k)).take(AT_ONCE).cloned().collect();
            if due.is_empty() {
                continue;
            }
            match write(&replica, &due).await {
                Ok(changed) => {
                    metrics.status_writes.add(changed.len() as u64);
                    written.extend(changed.into_iter().map(|k| (k, now)));
                    waiting.retain(|k| !due.contains(k));
                }
                Err(e) => {
                    tracing::warn!(error = e.told(), "statuses were not written");
                    tokio::time::sleep(EVERY).await;
                }
            }
        }
    }
}

/// Returns those that were written.
async fn write(replica: &Replica, due: &[ResourceKey]) -> Result<Vec<ResourceKey>, CommitFailure<std::fmt::Error>> {
    let committed = replica.commit("weft", "status", |state, _| {
        let mut draft = Draft::idle(Vec::new());
        for key in due {
            one(state, key, replica.clock.wall(), &mut draft);
        }
        Ok(draft)
    });
    Ok(committed.await?.reply)
}

fn one(state: &State, key: &ResourceKey, now: weft_model::Wall, draft: &mut Draft<Vec<ResourceKey>>) {
    let (Some(doc), Some(status)) = (state.docs.get(key), status::status(&state.world, key)) else { return };
    let before = state.statuses.get(key);
    let generation = doc.resource.metadata.generation;
    let json = status.to_json(generation, before.map(|s| &s.value.status), now);
    let record = StatusRecord { generation, status: json };
    if before.is_some_and(|b| *b.value == record) {
        return;
    }
    let at = keys::status(key);
    draft.expects.push(Expect::unchanged(keys::resource(key), doc.modified));
    draft.expects.push(match before {
        None => Expect::absent(at.clone()),
        Some(b) => Expect::unchanged(at.clone(), b.modified),
    });
    draft.writes.insert(at.into(), Write::Put(value::encode(&record)));
    draft.reply.push(key.clone());
}
