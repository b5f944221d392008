//! `HTTPRoute` (Gateway API): by path, method, headers and query; with filters, weights and timeouts.

use std::{sync::Arc, time::Duration};

use weft_snapshot::fragment::{
    HttpFilter, HttpMatch, KeyMatch, PathMatch, PathRewrite, RetryPolicy, Timeouts, ValueMatch,
};

use crate::{
    admit::Subject,
    kind::route::{
        MAX_KEYS, MAX_MATCHES, MAX_RULES, Route, RouteRule,
        filters::{RawFilter, filters},
        refs::{RawBackendRef, RawParentRef, backends, parents},
    },
    schema::{At, Decode, Field, Ignored, schema},
    violation::{Sink, nearest},
    words,
};

schema! {
    struct RawHttpRoute {
        parent_refs: Vec<At<RawParentRef>> = "parentRefs",
        hostnames: Vec<At<String>> = "hostnames",
        rules: Vec<At<RawRule>> = "rules",
    }

    struct RawRule {
        name: String = "name",
        matches: Vec<At<RawMatch>> = "matches",
        filters: Vec<At<RawFilter>> = "filters",
        backend_refs: Vec<At<RawBackendRef>> = "backendRefs",
        timeouts: RawTimeouts = "timeouts",
        retry: RawRetry = "retry",
        session_persistence: Ignored = "sessionPersistence",
    }

    struct RawMatch {
        path: RawPathMatch = "path",
        method: String = "method",
        headers: Vec<At<RawKeyMatch>> = "headers",
        query_params: Vec<At<RawKeyMatch>> = "queryParams",
    }

    struct RawPathMatch {
        r#type: String = "type",
        value: String = "value",
    }

    struct RawKeyMatch {
        r#type: String = "type",
        name: String = "name",
        value: String = "value",
    }

    struct RawTimeouts {
        request: String = "request",
        backend_request: String = "backendRequest",
    }

    struct RawRetry {
        codes: Vec<At<i64>> = "codes",
        attempts: i64 = "attempts",
        backoff: String = "backoff",
    }
}

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const MAX_ATTEMPTS: i64 = 10;

pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Route> {
    let raw = RawHttpRoute::decode(&subject.doc.spec, &subject.spot, out)?;
    let parents = parents(&raw.parent_refs, subject, out);
    if let Some(at) = raw.hostnames {
        out.warn(&at.spot, "host names have no effect on routes of a Service; match the `host` header instead");
    }
    let Some(At { spot, value: raw }) = raw.rules.filter(|at| !at.value.is_empty()) else {
        out.missing(&subject.spot, "rules", "is missing; an HTTPRoute needs a rule with backendRefs");
        return None;
    };
    words::at_most(&raw, MAX_RULES, &spot, out);
    let rules = raw.iter().map(|rule| admit_rule(&rule.value, subject, out)).collect();
    Some(Route { parents, rules })
}

fn admit_rule(raw: &RawRule, subject: &Subject<'_>, out: &mut Sink) -> RouteRule {
    if let Some(at) = &raw.session_persistence {
        out.unsupported(&at.spot, "is not supported yet");
    }
    if let Some(at) = &raw.matches {
        words::at_most(&at.value, MAX_MATCHES, &at.spot, out);
    }
    let matches: Vec<_> = raw.matches.iter().flat_map(|m| &m.value).map(|m| admit_match(&m.value, out)).collect();
    let own_filters = filters(&raw.filters, true, out);
    let backends = backends(&raw.backend_refs, subject, |raw, out| filters(raw, true, out), out);
    let prefixes =
        !matches.is_empty() && matches.iter().all(|m| matches!(m.path, None | Some(PathMatch::ElementPrefix(_))));
    // without matches the rule is the prefix `/`
    let replaceable = prefixes || matches.is_empty();
    let replaces = |filters: &[HttpFilter]| {
        filters.iter().any(|f| matches!(f, HttpFilter::Rewrite { path: Some(PathRewrite::Prefix(_)), .. }))
    };
    let place = raw.filters.as_ref().map(|f| &f.spot).or(raw.backend_refs.as_ref().map(|b| &b.spot));
    let replacing = replaces(&own_filters) || backends.iter().any(|b| replaces(&b.filters));
    if let (Some(at), true, false) = (place, replacing, replaceable) {
        out.invalid(at, "ReplacePrefixMatch needs every match of the rule to be of type PathPrefix");
    }
    RouteRule {
        name: raw.name.as_ref().and_then(|at| words::name(at, out)),
        matches,
        filters: own_filters,
        backends,
        timeouts: raw.timeouts.as_ref().map(|at| admit_timeouts(&at.value, out)).unwrap_or_default(),
        retry: raw.retry.as_ref().map(|at| admit_retry(&at.value, out)).unwrap_or_default(),
    }
}

fn admit_match(raw: &RawMatch, out: &mut Sink) -> HttpMatch {
    let method = raw.method.as_ref().and_then(|at| {
        if METHODS.contains(&at.value.as_str()) {
            return Some(at.value.as_str().into());
        }
        let message = match nearest(&at.value, METHODS) {
            Some(near) => format!("unknown method `{}`; did you mean `{near}`?", at.value),
            None => format!("unknown method `{}`; known: {}", at.value, METHODS.join(", ")),
        };
        out.invalid(&at.spot, message);
        None
    });
    let query_name = |at: &At<String>, out: &mut Sink| {
        if at.value.is_empty() || at.value.len() > 256 {
            out.invalid(&at.spot, "is not the name of a query parameter");
            return None;
        }
        Some(at.value.as_str().into())
    };
    HttpMatch {
        path: raw.path.as_ref().and_then(|at| admit_path(&at.value, out)),
        method,
        headers: key_matches(&raw.headers, words::header_name, out),
        query: key_matches(&raw.query_params, query_name, out),
    }
}

