//! Clients that name where they want to go (features.md CAP-08).

use std::{net::SocketAddr, time::Duration};

use tokio::io::AsyncReadExt;
use weft_model::Protocol;
use weft_rt::listen::Bind;

use crate::{
    origin::{Origin, Raw},
    support::{Pair, Proxy, Start, web_set},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A second caller, with an explicit listener only.
fn explicit(pair: &Pair) -> (Proxy, SocketAddr) {
    let mut start = Start::new("shop/web").id("1");
    start.explicit = true;
    let proxy = start.start(&pair.ca, web_set(&pair.ca, pair.protocol, pair.mesh(), pair.origin).build(1));
    let at = proxy.sidecar.bound().explicit.unwrap();
    (proxy, at)
}

#[tokio::test]
async fn cap_08_http_proxy_requests_find_their_service() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let (_proxy, at) = explicit(&pair);
    let mut c = Raw::connect(at).await;
    for host in ["api", "api.shop", "api.shop.svc.cluster.local:80"] {
        c.send(format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(c.response().await.1, "ok", "{host}");
    }
    c.send("GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n").await;
    let (head, _) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("weft-failure: unknown_service"), "{head}");
}

#[tokio::test]
async fn cap_08_connect_and_socks5_carry_bytes() {
    let origin = Origin::echo().await;
    let pair = Pair::new(Protocol::Tcp, origin.addr);
    let (_proxy, at) = explicit(&pair);
    let mut c = Raw::connect(at).await;
    c.send("CONNECT api.shop:80 HTTP/1.1\r\nHost: api.shop:80\r\n\r\n").await;
    c.until("HTTP/1.1 200 Connection Established\r\n\r\n").await;
    c.send("hello").await;
    c.until("hello").await;

    let mut s = Raw::connect(at).await;
    s.send([5, 1, 0]).await;
    assert_eq!(s.exactly(2).await, [5, 0]);
    s.send(b"\x05\x01\x00\x03\x08api.shop\x00\x50").await;
    assert_eq!(s.exactly(10).await[..2], [5, 0]);
    s.send("socks").await;
    s.until("socks").await;

    let mut bad = Raw::connect(at).await;
    bad.send(b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50").await;
    assert_eq!(bad.exactly(4).await[2..], [5, 4], "no open proxy");
}

#[tokio::test]
async fn cap_08_an_upstream_may_be_a_unix_socket_of_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let config = weft_proxy::Config {
        workload: crate::support::uid("shop/web", "1"),
        inbound: None,
        upstreams: vec![weft_proxy::Upstream {
            service: "shop/api".parse().unwrap(),
            port: weft_proxy::PortRef::Name("p80".into()),
            listen: Bind::exact(weft_rt::net::Addr::Unix(path.clone())),
            protocol: None,
        }],
        explicit: None,
        workers: 2,
        cluster: "test".into(),
    };
    let sources = weft_proxy::Sources {
        snapshots: pair.web.snapshots.subscribe(),
        credentials: pair.web.credentials.subscribe(),
        sink: std::sync::Arc::new(weft_proxy::NoSink),
        net: std::sync::Arc::new(weft_rt::net::System),
        clock: weft_rt::Clock::real(),
    };
    let sidecar = weft_proxy::Sidecar::start(config, sources).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for _ in 0..4 {
        let mut s = tokio::net::UnixStream::connect(&path).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut s, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut all = String::new();
        tokio::time::timeout(Duration::from_secs(20), s.read_to_string(&mut all)).await.unwrap().unwrap();
        assert!(all.ends_with("ok"), "{all}");
    }
    assert!(origin.logged().contains("host: api.shop\r\n"), "{}", origin.logged());
    assert!(sidecar.stop(Duration::from_secs(5)).await);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_port_in_use_names_its_holder() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let config = weft_proxy::Config {
        workload: crate::support::uid("shop/web", "1"),
        inbound: None,
        upstreams: vec![weft_proxy::Upstream {
            service: "shop/api".parse().unwrap(),
            port: weft_proxy::PortRef::Only,
            listen: Bind::exact(pair.at.into()),
            protocol: None,
        }],
        explicit: None,
        workers: 1,
        cluster: "test".into(),
    };
    let sources = weft_proxy::Sources {
        snapshots: pair.web.snapshots.subscribe(),
        credentials: pair.web.credentials.subscribe(),
        sink: std::sync::Arc::new(weft_proxy::NoSink),
        net: std::sync::Arc::new(weft_rt::net::System),
        clock: weft_rt::Clock::real(),
    };
    let e = weft_proxy::Sidecar::start(config, sources).err().unwrap();
    let told = weft_rt::log::chain(&e).to_string();
    let want =
        format!("cannot listen for upstream shop/api: {} is in use by process {} (`", pair.at, std::process::id());
    assert!(told.starts_with(&want), "{told}");
}
