//! Peers that misbehave: foreign and expired certificates, heads that are too large, bodies nobody reads, half-closed
//! connections.

use std::{
    io::{BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_identity::{ALPN_WEFT1, WallClock, client_config};
use weft_model::{ServiceKey, SpiffeId, Uid};
use weft_proxy::{
    Credentials,
    control::{self, Claim, Config, Proof},
};
use weft_rt::{Clock, Dice};

use crate::mesh::{Mesh, connect, eventually, get, read_reply, request, serve, serve_tcp};

/// An identity of `mesh`, got as any workload gets it.
fn identity(mesh: &Mesh, service: &str) -> Arc<Credentials> {
    let token = mesh.token(service).parse().unwrap();
    let key: ServiceKey = format!("default/{service}").parse().unwrap();
    let config = Config {
        server: mesh.grpc,
        proof: Proof::Token { server: mesh.grpc, token },
        claim: Claim {
            namespace: "default".into(),
            service_account: service.into(),
            service: service.into(),
            node: "test".into(),
        },
        uid: Uid::of(&key, &"test".parse().unwrap(), &"raw".parse().unwrap()),
        upstreams: Default::default(),
        state: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let joined = runtime.block_on(control::join(config, Clock::real(), Dice::from_os(), |_| ())).unwrap();
    joined.credentials.borrow().clone().unwrap()
}

/// Shakes hands with a sidecar as `me`, trusting `trust`; what comes of it.
fn shake(addr: SocketAddr, me: &Credentials, trust: &Credentials, expected: SpiffeId) -> std::io::Result<()> {
    let clock = Clock::real();
    let wall = WallClock::new(move || clock.wall());
    let config = client_config(&me.svid, &trust.trust, &[expected], &[ALPN_WEFT1], &wall);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let io = tokio::net::TcpStream::connect(addr).await?;
        let name = tokio_rustls::rustls::pki_types::ServerName::IpAddress(addr.ip().into());
        let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, io).await?;
        // HTTP/2's preface and empty settings; in TLS 1.3 a refusal of our certificate comes with the first read
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        tls.read_u8().await.map(drop)
    })
}

fn sidecar_with_log(mesh: &Mesh, port: u16) -> (crate::mesh::Workload, SocketAddr) {
    let api = mesh.workload_logging(
        "sidecar",
        "api",
        &mesh.token("api"),
        Some(&format!("http=80:{port}")),
        &[],
        &[],
        &[],
        "info",
    );
    mesh.until_passing("api", 1);
    let addr = mesh.json(&["endpoints", "api"])["endpoints"][0]["mesh"].as_str().unwrap().parse().unwrap();
    (api, addr)
}

/// Why a sidecar refused a handshake, as its log says.
fn refusal(api: &crate::mesh::Workload) -> String {
    eventually("the sidecar says why", || {
        let log = api.log();
        let found = log.lines().find_map(|line| {
            let (_, said) = line.split_once(" INFO weft_proxy::serve::mesh: mesh handshake refused src.addr=")?;
            let (_, why) = said.split_once(" failure=\"peer_untrusted\" detail=\"")?;
            why.strip_suffix('"').map(str::to_owned)
        });
        found.ok_or(log)
    })
}

#[test]
fn e2e_sec_14_a_certificate_of_another_trust_domain_is_refused_and_told() {
    let (mesh, other) = (Mesh::start(), Mesh::start());
    let (api, addr) = sidecar_with_log(&mesh, serve(|_, _| (200, "here".into())).port());
    let (ours, theirs) = (identity(&mesh, "web"), identity(&other, "web"));
    let expected = SpiffeId::workload(&ours.svid.id().trust_domain(), "default", "api").unwrap();
    shake(addr, &ours, &ours, expected.clone()).unwrap();
    let refused = shake(addr, &theirs, &ours, expected).unwrap_err().to_string();
    assert!(refused.contains("received fatal alert"), "{refused}");
    assert_eq!(
        refusal(&api),
        format!("{} is of another trust domain than {}", theirs.svid.id(), ours.svid.id().trust_domain())
    );
}

#[test]
fn e2e_sec_04_an_expired_certificate_is_refused_and_told() {
    let mesh = Mesh::with(&["--leaf-ttl", "6s"]);
    let (api, addr) = sidecar_with_log(&mesh, serve(|_, _| (200, "here".into())).port());
    let mine = identity(&mesh, "web");
    let expected = SpiffeId::workload(&mine.svid.id().trust_domain(), "default", "api").unwrap();
    shake(addr, &mine, &mine, expected.clone()).unwrap();
    let clock = Clock::real();
    eventually("it has expired", || if clock.wall() > mine.svid.not_after() { Ok(()) } else { Err(clock.wall()) });
    // the sidecar renewed its own meanwhile
    shake(addr, &mine, &mine, expected).unwrap_err();
    let told = refusal(&api);
    let begin = format!("certificate of {} expired at {}, it is now ", mine.svid.id(), mine.svid.not_after());
    let end = "; it was not renewed, or one of the clocks is wrong";
    assert!(told.starts_with(&begin) && told.ends_with(end), "{told}");
}

