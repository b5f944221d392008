//! Join tokens: made, listed, revoked.

use anyhow::Result;
use serde_json::{Value, json};

use super::print::{self, text};
use crate::{
    cli,
    client::{Api, quoted},
    say::{say, tell},
};

pub async fn create(flags: cli::TokenCreate) -> Result<u8> {
    let (namespace, service) = flags.service.split_once('/').unwrap_or(("default", &flags.service));
    let account = flags.service_account.as_deref().unwrap_or(service);
    let ask = json!({
        "namespace": namespace, "service": service, "service_account": account, "ttl": format!("{}ms", flags.ttl.as_millis()),
    });
    let json = Api::find(&flags.client)?.post("/weft/v1/tokens", &ask).await?;
    if print::structured(&json, flags.output) {
        return Ok(0);
    }
    say!("{}", text(&json, "token"));
    let (mesh, server) = (text(&json, "trust_domain"), text(&json, "server"));
    tell!(
        "good once, until {}, for the mesh {mesh}; hand it over as WEFT_TOKEN, with WEFT_JOIN={server}",
        text(&json, "expires")
    );
    Ok(0)
}

pub async fn list(query: cli::Query) -> Result<u8> {
    let json = Api::find(&query.client)?.get("/weft/v1/tokens").await?;
    if print::structured(&json, query.output) {
        return Ok(0);
    }
    let rows: Vec<_> = print::list(&json, "tokens")
        .iter()
        .map(|t| vec![text(t, "id"), text(t, "allowed"), text(t, "service"), state(t).into(), text(t, "expires")])
        .collect();
    print::table(&["ID", "SERVICE ACCOUNT", "SERVICE", "STATE", "EXPIRES"], &rows, "no join tokens");
    Ok(0)
}

pub async fn revoke(flags: cli::TokenRevoke) -> Result<u8> {
    Api::find(&flags.client)?.delete(&format!("/weft/v1/tokens/{}", quoted(&flags.id))).await?;
    say!("join token {} revoked", flags.id);
    Ok(0)
}

fn state(token: &Value) -> &'static str {
    let is = |field: &str| token.get(field) == Some(&Value::Bool(true));
    match (is("spent"), is("expired")) {
        (true, _) => "spent",
        (false, true) => "expired",
        (false, false) => "open",
    }
}
