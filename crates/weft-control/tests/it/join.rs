use std::{io::Write as _, time::Duration};

use hyper::Method;
use weft_control::Config;
use weft_identity::csr::KeyPair;
use weft_model::Wall;
use weft_rt::Clock;
use weft_wire::{
    grpc::{Code, WorkloadApiClient},
    v1::{JoinRequest, RenewRequest},
};

use crate::kit::{Mesh, config, join_request, told, workload};

fn id_of(token: &str) -> &str {
    token.split('.').next().unwrap()
}

#[tokio::test]
async fn sec_10_a_token_joins_one_key_and_a_retry_of_it() {
    let mesh = Mesh::start().await;
    let token = mesh.new_token("{}").await;
    let key = KeyPair::generate().unwrap();
    let first = mesh.join_by(&token, "shop", "web", &key).await.unwrap();
    assert!(first.svid.id().as_str().ends_with("/ns/shop/sa/web"), "{}", first.svid.id());
    // the answer may have been lost: the same key gets another certificate
    let again = mesh.join_by(&token, "shop", "web", &key).await.unwrap();
    assert_ne!(first.svid.serial(), again.svid.serial());
    let e = mesh.join_by(&token, "shop", "web", &KeyPair::generate().unwrap()).await.err().unwrap();
    assert_eq!(e.code(), Code::PermissionDenied);
    assert_eq!(
        e.message(),
        format!(
            "join token {} was spent by another key; each token joins once: make a new one with `weft token create`, and \
             find out who used this one if it was not you",
            id_of(&token)
        )
    );
    let (_, ca) = mesh.get("/weft/v1/ca").await;
    // two leaves, and the server's own
    assert_eq!(ca["issued"]["total"], 3, "{ca:#}");
    assert_eq!(ca["ledger"][0]["node"], "n1");
    let (_, tokens) = mesh.get("/weft/v1/tokens").await;
    assert_eq!(tokens["tokens"][0]["spent"], true);
}

#[tokio::test]
async fn sec_10_tokens_that_do_not_let_in_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::tokio(Clock::real().wall());
    let mesh = Mesh::with(Config { clock: clock.clone(), ..config(dir.path()) }, dir).await;
    let key = KeyPair::generate().unwrap();
    let refused = async |token: &str, ns: &str| mesh.join_by(token, ns, "web", &key).await.err().unwrap();

    // for somebody else
    let bound = mesh.new_token(r#"{"namespace": "bank", "service_account": "web"}"#).await;
    let e = refused(&bound, "shop").await;
    let td = mesh.server.control().authority.trust_domain();
    assert_eq!(
        e.message(),
        format!(
            "join token {} is for bank/web, not for spiffe://{td}/ns/shop/sa/web; make one that allows it with `weft token \
             create`",
            id_of(&bound)
        )
    );
    // a wrong secret
    let token = mesh.new_token("{}").await;
    let mut parts: Vec<&str> = token.split('.').collect();
    let other = mesh.new_token("{}").await;
    parts[1] = other.split('.').nth(1).unwrap();
    let e = refused(&parts.join("."), "shop").await;
    assert!(
        e.message().starts_with(&format!("the secret of join token {} is wrong", id_of(&token))),
        "{}",
        e.message()
    );
    // deleted
    let (status, _) = mesh.http(Method::DELETE, &format!("/weft/v1/tokens/{}", id_of(&other)), "").await;
    assert_eq!(status, 200);
    let e = refused(&other, "shop").await;
    assert!(e.message().starts_with(&format!("join token {} is not known here", id_of(&other))), "{}", e.message());
    // the control plane's own identity
    let e = mesh.join_by(&token, "weft-system", "control-plane", &key).await.err().unwrap();
    assert_eq!(e.code(), Code::PermissionDenied);
    // expired
    clock.step_wall(3_700_000);
    let e = refused(&token, "shop").await;
    assert_eq!(e.code(), Code::PermissionDenied);
    assert!(e.message().starts_with(&format!("join token {} expired at 20", id_of(&token))), "{}", e.message());
    assert!(e.message().ends_with("make a new one with `weft token create`"), "{}", e.message());
}

#[tokio::test]
async fn sec_10_a_foreign_token_is_found_out_before_its_secret_is_sent() {
    let (ours, theirs) = (Mesh::start().await, Mesh::start().await);
    let token = theirs.new_token("{}").await;
    let e = ours.join_by(&token, "shop", "web", &KeyPair::generate().unwrap()).await.err().unwrap();
    let pin = token.split('.').nth(2).unwrap();
    // rustls prints the verifier's error in its debug form; whoever shows it to people takes it out of there
    let want = format!("ForeignRoot {{ pin: {pin} }}");
    assert!(told(&e).contains(&want), "{}", told(&e));
    let (_, tokens) = theirs.get("/weft/v1/tokens").await;
    assert_eq!(tokens["tokens"][0]["spent"], false);
}

