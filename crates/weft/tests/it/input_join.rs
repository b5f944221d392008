//! Workloads that cannot join: no server, and tokens that are spent, expired, foreign or for somebody else.

use std::process::{Command, Output, Stdio};

use crate::mesh::{Mesh, eventually, free_addr, text, weft};

fn sidecar(mesh: &Mesh, service: &str, token: &str) -> Command {
    let mut command = weft();
    command
        .args([
            "sidecar",
            "--service",
            service,
            "--node",
            "test",
            "--mesh-listen",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ])
        .env("WEFT_JOIN", mesh.grpc.to_string())
        .env("WEFT_TOKEN", token)
        .stdin(Stdio::null());
    command
}

/// One that ends by itself: what it says, and that this is a failure.
fn refused(mut command: Command) -> String {
    let out: Output = command.output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    text(&out.stderr)
}

#[test]
fn there_is_no_mesh_to_join() {
    let out = weft().args(["sidecar", "--service", "api"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        text(&out.stderr),
        "weft: there is no mesh to join: start one with `weft dev`, or name one with --join ADDRESS (WEFT_JOIN) and a token (WEFT_TOKEN)\n"
    );
    let out = weft().args(["run", "--service", "api", "--join", "127.0.0.1:1", "--", "true"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        text(&out.stderr),
        "weft: --join needs a token: make one with `weft token create --service NAME` and pass it as WEFT_TOKEN\n"
    );
}

#[test]
fn without_a_server_a_workload_waits_and_says_why() {
    let mesh = Mesh::start();
    let token = mesh.token("api");
    let nobody = free_addr();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut child = sidecar(&mesh, "api", &token)
        .env("WEFT_JOIN", nobody.to_string())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let want = format!(
        "weft: waiting to join: no answer from the control plane at {nobody}: Connection refused (os error 111); is `weft server` or `weft dev` running there?\n"
    );
    eventually("it says why it waits", || {
        let said = std::fs::read_to_string(&log).unwrap();
        if said == want { Ok(()) } else { Err(said) }
    });
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let status = eventually("it ends", || child.try_wait().unwrap().ok_or("still running"));
    assert_eq!(status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), want, "it says so once");
}

#[test]
fn sec_10_a_token_joins_once() {
    let mesh = Mesh::start();
    let token = mesh.token("api");
    let id = token.split('.').next().unwrap().to_owned();
    let mut first = sidecar(&mesh, "api", &token).stderr(Stdio::null()).spawn().unwrap();
    eventually("the first is registered", || match mesh.json(&["status"])["proxies"].as_array().map(Vec::len) {
        Some(1) => Ok(()),
        other => Err(other),
    });
    assert_eq!(
        refused(sidecar(&mesh, "api", &token)),
        format!(
            "weft: cannot join the mesh: the control plane refuses to let this workload join: join token {id} was spent by another \
             key; each token joins once: make a new one with `weft token create`, and find out who used this one if it was not you\n"
        )
    );
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn sec_10_tokens_that_are_expired_malformed_or_for_somebody_else() {
    let mesh = Mesh::start();
    let expired = mesh.ok(&["token", "create", "--service", "api", "--ttl", "1ms"]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let said = refused(sidecar(&mesh, "api", expired.trim()));
    let id = expired.split('.').next().unwrap();
    let begin = format!(
        "weft: cannot join the mesh: the control plane refuses to let this workload join: join token {id} expired at "
    );
    assert!(said.starts_with(&begin), "{said}");
    assert!(said.contains("Z, it is now ") && said.ends_with("; make a new one with `weft token create`\n"), "{said}");

    assert_eq!(
        refused(sidecar(&mesh, "api", "not-a-token")),
        "weft: the join token is not of the form id.secret.pin; make one with `weft token create --service NAME`\n"
    );

    let token = mesh.token("api");
    let id = token.split('.').next().unwrap();
    let trust_domain = mesh.json(&["status"])["trust_domain"].as_str().unwrap().to_owned();
    assert_eq!(
        refused(sidecar(&mesh, "other", &token)),
        format!(
            "weft: cannot join the mesh: the control plane refuses to let this workload join: join token {id} is for default/api, not \
             for spiffe://{trust_domain}/ns/default/sa/other; make one that allows it with `weft token create`\n"
        )
    );
    // that it was refused to somebody else spends nothing
    let mut rightful = sidecar(&mesh, "api", &token).stderr(Stdio::null()).spawn().unwrap();
    eventually("the rightful one is registered", || match mesh.json(&["status"])["proxies"].as_array().map(Vec::len) {
        Some(1) => Ok(()),
        other => Err(other),
    });
    rightful.kill().unwrap();
    rightful.wait().unwrap();
}

#[test]
fn sec_10_a_token_of_another_mesh_is_not_even_shown_to_this_one() {
    let (ours, theirs) = (Mesh::start(), Mesh::start());
    let token = theirs.token("api");
    assert_eq!(
        refused(sidecar(&ours, "api", &token)),
        format!(
            "weft: cannot join the mesh: the control plane at {} is not the one that made the join token (its root is another); make a \
             new token there\n",
            ours.grpc
        )
    );
    // its secret was never sent: it still joins at home
    let mut home = sidecar(&theirs, "api", &token).stderr(Stdio::null()).spawn().unwrap();
    eventually("it joins at home", || match theirs.json(&["status"])["proxies"].as_array().map(Vec::len) {
        Some(1) => Ok(()),
        other => Err(other),
    });
    home.kill().unwrap();
    home.wait().unwrap();
}

#[test]
fn sec_10_nobody_writes_without_the_admin_token() {
    let mesh = Mesh::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("junk");
    std::fs::write(&file, "junk").unwrap();
    let ask = |token: Option<&std::path::Path>| {
        let mut command = weft();
        command.args(["get", "httproute", "--server", &format!("http://{}", mesh.http)]).current_dir(dir.path());
        command.args(token.map(|t| ["--token-file".as_ref(), t.as_os_str()]).iter().flatten());
        let out = command.output().unwrap();
        (text(&out.stderr), out.status.code())
    };
    assert_eq!(
        ask(Some(&file)),
        (
            format!(
                "weft: the token in {} is not that of the server at {}; name the server's <data>/admin.token with --token-file \
                 or WEFT_TOKEN_FILE (`weft server` prints where it is)\n",
                file.display(),
                mesh.http
            ),
            Some(2)
        )
    );
    assert_eq!(
        ask(None),
        (
            format!(
                "weft: the server at {} wants a token, and there is no {}; name the server's <data>/admin.token with \
                 --token-file or WEFT_TOKEN_FILE (`weft server` prints where it is)\n",
                mesh.http,
                dir.path().join(".weft/admin.token").display()
            ),
            Some(2)
        )
    );
}

#[test]
fn sec_10_tokens_are_listed_and_revoked() {
    let mesh = Mesh::start();
    let token = mesh.ok(&["token", "create", "--service", "shop/api", "--service-account", "backend"]);
    let id = token.split('.').next().unwrap();
    let list = mesh.ok(&["token", "list"]);
    let row: Vec<_> = list.lines().find(|l| l.starts_with(id)).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], [id, "shop/backend", "api", "open"], "{list}");
    assert!(!list.contains(token.trim()), "the secret is shown once");

    assert_eq!(mesh.ok(&["token", "revoke", id]), format!("join token {id} revoked\n"));
    let again = mesh.weft(&["token", "revoke", id]);
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(text(&again.stderr), format!("weft: there is no join token `{id}`\n"));
    let said = refused(sidecar(&mesh, "shop/api", token.trim()));
    assert!(said.contains(&format!("join token {id}")) && said.contains("make a new one"), "{said}");
}

#[test]
fn sec_10_a_kept_identity_needs_no_second_token() {
    let mesh = Mesh::start();
    let state = tempfile::tempdir().unwrap();
    let kept = |token: Option<&str>| {
        let mut command = sidecar(&mesh, "api", token.unwrap_or_default());
        command.arg("--state").arg(state.path());
        if token.is_none() {
            command.env_remove("WEFT_TOKEN");
        }
        command
    };
    let said = refused(kept(None));
    assert_eq!(
        said,
        "weft: cannot join the mesh: no identity that is still valid was kept here, and there is no token to join with: make one \
         with `weft token create --service NAME` and pass it as WEFT_TOKEN\n"
    );
    let token = mesh.token("api");
    for token in [Some(&*token), None] {
        let mut running = kept(token).stderr(Stdio::null()).spawn().unwrap();
        eventually("it is registered", || match mesh.json(&["status"])["proxies"].as_array().map(Vec::len) {
            Some(1) => Ok(()),
            other => Err(other),
        });
        let stopped = Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
        assert!(stopped.success() && running.wait().unwrap().success());
        eventually("it has left", || match mesh.json(&["status"])["proxies"].as_array().map(Vec::len) {
            Some(0) => Ok(()),
            other => Err(other),
        });
    }
}
