use super::*;

fn parsed(text: &str) -> Result<ParsedRequest, HeadError> {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    match end_of_head(&bytes, 0)? {
        Some(n) => request(&bytes.slice(..n)),
        None => panic!("no end of head in {text:?}"),
    }
}

#[test]
fn reads_targets_of_every_form() {
    let check = |line: &str, host: &str, path: &str| {
        let r = parsed(&format!("{line} HTTP/1.1\r\nHost: h:1\r\n\r\n")).unwrap();
        assert_eq!((r.head.host_str(), r.head.path_str()), (host, path), "{line}");
    };
    check("GET /a?b", "h:1", "/a?b");
    check("GET //a", "h:1", "//a");
    check("OPTIONS *", "h:1", "*");
    check("GET http://x:2/p?q", "x:2", "/p?q");
    check("GET http://x", "x", "/");
    check("GET http://x?q", "x", "/?q");
    check("CONNECT y:443", "y:443", "");
}

#[test]
fn refuses_what_has_two_readings() {
    let check = |text: &str, want: HeadError| assert_eq!(parsed(text).unwrap_err(), want, "{text:?}");
    let post = "POST / HTTP/1.1\r\nHost: h\r\n";
    check(&format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"), HeadError::LengthAndEncoding);
    check(&format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), HeadError::LengthAndEncoding);
    check(&format!("{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), HeadError::Length);
    check(&format!("{post}Content-Length: 5, 5\r\n\r\n"), HeadError::Length);
    check(&format!("{post}Content-Length: +5\r\n\r\n"), HeadError::Length);
    check(&format!("{post}Content-Length: \r\n\r\n"), HeadError::Length);
    check(&format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n"), HeadError::Encoding);
    check(&format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"), HeadError::Encoding);
    check(&format!("{post}Transfer-Encoding: xchunked\r\n\r\n"), HeadError::Encoding);
    check("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HeadError::Host);
    check("GET / HTTP/1.1\r\n\r\n", HeadError::Host);
    check("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", HeadError::Host);
    check("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HeadError::Host);
    check("GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", HeadError::Syntax);
    check("GET / HTTP/1.1\r\nHost: h\r\nX : a\r\n\r\n", HeadError::Syntax);
    check("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", HeadError::Syntax);
    check("GET / HTTP/1.1\r\nHost: h\nX: a\r\n\r\n", HeadError::BareLf);
    check("GET / HTTP/1.1\nHost: h\n\n", HeadError::BareLf);
    check("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", HeadError::Target);
    check("GET a HTTP/1.1\r\nHost: h\r\n\r\n", HeadError::Target);
    check("GET * HTTP/1.1\r\nHost: h\r\n\r\n", HeadError::Target);
    check("CONNECT /x HTTP/1.1\r\nHost: h\r\n\r\n", HeadError::Target);
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::Encoding);
}

#[test]
fn limits_are_told_as_431() {
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(MAX_HEAD));
    assert_eq!(parsed(&long).unwrap_err(), HeadError::TooLarge);
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "x: 1\r\n".repeat(MAX_FIELDS));
    assert_eq!(parsed(&many).unwrap_err(), HeadError::TooManyFields);
    assert_eq!(HeadError::TooLarge.status(), 431);
    let fits = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "x: 1\r\n".repeat(MAX_FIELDS - 1));
    assert_eq!(parsed(&fits).unwrap().head.headers.len(), MAX_FIELDS - 1);
}

#[test]
fn connection_fields_stay_on_their_connection() {
    let r = parsed(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, x-mine, TE\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nX-Yours: 2\r\n\r\n",
    )
    .unwrap();
    let mut names: Vec<_> = r.head.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["te", "x-yours"]);
    assert!(!r.keep_alive);
}

#[test]
fn trf_32_an_upgrade_is_asked_for_by_connection() {
    let r = parsed("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(r.head.upgrade.unwrap(), "websocket");
    let r = parsed("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert!(r.head.upgrade.is_none());
}

#[test]
fn sec_24_an_upgrade_that_carries_requests_is_ignored() {
    for protocol in ["h2c", "H2C", "h2", "HTTP/2.0", "TLS/1.0", "websocket, h2c"] {
        let text = format!(
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        );
        let r = parsed(&text).unwrap();
        assert!(r.head.upgrade.is_none() && r.head.headers.is_empty(), "{protocol}: {:?}", r.head);
    }
}

#[test]
fn keep_alive_follows_the_version() {
    let keep = |text: &str| parsed(text).unwrap().keep_alive;
    assert!(keep("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert!(!keep("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
    assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
    assert!(keep("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
}

#[test]
fn responses_are_framed_by_status_and_method() {
    let check = |text: &str, method: Method, want: Result<Framing, HeadError>| {
        let b = Bytes::copy_from_slice(text.as_bytes());
        assert_eq!(response(&b, &method).map(|r| r.framing), want, "{text:?}");
    };
    check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::GET, Ok(Framing::Length(3)));
    check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::HEAD, Ok(Framing::None));
    check("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", Method::GET, Ok(Framing::None));
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Method::GET, Ok(Framing::Chunked));
    check("HTTP/1.0 200 OK\r\n\r\n", Method::GET, Ok(Framing::Close));
    check("HTTP/1.1 200\r\n\r\n", Method::GET, Ok(Framing::Close));
    let both = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
    check(both, Method::GET, Err(HeadError::LengthAndEncoding));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, from in 0..64usize) {
        let _ = end_of_head(&bytes, from.min(bytes.len()));
        let _ = request(&Bytes::from(bytes.clone()));
        let _ = response(&Bytes::from(bytes.clone()), &Method::GET);
        let _ = trailers(&Bytes::from(bytes));
    }

    #[test]
    fn the_end_is_found_in_any_pieces(cut in 0..36usize) {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\nrest";
        let whole = end_of_head(head, 0).unwrap();
        let first = end_of_head(&head[..cut], 0).unwrap();
        let second = end_of_head(head, cut).unwrap();
        proptest::prop_assert_eq!(first.or(second), whole);
    }
}
