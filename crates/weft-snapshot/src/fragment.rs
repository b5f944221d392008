//! Fragments: what a proxy is told. **[format]** (its meaning; `weft-wire` fixes the bytes)
//!
//! A fragment is compiled once per change and shared by every proxy that subscribed to its [`Collection`]. It names no
//! dialect; each compiled rule carries the name of the clause that an operator wrote.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use weft_model::{Health, Labels, Locality, Name, Protocol, ResourceRef, ServiceKey, SpiffeId, TrustDomain, Uid};

/// The unit of subscription, versioning and session memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// A service's definition: one entry.
    Service(ServiceKey),
    /// Its endpoints: one entry each, named by uid.
    Endpoints(ServiceKey),
    /// Its routes, as the callers in one namespace see them (producer routes, and that namespace's consumer routes).
    Routes { service: ServiceKey, consumer: Name },
    /// A workload: who it is and what it listens on: one entry.
    Workload(Uid),
    /// What may reach a workload: one entry.
    Inbound(Uid),
    /// The authorities of one trust domain: one entry.
    Bundle(TrustDomain),
    /// What was revoked, mesh-wide: one entry.
    Revocations,
}

/// One entry of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fragment {
    Service(Service),
    Endpoint(Endpoint),
    Routes(Routes),
    Workload(Workload),
    Inbound(Inbound),
    Bundle(Bundle),
    Revocations(Revocations),
}

// === services and endpoints ===

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    pub ports: Vec<ServicePort>,
    /// How endpoints are chosen.
    pub balance: Balance,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty only where the service has one port without a name.
    pub name: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
}

/// features.md TRF-14. `RoundRobin` and `Random` are there for those who ask; the default is `PeakEwma`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// The better of two random endpoints by decayed peak latency × load, weights as capacity.
    #[default]
    PeakEwma,
    /// The better of two random endpoints by requests in flight.
    LeastRequest,
    RoundRobin,
    Random,
}

/// One address of a service. **[format]**
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub uid: Uid,
    /// Where the workload's proxy takes mesh connections; `None` where there is no proxy.
    pub mesh: Option<SocketAddr>,
    pub tunnel: Tunnel,
    /// Server name to send, for `weft1`; empty otherwise.
    pub sni: Arc<str>,
    /// The endpoint must present one of these; never empty where `tunnel` is not `None`.
    pub identities: Vec<SpiffeId>,
    /// Application address per service port number.
    pub ports: BTreeMap<u16, SocketAddr>,
    pub locality: Locality,
    /// Capacity relative to the others; 0 gets nothing.
    pub weight: u32,
    pub health: Health,
    /// For metric labels.
    pub workload: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    /// What routes may select subsets by.
    pub labels: Labels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tunnel {
    /// Plain TCP to the application's address.
    #[default]
    None,
    /// CONNECT over HTTP/2 over mTLS (features.md 4.7).
    Hbone,
    /// Ours: HBONE, and request streams with `weft-to` (DESIGN section 6).
    Weft1,
}

// === routes ===

/// Every route that callers of one namespace see for a service. No rule of a port: requests go to the service itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    pub service: ServiceKey,
    pub consumer: Name,
    /// Per service port number.
    pub ports: BTreeMap<u16, PortRoutes>,
}

/// In order of precedence (TRF-02 is decided by whoever compiled it): the first rule that matches wins. Where rules are
/// attached, a request that none matches gets 404.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortRoutes {
    pub http: Vec<HttpRule>,
    /// For connections that are not HTTP; the first rule wins (L4T-01). Empty: the service itself.
    pub tcp: Vec<TcpRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRule {
    /// The clause that an operator wrote, down to the match: `HTTPRoute/shop/split#rule-0`.
    pub origin: ResourceRef,
    /// Hosts to which the rule applies, `*.` wildcards allowed; empty: any.
    pub hosts: Vec<Arc<str>>,
    /// Any of these; empty matches everything.
    pub matches: Vec<HttpMatch>,
    /// Applied in this order before a backend is chosen.
    pub filters: Vec<HttpFilter>,
    pub backends: Vec<Backend>,
    pub timeouts: Timeouts,
    pub retry: RetryPolicy,
}

