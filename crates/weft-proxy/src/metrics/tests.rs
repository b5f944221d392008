use std::{sync::Arc, time::Duration};

use weft_model::{Digest, Health, Locality, Name, Protocol as Port, Revision, ServiceKey, TrustDomain};
use weft_snapshot::{
    authz::{AllowReason, DenyReason},
    fragment::{
        Balance, Bundle, Collection, DefaultAction, Endpoint, Fragment, Inbound, MtlsMode, Service, ServicePort,
        Tunnel, Workload,
    },
    snapshot::Fragments,
};
use weft_wire::{hello::Hello, v1};

use super::*;
use crate::{
    failure::{FailureKind, Side},
    record::{Http, Peer, Policy, Recording, Sink, Teller},
};

const REVISION: Revision = Revision::new(1, 7);

fn uid(service: &str, id: &str) -> Uid {
    Uid::of(&service.parse().unwrap(), &Name::parse("n1").unwrap(), &Name::parse(id).unwrap())
}

fn id(service: &str) -> SpiffeId {
    let key: ServiceKey = service.parse().unwrap();
    SpiffeId::workload(&TrustDomain::parse("td").unwrap(), key.namespace.as_str(), key.name.as_str()).unwrap()
}

fn endpoint(service: &str, instance: &str, version: &str) -> Endpoint {
    let uid = uid(service, instance);
    Endpoint {
        mesh: Some("10.0.0.2:15008".parse().unwrap()),
        tunnel: Tunnel::Weft1,
        sni: uid.sni().into(),
        identities: vec![id(service)],
        ports: [(80, "10.0.0.2:8080".parse().unwrap())].into(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Passing,
        workload: format!("reviews-{instance}").into(),
        app: "reviews".into(),
        version: version.into(),
        labels: Default::default(),
        uid,
    }
}

/// The proxy of `shop/web`, which knows `shop/reviews` with one instance of each of two versions.
fn snapshot() -> Snapshot {
    let (web, reviews): (ServiceKey, ServiceKey) = ("shop/web".parse().unwrap(), "shop/reviews".parse().unwrap());
    let own = uid("shop/web", "1");
    let workload = Workload {
        uid: own.clone(),
        service: web,
        identity: id("shop/web"),
        sni: own.sni().into(),
        listens: Vec::new(),
        node: Name::parse("n1").unwrap(),
        locality: Locality::default(),
        workload: "web-1".into(),
        app: "web".into(),
        version: "".into(),
        labels: Default::default(),
    };
    let inbound = Inbound {
        uid: own.clone(),
        mtls: MtlsMode::Strict,
        port_mtls: Default::default(),
        mtls_origin: None,
        default: DefaultAction::Deny,
        policies: Vec::new(),
    };
    let port = ServicePort { name: "http".into(), port: 80, protocol: Port::Http };
    let service = Service { key: reviews.clone(), ports: vec![port], balance: Balance::default() };
    let bundle = Bundle { trust_domain: TrustDomain::parse("td").unwrap(), authorities: vec![Arc::from(&b"root"[..])] };
    let mut fragments = Fragments::new();
    let mut put = |collection, name: &str, fragment| {
        fragments.entry(collection).or_default().insert(name.to_owned(), Arc::new(fragment));
    };
    put(Collection::Workload(own.clone()), "", Fragment::Workload(workload));
    put(Collection::Inbound(own), "", Fragment::Inbound(inbound));
    put(Collection::Service(reviews.clone()), "", Fragment::Service(service));
    for (instance, version) in [("1", "v1"), ("2", "v2")] {
        let e = endpoint("shop/reviews", instance, version);
        put(Collection::Endpoints(reviews.clone()), e.uid.clone().as_str(), Fragment::Endpoint(e));
    }
    put(Collection::Bundle(bundle.trust_domain.clone()), "", Fragment::Bundle(bundle));
    Snapshot::build(None, REVISION, Digest::ZERO, &fragments).unwrap()
}

struct Fixture {
    metrics: Arc<Metrics>,
    peer: Arc<Peer>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    _credentials: watch::Sender<Option<Arc<Credentials>>>,
}

impl Fixture {
    fn new() -> Self {
        let (snapshots, seen) = watch::channel(Arc::new(snapshot()));
        let (credentials, believed) = watch::channel(None);
        let metrics = Metrics::new(uid("shop/web", "1"), Clock::real(), seen, believed);
        let hello = Hello { workload: "front-7".into(), app: "front".into(), version: "v3".into(), ..Hello::default() };
        let peer =
            Peer { id: Some(id("shop/front")), hello: Some(hello), tls_group: "X25519MLKEM768", ..Peer::default() };
        Self { metrics, peer: Arc::new(peer), snapshots, _credentials: credentials }
    }

    fn record(&self, direction: Direction, spoken: Spoken) -> Record {
        let peer = match direction {
            Direction::Inbound => self.peer.clone(),
            Direction::Outbound => Arc::default(),
        };
        let mut r = Record::new("r-1".into(), direction, spoken, peer, Mono::ZERO, REVISION);
        r.workload = Some(uid("shop/web", "1"));
        r.took = Duration::from_micros(700);
        (r.rx, r.tx) = (10, 20);
        r
    }

    /// A request to an instance of reviews, or to nobody.
    fn asked(&self, instance: Option<&str>, status: u16) -> Record {
        let mut r = self.record(Direction::Outbound, Spoken::Http);
        r.service = Some(("shop/reviews".parse().unwrap(), 80));
        if let Some(instance) = instance {
            r.upstream_uid = Some(uid("shop/reviews", instance));
            r.upstream_id = Some(id("shop/reviews"));
        }
        r.http = Some(Http { status, version: "HTTP/1.1", ..Http::default() });
        r
    }

    /// A request of front's to us.
    fn served(&self, status: u16) -> Record {
        let mut r = self.record(Direction::Inbound, Spoken::Http);
        r.service = Some(("shop/web".parse().unwrap(), 80));
        r.policy = Policy::Allowed { rule: None, why: AllowReason::Rule };
        r.http = Some(Http { status, version: "HTTP/1.1", ..Http::default() });
        r
    }

    fn take(&self, mut r: Record) {
        self.metrics.take(&mut r);
    }

    fn line(&self, start: &str) -> String {
        let text = self.metrics.exposition();
        let mut found = text.lines().filter(|l| l.starts_with(start));
        let line = found.next().unwrap_or_else(|| panic!("no {start} in\n{text}"));
        assert_eq!(found.next(), None, "{start} is ambiguous");
        line.into()
    }

    fn edge(&self, want: impl Fn(&v1::Edge) -> bool) -> v1::Edge {
        let edges = self.metrics.stats().edges;
        let found: Vec<_> = edges.iter().filter(|e| want(e)).collect();
        assert_eq!(found.len(), 1, "{edges:#?}");
        found[0].clone()
    }
}

fn denied(r: &mut Record, rule: Option<&str>) {
    let rule: Option<Arc<weft_model::ResourceRef>> = rule.map(|r| Arc::new(r.parse().unwrap()));
    r.policy = Policy::Denied { rule: rule.clone(), why: DenyReason::DefaultDeny };
    (r.failure, r.side, r.rule) = (Some(FailureKind::Denied), Some(Side::Policy), rule);
}

#[test]
fn obs_01_a_request_of_ours_has_istios_labels() {
    let f = Fixture::new();
    f.take(f.asked(Some("2"), 200));
    f.take(f.asked(Some("2"), 200));
    let want = concat!(
        "istio_requests_total{reporter=\"source\",source_workload=\"web-1\",source_workload_namespace=\"shop\",",
        "source_canonical_service=\"web\",source_canonical_revision=\"latest\",",
        "source_principal=\"spiffe://td/ns/shop/sa/web\",source_app=\"web\",source_version=\"unknown\",",
        "source_cluster=\"td\",destination_service=\"reviews.shop\",destination_service_name=\"reviews\",",
        "destination_service_namespace=\"shop\",destination_workload=\"reviews-2\",",
        "destination_workload_namespace=\"shop\",destination_canonical_service=\"reviews\",",
        "destination_canonical_revision=\"v2\",destination_principal=\"spiffe://td/ns/shop/sa/reviews\",",
        "destination_app=\"reviews\",destination_version=\"v2\",destination_cluster=\"td\",",
        "request_protocol=\"http\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",",
        "response_code=\"200\",grpc_response_status=\"\"} 2"
    );
    assert_eq!(f.line("istio_requests_total{"), want);
    let labels = want.trim_start_matches("istio_requests_total{").trim_end_matches("} 2");
    for line in [
        format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"1\"}} 2"),
        format!("istio_request_duration_milliseconds_sum{{{labels}}} 1.4"),
        format!("istio_request_bytes_sum{{{labels}}} 20"),
        format!("istio_response_bytes_sum{{{labels}}} 40"),
    ] {
        assert_eq!(f.line(line.rsplit_once(' ').unwrap().0), line);
    }
}

