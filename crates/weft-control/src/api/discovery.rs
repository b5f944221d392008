//! What `kubectl` asks before anything else: versions, groups, resources, namespaces.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    response::IntoResponse,
};
use serde_json::{Value, json};
use weft_resources::Kind;

use super::failure::{Answer, Failure};
use crate::server::Control;

pub async fn version() -> Json<Value> {
    // clients compare with Kubernetes' versions; this is whose conventions are followed
    Json(json!({
        "major": "1", "minor": "34", "gitVersion": format!("v1.34.0+weft.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    }))
}

pub async fn core_versions() -> Json<Value> {
    Json(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }))
}

pub async fn groups() -> Json<Value> {
    let groups: BTreeSet<_> = Kind::ALL.iter().map(|k| k.info().group).filter(|g| !g.is_empty()).collect();
    let groups: Vec<_> = groups.into_iter().map(group_json).collect();
    Json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
}

pub async fn group(Path(group): Path<String>) -> Answer {
    match versions(&group).is_empty() {
        true => Err(Failure::not_found(format!("the server has no group `{group}`; look at /apis"))),
        false => Ok(Json(group_json(&group)).into_response()),
    }
}

pub async fn group_resources(Path((group, version)): Path<(String, String)>) -> Answer {
    resources(&group, &version)
}

pub async fn core_resources() -> Answer {
    resources("", "v1")
}

pub async fn namespaces(State(control): State<Arc<Control>>) -> Json<Value> {
    let items: Vec<_> = known_namespaces(&control).into_iter().map(|n| namespace_json(&n)).collect();
    let version = control.replica.state().revision.n.to_string();
    Json(
        json!({ "kind": "NamespaceList", "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": items }),
    )
}

pub async fn namespace(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Answer {
    if known_namespaces(&control).contains(&name) {
        return Ok(Json(namespace_json(&name)).into_response());
    }
    Err(Failure::not_found(format!("namespaces \"{name}\" not found")))
}

/// No schema is published: clients that validate by one are told so rather than given an empty one.
pub async fn openapi() -> Failure {
    Failure::not_found(
        "no OpenAPI schema is published; use `kubectl apply --validate=false`, the server validates itself",
    )
}

/// Namespaces are not created: one is there when something is in it.
fn known_namespaces(control: &Control) -> BTreeSet<String> {
    let state = control.replica.state();
    let of_docs = state.docs.keys().filter(|k| k.kind.is_namespaced()).map(|k| k.namespace.to_string());
    let of_services = state.registry.services().map(|s| s.namespace.to_string());
    let always = ["default", weft_resources::Mesh::ROOT_NAMESPACE].map(ToOwned::to_owned);
    of_docs.chain(of_services).chain(always).collect()
}

fn namespace_json(name: &str) -> Value {
    json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name }, "status": { "phase": "Active" } })
}

fn versions(group: &str) -> Vec<&'static str> {
    let mut out: Vec<&'static str> = Vec::new();
    for version in Kind::ALL.iter().filter(|k| k.info().group == group).flat_map(|k| k.info().versions) {
        if !out.contains(version) {
            out.push(version);
        }
    }
    out
}

fn group_json(group: &str) -> Value {
    let one = |v: &&str| json!({ "groupVersion": format!("{group}/{v}"), "version": v });
    let versions = versions(group);
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": group,
        "versions": versions.iter().map(one).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(one),
    })
}

fn resources(group: &str, version: &str) -> Answer {
    let kinds: Vec<_> =
        Kind::ALL.iter().filter(|k| k.info().group == group && k.info().versions.contains(&version)).collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    if kinds.is_empty() {
        return Err(Failure::not_found(format!("the server has no `{group_version}`; look at /apis")));
    }
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let mut list: Vec<Value> = kinds
        .iter()
        .flat_map(|k| {
            let info = k.info();
            let one = json!({
                "name": info.plural, "singularName": info.singular, "namespaced": info.namespaced, "kind": info.name,
                "shortNames": info.short_names, "verbs": verbs,
            });
            let status = json!({
                "name": format!("{}/status", info.plural), "singularName": "", "namespaced": info.namespaced,
                "kind": info.name, "verbs": ["get"],
            });
            [one, status]
        })
        .collect();
    if group.is_empty() {
        list.push(json!({
            "name": "namespaces", "singularName": "namespace", "namespaced": false, "kind": "Namespace",
            "shortNames": ["ns"], "verbs": ["get", "list"],
        }));
    }
    let json =
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list });
    Ok(Json(json).into_response())
}