#[tokio::test]
async fn without_a_certificate_only_join_answers() {
    let mesh = Mesh::start().await;
    let token = mesh.new_token("{}").await;
    let mut client = WorkloadApiClient::new(mesh.pinned(&token));
    let csr_der = KeyPair::generate().unwrap().csr().unwrap();
    let e = client.renew(RenewRequest { csr_der: csr_der.into() }).await.unwrap_err();
    assert_eq!(
        (e.code(), e.message()),
        (Code::Unauthenticated, "this call needs an SVID; without one only Join answers")
    );
    let key = KeyPair::generate().unwrap();
    let bare = JoinRequest { token_id: String::new(), secret: String::new(), ..join_request(&token, "a", "b", &key) };
    let e = client.join(bare).await.unwrap_err();
    assert_eq!(e.message(), "no join token; make one with `weft token create` and set WEFT_TOKEN");
}

#[tokio::test]
async fn sec_04_a_renewal_keeps_the_identity_and_changes_the_key() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let key = KeyPair::generate().unwrap();
    let request = RenewRequest { csr_der: key.csr().unwrap().into() };
    let issued = WorkloadApiClient::new(mesh.channel(&web)).renew(request).await.unwrap().into_inner();
    let renewed = workload(&key, issued);
    assert_eq!(renewed.svid.id(), web.svid.id());
    assert_ne!(renewed.svid.serial(), web.svid.serial());
    let (_, ca) = mesh.get("/weft/v1/ca").await;
    assert_eq!(ca["ledger"][0]["serial"], renewed.svid.serial().to_string());
    assert_eq!(ca["ledger"][0]["node"], "n1", "the node is remembered from the join");
}

#[tokio::test]
async fn sec_10_this_users_processes_join_through_the_socket() {
    let mesh = Mesh::start().await;
    let key = KeyPair::generate().unwrap();
    let request = join_request("", "shop", "web", &key);
    let issued = WorkloadApiClient::new(mesh.socket()).join(request).await.unwrap().into_inner();
    let web = workload(&key, issued);
    assert!(web.svid.id().as_str().ends_with("/ns/shop/sa/web"));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(mesh.server.addresses().socket.clone().unwrap()).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn leaves_live_as_long_as_the_server_says() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::with(Config { leaf_ttl: Duration::from_secs(20), ..config(dir.path()) }, dir).await;
    let web = mesh.join("shop", "web").await;
    let left = web.svid.not_after().since(Clock::real().wall());
    assert!(left > Duration::from_secs(10) && left <= Duration::from_secs(20), "{left:?}");
    assert!(web.svid.not_before() < Clock::real().wall().minus(Duration::from_secs(200)));
    assert!(web.svid.not_before() > Wall::EPOCH);
}

#[tokio::test]
async fn a_peer_that_never_finishes_its_handshake_holds_up_nobody() {
    let mesh = Mesh::start().await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut io = std::net::TcpStream::connect(mesh.server.addresses().mesh).unwrap();
        io.write_all(&[0x16, 3, 1]).unwrap();
        stuck.push(io);
    }
    mesh.join("shop", "web").await;
}

#[tokio::test]
async fn sec_10_an_identity_of_another_mesh_is_refused_at_the_handshake() {
    let (ours, theirs) = (Mesh::start().await, Mesh::start().await);
    let web = theirs.join("shop", "web").await;
    // it believes that our server is one of its own: the server does not
    let mut foreign = web.clone();
    foreign.trust = ours.join("shop", "web").await.trust;
    let expected = weft_identity::control_plane_id(&ours.server.control().authority.trust_domain());
    let csr_der = KeyPair::generate().unwrap().csr().unwrap();
    let channel = ours.channel_expecting(&foreign, expected);
    let e = WorkloadApiClient::new(channel).renew(RenewRequest { csr_der: csr_der.into() }).await.unwrap_err();
    assert!(told(&e).contains("received fatal alert"), "{}", told(&e));
}

#[tokio::test]
async fn an_expired_identity_is_refused_at_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::tokio(Clock::real().wall());
    let mesh = Mesh::with(Config { clock: clock.clone(), ..config(dir.path()) }, dir).await;
    let web = mesh.join("shop", "web").await;
    let renew = async || {
        let csr_der = KeyPair::generate().unwrap().csr().unwrap();
        WorkloadApiClient::new(mesh.channel(&web)).renew(RenewRequest { csr_der: csr_der.into() }).await
    };
    renew().await.unwrap();
    clock.step_wall(25 * 3_600_000);
    let e = renew().await.unwrap_err();
    assert!(told(&e).contains("received fatal alert"), "{}", told(&e));
}

#[tokio::test]
async fn a_connection_that_outlives_its_certificate_asks_in_vain() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::tokio(Clock::real().wall());
    let mesh = Mesh::with(Config { clock: clock.clone(), ..config(dir.path()) }, dir).await;
    let web = mesh.join("shop", "web").await;
    let mut client = WorkloadApiClient::new(mesh.channel(&web));
    let mut renew = async || {
        let csr_der = KeyPair::generate().unwrap().csr().unwrap();
        client.renew(RenewRequest { csr_der: csr_der.into() }).await
    };
    renew().await.unwrap();
    clock.step_wall(25 * 3_600_000);
    let e = renew().await.unwrap_err();
    assert_eq!(e.code(), Code::Unauthenticated);
    let want = format!("the certificate of {} expired at {}", web.svid.id(), web.svid.not_after());
    assert!(e.message().starts_with(&want), "{}", e.message());
}
