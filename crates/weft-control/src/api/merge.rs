//! JSON merge patches (RFC 7396), and as much of Kubernetes' strategic ones as `kubectl apply` sends for a Service.

use serde_json::{Map, Value};

pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = object(target);
    for (key, value) in patch {
        match value {
            Value::Null => drop(map.remove(key)),
            value => merge(map.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

/// As [`merge`], but lists of objects that come with `$setElementOrder` are merged by the key that it names.
pub fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = object(target);
    for (key, value) in patch {
        if key.starts_with("$setElementOrder/")
            || key.starts_with("$retainKeys")
            || key.starts_with("$deleteFromPrimitiveList/")
        {
            continue;
        }
        let order = patch.get(&format!("$setElementOrder/{key}")).and_then(Value::as_array);
        match (value, order) {
            (Value::Null, _) => drop(map.remove(key)),
            (Value::Array(changes), Some(order)) => {
                let list = map.entry(key.clone()).or_insert(Value::Array(Vec::new()));
                *list = Value::Array(merge_list(list, changes, order));
            }
            (value, _) => strategic(map.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
    // an order alone says which elements are left
    for (key, order) in patch.iter().filter_map(|(k, v)| Some((k.strip_prefix("$setElementOrder/")?, v.as_array()?))) {
        if !patch.contains_key(key)
            && let Some(list) = map.get_mut(key)
        {
            *list = Value::Array(merge_list(list, &[], order));
        }
    }
}

fn merge_list(list: &Value, changes: &[Value], order: &[Value]) -> Vec<Value> {
    // elements of the order hold exactly the merge key
    let Some(by) = order.first().and_then(Value::as_object).and_then(|o| o.keys().next()) else {
        return changes.to_vec();
    };
    let same = |a: &Value, b: &Value| a.get(by).is_some() && a.get(by) == b.get(by);
    let there = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let kept = order.iter().filter_map(|wanted| {
        let change = changes.iter().find(|c| same(c, wanted));
        if change.is_some_and(|c| c.get("$patch").and_then(Value::as_str) == Some("delete")) {
            return None;
        }
        let mut element = there.iter().find(|e| same(e, wanted)).cloned();
        if let Some(change) = change {
            strategic(element.get_or_insert(Value::Null), change);
        }
        element
    });
    kept.collect()
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        #[expect(clippy::unreachable, reason = "made an object just above")]
        _ => unreachable!(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_as_rfc_7396_says() {
        let check = |mut target: Value, patch: Value, want: Value| {
            merge(&mut target, &patch);
            assert_eq!(target, want);
        };
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
        check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}}));
        check(json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]}));
        check(json!(["a"]), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}}));
    }

    #[test]
    fn merges_lists_by_their_key() {
        let mut service = json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81, "name": "admin"}]}});
        let patch = json!({"spec": {
            "$setElementOrder/ports": [{"port": 80}, {"port": 82}],
            "ports": [{"port": 80, "name": "web"}, {"port": 82, "name": "new"}, {"port": 81, "$patch": "delete"}],
        }});
        strategic(&mut service, &patch);
        assert_eq!(service, json!({"spec": {"ports": [{"port": 80, "name": "web"}, {"port": 82, "name": "new"}]}}));
    }
}
