//! Streams of YAML or JSON documents, and what every document says of itself.

use std::{collections::BTreeMap, sync::Arc};

use serde_saphyr::Spanned;
use weft_model::{Labels, Name, Revision, Wall};

use crate::{
    admit::admit_spec,
    kind::{self, Kind},
    node::{Node, Value},
    schema::{At, Decode, Entries, Field, Ignored, schema},
    violation::{Reason, Sink, Spot, Violation, Violations, nearest},
    words,
};

/// One document of a known kind, its spec not yet admitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// For messages; empty where it came from no file.
    pub file: Arc<str>,
    /// Where it begins.
    pub line: u32,
    pub kind: Kind,
    pub metadata: Metadata,
    pub spec: Node,
    /// As sent; admission does not look at it.
    pub status: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub name: Name,
    /// `None` until somebody says which one; [`crate::admit`] takes `default`.
    pub namespace: Option<Name>,
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    // what the server writes:
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub generation: u64,
    pub creation_timestamp: Option<Wall>,
    /// The transaction that created it; not part of the text, set by whoever reads it from the store.
    pub created: Revision,
}

schema! {
    struct RawDocument {
        api_version: String = "apiVersion",
        kind: String = "kind",
        metadata: RawMetadata = "metadata",
        _spec: Ignored = "spec",
        _status: Ignored = "status",
    }

    struct RawMetadata {
        name: String = "name",
        namespace: String = "namespace",
        labels: Entries<String> = "labels",
        annotations: Entries<String> = "annotations",
        uid: String = "uid",
        resource_version: String = "resourceVersion",
        generation: i64 = "generation",
        creation_timestamp: String = "creationTimestamp",
        generate_name: String = "generateName",
        _managed_fields: Ignored = "managedFields",
        _finalizers: Ignored = "finalizers",
        _owner_references: Ignored = "ownerReferences",
        _self_link: Ignored = "selfLink",
        _deletion_timestamp: Ignored = "deletionTimestamp",
        _deletion_grace: Ignored = "deletionGracePeriodSeconds",
    }
}

/// Reads every document of a stream. One that is malformed does not hide the others. `file` is for messages alone.
pub fn parse(file: &str, text: &str) -> Vec<Result<Document, Violations>> {
    let file: Arc<str> = file.into();
    let mut out = Vec::new();
    for (first_line, part) in split(text) {
        match read(&file, part, first_line) {
            Ok(node) if node.value == Value::Null => {}
            Ok(node) => documents(&file, &node, &mut out),
            Err(violations) => out.push(Err(violations)),
        }
    }
    out
}

/// One document as JSON, as it comes over the API or out of the store.
pub fn from_json(json: &serde_json::Value) -> Result<Document, Violations> {
    document(&"".into(), &Node::from_json(json))
}

/// Cuts a stream at its `---` lines (a line that begins so is always a marker, even inside a block of text). Parts without
/// content are left out; each comes with the number of lines before it.
fn split(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    let mut push = |from: usize, to: usize, line: u32| {
        let part = text.get(from..to).unwrap_or_default();
        let idle = |l: &str| {
            let l = l.strip_prefix("---").unwrap_or(l).trim();
            l.is_empty() || l.starts_with(['#', '%']) || l == "..."
        };
        if !part.lines().all(idle) {
            parts.push((line, part));
        }
    };
    for (number, line) in (0u32..).zip(text.split_inclusive('\n')) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && at > start {
            push(start, at, start_line);
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    push(start, text.len(), start_line);
    parts
}

fn read(file: &Arc<str>, text: &str, lines_before: u32) -> Result<Node, Violations> {
    // YAML 1.2: only `true` and `false` are booleans, so that a label `country: no` stays text.
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    match serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options) {
        Ok(spanned) => {
            let mut node = Node::from(spanned);
            node.shift(lines_before);
            Ok(node)
        }
        Err(error) => {
            let small = |n| u32::try_from(n).unwrap_or(u32::MAX);
            let (line, column) = error.location().map_or((0, 0), |l| (small(l.line()), small(l.column())));
            let text = error.without_snippet().to_string();
            // the place is told in front
            let told = text.rfind(" at line ").and_then(|at| text.get(..at)).unwrap_or(&text);
            // the library's advice to programmers is none for operators
            let told = told.split(", set DuplicateKeyPolicy").next().unwrap_or(told);
            Err(Violations::one(Violation {
                reason: Reason::Malformed,
                file: file.clone(),
                spot: Spot::new("", if line > 0 { line + lines_before } else { 0 }, column),
                message: format!("malformed YAML: {told}"),
            }))
        }
    }
}

/// A document, or the items of a Kubernetes `List`.
fn documents(file: &Arc<str>, node: &Node, out: &mut Vec<Result<Document, Violations>>) {
    let text = |key| match node.get(key).map(|n| &n.value) {
        Some(Value::Text(t)) => Some(t.as_str()),
        _ => None,
    };
    if text("kind") == Some("List") && text("apiVersion") == Some("v1") {
        let items = match node.get("items").map(|n| &n.value) {
            Some(Value::List(items)) => items.as_slice(),
            _ => &[],
        };
        out.extend(items.iter().map(|item| document(file, item)));
    } else {
        out.push(document(file, node));
    }
}

