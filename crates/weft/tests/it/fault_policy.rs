//! A change of policy reaches what is open already: a TCP connection, an upgraded connection, a long request.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::mesh::{Mesh, connect, eventually, serve_tcp};

/// The promise is one second; a machine that is busy with other tests gets three.
const BOUND: Duration = Duration::from_secs(3);

fn policy(action: &str, app: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {app}\nspec:\n  selector:\n    \
         matchLabels: {{app: {app}}}\n  action: {action}\n  rules:\n    - from:\n        - source:\n            serviceAccounts: [\"web\"]\n"
    )
}

/// Sends what it gets back, for as long as it gets something.
pub fn echo(mut io: TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = io.read(&mut buffer) {
        if io.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

fn head(io: &mut BufReader<TcpStream>) -> String {
    let mut all = String::new();
    while !all.ends_with("\r\n\r\n") {
        // closed: nothing, or not all of it
        if io.read_line(&mut all).unwrap_or(0) == 0 {
            break;
        }
    }
    all
}

/// An upgrade and a request whose answer never ends.
pub fn serve_http_upgrade_and_drip() -> SocketAddr {
    serve_tcp(|io| {
        let mut io = BufReader::new(io);
        let head = head(&mut io);
        if !head.ends_with("\r\n\r\n") {
            // the health check only connects
            return;
        }
        if head.starts_with("GET /upgrade ") {
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            io.get_mut().write_all(answer.as_bytes()).unwrap();
            return echo(io.into_inner());
        }
        let mut io = io.into_inner();
        let mut next = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        while io.write_all(&next).is_ok() {
            next = b"4\r\ndrip\r\n".to_vec();
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// One line there and back.
pub fn ping(io: &mut BufReader<TcpStream>, n: usize) -> std::io::Result<()> {
    writeln!(io.get_mut(), "ping {n}")?;
    let mut line = String::new();
    io.read_line(&mut line)?;
    if line == format!("ping {n}\n") { Ok(()) } else { Err(std::io::Error::other(format!("{line:?}"))) }
}

pub fn upgraded(addr: SocketAddr) -> BufReader<TcpStream> {
    let mut io = BufReader::new(connect(addr).unwrap());
    let ask = "GET /upgrade HTTP/1.1\r\nhost: api\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    io.get_mut().write_all(ask.as_bytes()).unwrap();
    let answer = head(&mut io);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    io
}

/// A request whose answer goes on for ever.
pub fn dripping(addr: SocketAddr) -> BufReader<TcpStream> {
    let mut io = BufReader::new(connect(addr).unwrap());
    io.get_mut().write_all(b"GET /drip HTTP/1.1\r\nhost: api\r\n\r\n").unwrap();
    let answer = head(&mut io);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    io
}

#[test]
fn e2e_sec_28_a_denial_ends_what_is_open_within_a_second() {
    let mesh = Mesh::start();
    let (db, api) = (serve_tcp(echo), serve_http_upgrade_and_drip());
    let _db = mesh.sidecar("db", Some(&format!("tcp=80:{}", db.port())), &[]);
    let _api = mesh.workload("sidecar", "api", Some(&format!("http=80:{}", api.port())), &[], &["--check", "tcp"], &[]);
    let web = mesh.sidecar("web", None, &["db", "api"]);
    mesh.until_passing("db", 1);
    mesh.until_passing("api", 1);
    // the receipt of a policy is of those that it governs: web need not know its upstreams by then
    mesh.until_synced(&[&web]);
    mesh.apply(&format!("{}---\n{}", policy("ALLOW", "db"), policy("ALLOW", "api")));

    let mut tcp = eventually("the TCP service answers", || {
        let mut tcp = BufReader::new(connect(web.upstreams[0])?);
        ping(&mut tcp, 0).map(|()| tcp)
    });
    let mut upgrade = upgraded(web.upstreams[1]);
    ping(&mut upgrade, 0).unwrap();
    let mut long = dripping(web.upstreams[1]);
    // old enough to be looked at again
    let old = Instant::now();
    let mut seen = Vec::new();
    while old.elapsed() < Duration::from_millis(1500) {
        let got = long.fill_buf().unwrap().to_vec();
        assert!(!got.is_empty());
        long.consume(got.len());
        seen.extend(got);
    }
    ping(&mut tcp, 1).unwrap();
    ping(&mut upgrade, 1).unwrap();

    let changed = Instant::now();
    let out = mesh.weft_with(&["apply", "-f", "-"], &format!("{}---\n{}", policy("DENY", "db"), policy("DENY", "api")));
    assert!(out.status.success());
    let ended = |what: &str, io: &mut BufReader<TcpStream>| {
        io.get_ref().set_read_timeout(Some(BOUND)).unwrap();
        let mut rest = Vec::new();
        let how = io.read_to_end(&mut rest);
        let took = changed.elapsed();
        assert!(took < BOUND, "{what} was open for {took:?} after the change: {how:?}");
        println!("{what}: {how:?} {took:?} after the change was sent");
        (how, rest)
    };
    let (how, _) = ended("TCP connection", &mut tcp);
    assert!(how.is_err(), "a reset, not a clean end");
    let (how, _) = ended("upgraded connection", &mut upgrade);
    assert!(how.is_err(), "a reset, not a clean end");
    let (_, rest) = ended("long request", &mut long);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut answer never looks complete");
}
