//! What a newcomer meets first: warnings, empty answers, wrong names, closed pipes, exit codes.

use std::{
    io::Read as _,
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use crate::mesh::{Mesh, eventually, serve, text, weft, write};

fn apply(mesh: &Mesh, flags: &[&str], yaml: &str) -> (String, String, Option<i32>) {
    said(&mesh.weft_with(&[&["apply", "-f", "-"], flags].concat(), yaml))
}

fn said(out: &Output) -> (String, String, Option<i32>) {
    (text(&out.stdout), text(&out.stderr), out.status.code())
}

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: typo\nspec:\n  selector:\n    \
                    matchLabels: {app: apo}\n  action: DENY\n  rules:\n    - from:\n        - source:\n            \
                    serviceAccounts: [\"ghost\"]\n";

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: lost\nspec:\n  parentRefs:\n    \
                     - {group: \"\", kind: Service, name: nosuch}\n  rules:\n    - backendRefs:\n        - {name: gone, port: 80}\n";

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: nosuch\nspec:\n  ports:\n    - {name: http, port: 80}\n";

#[test]
fn nobody_who_reads_is_no_panic() {
    let mesh = Mesh::start();
    for args in [&["services", "-o", "json"][..], &["get", "httproutes", "-o", "yaml"], &["status"], &["ca", "status"]]
    {
        let mut child = weft()
            .args(args)
            .env("WEFT_SERVER", format!("http://{}", mesh.http))
            .env("WEFT_TOKEN_FILE", mesh.data().join("admin.token"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // closed before the first line is written
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.contains("panic")), (Some(0), false), "{args:?}: {stderr}");
    }
    // what cannot be written for another reason is told
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = weft().args(["lint", "-"]).stdin(Stdio::from(lintable(&mesh))).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).starts_with("weft: cannot write to standard output: "), "{}", text(&out.stderr));
}

fn lintable(mesh: &Mesh) -> std::fs::File {
    std::fs::File::open(write(mesh.dir.path(), "service.yaml", SERVICE)).unwrap()
}

#[test]
fn a_view_that_nobody_reads_ends() {
    let mesh = Mesh::start();
    let mut child = weft()
        .args(["top", "--interval", "1"])
        .env("WEFT_SERVER", format!("http://{}", mesh.http))
        .env("WEFT_TOKEN_FILE", mesh.data().join("admin.token"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let code = eventually("it ends", || child.try_wait().unwrap().ok_or("it runs")).code();
    assert_eq!(code, Some(0));
}

#[test]
fn ops_16_sec_21_apply_tells_what_the_server_knows() {
    let mesh = Mesh::start();
    let deny = "warning: AuthorizationPolicy/default/typo: ResolvedRefs=False: spec.selector: no workload in namespace default \
                has the labels app=apo, so this denies nothing; spec.rules[0].from[0].source.serviceAccounts[0]: nothing runs \
                as service account default/ghost, so this matches nobody\n";
    assert_eq!(apply(&mesh, &[], DENY), ("AuthorizationPolicy/default/typo created\n".into(), deny.into(), Some(0)));
    // with --wait once, after the receipt; unchanged or not
    let (out, err, code) = apply(&mesh, &["--wait"], DENY);
    assert!(out.starts_with("AuthorizationPolicy/default/typo unchanged\n"), "{out}");
    assert_eq!((&*err, code), (deny, Some(0)));
    let listed = eventually("get shows it too", || {
        let listed = mesh.ok(&["get", "ap"]);
        if listed.contains("app=apo, so this denies nothing") { Ok(listed) } else { Err(listed) }
    });
    assert!(!listed.contains(" ok"), "{listed}");

    // what a later file brings is not missed
    let (route, service) = (write(mesh.dir.path(), "a.yaml", ROUTE), write(mesh.dir.path(), "b.yaml", SERVICE));
    let out = mesh.weft(&["apply", "-f", route.to_str().unwrap()]);
    let err = text(&out.stderr);
    assert!(
        err.contains("warning: HTTPRoute/default/lost: Accepted=False: Service/default/nosuch does not exist"),
        "{err}"
    );
    assert!(err.contains("Service/default/gone does not exist"), "{err}");
    let out = mesh.weft(&["apply", "-f", route.to_str().unwrap(), "-f", service.to_str().unwrap()]);
    let err = text(&out.stderr);
    assert!(!err.contains("Accepted=False") && err.contains("ResolvedRefs=False"), "{err}");
    assert_eq!(out.status.code(), Some(0));

    // a workload that it selects is the end of the warning
    let origin = serve(|_, _| (200, "here".into()));
    let _apo = mesh.sidecar("apo", Some(&format!("http=80:{}", origin.port())), &[]);
    mesh.until_passing("apo", 1);
    let (_, err, _) = apply(&mesh, &[], DENY);
    assert!(!err.contains("denies nothing") && err.contains("matches nobody"), "{err}");
    eventually("the status follows", || {
        let listed = mesh.ok(&["get", "ap"]);
        if listed.contains("denies nothing") { Err(listed) } else { Ok(()) }
    });
}

#[test]
fn sec_33_allow_asks_about_one_request() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    mesh.until_passing("api", 1);
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: api\nspec:\n  rules:\n    - to:\n        \
         - operation: {methods: [GET], paths: [/open/*], hosts: [api.example]}\n",
    );
    let verdict = |flags: &[&str]| {
        let json = mesh.json(&[&["allow", "api", "--from", "api"], flags].concat());
        json["rows"].as_array().unwrap().iter().map(|r| r["verdict"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(verdict(&[]), ["depends"]);
    let open = ["--method", "GET", "--path", "/open/x", "--host", "api.example"];
    assert_eq!(verdict(&open), ["allow"]);
    assert_eq!(verdict(&[&open[..4], &["--host", "other.example"]].concat()), ["deny"]);
    assert_eq!(verdict(&["--method", "POST", "--path", "/open/x", "--host", "api.example"]), ["deny"]);
    assert_eq!(verdict(&[&["--port", "http"], &open[..]].concat()), ["allow"]);
    let out = mesh.weft(&["allow", "api", "--port", "8"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stdout));
    let nobody = mesh.json(&["allow", "api", "--from", "unauthenticated"]);
    assert_eq!(nobody["rows"][0]["from"], "unauthenticated", "{nobody}");
}

#[test]
fn sec_10_a_token_that_is_not_found_is_looked_for_by_name() {
    let mesh = Mesh::start();
    let elsewhere = tempfile::tempdir().unwrap();
    let log = mesh.server_log();
    for file in ["admin.token", "ca.pem"] {
        assert!(log.contains(&format!(" is in {}\n", mesh.data().join(file).display())), "{log}");
    }
    let made = mesh.weft(&["token", "create", "--service", "web"]);
    let status = mesh.json(&["status"]);
    let (err, mesh_name) = (text(&made.stderr), status["trust_domain"].as_str().unwrap().to_owned());
    assert!(
        err.contains(&format!("for the mesh {mesh_name}; ")) && err.contains(&format!("WEFT_JOIN={}\n", mesh.grpc)),
        "{err}"
    );

    let made = mesh.json(&["token", "create", "--service", "web"]);
    assert_eq!(made["token"].as_str().unwrap().split('.').count(), 3, "{made}");
    assert_eq!(made["allowed"], "default/web");
    for flags in [
        &["--service", "weft-system/control-plane"][..],
        &["--service", "weft-system/x", "--service-account", "control-plane"],
    ] {
        let out = mesh.weft(&[&["token", "create"], flags].concat());
        let refused = "weft: no workload can be weft-system/control-plane: that is the control plane itself\n";
        assert_eq!(said(&out), (String::new(), refused.into(), Some(2)));
    }

    let runtime = tempfile::tempdir().unwrap();
    let directory = runtime.path().join("weft");
    std::fs::create_dir(&directory).unwrap();
    let dev = serde_json::json!({
        "http": mesh.http, "mesh": mesh.grpc, "socket": directory.join("join.sock"),
        "admin_token": mesh.data().join("admin.token"), "pid": std::process::id(),
    });
    std::fs::write(directory.join("dev.json"), dev.to_string()).unwrap();
    let ask = || {
        weft().arg("services").env("XDG_RUNTIME_DIR", runtime.path()).current_dir(elsewhere.path()).output().unwrap()
    };
    assert_eq!(text(&ask().stderr), "no services\n");
    std::fs::create_dir(elsewhere.path().join(".weft")).unwrap();
    std::fs::write(elsewhere.path().join(".weft/admin.token"), "another").unwrap();
    let out = ask();
    let both = format!(
        "weft: asking the `weft dev` of this user at http://{}, not the server of ./.weft; --server or WEFT_SERVER names that one\n",
        mesh.http
    );
    assert_eq!(said(&out), (String::new(), both + "no services\n", Some(0)));
}

#[test]
fn weft_dev_says_whose_port_it_does_not_take() {
    let runtime = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let out = weft()
        .args(["dev", "--http", &addr, "--mesh", "127.0.0.1:0", "--for", "100ms"])
        .env("XDG_RUNTIME_DIR", runtime.path())
        .output()
        .unwrap();
    let (out, err, code) = said(&out);
    assert_eq!(code, Some(0), "{err}");
    let at = out.strip_prefix("control plane: HTTP API http://").unwrap().split(' ').next().unwrap();
    assert_ne!(at, addr);
    assert!(err.starts_with(&format!("weft: {addr} is in use by process {} (`", std::process::id())), "{err}");
    assert!(err.ends_with(&format!("`): the HTTP API is at {at} instead\n")), "{err}");
}

#[test]
fn ops_16_lint_says_what_apply_says() {
    let mesh = Mesh::start();
    // a field that Kubernetes has and that means nothing here
    let service = SERVICE.replace("  ports:", "  type: NodePort\n  ports:");
    let file = write(mesh.dir.path(), "service.yaml", &service);
    let file = file.to_str().unwrap();
    let (_, dry, code) = said(&mesh.weft(&["apply", "--dry-run", "-f", file]));
    assert!(dry.contains("warning: ") && code == Some(0), "{dry}");
    for args in [&["lint", file][..], &["lint", "-f", file]] {
        assert_eq!(said(&mesh.weft(args)), ("Service/default/nosuch: good\n".into(), dry.clone(), Some(0)));
    }
    let empty = write(mesh.dir.path(), "empty.yaml", "# nothing\n");
    let empty = empty.to_str().unwrap();
    assert_eq!(mesh.weft(&["apply", "-f", empty]).status.code(), Some(2));
    assert_eq!(
        said(&mesh.weft(&["lint", empty])),
        (String::new(), format!("{empty}: there is no document in it\n"), Some(2))
    );
    assert_eq!(mesh.weft(&["lint"]).status.code(), Some(1));
}

#[test]
fn nothing_to_show_is_said() {
    let mesh = Mesh::start();
    let nothing = |args: &[&str]| said(&mesh.weft(args));
    assert_eq!(
        nothing(&["get", "httproutes"]),
        (String::new(), "no httproutes in namespace default\n".into(), Some(0))
    );
    assert_eq!(nothing(&["get", "HTTPRoute", "-A"]), (String::new(), "no httproutes\n".into(), Some(0)));
    assert_eq!(nothing(&["get", "meshdefault"]), (String::new(), "no meshdefaults\n".into(), Some(0)));
    let nosuch = "weft: Service/default/nosuch does not exist; `weft services` lists those that do\n";
    for verb in ["endpoints", "allow"] {
        assert_eq!(nothing(&[verb, "nosuch"]), (String::new(), nosuch.into(), Some(2)));
    }
    assert_eq!(mesh.json(&["endpoints", "nosuch"])["endpoints"].as_array().map(Vec::len), Some(0));
    mesh.apply(SERVICE);
    let empty = "no instance of Service/default/nosuch is registered\n";
    assert_eq!(nothing(&["endpoints", "nosuch"]), (String::new(), empty.into(), Some(0)));
    for verb in ["get", "watch", "delete"] {
        assert!(mesh.ok(&[verb, "--help"]).contains("Kinds: authorizationpolicies, "), "{verb}");
    }
    let help = mesh.ok(&["--help"]);
    for code in ["  0  done", "  1  what was typed", "  2  the server", "  3  no server"] {
        assert!(help.contains(code), "{help}");
    }
}

#[test]
fn nov_05_a_receipt_of_no_change_has_no_time() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&api]);
    let deny =
        "apiVersion: weft.dev/v1\nkind: MeshDefaults\nmetadata:\n  name: default\nspec:\n  authorization: deny\n";
    let first = mesh.apply(deny);
    assert!(first.contains(&format!("/{} after ", api.id)), "{first}");
    let again = mesh.apply(deny);
    assert!(again.contains("unchanged") && again.contains(&format!("/{} has it already\n", api.id)), "{again}");
    assert!(!again.contains(" ms"), "{again}");
}

#[test]
fn endpoints_show_where_the_application_is_connected_to() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let mut api = weft()
        .args(["sidecar", "--service", "api", "--port", &format!("http=80:{}", origin.port())])
        .args(["--mesh-listen", "127.0.0.2:0", "--metrics", "127.0.0.1:0"])
        .env("WEFT_JOIN", mesh.grpc.to_string())
        .env("WEFT_TOKEN", mesh.token("api"))
        .env("WEFT_STATE", mesh.dir.path())
        .spawn()
        .unwrap();
    mesh.until_passing("api", 1);
    let table = mesh.ok(&["endpoints", "api"]);
    api.kill().unwrap();
    api.wait().unwrap();
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[2], format!("127.0.0.1:{}", origin.port()), "{table}");
    assert!(row[3].starts_with("127.0.0.2:"), "{table}");
}

#[test]
fn a_program_that_cannot_run_is_127_or_126_as_in_a_shell() {
    let mesh = Mesh::start();
    let plain = write(mesh.dir.path(), "plain", "no program");
    for (program, code) in [("/nonexistent/program", 127), (plain.to_str().unwrap(), 126)] {
        let mut command = Command::new(weft().get_program());
        command
            .args([
                "run",
                "--service",
                "job",
                "--mesh-listen",
                "127.0.0.1:0",
                "--metrics",
                "127.0.0.1:0",
                "--",
                program,
            ])
            .env("XDG_RUNTIME_DIR", mesh.dir.path())
            .env("WEFT_JOIN", mesh.grpc.to_string())
            .env("WEFT_TOKEN", mesh.token("job"));
        let out = command.output().unwrap();
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{err}");
        assert!(err.contains(&format!("weft: cannot start `{program}`: ")), "{err}");
    }
}
