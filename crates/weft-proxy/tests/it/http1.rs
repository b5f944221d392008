//! HTTP/1 applications on both sides, HTTP/2 between (features.md TRF-34, TRF-32).

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};
use weft_model::Protocol;

use crate::{
    origin::{Origin, Raw, read_request},
    support::Pair,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Kept: yes\r\n\r\nhello";

#[tokio::test]
async fn trf_34_a_request_goes_through_the_pair_and_the_connection_stays() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    for _ in 0..3 {
        c.send(format!("GET /a?b=c HTTP/1.1\r\nHost: {}\r\nX-Sent: 1\r\nWeft-To: evil\r\n\r\n", pair.at)).await;
        let (head, body) = c.response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("x-kept: yes\r\n"), "{head}");
        assert_eq!(body, "hello");
    }
    let seen = origin.logged();
    assert_eq!(seen.matches("GET /a?b=c HTTP/1.1\r\n").count(), 3, "{seen}");
    assert_eq!(seen.matches("host: api.shop\r\n").count(), 3, "a host that names the listener is rewritten: {seen}");
    assert_eq!(seen.matches("x-sent: 1\r\n").count(), 3, "{seen}");
    assert_eq!(seen.matches("x-request-id: ").count(), 3, "{seen}");
    assert!(!seen.contains("weft-"), "{seen}");
}

#[tokio::test]
async fn trf_34_host_and_absolute_targets_are_restored() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: Shop.Example:8080\r\nX-Request-Id: mine\r\n\r\n").await;
    c.response().await;
    c.send("GET http://other.example/x HTTP/1.1\r\nHost: ignored\r\n\r\n").await;
    c.response().await;
    let seen = origin.logged();
    assert!(seen.contains("host: Shop.Example:8080\r\n"), "{seen}");
    assert!(seen.contains("x-request-id: mine\r\n"), "{seen}");
    assert!(seen.contains("GET http://other.example/x HTTP/1.1\r\nhost: other.example\r\n"), "{seen}");
}

#[tokio::test]
async fn trf_34_http_1_0_is_spoken_to_those_who_speak_it() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET /old HTTP/1.0\r\n\r\n").await;
    let all = String::from_utf8(c.rest().await.unwrap()).unwrap();
    assert!(all.ends_with("\r\n\r\nabc") && !all.contains("chunked"), "{all}");
    assert!(origin.logged().starts_with("GET /old HTTP/1.0\r\n"), "{}", origin.logged());
}

