//! What HTTPRoute, GRPCRoute and TCPRoute have in common: parents, backends, filters, and how they take effect.

pub(crate) mod effect;
pub(crate) mod filters;
pub(crate) mod refs;

use std::sync::Arc;

use weft_model::{Name, ServiceKey};
use weft_snapshot::fragment::{HttpFilter, HttpMatch, RetryPolicy, Timeouts};

/// An HTTPRoute or a GRPCRoute. gRPC's services and methods are paths by now.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub parents: Vec<ParentRef>,
    pub rules: Vec<RouteRule>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RouteRule {
    /// How the operator called it; otherwise it is `rule-<index>`.
    pub name: Option<Name>,
    /// Any of these; empty matches everything.
    pub matches: Vec<HttpMatch>,
    pub filters: Vec<HttpFilter>,
    pub backends: Vec<BackendRef>,
    pub timeouts: Timeouts,
    pub retry: RetryPolicy,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TcpRoute {
    pub parents: Vec<ParentRef>,
    pub rules: Vec<TcpRouteRule>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TcpRouteRule {
    pub name: Option<Name>,
    pub backends: Vec<BackendRef>,
}

/// A service whose callers are to be routed.
#[derive(Debug, Clone, PartialEq)]
pub struct ParentRef {
    pub service: ServiceKey,
    /// `None`: every port.
    pub port: Option<u16>,
    /// A port by its name.
    pub section: Option<Arc<str>>,
    /// As written, to be repeated in the status.
    pub written: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BackendRef {
    pub target: BackendTarget,
    pub weight: u32,
    pub filters: Vec<HttpFilter>,
    /// Where it stands, such as `spec.rules[0].backendRefs[1]`.
    pub path: Arc<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum BackendTarget {
    Service {
        key: ServiceKey,
        port: u16,
    },
    /// A kind that cannot be a backend: accepted, `InvalidKind`, and its share gets 500.
    InvalidKind {
        group: String,
        kind: String,
        name: String,
    },
}

// === limits of Gateway API's schemas ===

pub(crate) const MAX_PARENTS: usize = 32;
pub(crate) const MAX_RULES: usize = 16;
pub(crate) const MAX_MATCHES: usize = 64;
pub(crate) const MAX_BACKENDS: usize = 16;
pub(crate) const MAX_FILTERS: usize = 16;
pub(crate) const MAX_KEYS: usize = 16;
const MAX_WEIGHT: i64 = 1_000_000;

pub(crate) fn section(name: Option<&Name>, index: usize) -> String {
    name.map_or_else(|| format!("rule-{index}"), |name| name.as_str().into())
}

impl BackendRef {
    /// As messages name it: `Service/shop/reviews:9080`.
    pub fn reference(&self) -> String {
        match &self.target {
            BackendTarget::Service { key, port } => format!("Service/{key}:{port}"),
            BackendTarget::InvalidKind { group, kind, name } if group.is_empty() => format!("{kind}/{name}"),
            BackendTarget::InvalidKind { group, kind, name } => format!("{kind}.{group}/{name}"),
        }
    }
}
