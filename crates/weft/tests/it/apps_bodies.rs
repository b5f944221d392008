//! 1 GiB each way through two sidecars, which must not keep it.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
};

use crate::mesh::{Mesh, Workload, connect, serve_tcp, text};

const SIZE: u64 = 1 << 30;
/// Of each sidecar at its peak, in this unoptimized build: about 30 MiB for the program, the rest for buffers, of which
/// the windows of one connection are the largest (16 MiB for a tunnel's connection, 25 MiB for requests').
const CAP_KIB: u64 = 96 * 1024;

fn peak_kib(w: &Workload) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", w.child.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A body whose every byte tells where it is from.
fn chunk(at: u64) -> Vec<u8> {
    (0..1 << 16).map(|i: u64| ((at + i) % 251) as u8).collect()
}

fn send(io: &mut impl Write) -> std::io::Result<()> {
    // the pattern repeats after 251 bytes; 251 different chunks are all that there are
    let chunks: Vec<_> = (0..251).map(|n| chunk(n << 16)).collect();
    (0..SIZE >> 16).try_for_each(|n| io.write_all(&chunks[(n % 251) as usize]))
}

/// How many of the expected bytes came, and nothing else.
fn receive(io: &mut impl Read) -> u64 {
    let chunks: Vec<_> = (0..251).map(|n| chunk(n << 16)).collect();
    let mut buf = vec![0; 1 << 16];
    for n in 0..SIZE >> 16 {
        if io.read_exact(&mut buf).is_err() || buf != chunks[(n % 251) as usize] {
            return n << 16;
        }
    }
    SIZE
}

fn head(io: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(io.read_line(&mut head).unwrap(), 0, "{head}");
    }
    head
}

#[test]
fn e2e_trf_34_a_gibibyte_each_way_over_http() {
    let mesh = Mesh::start();
    let origin = serve_tcp(|io| {
        let mut io = BufReader::new(io);
        let mut line = String::new();
        while io.read_line(&mut line).is_ok_and(|n| n > 0) {
            if line.starts_with("POST") {
                head(&mut io);
                let got = receive(&mut io).to_string();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{got}", got.len());
                io.get_mut().write_all(answer.as_bytes()).unwrap();
            } else {
                head(&mut io);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
                io.get_mut().write_all(answer.as_bytes()).unwrap();
                send(io.get_mut()).unwrap();
            }
            line.clear();
        }
    });
    let api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&api, &web]);
    let mut io = BufReader::new(connect(web.upstreams[0]).unwrap());
    let request = format!("POST / HTTP/1.1\r\nhost: api\r\ncontent-length: {SIZE}\r\n\r\n");
    io.get_mut().write_all(request.as_bytes()).unwrap();
    send(io.get_mut()).unwrap();
    let answer = head(&mut io);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut got = vec![0; SIZE.to_string().len()];
    io.read_exact(&mut got).unwrap();
    assert_eq!(text(&got), SIZE.to_string(), "what the origin got");

    io.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").unwrap();
    let answer = head(&mut io);
    assert!(answer.contains(&format!("content-length: {SIZE}\r\n")), "{answer}");
    assert_eq!(receive(&mut io), SIZE);
    capped(&[&api, &web]);
}

#[test]
fn e2e_l4t_01_a_gibibyte_each_way_over_tcp() {
    let mesh = Mesh::start();
    // both ways at once
    let origin = serve_tcp(|io| {
        let mut back = io.try_clone().unwrap();
        let sending = std::thread::spawn(move || send(&mut back));
        let mut io = io;
        let got = receive(&mut io);
        sending.join().unwrap().unwrap();
        io.write_all(got.to_string().as_bytes()).unwrap();
        io.shutdown(Shutdown::Write).unwrap();
    });
    let api = mesh.sidecar("api", Some(&format!("tcp=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&api, &web]);
    let io = connect(web.upstreams[0]).unwrap();
    let mut out = io.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        send(&mut out).unwrap();
        out.shutdown(Shutdown::Write).unwrap();
    });
    let mut io = io;
    assert_eq!(receive(&mut io), SIZE);
    sending.join().unwrap();
    let mut rest = String::new();
    io.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, SIZE.to_string(), "what the origin got");
    capped(&[&api, &web]);
}

fn capped(sidecars: &[&Workload]) {
    for w in sidecars {
        let peak = peak_kib(w);
        eprintln!("peak of {}: {peak} KiB", w.id);
        assert!(peak < CAP_KIB, "{} used {peak} KiB at its peak", w.id);
    }
}
