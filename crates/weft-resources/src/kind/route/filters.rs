//! Filters of rules and of backends.

use std::{collections::BTreeSet, sync::Arc};

use weft_snapshot::fragment::{HeaderEdit, HttpFilter, PathRewrite};

use super::{MAX_FILTERS, MAX_KEYS};
use crate::{
    schema::{At, Field, Ignored, schema},
    violation::{Reason, Sink, Spot, nearest},
    words,
};

schema! {
    struct RawFilter {
        r#type: String = "type",
        request_header_modifier: RawHeaderEdit = "requestHeaderModifier",
        response_header_modifier: RawHeaderEdit = "responseHeaderModifier",
        url_rewrite: RawRewrite = "urlRewrite",
        _request_redirect: Ignored = "requestRedirect",
        _request_mirror: Ignored = "requestMirror",
        _cors: Ignored = "cors",
        _external_auth: Ignored = "externalAuth",
        _extension_ref: Ignored = "extensionRef",
    }

    struct RawHeaderEdit {
        set: Vec<At<RawHeader>> = "set",
        add: Vec<At<RawHeader>> = "add",
        remove: Vec<At<String>> = "remove",
    }

    struct RawHeader {
        name: String = "name",
        value: String = "value",
    }

    struct RawRewrite {
        hostname: String = "hostname",
        path: RawPathRewrite = "path",
    }

    struct RawPathRewrite {
        r#type: String = "type",
        replace_full_path: String = "replaceFullPath",
        replace_prefix_match: String = "replacePrefixMatch",
    }
}

const HERE: [&str; 3] = ["RequestHeaderModifier", "ResponseHeaderModifier", "URLRewrite"];
const LATER: [&str; 5] = ["RequestRedirect", "RequestMirror", "CORS", "ExternalAuth", "ExtensionRef"];

/// What frames a message or routes it: editing these would let a request mean one thing here and another there.
const OURS: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `rewrites` says whether URLRewrite may stand here (not in a GRPCRoute).
pub(crate) fn filters(raw: &Field<Vec<At<RawFilter>>>, rewrites: bool, out: &mut Sink) -> Vec<HttpFilter> {
    let Some(At { spot, value: raw }) = raw else { return Vec::new() };
    words::at_most(raw, MAX_FILTERS, spot, out);
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for at in raw {
        let Some(kind) = &at.value.r#type else {
            out.missing(&at.spot, "type", format!("is missing; one of {}", HERE.join(", ")));
            continue;
        };
        if !seen.insert(kind.value.as_str()) {
            out.invalid(&at.spot, format!("{} is there twice in one list; write one with both edits", kind.value));
        }
        found.extend(filter(at, kind, rewrites, out));
    }
    found
}

fn filter(
    At { spot, value: raw }: &At<RawFilter>,
    kind: &At<String>,
    rewrites: bool,
    out: &mut Sink,
) -> Option<HttpFilter> {
    let missing = |name: &str, out: &mut Sink| {
        out.missing(spot, name, format!("is missing for a filter of type {}", kind.value));
        None
    };
    match kind.value.as_str() {
        "RequestHeaderModifier" => match &raw.request_header_modifier {
            Some(at) => Some(HttpFilter::RequestHeaders(header_edit(at, out))),
            None => missing("requestHeaderModifier", out),
        },
        "ResponseHeaderModifier" => match &raw.response_header_modifier {
            Some(at) => Some(HttpFilter::ResponseHeaders(header_edit(at, out))),
            None => missing("responseHeaderModifier", out),
        },
        "URLRewrite" if rewrites => match &raw.url_rewrite {
            Some(at) => rewrite(at, out),
            None => missing("urlRewrite", out),
        },
        other if LATER.contains(&other) || other == "URLRewrite" => {
            out.unsupported(&kind.spot, format!("the filter {other} is not supported here yet; remove it"));
            None
        }
        other => {
            let message = match nearest(other, HERE.into_iter().chain(LATER)) {
                Some(near) => format!("unknown filter `{other}`; did you mean `{near}`?"),
                None => format!("unknown filter `{other}`; known: {}", HERE.join(", ")),
            };
            out.refuse(&kind.spot, Reason::Invalid, message);
            None
        }
    }
}

