//! Ending gently (features.md OPS-12), and identities that are replaced under live connections.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use weft_model::Protocol;
use weft_proxy::Credentials;

use crate::{
    origin::{Origin, Raw, read_request},
    support::Pair,
};

/// Answers when it is told to.
/// Its requests so far are counted.
async fn holding() -> (Origin, Arc<Semaphore>, watch::Receiver<usize>) {
    let go = Arc::new(Semaphore::new(0));
    let (count, requests) = watch::channel(0);
    let (gate, count) = (go.clone(), Arc::new(count));
    let origin = Origin::new(move |mut s, _| {
        let (gate, count) = (gate.clone(), count.clone());
        async move {
            let mut seen = Vec::new();
            while read_request(&mut s, &mut seen).await.is_some() {
                count.send_modify(|n| *n += 1);
                gate.acquire().await.unwrap().forget();
                s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    (origin, go, requests)
}

#[tokio::test]
async fn ops_12_a_drain_lets_what_is_in_flight_end() {
    let (origin, go, mut requests) = holding().await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    requests.wait_for(|n| *n == 1).await.unwrap();
    let api = pair.api.sidecar.clone();
    let mut drain = JoinSet::new();
    drain.spawn(async move { api.drain_inbound(Duration::from_secs(15)).await });
    // nothing new is taken: the listener is closed when the drain has begun
    while tokio::net::TcpStream::connect(pair.mesh()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(drain.try_join_next().is_none());
    go.add_permits(1);
    assert_eq!(c.response().await.1, "ok");
    assert!(drain.join_next().await.unwrap().unwrap(), "in time");
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let (head, _) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains(";not-sent"), "{head}");
}

#[tokio::test]
async fn ops_12_a_drain_says_connection_close_and_a_deadline_ends_it() {
    let (origin, go, mut requests) = holding().await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut idle = Raw::connect(pair.at).await;
    idle.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    go.add_permits(1);
    idle.response().await;
    let mut busy = Raw::connect(pair.at).await;
    busy.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    requests.wait_for(|n| *n == 2).await.unwrap();
    let web = pair.web.sidecar.clone();
    let mut stop = JoinSet::new();
    stop.spawn(async move { web.stop(Duration::from_millis(300)).await });
    assert!(idle.rest().await.unwrap().is_empty(), "an idle connection ends cleanly");
    assert!(!stop.join_next().await.unwrap().unwrap(), "the busy one was not in time");
    assert!(busy.rest().await.is_err(), "and is no clean end");
}

#[tokio::test]
async fn identities_are_replaced_under_live_connections() {
    let origin = Origin::echo().await;
    let pair = Pair::new(Protocol::Tcp, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("before").await;
    c.until("before").await;
    let first = pair.api.records.handshakes();
    for (proxy, service) in [(&pair.web, "shop/web"), (&pair.api, "shop/api")] {
        let svid = pair.ca.svid(service, Duration::from_secs(3600));
        let trust = pair.ca.trust();
        proxy.credentials.send_replace(Some(Arc::new(Credentials { svid, trust })));
    }
    c.send("after").await;
    c.until("after").await;
    // a new connection shakes hands with the new identity
    loop {
        let mut d = Raw::connect(pair.at).await;
        d.send("new").await;
        d.until("new").await;
        if pair.api.records.handshakes() > first {
            break;
        }
    }
    c.send("still").await;
    c.until("still").await;
}

#[tokio::test]
async fn an_expired_identity_refuses_by_name() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let expired = Credentials { svid: pair.ca.svid("shop/web", Duration::ZERO), trust: pair.ca.trust() };
    pair.web.credentials.send_replace(Some(Arc::new(expired)));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let mut c = Raw::connect(pair.at).await;
        c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let (head, body) = c.response().await;
        if head.starts_with("HTTP/1.1 503 ") {
            assert!(head.contains("weft-failure: identity_expired;not-sent"), "{head}");
            assert!(body.contains("SVID of spiffe://mesh.test/ns/shop/sa/web expired at "), "{body}");
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "still served: {head}");
    }
}
