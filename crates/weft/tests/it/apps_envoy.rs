//! Envoy as an HBONE peer, in both directions: three kinds of payload, and everybody who is not whom the other expects.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use weft_ca::Kek;
use weft_identity::{Svid, csr::KeyPair};
use weft_model::SpiffeId;

use crate::{
    envoy::{Envoy, Tls, terminating, tunnelling},
    mesh::{Mesh, PATIENCE, Reply, Workload, connect, eventually, get, peer, serve_tcp},
};

// === identities ===

fn id(mesh: &Mesh, service: &str) -> SpiffeId {
    let td = mesh.credentials("asker").svid.id().trust_domain();
    SpiffeId::workload(&td, "default", service).unwrap()
}

/// A certificate that claims `id`, of an authority that nobody knows. It brings that authority along.
fn forged(id: &SpiffeId) -> Svid {
    let (kek, now) = (Kek::generate().unwrap(), weft_rt::Clock::real().wall());
    let start = weft_ca::first_start(&id.trust_domain(), &kek, now).unwrap();
    let signer = weft_ca::current_signer(&start.signing, &start.roots, &kek).unwrap();
    let key = KeyPair::generate().unwrap();
    let issue = weft_ca::Issue {
        id: id.clone(),
        public_key: key.public_key(),
        ttl: Duration::from_secs(3600),
        dns_names: Vec::new(),
    };
    let chain = signer.issue(&issue, now).unwrap().chain;
    let root = signer.root().certificates().next().unwrap().clone();
    key.into_svid(chain).unwrap().with_authority(&root).unwrap()
}

// === applications ===

/// What an application was asked.
type Seen = Arc<Mutex<Vec<String>>>;

fn http1_app() -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let at = crate::mesh::serve(move |head, _| {
        log.lock().unwrap().push(head.to_owned());
        (200, format!("hello {head}"))
    });
    (at, seen)
}

/// HTTP/2 with prior knowledge, and nothing else.
fn http2_app() -> SocketAddr {
    serve_tcp(|io| {
        io.set_nonblocking(true).unwrap();
        in_runtime(async move {
            let Ok(mut conn) = h2::server::handshake(tokio::net::TcpStream::from_std(io).unwrap()).await else {
                return;
            };
            while let Some(Ok((request, mut reply))) = conn.accept().await {
                let said = format!("h2 hello {}", request.uri().path());
                if let Ok(mut body) = reply.send_response(http::Response::new(()), false) {
                    let _ = body.send_data(said.into(), true);
                }
            }
        });
    })
}

fn echo_app() -> SocketAddr {
    serve_tcp(|mut io| {
        let _ = std::io::copy(&mut io.try_clone().unwrap(), &mut io);
        let _ = io.shutdown(Shutdown::Write);
    })
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A GET by HTTP/2 with prior knowledge: status and body.
fn get_h2(at: SocketAddr, path: &str, id: &str) -> Result<(u16, String), String> {
    let asking = async {
        let io = tokio::net::TcpStream::connect(at).await.map_err(|e| e.to_string())?;
        let (mut client, conn) = h2::client::handshake(io).await.map_err(|e| e.to_string())?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(conn);
        let request = http::Request::get(format!("http://{at}{path}")).header("x-request-id", id).body(()).unwrap();
        let (answer, _) = client.send_request(request, true).map_err(|e| e.to_string())?;
        let answer = answer.await.map_err(|e| e.to_string())?;
        let (status, mut body, mut text) = (answer.status().as_u16(), answer.into_body(), Vec::<u8>::new());
        while let Some(chunk) = body.data().await {
            let chunk: Bytes = chunk.map_err(|e| e.to_string())?;
            text.extend_from_slice(&chunk);
        }
        Ok((status, crate::mesh::text(&text)))
    };
    in_runtime(async { tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|e| Err(e.to_string())) })
}

/// Bytes there and back, and the half-close.
fn echoed(at: SocketAddr, said: &str) -> std::io::Result<String> {
    let mut io = connect(at)?;
    io.write_all(said.as_bytes())?;
    io.shutdown(Shutdown::Write)?;
    let mut got = String::new();
    io.read_to_string(&mut got)?;
    Ok(got)
}

