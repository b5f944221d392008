//! The mesh port and somebody else's proxy: Envoy as an HBONE peer in both directions, and a hand-made CONNECT.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use serde_json::{Value, json};
use weft_identity::{ALPN_H2, WallClock, client_config};
use weft_model::SpiffeId;

use crate::mesh::{Mesh, PATIENCE, connect, eventually, free_addr, get, peer, serve, serve_tcp, write};

struct Envoy {
    child: Child,
    log: std::path::PathBuf,
}

impl Envoy {
    /// With one listener and one cluster.
    fn start(mesh: &Mesh, program: &std::path::Path, name: &str, listener: &Value, cluster: &Value) -> Self {
        let config = json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } });
        let config = write(mesh.dir.path(), &format!("{name}.json"), &config.to_string());
        let log = mesh.dir.path().join(format!("{name}.log"));
        let out = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(config).args(["--concurrency", "1", "--disable-hot-restart", "-l", "info"]);
        let child = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

fn cluster(name: &str, at: SocketAddr) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(at) } }] }] }
    })
}

/// TLS as HBONE has it: an identity of the mesh's authority, and exactly one identity expected.
fn common_tls(mesh: &Mesh, service: &str, expected: &str) -> Value {
    let c = mesh.credentials(service);
    let file =
        |name: &str, pem: &str| write(mesh.dir.path(), &format!("{service}-{name}.pem"), pem).display().to_string();
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": { "filename": file("chain", &c.svid.chain_pem()) },
            "private_key": { "filename": file("key", &c.svid.key_pem()) }
        }],
        "validation_context": {
            "trusted_ca": { "filename": file("root", &c.trust.bundle.to_pem()) },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": expected } }]
        }
    })
}

fn id(mesh: &Mesh, service: &str) -> SpiffeId {
    let td = mesh.credentials("asker").svid.id().trust_domain();
    SpiffeId::workload(&td, "default", service).unwrap()
}

/// An Envoy whose TCP clients are tunnelled to `to` over mTLS.
fn tunnelling(
    mesh: &Mesh,
    envoy: &std::path::Path,
    name: &str,
    at: SocketAddr,
    expected: &str,
    to: (SocketAddr, SocketAddr),
) -> Envoy {
    let tcp = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tunnel", "cluster": "mesh", "tunneling_config": { "hostname": to.1.to_string() }
    });
    let listener = json!({
        "name": "in", "address": address(at),
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": tcp }] }]
    });
    let mut cluster = cluster("mesh", to.0);
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common_tls(mesh, name, expected)
        }
    });
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} }
        }
    });
    Envoy::start(mesh, envoy, name, &listener, &cluster)
}

fn allow(service: &str, from: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {service}\nspec:\n  selector:\n    matchLabels:\n      app: {service}\n  rules:\n    - from:\n        - source:\n            serviceAccounts: [\"{from}\"]\n"
    )
}

#[test]
#[ignore = "not done: Envoy's tunnel into a Weft sidecar is reset; the other direction works"]
fn e2e_sec_13_envoy_tunnels_into_a_weft_sidecar_and_is_known_by_its_identity() {
    let Some(envoy) = peer("ENVOY") else { return };
    let mesh = Mesh::start();
    let origin = serve(|head, _| (200, format!("hello {head}")));
    let echo = serve_tcp(|mut io| drop(std::io::copy(&mut io.try_clone().unwrap(), &mut io)));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let _raw = mesh.sidecar("raw", Some(&format!("tcp=81:{}", echo.port())), &[]);
    mesh.until_passing("api", 1);
    mesh.until_passing("raw", 1);
    mesh.apply(&allow("api", "envoy"));
    mesh.apply(&allow("raw", "envoy"));
    let api = id(&mesh, "api").to_string();
    let answer = |at, path: &str| get(at, path, &[("x-request-id", "of-envoy")]);

    let at = free_addr();
    let good = tunnelling(&mesh, &envoy, "envoy", at, &api, mesh.addresses("api"));
    let reply = eventually("Envoy tunnels", || match answer(at, "/a") {
        Ok(reply) if reply.status == 200 => Ok(reply),
        other => Err(format!("{other:?}; {}", good.log())),
    });
    assert_eq!(reply.text(), "hello GET /a");
    // who called is told by the handshake
    let why = mesh.ok(&["why", "of-envoy", "--all"]);
    assert!(why.contains("/sa/envoy"), "{why}");
    // bytes, too, and the half-close
    let at = free_addr();
    let _tcp = tunnelling(&mesh, &envoy, "envoy", at, &id(&mesh, "raw").to_string(), mesh.addresses("raw"));
    eventually("Envoy tunnels bytes", || -> Result<(), String> {
        use std::io::{Read as _, Write as _};
        let mut io = connect(at).map_err(|e| e.to_string())?;
        io.write_all(b"abc").map_err(|e| e.to_string())?;
        io.shutdown(std::net::Shutdown::Write).map_err(|e| e.to_string())?;
        let mut got = String::new();
        io.read_to_string(&mut got).map_err(|e| e.to_string())?;
        if got == "abc" { Ok(()) } else { Err(got) }
    });

    // an identity that no rule allows: the tunnel opens, the request in it is denied
    let at = free_addr();
    let other = tunnelling(&mesh, &envoy, "stranger", at, &api, mesh.addresses("api"));
    eventually("the stranger is refused", || match answer(at, "/b") {
        Ok(reply) if reply.status == 403 => Ok(()),
        // refused before anything was looked at
        Err(e) if e.to_string().contains("closed") || e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other_answer => Err(format!("{other_answer:?}; {}", other.log())),
    });
    // an Envoy that expects somebody else does not speak to ours
    let at = free_addr();
    let picky = tunnelling(&mesh, &envoy, "envoy", at, &id(&mesh, "web").to_string(), mesh.addresses("api"));
    eventually("Envoy listens", || connect(at).map(drop));
    let refused = answer(at, "/c");
    assert!(refused.is_err(), "{refused:?}; {}", picky.log());
}

