//! What the command line and the dashboard read: services, endpoints, proxies, acknowledgements, decisions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_model::{Health, Name, Revision, ServiceKey, Uid};
use weft_registry::{Holder, Instance, Op, PlanError, Stored, plan::Target};
use weft_wire::v1::{DecisionFilter, Recent, Stats, Why, server_ask::Ask};

use super::{
    decisions,
    failure::{Answer, Failure},
    observe::Answers,
    watch::{self, Framing},
};
use crate::{
    documents::DocumentError,
    replica::CommitFailure,
    server::Control,
    sessions::{Acked, Standing},
    state,
};

type Shared = State<Arc<Control>>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Params {
    namespace: Option<String>,
    service: Option<String>,
    node: Option<String>,
    watch: Option<String>,
    revision: Option<String>,
    timeout: Option<String>,
    request_id: Option<String>,
    source: Option<String>,
    verdict: Option<String>,
    path: Option<String>,
    failed: Option<bool>,
    limit: Option<usize>,
}

// === the catalog ===

pub async fn services(State(control): Shared, Query(params): Query<Params>, headers: HeaderMap) -> Answer {
    let namespace = params.namespace.clone().filter(|n| !n.is_empty());
    if params.watch.as_deref().is_some_and(|w| w != "false") {
        let framing = match headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()) {
            Some(accept) if accept.contains("text/event-stream") => Framing::ServerSent,
            _ => Framing::Lines,
        };
        let view = move |state: &state::State| services_json(state, namespace.as_deref());
        return Ok(watch::of_view(&control, framing, "service", view));
    }
    let state = fresh(&control).await?;
    let services: Vec<_> = services_json(&state, namespace.as_deref()).into_values().collect();
    Ok(Json(json!({ "revision": state.revision.to_string(), "services": services })).into_response())
}

pub async fn endpoints(State(control): Shared, Query(params): Query<Params>) -> Answer {
    let service = params.service.as_deref().map(service_key).transpose()?;
    let state = fresh(&control).await?;
    let wanted = |i: &Instance| {
        service.as_ref().is_none_or(|s| *s == i.service)
            && params.namespace.as_deref().is_none_or(|ns| ns.is_empty() || i.service.namespace.as_str() == ns)
            && params.node.as_deref().is_none_or(|n| i.node.as_str() == n)
    };
    let endpoints: Vec<_> =
        state.registry.instances().filter(|i| wanted(&i.value)).map(|i| endpoint_json(&state, i)).collect();
    Ok(Json(json!({ "revision": state.revision.to_string(), "endpoints": endpoints })).into_response())
}

pub async fn nodes(State(control): Shared) -> Answer {
    let state = fresh(&control).await?;
    let view = &state.registry;
    let one = |n: &Stored<weft_registry::Node>| {
        let lease = view.lease(&Holder::Agent(n.value.name.clone())).map(|l| l.value.state);
        json!({
            "name": n.value.name, "owner": n.value.owner, "address": n.value.address, "lease": lease,
            "locality": n.value.locality, "meta": n.value.meta, "maintenance": n.value.maintenance,
            "instances": view.on_node(&n.value.name).count(),
            "created": n.created.to_string(), "modified": n.modified.to_string(),
        })
    };
    let nodes: Vec<_> = view.nodes().map(one).collect();
    Ok(Json(json!({ "revision": state.revision.to_string(), "nodes": nodes })).into_response())
}

fn services_json(state: &state::State, namespace: Option<&str>) -> BTreeMap<String, Value> {
    let view = &state.registry;
    let wanted = |ns: &Name| namespace.is_none_or(|want| ns.as_str() == want);
    let mut keys: std::collections::BTreeSet<ServiceKey> =
        view.services().filter(|s| wanted(&s.namespace)).cloned().collect();
    let of_docs = state.docs.keys().filter(|k| k.kind == weft_resources::Kind::Service && wanted(&k.namespace));
    keys.extend(of_docs.map(|k| ServiceKey::new(k.namespace.clone(), k.name.clone())));
    keys.into_iter().map(|key| (key.to_string(), service_json(state, &key))).collect()
}

