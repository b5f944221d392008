//! What the server answers over HTTP (port 8500) and gRPC (port 15012, and the Unix socket).
//!
//! # HTTP
//!
//! The port speaks HTTP/1.1 and, to whoever begins with TLS, HTTPS with the mesh's own certificate for `localhost` and
//! `Config::dns_names` (`<data>/ca.pem` verifies it): `kubectl --server=https://localhost:8500
//! --certificate-authority=<data>/ca.pem --token=$(cat <data>/admin.token)`.
//!
//! `Authorization: Bearer <admin token>` on every route but `/healthz/*` and `/version`: 401 without one, 403 with a
//! wrong one. `Config::open_reads` lets reads pass without. JSON unless said otherwise. Errors are Kubernetes `Status`
//! objects: `{kind:"Status", apiVersion:"v1", status:"Failure", reason, message, code, details:{causes:[{reason, message,
//! field}]}}`. Revisions are text, `incarnation.n`; `resourceVersion` is `n` alone.
//!
//! ## Resources, by Kubernetes' conventions ([`resources`])
//!
//! | route | |
//! |---|---|
//! | `GET /api`, `/apis`, `/apis/{group}`, `/apis/{group}/{version}`, `/api/v1`, `/version`, `/openapi/v2` | discovery |
//! | `GET /api/v1/namespaces[/{ns}]` | namespaces that something is in |
//! | `GET …/{plural}`, `…/namespaces/{ns}/{plural}` | list; `?watch=true[&resourceVersion=][&allowWatchBookmarks=true][&timeoutSeconds=]` streams `{type, object}` lines; `labelSelector`, `fieldSelector=metadata.name=`, `metadata.namespace=` |
//! | `GET …/{plural}/{name}[/status]` | one, with `status.proxies: {acknowledged, total, percent}` as of now; with `Accept: application/json;as=Table` a table |
//! | `POST …/{plural}` | create: 201, 409 `AlreadyExists` |
//! | `PUT …/{name}` | replace; 409 `Conflict` when `metadata.resourceVersion` is another |
//! | `PATCH …/{name}` | `application/apply-patch+yaml`, `merge-patch+json`, `strategic-merge-patch+json` (as a merge patch), `json-patch+json` is refused |
//! | `DELETE …/{name}` | `preconditions.resourceVersion` in the body holds |
//!
//! `…` is `/apis/{group}/{version}` or `/api/v1`. `?dryRun=All` says what would be and writes nothing. `?fieldManager` is
//! taken for the history's `who`.
//!
//! ## Ours ([`mesh`], [`apply`])
//!
//! | route | answer |
//! |---|---|
//! | `POST /weft/v1/apply?namespace=&dryRun=All&atomic=true&file=` body: a stream of YAML or JSON documents | `{revision, results:[{resource, result:"created"\|"configured"\|"unchanged"\|"invalid"\|"conflict"\|"failed", violations:[{message, field, line, column}], warnings:[…], revision}]}`; 200, or 422 when any is invalid (then nothing was written) |
//! | `POST /weft/v1/delete?namespace=&dryRun=All` body: documents | the same shape, result `"deleted"` or `"absent"` |
//! | `GET /weft/v1/services?namespace=[&watch=true]` | `{revision, services:[Service]}`; watch: lines `{type:"ADDED"\|"MODIFIED"\|"DELETED"\|"SYNCED", revision, service}`, or server-sent events with `Accept: text/event-stream` |
//! | `GET /weft/v1/endpoints?service=ns/name&namespace=&node=` | `{revision, endpoints:[Endpoint]}` |
//! | `GET /weft/v1/nodes` | `{revision, nodes:[{name, owner, address, locality, lease, maintenance, instances, created, modified}]}` |
//! | `GET /weft/v1/status` | `{revision, trust_domain, server:{id, version, store, uptime_ms, head, ready}, proxies:[Proxy]}` |
//! | `GET /weft/v1/wait?revision=&timeout=30s[&service=ns/name]` | `{revision, complete, total, acknowledged, proxies:[{uid, state, acked_revision, acked_ms, rejections}]}`: returns when every connected proxy has applied that revision (or needed nothing of it), or at the timeout; `acked_ms` counts from the commit |
//! | `GET /weft/v1/allow?to=ns/service[&port=][&from=ns/sa\|spiffe://…][&method=&path=&host=]` | `{revision, service, rows:[{from, port, verdict:"allow"\|"deny"\|"depends", rule, reason, instances}]}`, one row for each identity in the catalog (`from` absent), and one for `unauthenticated` |
//! | `GET /weft/v1/conditions?resources=Kind/ns/name,…` | `{revision, resources:[{resource, status}]}`: out of what is committed now, before it is stored as status |
//! | `GET /weft/v1/why?request_id=&timeout=2s` | `{asked, answered, silent:[uid], decisions:[Decision]}` |
//! | `GET /weft/v1/recent?service=&source=&verdict=&path=&failed=true&limit=` | the same |
//! | `GET /weft/v1/edges` | `{asked, answered, silent, proxies:[{uid, service, node, revision, digest, uptime_ms, edges:[Edge]}]}` |
//! | `GET /weft/v1/tokens` · `POST` `{namespace?, service_account?, service?, ttl?:"1h"}` (absent: any; a service beside its namesake only when named) · `DELETE …/{id}` | `{tokens:[{id, allowed, service, expires, spent, spent_by?, created}]}` · `{token, id, allowed, service, expires, server, trust_domain}` (the token itself is shown once) |
//! | `GET /weft/v1/ca` | `{trust_domain, authorities:[{slot, state, subject, key, not_before, not_after}], leaf_ttl_s, issued:{total, unexpired}, ledger:[{serial, id, node, not_after, issuer}]}` (last 100) |
//! | `GET /weft/v1/history?limit=` | `{entries:[{txn, revision, when, who, why, changes:[{resource, before?, after?}]}]}` newest first |
//! | `PUT /weft/v1/maintenance` `{node? , uid?, reason: text or null}` | `{revision}` |
//! | `GET /metrics` | Prometheus text · `GET /healthz/ready`, `/healthz/live` |
//!
//! `Service`: `{namespace, name, ports:[{name, port, protocol}], instances:{total, passing, warning, unknown, critical,
//! draining, maintenance}, identities:[spiffe], conflicts:[{instance, port, what}], resource: bool, created, modified}`.
//!
//! `Endpoint`: `{uid, service, namespace, name, node, id, owner, identity, health, lease, mesh, tunnel, ports:[{name, port,
//! protocol, app, connect}], checks:[{id, status, output, modified}], labels, meta, locality:{region, zone}, weight,
//! workload, bypassable, draining, maintenance, upstreams:[{service, port, listen, protocol}], admin, metrics, conflicts,
//! created, modified}`.
//!
//! `Proxy`: `{uid, service, node, identity, connected, state:"synced"|"stale"|"rejected"|"connecting"|"not connected",
//! offered_revision, acked_revision, digest, since_ms, rejections:[{resource, reason}], collections, bytes_sent,
//! bypassable, version, kind:"proxy"}`.
//!
//! `Decision`, `Edge`: the fields of `weft.v1.Decision` and `weft.v1.Edge`, by their proto names.
//!
//! # gRPC
//!
//! `weft.v1.WorkloadApi` ([`workload`]), `envoy…AggregatedDiscoveryService/DeltaAggregatedResources` ([`xds`]),
//! `weft.v1.Observe` ([`observe`]). On 15012 without a client certificate only `Join` answers. On the Unix socket the
//! peer's user must be the server's (or root): `Join` needs no token there, and only `Join` answers.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, header},
    middleware::from_fn_with_state,
    response::IntoResponse as _,
    routing::{delete, get, post, put},
};
use weft_rt::metrics::Format;

