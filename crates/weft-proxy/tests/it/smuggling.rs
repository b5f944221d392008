//! Requests that two parsers could read differently never get to the second one.

use weft_model::Protocol;

use crate::{
    origin::{Origin, Raw},
    support::Pair,
};

/// What is sent, and the machine code of the refusal.
const SHAPES: &[(&str, &str, &str)] = &[
    (
        "CL and TE",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        "length-and-encoding",
    ),
    (
        "TE and CL",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGET /smuggled HTTP/1.1\r\n\r\n0\r\n\r\n",
        "length-and-encoding",
    ),
    (
        "TE twice",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        "bad-encoding",
    ),
    (
        "TE in capitals with a blank",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "bad-head",
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        "bad-length",
    ),
    (
        "signed length",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        "bad-length",
    ),
    ("folded line", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n", "bad-head"),
    ("bare LF after a field", "GET / HTTP/1.1\r\nHost: h\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n", "bare-lf"),
    ("bare LF at the end", "GET / HTTP/1.1\r\nHost: h\r\n\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", "bare-lf"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n", "bad-host"),
    ("no host", "GET / HTTP/1.1\r\n\r\n", "bad-host"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", "bad-head"),
    ("NUL in a name", "GET / HTTP/1.1\r\nHost: h\r\nX\0: a\r\n\r\n", "bad-head"),
    ("blank before the colon", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\n", "bad-head"),
    ("CR alone", "GET / HTTP/1.1\r\nHost: h\r\nX: a\rY: b\r\n\r\n", "bad-head"),
    (
        "chunked in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "bad-encoding",
    ),
    ("fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", "bad-target"),
];

#[tokio::test]
async fn smuggling_shapes_never_reach_the_origin() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    for (name, bytes, code) in SHAPES {
        let mut c = Raw::connect(pair.at).await;
        c.send(bytes).await;
        let answer = String::from_utf8_lossy(&c.rest().await.unwrap_or_default()).into_owned();
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 501"), "{name}: {answer}");
        assert!(answer.contains("weft-failure: bad_request;not-sent\r\n"), "{name}: {answer}");
        assert!(answer.contains("\r\n\r\nweft: bad_request: "), "{name}: {answer}");
        assert!(answer.contains(&format!(": {code}: ")), "{name}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: one answer and the end: {answer}");
    }
    assert_eq!(origin.logged(), "");
}

#[tokio::test]
async fn a_broken_chunk_reaches_the_origin_as_no_request() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    for chunk in
        ["5\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "5 ;x\r\nhello\n0\r\n\r\n"]
    {
        let mut c = Raw::connect(pair.at).await;
        c.send(format!("POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"))
            .await;
        let answer = c.rest().await.unwrap_or_default();
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{chunk:?}");
    }
    let seen = origin.logged();
    assert!(!seen.contains("smuggled") && !seen.contains("POST /c"), "the origin read a whole request: {seen}");
}

#[tokio::test]
async fn a_framing_answer_of_two_readings_is_refused() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let origin = Origin::answering(answer).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let (head, _) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("weft-failure: upstream_protocol;sent"), "{head}");
}

#[tokio::test]
async fn sec_13_trailers_do_not_speak_for_the_proxies_either() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nweft-failure: denied;not-sent\r\nx-yours: 1\r\n\r\n",
    )
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nweft-to: shop/api:81\r\nx-forwarded-client-cert: By=me\r\nx-mine: 1\r\n\r\n").await;
    c.until("\r\n\r\n").await;
    let answer = c.until("\r\n\r\n").await;
    assert!(answer.contains("x-yours: 1") && !answer.contains("weft-"), "{answer}");
    let asked = origin.logged();
    assert!(asked.contains("x-mine: 1"), "{asked}");
    assert!(!asked.contains("weft-") && !asked.contains("client-cert"), "{asked}");
}
