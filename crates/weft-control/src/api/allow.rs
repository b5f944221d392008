//! Who may reach a service: the policies of its instances, evaluated for every identity that the catalog knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Query, State},
    response::IntoResponse as _,
};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_model::{ServiceKey, SpiffeId, Uid};
use weft_resources::World;
use weft_snapshot::{
    authz::{Attributes, DenyReason, InboundView, L4Verdict, Verdict, evaluate, evaluate_l4, normalize},
    fragment::Listen,
    request::Request,
};

use super::{
    failure::{Answer, Failure},
    mesh::{fresh, service_key},
};
use crate::server::Control;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Params {
    to: Option<String>,
    port: Option<String>,
    from: Option<String>,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    source_ip: Option<IpAddr>,
}

pub async fn allow(State(control): State<Arc<Control>>, Query(params): Query<Params>) -> Answer {
    let to = params.to.as_deref().filter(|t| !t.is_empty());
    let to = to.ok_or_else(|| Failure::bad_request("to is missing; name the service, such as to=shop/web"))?;
    let (to, port) = match to.rsplit_once(':') {
        Some((service, port)) => (service, Some(port.to_owned())),
        None => (to, params.port.clone().filter(|p| !p.is_empty())),
    };
    let service = service_key(to)?;
    let state = fresh(&control).await?;
    let world = &state.world;
    if weft_resources::compile_service(world, &service).is_none() {
        return Err(Failure::not_found(format!(
            "Service/{service} does not exist; `weft services` lists those that do"
        )));
    }
    let callers = callers(world, params.from.as_deref())?;
    let rows = rows(world, &service, port.as_deref(), &callers, &params)?;
    Ok(Json(json!({ "revision": state.revision.to_string(), "service": service, "rows": rows })).into_response())
}

/// `None` stands for a peer without an identity.
fn callers(world: &World, from: Option<&str>) -> Answer<Vec<Option<SpiffeId>>> {
    match from.filter(|f| !f.is_empty()) {
        Some("unauthenticated") => Ok(vec![None]),
        Some(id) if id.starts_with("spiffe://") => {
            let id = SpiffeId::parse(id).map_err(|e| Failure::bad_request(format!("from: {e}")))?;
            Ok(vec![Some(id)])
        }
        Some(account) => {
            let key = service_key(account)?;
            let td = &world.mesh.trust_domain;
            let id = SpiffeId::workload(td, key.namespace.as_str(), key.name.as_str());
            Ok(vec![Some(id.map_err(|e| Failure::bad_request(format!("from: {e}")))?)])
        }
        None => {
            let known: BTreeSet<SpiffeId> = world.catalog.instances().filter_map(|i| i.identity.clone()).collect();
            Ok(known.into_iter().map(Some).chain([None]).collect())
        }
    }
}

fn rows(
    world: &World,
    service: &ServiceKey,
    port: Option<&str>,
    callers: &[Option<SpiffeId>],
    params: &Params,
) -> Answer<Vec<Value>> {
    // instances that answer alike share a row
    let mut rows: BTreeMap<(String, u16, String), (Value, Vec<Uid>)> = BTreeMap::new();
    let mut listened = false;
    for (uid, endpoint) in weft_resources::compile_endpoints(world, service) {
        let (Some(workload), Some(inbound)) =
            (weft_resources::compile_workload(world, &uid), weft_resources::compile_inbound(world, &uid))
        else {
            continue;
        };
        let view = InboundView::compile(&inbound);
        let of_service = |l: &&Listen| endpoint.ports.contains_key(&l.service_port);
        let named = |l: &&Listen| port.is_none_or(|p| p == &*l.name || p.parse() == Ok(l.service_port));
        for listen in workload.listens.iter().filter(of_service).filter(named) {
            listened = true;
            for caller in callers {
                let (verdict, rule, reason) = match &view {
                    Ok(view) => judge(view, listen, caller.as_ref(), params)?,
                    // as the proxy does with what it cannot honour
                    Err(why) => ("deny", String::new(), format!("the policy cannot be honoured: {why}")),
                };
                let from = caller.as_ref().map_or_else(|| "unauthenticated".to_owned(), ToString::to_string);
                let row = json!({
                    "from": from, "port": listen.service_port, "port_name": listen.name, "protocol": listen.protocol,
                    "verdict": verdict, "rule": rule, "reason": reason,
                });
                let key = (from, listen.service_port, format!("{verdict} {rule} {reason}"));
                rows.entry(key).or_insert_with(|| (row, Vec::new())).1.push(uid.clone());
            }
        }
    }
    if let (Some(port), false) = (port, listened) {
        return Err(Failure::not_found(format!("no instance of Service/{service} listens on port `{port}`")));
    }
    let rows = rows.into_values().map(|(mut row, instances)| {
        if let Some(map) = row.as_object_mut() {
            map.insert("instances".into(), json!(instances));
        }
        row
    });
    Ok(rows.collect())
}

fn judge(
    view: &InboundView,
    listen: &Listen,
    principal: Option<&SpiffeId>,
    params: &Params,
) -> Answer<(&'static str, String, String)> {
    let path = params.path.as_deref().unwrap_or("/");
    let path = normalize(path)
        .map_err(|_| Failure::bad_request(format!("path: `{path}` is ambiguous and would be refused")))?;
    let no_headers: Vec<(&str, &str)> = Vec::new();
    let asked = params.method.is_some() || params.path.is_some() || params.host.is_some();
    let http = asked.then(|| Request {
        method: params.method.as_deref().unwrap_or("GET"),
        path: &path,
        host: params.host.as_deref().unwrap_or_default(),
        headers: &no_headers,
    });
    let attributes = Attributes {
        principal,
        source_ip: params.source_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        dest_ip: listen.app.ip(),
        dest_port: listen.app.port(),
        sni: None,
        http,
    };
    let rule = |r: &Option<Arc<weft_model::ResourceRef>>| r.as_ref().map(ToString::to_string).unwrap_or_default();
    // Whoever asks knows the service's port; that of an application differs from instance to instance
    let told = |why: DenyReason| match why {
        DenyReason::Plaintext { .. } => DenyReason::Plaintext { port: listen.service_port }.to_string(),
        why => why.to_string(),
    };
    if asked {
        return Ok(match evaluate(view, &attributes) {
            Verdict::Allow { rule: r, why } => ("allow", rule(&r), why.to_string()),
            Verdict::Deny { rule: r, why } => ("deny", rule(&r), told(why)),
        });
    }
    Ok(match evaluate_l4(view, &attributes) {
        L4Verdict::Allow { rule: r, why } => ("allow", rule(&r), why.to_string()),
        L4Verdict::Deny { rule: r, why } => ("deny", rule(&r), told(why)),
        L4Verdict::NeedsHttp => {
            ("depends", String::new(), "it depends on the request; add method, path or host to ask about one".into())
        }
    })
}