use self::{
    failure::{Answer, Failure},
    resources::{Group, Params},
};
use crate::{metrics::Gauges, server::Control};

pub mod allow;
pub mod apply;
pub mod auth;
pub mod conditions;
pub mod decisions;
pub mod discovery;
pub mod failure;
pub mod merge;
pub mod mesh;
pub mod observe;
pub mod peer;
pub mod present;
pub mod register;
pub mod resources;
pub mod trust;
pub mod watch;
pub mod workload;
pub mod xds;

/// A set of documents beyond this is split by whoever sends it.
const BODY_MOST: usize = 32 << 20;

/// Everything that is answered over HTTP. What is not asked for with a token is refused before it is routed.
pub fn router(control: Arc<Control>) -> Router {
    let core = get(core_get).put(core_put).post(core_post).patch(core_patch).delete(core_delete);
    let named = get(named_get).put(named_put).post(named_post).patch(named_patch).delete(named_delete);
    Router::new()
        .route("/healthz/live", get(|| async { "ok" }))
        .route("/healthz/ready", get(ready))
        .route("/healthz/{*rest}", get(ready))
        .route("/livez", get(|| async { "ok" }))
        .route("/metrics", get(metrics))
        .route("/version", get(discovery::version))
        .route("/openapi/{*rest}", get(discovery::openapi))
        .route("/api", get(discovery::core_versions))
        .route("/api/v1", get(discovery::core_resources))
        .route("/api/v1/namespaces", get(discovery::namespaces))
        .route("/api/v1/namespaces/{name}", get(discovery::namespace))
        .route("/api/v1/{*rest}", core)
        .route("/apis", get(discovery::groups))
        .route("/apis/{group}", get(discovery::group))
        .route("/apis/{group}/{version}", get(discovery::group_resources))
        .route("/apis/{group}/{version}/{*rest}", named)
        .route("/weft/v1/apply", post(apply::apply))
        .route("/weft/v1/delete", post(apply::delete))
        .route("/weft/v1/services", get(mesh::services))
        .route("/weft/v1/endpoints", get(mesh::endpoints))
        .route("/weft/v1/nodes", get(mesh::nodes))
        .route("/weft/v1/status", get(mesh::status))
        .route("/weft/v1/wait", get(mesh::wait))
        .route("/weft/v1/allow", get(allow::allow))
        .route("/weft/v1/conditions", get(conditions::conditions))
        .route("/weft/v1/why", get(mesh::why))
        .route("/weft/v1/recent", get(mesh::recent))
        .route("/weft/v1/edges", get(mesh::edges))
        .route("/weft/v1/tokens", get(trust::tokens).post(trust::create_token))
        .route("/weft/v1/tokens/{id}", delete(trust::delete_token))
        .route("/weft/v1/ca", get(trust::ca))
        .route("/weft/v1/history", get(mesh::history))
        .route("/weft/v1/maintenance", put(mesh::maintenance))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(BODY_MOST))
        .layer(from_fn_with_state(control.clone(), auth::check))
        .with_state(control)
}

