//! Routes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use weft_snapshot::fragment::{
    Backend, HeaderEdit, HttpFilter, HttpMatch, HttpRule, KeyMatch, PathMatch, PathRewrite, PortRoutes, RetryPolicy,
    Routes, Target, TcpRule, Timeouts, ValueMatch,
};

use super::{
    DecodeError, Leaf as _, Within as _, each, port, required,
    words::{labels, nanos, read_labels, read_strings, strings},
};
use crate::pb::weft::v1 as pb;

pub fn routes(r: &Routes) -> pb::Routes {
    let Routes { service, consumer, ports } = r;
    pb::Routes {
        service: service.to_string(),
        consumer: consumer.to_string(),
        ports: ports.iter().map(|(p, r)| (u32::from(*p), port_routes(r))).collect(),
    }
}

pub fn read_routes(r: pb::Routes) -> Result<Routes, DecodeError> {
    let ports = r.ports.into_iter().map(|(p, r)| {
        let field = format!("ports[{p}]");
        Ok((port(&field, p)?, read_port_routes(r).within(&field)?))
    });
    Ok(Routes {
        service: r.service.parse().leaf("service")?,
        consumer: r.consumer.parse().leaf("consumer")?,
        ports: ports.collect::<Result<BTreeMap<_, _>, DecodeError>>()?,
    })
}

fn port_routes(r: &PortRoutes) -> pb::PortRoutes {
    let PortRoutes { http, tcp } = r;
    pb::PortRoutes { http: http.iter().map(http_rule).collect(), tcp: tcp.iter().map(tcp_rule).collect() }
}

fn read_port_routes(r: pb::PortRoutes) -> Result<PortRoutes, DecodeError> {
    Ok(PortRoutes { http: each("http", r.http, read_http_rule)?, tcp: each("tcp", r.tcp, read_tcp_rule)? })
}

fn http_rule(r: &HttpRule) -> pb::HttpRule {
    let HttpRule {
        origin,
        hosts,
        matches,
        filters,
        backends,
        timeouts: Timeouts { request, backend: each_try },
        retry,
    } = r;
    pb::HttpRule {
        origin: origin.to_string(),
        hosts: strings(hosts),
        matches: matches.iter().map(http_match).collect(),
        filters: filters.iter().map(filter).collect(),
        backends: backends.iter().map(backend).collect(),
        request_timeout_ns: request.map(nanos),
        backend_timeout_ns: each_try.map(nanos),
        retry: Some(retry_policy(retry)),
    }
}

fn read_http_rule(r: pb::HttpRule) -> Result<HttpRule, DecodeError> {
    Ok(HttpRule {
        origin: r.origin.parse().leaf("origin")?,
        hosts: read_strings(r.hosts),
        matches: each("matches", r.matches, read_http_match)?,
        filters: each("filters", r.filters, read_filter)?,
        backends: each("backends", r.backends, read_backend)?,
        timeouts: Timeouts {
            request: r.request_timeout_ns.map(Duration::from_nanos),
            backend: r.backend_timeout_ns.map(Duration::from_nanos),
        },
        retry: read_retry_policy(required("retry", r.retry)?).within("retry")?,
    })
}

fn tcp_rule(r: &TcpRule) -> pb::TcpRule {
    let TcpRule { origin, backends } = r;
    pb::TcpRule { origin: origin.to_string(), backends: backends.iter().map(backend).collect() }
}

fn read_tcp_rule(r: pb::TcpRule) -> Result<TcpRule, DecodeError> {
    Ok(TcpRule { origin: r.origin.parse().leaf("origin")?, backends: each("backends", r.backends, read_backend)? })
}

// === matches ===

fn http_match(m: &HttpMatch) -> pb::HttpMatch {
    let HttpMatch { path, method, headers, query } = m;
    pb::HttpMatch {
        path: path.as_ref().map(path_match),
        method: method.as_ref().map(ToString::to_string),
        headers: headers.iter().map(key_match).collect(),
        query: query.iter().map(key_match).collect(),
    }
}

fn read_http_match(m: pb::HttpMatch) -> Result<HttpMatch, DecodeError> {
    Ok(HttpMatch {
        path: m.path.map(read_path_match).transpose().within("path")?,
        method: m.method.map(Into::into),
        headers: each("headers", m.headers, read_key_match)?,
        query: each("query", m.query, read_key_match)?,
    })
}

fn path_match(m: &PathMatch) -> pb::PathMatch {
    use pb::path_match::Kind;
    let kind = match m {
        PathMatch::Exact(s) => Kind::Exact(s.to_string()),
        PathMatch::ElementPrefix(s) => Kind::ElementPrefix(s.to_string()),
        PathMatch::Regex(s) => Kind::Regex(s.to_string()),
    };
    pb::PathMatch { kind: Some(kind) }
}

fn read_path_match(m: pb::PathMatch) -> Result<PathMatch, DecodeError> {
    use pb::path_match::Kind;
    Ok(match required("kind", m.kind)? {
        Kind::Exact(s) => PathMatch::Exact(s.into()),
        Kind::ElementPrefix(s) => PathMatch::ElementPrefix(s.into()),
        Kind::Regex(s) => PathMatch::Regex(s.into()),
    })
}

