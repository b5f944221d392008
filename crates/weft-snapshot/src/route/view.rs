//! [`Routes`] compiled: regular expressions built once, weights summed, what cannot be honoured refused.

use std::{collections::BTreeMap, sync::Arc};

use regex::bytes::{Regex, RegexBuilder};
use weft_model::{Labels, Name, ResourceRef, ServiceKey};

use super::{Dice, NoBackend, index::Index};
use crate::fragment::{
    Backend, HeaderEdit, HttpFilter, HttpMatch, HttpRule, KeyMatch, PathMatch, PathRewrite, PortRoutes, RetryPolicy,
    Routes, Target, TcpRule, Timeouts, ValueMatch,
};

/// Memory for one compiled expression: what an operator's pattern may cost every proxy.
const MAX_REGEX: usize = 1 << 20;

/// The routes of one service, as the callers in one namespace see them.
#[derive(Debug)]
pub struct RouteTable {
    pub service: ServiceKey,
    pub consumer: Name,
    ports: BTreeMap<u16, PortTable>,
}

#[derive(Debug, Default)]
pub struct PortTable {
    pub http: Vec<Arc<HttpRuleView>>,
    pub tcp: Vec<Arc<TcpRuleView>>,
    pub(super) index: Option<Index>,
}

#[derive(Debug)]
pub struct HttpRuleView {
    pub origin: Arc<ResourceRef>,
    /// In lower case.
    pub(super) hosts: Vec<Arc<str>>,
    pub(super) matches: Vec<MatchView>,
    pub(super) edits: FilterView,
    pub backends: Backends,
    pub timeouts: Timeouts,
    pub retry: RetryPolicy,
}

#[derive(Debug)]
pub struct TcpRuleView {
    pub origin: Arc<ResourceRef>,
    pub backends: Backends,
}

#[derive(Debug)]
pub struct BackendView {
    pub target: Target,
    pub weight: u32,
    pub(super) edits: FilterView,
}

#[derive(Debug)]
pub struct Backends {
    list: Vec<BackendView>,
    total: u64,
}

#[derive(Debug)]
pub(super) struct MatchView {
    pub path: Option<PathView>,
    pub method: Option<Arc<str>>,
    pub headers: Vec<KeyView>,
    pub query: Vec<KeyView>,
}

#[derive(Debug)]
pub(super) enum PathView {
    Exact(Arc<str>),
    /// Without its trailing slash.
    ElementPrefix(Arc<str>),
    Regex(Regex),
}

#[derive(Debug)]
pub(super) struct KeyView {
    pub key: Arc<str>,
    pub value: ValueView,
}

#[derive(Debug)]
pub(super) enum ValueView {
    Exact(Arc<str>),
    Regex(Regex),
    Present,
}

/// Filters by what they touch; of several rewrites the last wins.
#[derive(Debug, Default)]
pub(super) struct FilterView {
    pub request: Vec<HeaderEdit>,
    pub response: Vec<HeaderEdit>,
    pub host: Option<Arc<str>>,
    pub path: Option<PathRewrite>,
}

// === impl RouteTable ===

impl RouteTable {
    /// `Err` says what cannot be honoured, and where.
    pub fn compile(routes: &Routes) -> Result<Self, String> {
        let port = |(n, p): (&u16, &PortRoutes)| Ok::<_, String>((*n, port_table(p)?));
        let ports = routes.ports.iter().map(port).collect::<Result<_, _>>()?;
        Ok(Self { service: routes.service.clone(), consumer: routes.consumer.clone(), ports })
    }

    pub fn port(&self, port: u16) -> Option<&PortTable> {
        self.ports.get(&port)
    }

    /// Every (service, port, subset) that a rule may choose.
    pub fn destinations(&self) -> impl Iterator<Item = (&ServiceKey, u16, &Labels)> {
        let lists = self
            .ports
            .values()
            .flat_map(|p| p.http.iter().map(|r| &r.backends).chain(p.tcp.iter().map(|r| &r.backends)));
        lists.flat_map(|b| &b.list).filter_map(|b| match &b.target {
            Target::Service { key, port, subset } => Some((key, *port, subset)),
            Target::Unresolved { .. } => None,
        })
    }
}

// === impl PortTable ===

impl PortTable {
    pub fn compile(routes: &PortRoutes) -> Result<Self, String> {
        port_table(routes)
    }

    pub fn has_http(&self) -> bool {
        !self.http.is_empty()
    }
}

// === impl Backends ===

impl Backends {
    fn compile(list: &[Backend]) -> Result<Self, String> {
        let one = |b: &Backend| {
            let edits = FilterView::compile(&b.filters)?;
            Ok::<_, String>(BackendView { target: b.target.clone(), weight: b.weight, edits })
        };
        let total = list.iter().map(|b| u64::from(b.weight)).sum();
        Ok(Self { list: list.iter().map(one).collect::<Result<_, _>>()?, total })
    }

    pub fn iter(&self) -> impl Iterator<Item = &BackendView> {
        self.list.iter()
    }

    /// Each backend for `weight / sum` of the draws.
    pub fn choose(&self, dice: &mut Dice<'_>) -> Result<&BackendView, NoBackend> {
        let mut roll = match self.total {
            0 if self.list.is_empty() => return Err(NoBackend::None),
            0 => return Err(NoBackend::AllZero),
            total => match u32::try_from(total) {
                Ok(1) => 0,
                Ok(n) => u64::from(dice(n)),
                // More than 32 bits of weight: two draws, scaled
                Err(_) => (u64::from(dice(u32::MAX)) << 32 | u64::from(dice(u32::MAX))) % total,
            },
        };
        for b in &self.list {
            let weight = u64::from(b.weight);
            if roll < weight {
                return Ok(b);
            }
            roll = roll.saturating_sub(weight);
        }
        Err(NoBackend::AllZero) // a roll beyond the sum: the dice broke their promise
    }
}