#[test]
fn trf_35_heads_that_are_too_large() {
    let mesh = Mesh::start();
    let large = "x".repeat(70 << 10);
    let answer = large.clone();
    let origin = serve_tcp(move |io| {
        let mut io = BufReader::new(io);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if io.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let large = if head.starts_with(b"GET /large ") { &answer } else { "small" };
        let _ = io
            .get_mut()
            .write_all(format!("HTTP/1.1 200 OK\r\nx-large: {large}\r\ncontent-length: 2\r\n\r\nok").as_bytes());
    });
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let reply = get(web.upstreams[0], "/", &[("x-large", &large)]).unwrap();
    assert_eq!((reply.status, reply.header("weft-failure")), (431, Some("request_head_too_large;not-sent")));
    assert_eq!(
        reply.text(),
        "weft: request_head_too_large: the request's header is too large: head-too-large: head is larger than 65536 bytes\n"
    );
    let many: Vec<_> = (0..101).map(|i| format!("x-{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&**name, "1")).collect();
    let reply = get(web.upstreams[0], "/", &many).unwrap();
    assert_eq!((reply.status, reply.header("weft-failure")), (431, Some("request_head_too_large;not-sent")));
    let reply = get(web.upstreams[0], "/large", &[]).unwrap();
    assert_eq!((reply.status, reply.header("weft-failure")), (502, Some("response_head_too_large;sent")));
    assert!(
        reply.text().starts_with("weft: response_head_too_large: the header of the endpoint's answer is too large"),
        "{}",
        reply.text()
    );
    assert_eq!(get(web.upstreams[0], "/", &[]).unwrap().status, 200);
}

#[test]
fn e2e_a_peer_that_stops_reading_holds_up_nobody_else() {
    let mesh = Mesh::start();
    let body = "x".repeat(8 << 20);
    let origin = serve(move |head, _| (200, if head == "GET /large" { body.clone() } else { "small".into() }));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let mut stalled: Vec<_> = (0..8).map(|_| BufReader::new(connect(web.upstreams[0]).unwrap())).collect();
    for io in &mut stalled {
        io.get_mut().write_all(b"GET /large HTTP/1.1\r\nhost: api\r\n\r\n").unwrap();
    }
    for _ in 0..100 {
        let asked = Instant::now();
        assert_eq!(get(web.upstreams[0], "/", &[]).unwrap().text(), "small");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    // whoever reads in the end gets all of it
    for mut io in stalled {
        let reply = read_reply(&mut io).unwrap();
        assert_eq!((reply.status, reply.body.len()), (200, 8 << 20));
    }
}

#[test]
fn a_half_closed_connection_still_gets_its_answer() {
    let mesh = Mesh::start();
    // answers when the caller has said all, as `nc` does
    let origin = serve_tcp(|mut io| {
        let mut all = Vec::new();
        let _ = io.read_to_end(&mut all);
        let _ = io.write_all(format!("{} bytes", all.len()).as_bytes());
    });
    let http = serve(|_, _| (200, "here".into()));
    let _db = mesh.sidecar("db", Some(&format!("tcp=80:{}", origin.port())), &[]);
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", http.port())), &[]);
    let web = mesh.sidecar("web", None, &["db", "api"]);
    mesh.until_passing("db", 1);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&web]);
    let ask = |addr: SocketAddr, what: &[u8]| -> std::io::Result<String> {
        let mut io = connect(addr)?;
        io.write_all(what)?;
        io.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        io.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = eventually("TCP answers", || match ask(web.upstreams[0], b"0123456789") {
        Ok(answer) if !answer.is_empty() => Ok(answer),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(answer, "10 bytes");
    let answer = ask(web.upstreams[1], b"GET / HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("here"), "{answer}");
    // one that closes in the middle of its body gets no answer and harms nobody
    let mut io = connect(web.upstreams[1]).unwrap();
    io.write_all(b"POST / HTTP/1.1\r\nhost: api\r\ncontent-length: 100\r\n\r\nhalf").unwrap();
    io.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = io.read_to_string(&mut answer);
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(request(web.upstreams[1], "POST", "/", &[], b"whole").unwrap().status, 200);
}

/// Serial of the certificate that a sidecar presents now, to somebody who presents none and believes everybody.
pub fn served_serial(addr: SocketAddr) -> String {
    use tokio_rustls::rustls::{
        ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };
    type Verdict<T> = Result<T, tokio_rustls::rustls::Error>;
    #[derive(Debug, Default)]
    struct Look(std::sync::Mutex<String>);
    impl ServerCertVerifier for Look {
        fn verify_server_cert(
            &self,
            leaf: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Verdict<ServerCertVerified> {
            *self.0.lock().unwrap() = weft_identity::Facts::read(leaf).unwrap().serial.to_string();
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Verdict<HandshakeSignatureValid> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Verdict<HandshakeSignatureValid> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
    let look = Arc::new(Look::default());
    let mut config =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(look.clone()).with_no_client_auth();
    config.alpn_protocols = vec![ALPN_WEFT1.to_vec()];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let io = tokio::net::TcpStream::connect(addr).await.unwrap();
        let name = ServerName::IpAddress(addr.ip().into());
        // it is refused afterwards: what it looks like is known by then
        let _ = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io).await;
    });
    let serial = look.0.lock().unwrap().clone();
    assert!(!serial.is_empty());
    serial
}
