//! Resources: apply, delete, get, watch, lint.

use std::{collections::BTreeSet, io::Read as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use serde_json::Value;
use weft_resources::Kind;

use super::print::{self, list, text};
use crate::{
    cli,
    client::{Api, Failed, quoted},
    say::{self, say, tell},
};

/// Resources in one question, so that its address stays short.
const ASKED_AT_ONCE: usize = 50;

/// What became of documents that were sent.
#[derive(Default)]
struct Sent {
    code: u8,
    /// The newest revision that any of them has.
    revision: Option<String>,
    /// Whether that revision is due to them.
    news: bool,
    resources: Vec<String>,
}

pub async fn apply(flags: cli::Apply) -> Result<u8> {
    let api = Api::find(&flags.client)?;
    let dry = if flags.dry_run { "&dryRun=All" } else { "" };
    let mut sent = Sent::default();
    for file in &flags.files {
        let documents = read(file)?;
        let path = format!("/weft/v1/apply?namespace={}&file={}{dry}", quoted(&flags.namespace), quoted(&shown(file)));
        changed(&api, &path, documents, flags.dry_run, &mut sent).await?;
    }
    let code = if flags.wait { waited(&api, &sent, flags.timeout).await? } else { sent.code };
    if !flags.dry_run {
        warn(&api, &sent.resources).await?;
    }
    Ok(code)
}

/// Tells what does not hold of documents that were written all the same: what they name is not there.
async fn warn(api: &Api, resources: &[String]) -> Result<()> {
    for some in resources.chunks(ASKED_AT_ONCE) {
        let asked: Vec<_> = some.iter().map(|r| quoted(r)).collect();
        let json = api.get(&format!("/weft/v1/conditions?resources={}", asked.join(","))).await?;
        for object in list(&json, "resources") {
            let resource = text(object, "resource");
            bad(object).iter().for_each(|what| tell!("warning: {resource}: {what}"));
        }
    }
    Ok(())
}

pub async fn delete(flags: cli::Delete) -> Result<u8> {
    let api = Api::find(&flags.client)?;
    let mut sent = Sent { news: true, ..Sent::default() };
    if let (Some(typed), Some(name)) = (&flags.kind, &flags.name) {
        let path = format!("{}/{}", collection(typed, Some(&flags.namespace))?, quoted(name));
        let status = api.delete(&path).await?;
        say!("{typed}/{}/{name} deleted", flags.namespace);
        sent.revision = status.pointer("/details/revision").and_then(Value::as_str).map(str::to_owned);
    }
    for file in &flags.files {
        let path = format!("/weft/v1/delete?namespace={}", quoted(&flags.namespace));
        changed(&api, &path, read(file)?, false, &mut sent).await?;
    }
    if flags.wait { waited(&api, &sent, flags.timeout).await } else { Ok(sent.code) }
}

pub async fn get(flags: cli::Get) -> Result<u8> {
    let api = Api::find(&flags.client)?;
    let namespace = Some(&flags.namespace).filter(|_| !flags.all_namespaces);
    let mut path = collection(&flags.kind, namespace)?;
    if let Some(name) = &flags.name {
        path = format!("{path}/{}", quoted(name));
    }
    let json = api.get(&path).await?;
    if print::structured(&json, flags.output) {
        return Ok(0);
    }
    let one = [json.clone()];
    let items = if flags.name.is_some() { &one[..] } else { list(&json, "items") };
    let rows: Vec<_> = items.iter().map(row).collect();
    let kind = Kind::from_word(&flags.kind).map_or("resources", |k| k.info().plural);
    let namespaced = Kind::from_word(&flags.kind).is_some_and(Kind::is_namespaced);
    let nothing = match namespace.filter(|_| namespaced) {
        Some(namespace) => format!("no {kind} in namespace {namespace}"),
        None => format!("no {kind}"),
    };
    print::table(&["NAMESPACE", "NAME", "GENERATION", "CREATED", "STATUS"], &rows, &nothing);
    Ok(0)
}

pub async fn watch(flags: cli::Watch) -> Result<u8> {
    let api = Api::find(&flags.client)?;
    let path = format!("{}?watch=true", collection(&flags.kind, Some(&flags.namespace))?);
    let reply = api.open(Method::GET, &path, None).await?;
    if reply.status() != StatusCode::OK {
        let body = reply.into_body().collect().await?.to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        return Err(Failed::Problem(text(&json, "message")).into());
    }
    let mut body = reply.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        pending.extend_from_slice(&data);
        while let Some(at) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=at).collect();
            let event: Value = serde_json::from_slice(&line)?;
            let object = event.get("object").cloned().unwrap_or_default();
            let [namespace, name, generation, ..] = &row(&object)[..] else { continue };
            say!("{:<9} {namespace}/{name} generation {generation}", text(&event, "type"));
            if !say::heard() {
                return Ok(0);
            }
        }
    }
    Ok(0)
}

pub fn lint(flags: &cli::Lint) -> Result<u8> {
    let mut code = 0;
    for file in flags.files.iter().chain(&flags.more) {
        let documents = weft_resources::parse(&shown(file), &read(file)?);
        if documents.is_empty() {
            code = 2;
            tell!("{}: there is no document in it", shown(file));
        }
        for document in documents {
            match document.and_then(|d| weft_resources::admit(&d)) {
                Ok(resource) => {
                    say!("{}: good", resource.key.reference());
                    resource.warnings.iter().for_each(|warning| tell!("  warning: {warning}"));
                }
                Err(violations) => {
                    code = 2;
                    tell!("{violations}");
                }
            }
        }
    }
    Ok(code)
}

