//! Certificates that live 20 seconds, and what is open for longer than three of them.
//!
//! What each sees: an application's own connections to its sidecar are never touched. Below them, a stream of HTTP/2, a long
//! answer, a TCP connection and an upgraded one each live on one stream of a mesh connection; when a certificate is
//! renewed the mesh connection takes no new streams and stays until the last of its own ends. So all of them are *kept*,
//! byte for byte, while everything that is asked anew goes over mesh connections made with the new certificate.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    fault_load::Load,
    fault_policy::{dripping, echo, ping, serve_http_upgrade_and_drip, upgraded},
    h2c::{Client, serve_h2},
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
    let (http2, _gate) = serve_h2();
    let _grpc = mesh.sidecar("grpc", Some(&format!("grpc=80:{}", http2.port())), &[]);
    let web = mesh.sidecar("web", None, &["plain", "db", "api", "grpc"]);
    for service in ["db", "api", "plain", "grpc"] {
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
    let client = Client::connect(web.upstreams[3]);
    let mut stream = client.call("/echo").unwrap();
    let load = Load::start(web.upstreams[0], 2, Duration::from_millis(20));
    let address = |service: &str| -> SocketAddr {
        mesh.json(&["endpoints", service])["endpoints"][0]["mesh"].as_str().unwrap().parse().unwrap()
    };
    let servers = ["db", "api", "plain", "grpc"].map(address);
    let mut serials = [const { BTreeSet::new() }; 4];

    let (began, mut n) = (Instant::now(), 0);
    let mut dripped = 0;
    while began.elapsed() < LEAF * 3 + Duration::from_secs(5) {
        n += 1;
        let at = || format!("after {:?}", began.elapsed());
        ping(&mut tcp, n).unwrap_or_else(|e| panic!("TCP connection {}: {e}", at()));
        ping(&mut upgrade, n).unwrap_or_else(|e| panic!("upgraded connection {}: {e}", at()));
        client.ping(&mut stream, n).unwrap_or_else(|e| panic!("HTTP/2 stream {}: {e}", at()));
        let got = long.fill_buf().unwrap_or_else(|e| panic!("long request {}: {e}", at())).len();
        assert_ne!(got, 0, "long request ended {}", at());
        long.consume(got);
        dripped += got;
        if n % 20 == 0 {
            // a stream begun now, on the same connection of the client, beside the one that is open
            client.ping(&mut client.call("/echo").unwrap(), n).unwrap();
            servers.iter().zip(&mut serials).for_each(|(at, seen)| seen.extend([served_serial(*at)]));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    stream.send.send_data(bytes::Bytes::new(), true).unwrap();
    let (rest, end) = client.rest(&mut stream);
    assert!(rest.is_empty() && end.unwrap()["grpc-status"] == "0", "the stream ends as it should: {rest:?}");
    let seen = load.stop();
    assert_eq!(seen.bad, []);
    assert!(seen.good > 1000 && dripped > 1000, "{seen:?} {dripped}");
    for serials in serials {
        assert!(serials.len() >= 4, "new handshakes show new serials: {serials:?}");
    }
}
