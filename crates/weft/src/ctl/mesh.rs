//! Questions about the mesh: services, endpoints, proxies, who may reach whom, the authority.

use anyhow::Result;
use serde_json::Value;

use super::print::{self, list, text};
use crate::{
    cli::{self, Output},
    client::{Api, quoted},
};

pub async fn services(query: cli::Query) -> Result<u8> {
    let json = Api::find(&query.client)?.get("/weft/v1/services").await?;
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
    print::table(&["NAMESPACE", "SERVICE", "PORTS", "INSTANCES", "IDENTITIES", "CONFLICTS"], &rows);
    if query.output == Output::Wide {
        let json = Api::find(&query.client)?.get("/weft/v1/endpoints").await?;
        println!();
        instances(&json, Output::Wide);
    }
    Ok(0)
}

pub async fn endpoints(flags: cli::Endpoints) -> Result<u8> {
    let path = format!("/weft/v1/endpoints?service={}", quoted(&qualified(&flags.service)));
    let json = Api::find(&flags.query.client)?.get(&path).await?;
    if !print::structured(&json, flags.query.output) {
        instances(&json, flags.query.output);
    }
    Ok(0)
}

fn instances(json: &Value, output: Output) {
    let rows: Vec<_> = list(json, "endpoints")
        .iter()
        .map(|e| {
            let ports: Vec<_> = list(e, "ports").iter().map(|p| text(p, "app")).collect();
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
            print::table(&["UID", "HEALTH", "APPLICATION", "MESH", "METRICS", "IDENTITY", "LABELS", "CHECKS"], &rows)
        }
        _ => print::table(&["UID", "HEALTH", "APPLICATION", "MESH"], &rows),
    }
}

pub async fn status(query: cli::Query) -> Result<u8> {
    let json = Api::find(&query.client)?.get("/weft/v1/status").await?;
    if print::structured(&json, query.output) {
        return Ok(0);
    }
    let server = json.get("server").cloned().unwrap_or_default();
    println!(
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
    print::table(&["PROXY", "STATE", "REVISION", "DIGEST", "IDENTITY", "NOTES", "REJECTED"], &rows);
    Ok(if bad { 2 } else { 0 })
}

pub async fn allow(flags: cli::Allow) -> Result<u8> {
    let mut path = format!("/weft/v1/allow?to={}", quoted(&qualified(&flags.service)));
    if let Some(from) = &flags.from {
        path.push_str(&format!("&from={}", quoted(&qualified(from))));
    }
    let json = Api::find(&flags.query.client)?.get(&path).await?;
    if print::structured(&json, flags.query.output) {
        return Ok(0);
    }
    let rows: Vec<_> = list(&json, "rows")
        .iter()
        .map(|r| vec![text(r, "from"), text(r, "port"), text(r, "verdict"), text(r, "rule"), text(r, "reason")])
        .collect();
    print::table(&["FROM", "PORT", "VERDICT", "RULE", "REASON"], &rows);
    Ok(0)
}

pub async fn ca(query: cli::Query) -> Result<u8> {
    let json = Api::find(&query.client)?.get("/weft/v1/ca").await?;
    if print::structured(&json, query.output) {
        return Ok(0);
    }
    println!("trust domain {}, leaves live {} s", text(&json, "trust_domain"), text(&json, "leaf_ttl_s"));
    let rows: Vec<_> = list(&json, "authorities")
        .iter()
        .map(|a| {
            vec![text(a, "slot"), text(a, "state"), text(a, "subject"), text(a, "not_before"), text(a, "not_after")]
        })
        .collect();
    print::table(&["SLOT", "STATE", "SUBJECT", "FROM", "UNTIL"], &rows);
    let issued = json.get("issued").cloned().unwrap_or_default();
    println!("issued {}, of which {} have not expired", text(&issued, "total"), text(&issued, "unexpired"));
    Ok(0)
}

/// `namespace/name`, or a bare name in `default`.
fn qualified(name: &str) -> String {
    if name.contains('/') { name.into() } else { format!("default/{name}") }
}
