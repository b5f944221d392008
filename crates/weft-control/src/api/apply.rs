//! A whole stream of documents at once: what `weft apply` and `weft delete` send.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_model::{Name, Revision};
use weft_resources::{Document, Resource, ResourceKey, Violation, Violations, admit, document};
use weft_store::CommitError;

use super::failure::{Answer, Failure};
use crate::{
    documents::{self, DocumentError, Done, Intent},
    replica::{CommitFailure, Committed},
    server::Control,
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Params {
    namespace: Option<String>,
    dry_run: Option<String>,
    atomic: Option<bool>,
    /// For messages.
    file: Option<String>,
    field_manager: Option<String>,
}

pub async fn apply(State(control): State<Arc<Control>>, Query(params): Query<Params>, body: Bytes) -> Answer {
    let mut intents = Vec::new();
    let mut results = Vec::new();
    let mut failed = false;
    for read in read(&params, &body)? {
        match read.and_then(|doc| admit(&doc).map_err(|v| (Some(doc.key()), v))) {
            Ok(resource) => {
                results.push(Row::admitted(&resource));
                let version = resource.metadata.resource_version.clone();
                intents.push(Intent::Apply(Box::new(resource), version));
            }
            Err((key, violations)) => {
                failed = true;
                results.push(Row::invalid(key, &violations));
            }
        }
    }
    finish(&control, &params, "apply", intents, results, failed).await
}

pub async fn delete(State(control): State<Arc<Control>>, Query(params): Query<Params>, body: Bytes) -> Answer {
    let mut intents = Vec::new();
    let mut results = Vec::new();
    let mut failed = false;
    for read in read(&params, &body)? {
        match read {
            // what is deleted need not be valid: its name is enough
            Ok(doc) => {
                results.push(Row::of(doc.key()));
                intents.push(Intent::Remove(doc.key()));
            }
            Err((key, violations)) => {
                failed = true;
                results.push(Row::invalid(key, &violations));
            }
        }
    }
    finish(&control, &params, "delete", intents, results, failed).await
}

/// One document's line of the answer.
struct Row {
    key: Option<ResourceKey>,
    result: &'static str,
    violations: Vec<Value>,
    warnings: Vec<Value>,
    message: Option<String>,
    revision: Option<Revision>,
}

async fn finish(
    control: &Control,
    params: &Params,
    why: &str,
    intents: Vec<Intent>,
    mut rows: Vec<Row>,
    failed: bool,
) -> Answer {
    let state = control.replica.state();
    if failed {
        // one wrong document and nothing is written: half a change is nobody's intention
        let code = StatusCode::UNPROCESSABLE_ENTITY;
        return Ok(answer(code, state.revision, &rows));
    }
    if intents.is_empty() {
        return Err(Failure::bad_request("there is no document in what was sent"));
    }
    let dry = match params.dry_run.as_deref() {
        None | Some("") => false,
        Some("All") => true,
        Some(other) => return Err(Failure::bad_request(format!("dryRun `{other}` is unknown; the only one is `All`"))),
    };
    let who = params.field_manager.as_deref().map_or_else(|| "admin".to_owned(), |m| format!("admin ({m})"));
    let whole = match dry {
        true => documents::dry_run(&control.replica, &intents).await,
        false => documents::write(&control.replica, &who, why, &intents).await,
    };
    match whole {
        Ok(committed) => {
            let revision = committed.revision;
            tell(&mut rows, committed);
            Ok(answer(StatusCode::OK, revision, &rows))
        }
        Err(CommitFailure::Store(CommitError::TooLarge { .. })) if params.atomic != Some(true) => {
            one_by_one(control, &who, why, intents, rows).await
        }
        Err(CommitFailure::Refused(e)) => {
            let (DocumentError::Exists(key)
            | DocumentError::Missing(key)
            | DocumentError::Conflict { key, .. }
            | DocumentError::Twice(key)) = &e;
            for row in rows.iter_mut().filter(|r| r.key.as_ref() == Some(key)) {
                row.result = "conflict";
                row.message = Some(e.to_string());
            }
            Ok(answer(StatusCode::CONFLICT, state.revision, &rows))
        }
        Err(other) => Err(other.into()),
    }
}

/// What fits no transaction commits document by document, and each is reported.
async fn one_by_one(control: &Control, who: &str, why: &str, intents: Vec<Intent>, mut rows: Vec<Row>) -> Answer {
    let mut code = StatusCode::OK;
    let mut last = control.replica.state().revision;
    for intent in intents {
        let key = intent.key().clone();
        match documents::write(&control.replica, who, why, &[intent]).await {
            Ok(committed) => {
                last = last.max(committed.revision);
                tell(&mut rows, committed);
            }
            Err(e) => {
                code = StatusCode::MULTI_STATUS;
                for row in rows.iter_mut().filter(|r| r.key.as_ref() == Some(&key)) {
                    row.result = "failed";
                    row.message = Some(e.told());
                }
            }
        }
    }
    Ok(answer(code, last, &rows))
}

fn tell(rows: &mut [Row], committed: Committed<Vec<Done>>) {
    for done in committed.reply {
        for row in rows.iter_mut().filter(|r| r.key.as_ref() == Some(&done.key)) {
            row.result = done.outcome.as_str();
            row.revision = Some(committed.revision);
        }
    }
}

type Read = Result<Document, (Option<ResourceKey>, Violations)>;

fn read(params: &Params, body: &[u8]) -> Answer<Vec<Read>> {
    let text = std::str::from_utf8(body).map_err(|e| {
        Failure::bad_request(format!("what was sent is no UTF-8 (byte {}); send YAML or JSON", e.valid_up_to()))
    })?;
    let namespace = match params.namespace.as_deref().filter(|n| !n.is_empty()) {
        None => None,
        Some(ns) => Some(Name::parse(ns).map_err(|e| Failure::bad_request(format!("namespace: {e}")))?),
    };
    let file = params.file.as_deref().unwrap_or_default();
    let documents = document::parse(file, text).into_iter().map(|read| match read {
        Ok(mut doc) => {
            if doc.metadata.namespace.is_none() && doc.kind.is_namespaced() {
                doc.metadata.namespace.clone_from(&namespace);
            }
            Ok(doc)
        }
        Err(violations) => Err((None, violations)),
    });
    Ok(documents.collect())
}

fn answer(code: StatusCode, revision: Revision, rows: &[Row]) -> Response {
    let results: Vec<_> = rows.iter().map(Row::to_json).collect();
    (code, Json(json!({ "revision": revision.to_string(), "results": results }))).into_response()
}

// === impl Row ===

impl Row {
    fn of(key: ResourceKey) -> Self {
        Self { key: Some(key), result: "valid", violations: vec![], warnings: vec![], message: None, revision: None }
    }

    fn admitted(resource: &Resource) -> Self {
        Self { warnings: resource.warnings.iter().map(violation).collect(), ..Self::of(resource.key.clone()) }
    }

    fn invalid(key: Option<ResourceKey>, violations: &Violations) -> Self {
        let violations = violations.iter().map(violation).collect();
        Self { key, result: "invalid", violations, warnings: vec![], message: None, revision: None }
    }

    fn to_json(&self) -> Value {
        json!({
            "resource": self.key.as_ref().map(ToString::to_string), "result": self.result,
            "violations": self.violations, "warnings": self.warnings, "message": self.message,
            "revision": self.revision.map(|r| r.to_string()),
        })
    }
}

fn violation(v: &Violation) -> Value {
    json!({
        "text": v.to_string(), "message": v.message, "field": v.spot.path, "file": v.file, "line": v.spot.line,
        "column": v.spot.column,
    })
}