fn until_ok(what: &str, envoy: &Envoy, mut ask: impl FnMut() -> std::io::Result<Reply>) -> Reply {
    eventually(what, || match ask() {
        Ok(reply) if reply.status == 200 => Ok(reply),
        other => Err(format!("{other:?}; {}", envoy.log())),
    })
}

// === Envoy calls ===

fn sidecar(mesh: &Mesh, service: &str, port: &str) -> Workload {
    let workload = mesh.workload_logging("sidecar", service, &mesh.token(service), Some(port), &[], &[], &[], "info");
    mesh.until_passing(service, 1);
    workload
}

const NO_SECRETS: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-secrets\nspec:\n  action: DENY\n  rules:\n    - to:\n        - operation:\n            paths: [\"/secret*\"]\n";

fn allow(service: &str, from: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {service}\nspec:\n  selector:\n    matchLabels:\n      app: {service}\n  rules:\n    - from:\n        - source:\n            serviceAccounts: [\"{from}\"]\n"
    )
}

/// What `weft why` tells, once it tells all that is wanted.
fn why(mesh: &Mesh, args: &[&str], wanted: &[&str]) {
    eventually(&format!("why {args:?} names {wanted:?}"), || {
        let out = mesh.weft(&[&["why"], args].concat());
        let said = crate::mesh::text(&out.stdout);
        // all in one story
        let told = said.split("\nconn-").any(|story| wanted.iter().all(|w| story.contains(w)));
        if told { Ok(()) } else { Err(format!("{said}{}", crate::mesh::text(&out.stderr))) }
    });
}

#[test]
fn e2e_sec_13_envoy_tunnels_into_a_weft_sidecar_and_is_known_by_its_identity() {
    let Some(envoy) = peer("ENVOY") else { return };
    let mesh = Mesh::start();
    let (origin, seen) = http1_app();
    let _api = sidecar(&mesh, "api", &format!("http=80:{}", origin.port()));
    let _h2 = sidecar(&mesh, "modern", &format!("http2=80:{}", http2_app().port()));
    let _raw = sidecar(&mesh, "raw", &format!("tcp=81:{}", echo_app().port()));
    mesh.apply(
        &[allow("api", "envoy"), allow("modern", "envoy"), allow("raw", "envoy"), NO_SECRETS.into()].join("---\n"),
    );
    let own = mesh.credentials("envoy");
    let from = |service: &str| format!("{} → default/{service}", own.svid.id());

    // HTTP/1.1: who called is told by the handshake, and what is asked inside is authorized
    let api = id(&mesh, "api");
    let (good, at) = tunnelling(&mesh, &envoy, &Tls::new(&own.svid, &api), "api");
    let reply = until_ok("Envoy tunnels", &good, || get(at, "/a", &[("x-request-id", "of-envoy")]));
    assert_eq!(reply.text(), "hello GET /a");
    why(
        &mesh,
        &["of-envoy"],
        &[&from("api"), "GET /a: 200", "verdict   allow", "AuthorizationPolicy/default/api#rule-0"],
    );
    let denied = get(at, "/secret", &[("x-request-id", "secret-1")]).unwrap();
    assert_eq!(
        (denied.status, denied.header("weft-rule")),
        (403, Some("AuthorizationPolicy/default/no-secrets#rule-0"))
    );
    why(&mesh, &["secret-1"], &[&from("api"), "GET /secret: 403", "verdict   deny", "no-secrets#rule-0"]);
    assert_eq!(*seen.lock().unwrap(), ["GET /a"], "the application saw nothing else");

    // HTTP/2 with prior knowledge
    let modern = id(&mesh, "modern");
    let (_modern, at) = tunnelling(&mesh, &envoy, &Tls::new(&own.svid, &modern), "modern");
    assert_eq!(get_h2(at, "/b", "of-envoy-2"), Ok((200, "h2 hello /b".into())));
    why(&mesh, &["of-envoy-2"], &[&from("modern"), "GET /b: 200"]);
    assert_eq!(get_h2(at, "/secret", "secret-2").map(|r| r.0), Ok(403));

    // bytes
    let raw = id(&mesh, "raw");
    let (_raw, at) = tunnelling(&mesh, &envoy, &Tls::new(&own.svid, &raw), "raw");
    // a DENY by path cannot be judged there, so it holds
    assert_ne!(echoed(at, "abc").ok().as_deref(), Some("abc"));
    why(&mesh, &["--last", "50"], &[&from("raw"), "verdict   deny", "no-secrets#rule-0"]);
    mesh.ok(&["delete", "AuthorizationPolicy", "no-secrets"]);
    eventually("bytes come back", || match echoed(at, "abc") {
        Ok(got) if got == "abc" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    why(&mesh, &["--all", "--last", "50"], &[&from("raw"), "verdict   allow"]);

    // an identity of the same authority that no rule allows
    let stranger = mesh.credentials("stranger");
    let (_stranger, at) = tunnelling(&mesh, &envoy, &Tls::new(&stranger.svid, &api), "api");
    get(at, "/c", &[]).unwrap_err();
    why(&mesh, &[], &[&format!("{} → default/api", stranger.svid.id()), "verdict   deny"]);
    // an Envoy that expects somebody else does not speak to ours
    let (picky, at) = tunnelling(&mesh, &envoy, &Tls::new(&own.svid, &modern), "api");
    get(at, "/d", &[]).unwrap_err();
    picky.until_logged("CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN matcher");
    assert_eq!(*seen.lock().unwrap(), ["GET /a"], "the application saw nothing else");
}

#[test]
fn e2e_sec_13_sec_14_an_envoy_of_another_authority_or_of_tls_1_2_is_refused_and_told() {
    let Some(envoy) = peer("ENVOY") else { return };
    let (mesh, other) = (Mesh::start(), Mesh::start());
    let (origin, seen) = http1_app();
    let sidecar = sidecar(&mesh, "api", &format!("http=80:{}", origin.port()));
    let (api, own) = (id(&mesh, "api"), mesh.credentials("envoy"));
    let (good, at) = tunnelling(&mesh, &envoy, &Tls::new(&own.svid, &api), "api");
    until_ok("Envoy tunnels", &good, || get(at, "/good", &[]));

    let refused = |tls: &Tls<'_>, why: &str| {
        let (bad, at) = tunnelling(&mesh, &envoy, tls, "api");
        get(at, "/bad", &[]).unwrap_err();
        eventually(why, || {
            let told =
                |l: &str| l.contains("mesh handshake refused") && l.contains("peer_untrusted") && l.contains(why);
            if sidecar.log().lines().any(told) { Ok(()) } else { Err(format!("{}{}", sidecar.log(), bad.log())) }
        });
    };
    let foreign = other.credentials("envoy");
    let ours = api.trust_domain();
    refused(&Tls::new(&foreign.svid, &api), &format!("{} is of another trust domain than {ours}", foreign.svid.id()));
    // a certificate with the very name of the one that is let in
    let forged = forged(own.svid.id());
    let unknown = format!("{} is signed by no authority that trust domain {ours} has now", own.svid.id());
    refused(&Tls::new(&forged, &api), &unknown);
    refused(&Tls { version: "TLSv1_2", ..Tls::new(&own.svid, &api) }, "the peer does not offer TLS 1.3");
    assert_eq!(*seen.lock().unwrap(), ["GET /good"], "the application saw nothing else");
    until_ok("the good one still tunnels", &good, || get(at, "/good", &[]));
}

// === Envoy is called ===

const PORTS: [(&str, u16); 3] = [("http", 8080), ("http2", 8081), ("tcp", 8082)];

fn entry(name: &str, at: SocketAddr, account: &str, ports: &[(&str, u16)]) -> String {
    let ports: String = ports.iter().map(|(name, port)| format!("    {name}: {port}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\nspec:\n  address: {}\n  labels:\n    app: {name}\n    networking.istio.io/tunnel: http\n  serviceAccount: {account}\n  ports:\n{ports}",
        at.ip()
    )
}

#[test]
fn e2e_sec_13_a_weft_sidecar_tunnels_into_envoy_and_checks_whom_it_met() {
    let Some(envoy) = peer("ENVOY") else { return };
    let (mesh, other) = (Mesh::start(), Mesh::start());
    let (origin, seen) = http1_app();
    // HBONE has one port: an address of its own for each, and other ones for who runs this at the same time
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let at = |last: u8| SocketAddr::from(([127, 128 | high, low, last], 15008));
    let (web_id, legacy) = (id(&mesh, "web"), mesh.credentials("legacy"));
    let apps = [(8080, origin), (8081, http2_app()), (8082, echo_app())];
    let good = terminating(&mesh, &envoy, &Tls::new(&legacy.svid, &web_id), at(1), &apps);
    let nobody = id(&mesh, "nobody");
    let picky = terminating(&mesh, &envoy, &Tls::new(&legacy.svid, &nobody), at(2), &apps);
    let (forged, foreign) = (forged(legacy.svid.id()), other.credentials("legacy"));
    let _forged = terminating(&mesh, &envoy, &Tls::new(&forged, &web_id), at(3), &apps);
    let _foreign = terminating(&mesh, &envoy, &Tls::new(&foreign.svid, &web_id), at(4), &apps);
    // where a fallback to plain text would find an answer
    let plain: Vec<_> = (1..=4).map(|n| TcpListener::bind((at(n).ip(), 8080)).unwrap()).collect();
    mesh.apply(&entry("legacy", at(1), "legacy", &PORTS));
    for (name, last) in [("picky", 2), ("forged", 3), ("foreign", 4)] {
        mesh.apply(&entry(name, at(last), "legacy", &PORTS[..1]));
    }
    let upstreams = ["legacy:http", "legacy:http2/http2", "legacy:tcp/tcp", "picky", "forged", "foreign"];
    let web = mesh.sidecar("web", None, &upstreams);
    mesh.until_synced(&[&web]);
    let [http, http2, tcp, picky_at, forged_at, foreign_at] = web.upstreams[..] else { unreachable!() };

    let reply = until_ok("the sidecar tunnels", &good, || get(http, "/x", &[("x-request-id", "hbone-1")]));
    assert_eq!(reply.text(), "hello GET /x");
    assert_eq!(get_h2(http2, "/y", "hbone-2"), Ok((200, "h2 hello /y".into())));
    assert_eq!(echoed(tcp, "abc").unwrap(), "abc");

    // refused by Envoy: we are not whom it expects
    let refused = get(picky_at, "/", &[]).unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    picky.until_logged("CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN matcher");
    // refused by us: its authority is none of ours, whatever its name
    let ours = web_id.trust_domain();
    for (at, why) in [
        (
            forged_at,
            format!("certificate of {} is signed by no authority that trust domain {ours} has now", legacy.svid.id()),
        ),
        (foreign_at, format!("{} is of another trust domain than {ours}", foreign.svid.id())),
    ] {
        let refused = get(at, "/", &[]).unwrap();
        assert_eq!(
            (refused.status, refused.header("weft-failure")),
            (503, Some("retries_exhausted;not-sent")),
            "{refused:?}"
        );
        assert!(refused.text().contains(&why) && refused.text().contains("met tls_failed: "), "{}", refused.text());
    }
    // refused by us: it is not whom we expect, although the same authority vouches for it
    mesh.apply(&entry("legacy", at(1), "somebody-else", &PORTS));
    let refused = eventually("the mismatch is found", || match get(http, "/", &[]) {
        Ok(reply) if reply.status == 503 => Ok(reply),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(refused.header("weft-failure"), Some("retries_exhausted;not-sent"), "{refused:?}");
    assert!(refused.text().contains("met identity_mismatch: "), "{}", refused.text());
    assert!(refused.text().contains(&format!("peer is {}", legacy.svid.id())), "{}", refused.text());
    for listener in plain {
        listener.set_nonblocking(true).unwrap();
        let found = listener.accept().map(|(_, from)| from);
        assert_eq!(found.map_err(|e| e.kind()), Err(std::io::ErrorKind::WouldBlock), "nobody fell back");
    }
    let asked = seen.lock().unwrap();
    assert!(asked.iter().all(|line| line == "GET /x" || line == "GET /"), "{asked:?}");
}
