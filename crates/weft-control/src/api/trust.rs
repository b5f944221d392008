//! Join tokens and the state of the authority.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse as _,
};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_ca::{Allowed, Entry, LedgerRecord, Status, token};
use weft_identity::{CONTROL_PLANE_PATH, Facts};
use weft_model::Name;
use weft_store::{Expect, Format, Write};

use super::{
    failure::{Answer, Failure},
    mesh::{duration, fresh},
};
use crate::{documents::DocumentError, keys, replica::Draft, server::Control, state};

/// How long a token may be spent when nobody says otherwise.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// Nobody needs an older one; whoever does asks again.
const TOKEN_TTL_MOST: Duration = Duration::from_secs(30 * 86_400);
/// Issuances that are shown.
const LEDGER_SHOWN: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NewToken {
    namespace: Option<String>,
    service_account: Option<String>,
    /// That its holder may register, beside the namesake of its service account; `*`: what it names when it joins.
    service: Option<String>,
    ttl: Option<String>,
}

pub async fn create_token(State(control): State<Arc<Control>>, Json(body): Json<NewToken>) -> Answer {
    let ttl = match body.ttl.as_deref() {
        None | Some("") => TOKEN_TTL,
        Some(text) => duration(text)?,
    };
    if ttl.is_zero() || ttl > TOKEN_TTL_MOST {
        return Err(Failure::bad_request("ttl: a join token lives at least 1s and at most 30d"));
    }
    let any = |s: &Option<String>| s.clone().filter(|s| !s.is_empty()).unwrap_or_else(|| "*".into());
    let allowed: Allowed = format!("{}/{}", any(&body.namespace), any(&body.service_account))
        .parse()
        .map_err(|e: token::TokenError| Failure::bad_request(e.to_string()))?;
    let service = body.service.filter(|s| !s.is_empty());
    if let Some(service) = service.as_deref().filter(|s| *s != "*") {
        Name::parse(service).map_err(|e| Failure::bad_request(format!("service: {e}")))?;
    }
    let (namespace, plane) = CONTROL_PLANE_PATH;
    let names_it = [&body.service_account, &service].into_iter().any(|n| n.as_deref() == Some(plane));
    if names_it && body.namespace.as_deref() == Some(namespace) {
        return Err(Failure::bad_request(format!(
            "no workload can be {namespace}/{plane}: that is the control plane itself"
        )));
    }
    let signing = control.authority.signing();
    // the root that the server itself hangs on: what a joining client will be shown
    let root = signing.signer.root().authorities().first().map(|a| a.key);
    let root = root.ok_or_else(|| Failure::internal("the mesh has no root"))?;
    let expires = control.replica.clock.wall().plus(ttl);
    let (token, record) = token::mint(allowed, expires, root).map_err(|e| Failure::internal(e.to_string()))?;
    let record = record.for_service(service);
    let committed = control.replica.commit::<(), DocumentError>("admin", "create a join token", |_, _| {
        let mut draft = Draft::idle(());
        let key = keys::token(&record.id);
        draft.expects.push(Expect::absent(key.clone()));
        draft.writes.insert(key.into(), Write::Put(Format::Raw.wrap(&record.encode())));
        Ok(draft)
    });
    committed.await.map_err(|e| Failure::of_commit(&e))?;
    let json = json!({
        "token": token.to_string(), "id": record.id, "allowed": record.allowed.to_string(), "service": record.service,
        "expires": record.not_after.rfc3339(), "server": control.addresses().mesh,
        "trust_domain": control.authority.trust_domain().to_string(),
    });
    Ok((StatusCode::CREATED, Json(json)).into_response())
}

pub async fn tokens(State(control): State<Arc<Control>>) -> Answer {
    let state = fresh(&control).await?;
    let now = control.replica.clock.wall();
    let one = |s: &weft_registry::Stored<weft_ca::TokenRecord>| {
        json!({
            "id": s.value.id, "allowed": s.value.allowed.to_string(), "service": s.value.service, "expires": s.value.not_after.rfc3339(),
            "expired": now >= s.value.not_after, "spent": s.value.spent_by.is_some(),
            "spent_by": s.value.spent_by.map(|k| k.to_string()), "created": s.created.to_string(),
        })
    };
    Ok(Json(json!({ "tokens": state.tokens.values().map(one).collect::<Vec<_>>() })).into_response())
}

pub async fn delete_token(State(control): State<Arc<Control>>, Path(id): Path<String>) -> Answer {
    let committed = control.replica.commit::<bool, DocumentError>("admin", "delete a join token", |state, _| {
        let Some(stored) = state.tokens.get(&id) else { return Ok(Draft::idle(false)) };
        let mut draft = Draft::idle(true);
        draft.expects.push(Expect::unchanged(keys::token(&id), stored.modified));
        draft.writes.insert(keys::token(&id).into(), Write::Delete);
        Ok(draft)
    });
    match committed.await.map_err(|e| Failure::of_commit(&e))?.reply {
        true => Ok(Json(json!({ "id": id })).into_response()),
        false => Err(Failure::not_found(format!("there is no join token `{id}`"))),
    }
}

pub async fn ca(State(control): State<Arc<Control>>) -> Answer {
    let state = fresh(&control).await?;
    let now = control.replica.clock.wall();
    let range = control.replica.store.range(keys::LEDGER, None);
    let range = range.map_err(|e| Failure::internal(weft_rt::log::chain(&e).to_string()))?;
    let mut ledger: Vec<LedgerRecord> =
        range.items.iter().filter_map(|(key, v)| LedgerRecord::decode(state::raw(key, v).ok()?).ok()).collect();
    ledger.sort_by_key(|r| std::cmp::Reverse(r.issued));
    let unexpired = ledger.iter().filter(|r| r.not_after > now).count();
    let shown: Vec<_> = ledger
        .iter()
        .take(LEDGER_SHOWN)
        .map(|r| {
            json!({
                "serial": r.serial.to_string(), "id": r.id, "node": r.node, "issued": r.issued.rfc3339(),
                "not_after": r.not_after.rfc3339(), "issuer": r.issuer.to_string(),
            })
        })
        .collect();
    let slots = |journal: &weft_ca::Journal, kind: &str| -> Vec<Value> {
        journal.entries().iter().map(|e| authority_json(e, kind)).collect()
    };
    let mut authorities = slots(&state.roots.journal, "root");
    authorities.extend(slots(&state.signing.journal, "signing"));
    Ok(Json(json!({
        "trust_domain": state.mesh.trust_domain, "created": state.mesh.created.rfc3339(), "authorities": authorities,
        "leaf_ttl_s": control.authority.leaf_ttl().as_secs(),
        "issued": { "total": ledger.len(), "unexpired": unexpired }, "ledger": shown,
    }))
    .into_response())
}

fn authority_json(entry: &Entry, kind: &str) -> Value {
    let state = match entry.status {
        Status::Prepared => "prepared",
        Status::Active => "active",
        Status::Old => "old",
    };
    let facts = Facts::read(&entry.certificate).ok();
    json!({
        "kind": kind, "slot": entry.number, "state": state, "subject": facts.as_ref().map(|f| f.subject.clone()),
        "key": facts.map(|f| f.key.to_string()), "issued": entry.issued.rfc3339(), "not_after": entry.not_after.rfc3339(),
    })
}