#[test]
fn obs_01_a_request_to_us_is_told_by_the_peers_certificate_and_hello() {
    let f = Fixture::new();
    f.take(f.served(404));
    let line = f.line("istio_requests_total{");
    for part in [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://td/ns/shop/sa/front\"",
        "source_workload=\"front-7\"",
        "source_version=\"v3\"",
        "destination_workload=\"web-1\"",
        "destination_service=\"web.shop\"",
        "response_code=\"404\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn obs_01_a_grpc_request_tells_its_status() {
    let f = Fixture::new();
    for (status, failure) in [(Some(0), None), (Some(5), None), (None, Some(FailureKind::NoHealthyEndpoint))] {
        let mut r = f.asked(Some("1"), 200);
        (r.failure, r.side) = (failure, failure.map(|_| Side::Upstream));
        r.http = r.http.map(|h| Http { grpc: true, grpc_status: status, version: "HTTP/2", ..h });
        f.take(r);
    }
    let text = f.metrics.exposition();
    for status in ["0", "5", "14"] {
        let part = format!("response_code=\"200\",grpc_response_status=\"{status}\"}} 1");
        assert!(
            text.lines().any(|l| l.contains("request_protocol=\"grpc\"") && l.ends_with(&part)),
            "{status}:\n{text}"
        );
    }
    let edge = f.edge(|e| e.protocol == "grpc");
    assert_eq!((edge.requests, edge.succeeded, edge.failed), (3, 1, 2));
}

#[test]
fn obs_14_what_the_proxy_answers_itself_is_counted_by_kind() {
    let f = Fixture::new();
    let failed = |kind, side, status, teller| {
        let mut r = f.asked(None, status);
        (r.failure, r.side, r.teller) = (Some(kind), Some(side), teller);
        f.take(r);
    };
    failed(FailureKind::NoHealthyEndpoint, Side::Upstream, 503, Teller::Proxy);
    failed(FailureKind::NoHealthyEndpoint, Side::Upstream, 503, Teller::Proxy);
    // not ours: the far proxy's, an application's that was tried often enough, a stream that broke after its head, a caller that left
    failed(FailureKind::Denied, Side::Upstream, 403, Teller::FarProxy);
    failed(FailureKind::RetriesExhausted, Side::Upstream, 503, Teller::Application);
    failed(FailureKind::UpstreamReset, Side::Upstream, 200, Teller::Proxy);
    failed(FailureKind::DownstreamClosed, Side::Downstream, 0, Teller::Proxy);
    assert_eq!(f.line("weft_local_replies_total{"), "weft_local_replies_total{kind=\"no_healthy_endpoint\"} 2");
    let text = f.metrics.exposition();
    assert!(text.contains("response_flags=\"UH\"") && text.contains("response_flags=\"DC\""), "{text}");
}

#[test]
fn sec_20_denials_are_counted_by_rule() {
    let f = Fixture::new();
    let rule = "AuthorizationPolicy/shop/only-front#rule-1";
    for rule in [Some(rule), Some(rule), None] {
        let mut r = f.served(403);
        denied(&mut r, rule);
        f.take(r);
    }
    let start = "weft_denied_total{reporter=\"destination\",source_principal=\"spiffe://td/ns/shop/sa/front\",\
                 destination_principal=\"spiffe://td/ns/shop/sa/web\",request_protocol=\"http\",rule=";
    assert_eq!(f.line(&format!("{start}\"{rule}\"")), format!("{start}\"{rule}\"}} 2"));
    assert_eq!(f.line(&format!("{start}\"default-deny\"")), format!("{start}\"default-deny\"}} 1"));
    let edge = f.edge(|e| e.direction == "inbound");
    assert_eq!((edge.requests, edge.denied, edge.succeeded, edge.failed), (3, 3, 0, 0));
}

#[test]
fn obs_02_long_connections_are_told_as_they_go() {
    let f = Fixture::new();
    let mut r = f.record(Direction::Outbound, Spoken::Tcp);
    r.service = Some(("shop/reviews".parse().unwrap(), 80));
    r.upstream_uid = Some(uid("shop/reviews", "1"));
    (r.rx, r.tx) = (0, 0);
    f.metrics.progress(&mut r);
    let number = |f: &Fixture, start: &str| f.line(start).rsplit(' ').next().unwrap().to_owned();
    assert_eq!(number(&f, "istio_tcp_connections_opened_total{"), "1");
    assert_eq!(f.edge(|e| e.protocol == "tcp").open, 1);
    (r.rx, r.tx) = (100, 7);
    f.metrics.progress(&mut r);
    f.metrics.progress(&mut r);
    assert_eq!(number(&f, "istio_tcp_received_bytes_total{"), "100");
    assert_eq!(number(&f, "istio_tcp_sent_bytes_total{"), "7");
    (r.rx, r.tx) = (150, 8);
    f.take(r);
    assert_eq!(number(&f, "istio_tcp_received_bytes_total{"), "150");
    assert_eq!(number(&f, "istio_tcp_connections_opened_total{"), "1");
    assert_eq!(number(&f, "istio_tcp_connections_closed_total{"), "1");
    assert!(f.line("istio_tcp_sent_bytes_total{").contains("request_protocol=\"tcp\",response_flags=\"-\""));
    let edge = f.edge(|e| e.protocol == "tcp");
    assert_eq!((edge.requests, edge.succeeded, edge.failed, edge.open), (1, 1, 0, 0));
    assert_eq!((edge.rx, edge.tx, edge.latency.len()), (150, 8, 0));
}

#[test]
fn obs_02_a_connection_that_breaks_fails_its_edge() {
    let f = Fixture::new();
    let mut r = f.record(Direction::Outbound, Spoken::Tcp);
    r.service = Some(("shop/reviews".parse().unwrap(), 80));
    r.upstream_uid = Some(uid("shop/reviews", "1"));
    f.metrics.progress(&mut r);
    (r.failure, r.side) = (Some(FailureKind::UpstreamReset), Some(Side::Upstream));
    f.take(r);
    let edge = f.edge(|e| e.protocol == "tcp");
    assert_eq!((edge.requests, edge.succeeded, edge.failed, edge.open), (1, 0, 1, 0));
    // bytes that carried a CONNECT whose requests have records of their own, are no connection
    f.take(f.record(Direction::Inbound, Spoken::Tcp));
    assert!(f.metrics.stats().edges.iter().all(|e| e.direction == "outbound"));
}

#[test]
fn obs_02_a_connection_outlives_its_endpoint_under_its_name() {
    let f = Fixture::new();
    let mut r = f.record(Direction::Outbound, Spoken::Tcp);
    r.service = Some(("shop/reviews".parse().unwrap(), 80));
    (r.upstream_uid, r.upstream_id) = (Some(uid("shop/reviews", "1")), Some(id("shop/reviews")));
    f.metrics.progress(&mut r);
    f.snapshots.send_replace(Arc::new(Snapshot::empty()));
    // a later request makes the newer revision known
    let mut later = f.asked(None, 503);
    later.revision = Revision::new(1, 8);
    f.take(later);
    f.take(r);
    let line = f.line("istio_tcp_connections_closed_total{");
    assert!(
        line.contains("destination_workload=\"reviews-1\"") && line.contains("source_workload=\"web-1\""),
        "{line}"
    );
    let edge = f.edge(|e| e.protocol == "tcp");
    assert_eq!((edge.requests, edge.succeeded, edge.open), (1, 1, 0));
}

#[test]
fn obs_01_nothing_is_lost_between_workers_and_scrapes() {
    const EACH: u64 = 3000;
    const THREADS: u64 = 3;
    let f = Fixture::new();
    std::thread::scope(|threads| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                threads.spawn(|| {
                    for i in 0..EACH {
                        f.take(f.asked(Some(if i % 2 == 0 { "1" } else { "2" }), if i % 10 == 0 { 503 } else { 200 }));
                    }
                })
            })
            .collect();
        let mut before = 0;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let edges = f.metrics.stats().edges;
            assert!(edges.iter().all(|e| e.requests == e.succeeded + e.failed));
            let now = edges.iter().map(|e| e.requests).sum();
            assert!(now >= before, "{now} after {before}");
            before = now;
            assert!(f.metrics.exposition().ends_with('\n'));
        }
    });
    let edges = f.metrics.stats().edges;
    let sum = |of: fn(&v1::Edge) -> u64| edges.iter().map(of).sum::<u64>();
    assert_eq!((sum(|e| e.requests), sum(|e| e.failed)), (THREADS * EACH, THREADS * EACH / 10));
    assert_eq!(sum(|e| e.latency.last().unwrap().count), THREADS * EACH);
    let text = f.metrics.exposition();
    let lines = text.lines().filter(|l| l.starts_with("istio_requests_total{"));
    assert_eq!(lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>(), THREADS * EACH);
}

