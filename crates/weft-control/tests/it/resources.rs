use http_body_util::BodyExt as _;
use hyper::{Method, Request};
use serde_json::{Value, json};

use crate::kit::{LONG, Mesh};

const POLICIES: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies";

fn policy(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test]
async fn every_write_and_read_needs_the_token() {
    let mesh = Mesh::start().await;
    let send = |token: &'static str| Request::builder().method(Method::GET).header("authorization", token);
    let (code, body) = mesh.send(send(""), "/weft/v1/services", "".into()).await;
    assert_eq!((code.as_u16(), &body["kind"], &body["reason"]), (401, &json!("Status"), &json!("Unauthorized")));
    let (code, body) = mesh.send(send("Bearer wrong"), POLICIES, "".into()).await;
    assert_eq!((code.as_u16(), &body["reason"]), (403, &json!("Forbidden")));
    assert!(body["message"].as_str().unwrap().contains("admin.token"));
    let (code, _) = mesh.send(send(""), "/healthz/ready", "".into()).await;
    assert_eq!(code, 200);
    let (code, _) = mesh.send(send(""), "/no/such/thing", "".into()).await;
    assert_eq!(code, 401, "what there is is nobody's business");
}

#[tokio::test]
async fn resources_follow_kubernetes_conventions() {
    let mesh = Mesh::start().await;
    let body = policy("p", json!({ "action": "DENY", "rules": [{}] }));
    let (code, _) = mesh.http(Method::POST, &format!("{POLICIES}?dryRun=All"), body.to_string()).await;
    assert_eq!(code, 201);
    assert_eq!(mesh.get(&format!("{POLICIES}/p")).await.0, 404, "a dry run writes nothing");
    let (code, made) = mesh.http(Method::POST, POLICIES, body.to_string()).await;
    assert_eq!(code, 201, "{made:#}");
    let meta = &made["metadata"];
    assert_eq!((&meta["namespace"], &meta["generation"]), (&json!("shop"), &json!(1)));
    assert_eq!(meta["uid"].as_str().unwrap().len(), 36);
    assert!(meta["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    let (code, again) = mesh.http(Method::POST, POLICIES, body.to_string()).await;
    assert_eq!((code.as_u16(), &again["reason"]), (409, &json!("AlreadyExists")));
    // get, list, table
    let (_, got) = mesh.get(&format!("{POLICIES}/p")).await;
    assert_eq!(got["spec"], body["spec"]);
    let (_, list) = mesh.get(POLICIES).await;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("AuthorizationPolicyList"), 1));
    let (_, elsewhere) = mesh.get("/apis/security.istio.io/v1/namespaces/bank/authorizationpolicies").await;
    assert_eq!(elsewhere["items"], json!([]));
    let table = Request::builder().header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let (_, table) = mesh.send(table, POLICIES, "".into()).await;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("p")));
    // put: unchanged is no new revision, a stale version is a conflict
    let (code, same) = mesh.http(Method::PUT, &format!("{POLICIES}/p"), got.to_string()).await;
    assert_eq!((code.as_u16(), &same["metadata"]["generation"]), (200, &json!(1)));
    let mut changed = got.clone();
    changed["spec"]["action"] = json!("ALLOW");
    let (code, put) = mesh.http(Method::PUT, &format!("{POLICIES}/p"), changed.to_string()).await;
    assert_eq!((code.as_u16(), &put["metadata"]["generation"]), (200, &json!(2)));
    changed["spec"]["action"] = json!("DENY");
    let (code, conflict) = mesh.http(Method::PUT, &format!("{POLICIES}/p"), changed.to_string()).await;
    assert_eq!((code.as_u16(), &conflict["reason"]), (409, &json!("Conflict")), "{conflict:#}");
    assert!(conflict["message"].as_str().unwrap().contains("somebody changed it"), "{conflict:#}");
    // patch
    let patch = Request::builder().method(Method::PATCH).header("content-type", "application/merge-patch+json");
    let labels = json!({ "metadata": { "labels": { "team": "a" } } }).to_string();
    let (code, patched) = mesh.send(patch, &format!("{POLICIES}/p"), labels.into()).await;
    assert_eq!((code.as_u16(), &patched["metadata"]["labels"]["team"]), (200, &json!("a")));
    assert_eq!(patched["metadata"]["generation"], 2, "the spec is the same");
    let apply = Request::builder().method(Method::PATCH).header("content-type", "application/apply-patch+yaml");
    let yaml = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: q}\nspec: {}\n";
    let (code, applied) = mesh.send(apply, &format!("{POLICIES}/q?fieldManager=me&force=true"), yaml.into()).await;
    assert_eq!(code, 201, "{applied:#}");
    let (_, labelled) = mesh.get(&format!("{POLICIES}?labelSelector=team%3Da")).await;
    assert_eq!(labelled["items"].as_array().unwrap().len(), 1);
    let (_, named) = mesh.get(&format!("{POLICIES}?fieldSelector=metadata.name%3Dq")).await;
    assert_eq!(named["items"].as_array().unwrap().len(), 1);
    // delete
    let (code, deleted) = mesh.http(Method::DELETE, &format!("{POLICIES}/p"), "").await;
    assert_eq!((code.as_u16(), &deleted["status"]), (200, &json!("Success")));
    assert_eq!(mesh.http(Method::DELETE, &format!("{POLICIES}/p"), "").await.0, 404);
    // who did what
    let (_, history) = mesh.get("/weft/v1/history").await;
    let entries = history["entries"].as_array().unwrap();
    assert_eq!(entries[0]["why"], "delete");
    assert_eq!(entries[0]["changes"][0]["resource"], "AuthorizationPolicy/shop/p");
    assert!(entries[0]["changes"][0]["after"].is_null() && entries[0]["changes"][0]["before"].is_object());
    assert_eq!(entries[1]["who"], "admin (me)");
}

