//! The mesh port as a peer sees it: HBONE, `weft/1`, and what is refused (features.md 4.7, SEC-12 … SEC-15).

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use rustls_pki_types::ServerName;
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_identity::{WallClock, client_config, negotiated};
use weft_model::Protocol;
use weft_rt::Clock;
use weft_snapshot::fragment::{Action, Operation, Policy, Rule, StringMatch, Values};

use crate::{
    origin::{LIMIT, Origin},
    support::{Authority, Pair, allow_all, uid},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// A hand-made peer with the identity of `service`.
async fn peer(
    ca: &Authority,
    service: &str,
    to: SocketAddr,
    alpn: &[&[u8]],
    sni: Option<&str>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let c = ca.credentials(service);
    let clock = WallClock::new(|| Clock::real().wall());
    let config = client_config(&c.svid, &c.trust, &[ca.id("shop/api")], alpn, &clock);
    let name = match sni {
        Some(sni) => ServerName::try_from(sni.to_owned()).unwrap(),
        None => ServerName::IpAddress(to.ip().into()),
    };
    TlsConnector::from(config).connect(name, TcpStream::connect(to).await?).await
}

async fn h2_peer(pair: &Pair, service: &str, alpn: &'static [u8]) -> (SendRequest<Bytes>, JoinSet<()>) {
    let tls = peer(&pair.ca, service, pair.mesh(), &[alpn], None).await.unwrap();
    let (send, conn) = h2::client::handshake(tls).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = conn.await;
    });
    (send, tasks)
}

async fn status(client: &SendRequest<Bytes>, request: Request<()>) -> (u16, http::HeaderMap) {
    let (answer, mut send) = client.clone().ready().await.unwrap().send_request(request, false).unwrap();
    let _ = send.send_data(Bytes::new(), true);
    let answer = tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap();
    (answer.status().as_u16(), answer.headers().clone())
}

fn connect(to: impl ToString) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(to.to_string()).body(()).unwrap()
}

/// Denies one path to everybody.
fn deny_path(path: &str) -> weft_snapshot::fragment::Inbound {
    let to = Operation {
        paths: Values { any: vec![StringMatch::Exact(path.into())], none: Vec::new() },
        ..Operation::default()
    };
    let mut i = allow_all("shop/api", "1");
    i.policies.push(Policy {
        origin: "AuthorizationPolicy/shop/no-secrets".parse().unwrap(),
        action: Action::Deny,
        rules: vec![Rule { to: vec![to], ..Rule::default() }],
    });
    i
}

#[tokio::test]
async fn hbone_is_strict() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let (client, _conn) = h2_peer(&pair, "shop/web", b"h2").await;
    let get = Request::get("http://api.shop/").body(()).unwrap();
    let (code, headers) = status(&client, get).await;
    assert_eq!(
        (code, &headers["weft-failure"]),
        (400, &http::HeaderValue::from_static("bad_request;not-sent")),
        "CONNECT only"
    );
    let (code, headers) = status(&client, connect("10.9.9.9:80")).await;
    assert_eq!(code, 400, "not an address of the workload");
    assert_eq!(headers["weft-failure"], "bad_target;not-sent");
    assert_eq!(status(&client, connect("not-an-address:80")).await.0, 400);
    assert_eq!(status(&client, connect(origin.addr)).await.0, 200);
}

#[tokio::test]
async fn sec_18_a_denied_connect_gets_401_with_its_rule() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Tcp, origin.addr);
    let mut deny = allow_all("shop/api", "1");
    deny.policies.push(Policy {
        origin: "AuthorizationPolicy/shop/nobody".parse().unwrap(),
        action: Action::Deny,
        rules: vec![Rule::default()],
    });
    pair.set_policy(2, deny);
    pair.api.when_revision(2).await;
    let (client, _conn) = h2_peer(&pair, "shop/web", b"h2").await;
    let (code, headers) = status(&client, connect(origin.addr)).await;
    assert_eq!((code, headers["weft-rule"].to_str().unwrap()), (401, "AuthorizationPolicy/shop/nobody#rule-0"));
    assert_eq!(headers["weft-failure"], "denied;not-sent");
    assert_eq!(origin.logged(), "", "the application was not connected to");
}

#[tokio::test]
async fn sec_18_http_inside_a_connect_meets_the_same_rules() {
    for protocol in [Protocol::Http, Protocol::Undeclared] {
        let origin = Origin::answering(OK).await;
        let pair = Pair::new(protocol, origin.addr);
        pair.set_policy(2, deny_path("/secret"));
        pair.api.when_revision(2).await;
        let (client, _conn) = h2_peer(&pair, "shop/web", b"h2").await;
        let (answer, mut send) = client.ready().await.unwrap().send_request(connect(origin.addr), false).unwrap();
        let mut recv = answer.await.unwrap().into_body();
        let mut seen = String::new();
        for (path, want) in [
            ("/open", "HTTP/1.1 200 OK"),
            ("/secret", "HTTP/1.1 403 Forbidden"),
            ("/%73ecret", "HTTP/1.1 403 Forbidden"),
        ] {
            send.send_data(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into(), false).unwrap();
            seen.clear();
            while !seen.contains("\r\n\r\n") {
                let b = tokio::time::timeout(LIMIT, recv.data()).await.unwrap().unwrap().unwrap();
                seen.push_str(&String::from_utf8_lossy(&b));
            }
            assert!(seen.starts_with(want), "{protocol}: {path}: {seen}");
        }
        assert!(seen.contains("weft-rule: AuthorizationPolicy/shop/no-secrets#rule-0"), "{seen}");
        assert!(!origin.logged().contains("secret"), "{}", origin.logged());
    }
}