// === compiling ===

fn port_table(routes: &PortRoutes) -> Result<PortTable, String> {
    let http = routes.http.iter().map(|r| http_rule(r).map(Arc::new).map_err(|why| format!("{}: {why}", r.origin)));
    let tcp = routes.tcp.iter().map(|r| tcp_rule(r).map(Arc::new).map_err(|why| format!("{}: {why}", r.origin)));
    let http: Vec<_> = http.collect::<Result<_, _>>()?;
    Ok(PortTable { index: Index::build(&http), http, tcp: tcp.collect::<Result<_, _>>()? })
}

fn http_rule(rule: &HttpRule) -> Result<HttpRuleView, String> {
    let edits = FilterView::compile(&rule.filters)?;
    let backends = Backends::compile(&rule.backends)?;
    let rewrites_prefix = |f: &FilterView| matches!(f.path, Some(PathRewrite::Prefix(_)));
    if (rewrites_prefix(&edits) || backends.iter().any(|b| rewrites_prefix(&b.edits)))
        && rule.matches.iter().any(|m| matches!(m.path, Some(PathMatch::Exact(_) | PathMatch::Regex(_))))
    {
        return Err("a prefix rewrite needs a match by path prefix".into());
    }
    if rule.matches.len() > usize::from(u16::MAX) {
        return Err(format!("{} matches in one rule", rule.matches.len()));
    }
    Ok(HttpRuleView {
        origin: Arc::new(rule.origin.clone()),
        hosts: rule.hosts.iter().map(|h| h.to_ascii_lowercase().into()).collect(),
        matches: rule.matches.iter().map(match_view).collect::<Result<_, _>>()?,
        edits,
        backends,
        timeouts: rule.timeouts,
        retry: rule.retry.clone(),
    })
}

fn tcp_rule(rule: &TcpRule) -> Result<TcpRuleView, String> {
    Ok(TcpRuleView { origin: Arc::new(rule.origin.clone()), backends: Backends::compile(&rule.backends)? })
}

fn match_view(m: &HttpMatch) -> Result<MatchView, String> {
    let path = match &m.path {
        None => None,
        Some(PathMatch::Exact(p)) => Some(PathView::Exact(p.clone())),
        Some(PathMatch::ElementPrefix(p)) => {
            if !p.starts_with('/') {
                return Err(format!("path prefix `{p}` does not begin with `/`"));
            }
            Some(PathView::ElementPrefix(p.strip_suffix('/').map_or_else(|| p.clone(), Into::into)))
        }
        Some(PathMatch::Regex(r)) => Some(PathView::Regex(full(r)?)),
    };
    let keys = |list: &[KeyMatch]| list.iter().map(key_view).collect::<Result<Vec<_>, _>>();
    Ok(MatchView { path, method: m.method.clone(), headers: keys(&m.headers)?, query: keys(&m.query)? })
}

fn key_view(m: &KeyMatch) -> Result<KeyView, String> {
    let value = match &m.value {
        ValueMatch::Exact(v) => ValueView::Exact(v.clone()),
        ValueMatch::Regex(r) => ValueView::Regex(full(r)?),
        ValueMatch::Present => ValueView::Present,
    };
    Ok(KeyView { key: m.key.clone(), value })
}

/// An expression that must match the whole value.
fn full(pattern: &str) -> Result<Regex, String> {
    // Compiled once as it stands, so that unbalanced parentheses cannot escape the group below
    let build = |p: &str| RegexBuilder::new(p).size_limit(MAX_REGEX).build();
    build(pattern)
        .and_then(|_| build(&format!(r"\A(?:{pattern})\z")))
        .map_err(|e| format!("regular expression `{pattern}`: {}", e.to_string().replace('\n', " ")))
}

impl FilterView {
    fn compile(filters: &[HttpFilter]) -> Result<Self, String> {
        let mut view = Self::default();
        for filter in filters {
            match filter {
                HttpFilter::RequestHeaders(e) => view.request.push(checked(e)?),
                HttpFilter::ResponseHeaders(e) => view.response.push(checked(e)?),
                HttpFilter::Rewrite { host, path } => {
                    if let Some(host) = host {
                        view.host = Some(host.clone());
                    }
                    if let Some(path) = path {
                        view.path = Some(path.clone());
                    }
                }
            }
        }
        Ok(view)
    }
}

/// What the codec could not send, and names that would change framing or speak for the mesh, are no edits.
fn checked(edit: &HeaderEdit) -> Result<HeaderEdit, String> {
    const FRAMING: &[&str] = &["connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"];
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    let names = edit.set.iter().chain(&edit.add).map(|(n, _)| n).chain(&edit.remove);
    for name in names {
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("`{name}` is no header name in lower case"));
        }
        if FRAMING.contains(&&**name) || name.starts_with("weft-") {
            return Err(format!("header `{name}` cannot be edited by a route"));
        }
    }
    for (name, value) in edit.set.iter().chain(&edit.add) {
        if value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
            return Err(format!("the value for header `{name}` has a control character"));
        }
    }
    Ok(edit.clone())
}