/// An Envoy that ends tunnels at its own address's HBONE port, for callers with one identity.
fn terminating(mesh: &Mesh, envoy: &std::path::Path, at: SocketAddr, caller: &str, origin: SocketAddr) -> Envoy {
    let route = json!({
        "match": { "connect_matcher": {} },
        "route": { "cluster": "origin", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] }
    });
    let http = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone", "codec_type": "HTTP2",
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }]
    });
    let tls = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common_tls(mesh, "legacy", caller)
        }
    });
    let listener = json!({
        "name": "hbone", "address": address(at),
        "filter_chains": [{
            "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": http }],
            "transport_socket": tls
        }]
    });
    Envoy::start(mesh, envoy, &format!("legacy-{}", at.ip()), &listener, &cluster("origin", origin))
}

fn entry(name: &str, at: SocketAddr, account: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\nspec:\n  address: {}\n  labels:\n    app: {name}\n    networking.istio.io/tunnel: http\n  serviceAccount: {account}\n  ports:\n    http: {port}\n",
        at.ip()
    )
}

#[test]
fn e2e_sec_13_a_weft_sidecar_tunnels_into_envoy_and_checks_whom_it_met() {
    let Some(envoy) = peer("ENVOY") else { return };
    let mesh = Mesh::start();
    let origin = serve(|head, _| (200, format!("hello {head}")));
    // HBONE has one port: an address of its own for each
    let at = |last: u8| SocketAddr::from(([127, 15, 8, last], 15008));
    let web_id = id(&mesh, "web").to_string();
    let good = terminating(&mesh, &envoy, at(1), &web_id, origin);
    let _picky = terminating(&mesh, &envoy, at(2), &id(&mesh, "nobody").to_string(), origin);
    // the third is the first with another identity expected of it
    mesh.apply(&entry("legacy", at(1), "legacy", 8080));
    mesh.apply(&entry("picky", at(2), "legacy", 8080));
    let web = mesh.sidecar("web", None, &["legacy", "picky"]);
    let reply =
        eventually("the sidecar tunnels", || match get(web.upstreams[0], "/x", &[("x-request-id", "hbone-1")]) {
            Ok(reply) if reply.status == 200 => Ok(reply),
            other => Err(format!("{other:?}; {}", good.log())),
        });
    assert_eq!(reply.text(), "hello GET /x");

    // refused by Envoy: we are not whom it expects
    let refused = get(web.upstreams[1], "/", &[]).unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    // refused by us: it is not whom we expect, although the same authority vouches for it
    mesh.apply(&entry("legacy", at(1), "somebody-else", 8080));
    let refused = eventually("the mismatch is found", || match get(web.upstreams[0], "/", &[]) {
        Ok(reply) if reply.status == 503 => Ok(reply),
        other => Err(format!("{other:?}")),
    });
    assert!(refused.header("weft-failure").is_some_and(|f| f.starts_with("identity_mismatch;not-sent")), "{refused:?}");
}

#[test]
fn e2e_sec_20_http_inside_a_hand_made_connect_is_denied_by_path() {
    let mesh = Mesh::start();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    let origin = serve(move |head, _| {
        log.lock().unwrap().push(head.to_owned());
        (200, "hello".into())
    });
    // declared, and left to detection
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let _guess = mesh.sidecar("guess", Some(&format!("81:{}", origin.port())), &[]);
    mesh.until_passing("api", 1);
    mesh.until_passing("guess", 1);
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-secrets\nspec:\n  action: DENY\n  rules:\n    - to:\n        - operation:\n            paths: [\"/secret\", \"/secret/*\"]\n",
    );
    let c = mesh.credentials("web");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for service in ["api", "guess"] {
        let (at, to) = mesh.addresses(service);
        let clock = WallClock::new(|| weft_rt::Clock::real().wall());
        let config = client_config(&c.svid, &c.trust, &[id(&mesh, service)], &[ALPN_H2], &clock);
        runtime.block_on(async {
            let tcp = tokio::net::TcpStream::connect(at).await.unwrap();
            let name = rustls_pki_types::ServerName::IpAddress(at.ip().into());
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
            let (client, conn) = h2::client::handshake(tls).await.unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(conn);
            for (line, want) in [
                ("GET /open", "HTTP/1.1 200"),
                ("GET /secret", "HTTP/1.1 403"),
                ("GET /secret/", "HTTP/1.1 403"),
                ("GET /%73ecret", "HTTP/1.1 403"),
                ("GET /open/../secret", "HTTP/1.1 403"),
                ("GET http://api/secret", "HTTP/1.1 403"),
            ] {
                let connect = http::Request::connect(to.to_string()).body(()).unwrap();
                let (answer, mut send) = client.clone().ready().await.unwrap().send_request(connect, false).unwrap();
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200, "{service}");
                send.send_data(Bytes::from(format!("{line} HTTP/1.1\r\nHost: api\r\n\r\n")), false).unwrap();
                let said = tokio::time::timeout(PATIENCE, answer.into_body().data()).await.unwrap().unwrap().unwrap();
                assert!(said.starts_with(want.as_bytes()), "{service}: {line}: {said:?}");
            }
            // what is no CONNECT is refused on this transport
            let plain = http::Request::get("http://api/open").body(()).unwrap();
            let (answer, _) = client.clone().ready().await.unwrap().send_request(plain, true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 400);
        });
    }
    assert_eq!(*seen.lock().unwrap(), ["GET /open", "GET /open"], "the application saw nothing else");
}
