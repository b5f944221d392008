//! A server whose disk is full: writes fail and say so, everything else goes on, and what was acknowledged is there when
//! there is room again.
//!
//! The disk is a small file system of the test's own where the machine allows that; elsewhere the server may not let its
//! files grow.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    fault_load::Load,
    mesh::{Mesh, eventually, serve, text},
};

const SIZE: &str = "16m";

/// Where the server's data is.
enum Disk {
    /// A file system in a mount namespace, which lives as long as this process.
    Mounted(Child),
    Limited,
}

impl Disk {
    /// With a file system at `at`.
    fn new(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let mount = format!("mount -t tmpfs -o mode=0700,size={SIZE} tmpfs \"$0\" && echo mounted && exec sleep 600");
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
            .arg(at)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(keeper.stdout.take().unwrap()), &mut line);
        if line == "mounted\n" {
            return Self::Mounted(keeper);
        }
        eprintln!("no file system can be mounted here: the size of files is limited instead");
        let _ = keeper.wait();
        Self::Limited
    }

    fn mesh(&self, dir: tempfile::TempDir) -> Mesh {
        match self {
            Self::Mounted(keeper) => {
                let id = keeper.id().to_string();
                let enter = ["nsenter", "--target", &id, "--user", "--mount", "--preserve-credentials"];
                Mesh::under(dir, &enter, &PathBuf::from(format!("/proc/{id}/root")))
            }
            // the signal would end the process before it sees an error
            Self::Limited => Mesh::under(dir, &["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""], Path::new("/")),
        }
    }

    fn fill(&self, mesh: &Mesh) {
        match self {
            Self::Mounted(_) => {
                let mut ballast = std::fs::File::create(mesh.data().join("ballast")).unwrap();
                while ballast.write_all(&[1; 4096]).is_ok() {}
                ballast.sync_all().unwrap();
            }
            Self::Limited => {
                let size = std::fs::metadata(mesh.data().join("weft.redb")).unwrap().len();
                limit(mesh, &size.to_string());
            }
        }
    }

    fn free(&self, mesh: &Mesh) {
        match self {
            Self::Mounted(_) => std::fs::remove_file(mesh.data().join("ballast")).unwrap(),
            Self::Limited => limit(mesh, "unlimited"),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Self::Mounted(keeper) = self {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

fn limit(mesh: &Mesh, size: &str) {
    let set = Command::new("prlimit")
        .args([&format!("--fsize={size}:unlimited"), "--pid", &mesh.server_id().to_string()])
        .status();
    assert!(set.unwrap().success());
}

/// A document of 50 kB: a few of them fill what the store has in reserve.
fn document(n: usize) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r{n}\n  annotations:\n    note: \
         {}\nspec:\n  parentRefs:\n    - {{group: \"\", kind: Service, name: other}}\n  rules:\n    - backendRefs:\n        - \
         {{name: other, port: 80}}\n",
        "x".repeat(50_000)
    )
}

fn apply(mesh: &Mesh, n: usize) -> (bool, String) {
    let out = mesh.weft_with(&["apply", "-f", "-"], &document(n));
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

/// Which of the documents there are.
fn there(mesh: &Mesh) -> BTreeSet<usize> {
    let json = mesh.json(&["get", "httproute"]);
    let name = |r: &serde_json::Value| r["metadata"]["name"].as_str().unwrap()[1..].parse().unwrap();
    json["items"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn e2e_a_full_disk_refuses_writes_names_itself_and_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(&dir.path().join("data"));
    let mut mesh = disk.mesh(dir);
    let origin = serve(|_, _| (200, "here".into()));
    let port = format!("http=80:{}", origin.port());
    let _api = mesh.sidecar("api", Some(&port), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let token = mesh.token("late");
    let mut acknowledged = BTreeSet::new();
    for n in 0..3 {
        assert!(apply(&mesh, n).0);
        acknowledged.insert(n);
    }

    let load = Load::start(web.upstreams[0], 2, Duration::from_millis(5));
    disk.fill(&mesh);
    let mut refused = None;
    for n in 3..400 {
        match apply(&mesh, n) {
            (true, _) => drop(acknowledged.insert(n)),
            (false, said) => {
                refused = Some(said);
                break;
            }
        }
    }
    let said = refused.expect("the disk is full");
    let why = match disk {
        Disk::Mounted(_) => {
            "the disk of the store is full, nothing was written; free some space and try again: No space left on device (os error 28)"
        }
        Disk::Limited => "the store cannot be written, nothing was; check its disk: File too large (os error 27)",
    };
    assert_eq!(said, format!("weft: the store did not take it: {why}\n"));
    // again, and what is read meanwhile
    for again in 0..3 {
        assert!(!apply(&mesh, 1000 + again).0);
        assert_eq!(there(&mesh), acknowledged);
    }
    assert_eq!(mesh.json(&["endpoints", "api"])["endpoints"].as_array().map(Vec::len), Some(1));
    // who joins now would have to be written down: it waits, and says why; a file that may not grow still has room for
    // that little
    let late = mesh.workload_with("sidecar", "late", &token, None, &["api"], &[], &[]);
    if let Disk::Mounted(_) = disk {
        eventually("the late one says why it waits", || {
            let log = late.log();
            if log.contains("weft: waiting to join: ") && log.contains("disk") { Ok(()) } else { Err(log) }
        });
    }
    let asked = load.asked();
    eventually("the load goes on", || if load.asked() > asked + 200 { Ok(()) } else { Err(load.asked()) });
    let seen = load.stop();
    assert_eq!(seen.bad, []);

    // nothing that was acknowledged is lost with the process, and there is room again
    disk.free(&mesh);
    eventually("writes are taken again", || match apply(&mesh, 2000) {
        (true, _) => Ok(()),
        (false, said) => Err(said),
    });
    acknowledged.insert(2000);
    assert_eq!(there(&mesh), acknowledged);
    mesh.until_answers(&late, 200);
    mesh.kill_server();
    mesh.start_server();
    assert_eq!(there(&mesh), acknowledged);
    mesh.until_answers(&web, 200);
}
