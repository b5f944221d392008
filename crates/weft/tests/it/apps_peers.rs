//! The mesh port and a peer of no known make: a hand-made CONNECT.

use bytes::Bytes;
use weft_identity::{ALPN_H2, WallClock, client_config};
use weft_model::SpiffeId;

use crate::mesh::{Mesh, PATIENCE, serve};

fn id(mesh: &Mesh, service: &str) -> SpiffeId {
    let td = mesh.credentials("asker").svid.id().trust_domain();
    SpiffeId::workload(&td, "default", service).unwrap()
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
