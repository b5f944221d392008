//! Resources by Kubernetes' conventions: get, list, watch, create, replace, patch, delete.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_model::Name;
use weft_resources::{Kind, MESH_SCOPE, Resource, ResourceKey, admit, document};

use super::{
    failure::{Answer, Failure},
    merge, present, watch,
};
use crate::{
    documents::{self, Intent, Outcome},
    replica::Committed,
    server::Control,
    state,
};

/// `/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}`, taken apart.
#[derive(Debug, Clone)]
pub struct Target {
    pub kind: Kind,
    pub namespace: Option<Name>,
    pub name: Option<Name>,
    /// The `/status` of it.
    pub status: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Params {
    pub watch: Option<String>,
    pub resource_version: Option<String>,
    pub allow_watch_bookmarks: Option<String>,
    pub send_initial_events: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub dry_run: Option<String>,
    pub field_manager: Option<String>,
}

type Parts = (State<Arc<Control>>, Path<String>, Query<Params>, HeaderMap);

// === handlers: the path after /apis/ or /api/ comes whole ===

pub async fn get((State(control), Path(path), Query(params), headers): Parts, group: Group) -> Answer {
    let target = parse(group, &path)?;
    let params = params.admit(&target)?;
    if params.is_watch() {
        return watch::resources(&control, target, params);
    }
    let state = control.replica.fresh().await.map_err(|e| Failure::of_commit::<documents::DocumentError>(&e))?;
    match target.key() {
        Some(key) => {
            let doc = state.docs.get(&key).ok_or_else(|| missing(&key))?;
            let mut object = present::object(&state, &key, &doc.resource);
            programmed(&control, doc, &mut object);
            Ok(shown(&control, &headers, state.revision.n, vec![object], |mut o| o.pop().unwrap_or_default()))
        }
        None => {
            let items = selected(&state, &target, &params).map(|(k, r)| present::object(&state, k, r)).collect();
            let n = state.revision.n;
            Ok(shown(&control, &headers, n, items, |items| present::list(target.kind, n, items)))
        }
    }
}

pub async fn post((State(control), Path(path), Query(params), headers): Parts, group: Group, body: Bytes) -> Answer {
    let target = parse(group, &path)?;
    let resource = admitted(&target, &decode(&headers, &body)?)?;
    write(&control, &target, &params, Intent::Create(Box::new(resource))).await
}

pub async fn put((State(control), Path(path), Query(params), headers): Parts, group: Group, body: Bytes) -> Answer {
    let target = parse(group, &path)?;
    if target.status {
        return Err(Failure::forbidden("status is written by the server alone"));
    }
    let resource = admitted(&target, &decode(&headers, &body)?)?;
    let version = resource.metadata.resource_version.clone();
    write(&control, &target, &params, Intent::Replace(Box::new(resource), version)).await
}

pub async fn patch((State(control), Path(path), Query(params), headers): Parts, group: Group, body: Bytes) -> Answer {
    let target = parse(group, &path)?;
    if target.status {
        return Err(Failure::forbidden("status is written by the server alone"));
    }
    let key = target.key().ok_or_else(|| Failure::bad_request("a patch needs the name of one resource"))?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let strategic = match kind {
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            let resource = admitted(&target, &one_yaml(&body)?)?;
            let version = resource.metadata.resource_version.clone();
            return write(&control, &target, &params, Intent::Apply(Box::new(resource), version)).await;
        }
        "application/merge-patch+json" => false,
        "application/strategic-merge-patch+json" => true,
        other => {
            return Err(Failure::unsupported_media(format!(
                "patches of type `{other}` are not supported; use application/apply-patch+yaml or merge-patch+json"
            )));
        }
    };
    let patch: Value =
        serde_json::from_slice(&body).map_err(|e| Failure::bad_request(format!("the patch is no JSON: {e}")))?;
    let state = control.replica.fresh().await.map_err(|e| Failure::of_commit::<documents::DocumentError>(&e))?;
    let doc = state.docs.get(&key).ok_or_else(|| missing(&key))?;
    let mut object = doc.resource.to_json();
    if strategic {
        merge::strategic(&mut object, &patch)
    } else {
        merge::merge(&mut object, &patch)
    }
    let resource = admitted(&target, &object)?;
    // what was patched is what was read: another change in between is a conflict, not lost
    let asked = patch.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(ToOwned::to_owned);
    let version = asked.or_else(|| state.resource_version(&key).map(|n| n.to_string()));
    write(&control, &target, &params, Intent::Replace(Box::new(resource), version)).await
}