fn service_json(state: &state::State, key: &ServiceKey) -> Value {
    let view = &state.registry;
    let instances: Vec<_> = view.instances_of(key).collect();
    // what callers are told: a Service resource's word before that of instances, and everyone it selects
    let definition = weft_resources::compile_service(&state.world, key);
    let ports = definition.map(|d| {
        let port = |p: &weft_snapshot::fragment::ServicePort| json!({ "name": p.name, "port": p.port, "protocol": p.protocol });
        d.ports.iter().map(port).collect::<Vec<_>>()
    });
    let endpoints = weft_resources::compile_endpoints(&state.world, key);
    // who only calls has no port and is nobody's endpoint, but is there
    let mut all: BTreeMap<Uid, Health> = endpoints.iter().map(|(uid, e)| (uid.clone(), e.health)).collect();
    all.extend(instances.iter().map(|i| (i.value.uid(), view.health(&i.value))));
    let count = |h: Health| all.values().filter(|health| **health == h).count();
    let of_endpoints = endpoints.values().flat_map(|e| &e.identities).map(ToString::to_string);
    let of_instances = instances.iter().map(|i| i.value.identity.to_string());
    let identities: std::collections::BTreeSet<_> = of_endpoints.chain(of_instances).collect();
    let conflicts = view.merged(key).map(|m| m.conflicts).unwrap_or_default();
    let conflicts: Vec<_> = conflicts
        .iter()
        .map(|c| json!({ "instance": c.instance.to_string(), "port": c.port, "with": c.with.to_string(), "what": c.what }))
        .collect();
    let doc = weft_resources::ResourceKey::new(weft_resources::Kind::Service, key.namespace.clone(), key.name.clone());
    let doc = state.docs.get(&doc);
    let created = instances.iter().map(|i| i.created).chain(doc.map(|d| d.created)).min();
    let modified = instances.iter().map(|i| i.modified).chain(doc.map(|d| d.modified)).max();
    json!({
        "namespace": key.namespace, "name": key.name, "ports": ports.unwrap_or_default(),
        "instances": {
            "total": all.len(), "passing": count(Health::Passing), "warning": count(Health::Warning),
            "unknown": count(Health::Unknown), "critical": count(Health::Critical), "draining": count(Health::Draining),
            "maintenance": count(Health::Maintenance),
        },
        "identities": identities, "conflicts": conflicts, "resource": doc.is_some(),
        "created": created.map(|r| r.to_string()), "modified": modified.map(|r| r.to_string()),
    })
}

fn endpoint_json(state: &state::State, stored: &Stored<Instance>) -> Value {
    let view = &state.registry;
    let i = &*stored.value;
    let health = view.health(i);
    let checks: Vec<_> = view
        .checks_of(&i.key())
        .chain(view.checks_of_node(&i.node))
        .map(|c| {
            json!({
                "id": c.value.id, "status": c.value.status, "output": c.value.output, "ttl_ms": c.value.ttl.map(ms),
                "modified": c.modified.to_string(),
            })
        })
        .collect();
    let conflicts = view.merged(&i.service).map(|m| m.conflicts).unwrap_or_default();
    let conflicts: Vec<_> = conflicts.iter().filter(|c| c.instance == i.key()).map(|c| c.what.clone()).collect();
    let ports: Vec<_> = i
        .ports
        .iter()
        .map(|p| {
            json!({
                "name": p.name, "port": p.port, "protocol": p.protocol, "app": p.app,
                "connect": p.connect.unwrap_or(p.app), "preserve": p.preserve,
            })
        })
        .collect();
    json!({
        "uid": i.uid(), "service": i.service, "namespace": i.service.namespace, "name": i.service.name, "node": i.node,
        "id": i.id, "owner": i.owner, "identity": i.identity, "health": health,
        "lease": view.lease(&i.holder()).map(|l| l.value.state), "mesh": i.mesh, "tunnel": i.tunnel, "ports": ports,
        "checks": checks, "labels": i.labels, "meta": i.meta, "locality": i.locality,
        "weight": if health == Health::Warning { i.weights.warning } else { i.weights.passing }, "workload": i.workload,
        "bypassable": i.bypassable, "draining": i.draining, "maintenance": i.maintenance, "upstreams": i.upstreams,
        "admin": i.admin, "metrics": i.metrics, "conflicts": conflicts,
        "created": stored.created.to_string(), "modified": stored.modified.to_string(),
    })
}

