//! Resources as the API shows them: the document with its resource version and status, lists and tables.

use serde_json::{Value, json};
use weft_model::Wall;
use weft_resources::{Kind, Resource, ResourceKey};

use crate::state::State;

/// The stored document with what only the server knows.
pub fn object(state: &State, key: &ResourceKey, resource: &Resource) -> Value {
    let version = state.resource_version(key).unwrap_or(state.revision.n);
    let status = state.statuses.get(key).map(|s| s.value.status.clone());
    with(resource, version, status)
}

pub fn with(resource: &Resource, version: u64, status: Option<Value>) -> Value {
    let mut json = resource.to_json();
    if let Some(meta) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("resourceVersion".into(), json!(version.to_string()));
        // Kubernetes' times have whole seconds
        if let Some(at) = resource.metadata.creation_timestamp {
            meta.insert("creationTimestamp".into(), json!(seconds(at)));
        }
    }
    if let (Some(map), Some(status)) = (json.as_object_mut(), status) {
        map.insert("status".into(), status);
    }
    json
}

pub fn list(kind: Kind, version: u64, items: Vec<Value>) -> Value {
    json!({
        "kind": format!("{kind}List"), "apiVersion": kind.api_version(),
        "metadata": { "resourceVersion": version.to_string() }, "items": items,
    })
}

/// What `kubectl get` prints: `Accept: application/json;as=Table`.
pub fn table(version: u64, now: Wall, items: &[Value]) -> Value {
    let column = |name: &str, format: &str| json!({ "name": name, "type": "string", "format": format, "priority": 0, "description": "" });
    let rows: Vec<Value> = items
        .iter()
        .map(|o| {
            let meta = o.get("metadata");
            let text = |k: &str| meta.and_then(|m| m.get(k)).and_then(Value::as_str).unwrap_or_default();
            let created = text("creationTimestamp");
            let accepted = condition(o, "Accepted");
            // without the whole object a table is enough for people; `-o yaml` asks for no table
            let partial = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta });
            json!({ "cells": [text("name"), accepted, age(created, now)], "object": partial })
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": version.to_string() },
        "columnDefinitions": [column("Name", "name"), column("Accepted", ""), column("Age", "")], "rows": rows,
    })
}

/// Of the resource itself, or of its first parent.
fn condition(object: &Value, kind: &str) -> String {
    let status = object.get("status");
    let own = status.and_then(|s| s.get("conditions"));
    let parent = || status.and_then(|s| s.get("parents")?.get(0)?.get("conditions"));
    let conditions = own.or_else(parent).and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
    found.and_then(|c| c.get("status")?.as_str()).unwrap_or_default().to_owned()
}

/// As `kubectl` writes ages.
fn age(created: &str, now: Wall) -> String {
    let Some(at) = parse_seconds(created) else { return "<unknown>".into() };
    let s = now.since(at).as_secs();
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

/// RFC 3339 without fractions.
pub fn seconds(at: Wall) -> String {
    let text = at.rfc3339();
    text.split_once('.').map_or(text.clone(), |(whole, _)| format!("{whole}Z"))
}

fn parse_seconds(text: &str) -> Option<Wall> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (y, m, d) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (h, min, s) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // days from civil, years that begin in March
    let (y, m) = if m <= 2 { (y - 1, m + 9) } else { (y, m - 3) };
    let days = y.div_euclid(400) * 146_097 + {
        let yoe = y.rem_euclid(400);
        yoe * 365 + yoe / 4 - yoe / 100 + (153 * m + 2) / 5 + d - 1
    } - 719_468;
    Some(Wall::secs(days * 86_400 + h * 3600 + min * 60 + s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_and_age() {
        for s in [0, 951_782_400, 1_790_158_777, 4_102_444_799] {
            assert_eq!(parse_seconds(&seconds(Wall::secs(s))), Some(Wall::secs(s)));
        }
        let now = Wall::secs(1_000_000);
        let ago = |s: i64| age(&seconds(Wall::secs(1_000_000 - s)), now);
        assert_eq!([ago(5), ago(119), ago(120), ago(7300), ago(200_000)], ["5s", "119s", "2m", "2h", "2d"]);
        assert_eq!(age("", now), "<unknown>");
    }
}