fn key_match(m: &KeyMatch) -> pb::KeyMatch {
    use pb::key_match::Value;
    let KeyMatch { key, value } = m;
    let value = match value {
        ValueMatch::Exact(s) => Value::Exact(s.to_string()),
        ValueMatch::Regex(s) => Value::Regex(s.to_string()),
        ValueMatch::Present => Value::Present(pb::Present {}),
    };
    pb::KeyMatch { key: key.to_string(), value: Some(value) }
}

fn read_key_match(m: pb::KeyMatch) -> Result<KeyMatch, DecodeError> {
    use pb::key_match::Value;
    let value = match required("value", m.value)? {
        Value::Exact(s) => ValueMatch::Exact(s.into()),
        Value::Regex(s) => ValueMatch::Regex(s.into()),
        Value::Present(_) => ValueMatch::Present,
    };
    Ok(KeyMatch { key: m.key.into(), value })
}

// === filters ===

fn filter(f: &HttpFilter) -> pb::HttpFilter {
    use pb::http_filter::Kind;
    let kind = match f {
        HttpFilter::RequestHeaders(e) => Kind::RequestHeaders(header_edit(e)),
        HttpFilter::ResponseHeaders(e) => Kind::ResponseHeaders(header_edit(e)),
        HttpFilter::Rewrite { host, path } => Kind::Rewrite(pb::Rewrite {
            host: host.as_ref().map(ToString::to_string),
            path: path.as_ref().map(|p| match p {
                PathRewrite::Full(s) => pb::rewrite::Path::Full(s.to_string()),
                PathRewrite::Prefix(s) => pb::rewrite::Path::Prefix(s.to_string()),
            }),
        }),
    };
    pb::HttpFilter { kind: Some(kind) }
}

fn read_filter(f: pb::HttpFilter) -> Result<HttpFilter, DecodeError> {
    use pb::http_filter::Kind;
    Ok(match required("kind", f.kind)? {
        Kind::RequestHeaders(e) => HttpFilter::RequestHeaders(read_header_edit(e)),
        Kind::ResponseHeaders(e) => HttpFilter::ResponseHeaders(read_header_edit(e)),
        Kind::Rewrite(r) => HttpFilter::Rewrite {
            host: r.host.map(Into::into),
            path: r.path.map(|p| match p {
                pb::rewrite::Path::Full(s) => PathRewrite::Full(s.into()),
                pb::rewrite::Path::Prefix(s) => PathRewrite::Prefix(s.into()),
            }),
        },
    })
}

fn header_edit(e: &HeaderEdit) -> pb::HeaderEdit {
    let HeaderEdit { set, add, remove } = e;
    pb::HeaderEdit { set: headers(set), add: headers(add), remove: strings(remove) }
}

fn read_header_edit(e: pb::HeaderEdit) -> HeaderEdit {
    HeaderEdit { set: read_headers(e.set), add: read_headers(e.add), remove: read_strings(e.remove) }
}

fn headers(list: &[(Arc<str>, Arc<str>)]) -> Vec<pb::Header> {
    list.iter().map(|(n, v)| pb::Header { name: n.to_string(), value: v.to_string() }).collect()
}

fn read_headers(list: Vec<pb::Header>) -> Vec<(Arc<str>, Arc<str>)> {
    list.into_iter().map(|h| (h.name.into(), h.value.into())).collect()
}

// === backends ===

fn backend(b: &Backend) -> pb::Backend {
    let Backend { target, weight, filters } = b;
    let target = match target {
        Target::Service { key, port, subset } => pb::backend::Target::Service(pb::ServiceTarget {
            key: key.to_string(),
            port: u32::from(*port),
            subset: labels(subset),
        }),
        Target::Unresolved { reference, why } => {
            pb::backend::Target::Unresolved(pb::Unresolved { reference: reference.to_string(), why: why.to_string() })
        }
    };
    pb::Backend { target: Some(target), weight: *weight, filters: filters.iter().map(filter).collect() }
}

fn read_backend(b: pb::Backend) -> Result<Backend, DecodeError> {
    let target = match required("target", b.target)? {
        pb::backend::Target::Service(t) => Target::Service {
            key: t.key.parse().leaf("service.key")?,
            port: port("service.port", t.port)?,
            subset: read_labels(t.subset),
        },
        pb::backend::Target::Unresolved(u) => Target::Unresolved { reference: u.reference.into(), why: u.why.into() },
    };
    Ok(Backend { target, weight: b.weight, filters: each("filters", b.filters, read_filter)? })
}

fn retry_policy(r: &RetryPolicy) -> pb::RetryPolicy {
    let RetryPolicy { attempts, statuses, backoff } = r;
    pb::RetryPolicy {
        attempts: *attempts,
        statuses: statuses.iter().map(|s| u32::from(*s)).collect(),
        backoff_ns: nanos(*backoff),
    }
}

fn read_retry_policy(r: pb::RetryPolicy) -> Result<RetryPolicy, DecodeError> {
    Ok(RetryPolicy {
        attempts: r.attempts,
        statuses: each("statuses", r.statuses, |s| port("", s))?,
        backoff: Duration::from_nanos(r.backoff_ns),
    })
}