// === proxies ===

pub async fn status(State(control): Shared) -> Answer {
    let state = fresh(&control).await?;
    let mut standings: BTreeMap<String, Standing> = BTreeMap::new();
    // the newest stream of a proxy speaks for it
    standings.extend(control.sessions.standings().into_iter().map(|s| (s.node.clone(), s)));
    let mut proxies = Vec::new();
    for stored in state.registry.instances().filter(|i| i.value.tunnel != weft_registry::Tunnel::None) {
        let uid = stored.value.uid();
        let standing = standings.remove(uid.as_str());
        proxies.push(proxy_json(uid.as_str(), Some(&stored.value), standing.as_ref()));
    }
    // in the published catalog, but no longer in the registry, or without a tunnel
    proxies.extend(standings.values().map(|s| proxy_json(&s.node, None, Some(s))));
    let uptime = control.replica.clock.mono().since(control.started);
    Ok(Json(json!({
        "revision": state.revision.to_string(), "trust_domain": state.mesh.trust_domain,
        "server": {
            "id": **control.liveness.server(), "version": env!("CARGO_PKG_VERSION"), "store": control.store_kind,
            "uptime_ms": ms(uptime), "ready": true,
        },
        "proxies": proxies,
    }))
    .into_response())
}

/// The word for where a proxy stands.
fn stand(standing: Option<&Standing>) -> &'static str {
    match standing {
        None => "not connected",
        Some(s) if !s.status.rejected.is_empty() || s.status.rejected_set.is_some() => "rejected",
        Some(s) if s.current => "synced",
        Some(s) if s.status.applied.is_none() => "connecting",
        Some(_) => "stale",
    }
}

fn proxy_json(uid: &str, instance: Option<&Instance>, standing: Option<&Standing>) -> Value {
    let status = standing.map(|s| &s.status);
    let rejections = standing.map(rejections).unwrap_or_default();
    json!({
        "uid": uid, "kind": "proxy", "connected": standing.is_some(), "state": stand(standing),
        "service": instance.map(|i| i.service.to_string()), "node": instance.map(|i| i.node.clone()),
        "identity": standing.map(|s| s.principal.to_string()).or_else(|| instance.map(|i| i.identity.to_string())),
        "offered_revision": status.and_then(|s| s.offered).map(|r| r.to_string()),
        "acked_revision": status.and_then(|s| s.applied).map(|c| c.revision.to_string()),
        "digest": status.and_then(|s| s.applied).map(|c| c.set_digest.to_string()),
        "since_ms": standing.map(|s| ms(s.connected_for)), "rejections": rejections,
        "collections": status.map(|s| s.subscriptions), "bytes_sent": standing.map(|s| s.sent_bytes),
        "bypassable": instance.map(|i| i.bypassable), "version": standing.map(|s| s.version.clone()),
        "admin": instance.and_then(|i| i.admin), "metrics": instance.and_then(|i| i.metrics),
    })
}

fn rejections(standing: &Standing) -> Vec<Value> {
    let whole = standing.status.rejected_set.iter().map(|reason| json!({ "resource": "", "reason": reason }));
    let named = standing.status.rejected.iter().map(|(name, reason)| json!({ "resource": name, "reason": reason }));
    whole.chain(named).collect()
}