/// All parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    pub method: Option<Arc<str>>,
    pub headers: Vec<KeyMatch>,
    pub query: Vec<KeyMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// Gateway API: whole path elements (`/foo` matches `/foo/bar`, not `/foobar`).
    ElementPrefix(Arc<str>),
    /// RE2 syntax, full match.
    Regex(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMatch {
    /// A header's name in lower case, or a query parameter's name.
    pub key: Arc<str>,
    pub value: ValueMatch,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(Arc<str>),
    /// RE2 syntax, full match.
    Regex(Arc<str>),
    Present,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFilter {
    RequestHeaders(HeaderEdit),
    ResponseHeaders(HeaderEdit),
    Rewrite { host: Option<Arc<str>>, path: Option<PathRewrite> },
}

/// Order: set, add, remove (TRF-06). Names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdit {
    pub set: Vec<(Arc<str>, Arc<str>)>,
    pub add: Vec<(Arc<str>, Arc<str>)>,
    pub remove: Vec<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    Full(Arc<str>),
    /// Replaces the element prefix that matched (TRF-05: `/foo` → `/` turns `/foo/baz` into `/baz`).
    Prefix(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub target: Target,
    /// Share of this backend; all zero: 500.
    pub weight: u32,
    pub filters: Vec<HttpFilter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Service {
        key: ServiceKey,
        port: u16,
        subset: Labels,
    },
    /// The reference resolves to nothing: its share gets 500 (Gateway API), and the text says why.
    Unresolved {
        reference: Arc<str>,
        why: Arc<str>,
    },
}

/// `None`: no limit. features.md TRF-11.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// Whole request, retries included.
    pub request: Option<Duration>,
    /// One try.
    pub backend: Option<Duration>,
}

/// What never was sent is retried elsewhere whatever this says, within `attempts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub attempts: u32,
    /// Responses that are tried again, for requests whose body was kept; empty: none.
    pub statuses: Vec<u16>,
    pub backoff: Duration,
}

impl Default for RetryPolicy {
    /// Two more tries for what was never sent, none for an answer.
    fn default() -> Self {
        Self { attempts: 2, statuses: Vec::new(), backoff: Duration::from_millis(25) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRule {
    pub origin: ResourceRef,
    pub backends: Vec<Backend>,
}

// === workloads and what may reach them ===

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub uid: Uid,
    pub service: ServiceKey,
    pub identity: SpiffeId,
    /// What this workload's proxy sends and expects as server name.
    pub sni: Arc<str>,
    pub listens: Vec<Listen>,
    pub node: Name,
    pub locality: Locality,
    pub workload: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub labels: Labels,
}

/// One port of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The service's port number and name, by which `weft-to` names it.
    pub service_port: u16,
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// The application's address as others know it: the authority of a CONNECT.
    pub app: SocketAddr,
    /// Where the proxy connects.
    pub connect: SocketAddr,
    /// Carried as bytes even when it is HTTP/1.1 (header case and reason phrase kept).
    pub preserve: bool,
}

/// Everything that decides whether a peer reaches this workload. Without it nobody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    pub uid: Uid,
    pub mtls: MtlsMode,
    /// Per workload port (the application's).
    pub port_mtls: BTreeMap<u16, MtlsMode>,
    /// The policy that set the mode, if an operator did.
    pub mtls_origin: Option<ResourceRef>,
    /// What happens when no ALLOW policy selects the workload.
    pub default: DefaultAction,
    pub policies: Vec<Policy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MtlsMode {
    #[default]
    Strict,
    Permissive,
    Disable,
}

/// `MeshDefaults.authorization`, compiled explicitly into every workload (absence would deny).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultAction {
    #[default]
    Deny,
    /// Peers with an identity of the mesh.
    AllowAuthenticated,
    /// Everyone.
    Allow,
}

/// One AuthorizationPolicy as it applies to the workload. Order of evaluation: DENY, then ALLOW (features.md SEC-21).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub origin: ResourceRef,
    pub action: Action,
    /// Matches when any rule matches. None: never matches (ALLOW without rules denies everything).
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Deny,
    Allow,
    /// Never changes the verdict; recorded.
    Audit,
}

/// (any `from`) and (any `to`) and (all `when`); an empty list holds (features.md SEC-20).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
    /// A reference in this rule resolves to nothing: it never allows, and if it would deny, it denies.
    pub unresolved: Option<Arc<str>>,
}

/// Every non-empty list must hold: any of `x`, none of `not_x`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Without `spiffe://`.
    pub principals: Values,
    pub namespaces: Values,
    /// `namespace/service-account`.
    pub service_accounts: Values,
    pub trust_domains: Values,
    pub ip_blocks: Blocks,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    pub hosts: Values,
    pub methods: Values,
    pub paths: Values,
    pub ports: Ports,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values {
    pub any: Vec<StringMatch>,
    pub none: Vec<StringMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    pub any: Vec<u16>,
    pub none: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks {
    pub any: Vec<IpBlock>,
    pub none: Vec<IpBlock>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpBlock {
    pub addr: std::net::IpAddr,
    pub prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Non-empty (`*`).
    Present,
    /// `{*}` one segment, `{**}` any number at the end (paths only).
    Template(Arc<str>),
}

/// One `when` clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub key: ConditionKey,
    pub values: Values,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionKey {
    /// In lower case.
    RequestHeader(Arc<str>),
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourceServiceAccount,
    SourceTrustDomain,
    SourcePrincipal,
    DestinationIp,
    DestinationPort,
    ConnectionSni,
    /// A key of Istio's that this build cannot answer (JWT claims): it counts against the peer, so that a rule with it never
    /// allows, and denies whom the rest of it denies.
    Unsupported(Arc<str>),
}

// === trust ===

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub trust_domain: TrustDomain,
    /// DER, sorted.
    pub authorities: Vec<Arc<[u8]>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revocations {
    pub serials: Vec<Arc<[u8]>>,
    pub ids: Vec<SpiffeId>,
    /// SHA-256 of an issuer's public key.
    pub issuer_keys: Vec<Arc<[u8]>>,
}