pub async fn delete((State(control), Path(path), Query(params), _): Parts, group: Group, body: Bytes) -> Answer {
    let target = parse(group, &path)?;
    let options: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(&body).unwrap_or_default() };
    if options.get("dryRun").is_some_and(|d| !d.as_array().is_none_or(Vec::is_empty)) {
        return delete_one(&control, &target, &Params { dry_run: Some("All".into()), ..params }, None).await;
    }
    let version = options.pointer("/preconditions/resourceVersion").and_then(Value::as_str).map(ToOwned::to_owned);
    delete_one(&control, &target, &params, version).await
}

async fn delete_one(control: &Control, target: &Target, params: &Params, version: Option<String>) -> Answer {
    let key =
        target.key().ok_or_else(|| Failure::bad_request("name the resource to delete; whole collections are not"))?;
    let done = commit(control, params, Intent::Delete(key.clone(), version), "delete").await?;
    // ours beside Kubernetes' fields: what `weft delete --wait` waits for
    let revision = done.revision.to_string();
    let uid = done.reply.first().and_then(|d| d.resource.as_ref()?.metadata.uid.clone());
    let info = key.kind.info();
    let details =
        json!({ "name": key.name, "group": info.group, "kind": info.plural, "uid": uid, "revision": revision });
    let status =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details });
    Ok(axum::Json(status).into_response())
}

