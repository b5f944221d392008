//! What was never sent goes elsewhere; what may have been done does not (features.md TRF-11; DESIGN section 6).

use std::{
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::io::AsyncWriteExt;
use weft_model::Protocol;

use weft_snapshot::{
    failure::FailureKind,
    fragment::{Backend, HttpRule, PortRoutes, RetryPolicy, Routes, Target, Timeouts},
    retry::GiveUp,
};

use crate::{
    origin::{Origin, Raw, read_request},
    support::{Authority, PORT, Pair, Set, Start, endpoint, web_set},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub fn nobody() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Routes everything to the service itself, by these rules.
pub fn ruled(set: Set, timeouts: Timeouts, retry: RetryPolicy) -> Set {
    let rule = HttpRule {
        origin: "HTTPRoute/shop/api#rule-0".parse().unwrap(),
        hosts: Vec::new(),
        matches: Vec::new(),
        filters: Vec::new(),
        backends: vec![Backend {
            target: Target::Service { key: "shop/api".parse().unwrap(), port: PORT, subset: Default::default() },
            weight: 1,
            filters: Vec::new(),
        }],
        timeouts,
        retry,
    };
    set.routes(Routes {
        service: "shop/api".parse().unwrap(),
        consumer: "shop".parse().unwrap(),
        ports: [(PORT, PortRoutes { http: vec![rule], tcp: Vec::new() })].into(),
    })
}

#[tokio::test]
async fn an_endpoint_that_is_gone_costs_no_request() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::with(Protocol::Http, origin.addr, |set| {
        let ca = Authority::new("mesh.test");
        // one whose proxy is gone
        set.endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(nobody()), &[(PORT, origin.addr)]))
    });
    for i in 0..20 {
        let mut c = Raw::connect(pair.at).await;
        let body = "x".repeat(1000);
        c.send(format!("POST /{i} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{body}")).await;
        let (head, _) = c.response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    }
    assert_eq!(origin.logged().matches("POST /").count(), 20, "each exactly once");
}

#[tokio::test]
async fn an_application_that_is_gone_is_told_by_the_far_proxy_and_tried_elsewhere() {
    let origin = Origin::answering(OK).await;
    let ca = Authority::new("mesh.test");
    let down = nobody();
    let one = Start::new("shop/api").inbound().start(&ca, crate::support::api_set(&ca, Protocol::Http, down).build(1));
    let two = Start::new("shop/api")
        .id("2")
        .inbound()
        .start(&ca, Set::new(&ca).workload(&ca, "shop/api", "2", &[(PORT, Protocol::Http, origin.addr)]).build(1));
    let mesh = |p: &crate::support::Proxy| p.sidecar.bound().inbound.unwrap();
    let set = web_set(&ca, Protocol::Http, mesh(&one), down)
        .endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(mesh(&two)), &[(PORT, origin.addr)]));
    let web = Start::new("shop/web").upstream("shop/api").start(&ca, set.build(1));
    let at = web.sidecar.bound().upstreams[0].tcp().unwrap();
    for i in 0..20 {
        let mut c = Raw::connect(at).await;
        c.send(format!("POST /{i} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi")).await;
        let (head, _) = c.response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    }
    assert_eq!(origin.logged().matches("POST /").count(), 20, "each exactly once");
}

