//! Questions about the mesh: services, endpoints, proxies, who may reach whom, the authority.

use anyhow::Result;
use serde_json::Value;

use super::print::{self, list, text};
use crate::{
    cli::{self, Output},
    client::{Api, Failed, quoted},
    say::say,
};

pub async fn services(query: cli::Query) -> Result<u8> {
    let api = Api::find(&query.client)?;
    let json = api.get("/weft/v1/services").await?;
    if print::structured(&json, query.output) {
        return Ok(0);
    }
    let rows: Vec<_> = list(&json, "services")
        .iter()
        .map(|s| {
            let ports: Vec<_> = list(s, "ports")
                .iter()
                .map(|p| format!("{}:{}/{}", text(p, "name"), text(p, "port"), text(p, "protocol")))
                .collect();
            let instances = s.get("instances").cloned().unwrap_or_default();
            let health = format!("{}/{} passing", text(&instances, "passing"), text(&instances, "total"));
            let identities: Vec<_> = list(s, "identities").iter().filter_map(Value::as_str).collect();
            let conflicts = list(s, "conflicts").iter().map(|c| text(c, "what")).collect::<Vec<_>>().join("; ");
            vec![text(s, "namespace"), text(s, "name"), ports.join(","), health, identities.join(","), conflicts]
        })
        .collect();
    print::table(&["NAMESPACE", "SERVICE", "PORTS", "INSTANCES", "IDENTITIES", "CONFLICTS"], &rows, "no services");
    if query.output == Output::Wide {
        let json = api.get("/weft/v1/endpoints").await?;
        say!("");
        instances(&json, Output::Wide, "no instances are registered");
    }
    Ok(0)
}

pub async fn endpoints(flags: cli::Endpoints) -> Result<u8> {
    let service = qualified(&flags.service);
    let api = Api::find(&flags.query.client)?;
    let json = api.get(&format!("/weft/v1/endpoints?service={}", quoted(&service))).await?;
    // to a program an empty list is an answer: a service may be about to come
    if print::structured(&json, flags.query.output) {
        return Ok(0);
    }
    if list(&json, "endpoints").is_empty() {
        let known = api.get("/weft/v1/services").await?;
        let is_it = |s: &Value| format!("{}/{}", text(s, "namespace"), text(s, "name")) == service;
        if !list(&known, "services").iter().any(is_it) {
            let what = format!("Service/{service} does not exist; `weft services` lists those that do");
            return Err(Failed::Problem(what).into());
        }
    }
    instances(&json, flags.query.output, &format!("no instance of Service/{service} is registered"));
    Ok(0)
}

fn instances(json: &Value, output: Output, nothing: &str) {
    let rows: Vec<_> = list(json, "endpoints")
        .iter()
        .map(|e| {
            let ports: Vec<_> = list(e, "ports").iter().map(|p| text(p, "connect")).collect();
            let mut row = vec![text(e, "uid"), text(e, "health"), ports.join(","), text(e, "mesh")];
            if output == Output::Wide {
                let labels = e.get("labels").and_then(Value::as_object).cloned().unwrap_or_default();
                let labels: Vec<_> =
                    labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
                let checks: Vec<_> =
                    list(e, "checks").iter().map(|c| format!("{}: {}", text(c, "id"), text(c, "status"))).collect();
                row.extend([text(e, "metrics"), text(e, "identity"), labels.join(","), checks.join(", ")]);
            }
            row
        })
        .collect();
    match output {
        Output::Wide => {
            let head = ["UID", "HEALTH", "APPLICATION", "MESH", "METRICS", "IDENTITY", "LABELS", "CHECKS"];
            print::table(&head, &rows, nothing);
        }
        _ => print::table(&["UID", "HEALTH", "APPLICATION", "MESH"], &rows, nothing),
    }
}

pub async fn status(query: cli::Query) -> Result<u8> {
    let json = Api::find(&query.client)?.get("/weft/v1/status").await?;
    if print::structured(&json, query.output) {
        return Ok(0);
    }
    let server = json.get("server").cloned().unwrap_or_default();
    say!(
        "trust domain {}, revision {}, store {}, server {}",
        text(&json, "trust_domain"),
        text(&json, "revision"),
        text(&server, "store"),
        text(&server, "version")
    );
    let mut bad = false;
    let rows: Vec<_> = list(&json, "proxies")
        .iter()
        .map(|p| {
            let state = text(p, "state");
            bad |= state != "synced";
            let marks = if p.get("bypassable") == Some(&Value::Bool(true)) { "bypassable" } else { "" };
            let rejections: Vec<_> = list(p, "rejections")
                .iter()
                .map(|r| format!("{}: {}", text(r, "resource"), text(r, "reason")))
                .collect();
            vec![
                text(p, "uid"),
                state,
                text(p, "acked_revision"),
                text(p, "digest"),
                text(p, "identity"),
                marks.into(),
                rejections.join("; "),
            ]
        })
        .collect();
    print::table(&["PROXY", "STATE", "REVISION", "DIGEST", "IDENTITY", "NOTES", "REJECTED"], &rows, "no proxies");
    Ok(if bad { 2 } else { 0 })
}

pub async fn allow(flags: cli::Allow) -> Result<u8> {
    let mut path = format!("/weft/v1/allow?to={}", quoted(&qualified(&flags.service)));
    // the one caller that has no name
    let from = flags.from.map(|from| if from == "unauthenticated" { from } else { qualified(&from) });
    let asked =
        [("from", from), ("port", flags.port), ("method", flags.method), ("path", flags.path), ("host", flags.host)];
    for (name, value) in asked {
        path.push_str(&value.map(|v| format!("&{name}={}", quoted(&v))).unwrap_or_default());
    }
    let json = Api::find(&flags.query.client)?.get(&path).await?;
    if print::structured(&json, flags.query.output) {
        return Ok(0);
    }
    let rows: Vec<_> = list(&json, "rows")
        .iter()
        .map(|r| vec![text(r, "from"), text(r, "port"), text(r, "verdict"), text(r, "rule"), text(r, "reason")])
        .collect();
    print::table(&["FROM", "PORT", "VERDICT", "RULE", "REASON"], &rows, "no instance of it takes connections");
    Ok(0)
}

pub async fn ca(query: cli::Query) -> Result<u8> {
    let json = Api::find(&query.client)?.get("/weft/v1/ca").await?;
    if print::structured(&json, query.output) {
        return Ok(0);
    }
    say!("trust domain {}, leaves live {} s", text(&json, "trust_domain"), text(&json, "leaf_ttl_s"));
    let rows: Vec<_> = list(&json, "authorities")
        .iter()
        .map(|a| {
            vec![text(a, "slot"), text(a, "state"), text(a, "subject"), text(a, "not_before"), text(a, "not_after")]
        })
        .collect();
    print::table(&["SLOT", "STATE", "SUBJECT", "FROM", "UNTIL"], &rows, "no authorities");
    let issued = json.get("issued").cloned().unwrap_or_default();
    say!("issued {}, of which {} have not expired", text(&issued, "total"), text(&issued, "unexpired"));
    Ok(0)
}

/// `namespace/name`, or a bare name in `default`.
fn qualified(name: &str) -> String {
    if name.contains('/') { name.into() } else { format!("default/{name}") }
}