async fn write(control: &Control, target: &Target, params: &Params, intent: Intent) -> Answer {
    let key = intent.key().clone();
    let done = commit(control, params, intent, "apply").await?;
    let Some(documents::Done { outcome, resource: Some(resource), .. }) = done.reply.into_iter().next() else {
        return Err(Failure::internal("nothing was written"));
    };
    let state = control.replica.state();
    let json = present::object(&state, &key, &resource);
    let code = if outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (code, axum::Json(json)).into_response();
    for warning in &resource.warnings {
        // as Kubernetes' API server warns: kubectl prints these
        let text: String = warning.to_string().chars().filter(|c| !c.is_control() && *c != '"').collect();
        if let Ok(value) = format!("299 - \"{text}\"").parse() {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    debug_assert_eq!(target.kind, key.kind);
    Ok(response)
}

async fn commit(
    control: &Control,
    params: &Params,
    intent: Intent,
    why: &str,
) -> Answer<Committed<Vec<documents::Done>>> {
    let who = params.field_manager.as_deref().map_or_else(|| "admin".to_owned(), |m| format!("admin ({m})"));
    let intents = [intent];
    let committed = if params.is_dry_run()? {
        documents::dry_run(&control.replica, &intents).await
    } else {
        documents::write(&control.replica, &who, why, &intents).await
    };
    Ok(committed?)
}

// === what was asked ===

/// Which of the two roots of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// `/api/v1`
    Core,
    /// `/apis/{group}/{version}`
    Named,
}

/// `path` begins after `/api/` or `/apis/`.
pub fn parse(group: Group, path: &str) -> Answer<Target> {
    let unknown = || Failure::not_found(format!("the server has no `{path}`; look at /apis"));
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let (group, version, rest) = match (group, parts.as_slice()) {
        (Group::Core, [version, rest @ ..]) => ("", *version, rest),
        (Group::Named, [group, version, rest @ ..]) => (*group, *version, rest),
        _ => return Err(unknown()),
    };
    let name = |s: &str| Name::parse(s).map_err(|e| Failure::bad_request(e.to_string()));
    let (namespace, rest) = match rest {
        ["namespaces", ns, rest @ ..] if !rest.is_empty() => (Some(name(ns)?), rest),
        rest => (None, rest),
    };
    let (plural, one, status) = match rest {
        [plural] => (*plural, None, false),
        [plural, one] => (*plural, Some(name(one)?), false),
        [plural, one, "status"] => (*plural, Some(name(one)?), true),
        _ => return Err(unknown()),
    };
    let kind = Kind::from_plural(group, plural).filter(|k| k.info().versions.contains(&version)).ok_or_else(unknown)?;
    if !kind.is_namespaced() && namespace.is_some() {
        return Err(Failure::bad_request(format!("{kind} is mesh-wide and has no namespace")));
    }
    if kind.is_namespaced() && namespace.is_none() && one.is_some() {
        return Err(unknown());
    }
    Ok(Target { kind, namespace, name: one, status })
}

impl Target {
    /// Of the one resource that it names.
    pub fn key(&self) -> Option<ResourceKey> {
        let namespace = match &self.namespace {
            Some(ns) => ns.clone(),
            None => Name::parse(MESH_SCOPE).ok()?,
        };
        Some(ResourceKey::new(self.kind, namespace, self.name.clone()?))
    }

    pub fn covers(&self, key: &ResourceKey) -> bool {
        self.kind == key.kind
            && self.namespace.as_ref().is_none_or(|ns| *ns == key.namespace)
            && self.name.as_ref().is_none_or(|n| *n == key.name)
    }
}

impl Params {
    /// A selector that is not understood is an error: an ignored one would show too much.
    fn admit(self, target: &Target) -> Answer<Self> {
        for (key, _) in self.fields() {
            if !matches!(key, "metadata.name" | "metadata.namespace") {
                return Err(Failure::bad_request(format!(
                    "field selector `{key}` is not supported for {}",
                    target.kind
                )));
            }
        }
        for term in self.labels() {
            if term.contains('(') || term.contains(')') {
                return Err(Failure::bad_request(format!("label selector `{term}` is not supported; use key=value")));
            }
        }
        Ok(self)
    }

    pub fn is_watch(&self) -> bool {
        self.watch.as_deref().is_some_and(is_true)
    }

    pub fn bookmarks(&self) -> bool {
        self.allow_watch_bookmarks.as_deref().is_some_and(is_true)
    }

    pub fn is_dry_run(&self) -> Answer<bool> {
        match self.dry_run.as_deref() {
            None | Some("") => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Failure::bad_request(format!("dryRun `{other}` is unknown; the only one is `All`"))),
        }
    }

    /// Whether the selectors hold for a resource.
    pub fn select(&self, key: &ResourceKey, resource: &Resource) -> bool {
        let fields = self.fields().all(|(field, want)| match field {
            "metadata.name" => key.name.as_str() == want,
            _ => key.namespace.as_str() == want,
        });
        let labels = &resource.metadata.labels;
        fields
            && self.labels().all(|term| match term.split_once("!=") {
                Some((k, v)) => labels.get(k.trim()) != Some(v.trim()),
                None => match term.split_once('=') {
                    Some((k, v)) => labels.get(k.trim()) == Some(v.trim_start_matches('=').trim()),
                    None => match term.strip_prefix('!') {
                        Some(k) => labels.get(k.trim()).is_none(),
                        None => labels.get(term).is_some(),
                    },
                },
            })
    }

    fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let terms = self.field_selector.as_deref().unwrap_or_default().split(',').filter(|t| !t.is_empty());
        terms.map(|t| t.split_once('=').map_or((t, ""), |(k, v)| (k, v.trim_start_matches('='))))
    }

    fn labels(&self) -> impl Iterator<Item = &str> {
        self.label_selector.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|t| !t.is_empty())
    }
}

fn is_true(s: &str) -> bool {
    matches!(s, "true" | "1" | "")
}

pub fn selected<'a>(
    state: &'a state::State,
    target: &'a Target,
    params: &'a Params,
) -> impl Iterator<Item = (&'a ResourceKey, &'a Resource)> {
    let docs = state.docs.iter().filter(|(k, d)| target.covers(k) && params.select(k, &d.resource));
    docs.map(|(k, d)| (k, &*d.resource))
}

/// The document in a body, which must be of the path's kind, namespace and name.
fn admitted(target: &Target, json: &Value) -> Answer<Resource> {
    let mut doc = document::from_json(json).map_err(|v| Failure::invalid(None, &v))?;
    if doc.kind != target.kind {
        return Err(Failure::bad_request(format!("the body is a {}, the path is of {}", doc.kind, target.kind)));
    }
    if let (Some(ns), true) = (&target.namespace, doc.kind.is_namespaced()) {
        match &doc.metadata.namespace {
            Some(other) if other != ns => {
                return Err(Failure::bad_request(format!("the body is of namespace `{other}`, the path of `{ns}`")));
            }
            _ => doc.metadata.namespace = Some(ns.clone()),
        }
    }
    if let Some(name) = target.name.as_ref().filter(|n| **n != doc.metadata.name) {
        return Err(Failure::bad_request(format!("the body is named `{}`, the path says `{name}`", doc.metadata.name)));
    }
    admit(&doc).map_err(|v| Failure::invalid(Some(doc.key()), &v))
}

