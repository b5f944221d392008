//! A server that cannot start: its port is taken, its store is in use, corrupt, or on a full disk.

use std::{net::TcpListener, path::Path, process::Output};

use crate::mesh::{Mesh, free_addr, free_port, text, weft};

fn server(data: &Path, http: &str) -> Output {
    let mesh = free_addr().to_string();
    weft().args(["server", "--data"]).arg(data).args(["--http", http, "--mesh", &mesh]).output().unwrap()
}

/// The last line: what is above it is the log.
fn last(out: &Output) -> String {
    text(&out.stderr).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_port_in_use_names_the_process_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let out = server(&dir.path().join("data"), &addr);
    assert_eq!(out.status.code(), Some(1));
    let said = last(&out);
    let want = format!("weft: the control plane cannot start: {addr} is in use by process {} (`", std::process::id());
    assert!(said.starts_with(&want), "{said}");
    assert!(said.ends_with("`); stop it or choose another port"), "{said}");
}

#[test]
fn an_upstream_port_in_use_names_the_process_too() {
    let mesh = Mesh::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let out = weft()
        .args(["run", "--service", "web", "--upstream", &format!("api={addr}"), "--", "true"])
        .env("WEFT_JOIN", mesh.grpc.to_string())
        .env("WEFT_TOKEN", mesh.token("web"))
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    let want = format!("{addr} is in use by process {} (`", std::process::id());
    assert!(last(&out).contains(&want), "{}", last(&out));
}

#[test]
fn a_store_in_use_is_refused() {
    let mesh = Mesh::start();
    let out = server(&mesh.data(), &free_addr().to_string());
    assert_eq!(out.status.code(), Some(1));
    let want = format!(
        "weft: the control plane cannot start: store file {}/weft.redb is in use by another process; stop that one, or give this one another data directory",
        mesh.data().display()
    );
    assert_eq!(last(&out), want);
}

#[test]
fn a_corrupt_store_is_refused_named_and_kept() {
    let mut mesh = Mesh::start();
    let file = mesh.data().join("weft.redb");
    mesh.kill_server();
    let whole = std::fs::read(&file).unwrap();
    // its head, and one bit of every other page (some are free, so that one page alone proves nothing)
    for what in ["head", "pages"] {
        let mut broken = whole.clone();
        match what {
            "head" => broken[..512].fill(0xa5),
            _ => broken.iter_mut().skip(4096 + 100).step_by(4096).for_each(|byte| *byte ^= 4),
        }
        std::fs::write(&file, &broken).unwrap();
        let out = server(&mesh.data(), &free_addr().to_string());
        assert_eq!(out.status.code(), Some(1), "{what}: {}", text(&out.stderr));
        let said = last(&out);
        let begin =
            format!("weft: the control plane cannot start: store file {} is corrupt and was refused: ", file.display());
        let end = "; the file was kept as it is: copy it away for analysis, then restore the last snapshot into a new data directory";
        assert!(said.starts_with(&begin) && said.ends_with(end), "{what}: {said}");
        assert_eq!(std::fs::read(&file).unwrap(), broken, "{what}: the file is left as it was");
    }
    std::fs::write(&file, &whole).unwrap();
    mesh.start_server();
}

#[test]
fn a_store_without_its_key_is_refused() {
    let mut mesh = Mesh::start();
    mesh.kill_server();
    let kek = mesh.data().join("kek");
    let key = std::fs::read(&kek).unwrap();
    std::fs::remove_file(&kek).unwrap();
    let out = server(&mesh.data(), &format!("127.0.0.1:{}", free_port()));
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        last(&out),
        format!(
            "weft: the control plane cannot start: the key-encryption key {} is missing, but the store has keys sealed with it; restore that file from a backup",
            kek.display()
        )
    );
    assert!(!kek.exists(), "no new key takes its place");
    std::fs::write(&kek, key).unwrap();
    mesh.start_server();
}

#[test]
fn sec_10_the_admin_token_crosses_a_network_over_tls_only() {
    let (mesh, other) = (Mesh::start(), Mesh::start());
    let ask = |server: &str, root: &Mesh| {
        let mut weft = weft();
        weft.args(["status", "--server", server]).arg("--token-file").arg(mesh.data().join("admin.token"));
        weft.arg("--ca-file").arg(root.data().join("ca.pem")).output().unwrap()
    };
    let https = format!("https://{}", mesh.http);
    let out = ask(&https, &mesh);
    assert!(out.status.success() && text(&out.stdout).starts_with("trust domain "), "{}", text(&out.stderr));

    // whoever answers with another root does not see the token
    let out = ask(&https, &other);
    assert_eq!(out.status.code(), Some(3));
    let said = text(&out.stderr);
    assert!(said.starts_with(&format!("weft: cannot reach a weft server at {https}: ")), "{said}");
    assert!(said.contains("is --ca-file that of this mesh?"), "{said}");

    // in the clear it is not even tried (192.0.2.0/24 is nobody's)
    let out = ask("http://192.0.2.1:8500", &mesh);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        text(&out.stderr),
        "weft: the token would cross the network to 192.0.2.1:8500 in the clear; write --server https://192.0.2.1:8500 and \
         name the mesh's root with --ca-file (<data>/ca.pem of the server)\n"
    );
}