#[test]
fn edges_tell_both_views_and_what_went_nowhere() {
    let f = Fixture::new();
    let (own, peer) = (id("shop/web"), id("shop/reviews"));
    f.metrics.handshake(&Handshake {
        direction: Direction::Outbound,
        local: Some(&own),
        peer: Some(&peer),
        tls_group: "X25519MLKEM768",
        tls_cipher: "TLS13_AES_128_GCM_SHA256",
        failure: None,
    });
    f.take(f.asked(Some("1"), 200));
    f.take(f.asked(Some("1"), 500));
    f.take(f.asked(Some("2"), 403));
    let mut nowhere = f.asked(None, 503);
    (nowhere.failure, nowhere.side) = (Some(FailureKind::NoHealthyEndpoint), Some(Side::Upstream));
    f.take(nowhere);
    f.take(f.served(200));
    let v1 = f.edge(|e| e.destination_version == "v1");
    assert_eq!(
        (&*v1.direction, &*v1.source, &*v1.destination, &*v1.protocol),
        ("outbound", "web-1", "shop/reviews", "http")
    );
    assert_eq!((v1.requests, v1.succeeded, v1.failed, &*v1.key_exchange), (2, 1, 1, "X25519MLKEM768"));
    assert_eq!((v1.rx, v1.tx), (20, 40));
    let v2 = f.edge(|e| e.destination_version == "v2");
    assert_eq!((v2.requests, v2.succeeded, v2.denied), (1, 1, 0), "a refusal is an answer to whoever asked");
    let lost = f.edge(|e| e.direction == "outbound" && e.destination_version.is_empty());
    assert_eq!((&*lost.destination_identity, lost.failed), (peer.as_str(), 1));
    let inbound = f.edge(|e| e.direction == "inbound");
    assert_eq!((&*inbound.source, &*inbound.source_identity), ("front-7", id("shop/front").as_str()));
    assert_eq!((&*inbound.destination_identity, &*inbound.key_exchange), (own.as_str(), "X25519MLKEM768"));
    let latency: Vec<_> = v1.latency.iter().map(|b| b.count).collect();
    assert!(latency.is_sorted(), "cumulative");
    assert_eq!((latency.last(), v1.latency.last().map(|b| b.le_us)), (Some(&2), Some(u64::MAX)));
    assert_eq!(v1.latency.iter().find(|b| b.le_us >= 700).unwrap().count, 2);
}

