//! What the benchmarks are run on. Sizes are the argument; contents are what a mid-sized fleet would have.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use weft_model::{Digest, Health, Labels, Locality, Mono, Name, Protocol, Revision, ServiceKey, SpiffeId, Uid};
use weft_snapshot::{
    authz::InboundView,
    balance::{LoadView, Pool},
    fragment::{
        Action, Backend, Balance, Collection, DefaultAction, Endpoint, Fragment, HttpMatch, HttpRule, Inbound,
        MtlsMode, Operation, PathMatch, Policy, PortRoutes, RetryPolicy, Rule, Service, ServicePort, Source,
        StringMatch, Target, Timeouts, Tunnel, Values,
    },
    route::PortTable,
    snapshot::{Fragments, Snapshot},
};

pub const HEAD: &[u8] = b"GET /api/v2/orders/8842?expand=lines HTTP/1.1\r\nhost: orders.shop.mesh:8080\r\nuser-agent: \
    curl/8.5.0\r\naccept: application/json\r\naccept-encoding: gzip, br\r\nx-request-id: \
    9f3c1a52-7f0e-4a3e-a6b1-cc81d1f0a911\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nauthorization: \
    Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo\r\ncookie: session=5d41402abc4b2a76b9719d911017c592\r\n\r\n";

/// The service and its rules: one exact path each, and at the end one that takes what is left.
pub fn table(rules: usize) -> PortTable {
    let rule = |i: usize, path: Option<PathMatch>| HttpRule {
        origin: parsed(&format!("HTTPRoute/shop/r{i}#rule-0")),
        hosts: Vec::new(),
        matches: vec![HttpMatch { path, ..HttpMatch::default() }],
        filters: Vec::new(),
        backends: vec![Backend {
            target: Target::Service { key: parsed("shop/orders"), port: 80, subset: Labels::default() },
            weight: 1,
            filters: Vec::new(),
        }],
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    };
    let path = |i: usize| Some(PathMatch::ElementPrefix(format!("/api/v2/thing{i}").into()));
    let http = (0..rules.saturating_sub(1)).map(|i| rule(i, path(i))).chain([rule(rules, None)]).collect();
    PortTable::compile(&PortRoutes { http, tcp: Vec::new() }).expect("the rules are valid")
}

/// ALLOW rules by service account, method and path, of which the last one matches [`caller`].
pub fn inbound(rules: usize) -> InboundView {
    let exact = |s: String| Values { any: vec![StringMatch::Exact(s.into())], none: Vec::new() };
    let rule = |i: usize| Rule {
        from: vec![Source { service_accounts: exact(format!("shop/caller{i}")), ..Source::default() }],
        to: vec![Operation {
            methods: exact("GET".into()),
            paths: Values { any: vec![StringMatch::Prefix("/api/".into())], none: Vec::new() },
            ..Operation::default()
        }],
        ..Rule::default()
    };
    let policy = Policy {
        origin: parsed("AuthorizationPolicy/shop/orders"),
        action: Action::Allow,
        rules: (0..rules).map(rule).collect(),
    };
    let inbound = Inbound {
        uid: uid("shop/orders", 0),
        mtls: MtlsMode::Strict,
        port_mtls: BTreeMap::new(),
        mtls_origin: None,
        default: DefaultAction::AllowAuthenticated,
        policies: if rules == 0 { Vec::new() } else { vec![policy] },
    };
    InboundView::compile(&inbound).expect("the rules are valid")
}

/// Whom the last of so many rules names.
pub fn caller(rules: usize) -> SpiffeId {
    parsed(&format!("spiffe://mesh.example/ns/shop/sa/caller{}", rules.saturating_sub(1)))
}

/// All passing, all connected, loads that differ.
pub fn pool(endpoints: usize) -> (Pool, LoadView) {
    let list: Vec<_> = (0..endpoints).map(|i| endpoint("shop/orders", i)).collect();
    let pool = Pool::build(Balance::PeakEwma, list.iter(), 80, &Labels::default());
    let mut load = LoadView::new(endpoints);
    for (i, load) in load.loads.iter_mut().enumerate() {
        load.connected = true;
        load.ewma.observe(Duration::from_micros(500 + i as u64 * 37), Mono::secs(1));
    }
    (pool, load)
}

/// So many services of ten endpoints each.
pub fn fragments(services: usize) -> Fragments {
    let mut all = Fragments::new();
    for s in 0..services {
        let key: ServiceKey = parsed(&format!("shop/service{s}"));
        let service = Service {
            key: key.clone(),
            ports: vec![ServicePort { name: "http".into(), port: 80, protocol: Protocol::Http }],
            balance: Balance::PeakEwma,
        };
        let one = [(String::new(), Arc::new(Fragment::Service(service)))].into();
        all.insert(Collection::Service(key.clone()), one);
        let endpoints = (0..10).map(|i| endpoint(&key.to_string(), i));
        let endpoints = endpoints.map(|e| (e.uid.as_str().to_owned(), Arc::new(Fragment::Endpoint(e)))).collect();
        all.insert(Collection::Endpoints(key), endpoints);
    }
    all
}

/// The snapshot of `fragments`, and fragments in which one endpoint differs.
pub fn before_a_change(services: usize) -> (Snapshot, Fragments) {
    let mut fragments = fragments(services);
    let before = build(None, &fragments);
    let mut changed = endpoint("shop/service0", 3);
    changed.health = Health::Critical;
    let endpoints = fragments.get_mut(&Collection::Endpoints(parsed("shop/service0"))).expect("it was made above");
    endpoints.insert(changed.uid.as_str().to_owned(), Arc::new(Fragment::Endpoint(changed)));
    (before, fragments)
}

pub fn build(previous: Option<&Snapshot>, fragments: &Fragments) -> Snapshot {
    Snapshot::build(previous, Revision::new(1, 1), Digest::ZERO, fragments).expect("the fragments are valid")
}

pub fn head() -> Bytes {
    Bytes::from_static(HEAD)
}

fn endpoint(service: &str, i: usize) -> Endpoint {
    let uid = uid(service, i);
    let service: ServiceKey = parsed(service);
    Endpoint {
        mesh: Some(parsed(&format!("10.0.{}.{}:15008", i / 250, i % 250 + 1))),
        tunnel: Tunnel::Weft1,
        sni: uid.sni().into(),
        identities: vec![parsed(&format!("spiffe://mesh.example/ns/{}/sa/{}", service.namespace, service.name))],
        ports: [(80, parsed("10.0.0.1:8080"))].into(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Passing,
        workload: service.name.as_str().into(),
        app: service.name.as_str().into(),
        version: "v1".into(),
        labels: Labels::default(),
        uid,
    }
}

fn uid(service: &str, i: usize) -> Uid {
    let name = |s: &str| -> Name { parsed(s) };
    Uid::of(&parsed(service), &name("node"), &name(&format!("i{i}")))
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text} is well-formed"))
}