fn decode(headers: &HeaderMap, body: &[u8]) -> Answer<Value> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    if kind.contains("protobuf") {
        return Err(Failure::unsupported_media("send JSON or YAML; protobuf is not spoken here"));
    }
    if kind.contains("yaml") {
        return one_yaml(body);
    }
    serde_json::from_slice(body).map_err(|e| Failure::bad_request(format!("the body is no JSON: {e}")))
}

fn one_yaml(body: &[u8]) -> Answer<Value> {
    let text = std::str::from_utf8(body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
    let mut docs = document::parse("", text);
    match (docs.pop(), docs.is_empty()) {
        (Some(Ok(doc)), true) => {
            let mut json = admit(&doc).map_err(|v| Failure::invalid(Some(doc.key()), &v))?.to_json();
            // what was not written must not look as if it had been
            if doc.metadata.namespace.is_none()
                && let Some(meta) = json.get_mut("metadata").and_then(Value::as_object_mut)
            {
                meta.remove("namespace");
            }
            Ok(json)
        }
        (Some(Err(v)), true) => Err(Failure::invalid(None, &v)),
        _ => Err(Failure::bad_request("the body must be one document")),
    }
}

/// How many of the proxies connected here have applied this version of the resource: asked now, stored nowhere.
fn programmed(control: &Control, doc: &state::Doc, object: &mut Value) {
    let (Some(map), Some(acked)) = (object.as_object_mut(), control.sessions.acked(doc.modified)) else { return };
    let done = acked.iter().filter(|a| a.done).count();
    let percent = if acked.is_empty() { 100 } else { done * 100 / acked.len() };
    let proxies = json!({ "acknowledged": done, "total": acked.len(), "percent": percent });
    if let Some(status) = map.entry("status").or_insert_with(|| json!({})).as_object_mut() {
        status.insert("proxies".into(), proxies);
    }
}

fn missing(key: &ResourceKey) -> Failure {
    let info = key.kind.info();
    let plural = if info.group.is_empty() { info.plural.to_owned() } else { format!("{}.{}", info.plural, info.group) };
    Failure::not_found(format!("{plural} \"{}\" not found", key.name)).of(key)
}

fn shown(
    control: &Control,
    headers: &HeaderMap,
    version: u64,
    items: Vec<Value>,
    whole: impl FnOnce(Vec<Value>) -> Value,
) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.contains("as=Table") {
        return axum::Json(present::table(version, control.replica.clock.wall(), &items)).into_response();
    }
    axum::Json(whole(items)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_kinds_namespaces_and_names() {
        let check = |group, path: &str, kind, ns: Option<&str>, name: Option<&str>| {
            let t = parse(group, path).unwrap();
            assert_eq!(
                (t.kind, t.namespace.as_ref().map(Name::as_str), t.name.as_ref().map(Name::as_str)),
                (kind, ns, name)
            );
        };
        check(Group::Core, "v1/services", Kind::Service, None, None);
        check(Group::Core, "v1/namespaces/shop/services/web", Kind::Service, Some("shop"), Some("web"));
        let routes = "gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
        check(Group::Named, routes, Kind::HttpRoute, Some("shop"), None);
        check(Group::Named, &format!("{routes}/split/status"), Kind::HttpRoute, Some("shop"), Some("split"));
        check(Group::Named, "weft.dev/v1/meshdefaults/x", Kind::MeshDefaults, None, Some("x"));
        for (group, bad) in [
            (Group::Core, "v2/services"),
            (Group::Core, "v1/pods"),
            (Group::Core, "v1/services/web"),
            (Group::Named, "gateway.networking.k8s.io/v9/httproutes"),
            (Group::Named, "x"),
            (Group::Named, "weft.dev/v1/namespaces/a/meshdefaults"),
        ] {
            assert!(parse(group, bad).is_err(), "{bad}");
        }
    }
}
