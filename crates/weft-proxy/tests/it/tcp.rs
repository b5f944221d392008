//! Byte streams: half-close, reset, who speaks first (features.md L4T-01, L4T-03, L4T-04).

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use weft_model::Protocol;
use weft_snapshot::{
    decision::Route,
    fragment::{Backend, PortRoutes, Routes, Target, TcpRule},
};

use crate::{
    origin::{Origin, Raw},
    support::{PORT, Pair, endpoint},
};

#[tokio::test]
async fn l4t_03_bytes_and_half_closes_go_through() {
    for protocol in [Protocol::Tcp, Protocol::Undeclared] {
        let origin = Origin::echo().await;
        let pair = Pair::new(protocol, origin.addr);
        let mut c = Raw::connect(pair.at).await;
        let big = vec![b'x'; 5_000_000];
        let (mut r, mut w) = c.0.split();
        let write = async {
            w.write_all(&big).await.unwrap();
            w.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut r, &mut got);
        let ((), n) = tokio::join!(write, read);
        assert_eq!(n.unwrap(), big.len(), "{protocol}");
        let (rx, tx) = pair.web.records.when(|r| r.first().map(|r| (r.rx, r.tx))).await;
        assert_eq!((rx, tx), (5_000_000, 5_000_000), "{protocol}");
    }
}

#[tokio::test]
async fn l4t_04_a_server_that_speaks_first_is_heard_at_once() {
    let origin = Origin::new(|mut s, _| async move {
        s.write_all(b"220 ready\r\n").await.unwrap();
        let (mut r, mut w) = s.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    for protocol in [Protocol::Undeclared, Protocol::Tcp] {
        let pair = Pair::new(protocol, origin.addr);
        for _ in 0..2 {
            let mut c = Raw::connect(pair.at).await;
            // the client says nothing until it is greeted; a wait for its bytes would be an hour
            let greeting = tokio::time::timeout(Duration::from_secs(5), c.until("220 ready\r\n")).await;
            assert!(greeting.is_ok(), "{protocol}");
            c.send("EHLO").await;
            c.until("EHLO").await;
        }
    }
}

#[tokio::test]
async fn l4t_04_http_on_an_undeclared_port_is_found_and_treated_as_such() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let pair = Pair::new(Protocol::Undeclared, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(c.response().await.1, "ok");
    let status = pair.api.records.when(|r| r.iter().find_map(|r| Some(r.http.as_ref()?.status))).await;
    assert_eq!(status, 200, "the far side saw a request too");
}

#[tokio::test]
async fn l4t_04_an_l7_rule_on_a_port_that_is_not_http_denies() {
    use weft_snapshot::fragment::{Action, Operation, Policy, Rule, StringMatch, Values};
    let origin = Origin::echo().await;
    let pair = Pair::new(Protocol::Undeclared, origin.addr);
    let mut i = crate::support::allow_all("shop/api", "1");
    let methods = Values { any: vec![StringMatch::Exact("GET".into())], none: Vec::new() };
    i.policies.push(Policy {
        origin: "AuthorizationPolicy/shop/get-only".parse().unwrap(),
        action: Action::Allow,
        rules: vec![Rule { to: vec![Operation { methods, ..Operation::default() }], ..Rule::default() }],
    });
    pair.set_policy(2, i);
    pair.api.when_revision(2).await;
    let mut c = Raw::connect(pair.at).await;
    c.send("\x01\x02binary\r\n").await;
    assert!(c.rest().await.is_err(), "a refused stream is reset");
    let kind = pair.api.records.when(|r| r.iter().find_map(|r| r.failure)).await;
    assert_eq!(kind, weft_snapshot::failure::FailureKind::NotHttp);
}

#[tokio::test]
async fn l4t_01_tcp_routes_choose_a_backend_per_connection() {
    let speaking = |word: &'static str| {
        Origin::new(move |mut s, _| async move {
            s.write_all(word.as_bytes()).await.unwrap();
            let _ = s.shutdown().await;
        })
    };
    let (one, two) = (speaking("one").await, speaking("two").await);
    let pair = Pair::with(Protocol::Tcp, one.addr, |set| {
        let ca = crate::support::Authority::new("mesh.test");
        let to = |service: &str, weight| Backend {
            target: Target::Service { key: service.parse().unwrap(), port: PORT, subset: Default::default() },
            weight,
            filters: Vec::new(),
        };
        let rule = TcpRule {
            origin: "TCPRoute/shop/split#rule-0".parse().unwrap(),
            backends: vec![to("shop/api", 0), to("shop/plain", 1)],
        };
        let routes = Routes {
            service: "shop/api".parse().unwrap(),
            consumer: "shop".parse().unwrap(),
            ports: [(PORT, PortRoutes { http: Vec::new(), tcp: vec![rule] })].into(),
        };
        set.service("shop/plain", &[(PORT, Protocol::Tcp)])
            .endpoint("shop/plain", endpoint(&ca, "shop/plain", "1", None, &[(PORT, two.addr)]))
            .routes(routes)
    });
    let mut c = Raw::connect(pair.at).await;
    assert_eq!(c.rest().await.unwrap(), b"two");
    drop(c);
    let route = pair.web.records.when(|r| r.first().map(|r| r.route.clone())).await;
    assert!(matches!(route, Route::Rule(r) if r.to_string() == "TCPRoute/shop/split#rule-0"));
}

#[tokio::test]
async fn a_reset_of_the_application_reaches_the_client_as_a_reset() {
    let origin = Origin::new(|mut s, _| async move {
        s.write_all(b"part").await.unwrap();
        tokio::io::AsyncReadExt::read_u8(&mut s).await.unwrap();
        s.set_zero_linger().unwrap();
    })
    .await;
    let pair = Pair::new(Protocol::Tcp, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.until("part").await;
    c.send("x").await;
    assert_eq!(c.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn nobody_there_is_a_reset_not_an_empty_answer() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pair = Pair::new(Protocol::Tcp, closed);
    let mut c = Raw::connect(pair.at).await;
    assert!(c.rest().await.is_err());
    let kind = pair.web.records.when(|r| r.first().and_then(|r| r.failure)).await;
    assert_eq!(kind, weft_snapshot::failure::FailureKind::RetriesExhausted);
    let tries = pair.web.records.when(|r| r.first().map(|r| r.tries.clone())).await;
    assert_eq!(tries.len(), 3);
    assert!(
        tries.iter().all(|t| t.failure == Some(weft_snapshot::failure::FailureKind::AppConnectFailed)),
        "what each try met: {tries:?}"
    );
}
