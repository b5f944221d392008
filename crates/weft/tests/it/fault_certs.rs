//! Certificates that live 20 seconds, and what is open for longer than three of them.
//!
//! What each sees: an application's own connections to its sidecar are never touched. Below them, a TCP connection and an
//! upgraded one each live on one stream of a mesh connection; when a certificate is renewed the mesh connection takes no
//! new streams and stays until the last of its own ends. So all of them are *kept*, byte for byte, while everything that
//! is asked anew goes over mesh connections made with the new certificate.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    fault_load::Load,
    fault_policy::{dripping, echo, ping, serve_http_upgrade_and_drip, upgraded},
    input_peers::served_serial,
    mesh::{Mesh, connect, eventually, serve, serve_tcp},
};

const LEAF: Duration = Duration::from_secs(20);

#[test]
fn e2e_sec_04_what_is_open_outlives_three_certificates() {
    let mesh = Mesh::with(&["--leaf-ttl", "20s"]);
    let (db, api, plain) = (serve_tcp(echo), serve_http_upgrade_and_drip(), serve(|_, _| (200, "here".into())));
    let _db = mesh.sidecar("db", Some(&format!("tcp=80:{}", db.port())), &[]);
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", api.port())), &[]);
    let _plain = mesh.sidecar("plain", Some(&format!("http=80:{}", plain.port())), &[]);
    let web = mesh.sidecar("web", None, &["plain", "db", "api"]);
    for service in ["db", "api", "plain"] {
        mesh.until_passing(service, 1);
    }
    mesh.until_answers(&web, 200);
    let mut tcp = eventually("the TCP service answers", || {
        let mut tcp = BufReader::new(connect(web.upstreams[1])?);
        ping(&mut tcp, 0).map(|()| tcp)
    });
    let mut upgrade = upgraded(web.upstreams[2]);
    ping(&mut upgrade, 0).unwrap();
    let mut long = dripping(web.upstreams[2]);
    let load = Load::start(web.upstreams[0], 2, Duration::from_millis(20));
    let address = |service: &str| -> SocketAddr {
        mesh.json(&["endpoints", service])["endpoints"][0]["mesh"].as_str().unwrap().parse().unwrap()
    };
    let (db, plain) = (address("db"), address("plain"));
    let mut serials = [BTreeSet::new(), BTreeSet::new()];

    let (began, mut n) = (Instant::now(), 0);
    let mut dripped = 0;
    while began.elapsed() < LEAF * 3 + Duration::from_secs(5) {
        n += 1;
        let at = || format!("after {:?}", began.elapsed());
        ping(&mut tcp, n).unwrap_or_else(|e| panic!("TCP connection {}: {e}", at()));
        ping(&mut upgrade, n).unwrap_or_else(|e| panic!("upgraded connection {}: {e}", at()));
        let got = long.fill_buf().unwrap_or_else(|e| panic!("long request {}: {e}", at())).len();
        assert_ne!(got, 0, "long request ended {}", at());
        long.consume(got);
        dripped += got;
        if n % 20 == 0 {
            serials[0].insert(served_serial(db));
            serials[1].insert(served_serial(plain));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let seen = load.stop();
    assert_eq!(seen.bad, []);
    assert!(seen.good > 1000 && dripped > 1000, "{seen:?} {dripped}");
    for serials in serials {
        assert!(serials.len() >= 4, "new handshakes show new serials: {serials:?}");
    }
}