#[tokio::test]
async fn invalid_documents_are_refused_with_every_violation() {
    let mesh = Mesh::start().await;
    let body = policy("p", json!({ "action": "MAYBE", "rulez": [] }));
    let (code, status) = mesh.http(Method::POST, POLICIES, body.to_string()).await;
    assert_eq!((code.as_u16(), &status["reason"]), (422, &json!("Invalid")), "{status:#}");
    let fields: Vec<_> = status["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].clone()).collect();
    assert!(fields.contains(&json!("spec.action")) && fields.contains(&json!("spec.rulez")), "{status:#}");
    let (code, status) =
        mesh.http(Method::POST, "/apis/networking.istio.io/v1/namespaces/a/virtualservices", "{}").await;
    assert_eq!((code.as_u16(), &status["reason"]), (404, &json!("NotFound")));
    let (code, _) = mesh.http(Method::POST, POLICIES, "{").await;
    assert_eq!(code, 400);
    // a stream: one wrong document and nothing is written
    let good = policy("good", json!({})).to_string();
    let (code, result) = mesh
        .http(Method::POST, "/weft/v1/apply?file=a.yaml&namespace=shop", format!("{good}\n---\nkind: Cheese\n"))
        .await;
    assert_eq!(code, 422);
    assert_eq!(result["results"][0]["result"], "valid");
    assert_eq!(result["results"][1]["result"], "invalid");
    assert!(result["results"][1]["violations"][0]["text"].as_str().unwrap().starts_with("a.yaml:"), "{result:#}");
    assert_eq!(mesh.get(&format!("{POLICIES}/good")).await.0, 404);
}

#[tokio::test]
async fn of_two_racing_writers_one_gets_a_conflict() {
    let mesh = Mesh::start().await;
    let (_, made) = mesh.http(Method::POST, POLICIES, policy("p", json!({})).to_string()).await;
    for round in 0..10 {
        let (_, now) = mesh.get(&format!("{POLICIES}/p")).await;
        let change = |who: &str| {
            let mut changed = now.clone();
            changed["metadata"]["labels"] = json!({ "who": format!("{who}{round}") });
            changed.to_string()
        };
        let path = format!("{POLICIES}/p");
        let (a, b) =
            tokio::join!(mesh.http(Method::PUT, &path, change("a")), mesh.http(Method::PUT, &path, change("b")));
        let mut codes = [a.0.as_u16(), b.0.as_u16()];
        codes.sort_unstable();
        assert_eq!(codes, [200, 409], "{made:#}");
        let winner = if a.0 == 200 { "a" } else { "b" };
        let (_, now) = mesh.get(&path).await;
        assert_eq!(now["metadata"]["labels"]["who"], format!("{winner}{round}"));
    }
}

/// Lines of a stream as they come.
struct Lines {
    body: hyper::body::Incoming,
    buffer: String,
}

impl Lines {
    async fn open(mesh: &Mesh, path: &str, accept: &'static str) -> Self {
        let response = mesh.open(Request::builder().header("accept", accept), path, "".into()).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), buffer: String::new() }
    }

    async fn next(&mut self) -> String {
        loop {
            if let Some((line, rest)) = self.buffer.split_once('\n') {
                let line = line.to_owned();
                self.buffer = rest.to_owned();
                return line;
            }
            let frame = tokio::time::timeout(LONG, self.body.frame()).await.expect("no line").unwrap().unwrap();
            self.buffer.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }

    async fn json(&mut self) -> Value {
        serde_json::from_str(&self.next().await).unwrap()
    }
}

