//! Every answer that a proxy makes itself carries its reason, in a field and in words (features.md OBS-14, TRF-35). Others
//! stand with what they are about: retry.rs and tries.rs (503, 504), policy.rs (403), smuggling.rs (400), mesh.rs (421).

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use weft_model::Protocol;
use weft_snapshot::{
    failure::FailureKind,
    fragment::{Collection, Fragment, RetryPolicy, Timeouts},
};

use crate::{
    http2::{client, post, within},
    origin::{Origin, Raw},
    retry::ruled,
    support::{Pair, Start, web_set},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// One request as bytes; the answer has this status, this field and the same code in its words.
async fn check(at: SocketAddr, request: impl AsRef<[u8]>, status: u16, failure: &str) {
    let mut c = Raw::connect(at).await;
    c.send(request).await;
    let (head, mut body) = c.response().await;
    if head.contains("transfer-encoding: chunked") {
        // it came from the far proxy: one chunk
        body = c.until("\n\r\n0\r\n\r\n").await.lines().nth(1).unwrap().to_owned() + "\n";
    }
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{body}");
    assert!(head.contains(&format!("weft-failure: {failure}\r\n")), "{head}{body}");
    let code = failure.split(';').next().unwrap();
    assert!(body.starts_with(&format!("weft: {code}: ")) && body.ends_with('\n'), "{body}");
}

#[tokio::test]
async fn trf_35_heads_that_cannot_be_read_are_refused_by_kind_on_every_listener() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut start = Start::new("shop/web");
    start.explicit = true;
    let second = start.start(&pair.ca, web_set(&pair.ca, pair.protocol, pair.mesh(), pair.origin).build(1));
    for at in [pair.at, second.sidecar.bound().explicit.unwrap()] {
        let large = "a".repeat(70_000);
        let get = "GET http://api/ HTTP/1.1\r\nHost: api\r\n";
        check(at, format!("{get}X: {large}\r\n\r\n"), 431, "request_head_too_large;not-sent").await;
        check(
            at,
            format!("GET http://api/{large} HTTP/1.1\r\nHost: api\r\n\r\n"),
            431,
            "request_head_too_large;not-sent",
        )
        .await;
        check(at, format!("{get}{}\r\n", "X: 1\r\n".repeat(101)), 431, "request_head_too_large;not-sent").await;
        check(at, format!("{get}X: 1\n\r\n"), 400, "bad_request;not-sent").await;
        check(at, format!("{get}Transfer-Encoding: gzip\r\n\r\n"), 501, "bad_request;not-sent").await;
        check(at, "GET / HTTP/2.3\r\nHost: h\r\n\r\n", 505, "bad_request;not-sent").await;
    }
    let kinds = second.records.when(|r| (r.len() == 6).then(|| r.iter().map(|r| r.failure).collect::<Vec<_>>())).await;
    assert_eq!(
        kinds.iter().filter(|k| **k == Some(FailureKind::BadRequest)).count(),
        3,
        "each has its record: {kinds:?}"
    );
    assert_eq!(origin.logged(), "");
}

#[tokio::test]
async fn trf_35_a_name_that_the_mesh_does_not_know_is_refused_and_recorded() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut start = Start::new("shop/web");
    start.explicit = true;
    let second = start.start(&pair.ca, web_set(&pair.ca, pair.protocol, pair.mesh(), pair.origin).build(1));
    let at = second.sidecar.bound().explicit.unwrap();
    check(at, "GET http://example.com/ HTTP/1.1\r\nHost: x\r\n\r\n", 503, "unknown_service;not-sent").await;
    check(at, "CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 503, "unknown_service;not-sent").await;
    let told = |r: &[weft_proxy::Record]| {
        (r.len() == 2).then(|| r.iter().map(|r| (r.failure, r.http.clone().unwrap().status)).collect::<Vec<_>>())
    };
    assert_eq!(second.records.when(told).await, [(Some(FailureKind::UnknownService), 503); 2]);
}