#[tokio::test]
async fn trf_34_head_and_bodiless_answers_keep_their_length_and_the_connection() {
    let origin = Origin::new(|mut s, _| async move {
        let mut seen = Vec::new();
        while let Some(r) = read_request(&mut s, &mut seen).await {
            let answer = if r.starts_with(b"HEAD") {
                "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"
            } else if r.starts_with(b"DELETE") {
                "HTTP/1.1 204 No Content\r\n\r\n"
            } else {
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"
            };
            s.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    for (method, want) in
        [("HEAD", "content-length: 7\r\n"), ("GET", "content-length: 9\r\n"), ("DELETE", "204 No Content")]
    {
        c.send(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let head = c.until("\r\n\r\n").await;
        assert!(head.contains(want), "{method}: {head}");
    }
    assert!(c.1.is_empty());
}

/// Reads everything, answers with the same body.
async fn echoing() -> Origin {
    Origin::new(|mut s, _| async move {
        let mut seen = Vec::new();
        let mut head_end = None;
        let mut b = vec![0; 65536];
        loop {
            if head_end.is_none() {
                head_end = seen.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4);
            }
            if let Some(end) = head_end {
                let head = String::from_utf8_lossy(&seen[..end]).into_owned();
                let n: usize = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap();
                if seen.len() >= end + n {
                    s.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n").as_bytes()).await.unwrap();
                    s.write_all(&seen[end..end + n]).await.unwrap();
                    return;
                }
            }
            match s.read(&mut b).await {
                Ok(0) | Err(_) => return,
                Ok(n) => seen.extend_from_slice(&b[..n]),
            }
        }
    })
    .await
}

#[tokio::test]
async fn trf_34_large_bodies_go_both_ways_unchanged() {
    let origin = echoing().await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let body: Vec<u8> = (0..3_000_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut c = Raw::connect(pair.at).await;
    c.send(format!("POST /big HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    c.send(&body).await;
    let head = c.until("\r\n\r\n").await;
    assert!(head.contains("content-length: 3000000\r\n"), "{head}");
    assert!(c.exactly(body.len()).await == body, "the echo differs");
    let sent = pair.web.records.when(|r| r.first().map(|r| r.tx)).await;
    assert_eq!(sent, 3_000_000);
}

#[tokio::test]
async fn trf_34_chunks_and_trailers_go_both_ways() {
    let answer =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n";
    let origin = Origin::answering(answer).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("POST /t HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    c.send("5\r\nhello\r\n0\r\nX-Mine: 9\r\n\r\n").await;
    let head = c.until("\r\n\r\n").await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let body = c.until("\r\n\r\n").await;
    assert!(body.contains("abc\r\n0\r\nx-sum: 7\r\n\r\n"), "{body}");
    let seen = origin.logged();
    assert!(seen.contains("hello\r\n0\r\nx-mine: 9\r\n\r\n"), "{seen}");
    assert!(seen.contains("connection: te\r\n") && seen.contains("te: trailers\r\n"), "{seen}");
}

#[tokio::test]
async fn trf_34_expect_continue_is_answered_by_the_origin() {
    let origin = Origin::new(|mut s, log| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(s.read_u8().await.unwrap());
        }
        log.lock().unwrap().extend_from_slice(&head);
        s.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 4];
        s.read_exact(&mut body).await.unwrap();
        log.lock().unwrap().extend_from_slice(&body);
        s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let hints = c.until("\r\n\r\n").await;
    assert!(hints.starts_with("HTTP/1.1 103 ") && hints.contains("link: </a>"), "{hints}");
    let go = c.until("\r\n\r\n").await;
    assert!(go.starts_with("HTTP/1.1 100 Continue\r\n"), "{go}");
    assert!(!origin.logged().contains("body"));
    c.send("body").await;
    assert!(c.until("\r\n\r\n").await.starts_with("HTTP/1.1 200 OK\r\n"));
    let seen = origin.logged();
    assert!(seen.contains("expect: 100-continue\r\n") && seen.ends_with("body"), "{seen}");
}

#[tokio::test]
async fn trf_34_a_refusal_instead_of_continue_ends_the_connection() {
    let origin = Origin::new(|mut s, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(s.read_u8().await.unwrap());
        }
        s.write_all(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        let _ = s.read_u8().await;
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let (head, body) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 417 "), "{head}");
    assert_eq!(body, "no");
    c.0.shutdown().await.unwrap();
    assert!(c.rest().await.unwrap().is_empty());
}

#[tokio::test]
async fn trf_34_connection_close_is_kept() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    let all = String::from_utf8(c.rest().await.unwrap()).unwrap();
    assert!(all.contains("connection: close\r\n") && all.ends_with("hello"), "{all}");
}

#[tokio::test]
async fn trf_34_pipelined_requests_are_answered_in_order() {
    let origin = Origin::new(|mut s, _| async move {
        let mut seen = Vec::new();
        while let Some(r) = read_request(&mut s, &mut seen).await {
            let path = String::from_utf8_lossy(&r).split(' ').nth(1).unwrap().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
            s.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n")
        .await;
    for want in ["/1", "/2", "/3"] {
        assert_eq!(c.response().await.1, want);
    }
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answer() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    c.0.shutdown().await.unwrap();
    let all = String::from_utf8(c.rest().await.unwrap()).unwrap();
    assert!(all.ends_with("hello"), "{all}");
}

#[tokio::test]
async fn a_reset_upstream_never_looks_like_a_clean_end() {
    let cut = Arc::new(Semaphore::new(0));
    let gate = cut.clone();
    let origin = Origin::new(move |mut s, _| {
        let gate = gate.clone();
        async move {
            let mut seen = Vec::new();
            let r = read_request(&mut s, &mut seen).await.unwrap();
            let part: &[u8] = if r.starts_with(b"GET /chunked") {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
            } else {
                b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"
            };
            s.write_all(part).await.unwrap();
            // ends when the client has the part: before, nothing was answered yet and the caller would be told so
            gate.acquire().await.unwrap().forget();
        }
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    for (path, version) in [("/chunked", "1.1"), ("/length", "1.1"), ("/chunked", "1.0")] {
        let mut c = Raw::connect(pair.at).await;
        c.send(format!("GET {path} HTTP/{version}\r\nHost: h\r\n\r\n")).await;
        c.until("abc").await;
        cut.add_permits(1);
        let e = c.rest().await.expect_err("looked complete");
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{path} {version}");
    }
}

#[tokio::test]
async fn trf_32_a_websocket_is_carried_as_bytes_both_ways() {
    let origin = Origin::new(|mut s, log| async move {
        let mut seen = Vec::new();
        let r = read_request(&mut s, &mut seen).await.unwrap();
        log.lock().unwrap().extend_from_slice(&r);
        s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nwelcome").await.unwrap();
        let (mut r, mut w) = s.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
        let _ = w.shutdown().await;
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send(
        "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly",
    )
    .await;
    let head = c.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains("upgrade: websocket\r\n") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    c.until("welcomeearly").await;
    c.send("frame").await;
    c.until("frame").await;
    c.0.shutdown().await.unwrap();
    assert!(c.rest().await.unwrap().is_empty());
    let seen = origin.logged();
    assert!(seen.contains("upgrade: websocket\r\n") && seen.contains("sec-websocket-key: k\r\n"), "{seen}");
    assert!(!seen.contains("weft-"), "{seen}");
}

#[tokio::test]
async fn trf_32_a_refused_upgrade_is_an_ordinary_answer() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let (head, body) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(body, "hello");
}

#[tokio::test]
async fn trf_35_oversized_heads_are_told() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(70_000))).await;
    let (head, body) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    assert!(head.contains("weft-failure: request_head_too_large;not-sent\r\n"), "{head}");
    assert_eq!(
        body,
        "weft: request_head_too_large: the request's header is too large: head-too-large: head is larger than 65536 bytes\n"
    );
    assert_eq!(origin.logged(), "");

    let big: &'static str = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(70_000)).leak();
    let origin = Origin::answering(big).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let (head, _) = c.response().await;
    assert!(
        head.starts_with("HTTP/1.1 502 ") && head.contains("weft-failure: response_head_too_large;sent\r\n"),
        "{head}"
    );
}
