//! An upstream that breaks off never looks like a clean end, whatever the protocol and whoever breaks: the application
//! resets, it is killed, the sidecar before it is killed.

use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use crate::{
    apps_http::{dial, head},
    h2c::{Client, serve_h2},
    mesh::{Mesh, connect, free_port, get, serve_tcp, text, write},
};

/// Heads, and the part of a body that comes. Of the last the end is the connection's: a reset alone tells.
const ANSWERS: [(&str, &str); 4] = [
    ("content-length", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"),
    ("chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ("inside a chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhalf"),
    ("until close", "HTTP/1.1 200 OK\r\n\r\nhalf"),
];

/// Opens when the client has what was sent: before, it would be answered with an error.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_one();
    }

    fn wait(&self) {
        let mut open = self.0.1.wait_while(self.0.0.lock().unwrap(), |n| *n == 0).unwrap();
        *open -= 1;
    }
}

/// Closes with a reset, whatever was read.
fn reset(io: TcpStream) {
    io.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async { tokio::net::TcpStream::from_std(io).unwrap().set_zero_linger().unwrap() });
}

/// Answers `GET /N` with the Nth answer and then does what `end` says.
fn serve_part(end: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    serve_tcp(move |io| {
        let mut io = BufReader::new(io);
        let asked = head(&mut io);
        let n = asked.split_once("GET /").and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok());
        let Some((_, answer)) = n.and_then(|n| ANSWERS.get(n)) else { return };
        io.get_mut().write_all(answer.as_bytes()).unwrap();
        end(io.into_inner());
    })
}

/// Asks and reads until half of the body is there.
fn half(at: SocketAddr, n: usize, version: &str) -> BufReader<TcpStream> {
    let mut io = dial(at, &format!("GET /{n} HTTP/{version}\r\nHost: api\r\n\r\n"));
    let answer = head(&mut io);
    assert!(answer.contains(" 200 "), "{}: {answer}", ANSWERS[n].0);
    let mut body = Vec::new();
    while !text(&body).contains("half") {
        let mut byte = [0];
        io.read_exact(&mut byte).unwrap();
        body.push(byte[0]);
    }
    io
}

/// It ends, and by a reset: nothing else tells a client of HTTP/1.0 or of bytes.
fn is_cut(what: &str, io: &mut impl std::io::Read) {
    let mut rest = Vec::new();
    let end = io.read_to_end(&mut rest).map_err(|e| e.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "{what}: {:?}", text(&rest));
    assert!(!text(&rest).contains("0\r\n\r\n"), "{what}: {:?}", text(&rest));
}

/// The first so many answers, each broken off by `end` when the client has half of its body, in both versions.
fn are_cut(answers: usize, end: impl Fn(TcpStream) + Send + Sync + 'static) {
    let mesh = Mesh::start();
    let gate = Gate::default();
    let its = gate.clone();
    let origin = serve_part(move |io| {
        its.wait();
        end(io);
    });
    let (_api, web) = mesh.pair("http", origin);
    for version in ["1.1", "1.0"] {
        for (n, (name, _)) in ANSWERS.iter().enumerate().take(answers) {
            let mut io = half(web.upstreams[0], n, version);
            gate.open();
            is_cut(&format!("{name} for HTTP/{version}"), &mut io);
        }
    }
}

#[test]
fn e2e_trf_34_a_reset_http1_upstream_never_looks_like_a_clean_end() {
    are_cut(ANSWERS.len(), reset);
}

#[test]
fn e2e_trf_34_an_http1_answer_that_stops_short_never_looks_like_a_clean_end() {
    // closed in order, but too early: until-close is complete then, by its own rule
    are_cut(3, drop);
}

#[test]
fn e2e_l4t_01_a_reset_of_bytes_is_a_reset() {
    let mesh = Mesh::start();
    let gate = Gate::default();
    let its = gate.clone();
    let origin = serve_tcp(move |mut io| {
        let mut asked = [0; 4];
        if io.read_exact(&mut asked).is_err() {
            return;
        }
        io.write_all(b"half").unwrap();
        its.wait();
        if asked == *b"cut!" {
            reset(io)
        }
    });
    let (_api, web) = mesh.pair("tcp", origin);
    for (asked, cut) in [(b"cut!", true), (b"end.", false)] {
        let mut io = connect(web.upstreams[0]).unwrap();
        io.write_all(asked).unwrap();
        io.read_exact(&mut [0; 4]).unwrap();
        gate.open();
        if cut {
            is_cut("bytes", &mut io);
        } else {
            // and a clean end is one: the test can tell
            assert_eq!(io.read_to_end(&mut Vec::new()).unwrap(), 0);
        }
    }
}

