//! What holds of resources now (`GET /weft/v1/conditions?resources=Kind/namespace/name,…`): out of the world as it is, so
//! that whoever has just written hears of it before the status is stored.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    response::IntoResponse as _,
};
use serde::Deserialize;
use serde_json::json;
use weft_resources::{ResourceKey, status};

use super::{
    failure::{Answer, Failure},
    mesh::fresh,
};
use crate::{keys, server::Control};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Params {
    resources: String,
}

pub async fn conditions(State(control): State<Arc<Control>>, Query(params): Query<Params>) -> Answer {
    let asked = params.resources.split(',').filter(|r| !r.is_empty());
    let keys = asked.map(key).collect::<Answer<Vec<_>>>()?;
    let state = fresh(&control).await?;
    let now = control.replica.clock.wall();
    // one that is gone again has none
    let found = keys.iter().filter_map(|key| {
        let generation = state.docs.get(key)?.resource.metadata.generation;
        let status = status::status(&state.world, key)?.to_json(generation, None, now);
        Some(json!({ "resource": key.to_string(), "status": status }))
    });
    let found: Vec<_> = found.collect();
    Ok(Json(json!({ "revision": state.revision.to_string(), "resources": found })).into_response())
}

fn key(text: &str) -> Answer<ResourceKey> {
    let bad = || Failure::bad_request(format!("resources: `{text}` is no Kind/namespace/name"));
    keys::parse_resource(text).ok_or_else(bad)
}
