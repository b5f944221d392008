//! `weft run` around programs that nobody prepared: what it gives them, and what it takes back at their end.

use std::process::Command;

use crate::mesh::{Mesh, eventually, free_port, get, text};

fn http_server(port: &str) -> [&str; 6] {
    ["python3", "-m", "http.server", "--bind", "127.0.0.1", port]
}

#[test]
fn e2e_cap_08_two_python_http_servers_call_each_other() {
    let mesh = Mesh::start();
    let (a, b) = (free_port().to_string(), free_port().to_string());
    let mut one = mesh.run("one", Some(&format!("80:{a}/http")), &["two"], &http_server(&a));
    let mut two = mesh.run("two", Some(&format!("80:{b}/http")), &["one"], &http_server(&b));
    mesh.until_passing("one", 1);
    mesh.until_passing("two", 1);
    for caller in [&one, &two] {
        let reply = mesh.until_answers(caller, 200);
        assert!(reply.text().contains("Directory listing for /"), "{}", reply.text());
        assert!(reply.header("server").is_some_and(|s| s.starts_with("SimpleHTTP/")), "{reply:?}");
    }
    // and by a program that nobody here wrote
    let out = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("http://{}/nothing-here", one.upstreams[0]))
        .output()
        .unwrap();
    assert_eq!(text(&out.stdout), "404", "{}", text(&out.stderr));

    // drain: the signal reaches the program, and the service is empty afterwards
    assert_eq!(one.stop(), 128 + 15, "{}", one.log());
    mesh.until_passing("one", 0);
    let json = mesh.json(&["endpoints", "one"]);
    assert_eq!(json["endpoints"].as_array().map_or(0, Vec::len), 0, "deregistered, not merely failing: {json}");
    // nothing else declares the service: with its last instance it is gone
    let reply = eventually("its callers are told", || match get(two.upstreams[0], "/", &[]) {
        Ok(reply) if reply.status == 503 => Ok(reply),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(reply.header("weft-failure"), Some("no_healthy_endpoint;not-sent"), "{reply:?}");
    assert!(reply.text().contains("the last instance of default/one left at 20"), "{}", reply.text());
    assert_eq!(two.stop(), 128 + 15);
}

#[test]
fn e2e_cap_08_exit_status_and_signals_pass_through() {
    let mesh = Mesh::start();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        let mut w = mesh.run("job", None, &[], &["sh", "-c", script]);
        assert_eq!(w.ended(), code, "{script}: {}", w.log());
    }
    // which signal it was is for the program to see, and its own status is what comes back
    for (signal, code) in [("TERM", 41), ("INT", 42)] {
        let script = "trap 'exit 41' TERM; trap 'exit 42' INT; echo up; while :; do sleep 0.05; done";
        let mut w = mesh.run("job", None, &[], &["sh", "-c", script]);
        eventually("the program runs", || if w.log().contains("up\n") { Ok(()) } else { Err(w.log()) });
        w.signal(signal);
        assert_eq!(w.ended(), code, "{signal}: {}", w.log());
    }
    // what the program writes and where it runs is its own
    let mut w = mesh.run("job", None, &[], &["sh", "-c", "echo \"$WEFT_SERVICE ${WEFT_TOKEN:-none}\""]);
    assert_eq!(w.ended(), 0);
    assert!(w.log().contains("default/job none\n"), "the join token is not the program's: {}", w.log());
    let mut w = mesh.run("job", None, &[], &["/nonexistent/program"]);
    assert_eq!(w.ended(), 127, "{}", w.log());
    assert!(w.log().contains("/nonexistent/program"), "{}", w.log());
}

#[test]
fn e2e_reg_06_a_killed_application_is_deregistered() {
    let mesh = Mesh::start();
    let port = free_port().to_string();
    let mut w = mesh.run("web", Some(&format!("http={port}")), &[], &http_server(&port));
    mesh.until_passing("web", 1);
    let pid = children(w.child.id()).into_iter().find(|pid| cmdline(*pid).contains("http.server")).unwrap();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    assert_eq!(w.ended(), 137, "{}", w.log());
    let json = mesh.json(&["endpoints", "web"]);
    assert_eq!(json["endpoints"].as_array().map_or(0, Vec::len), 0, "{json}");
}

/// All below a process.
fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let direct: Vec<u32> = all.filter(|pid| parent(pid) == Some(of)).collect();
    direct.iter().flat_map(|pid| children(*pid)).chain(direct.iter().copied()).collect()
}

fn cmdline(pid: u32) -> String {
    text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
}