/// NOV-05: returns when every connected proxy has applied the revision, or needs nothing of it.
pub async fn wait(State(control): Shared, Query(params): Query<Params>) -> Answer {
    let revision: Revision = match params.revision.as_deref() {
        None | Some("") => control.replica.state().revision,
        Some(text) => text.parse().map_err(|e| Failure::bad_request(format!("revision: {e}")))?,
    };
    let service = params.service.as_deref().map(service_key).transpose()?;
    let timeout = timeout(&params, 30)?;
    let mut progress = control.sessions.watch_progress();
    let concerns = |a: &Acked| match &service {
        None => true,
        Some(service) => a.standing.node.starts_with(&format!("{service}/")),
    };
    let all = async {
        loop {
            progress.mark_unchanged();
            let acked = control.sessions.acked(revision);
            if acked.is_some_and(|all| all.iter().filter(|a| concerns(a)).all(|a| a.done || a.rejected)) {
                return;
            }
            if progress.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(timeout, all).await;
    let acked: Vec<_> = control.sessions.acked(revision).unwrap_or_default().into_iter().filter(concerns).collect();
    let done = acked.iter().filter(|a| a.done).count();
    let published = control.sessions.acked(revision).is_some();
    let proxies: Vec<_> = acked
        .iter()
        .map(|a| {
            json!({
                "uid": a.standing.node, "state": stand(Some(&a.standing)), "acknowledged": a.done,
                "acked_revision": a.standing.status.applied.map(|c| c.revision.to_string()),
                "acked_ms": a.after.map(ms), "rejections": rejections(&a.standing),
            })
        })
        .collect();
    Ok(Json(json!({
        "revision": revision.to_string(), "complete": published && done == acked.len(), "total": acked.len(),
        "acknowledged": done, "proxies": proxies,
    }))
    .into_response())
}

// === decisions ===

pub async fn why(State(control): Shared, Query(params): Query<Params>) -> Answer {
    let request_id = params.request_id.clone().filter(|r| !r.is_empty());
    let request_id =
        request_id.ok_or_else(|| Failure::bad_request("request_id is missing; name the request to explain"))?;
    let answers =
        control.observers.ask(&control.replica.state(), Ask::Why(Why { request_id }), timeout(&params, 2)?).await;
    Ok(decisions_json(answers))
}

pub async fn recent(State(control): Shared, Query(params): Query<Params>) -> Answer {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let filter = DecisionFilter {
        service: params.service.as_deref().map(service_key).transpose()?.map(|s| s.to_string()).unwrap_or_default(),
        source: text(&params.source),
        verdict: text(&params.verdict),
        path: text(&params.path),
        failed_only: params.failed.unwrap_or(false),
    };
    let limit = params.limit.unwrap_or(50).min(1000);
    let ask = Ask::Recent(Recent { filter: Some(filter), limit: u32::try_from(limit).unwrap_or(u32::MAX) });
    let mut answers = control.observers.ask(&control.replica.state(), ask, timeout(&params, 2)?).await;
    // the newest of all, not of each
    let mut at: Vec<i64> = answers.answers.iter().flat_map(|(_, a)| &a.decisions).map(|d| d.at_ms).collect();
    at.sort_unstable_by_key(|t| std::cmp::Reverse(*t));
    if let Some(oldest) = at.get(limit.saturating_sub(1)).copied() {
        answers.answers.iter_mut().for_each(|(_, a)| a.decisions.retain(|d| d.at_ms >= oldest));
    }
    Ok(decisions_json(answers))
}

pub async fn edges(State(control): Shared, Query(params): Query<Params>) -> Answer {
    let state = control.replica.state();
    let answers = control.observers.ask(&state, Ask::Stats(Stats {}), timeout(&params, 2)?).await;
    let proxies: Vec<_> = answers
        .answers
        .iter()
        .filter_map(|(uid, answer)| {
            let stats = answer.stats.as_ref()?;
            let instance = Uid::parse(uid).ok().and_then(|u| state.world.catalog.get(&u).cloned());
            Some(json!({
                "uid": uid, "service": instance.as_ref().map(|i| i.service.to_string()),
                "node": instance.as_ref().map(|i| i.node.clone()), "identity": instance.and_then(|i| i.identity.clone()),
                "revision": decisions::revision(stats.revision.as_ref()), "digest": crate::first_start::hex(&stats.digest),
                "uptime_ms": stats.uptime_ms, "edges": stats.edges.iter().map(decisions::edge).collect::<Vec<_>>(),
            }))
        })
        .collect();
    Ok(Json(json!({
        "asked": answers.asked, "answered": answers.answers.len(), "silent": answers.silent, "proxies": proxies,
    }))
    .into_response())
}

fn decisions_json(answers: Answers) -> Response {
    let mut all: Vec<_> = answers.answers.iter().flat_map(|(_, a)| &a.decisions).collect();
    all.sort_by(|a, b| (a.at_ms, &a.proxy).cmp(&(b.at_ms, &b.proxy)));
    let errors: Vec<_> = answers
        .answers
        .iter()
        .filter(|(_, a)| !a.error.is_empty())
        .map(|(uid, a)| json!({ "uid": uid, "error": a.error }))
        .collect();
    Json(json!({
        "asked": answers.asked, "answered": answers.answers.len(), "silent": answers.silent, "errors": errors,
        "decisions": all.into_iter().map(decisions::decision).collect::<Vec<_>>(),
    }))
    .into_response()
}

// === operators' words ===

#[derive(Debug, Deserialize)]
pub struct Maintenance {
    node: Option<Name>,
    uid: Option<String>,
    reason: Option<String>,
}

pub async fn maintenance(State(control): Shared, Json(body): Json<Maintenance>) -> Answer {
    let of = match (&body.node, &body.uid) {
        (Some(node), None) => Target::Node(node.clone()),
        (None, Some(uid)) => {
            let state = control.replica.state();
            let found = state.registry.instances().find(|i| i.value.uid().as_str() == uid).map(|i| i.value.key());
            Target::Instance(found.ok_or_else(|| Failure::not_found(format!("no instance `{uid}` is registered")))?)
        }
        _ => return Err(Failure::bad_request("name either a node or a uid")),
    };
    let op = Op::Maintenance { of, reason: body.reason.as_deref().map(Into::into) };
    let done = control.replica.register("admin", op).await.map_err(|e| match &e {
        CommitFailure::Refused(PlanError::NoNode(_) | PlanError::NoInstance(_)) => Failure::not_found(e.told()),
        _ => Failure::of_commit(&e),
    })?;
    Ok(Json(json!({ "revision": done.revision.to_string() })).into_response())
}

pub async fn history(State(control): Shared, Query(params): Query<Params>) -> Answer {
    let limit = params.limit.unwrap_or(50).min(1000);
    let entries = crate::history::latest(&*control.replica.store, limit);
    let entries = entries.map_err(|e| Failure::internal(weft_rt::log::chain(&e).to_string()))?;
    Ok(Json(json!({ "entries": entries })).into_response())
}

// === helpers ===

pub async fn fresh(control: &Control) -> Answer<Arc<state::State>> {
    control.replica.fresh::<DocumentError>().await.map_err(|e| Failure::of_commit(&e))
}

pub fn service_key(text: &str) -> Answer<ServiceKey> {
    ServiceKey::parse_in(text, &Name::default_namespace()).map_err(|e| Failure::bad_request(format!("service: {e}")))
}

fn timeout(params: &Params, default_secs: u64) -> Answer<Duration> {
    match params.timeout.as_deref() {
        None | Some("") => Ok(Duration::from_secs(default_secs)),
        Some(text) => duration(text).map(|d| d.min(Duration::from_secs(600))),
    }
}

/// `500ms`, `30s`, `5m`, `1h`, or seconds without a unit.
pub fn duration(text: &str) -> Answer<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let n: Option<u64> = digits.parse().ok();
    let made = n.and_then(|n| match unit {
        "ms" => Some(Duration::from_millis(n)),
        "" | "s" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_secs(n.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(n.checked_mul(3600)?)),
        "d" => Some(Duration::from_secs(n.checked_mul(86_400)?)),
        _ => None,
    });
    made.ok_or_else(|| Failure::bad_request(format!("`{text}` is no duration; write one such as 500ms, 30s, 5m or 1h")))
}

pub fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let ok = |s| duration(s).unwrap();
        assert_eq!(
            [ok("500ms"), ok("30s"), ok("5m"), ok("1h"), ok("7")].map(|d| d.as_millis()),
            [500, 30_000, 300_000, 3_600_000, 7000]
        );
        for bad in ["", "s", "1.5s", "-1s", "1w", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