#[test]
fn http2_has_its_own_edge_under_istios_one_series() {
    let f = Fixture::new();
    f.take(f.asked(Some("1"), 200));
    let mut r = f.asked(Some("1"), 200);
    r.http = r.http.map(|h| Http { version: "HTTP/2", ..h });
    f.take(r);
    assert!(f.line("istio_requests_total{").ends_with(" 2"));
    for protocol in ["http", "http2"] {
        assert_eq!(f.edge(|e| e.protocol == protocol).requests, 1);
    }
}

#[test]
fn obs_13_handshakes_tell_group_and_cipher() {
    let f = Fixture::new();
    let own = id("shop/web");
    let refused = Handshake {
        direction: Direction::Inbound,
        local: Some(&own),
        peer: None,
        tls_group: "",
        tls_cipher: "",
        failure: Some(FailureKind::PeerUntrusted),
    };
    f.metrics.handshake(&refused);
    f.metrics.handshake(&Handshake {
        failure: None,
        tls_group: "X25519",
        tls_cipher: "C",
        peer: Some(&own),
        ..refused
    });
    let text = f.metrics.exposition();
    let of = |source: &str, rest: &str| {
        format!(
            "weft_mesh_handshakes_total{{reporter=\"destination\",source_principal=\"{source}\",\
             destination_principal=\"spiffe://td/ns/shop/sa/web\",{rest}}} 1"
        )
    };
    let untrusted = of("unknown", "key_exchange=\"unknown\",cipher=\"unknown\",result=\"peer_untrusted\"");
    let good = of("spiffe://td/ns/shop/sa/web", "key_exchange=\"X25519\",cipher=\"C\",result=\"ok\"");
    for line in [untrusted, good] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

/// Counts as the metrics do, and keeps the failure.
struct Watching(Arc<Metrics>, Mutex<Vec<Option<FailureKind>>>);

impl Sink for Watching {
    fn take(&self, mut record: Box<Record>) {
        self.0.take(&mut record);
        self.1.lock().unwrap().push(record.failure);
    }
    fn open(&self, direction: Direction, spoken: Spoken, delta: i64) {
        self.0.open(direction, spoken, delta);
    }
}

#[test]
fn obs_01_every_recording_ends_once_also_when_it_is_dropped() {
    let f = Fixture::new();
    let sink = Arc::new(Watching(f.metrics.clone(), Mutex::default()));
    let begin = || Recording::begin(sink.clone(), Clock::real(), f.asked(Some("1"), 200));
    let open = || f.line("weft_open_flows{reporter=\"source\",request_protocol=\"http\"}");
    let (one, two) = (begin(), begin());
    assert!(open().ends_with(" 2"));
    one.finish();
    drop(two);
    assert!(open().ends_with(" 0"));
    assert_eq!(*sink.1.lock().unwrap(), [None, Some(FailureKind::DownstreamClosed)]);
    // so does one whose future is cancelled or panics
    let rec = begin();
    let panicked = std::thread::spawn(move || {
        let _rec = rec;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert_eq!(sink.1.lock().unwrap().len(), 3);
}

#[test]
fn many_edges_fold_and_none_is_counted_twice() {
    const MANY: u64 = 2300;
    let f = Fixture::new();
    for i in 0..MANY {
        let mut r = f.served(200);
        let hello = Hello { workload: format!("w{i}"), ..Hello::default() };
        r.downstream = Arc::new(Peer { id: Some(id("shop/front")), hello: Some(hello), ..Peer::default() });
        f.take(r);
    }
    let stats = f.metrics.stats();
    assert_eq!(stats.edges.iter().map(|e| e.requests).sum::<u64>(), MANY);
    assert!(stats.edges.len() <= 2002, "{}", stats.edges.len());
    let text = f.metrics.exposition();
    let total = text.lines().filter(|l| l.starts_with("istio_requests_total{"));
    assert_eq!(total.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>(), MANY);
}

#[test]
fn the_exposition_tells_what_is_in_force() {
    let f = Fixture::new();
    let digest = Digest::ZERO.to_string();
    let want = format!("weft_config_info{{revision=\"1.7\",digest=\"{digest}\"}} 1");
    assert_eq!(f.line("weft_config_info{"), want);
    assert!(f.line("istio_build{").starts_with("istio_build{component=\"proxy\",tag=\""));
    assert!(!f.metrics.exposition().contains("weft_certificate_expiry"), "there is no certificate yet");
    let stats = f.metrics.stats();
    assert_eq!(stats.revision, Some(v1::Revision { incarnation: 1, n: 7 }));
}

#[test]
fn nov_01_a_remembered_decision_names_both_ends() {
    let f = Fixture::new();
    let ring = crate::ring::Ring::default();
    let (asked, served) = (f.asked(Some("1"), 200), f.served(200));
    ring.push(weft_model::Wall::millis(1), Box::new(asked));
    ring.push(weft_model::Wall::millis(2), Box::new(served));
    let found = ring.of_request("r-1", &snapshot());
    let told: Vec<_> = found.iter().map(|d| (&*d.direction, &*d.source, &*d.source_identity)).collect();
    let (web, front) = (id("shop/web"), id("shop/front"));
    assert_eq!(told, [("outbound", "web-1", web.as_str()), ("inbound", "front-7", front.as_str())]);
    assert_eq!(found[0].attributes["destination_identity"], id("shop/reviews").as_str());
    assert_eq!(found[1].attributes["destination_identity"], web.as_str());
    assert!(
        found[1].explanation.contains(&format!("from {front} for shop/web:80 to {web}")),
        "{}",
        found[1].explanation
    );
}
