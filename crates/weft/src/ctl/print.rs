//! Tables, JSON and YAML.

use serde_json::Value;

use crate::{
    cli::Output,
    say::{out, say, tell},
};

/// Prints JSON or YAML as asked; `false`: a table was asked for, and is the caller's to make.
pub fn structured(json: &Value, output: Output) -> bool {
    match output {
        Output::Json => say!("{}", serde_json::to_string_pretty(json).unwrap_or_default()),
        Output::Yaml => out(format_args!("{}", yaml(json))),
        Output::Table | Output::Wide => return false,
    }
    true
}

/// Columns as wide as their widest cell; `nothing` is told when there is no row.
pub fn table(head: &[&str], rows: &[Vec<String>], nothing: &str) {
    if rows.is_empty() {
        tell!("{nothing}");
        return;
    }
    out(format_args!("{}", lines(head, rows)));
}

fn lines(head: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..head.len())
        .map(|i| {
            rows.iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .chain(head.get(i).map(|h| h.len()))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    let head = head.iter().map(ToString::to_string).collect::<Vec<_>>();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A member as text; empty where it is absent or null.
pub fn text(json: &Value, key: &str) -> String {
    match json.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

pub fn list<'a>(json: &'a Value, key: &str) -> &'a [Value] {
    json.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Block YAML of a JSON value; every scalar is written as JSON, which is YAML too.
pub fn yaml(json: &Value) -> String {
    let mut out = String::new();
    block(json, 0, &mut out);
    out
}

fn block(json: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match json {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                out.push_str(&format!("{pad}{}:", plain(key)));
                member(value, depth, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(item, depth + 1, &mut inner);
                // the first line of an item stands behind its dash
                out.push_str(&format!("{pad}- {}", inner.trim_start()));
            }
        }
        scalar => out.push_str(&format!("{pad}{}\n", quoted(scalar))),
    }
}

fn member(value: &Value, depth: usize, out: &mut String) {
    let nested =
        matches!(value, Value::Object(m) if !m.is_empty()) || matches!(value, Value::Array(a) if !a.is_empty());
    if nested {
        out.push('\n');
        block(value, depth + 1, out);
    } else {
        out.push_str(&format!(" {}\n", quoted(value)));
    }
}

fn quoted(scalar: &Value) -> String {
    match scalar {
        Value::String(s) => plain(s),
        other => other.to_string(),
    }
}

/// Text without quotes where YAML could not take it for anything else.
fn plain(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && text.chars().all(safe);
    let reserved =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if word && !reserved { text.into() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_fit_their_cells() {
        let rows = [vec!["a".to_owned(), "long cell".to_owned()], vec!["bbbb".to_owned(), String::new()]];
        assert_eq!(lines(&["X", "Y"], &rows), "X     Y\na     long cell\nbbbb\n");
    }

    #[test]
    fn yaml_keeps_what_json_says() {
        let json = json!({"kind": "A", "on": "true", "n": 5, "empty": {}, "list": [{"a": 1, "b": ["x", "1"]}, "y: z"]});
        let want = "empty: {}\nkind: A\nlist:\n  - a: 1\n    b:\n      - x\n      - \"1\"\n  - \"y: z\"\n\"n\": 5\n\"on\": \"true\"\n";
        assert_eq!(yaml(&json), want);
    }
}
