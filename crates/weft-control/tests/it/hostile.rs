//! Peers that connect to hold what others need, or that say they are somebody else.

use std::{net::SocketAddr, time::Duration};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::Instant,
};
use tokio_rustls::TlsConnector;
use weft_ca::JoinToken;
use weft_identity::{ALPN_H2, csr::KeyPair, join_client_config};
use weft_snapshot::fragment::Collection;

use crate::kit::{Mesh, Proxy, attach, register, wall};

/// So many connections, each having said only this.
async fn stalled(to: SocketAddr, n: usize, said: &[u8]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..n {
        let mut io = TcpStream::connect(to).await.unwrap();
        io.write_all(said).await.unwrap();
        all.push(io);
    }
    all
}

/// Whether the server ends it within a time that is more than the server allows, and far less than for ever.
async fn ends(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(17), io.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_half_said_head_or_handshake_ends_the_http_connection() {
    let mesh = Mesh::start().await;
    let http = mesh.server.addresses().http;
    let mut silent = stalled(http, 1, b"").await.remove(0);
    let mut head = stalled(http, 1, b"GET / HTTP/1.1\r\nHost: x\r\nA: ").await.remove(0);
    let mut hello = stalled(http, 1, &[0x16, 3, 1, 2, 0]).await.remove(0);
    let ended = tokio::join!(ends(&mut silent), ends(&mut head), ends(&mut hello));
    assert_eq!(ended, (true, true, true));
}

#[tokio::test]
async fn stalled_http_connections_are_capped_and_make_room() {
    let mesh = Mesh::start().await;
    // a quarter of what the process may open, but 1,024 suffice
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap();
    let most = line.split_whitespace().next().unwrap().parse().map_or(1024, |n: usize| 1024.min(n / 4));
    let began = Instant::now();
    let mut stuck = stalled(mesh.server.addresses().http, most + 100, b"GET / HTTP/1.1\r\nA: ").await;
    let (status, _) = mesh.get("/weft/v1/status").await;
    assert_eq!(status, 200);
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(5), "it was let in beside {most}, after {waited:?}");
    assert!(ends(&mut stuck[0]).await);
}

#[tokio::test]
async fn stalled_hellos_of_one_address_hold_up_nobody_of_another() {
    let mesh = Mesh::start().await;
    let token = mesh.new_token("{}").await;
    let to = mesh.server.addresses().mesh;
    let _stuck = stalled(to, 600, &[0x16, 3, 1]).await;
    let began = Instant::now();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let io = socket.connect(to).await.unwrap();
    let config = join_client_config(token.parse::<JoinToken>().unwrap().pin, &[ALPN_H2], &wall());
    TlsConnector::from(config).connect(ServerName::IpAddress(to.ip().into()), io).await.unwrap();
    // the stalled ones are borne for 3 s
    assert!(began.elapsed() < Duration::from_millis(2900), "{:?}", began.elapsed());
    // and the same address is closed to for as long as a stalled one is borne
    while mesh.join_by(&token, "shop", "web", &KeyPair::generate().unwrap()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_without_a_certificate_that_does_not_join_ends() {
    let mesh = Mesh::start().await;
    let token = mesh.new_token("{}").await;
    let to = mesh.server.addresses().mesh;
    let config = join_client_config(token.parse::<JoinToken>().unwrap().pin, &[ALPN_H2], &wall());
    let io = TcpStream::connect(to).await.unwrap();
    let mut idle = TlsConnector::from(config).connect(ServerName::IpAddress(to.ip().into()), io).await.unwrap();
    // the preface and empty settings: a client as far as HTTP/2 goes
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let began = Instant::now();
    assert!(ends(&mut idle).await);
    // HTTP/2's own keepalive would have ended it later
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    mesh.join_by(&token, "shop", "web", &KeyPair::generate().unwrap()).await.unwrap();
}

#[tokio::test]
async fn nobody_speaks_for_another_proxy_in_status_or_waits() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (_a, web_uid) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_b, api_uid) = attach(&mesh, &api, register("shop", "api", "api-1")).await;
    let mut real = Proxy::open(mesh.channel(&api), &api_uid.uid, [Collection::Revocations]).await;
    real.until(|_| true).await;
    let mut forged = Proxy::open(mesh.channel(&api), &web_uid.uid, [Collection::Revocations]).await;
    forged.until(|_| true).await;
    let mut phantom = Proxy::open(mesh.channel(&api), "bank/vault/n1/vault-1", [Collection::Revocations]).await;
    phantom.until(|_| true).await;
    let synced = |s: &serde_json::Value| {
        let all = s["proxies"].as_array().unwrap();
        all.iter().any(|p| p["uid"] == api_uid.uid && p["state"] == "synced")
    };
    let status = mesh.until("/weft/v1/status", synced).await;
    let rows = status["proxies"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{status:#}");
    let row = rows.iter().find(|p| p["uid"] == web_uid.uid).unwrap();
    assert_eq!(row["state"], "not connected", "{status:#}");
    let (_, waited) = mesh.get("/weft/v1/wait?timeout=10s").await;
    assert_eq!(waited["total"], 1, "{waited:#}");
    let (applied, total) = mesh.server.control().sessions.callers_of(&weft_model::Uid::parse(&web_uid.uid).unwrap());
    assert_eq!((applied, total), (0, 0), "nobody subscribes to its endpoints");
    let endpoints = Collection::Endpoints("shop/web".parse().unwrap());
    forged.subscribe([endpoints.clone()]).await;
    forged.until(|f| f.contains_key(&endpoints)).await;
    assert_eq!(mesh.server.control().sessions.callers_of(&weft_model::Uid::parse(&web_uid.uid).unwrap()).1, 0);
}
