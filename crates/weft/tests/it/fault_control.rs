//! The control plane dies: what runs goes on, what starts waits, and afterwards nothing is told twice.

use std::time::{Duration, Instant};

use crate::{
    fault_load::Load,
    mesh::{Mesh, Workload, eventually, get, serve},
};

/// A metric of the control plane.
fn metric(mesh: &Mesh, name: &str) -> u64 {
    let token = std::fs::read_to_string(mesh.data().join("admin.token")).unwrap();
    let reply = get(mesh.http, "/metrics", &[("authorization", &format!("Bearer {}", token.trim()))]).unwrap();
    let text = reply.text();
    let line =
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("{name}: {text}"));
    line.parse().unwrap()
}

/// Every proxy is connected and has the current configuration.
fn until_synced(mesh: &Mesh, proxies: usize) {
    eventually(&format!("{proxies} proxies are synced"), || {
        let json = mesh.json(&["status"]);
        let synced = json["proxies"].as_array().unwrap().iter().filter(|p| p["state"] == "synced").count();
        if synced == proxies { Ok(()) } else { Err(json) }
    });
}

struct Pair {
    mesh: Mesh,
    origin: u16,
    api: Workload,
    web: Workload,
}

fn pair(flags: &[&str]) -> Pair {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into())).port();
    let api = mesh.workload("sidecar", "api", Some(&format!("http=80:{origin}")), &[], flags, &[]);
    let web = mesh.workload("sidecar", "web", None, &["api"], flags, &[]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    Pair { mesh, origin, api, web }
}

/// The control plane is away for `away` under load.
fn away(away: Duration) {
    let Pair { mut mesh, origin, api: _api, web } = pair(&[]);
    until_synced(&mesh, 2);
    let token = mesh.token("late");
    let whole_set = metric(&mesh, "weft_control_sent_bytes_total");
    assert!(whole_set > 0);

    let load = Load::start(web.upstreams[0], 4, Duration::from_millis(2));
    mesh.kill_server();
    let killed = Instant::now();
    // one that starts meanwhile waits, and says why
    let mut late = mesh.workload_with("sidecar", "late", &token, None, &["api"], &[], &[]);
    let waiting = format!(
        "weft: waiting to join: no answer from the control plane at {}: Connection refused (os error 111); is `weft server` or `weft dev` running there?\n",
        mesh.grpc
    );
    eventually("it says why it waits", || if late.log() == waiting { Ok(()) } else { Err(late.log()) });
    while killed.elapsed() < away {
        std::thread::sleep(Duration::from_millis(100));
        assert!(late.child.try_wait().unwrap().is_none(), "the late one waits: {}", late.log());
    }
    // nobody was dropped by a server that knows nothing of its clients yet, either
    mesh.start_server();
    for _ in 0..20 {
        let json = mesh.json(&["endpoints", "api"]);
        let health = &json["endpoints"][0]["health"];
        assert!(health == "passing" || health == "unknown", "a server restart empties no service: {json}");
    }
    until_synced(&mesh, 3);
    mesh.until_passing("api", 1);
    mesh.until_answers(&late, 200);
    let said = late.log();
    assert!(said.starts_with(&waiting) && said.contains("weft: joined\n"), "{said}");
    let seen = load.stop();
    assert_eq!(seen.bad, [], "{} were good", seen.good);
    assert!(seen.good > away.as_secs() * 100, "there was load: {}", seen.good);

    // what the two knew already was not sent again
    let json = mesh.json(&["status"]);
    let old = json["proxies"].as_array().unwrap().iter().filter(|p| p["service"] != "default/late");
    let resent: u64 = old.map(|p| p["bytes_sent"].as_u64().unwrap()).sum();
    assert!(resent < whole_set / 4, "{resent} bytes were sent to proxies that had everything ({whole_set} at first)");
    assert_eq!(late.stop(), 0);
    drop((web, origin));
}

#[test]
fn e2e_sec_04_nothing_fails_while_the_control_plane_is_dead() {
    away(Duration::from_secs(15));
}

#[test]
#[ignore = "takes over a minute"]
fn e2e_nothing_fails_while_the_control_plane_is_dead_for_a_minute() {
    away(Duration::from_secs(70));
}

#[test]
fn e2e_ops_05_unchanged_configuration_is_not_resent_after_a_server_restart() {
    let Pair { mut mesh, web, api: _api, .. } = pair(&[]);
    until_synced(&mesh, 2);
    let first = metric(&mesh, "weft_control_sent_bytes_total");
    mesh.kill_server();
    mesh.start_server();
    until_synced(&mesh, 2);
    mesh.until_passing("api", 1);
    until_synced(&mesh, 2);
    let again = metric(&mesh, "weft_control_sent_bytes_total");
    assert!(again < first / 4, "{again} bytes were sent to proxies that had everything ({first} at first)");
    assert_eq!(get(web.upstreams[0], "/", &[]).unwrap().status, 200);
}

#[test]
fn e2e_a_proxy_that_restarts_while_the_server_is_away_uses_what_it_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("web");
    let Pair { mut mesh, api: _api, web: _web, .. } = pair(&[]);
    let token = mesh.token("keeper");
    let flags = ["--state", state.to_str().unwrap(), "--id", "keeper"];
    let mut web = mesh.workload_with("sidecar", "keeper", &token, None, &["api"], &flags, &[]);
    mesh.until_answers(&web, 200);
    until_synced(&mesh, 3);
    mesh.kill_server();
    web.child.kill().unwrap();
    web.child.wait().unwrap();
    // the token is spent: the kept identity is all it has
    let web = mesh.workload_with("sidecar", "keeper", &token, None, &["api"], &flags, &[]);
    let reply = mesh.until_answers(&web, 200);
    assert_eq!(reply.text(), "here");
    mesh.start_server();
    until_synced(&mesh, 3);
    assert_eq!(get(web.upstreams[0], "/", &[]).unwrap().status, 200);
}
