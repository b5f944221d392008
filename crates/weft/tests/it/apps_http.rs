//! HTTP/1.1 as clients and servers really speak it, byte by byte: upgrades, trailers, expectations, broken and hostile ones.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::mesh::{Mesh, connect, eventually, get, serve, serve_tcp, text};

pub fn head(io: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if io.read_line(&mut head).unwrap_or(0) == 0 {
            break;
        }
    }
    head
}

pub fn dial(at: SocketAddr, request: &str) -> BufReader<TcpStream> {
    // a sidecar that was just started listens in a moment
    let mut io = eventually("somebody listens", || connect(at));
    io.write_all(request.as_bytes()).unwrap();
    BufReader::new(io)
}

// === what must arrive ===

#[test]
fn e2e_trf_32_a_websocket_is_idle_and_then_active_again() {
    let mesh = Mesh::start();
    let origin = serve_tcp(|io| {
        let mut io = BufReader::new(io);
        let asked = head(&mut io).to_ascii_lowercase();
        if !asked.contains("upgrade: websocket\r\n")
            || !asked.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n")
        {
            return;
        }
        let said = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x01\x00";
        io.get_mut().write_all(said.as_bytes()).unwrap();
        // unmasked echoes of small masked frames
        loop {
            let mut frame = [0; 6];
            if io.read_exact(&mut frame).is_err() {
                return;
            }
            let mut payload = vec![0; (frame[1] & 0x7f).into()];
            io.read_exact(&mut payload).unwrap();
            payload.iter_mut().zip(frame[2..].iter().cycle()).for_each(|(b, mask)| *b ^= mask);
            let mut echo = vec![frame[0], frame[1] & 0x7f];
            echo.append(&mut payload);
            io.get_mut().write_all(&echo).unwrap();
            if frame[0] == 0x88 {
                return;
            }
        }
    });
    let (_api, web) = mesh.pair("http", origin);
    let mut io = dial(
        web.upstreams[0],
        "GET /chat HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let answer = head(&mut io).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 ") && answer.contains("upgrade: websocket\r\n"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{answer}");
    let mut first = [0; 2];
    io.read_exact(&mut first).unwrap();
    assert_eq!(first, [1, 0], "what came with the answer's head is not lost");
    let mut talk = |kind: u8, said: &[u8]| {
        let mask = [7, 77, 177, 201];
        let mut frame = vec![kind, 0x80 | said.len() as u8];
        frame.extend(mask);
        frame.extend(said.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        io.get_mut().write_all(&frame).unwrap();
        let mut back = vec![0; 2 + said.len()];
        io.read_exact(&mut back).unwrap();
        assert_eq!(back[2..], *said);
    };
    talk(0x81, b"hello");
    std::thread::sleep(Duration::from_secs(3));
    talk(0x81, b"still here");
    talk(0x82, &[0, 255, 10, 13]);
    talk(0x88, &[3, 232]);
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn e2e_trf_34_trailers_and_expectations_survive() {
    let mesh = Mesh::start();
    let (seen, log) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(String::new())));
    let (s, l) = (seen.clone(), log.clone());
    let origin = serve_tcp(move |io| {
        let mut io = BufReader::new(io);
        loop {
            let asked = head(&mut io).to_ascii_lowercase();
            if asked.is_empty() {
                return;
            }
            *l.lock().unwrap() += &asked;
            if asked.starts_with("put /refused") {
                io.get_mut().write_all(b"HTTP/1.1 417 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                return;
            }
            if asked.contains("expect: 100-continue") {
                io.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            }
            if asked.contains("transfer-encoding: chunked") {
                let mut body = String::new();
                while !body.ends_with("\r\n\r\n") {
                    io.read_line(&mut body).unwrap();
                }
                *s.lock().unwrap() += &body;
            } else if asked.contains("content-length: 5") {
                io.read_exact(&mut [0; 5]).unwrap();
            }
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n";
            io.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    let (_api, web) = mesh.pair("http", origin);
    let at = web.upstreams[0];
    let mut io = dial(
        at,
        "POST /t HTTP/1.1\r\nHost: api\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-md5\r\n\r\n3\r\nabc\r\n0\r\nx-md5: 99\r\n\r\n",
    );
    let answer = head(&mut io).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200 ") && answer.contains("transfer-encoding: chunked"), "{answer}");
    let mut body = String::new();
    while !body.ends_with("\r\n\r\n") {
        io.read_line(&mut body).unwrap();
    }
    assert!(body.contains("hello") && body.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{body:?}");
    let sent = seen.lock().unwrap().clone();
    assert!(sent.contains("abc") && sent.ends_with("0\r\nx-md5: 99\r\n\r\n"), "the request's trailers: {sent:?}");

    // the body is sent only when the origin, not a proxy, says so
    let mut io = dial(at, "PUT /e HTTP/1.1\r\nHost: api\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let interim = head(&mut io);
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    assert!(log.lock().unwrap().contains("put /e http/1.1\r\n"), "it came from the origin");
    io.get_mut().write_all(b"12345").unwrap();
    let answer = head(&mut io);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut io = dial(at, "PUT /refused HTTP/1.1\r\nHost: api\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let answer = head(&mut io);
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
}

#[test]
fn e2e_trf_34_a_long_body_is_tried_once_and_an_unsent_one_elsewhere() {
    let mesh = Mesh::start();
    let attempts = Arc::new(AtomicUsize::new(0));
    // both instances read 100 KiB of a body and then break
    let breaking = || {
        let attempts = attempts.clone();
        serve_tcp(move |io| {
            let mut io = BufReader::new(io);
            let asked = head(&mut io);
            if asked.starts_with("POST /long") {
                attempts.fetch_add(1, Ordering::Relaxed);
                let _ = io.read_exact(&mut vec![0; 100 * 1024]);
            }
        })
    };
    let _one = mesh.sidecar("api", Some(&format!("http=80:{}", breaking().port())), &[]);
    let _two = mesh.sidecar("api", Some(&format!("http=80:{}", breaking().port())), &[]);
    let web = mesh.sidecar("web", None, &["api", "other"]);
    mesh.until_passing("api", 2);
    mesh.until_synced(&[&web]);
    let mut io = connect(web.upstreams[0]).unwrap();
    let length = 400 * 1024;
    io.write_all(format!("POST /long HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n").as_bytes()).unwrap();
    let _ = io.write_all(&vec![b'x'; length]); // its end may not be taken any more
    let mut io = BufReader::new(io);
    let answer = head(&mut io).to_ascii_lowercase();
    assert!(
        answer.starts_with("http/1.1 50") && answer.contains("weft-failure: ") && answer.contains(";sent\r\n"),
        "{answer}"
    );
    assert_eq!(attempts.load(Ordering::Relaxed), 1);

    // of two sidecars one is killed: what was never sent goes to the other one, every time
    let origin = serve(|head, body| (200, format!("{head} {}", body.len())));
    let good = mesh.sidecar("other", Some(&format!("http=80:{}", origin.port())), &[]);
    let mut dead = mesh.sidecar("other", Some(&format!("http=80:{}", origin.port())), &[]);
    mesh.until_passing("other", 2);
    mesh.until_synced(&[&web]);
    dead.child.kill().unwrap();
    dead.child.wait().unwrap();
    for _ in 0..20 {
        let reply = crate::mesh::request(web.upstreams[1], "POST", "/short", &[], &[b'x'; 60_000]).unwrap();
        assert_eq!((reply.status, reply.text()), (200, "POST /short 60000".into()), "{}", good.log());
    }
}

// === what must not arrive ===

/// Heads and bodies that two parsers could read differently.
const SHAPES: &[&str] = &[
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGET /smuggled HTTP/1.1\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nX: a\r\n\tContent-Length: 5\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 40\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 1e1\r\n\r\n0123456789",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n",
    "GET /bad HTTP/1.1\nHost: h\n\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\nX: a\rY: b\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h, evil\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h/evil\r\n\r\n",
    "GET /bad HTTP/1.1\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\nX\0: a\r\n\r\n",
    "GET /b\0ad HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /bad\t HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\n: empty\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: h\r\n\x7f: a\r\n\r\n",
    "GET /bad HTTP/9.9\r\nHost: h\r\n\r\n",
    "GET /bad HTTP/1.1 \r\nHost: h\r\n\r\n",
    "GET /bad HTTP/1.1 GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /bad#fragment HTTP/1.1\r\nHost: h\r\n\r\n",
    "G(T /bad HTTP/1.1\r\nHost: h\r\n\r\n",
    "POST /bad HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "POST /bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
];

/// Odd, but of one meaning only: exactly one request comes out of each.
const ODD: &[&str] = &[
    "\r\nGET /odd HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "POST /odd HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "POST /odd HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\n\r\n",
    "POST /odd HTTP/1.1\r\nHost: h\r\nConnection: close, content-length\r\nContent-Length: 5\r\n\r\nhello",
    "GET /odd HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
];

#[test]
fn e2e_smuggling_shapes_are_nothing_or_one_request() {
    let mesh = Mesh::start();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    // logs bytes and answers each head that it sees, wherever it stands
    let origin = serve_tcp(move |mut io| {
        let mut buf = [0; 16384];
        let mut all = Vec::new();
        while let Ok(n @ 1..) = io.read(&mut buf) {
            seen.lock().unwrap().extend_from_slice(&buf[..n]);
            let before = text(&all).matches(" HTTP/1.").count();
            all.extend_from_slice(&buf[..n]);
            for _ in before..text(&all).matches(" HTTP/1.").count() {
                let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        }
    });
    for (service, port) in [("api", format!("http=80:{}", origin.port())), ("guess", format!("81:{}", origin.port()))] {
        let _api = mesh.sidecar(service, Some(&port), &[]);
        let web = mesh.sidecar("web", None, &[&format!("{service}/http")]);
        mesh.until_passing(service, 1);
        mesh.until_answers(&web, 200);
        let send = |shape: &str| {
            log.lock().unwrap().clear();
            let mut io = connect(web.upstreams[0]).unwrap();
            let _ = io.write_all(shape.as_bytes());
            // a second request that is there already: a parser that was fooled would answer it, or hide it
            let _ = io.write_all(b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n");
            let _ = io.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = io.read_to_end(&mut answer);
            std::thread::sleep(Duration::from_millis(20));
            (text(&answer), text(&log.lock().unwrap()))
        };
        for shape in SHAPES {
            let (answer, origin) = send(shape);
            assert!(!origin.contains("smuggled") && !origin.contains("/second"), "{shape:?}: {origin:?}");
            assert!(origin.matches(" HTTP/1.").count() <= 1, "{shape:?}: {origin:?}");
            assert!(!answer.contains(" 200 ") || origin.is_empty(), "{shape:?}: {answer:?}");
            assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{shape:?}: one answer at most: {answer:?}");
        }
        for shape in ODD {
            let (answer, origin) = send(shape);
            assert!(!origin.contains("smuggled") && !origin.contains("/second"), "{shape:?}: {origin:?}");
            let requests = origin.matches(" HTTP/1.").count();
            assert!(requests <= 1 && (requests == 1) == answer.contains(" 200 "), "{shape:?}: {origin:?} {answer:?}");
        }
        // and the pair still works
        assert_eq!(get(web.upstreams[0], "/", &[]).unwrap().status, 200);
    }
}
