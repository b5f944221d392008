//! What operators did, kept beside what they did it to, in the same transaction.

use serde::{Deserialize, Serialize};
use weft_model::{Revision, Wall};
use weft_resources::ResourceKey;
use weft_store::{ReadError, Store, TxnId};

use crate::keys;

/// One transaction over documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    pub when: Wall,
    pub who: String,
    pub why: String,
    pub changes: Vec<HistoryChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryChange {
    /// `kind/namespace/name`.
    pub resource: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<serde_json::Value>,
}

/// A record as read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryEntry {
    pub txn: String,
    pub revision: String,
    #[serde(flatten)]
    pub record: HistoryRecord,
}

pub fn key(txn: TxnId) -> String {
    format!("{}{txn}", keys::HISTORY)
}

impl HistoryChange {
    pub fn new(key: &ResourceKey, before: Option<serde_json::Value>, after: Option<serde_json::Value>) -> Self {
        Self { resource: key.to_string(), before, after }
    }
}

/// Newest first. What cannot be read is left out: history explains, nothing depends on it.
pub fn latest(store: &dyn Store, limit: usize) -> Result<Vec<HistoryEntry>, ReadError> {
    let mut items = store.range(keys::HISTORY, None)?.items;
    items.sort_by_key(|(_, v)| std::cmp::Reverse(v.modified));
    let entries = items.into_iter().filter_map(|(key, v)| {
        let record = weft_registry::value::decode(&key, &v.value).ok()?;
        let txn = key.strip_prefix(keys::HISTORY)?.to_owned();
        Some(HistoryEntry { txn, revision: v.modified.to_string(), record })
    });
    Ok(entries.take(limit).collect())
}

/// Keys of what is past its time, or beyond the room that history may take, oldest first.
pub fn expired(
    items: &[(String, Revision, Wall, usize)],
    now: Wall,
    keep: std::time::Duration,
    room: usize,
) -> Vec<String> {
    let mut by_age: Vec<_> = items.iter().collect();
    by_age.sort_by_key(|(_, modified, _, _)| std::cmp::Reverse(*modified));
    let mut taken = 0usize;
    let mut out: Vec<String> = Vec::new();
    for (key, _, when, size) in by_age {
        taken = taken.saturating_add(*size);
        if now.since(*when) > keep || taken > room {
            out.push(key.clone());
        }
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn history_ends_by_age_and_by_room() {
        let item = |i: u64, when: i64| (format!("h{i}"), Revision::new(0, i), Wall::secs(when), 10);
        let items = [item(1, 0), item(2, 50), item(3, 90)];
        assert_eq!(expired(&items, Wall::secs(100), Duration::from_secs(60), 1000), ["h1"]);
        assert_eq!(expired(&items, Wall::secs(100), Duration::from_secs(600), 20), ["h1"]);
        assert_eq!(expired(&items, Wall::secs(100), Duration::from_secs(600), 5), ["h1", "h2", "h3"]);
    }
}
