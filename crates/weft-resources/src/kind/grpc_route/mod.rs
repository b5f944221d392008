//! `GRPCRoute` (Gateway API): by gRPC service, method and headers. A call's path is `/service/method`, so all of it
//! becomes path matches here and nothing downstream knows gRPC routes.

use std::sync::Arc;

use weft_snapshot::fragment::{HttpMatch, PathMatch, RetryPolicy, Timeouts};

use crate::{
    admit::Subject,
    kind::{
        http_route::{RawKeyMatch, key_matches},
        route::{
            MAX_MATCHES, MAX_RULES, Route, RouteRule,
            filters::{RawFilter, filters},
            refs::{RawBackendRef, RawParentRef, backends, parents},
        },
    },
    schema::{At, Decode, Field, Ignored, schema},
    violation::{Sink, nearest},
    words,
};

schema! {
    struct RawGrpcRoute {
        parent_refs: Vec<At<RawParentRef>> = "parentRefs",
        hostnames: Vec<At<String>> = "hostnames",
        rules: Vec<At<RawRule>> = "rules",
    }

    struct RawRule {
        name: String = "name",
        matches: Vec<At<RawMatch>> = "matches",
        filters: Vec<At<RawFilter>> = "filters",
        backend_refs: Vec<At<RawBackendRef>> = "backendRefs",
        session_persistence: Ignored = "sessionPersistence",
    }

    struct RawMatch {
        method: RawMethod = "method",
        headers: Vec<At<RawKeyMatch>> = "headers",
    }

    struct RawMethod {
        r#type: String = "type",
        service: String = "service",
        method: String = "method",
    }
}

pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Route> {
    let raw = RawGrpcRoute::decode(&subject.doc.spec, &subject.spot, out)?;
    let parents = parents(&raw.parent_refs, subject, out);
    if let Some(at) = raw.hostnames {
        out.warn(&at.spot, "host names have no effect on routes of a Service");
    }
    let Some(At { spot, value: raw }) = raw.rules.filter(|at| !at.value.is_empty()) else {
        out.missing(&subject.spot, "rules", "is missing; a GRPCRoute needs a rule with backendRefs");
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
    let matches = raw.matches.iter().flat_map(|m| &m.value);
    let matches = matches.filter_map(|at| {
        let path = match &at.value.method {
            Some(method) => Some(admit_method(method, out)?),
            None => None,
        };
        let headers = key_matches(&at.value.headers, words::header_name, out);
        Some(HttpMatch { path, method: None, headers, query: Vec::new() })
    });
    let matches = matches.collect();
    RouteRule {
        name: raw.name.as_ref().and_then(|at| words::name(at, out)),
        matches,
        filters: filters(&raw.filters, false, out),
        backends: backends(&raw.backend_refs, subject, |raw, out| filters(raw, false, out), out),
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    }
}

fn admit_method(At { spot, value: raw }: &At<RawMethod>, out: &mut Sink) -> Option<PathMatch> {
    let regex = match raw.r#type.as_ref().map(|at| (at, at.value.as_str())) {
        None | Some((_, "Exact")) => false,
        Some((_, "RegularExpression")) => true,
        Some((at, other)) => {
            let near = nearest(other, ["Exact", "RegularExpression"]).unwrap_or("Exact");
            out.invalid(&at.spot, format!("unknown type `{other}`; did you mean `{near}`?"));
            return None;
        }
    };
    let part = |field: &Field<String>, dots: bool, out: &mut Sink| -> Result<Option<Arc<str>>, ()> {
        let Some(at) = field else { return Ok(None) };
        if regex {
            return words::regex(at, out).map(Some).ok_or(());
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (dots && b == b'.');
        if at.value.is_empty() || !at.value.bytes().all(allowed) {
            let what = if dots { "a gRPC service such as `shop.v1.Ratings`" } else { "a gRPC method such as `Get`" };
            out.invalid(&at.spot, format!("`{}` is not {what}", at.value));
            return Err(());
        }
        Ok(Some(at.value.as_str().into()))
    };
    let (service, method) = (part(&raw.service, true, out), part(&raw.method, false, out));
    Some(match (service.ok()?, method.ok()?, regex) {
        (None, None, _) => {
            out.invalid(spot, "matches nothing in particular; write service, method or both");
            return None;
        }
        (Some(service), Some(method), false) => PathMatch::Exact(format!("/{service}/{method}").into()),
        (Some(service), None, false) => PathMatch::ElementPrefix(format!("/{service}").into()),
        (None, Some(method), false) => PathMatch::Regex(format!("/[^/]+/{method}").into()),
        (service, method, true) => {
            let pattern = |p: Option<Arc<str>>| p.map_or_else(|| "[^/]+".into(), |p| format!("(?:{p})"));
            let whole = At { spot: spot.clone(), value: format!("/{}/{}", pattern(service), pattern(method)) };
            PathMatch::Regex(words::regex(&whole, out)?)
        }
    })
}