#[test]
fn e2e_trf_34_a_reset_http2_upstream_never_looks_like_a_clean_end() {
    let mesh = Mesh::start();
    let (origin, gate) = serve_h2();
    for (service, protocol) in [("grpc", "grpc"), ("plain", "http2")] {
        let api = mesh.sidecar(service, Some(&format!("{protocol}=80:{}", origin.port())), &[]);
        let web = mesh.sidecar("web", None, &[service]);
        mesh.until_passing(service, 1);
        mesh.until_synced(&[&api, &web]);
        let client = Client::connect(web.upstreams[0]);
        // NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, and one that nobody knows; then the connection
        for path in ["/reset/0", "/reset/2", "/reset/7", "/reset/8", "/reset/99", "/goaway", "/gone"] {
            let what = format!("{path} of {service}");
            let mut call = client.call(path).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(client.read(&mut call, 4).unwrap(), "half", "{what}");
            gate.add_permits(1);
            let (rest, end) = client.rest(&mut call);
            assert!(end.is_err(), "{what} looked complete: {rest:?} {end:?}");
            // the client's own connection is whole, and so is what is asked next
            let mut call = client.call("/small").unwrap_or_else(|e| panic!("after {what}: {e}"));
            let (small, end) = client.rest(&mut call);
            assert_eq!((&small[..], &end.unwrap()["grpc-status"]), (&b"small"[..], &"0".parse().unwrap()));
        }
        // one that ends in order completes what it has begun, while new ones go elsewhere
        let mut call = client.call("/graceful").unwrap();
        assert_eq!(client.read(&mut call, 4).unwrap(), "half");
        gate.add_permits(1);
        for _ in 0..10 {
            let (small, end) = client.rest(&mut client.call("/small").unwrap());
            assert!(small == "small" && end.is_ok(), "{small:?} {end:?}");
            std::thread::sleep(Duration::from_millis(30));
        }
        let (rest, end) = client.rest(&mut call);
        assert_eq!((&rest[..], &end.unwrap()["grpc-status"]), (&b"rest"[..], &"0".parse().unwrap()));
    }
}

/// Sends half of an answer and dies at once when its file appears.
const APPLICATION: &str = r#"
import os, socket, sys, threading, time
answers = [a.encode() for a in sys.argv[3:]]
def serve(io):
    asked = io.recv(4096)
    if asked.startswith(b"GET /"):
        io.sendall(answers[int(asked[5:6])])
        time.sleep(600)
def watch():
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
threading.Thread(target=watch, daemon=True).start()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
fn e2e_trf_34_an_application_killed_within_its_answers_never_looks_like_a_clean_end() {
    let mesh = Mesh::start();
    let (program, file) = (write(mesh.dir.path(), "application.py", APPLICATION), mesh.dir.path().join("die"));
    let port = free_port().to_string();
    let mut command = vec!["python3", program.to_str().unwrap(), &port, file.to_str().unwrap()];
    command.extend(ANSWERS.iter().map(|(_, answer)| *answer));
    let mut api = mesh.run("api", Some(&format!("http=80:{port}")), &[], &command);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&api, &web]);
    let mut open: Vec<_> = (0..3).map(|n| half(web.upstreams[0], n, "1.1")).collect();
    std::fs::write(file, "").unwrap();
    for (io, (name, _)) in open.iter_mut().zip(ANSWERS) {
        is_cut(name, io);
    }
    assert_eq!(api.ended(), 128 + 9, "{}", api.log());
}

#[test]
fn e2e_trf_34_l4t_01_a_sidecar_killed_within_answers_never_looks_like_a_clean_end() {
    let mesh = Mesh::start();
    let http = serve_part(|mut io| drop(io.read(&mut [0])));
    let tcp = serve_tcp(|mut io| {
        let _ = io.write_all(b"half");
        let _ = io.read(&mut [0]);
    });
    let (http2, _gate) = serve_h2();
    let port = |protocol: &str, port: u16, to: SocketAddr| format!("{protocol}={port}:{}", to.port());
    let mut apis = [
        mesh.sidecar("api", Some(&port("http", 80, http)), &[]),
        mesh.sidecar("db", Some(&port("tcp", 81, tcp)), &[]),
        mesh.sidecar("grpc", Some(&port("grpc", 82, http2)), &[]),
    ];
    let web = mesh.sidecar("web", None, &["api", "db", "grpc"]);
    for service in ["api", "db", "grpc"] {
        mesh.until_passing(service, 1);
    }
    mesh.until_synced(&[&apis[0], &apis[1], &apis[2], &web]);
    let client = Client::connect(web.upstreams[2]);
    let mut open: Vec<_> = (0..ANSWERS.len()).map(|n| half(web.upstreams[0], n, "1.1")).collect();
    let mut old = half(web.upstreams[0], 3, "1.0");
    let mut bytes = connect(web.upstreams[1]).unwrap();
    bytes.read_exact(&mut [0; 4]).unwrap();
    let mut call = client.call("/reset/0").unwrap();
    assert_eq!(client.read(&mut call, 4).unwrap(), "half");

    apis.iter_mut().for_each(|api| api.child.kill().unwrap());
    for (io, (name, _)) in open.iter_mut().zip(ANSWERS) {
        is_cut(name, io);
    }
    is_cut("until close for HTTP/1.0", &mut old);
    is_cut("bytes", &mut bytes);
    let (rest, end) = client.rest(&mut call);
    assert!(end.is_err(), "HTTP/2: {rest:?} {end:?}");
    // the caller's own sidecar is well, and says what is wrong
    let reply = get(web.upstreams[0], "/0", &[]).unwrap();
    assert!(reply.status == 503 && reply.header("weft-failure").is_some_and(|f| f.ends_with(";not-sent")), "{reply:?}");
}
