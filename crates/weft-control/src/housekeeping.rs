//! What nobody needs any more: old history, expired issuances, join tokens long past.

use std::{sync::Arc, time::Duration};

use weft_model::Wall;
use weft_registry::value;
use weft_store::{Expect, Write};

use crate::{
    documents::DocumentError,
    history::{self, HistoryRecord},
    keys,
    replica::{Draft, Replica},
    state,
};

const EVERY: Duration = Duration::from_secs(600);
/// History is kept so long, and at most in so much room.
const HISTORY_KEPT: Duration = Duration::from_secs(30 * 86_400);
const HISTORY_ROOM: usize = 256 << 20;
/// An expired certificate, or token, is explained for so long.
const EXPIRED_KEPT: Duration = Duration::from_secs(86_400);
/// Deletes in one transaction.
const AT_ONCE: usize = 64;

/// Looks every ten minutes, for ever.
pub async fn run(replica: Arc<Replica>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(why) = once(&replica).await {
            tracing::warn!(why, "housekeeping was put off");
        }
    }
}

async fn once(replica: &Replica) -> Result<(), String> {
    let now = replica.clock.wall();
    let mut gone = old_history(replica, now)?;
    gone.extend(old_issuances(replica, now)?);
    let state = replica.state();
    let old_tokens = state.tokens.values().filter(|t| now.since(t.value.not_after) > EXPIRED_KEPT);
    gone.extend(old_tokens.map(|t| (keys::token(&t.value.id), t.modified)));
    for some in gone.chunks(AT_ONCE) {
        let committed = replica.commit::<(), DocumentError>("weft", "housekeeping", |_, _| {
            let mut draft = Draft::idle(());
            for (key, modified) in some {
                draft.expects.push(Expect::unchanged(key.clone(), *modified));
                draft.writes.insert(key.clone().into(), Write::Delete);
            }
            Ok(draft)
        });
        committed.await.map_err(|e| e.told())?;
    }
    Ok(())
}

type Gone = Vec<(String, weft_model::Revision)>;

fn old_history(replica: &Replica, now: Wall) -> Result<Gone, String> {
    let range = replica.store.range(keys::HISTORY, None).map_err(|e| e.to_string())?;
    let items: Vec<_> = range
        .items
        .iter()
        .map(|(key, v)| {
            // what cannot be read is as old as can be
            let when = value::decode::<HistoryRecord>(key, &v.value).map_or(Wall::EPOCH, |r| r.when);
            (key.to_string(), v.modified, when, v.value.len())
        })
        .collect();
    let gone = history::expired(&items, now, HISTORY_KEPT, HISTORY_ROOM);
    let modified = |key: &String| items.iter().find(|(k, ..)| k == key).map(|(_, m, ..)| *m);
    Ok(gone.into_iter().filter_map(|key| Some((key.clone(), modified(&key)?))).collect())
}

fn old_issuances(replica: &Replica, now: Wall) -> Result<Gone, String> {
    let range = replica.store.range(keys::LEDGER, None).map_err(|e| e.to_string())?;
    let old = range.items.into_iter().filter(|(key, v)| {
        let record = state::raw(key, v).ok().and_then(|raw| weft_ca::LedgerRecord::decode(raw).ok());
        record.is_some_and(|r| now.since(r.not_after) > EXPIRED_KEPT)
    });
    Ok(old.map(|(key, v)| (key.to_string(), v.modified)).collect())
}
