//! How `weft run` ends: callers first, then what is in flight, then the application, whose own calls work to its end; and
//! what the operator reads of proxies meanwhile.

use std::time::{Duration, Instant};

use crate::mesh::{Mesh, Workload, eventually, free_port, get, serve, write};

/// Answers `/slow` when a file is there, and writes down what happens in which order. When told to end it calls its upstream
/// once more.
const APPLICATION: &str = r#"
import http.server, os, signal, sys, time, urllib.request
out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def say(what):
    os.write(out, f"{what}\n".encode())
def told(*_):
    say("told")
    say(f"called {urllib.request.urlopen(f'http://127.0.0.1:{sys.argv[3]}/').status}")
    os._exit(7)
signal.signal(signal.SIGTERM, told)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path.startswith("/slow"):
            say("asked")
            while not os.path.exists(sys.argv[2] + ".go"):
                time.sleep(0.02)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        if self.path.startswith("/slow"):
            say("answered")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"#;

struct Running {
    mesh: Mesh,
    app: Workload,
    web: Workload,
    said: std::path::PathBuf,
    _db: Workload,
}

fn running() -> Running {
    let mesh = Mesh::start();
    let db = serve(|_, _| (200, "row".into()));
    let _db = mesh.sidecar("db", Some(&format!("http=80:{}", db.port())), &[]);
    mesh.until_passing("db", 1);
    let program = write(mesh.dir.path(), "application.py", APPLICATION);
    let said = mesh.dir.path().join("said");
    let (port, upstream) = (free_port().to_string(), free_port().to_string());
    let command = ["python3", program.to_str().unwrap(), &port, said.to_str().unwrap(), &upstream];
    let flags = ["--upstream", &format!("db={upstream}")];
    let app = mesh.workload("run", "api", Some(&format!("http=80:{port}")), &[], &flags, &command);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    Running { mesh, app, web, said, _db }
}

fn said(r: &Running) -> String {
    std::fs::read_to_string(&r.said).unwrap_or_default()
}

/// A request that takes until [`go`] and is being worked on when this returns.
fn slow(r: &Running) -> std::thread::JoinHandle<Option<u16>> {
    let addr = r.web.upstreams[0];
    let asked = std::thread::spawn(move || get(addr, "/slow", &[]).ok().map(|reply| reply.status));
    eventually("the application works on it", || if said(r) == "asked\n" { Ok(()) } else { Err(said(r)) });
    asked
}

fn go(r: &Running) {
    std::fs::write(r.said.with_extension("go"), "").unwrap();
}

#[test]
fn e2e_ops_12_what_is_in_flight_ends_before_the_application_hears_of_it() {
    let mut r = running();
    let asked = slow(&r);
    r.app.signal("TERM");
    // nothing new comes in while the old goes on
    eventually("callers know", || match get(r.web.upstreams[0], "/", &[]) {
        Ok(reply) if reply.status == 503 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(said(&r), "asked\n", "the application was not told yet, and callers were");
    go(&r);
    assert_eq!(r.app.ended(), 7, "the application's own exit status: {}", r.app.log());
    assert_eq!(asked.join().unwrap(), Some(200));
    assert_eq!(said(&r), "asked\nanswered\ntold\ncalled 200\n");
    r.mesh.until_passing("api", 0);
    let json = r.mesh.json(&["endpoints", "api"]);
    assert_eq!(json["endpoints"].as_array().map(Vec::len), Some(0), "it is deregistered: {json}");
}

#[test]
fn e2e_ops_12_a_second_signal_shortens_the_wait() {
    let mut r = running();
    let _asked = slow(&r);
    let told = Instant::now();
    r.app.signal("TERM");
    eventually("it drains", || {
        let json = r.mesh.json(&["endpoints", "api"]);
        if json["endpoints"][0]["health"] == "passing" { Err(json) } else { Ok(()) }
    });
    assert!(r.app.child.try_wait().unwrap().is_none(), "it waits for what is in flight");
    r.app.signal("TERM");
    assert_eq!(r.app.ended(), 7, "the application's own exit status: {}; {}", r.app.log(), said(&r));
    assert_eq!(said(&r), "asked\ntold\ncalled 200\n", "only the wait for callers is cut short");
    assert!(told.elapsed() < Duration::from_secs(15), "the drain's 30 s were cut short: {:?}", told.elapsed());
}

#[test]
fn e2e_ops_05_nov_05_status_and_receipts_tell_who_has_what() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let policy = |name: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\nspec:\n  selector:\n    \
             matchLabels: {{app: api}}\n  action: ALLOW\n  rules:\n    - from:\n        - source:\n            serviceAccounts: [\"web\"]\n"
        )
    };
    // each proxy concerned, with its time; then the sum
    let said = mesh.apply(&policy("one"));
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "AuthorizationPolicy/default/one created");
    let receipt = lines
        .iter()
        .find(|l| l.contains(&format!("default/api/test/{} after ", api.id)))
        .unwrap_or_else(|| panic!("{said}"));
    let ms: u64 = receipt.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    assert!(receipt.ends_with(" ms") && ms < 5_000, "{said}");
    assert!(lines.last().unwrap().starts_with("revision ") && said.contains("applied by "), "{said}");
    let status = mesh.weft(&["status"]);
    assert_eq!(status.status.code(), Some(0), "all synced: {}", crate::mesh::text(&status.stdout));

    // a frozen proxy cannot acknowledge: it is stale, the receipt says so, and waiting for it is bounded
    api.signal("STOP");
    let out = mesh.weft_with(&["apply", "--wait", "--timeout", "1s", "-f", "-"], &policy("two"));
    let said = crate::mesh::text(&out.stdout);
    assert_eq!(out.status.code(), Some(2), "{said}");
    let row =
        said.lines().find(|l| l.contains(&format!("default/api/test/{} ", api.id))).unwrap_or_else(|| panic!("{said}"));
    assert!(!row.contains(" after "), "{said}");
    let status = mesh.weft(&["status"]);
    let table = crate::mesh::text(&status.stdout);
    assert_eq!(status.status.code(), Some(2), "{table}");
    let row = table.lines().find(|l| l.contains(&api.id)).unwrap();
    assert!(row.contains(" stale "), "{table}");
    api.signal("CONT");
    eventually("it catches up", || {
        let out = mesh.weft(&["status"]);
        if out.status.code() == Some(0) { Ok(()) } else { Err(crate::mesh::text(&out.stdout)) }
    });
}