/// Sends documents and prints what became of each.
async fn changed(api: &Api, path: &str, documents: String, dry: bool, sent: &mut Sent) -> Result<()> {
    let reply = api.send_text(Method::POST, path, documents).await?;
    if reply.status != StatusCode::UNPROCESSABLE_ENTITY && !reply.status.is_success() {
        reply.good()?;
        sent.code = 2;
        return Ok(());
    }
    for result in list(&reply.json, "results") {
        let outcome = text(result, "result");
        let suffix = if dry { " (dry run)" } else { "" };
        let resource = Some(text(result, "resource")).filter(|r| !r.is_empty()).unwrap_or_else(|| "document".into());
        say!("{resource} {outcome}{suffix}");
        for warning in list(result, "warnings") {
            tell!("  warning: {}", text(warning, "text"));
        }
        for v in list(result, "violations") {
            tell!("  {}", text(v, "text"));
        }
        if !text(result, "message").is_empty() {
            tell!("  {}", text(result, "message"));
        }
        if matches!(outcome.as_str(), "invalid" | "conflict" | "failed") {
            sent.code = 2;
        } else {
            sent.resources.push(resource);
        }
        if let Some(revision) = result.get("revision").and_then(Value::as_str) {
            sent.revision = Some(revision.into());
            sent.news |= !matches!(outcome.as_str(), "unchanged" | "absent");
        }
    }
    Ok(())
}

async fn waited(api: &Api, sent: &Sent, timeout: Duration) -> Result<u8> {
    match &sent.revision {
        Some(revision) if sent.code == 0 => wait(api, revision, sent.news, timeout).await,
        _ => Ok(sent.code),
    }
}

/// A write receipt: which proxies have applied the revision, and when (features.md NOV-05). Where nothing was written
/// (no `news`), the time is that of somebody else's change, or of one long ago.
async fn wait(api: &Api, revision: &str, news: bool, timeout: Duration) -> Result<u8> {
    let path = format!("/weft/v1/wait?revision={}&timeout={}ms", quoted(revision), timeout.as_millis());
    let receipt = api.get(&path).await?;
    for proxy in list(&receipt, "proxies") {
        let when = match proxy.get("acked_ms").and_then(Value::as_u64) {
            Some(ms) if news => format!("after {ms} ms"),
            Some(_) => "has it already".into(),
            None => text(proxy, "state"),
        };
        say!("  {} {when}", text(proxy, "uid"));
        for r in list(proxy, "rejections") {
            tell!("    rejected {}: {}", text(r, "resource"), text(r, "reason"));
        }
    }
    say!("revision {revision}: applied by {} of {} proxies", text(&receipt, "acknowledged"), text(&receipt, "total"));
    Ok(if receipt.get("complete").and_then(Value::as_bool) == Some(true) { 0 } else { 2 })
}

fn row(object: &Value) -> Vec<String> {
    let meta = object.get("metadata").cloned().unwrap_or_default();
    vec![
        text(&meta, "namespace"),
        text(&meta, "name"),
        text(&meta, "generation"),
        text(&meta, "creationTimestamp"),
        state(object),
    ]
}

/// The conditions that are not as they should be, or that all is well.
fn state(object: &Value) -> String {
    let bad = bad(object);
    if bad.is_empty() { "ok".into() } else { bad.into_iter().collect::<Vec<_>>().join("; ") }
}

/// The conditions that are not as they should be, each once, whichever parents they are about.
fn bad(object: &Value) -> BTreeSet<String> {
    let status = object.get("status").cloned().unwrap_or_default();
    let parents = list(&status, "parents").iter().flat_map(|p| list(p, "conditions"));
    list(&status, "conditions")
        .iter()
        .chain(parents)
        // of these alone True is the bad news
        .filter(|c| (text(c, "status") != "True") != matches!(&*text(c, "type"), "Conflicted" | "PartiallyInvalid"))
        .map(|c| format!("{}={}: {}", text(c, "type"), text(c, "status"), text(c, "message").replace('\n', "; ")))
        .collect()
}

/// The API path of a kind, named in any of the usual ways.
fn collection(typed: &str, namespace: Option<&String>) -> Result<String, Failed> {
    let kind = Kind::from_word(typed)
        .ok_or_else(|| Failed::Usage(format!("`{typed}` is not a kind I know; known are {}", cli::kinds())))?;
    let base = if kind.info().group.is_empty() { "/api" } else { "/apis" };
    let base = format!("{base}/{}", kind.api_version());
    Ok(match namespace.filter(|_| kind.is_namespaced()) {
        Some(ns) => format!("{base}/namespaces/{}/{}", quoted(ns), kind.info().plural),
        None => format!("{base}/{}", kind.info().plural),
    })
}

fn read(file: &Path) -> Result<String> {
    let mut documents = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut documents).context("cannot read standard input")?;
    } else {
        documents = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(documents)
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard input".into() } else { file.display().to_string() }
}
