//! Readers that stop reading, on every stream of a mesh connection but one.

use std::{
    io::{BufReader, Read as _, Write as _},
    time::Duration,
};

use crate::{
    apps_http::{dial, head},
    mesh::{Mesh, eventually, get, serve_tcp},
};

#[test]
fn e2e_stalled_readers_leave_the_others_flowing() {
    let mesh = Mesh::start();
    let endless = serve_tcp(|io| {
        let mut io = BufReader::new(io);
        let asked = head(&mut io);
        if asked.starts_with("GET /small") {
            let _ = io.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nsmall");
            return;
        }
        let _ = io.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        while io.get_mut().write_all(&[b'x'; 65536]).is_ok() {}
    });
    let raw = serve_tcp(|mut io| {
        let mut first = [0];
        if io.read_exact(&mut first).is_ok() && first == [b'e'] {
            let _ = io.write_all(&first);
            return;
        }
        while io.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let _raw = mesh.sidecar("raw", Some(&format!("tcp=81:{}", raw.port())), &[]);
    let (_api, web) = {
        let api = mesh.sidecar("api", Some(&format!("http=80:{}", endless.port())), &[]);
        (api, mesh.sidecar("web", None, &["api", "raw"]))
    };
    mesh.until_passing("api", 1);
    mesh.until_passing("raw", 1);
    mesh.until_synced(&[&web]);
    eventually("it is reached", || match get(web.upstreams[0], "/small", &[]) {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // as many as one mesh connection carries but one (99 of 100 requests, 15 of 16 tunnels); nobody reads
    let stalled: Vec<_> = (0..99)
        .map(|_| dial(web.upstreams[0], "GET /endless HTTP/1.1\r\nHost: api\r\n\r\n"))
        .chain((0..15).map(|_| dial(web.upstreams[1], "x")))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..20 {
        assert_eq!(get(web.upstreams[0], "/small", &[]).unwrap().text(), "small");
        let mut io = dial(web.upstreams[1], "e");
        let mut got = String::new();
        io.read_to_string(&mut got).unwrap();
        assert_eq!(got, "e");
    }
    assert_eq!(stalled.len(), 114);
}