async fn unknown(request: axum::extract::Request) -> Failure {
    Failure::not_found(format!("the server has no `{}`; look at /apis, or at `weft --help`", request.uri().path()))
}

async fn ready(State(control): State<Arc<Control>>) -> Answer {
    if control.draining.phase() > weft_rt::drain::Phase::Running {
        return Err(Failure::unavailable("the server is going down"));
    }
    if control.authority.tls().is_none() {
        return Err(Failure::unavailable("the server has no identity yet"));
    }
    Ok("ok".into_response())
}

async fn metrics(State(control): State<Arc<Control>>, headers: HeaderMap) -> Answer {
    let state = control.replica.state();
    let (proxies, collections) = control.sessions.counts();
    let gauges = Gauges {
        services: state.world.catalog.services().count(),
        endpoints: state.world.catalog.instances().count(),
        proxies,
        collections,
        revision: state.revision.n,
    };
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()));
    let text = control.metrics.render(gauges, format);
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

// === one function a method and root: axum takes paths apart by position ===

type Shared = State<Arc<Control>>;
type Named = Path<(String, String, String)>;

fn path_of(Path((group, version, rest)): Named) -> Path<String> {
    Path(format!("{group}/{version}/{rest}"))
}

fn core_of(Path(rest): Path<String>) -> Path<String> {
    Path(format!("v1/{rest}"))
}

async fn core_get(c: Shared, p: Path<String>, q: Query<Params>, h: HeaderMap) -> Answer {
    resources::get((c, core_of(p), q, h), Group::Core).await
}

async fn core_post(c: Shared, p: Path<String>, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::post((c, core_of(p), q, h), Group::Core, b).await
}

async fn core_put(c: Shared, p: Path<String>, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::put((c, core_of(p), q, h), Group::Core, b).await
}

async fn core_patch(c: Shared, p: Path<String>, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::patch((c, core_of(p), q, h), Group::Core, b).await
}

async fn core_delete(c: Shared, p: Path<String>, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::delete((c, core_of(p), q, h), Group::Core, b).await
}

async fn named_get(c: Shared, p: Named, q: Query<Params>, h: HeaderMap) -> Answer {
    resources::get((c, path_of(p), q, h), Group::Named).await
}

async fn named_post(c: Shared, p: Named, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::post((c, path_of(p), q, h), Group::Named, b).await
}

async fn named_put(c: Shared, p: Named, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::put((c, path_of(p), q, h), Group::Named, b).await
}

async fn named_patch(c: Shared, p: Named, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::patch((c, path_of(p), q, h), Group::Named, b).await
}

async fn named_delete(c: Shared, p: Named, q: Query<Params>, h: HeaderMap, b: Bytes) -> Answer {
    resources::delete((c, path_of(p), q, h), Group::Named, b).await
}
