use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_wire::{
    grpc::ObserveClient,
    v1::{Answer, Decision, ProxyHello, ProxyReport, proxy_report::Report, server_ask::Ask},
};

use crate::kit::{Mesh, Workload, attach, register};

/// A proxy that answers every question with one decision.
async fn observed(mesh: &mut Mesh, who: &Workload, uid: &str, answers: bool) {
    let (send, reports) = mpsc::channel(4);
    let say = |report| ProxyReport { report: Some(report) };
    send.send(say(Report::Hello(ProxyHello { uid: uid.into(), version: "1".into() }))).await.unwrap();
    let channel = mesh.channel(who);
    let mut asks = ObserveClient::new(channel).watch(ReceiverStream::new(reports)).await.unwrap().into_inner();
    let uid = uid.to_owned();
    mesh.tasks.spawn("proxy", async move {
        while let Ok(Some(ask)) = asks.message().await {
            let Some(Ask::Why(why)) = ask.ask else { continue };
            if !answers {
                continue;
            }
            let decision = Decision {
                request_id: why.request_id,
                proxy: uid.clone(),
                verdict: "deny".into(),
                ..Default::default()
            };
            let answer = Answer { ask_id: ask.ask_id, decisions: vec![decision], ..Default::default() };
            let _ = send.send(say(Report::Answer(answer))).await;
        }
    });
}

#[tokio::test]
async fn why_asks_every_proxy_that_is_who_it_says() {
    let mut mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (_a, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_b, _) = attach(&mesh, &api, register("shop", "api", "api-1")).await;
    observed(&mut mesh, &web, "shop/web/n1/web-1", true).await;
    observed(&mut mesh, &api, "shop/api/n1/api-1", false).await;
    // one that claims to be another is not asked
    observed(&mut mesh, &api, "shop/web/n1/web-1", true).await;
    // the streams may not have said hello yet
    let why = async {
        loop {
            let (_, why) = mesh.get("/weft/v1/why?request_id=r-1&timeout=300ms").await;
            if why["asked"] == 2 {
                return why;
            }
        }
    };
    let why = tokio::time::timeout(crate::kit::LONG, why).await.unwrap();
    assert_eq!(why["answered"], 1, "{why:#}");
    assert_eq!(why["silent"], json!(["shop/api/n1/api-1"]));
    assert_eq!(why["decisions"][0]["request_id"], "r-1");
    assert_eq!(why["decisions"][0]["proxy"], "shop/web/n1/web-1");
    assert_eq!(why["decisions"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn sec_33_instances_that_answer_alike_share_a_row() {
    let mesh = Mesh::start().await;
    let (web, twin) = (mesh.join("shop", "web").await, mesh.join("shop", "web").await);
    let mut elsewhere = register("shop", "web", "web-2");
    elsewhere.ports[0].app.as_mut().unwrap().port += 100;
    elsewhere.mesh_address.as_mut().unwrap().port += 100;
    let (_a, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_b, _) = attach(&mesh, &twin, elsewhere).await;
    let (_, json) = mesh.get("/weft/v1/allow?to=shop/web").await;
    let rows = json["rows"].as_array().unwrap();
    let froms: Vec<_> = rows.iter().map(|r| r["from"].as_str().unwrap().rsplit('/').next().unwrap()).collect();
    assert_eq!(froms, ["web", "unauthenticated"], "{json:#}");
    let nobody = rows.iter().find(|r| r["from"] == "unauthenticated").unwrap();
    assert_eq!(nobody["instances"], json!(["shop/web/n1/web-1", "shop/web/n1/web-2"]));
    assert!(nobody["reason"].as_str().unwrap().contains("port 80 "), "the service's: {nobody:#}");
}

#[tokio::test]
async fn sec_33_allow_evaluates_every_known_identity() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (_a, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_b, _) = attach(&mesh, &api, register("shop", "api", "api-1")).await;
    let row = async |query: &str, from: &str| {
        let (code, json) = mesh.get(&format!("/weft/v1/allow?to=shop/web{query}")).await;
        assert_eq!(code, 200, "{json:#}");
        let rows = json["rows"].as_array().unwrap().clone();
        rows.into_iter().find(|r| r["from"].as_str().unwrap().ends_with(from)).unwrap_or_else(|| panic!("{json:#}"))
    };
    assert_eq!(row("", "sa/api").await["verdict"], "allow");
    assert_eq!(row("", "unauthenticated").await["verdict"], "deny", "mTLS is strict");
    mesh.apply(
        "
apiVersion: weft.dev/v1
kind: MeshDefaults
metadata: {name: default}
spec: {authorization: deny}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {serviceAccounts: [shop/api]}}], to: [{operation: {methods: [GET]}}]}]
",
    )
    .await;
    assert_eq!(row("", "sa/api").await["verdict"], "depends");
    let get = row("&method=GET", "sa/api").await;
    assert_eq!((&get["verdict"], &get["instances"]), (&json!("allow"), &json!(["shop/web/n1/web-1"])));
    assert!(get["rule"].as_str().unwrap().starts_with("AuthorizationPolicy/shop/reads"), "{get:#}");
    assert_eq!(row("&method=POST", "sa/api").await["verdict"], "deny");
    assert_eq!(row("&method=GET", "sa/web").await["verdict"], "deny");
    let (code, json) = mesh.get("/weft/v1/allow?to=shop/nobody").await;
    assert_eq!(code, 404, "{json:#}");
}