fn document(file: &Arc<str>, node: &Node) -> Result<Document, Violations> {
    let mut out = Sink::new(file.clone());
    let spot = Spot::new("", node.line, node.column);
    let (mut kind, mut metadata) = (None, None);
    if let Some(raw) = RawDocument::decode(node, &spot, &mut out) {
        kind = admit_kind(&raw, &spot, &mut out);
        metadata = match raw.metadata {
            Some(at) => admit_metadata(at, kind, &mut out),
            None => {
                out.missing(&spot, "metadata", "is missing; a document needs at least metadata.name");
                None
            }
        };
    }
    let bare = || Node { line: node.line, column: node.column, ..Node::null() };
    let make = |kind, metadata| Document {
        file: file.clone(),
        line: node.line,
        kind,
        metadata,
        spec: node.get("spec").cloned().unwrap_or_else(bare),
        status: node.get("status").map(Node::to_json),
    };
    if let Some(kind) = kind
        && out.refused(&spot)
    {
        // it cannot be admitted any more, but whoever mends it wants to hear everything at once
        let doc = make(kind, metadata.clone().unwrap_or_else(Metadata::unnamed));
        admit_spec(&doc, &doc.key(), &mut out);
    }
    let read = kind.zip(metadata).map(|(kind, metadata)| make(kind, metadata));
    out.finish(read).map(|(document, _)| document)
}

fn admit_kind(raw: &RawDocument, spot: &Spot, out: &mut Sink) -> Option<Kind> {
    let Some(typed) = &raw.kind else {
        out.missing(spot, "kind", "is missing; say what this is, such as `kind: HTTPRoute`");
        return None;
    };
    let Some(kind) = Kind::parse(&typed.value) else {
        out.refuse(&typed.spot, Reason::UnknownKind, kind::unknown(&typed.value));
        return None;
    };
    let accepted = kind.api_versions();
    match &raw.api_version {
        None => out.missing(spot, "apiVersion", format!("is missing; {kind} is `{}`", kind.api_version())),
        Some(version) if !accepted.contains(&version.value) => {
            let near = nearest(&version.value, accepted.iter().map(String::as_str)).unwrap_or_default();
            let near = if near.is_empty() { &kind.api_version() } else { near };
            let message = format!("unknown version `{}` of {kind}; did you mean `{near}`?", version.value);
            out.refuse(&version.spot, Reason::UnknownKind, message);
        }
        Some(_) => {}
    }
    Some(kind)
}

fn admit_metadata(raw: At<RawMetadata>, kind: Option<Kind>, out: &mut Sink) -> Option<Metadata> {
    let At { spot, value: raw } = raw;
    let name = match (&raw.name, &raw.generate_name) {
        (Some(name), _) => words::name(name, out),
        (None, Some(generate)) => {
            out.unsupported(&generate.spot, "is not supported; give the resource a name");
            None
        }
        (None, None) => {
            out.missing(&spot, "name", "is missing");
            None
        }
    };
    let namespace = raw.namespace.as_ref().and_then(|ns| words::name(ns, out));
    if let (Some(kind), Some(typed)) = (kind, &raw.namespace)
        && !kind.is_namespaced()
        && typed.value != kind::MESH_SCOPE
    {
        out.invalid(&typed.spot, format!("{kind} is mesh-wide and has no namespace; remove this line"));
    }
    let generation = raw.generation.as_ref().map_or(0, |g| u64::try_from(g.value).unwrap_or(0));
    let creation_timestamp = raw.creation_timestamp.as_ref().and_then(|t| {
        let parsed = words::timestamp(&t.value);
        if parsed.is_none() {
            out.invalid(&t.spot, format!("`{}` is not a time such as `2026-11-25T10:06:17Z`", t.value));
        }
        parsed
    });
    Some(Metadata {
        name: name?,
        namespace,
        labels: pairs(&raw.labels).collect(),
        annotations: pairs(&raw.annotations).collect(),
        uid: raw.uid.map(|u| u.value),
        resource_version: raw.resource_version.map(|v| v.value),
        generation,
        creation_timestamp,
        created: Revision::ZERO,
    })
}

// === impl Metadata ===

impl Metadata {
    /// Of a document whose metadata could not be read.
    fn unnamed() -> Self {
        Self {
            name: Name::default_namespace(),
            namespace: None,
            labels: Labels::default(),
            annotations: BTreeMap::new(),
            uid: None,
            resource_version: None,
            generation: 0,
            creation_timestamp: None,
            created: Revision::ZERO,
        }
    }
}

fn pairs(entries: &Field<Entries<String>>) -> impl Iterator<Item = (String, String)> {
    entries.iter().flat_map(|e| &e.value.0).map(|(k, v)| (k.clone(), v.value.clone()))
}

#[cfg(test)]
mod tests;
