//! Two servers over one store that behaves as etcd does: late watches, sparse revisions, unknown outcomes.

use std::sync::Arc;

use hyper::Method;
use serde_json::json;
use weft_control::{Config, StoreKind};
use weft_rt::{Dice, Tasks};
use weft_store::{EtcdLike, Keep, Memory, Store};

use crate::kit::{Mesh, Proxy, attach, config, register};

const POLICIES: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies";

/// Both with the same key-encryption key, as replicas have.
async fn pair(seed: u64) -> [Mesh; 2] {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let store: Arc<dyn Store> = Arc::new(Memory::with(Keep::default(), Some(EtcdLike::faulty(seed))));
    let on = |id: &str, at: &std::path::Path| Config {
        store: StoreKind::Given(store.clone()),
        data: data.clone(),
        server_id: id.into(),
        dice: Dice::seeded(seed ^ u64::from(id.as_bytes()[0])),
        ..config(at)
    };
    // whose first start is lost does not start: a person would try again
    let first = loop {
        match weft_control::Server::start(on("a", dir.path())).await {
            Ok(server) => break server,
            Err(e) => assert!(e.to_string().contains("could not be committed"), "{e}"),
        }
    };
    let token = std::fs::read_to_string(data.join("admin.token")).unwrap();
    let second = tempfile::tempdir().unwrap();
    let b = Mesh::with(on("b", second.path()), second).await;
    [Mesh { server: first, dir, token, tasks: Tasks::new() }, b]
}

fn policy(name: &str, label: &str) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "labels": { "by": label } }, "spec": {},
    })
    .to_string()
}

#[tokio::test]
async fn what_one_server_acknowledged_the_other_shows() {
    for seed in 0..4 {
        let [a, b] = pair(seed).await;
        let mut made = Vec::new();
        for i in 0..15 {
            // both create the same name: one of them does
            let create = async |mesh: &Mesh, who: &str| {
                mesh.http(Method::POST, POLICIES, policy(&format!("p{i}"), who)).await.0.as_u16()
            };
            let codes = tokio::join!(create(&a, "a"), create(&b, "b"));
            let winner = match codes {
                (201, 409) => "a",
                (409, 201) => "b",
                other => panic!("seed {seed}, p{i}: {other:?}"),
            };
            made.push((format!("p{i}"), winner));
        }
        for (name, winner) in &made {
            for mesh in [&a, &b] {
                let (code, got) = mesh.get(&format!("{POLICIES}/{name}")).await;
                assert_eq!(code, 200, "seed {seed}, {name}");
                assert_eq!(got["metadata"]["labels"]["by"], *winner, "seed {seed}, {name}");
            }
        }
    }
}

#[tokio::test]
async fn reg_01_a_workload_at_one_server_is_told_by_the_other() {
    let [a, b] = pair(11).await;
    let (web, api) = (a.join("shop", "web").await, b.join("shop", "api").await);
    let endpoints = weft_snapshot::fragment::Collection::Endpoints("shop/web".parse().unwrap());
    let mut proxy = Proxy::open(b.channel(&api), "shop/api/n1/api-1", [endpoints.clone()]).await;
    proxy.until(|_| true).await;
    let (_attached, registered) = attach(&a, &web, register("shop", "web", "web-1")).await;
    proxy.until(|f| f.get(&endpoints).is_some_and(|e| e.len() == 1)).await;
    let (_, seen) = b.get("/weft/v1/endpoints").await;
    assert_eq!(
        (&seen["endpoints"][0]["uid"], &seen["endpoints"][0]["lease"]),
        (&json!(registered.uid), &json!("alive"))
    );
    // a token is spent once, whichever server is asked
    let token = a.new_token("{}").await;
    let key = || weft_identity::csr::KeyPair::generate().unwrap();
    let (first, second) = (key(), key());
    let joined = tokio::join!(a.join_by(&token, "x", "y", &first), b.join_by(&token, "x", "y", &second));
    assert!(joined.0.is_ok() != joined.1.is_ok(), "two keys joined by one token, or none");
}