fn header_edit(At { spot, value: raw }: &At<RawHeaderEdit>, out: &mut Sink) -> HeaderEdit {
    let mut named = BTreeSet::new();
    let mut once = |name: &Arc<str>, spot: &Spot, out: &mut Sink| {
        if !named.insert(name.clone()) {
            out.invalid(spot, format!("header `{name}` is edited twice in one filter"));
        }
    };
    let mut pairs = |list: &Field<Vec<At<RawHeader>>>, out: &mut Sink| -> Vec<_> {
        let Some(At { spot, value: list }) = list else { return Vec::new() };
        words::at_most(list, MAX_KEYS, spot, out);
        let mut pair = |at: &At<RawHeader>| {
            let name = match &at.value.name {
                Some(name) => editable(name, out),
                None => {
                    out.missing(&at.spot, "name", "is missing");
                    None
                }
            };
            let value = match &at.value.value {
                Some(value) => words::header_value(value, out),
                None => {
                    out.missing(&at.spot, "value", "is missing");
                    None
                }
            };
            if let Some(name) = &name {
                once(name, &at.spot, out);
            }
            Some((name?, value?))
        };
        list.iter().filter_map(&mut pair).collect()
    };
    let (set, add) = (pairs(&raw.set, out), pairs(&raw.add, out));
    let mut remove = Vec::new();
    for at in raw.remove.iter().flat_map(|r| &r.value) {
        if let Some(name) = editable(at, out) {
            once(&name, &at.spot, out);
            remove.push(name);
        }
    }
    if raw.set.is_none() && raw.add.is_none() && raw.remove.is_none() {
        out.invalid(spot, "edits nothing; write set, add or remove");
    }
    HeaderEdit { set, add, remove }
}

fn editable(at: &At<String>, out: &mut Sink) -> Option<Arc<str>> {
    let name = words::header_name(at, out)?;
    if &*name == "host" {
        out.invalid(&at.spot, "the host is no header to edit; use a URLRewrite filter with hostname");
        return None;
    }
    if OURS.contains(&&*name) || name.starts_with("weft-") {
        out.invalid(&at.spot, format!("header `{name}` belongs to the proxy and cannot be edited"));
        return None;
    }
    Some(name)
}

fn rewrite(At { spot, value: raw }: &At<RawRewrite>, out: &mut Sink) -> Option<HttpFilter> {
    let host = raw.hostname.as_ref().and_then(|at| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if at.value.is_empty() || at.value.len() > 253 || !at.value.bytes().all(allowed) {
            out.invalid(&at.spot, format!("`{}` is not a host name", at.value));
            return None;
        }
        Some(at.value.to_ascii_lowercase().into())
    });
    let path = raw.path.as_ref().and_then(|at| path_rewrite(at, out));
    if raw.hostname.is_none() && raw.path.is_none() {
        out.invalid(spot, "rewrites nothing; write hostname or path");
    }
    (host.is_some() || path.is_some()).then_some(HttpFilter::Rewrite { host, path })
}

fn path_rewrite(At { spot, value: raw }: &At<RawPathRewrite>, out: &mut Sink) -> Option<PathRewrite> {
    let Some(kind) = &raw.r#type else {
        out.missing(spot, "type", "is missing; ReplaceFullPath or ReplacePrefixMatch");
        return None;
    };
    let (field, name, make): (_, _, fn(Arc<str>) -> PathRewrite) = match kind.value.as_str() {
        "ReplaceFullPath" => (&raw.replace_full_path, "replaceFullPath", PathRewrite::Full),
        "ReplacePrefixMatch" => (&raw.replace_prefix_match, "replacePrefixMatch", PathRewrite::Prefix),
        other => {
            let known = ["ReplaceFullPath", "ReplacePrefixMatch"];
            let near = nearest(other, known).unwrap_or("ReplaceFullPath");
            out.invalid(&kind.spot, format!("unknown path rewrite `{other}`; did you mean `{near}`?"));
            return None;
        }
    };
    let Some(at) = field else {
        out.missing(spot, name, format!("is missing for the type {}", kind.value));
        return None;
    };
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'#' | b'?');
    if !at.value.bytes().all(allowed) {
        out.invalid(&at.spot, format!("`{}` has characters that cannot stand in a path", at.value.escape_debug()));
        return None;
    }
    let removes = at.value.is_empty() && name == "replacePrefixMatch";
    if !removes && !at.value.starts_with('/') {
        out.invalid(&at.spot, format!("`{}` must begin with `/`", at.value));
        return None;
    }
    Some(make(at.value.as_str().into()))
}