#[tokio::test]
async fn weft_1_resolves_claims_and_believes_the_certificate_only() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let (client, _conn) = h2_peer(&pair, "shop/web", b"weft/1").await;
    let get = |to: &str| Request::get("http://api.shop/").header("weft-to", to).body(()).unwrap();
    assert_eq!(status(&client, get("shop/api:80")).await.0, 200);
    assert_eq!(status(&client, get("shop/api:p80")).await.0, 200);
    for bad in ["shop/api:81", "shop/other:80", "", "80"] {
        let (code, headers) = status(&client, get(bad)).await;
        assert_eq!((code, headers["weft-failure"].to_str().unwrap()), (421, "misdirected;not-sent"), "{bad:?}");
    }
    let looped =
        Request::get("http://api.shop/").header("weft-to", "shop/api:80").header("weft-hops", "8").body(()).unwrap();
    assert_eq!(status(&client, looped).await.0, 508);
}

#[tokio::test]
async fn sec_14_sec_15_the_mesh_speaks_tls_1_3_with_a_post_quantum_exchange() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let tls =
        peer(&pair.ca, "shop/web", pair.mesh(), &[b"weft/1", b"h2"], Some(&uid("shop/api", "1").sni())).await.unwrap();
    let n = negotiated(tls.get_ref().1).unwrap();
    assert_eq!((n.version, n.group, n.post_quantum), ("TLSv1.3", "X25519MLKEM768", true));
    assert_eq!(n.alpn.as_deref(), Some(&b"weft/1"[..]), "our own comes first");
}

#[tokio::test]
async fn sec_12_a_peer_without_a_certificate_of_the_mesh_gets_nothing() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let stranger = Authority::new("mesh.test");
    // the client's own verdict comes first: it does not know the server's root either
    assert!(peer(&stranger, "shop/web", pair.mesh(), &[b"h2"], None).await.is_err());
    let mut plain = TcpStream::connect(pair.mesh()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(LIMIT, plain.read_to_end(&mut all)).await.unwrap();
    assert!(!String::from_utf8_lossy(&all).contains("HTTP/1.1 2"));
    // somebody else's name
    let other = uid("shop/other", "1").sni();
    assert!(peer(&pair.ca, "shop/web", pair.mesh(), &[b"weft/1"], Some(&other)).await.is_err());
    assert_eq!(origin.logged(), "");
}

#[tokio::test]
async fn sec_13_an_endpoint_with_another_identity_is_not_sent_to() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::with(Protocol::Http, origin.addr, |mut set| {
        for entries in set.0.values_mut() {
            for f in entries.values_mut() {
                if let weft_snapshot::fragment::Fragment::Endpoint(e) = Arc::make_mut(f) {
                    e.identities = vec!["spiffe://mesh.test/ns/shop/sa/somebody-else".parse().unwrap()];
                }
            }
        }
        set
    });
    let mut c = crate::origin::Raw::connect(pair.at).await;
    c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let (head, body) = c.response().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("weft-failure: retries_exhausted;not-sent"), "{head}");
    let tries = pair.web.records.when(|r| r.first().map(|r| r.tries.clone())).await;
    assert_eq!(tries.len(), 3);
    let kind = Some(weft_snapshot::failure::FailureKind::IdentityMismatch);
    assert!(tries.iter().all(|t| t.failure == kind), "what each try met: {tries:?}");
    assert!(body.contains("expected spiffe://mesh.test/ns/shop/sa/somebody-else"), "{body}");
    assert_eq!(origin.logged(), "");
}

#[tokio::test]
async fn weft_1_runs_no_http_on_a_port_that_is_declared_not_to_be_http() {
    for protocol in [Protocol::Tcp, Protocol::Tls] {
        let origin = Origin::answering(OK).await;
        let pair = Pair::new(protocol, origin.addr);
        let (client, _conn) = h2_peer(&pair, "shop/web", b"weft/1").await;
        let get = Request::get("http://api.shop/").header("weft-to", "shop/api:80").body(()).unwrap();
        let (code, headers) = status(&client, get).await;
        assert_eq!((code, headers["weft-failure"].to_str().unwrap()), (421, "misdirected;not-sent"), "{protocol}");
        assert_eq!(origin.logged(), "", "{protocol}: the application was not asked");
    }
}