#[tokio::test]
async fn watches_begin_with_what_is_there_or_from_a_version() {
    let mesh = Mesh::start().await;
    let (_, first) = mesh.http(Method::POST, POLICIES, policy("a", json!({})).to_string()).await;
    let mut watch = Lines::open(&mesh, &format!("{POLICIES}?watch=true"), "application/json").await;
    let event = watch.json().await;
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    mesh.http(Method::POST, POLICIES, policy("b", json!({})).to_string()).await;
    mesh.http(Method::DELETE, &format!("{POLICIES}/a"), "").await;
    // statuses come in between
    let mut seen = Vec::new();
    while seen.last() != Some(&("DELETED".to_owned(), "a".to_owned())) {
        let event = watch.json().await;
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        seen.push((text(&event["type"]), text(&event["object"]["metadata"]["name"])));
    }
    assert!(seen.contains(&("ADDED".into(), "b".into())), "{seen:?}");
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{POLICIES}?watch=1&resourceVersion={version}&fieldSelector=metadata.name%3Db");
    let mut later = Lines::open(&mesh, &path, "application/json").await;
    let event = later.json().await;
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("b")));
    let (code, gone) = mesh.get(&format!("{POLICIES}?watch=1&resourceVersion=999999")).await;
    assert_eq!((code.as_u16(), &gone["reason"]), (410, &json!("Expired")), "{gone:#}");
}

#[tokio::test]
async fn reg_12_services_are_pushed_as_lines_and_as_server_sent_events() {
    let mesh = Mesh::start().await;
    let mut lines = Lines::open(&mesh, "/weft/v1/services?watch=true", "*/*").await;
    let mut events = Lines::open(&mesh, "/weft/v1/services?watch=true", "text/event-stream").await;
    assert_eq!(lines.json().await["type"], "SYNCED");
    assert_eq!(events.next().await, "event: synced");
    let web = mesh.join("shop", "web").await;
    let (_attached, _) = crate::kit::attach(&mesh, &web, crate::kit::register("shop", "web", "web-1")).await;
    let event = lines.json().await;
    assert_eq!((&event["type"], &event["service"]["name"]), (&json!("ADDED"), &json!("web")));
    assert_eq!(event["service"]["instances"]["passing"], 1);
    while events.next().await != "event: added" {}
    assert!(events.next().await.starts_with("data: {"));
}

#[tokio::test]
async fn discovery_names_every_kind() {
    let mesh = Mesh::start().await;
    let (_, groups) = mesh.get("/apis").await;
    let names: Vec<_> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].clone()).collect();
    assert!(names.contains(&json!("gateway.networking.k8s.io")) && names.contains(&json!("weft.dev")), "{groups:#}");
    let (_, core) = mesh.get("/api/v1").await;
    assert!(core["resources"].as_array().unwrap().iter().any(|r| r["kind"] == "Service"));
    let (_, routes) = mesh.get("/apis/gateway.networking.k8s.io/v1").await;
    assert!(routes["resources"].as_array().unwrap().iter().any(|r| r["name"] == "httproutes"));
    let (_, version) = mesh.get("/version").await;
    assert_eq!(version["major"], "1");
    let (_, namespaces) = mesh.get("/api/v1/namespaces").await;
    assert!(namespaces["items"].as_array().unwrap().iter().any(|n| n["metadata"]["name"] == "default"));
}

/// `kubectl` sends its token over TLS only.
#[tokio::test]
async fn the_api_speaks_https_on_the_same_port() {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mesh = Mesh::start().await;
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(mesh.dir.path().join("data/ca.pem")).unwrap() {
        roots.add(cert.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder_with_provider(weft_identity::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let io = tokio::net::TcpStream::connect(mesh.server.addresses().http).await.unwrap();
    let tls = connector.connect("localhost".try_into().unwrap(), io).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(tls);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let mut tasks = weft_rt::Tasks::new();
    tasks.spawn("connection", async move { drop(connection.await) });
    let request =
        Request::get("/version").header("host", "localhost").body(http_body_util::Empty::<hyper::body::Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    // and a peer that sends half a handshake holds up nobody
    let _stuck = {
        use std::io::Write as _;
        let mut io = std::net::TcpStream::connect(mesh.server.addresses().http).unwrap();
        io.write_all(&[0x16, 3]).unwrap();
        io
    };
    assert_eq!(mesh.get("/version").await.0, 200);
}

#[tokio::test]
async fn reg_01_operators_take_out_and_bring_back() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let (_attached, _) = crate::kit::attach(&mesh, &web, crate::kit::register("shop", "web", "web-1")).await;
    let put = async |body: Value| mesh.http(Method::PUT, "/weft/v1/maintenance", body.to_string()).await;
    let health = async || mesh.get("/weft/v1/endpoints").await.1["endpoints"][0]["health"].clone();
    assert_eq!(put(json!({ "uid": "shop/web/n1/web-1", "reason": "disk" })).await.0, 200);
    assert_eq!(health().await, "maintenance");
    assert_eq!(put(json!({ "uid": "shop/web/n1/web-1", "reason": null })).await.0, 200);
    assert_eq!(put(json!({ "node": "n1", "reason": "kernel" })).await.0, 200);
    assert_eq!(health().await, "maintenance");
    assert_eq!(put(json!({ "node": "n1" })).await.0, 200);
    assert_eq!(health().await, "passing");
    assert_eq!(put(json!({ "node": "n9", "reason": "x" })).await.0, 404);
    assert_eq!(put(json!({ "reason": "x" })).await.0, 400);
    let (_, nodes) = mesh.get("/weft/v1/nodes").await;
    assert_eq!(nodes["nodes"][0]["instances"], 1);
}
