//! No work is lost and none is done twice: every instance of a service restarted under load, a sidecar killed under load.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    fault_load::Load,
    mesh::{Mesh, Workload, free_port, serve},
};

/// An application that writes the number of every request that it processed to a file, and dies at once when told to.
const APPLICATION: &str = r#"
import http.server, os, sys
out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    def do_GET(self):
        self.done("G", self.path[1:])
    def do_POST(self):
        self.done("P", self.rfile.read(int(self.headers["content-length"])).decode())
    def done(self, what, number):
        if number:
            os.write(out, f"{what} {number}\n".encode())
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"#;

struct Service {
    program: PathBuf,
    processed: PathBuf,
}

impl Service {
    fn new(dir: &Path) -> Self {
        Self { program: crate::mesh::write(dir, "application.py", APPLICATION), processed: dir.join("processed") }
    }

    fn start(&self, mesh: &Mesh) -> Workload {
        let port = free_port().to_string();
        let program = ["python3", self.program.to_str().unwrap(), &port, self.processed.to_str().unwrap()];
        mesh.workload("run", "api", Some(&format!("http=80:{port}")), &[], &["--check", "http=/@200ms"], &program)
    }

    /// How often each number was processed.
    fn processed(&self) -> BTreeMap<u64, u32> {
        let text = std::fs::read_to_string(&self.processed).unwrap();
        text.lines().fold(BTreeMap::new(), |mut all, line| {
            *all.entry(line[2..].parse().unwrap()).or_default() += 1;
            all
        })
    }
}

fn rolling_restart(requests: u64, connections: usize) {
    let mesh = Mesh::start();
    let service = Service::new(mesh.dir.path());
    let mut instances: Vec<Workload> = (0..3).map(|_| service.start(&mesh)).collect();
    let mut web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 3);
    mesh.until_answers(&web, 200);

    let load = Load::bounded(web.upstreams[0], connections, Duration::from_millis(1), requests);
    let mut rounds = 0;
    // every instance at least once, and on until the load is done
    while rounds == 0 || load.asked() < requests {
        #[expect(clippy::needless_range_loop, reason = "the instance is replaced in its place")]
        for at in 0..instances.len() {
            let code = instances[at].stop();
            assert_eq!(code, 128 + 15, "the application's own end: {}", instances[at].log());
            instances[at] = service.start(&mesh);
            mesh.until_passing("api", 3);
        }
        rounds += 1;
    }
    let seen = load.join();
    assert_eq!(seen.bad, [], "of {requests} while every instance restarted {rounds} times");
    assert_eq!(seen.good, requests);
    assert_eq!(web.stop(), 0);
    let processed = service.processed();
    let twice: Vec<_> = processed.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "processed more than once: {twice:?}");
    assert_eq!(processed.len() as u64, requests, "caller and service agree");
    println!("{requests} requests, every instance restarted {rounds} times: none failed, none was processed twice");
}

#[test]
fn e2e_ops_12_a_rolling_restart_loses_and_doubles_nothing() {
    rolling_restart(6_000, 4);
}

#[test]
#[ignore = "takes minutes"]
fn e2e_a_rolling_restart_loses_and_doubles_nothing_of_100_000_requests() {
    rolling_restart(100_000, 8);
}

#[test]
fn e2e_trf_35_of_a_killed_sidecar_only_what_was_sent_fails_and_says_why() {
    const CONNECTIONS: usize = 8;
    let mesh = Mesh::start();
    let processed: Arc<Mutex<BTreeMap<u64, u32>>> = Arc::default();
    let origin = {
        let processed = processed.clone();
        serve(move |head, body| {
            let number = if body.is_empty() { head.rsplit('/').next().unwrap_or_default().as_bytes() } else { body };
            if let Ok(number) = String::from_utf8_lossy(number).parse() {
                *processed.lock().unwrap().entry(number).or_default() += 1;
                // something is always on its way
                std::thread::sleep(Duration::from_millis(10));
            }
            (200, "ok".into())
        })
    };
    let port = format!("http=80:{}", origin.port());
    let (mut killed, _left) = (mesh.sidecar("api", Some(&port), &[]), mesh.sidecar("api", Some(&port), &[]));
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 2);
    mesh.until_answers(&web, 200);

    let load = Load::start(web.upstreams[0], CONNECTIONS, Duration::from_millis(1));
    let until = |n: u64| {
        crate::mesh::eventually("requests are sent", || if load.asked() >= n { Ok(()) } else { Err(load.asked()) })
    };
    until(400);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    until(load.asked() + 1_600);
    let seen = load.stop();

    // at most one request per connection was on its way through the killed proxy; nothing else fails
    assert!(seen.bad.len() <= CONNECTIONS, "{:?}", seen.bad);
    for bad in &seen.bad {
        assert!(
            bad.why.contains("503 Some(\"upstream_closed;sent\")")
                || bad.why.contains("503 Some(\"upstream_reset;sent\")"),
            "it says why, and that it was sent: {bad:?}"
        );
    }
    let processed = processed.lock().unwrap();
    let twice: Vec<_> = processed.iter().filter(|(n, times)| **times > 1 && *n % 2 == 1).collect();
    assert!(twice.is_empty(), "POSTs that were processed twice: {twice:?}");
    for n in (0..seen.asked).filter(|n| !seen.bad.iter().any(|b| b.number == *n)) {
        assert!(processed.contains_key(&n), "{n} was answered by nobody");
    }
    println!("{} good, {} failed with their reason", seen.good, seen.bad.len());
}