fn admit_path(raw: &RawPathMatch, out: &mut Sink) -> Option<PathMatch> {
    let slash = At { spot: crate::Spot::default(), value: "/".to_string() };
    let value = raw.value.as_ref().unwrap_or(&slash);
    match raw.r#type.as_ref().map(|at| (at, at.value.as_str())) {
        Some((_, "Exact")) => plain_path(value, out).map(PathMatch::Exact),
        None | Some((_, "PathPrefix")) => {
            let path = plain_path(value, out)?;
            // `/foo/` and `/foo` are the same elements
            let trimmed = path.trim_end_matches('/');
            Some(PathMatch::ElementPrefix(if trimmed.is_empty() { "/".into() } else { trimmed.into() }))
        }
        Some((_, "RegularExpression")) => words::regex(value, out).map(PathMatch::Regex),
        Some((at, other)) => {
            let known = ["Exact", "PathPrefix", "RegularExpression"];
            let message = match nearest(other, known) {
                Some(near) => format!("unknown type `{other}`; did you mean `{near}`?"),
                None => format!("unknown type `{other}`; known: {}", known.join(", ")),
            };
            out.invalid(&at.spot, message);
            None
        }
    }
}

/// A path that means one thing: what would be normalised away, or is ambiguous when decoded, could never match.
fn plain_path(at: &At<String>, out: &mut Sink) -> Option<Arc<str>> {
    let path = at.value.as_str();
    let low = path.to_ascii_lowercase();
    let problem = if !path.starts_with('/') {
        Some("must begin with `/`")
    } else if path.len() > 1024 {
        Some("is longer than 1024 bytes")
    } else if ["//", "/./", "/../", "%2f"].iter().any(|bad| low.contains(bad))
        || path.ends_with("/.")
        || path.ends_with("/..")
    {
        Some(
            "must not contain `//`, `/./`, `/../` or an encoded slash: requests are normalised before they are matched",
        )
    } else if path.contains(['#', '?']) || !path.bytes().all(|b| b.is_ascii_graphic()) {
        Some("has characters that cannot stand in a path; write them percent-encoded, and a query under queryParams")
    } else {
        None
    };
    match problem {
        Some(problem) => {
            out.invalid(&at.spot, format!("`{}` {problem}", path.escape_debug()));
            None
        }
        None => Some(path.into()),
    }
}

/// Of headers and of query parameters. Of equal names only the first counts (Gateway API).
pub(crate) fn key_matches(
    raw: &Field<Vec<At<RawKeyMatch>>>,
    name: impl Fn(&At<String>, &mut Sink) -> Option<Arc<str>>,
    out: &mut Sink,
) -> Vec<KeyMatch> {
    let Some(At { spot, value: raw }) = raw else { return Vec::new() };
    words::at_most(raw, MAX_KEYS, spot, out);
    let mut found: Vec<KeyMatch> = Vec::new();
    for at in raw {
        let key = match &at.value.name {
            Some(key) => name(key, out),
            None => {
                out.missing(&at.spot, "name", "is missing");
                None
            }
        };
        let Some(value) = &at.value.value else {
            out.missing(&at.spot, "value", "is missing");
            continue;
        };
        let value = match at.value.r#type.as_ref().map(|t| (t, t.value.as_str())) {
            None | Some((_, "Exact")) => words::header_value(value, out).map(ValueMatch::Exact),
            Some((_, "RegularExpression")) => words::regex(value, out).map(ValueMatch::Regex),
            Some((t, other)) => {
                let near = nearest(other, ["Exact", "RegularExpression"]).unwrap_or("Exact");
                out.invalid(&t.spot, format!("unknown type `{other}`; did you mean `{near}`?"));
                None
            }
        };
        if let (Some(key), Some(value)) = (key, value) {
            if found.iter().any(|k| k.key == key) {
                out.warn(&at.spot, format!("is never used: `{key}` is matched above"));
            } else {
                found.push(KeyMatch { key, value });
            }
        }
    }
    found
}

fn admit_timeouts(raw: &RawTimeouts, out: &mut Sink) -> Timeouts {
    // `0s` means no limit
    let limit = |field: &Field<String>, out: &mut Sink| -> Option<Duration> {
        field.as_ref().and_then(|at| words::duration(at, out)).filter(|d| !d.is_zero())
    };
    let (request, backend) = (limit(&raw.request, out), limit(&raw.backend_request, out));
    if let (Some(whole), Some(one), Some(at)) = (request, backend, &raw.backend_request)
        && one > whole
    {
        out.invalid(&at.spot, format!("one try ({one:?}) cannot take longer than the whole request ({whole:?})"));
    }
    Timeouts { request, backend }
}

fn admit_retry(raw: &RawRetry, out: &mut Sink) -> RetryPolicy {
    let default = RetryPolicy::default();
    let attempts = raw.attempts.as_ref().map_or(default.attempts, |at| match u32::try_from(at.value) {
        Ok(n) if at.value <= MAX_ATTEMPTS => n,
        _ => {
            out.invalid(&at.spot, format!("{} attempts are not between 0 and {MAX_ATTEMPTS}", at.value));
            0
        }
    });
    let mut statuses = Vec::new();
    for at in raw.codes.iter().flat_map(|c| &c.value) {
        match u16::try_from(at.value) {
            Ok(code) if (400..600).contains(&code) => statuses.push(code),
            _ => out.invalid(&at.spot, format!("{} is not an error status between 400 and 599", at.value)),
        }
    }
    let backoff = raw.backoff.as_ref().and_then(|at| words::duration(at, out)).unwrap_or(default.backoff);
    RetryPolicy { attempts, statuses, backoff }
}
