use hyper::Method;
use serde_json::{Value, json};
use weft_snapshot::fragment::{Action, Collection, Fragment};

use crate::kit::{Mesh, Proxy, attach, register};

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: DENY, rules: [{}]}
";

fn has_deny(fragments: &weft_snapshot::snapshot::Fragments, inbound: &Collection) -> bool {
    let entries = fragments.get(inbound).into_iter().flat_map(|e| e.values());
    let mut policies = entries.flat_map(|f| match &**f {
        Fragment::Inbound(i) => i.policies.clone(),
        _ => vec![],
    });
    policies.any(|p| p.action == Action::Deny && p.origin.name.as_str() == "nobody")
}

#[tokio::test]
async fn nov_05_ops_16_an_apply_is_waited_for_until_every_proxy_has_it() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let (_attached, registered) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let uid = weft_model::Uid::parse(&registered.uid).unwrap();
    let inbound = Collection::Inbound(uid.clone());
    let mut proxy =
        Proxy::open(mesh.channel(&web), &registered.uid, [Collection::Workload(uid), inbound.clone()]).await;
    proxy.until(|f| f.contains_key(&inbound)).await;
    let applied = mesh.apply(DENY).await;
    assert_eq!(applied["results"][0]["result"], "created");
    let revision = applied["revision"].as_str().unwrap().to_owned();
    // it has not read yet
    let (_, waited) = mesh.get(&format!("/weft/v1/wait?revision={revision}&timeout=100ms")).await;
    assert_eq!((waited["complete"].clone(), waited["total"].clone()), (json!(false), json!(1)), "{waited:#}");
    let policy = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/nobody";
    let proxies = |v: &Value| v["status"]["proxies"].clone();
    assert_eq!(proxies(&mesh.get(policy).await.1), json!({ "acknowledged": 0, "total": 1, "percent": 0 }));
    proxy.until(|f| has_deny(f, &inbound)).await;
    let (_, waited) = mesh.get(&format!("/weft/v1/wait?revision={revision}&timeout=10s")).await;
    assert_eq!(proxies(&mesh.get(policy).await.1), json!({ "acknowledged": 1, "total": 1, "percent": 100 }));
    assert_eq!(waited["complete"], true, "{waited:#}");
    let row = &waited["proxies"][0];
    assert_eq!(row["uid"], registered.uid);
    assert!(row["acked_ms"].as_u64().is_some_and(|ms| ms >= 100), "it acknowledged after the first wait: {row:#}");
    // what concerns no proxy is acknowledged by all
    let other = mesh.apply(&DENY.replace("shop", "bank")).await;
    let path = format!("/weft/v1/wait?revision={}&timeout=10s", other["revision"].as_str().unwrap());
    let (_, waited) = mesh.get(&path).await;
    assert_eq!(waited["complete"], true, "{waited:#}");
    assert_eq!(waited["proxies"][0]["acked_ms"], Value::Null, "there was nothing to acknowledge");
}

#[tokio::test]
async fn ops_05_status_tells_where_each_proxy_stands() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let (_attached, registered) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_, status) = mesh.get("/weft/v1/status").await;
    assert_eq!(status["proxies"][0]["state"], "not connected");
    let uid = weft_model::Uid::parse(&registered.uid).unwrap();
    let inbound = Collection::Inbound(uid);
    let mut proxy = Proxy::open(mesh.channel(&web), &registered.uid, [inbound.clone()]).await;
    proxy.until(|f| f.contains_key(&inbound)).await;
    let status = mesh.until("/weft/v1/status", |s| s["proxies"][0]["state"] == "synced").await;
    let row = &status["proxies"][0];
    assert_eq!(row["acked_revision"], proxy.revision.to_string());
    assert_eq!(row["identity"], web.svid.id().to_string());
    assert!(row["bytes_sent"].as_u64().unwrap() > 0);
    // a rejection stands there with its reason, and a wait does not hang on it
    let applied = mesh.apply(DENY).await;
    let name = weft_wire::name::collection_name(&inbound);
    let before = proxy.revision;
    while proxy.revision == before {
        if proxy.step(Some(&name)).await.unwrap() {
            break;
        }
        let (_, status) = mesh.get("/weft/v1/status").await;
        if status["proxies"][0]["state"] == "rejected" {
            break;
        }
    }
    let status = mesh.until("/weft/v1/status", |s| s["proxies"][0]["state"] == "rejected").await;
    let rejections = status["proxies"][0]["rejections"].as_array().unwrap();
    let rejection = rejections.iter().find(|r| r["resource"] == name).unwrap_or_else(|| panic!("{status:#}"));
    assert_eq!(rejection["reason"], "I do not like it");
    let path = format!("/weft/v1/wait?revision={}&timeout=10s", applied["revision"].as_str().unwrap());
    let (_, waited) = mesh.get(&path).await;
    assert_eq!((waited["complete"].clone(), waited["proxies"][0]["state"].clone()), (json!(false), json!("rejected")));
    drop(proxy);
    mesh.until("/weft/v1/status", |s| s["proxies"][0]["state"] == "not connected").await;
}

#[tokio::test]
async fn services_are_subscribed_on_demand() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let service = Collection::Service("shop/api".parse().unwrap());
    let endpoints = Collection::Endpoints("shop/api".parse().unwrap());
    let mut proxy = Proxy::open(mesh.channel(&web), "shop/web/n1/web-1", [Collection::Revocations]).await;
    proxy.until(|_| true).await;
    proxy.subscribe([service.clone(), endpoints.clone()]).await;
    proxy.until(|_| true).await;
    assert!(!proxy.applied.contains_key(&service), "nobody knows it yet");
    let (_attached, _) = attach(&mesh, &api, register("shop", "api", "api-1")).await;
    proxy.until(|f| f.contains_key(&service) && f.get(&endpoints).is_some_and(|e| e.len() == 1)).await;
    let (_, metrics) = mesh.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("pilot_xds 1\n"), "{metrics}");
    assert!(metrics.contains("pilot_services 1\n"), "{metrics}");
}

#[tokio::test]
async fn ops_16_conditions_follow_the_world() {
    let mesh = Mesh::start().await;
    let api = mesh.join("shop", "api").await;
    mesh.apply(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: api}]
  rules: [{backendRefs: [{name: missing, port: 80}]}]
",
    )
    .await;
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";
    let condition = |v: &Value, name: &str| -> Value {
        let all = v["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == name).unwrap_or_default()
    };
    let seen = mesh.until(path, |v| condition(v, "ResolvedRefs")["status"] == "False").await;
    assert_eq!(condition(&seen, "Accepted")["status"], "False", "there is no Service to attach to: {seen:#}");
    assert_eq!(condition(&seen, "ResolvedRefs")["observedGeneration"], 1);
    let (_attached, _) = attach(&mesh, &api, register("shop", "api", "api-1")).await;
    let seen = mesh.until(path, |v| condition(v, "Accepted")["status"] == "True").await;
    assert_eq!(condition(&seen, "ResolvedRefs")["status"], "False");
    // writing status is the server's alone
    let (code, _) = mesh.http(Method::PUT, &format!("{path}/status"), seen.to_string()).await;
    assert_eq!(code, 403);
}