#[tokio::test]
async fn trf_11_a_body_beyond_64_kib_is_not_tried_again() {
    for (size, want) in [(60 << 10, 2), (70 << 10, 1)] {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let origin = Origin::new(move |mut s, _| {
            let counted = counted.clone();
            async move {
                let mut seen = Vec::new();
                while read_request(&mut s, &mut seen).await.is_some() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = s.write_all(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        let retry = RetryPolicy { attempts: 1, statuses: vec![503], backoff: Duration::from_millis(1) };
        let pair = Pair::with(Protocol::Http, origin.addr, |s| ruled(s, Timeouts::default(), retry));
        let mut c = Raw::connect(pair.at).await;
        c.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n")).await;
        c.send(vec![b'x'; size]).await;
        assert!(c.response().await.0.starts_with("HTTP/1.1 503 "));
        assert_eq!(tries.load(Ordering::SeqCst), want, "{size} bytes");
        let gave_up = pair.web.records.when(|r| r.first().map(|r| r.gave_up)).await;
        let why = if want == 2 { GiveUp::Attempts { tries: 2 } } else { GiveUp::BodyGone };
        assert_ne!(gave_up, None, "{why:?}");
    }
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_twice() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    // takes the request, and goes without a word
    let origin = Origin::new(move |mut s, _| {
        let counted = counted.clone();
        async move {
            let mut seen = Vec::new();
            if read_request(&mut s, &mut seen).await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi").await;
    let (head, _) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("weft-failure: upstream_closed;sent"), "{head}");
    assert_eq!(tries.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn trf_11_timeouts_are_told_apart() {
    let origin = Origin::new(|mut s, _| async move {
        let mut seen = Vec::new();
        read_request(&mut s, &mut seen).await;
        std::future::pending::<()>().await;
    })
    .await;
    let short = Some(Duration::from_millis(30));
    for (timeouts, want) in [
        (Timeouts { request: short, backend: None }, "request_timeout"),
        (Timeouts { request: None, backend: short }, "try_timeout"),
    ] {
        let pair = Pair::with(Protocol::Http, origin.addr, |s| ruled(s, timeouts, RetryPolicy::default()));
        let mut c = Raw::connect(pair.at).await;
        c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let (head, _) = c.response().await;
        assert!(head.starts_with("HTTP/1.1 504 ") && head.contains(&format!("weft-failure: {want};sent")), "{head}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_what_it_asked_for() {
    let gone = Arc::new(tokio::sync::Notify::new());
    let told = gone.clone();
    let origin = Origin::new(move |mut s, _| {
        let told = told.clone();
        async move {
            let mut seen = Vec::new();
            read_request(&mut s, &mut seen).await;
            // the next read ends when the proxy lets go
            read_request(&mut s, &mut seen).await;
            told.notify_one();
        }
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    origin.accepted(1).await;
    c.0.set_zero_linger().unwrap();
    drop(c);
    tokio::time::timeout(Duration::from_secs(10), gone.notified()).await.expect("the origin was not told");
    let kind = pair.web.records.when(|r| r.first().and_then(|r| r.failure)).await;
    assert_eq!(kind, FailureKind::DownstreamClosed);
}

#[tokio::test]
async fn trf_35_no_endpoint_no_route_and_no_backend_are_told_apart() {
    let origin = Origin::answering(OK).await;
    let check = async |pair: &Pair, status: u16, code: &str| {
        let mut c = Raw::connect(pair.at).await;
        c.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let (head, body) = c.response().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains(&format!("weft-failure: {code};not-sent\r\n")), "{head}");
        assert!(body.starts_with(&format!("weft: {code}: ")), "{body}");
    };
    let pair = Pair::with(Protocol::Http, origin.addr, |mut s| {
        s.0.retain(|c, _| !matches!(c, weft_snapshot::fragment::Collection::Endpoints(_)));
        s
    });
    check(&pair, 503, "no_healthy_endpoint").await;
    let pair = Pair::with(Protocol::Http, origin.addr, |mut s| {
        s.0.retain(|c, _| {
            !matches!(
                c,
                weft_snapshot::fragment::Collection::Endpoints(_) | weft_snapshot::fragment::Collection::Service(_)
            )
        });
        s
    });
    // without a document that declares it, a service that nobody serves is not known at all
    check(&pair, 503, "no_healthy_endpoint").await;
    let nowhere = |set: Set, target, weight| {
        let mut set = ruled(set, Timeouts::default(), RetryPolicy::default());
        for f in set.0.values_mut().flat_map(|e| e.values_mut()) {
            if let weft_snapshot::fragment::Fragment::Routes(r) = Arc::make_mut(f) {
                let rule = &mut r.ports.get_mut(&PORT).unwrap().http[0];
                if let Some(target) = &target {
                    rule.backends[0].target = Clone::clone(target);
                }
                rule.backends[0].weight = weight;
            }
        }
        set
    };
    let unresolved = Target::Unresolved { reference: "Service/shop/none".into(), why: "there is none".into() };
    let pair = Pair::with(Protocol::Http, origin.addr, |s| nowhere(s, Some(unresolved), 1));
    check(&pair, 500, "backend_unresolved").await;
    let pair = Pair::with(Protocol::Http, origin.addr, |s| nowhere(s, None, 0));
    check(&pair, 500, "backends_all_zero").await;
    assert_eq!(origin.logged(), "");
}