#[tokio::test]
async fn trf_35_http_2_heads_are_refused_in_our_words_too() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http2, origin.addr);
    let (client, _conn) = client(pair.at).await;
    let large = Request::get("http://api.shop/").header("x", "a".repeat(70_000)).body(()).unwrap();
    let mut many = Request::get("http://api.shop/");
    for i in 0..101 {
        many = many.header(format!("x-{i}"), "1");
    }
    let connect = Request::connect("api.shop:80").body(()).unwrap();
    for (request, status, failure) in [
        (large, 431, "request_head_too_large;not-sent"),
        (many.body(()).unwrap(), 431, "request_head_too_large;not-sent"),
        (connect, 405, "bad_request;not-sent"),
    ] {
        within(async {
            let (answer, _send) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), answer.headers()["weft-failure"].to_str().unwrap()),
                (status, failure)
            );
            let body = answer.into_body().data().await.unwrap().unwrap();
            let code = failure.split(';').next().unwrap();
            assert!(body.starts_with(format!("weft: {code}: ").as_bytes()), "{body:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn trf_35_what_fits_one_proxy_fits_the_next() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    // Host is one of the hundred
    c.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(99))).await;
    assert!(c.response().await.0.starts_with("HTTP/1.1 200 "));
    c.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(65_000))).await;
    assert!(c.response().await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn trf_35_no_route_and_a_loop() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::with(Protocol::Http, origin.addr, |s| {
        let mut s = ruled(s, Timeouts::default(), RetryPolicy::default());
        for f in
            s.0.iter_mut().filter(|(c, _)| matches!(c, Collection::Routes { .. })).flat_map(|(_, e)| e.values_mut())
        {
            if let Fragment::Routes(r) = std::sync::Arc::make_mut(f) {
                r.ports.values_mut().for_each(|p| p.http[0].hosts = vec!["other.example".into()]);
            }
        }
        s
    });
    check(pair.at, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 404, "no_route;not-sent").await;

    // the application is what its own proxy listens at: the way would have no end
    let ca = &pair.ca;
    let api =
        Start::new("shop/api").inbound().start(ca, crate::support::api_set(ca, Protocol::Http, origin.addr).build(1));
    let inbound = api.sidecar.bound().inbound.unwrap();
    api.snapshots.send_replace(crate::support::api_set(ca, Protocol::Http, inbound).build(2));
    api.when_revision(2).await;
    let web =
        Start::new("shop/web").upstream("shop/api").start(ca, web_set(ca, Protocol::Http, inbound, inbound).build(1));
    check(web.sidecar.bound().upstreams[0].tcp().unwrap(), "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 508, "loop;not-sent")
        .await;
}

#[tokio::test]
async fn trf_35_a_grpc_caller_reads_the_reason_in_its_own_terms() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::with(Protocol::Grpc, origin.addr, |mut s| {
        s.0.retain(|c, _| !matches!(c, Collection::Endpoints(_)));
        s
    });
    let (client, _conn) = client(pair.at).await;
    within(async {
        let (answer, mut send) =
            client.clone().ready().await.unwrap().send_request(post("/pkg.S/Unary"), false).unwrap();
        let _ = send.send_data(Bytes::new(), true);
        let answer = answer.await.unwrap();
        let said = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((answer.status().as_u16(), &*said("grpc-status")), (200, "14"));
        assert_eq!(said("weft-failure"), "no_healthy_endpoint;not-sent");
        assert!(said("grpc-message").starts_with("weft: no_healthy_endpoint: "), "{answer:?}");
        assert!(answer.body().is_end_stream(), "trailers only");
    })
    .await;
}

/// Takes as long as a slow head may.
#[tokio::test]
async fn e2e_trf_35_a_head_that_does_not_end_is_told_so() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost:").await;
    let answer = tokio::time::timeout(std::time::Duration::from_secs(45), async {
        let mut all = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut c.0, &mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    });
    let answer = answer.await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && answer.contains("weft-failure: downstream_idle;not-sent\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\r\n\r\nweft: downstream_idle: "), "{answer}");
    let failure = pair.web.records.when(|r| r.first().map(|r| r.failure)).await;
    assert_eq!(failure, Some(FailureKind::DownstreamIdle));
}
