use std::time::Duration;

use serde_json::json;
use weft_control::{Config, Server, ServerError, StoreKind};
use weft_rt::{listen::Bind, net::Addr};
use weft_snapshot::fragment::Collection;

use crate::kit::{Mesh, Proxy, attach, config, register};

#[tokio::test]
async fn a_restart_empties_no_service_and_resends_nothing() {
    let mesh = Mesh::on_redb(tempfile::tempdir().unwrap()).await;
    let (td, token) = (mesh.server.control().authority.trust_domain(), mesh.token.clone());
    let web = mesh.join("shop", "web").await;
    let mut streams = Vec::new();
    for i in 0..20 {
        streams.push(attach(&mesh, &web, register("shop", "web", &format!("web-{i}"))).await.0);
    }
    mesh.apply("{apiVersion: weft.dev/v1, kind: MeshDefaults, metadata: {name: default}, spec: {authorization: deny}}")
        .await;
    let service = "shop/web".parse::<weft_model::ServiceKey>().unwrap();
    let collections =
        [Collection::Service(service.clone()), Collection::Endpoints(service), Collection::Bundle(td.clone())];
    let mut proxy = Proxy::open(mesh.channel(&web), "shop/web/n1/web-0", collections.clone()).await;
    proxy.until(|f| f.get(&collections[1]).is_some_and(|e| e.len() == 20)).await;
    let first = proxy.received;
    assert!(first > 1000, "{first} bytes");
    let path = "/apis/weft.dev/v1/meshdefaults/default";
    let before = mesh.until(path, |v| !v["status"]["conditions"].is_null()).await;
    let (_, services) = mesh.get("/weft/v1/services").await;
    let revision = mesh.server.control().replica.state().revision;
    let Proxy { mut client, .. } = proxy;
    drop(streams);
    let dir = mesh.stop().await;

    let mesh = Mesh::on_redb(dir).await;
    assert!(!mesh.server.first_start);
    assert_eq!(mesh.server.control().authority.trust_domain(), td);
    assert_eq!(mesh.token, token);
    let now = mesh.server.control().replica.state().revision;
    // the server's own identity is one commit
    assert!(now.incarnation == revision.incarnation && now.n <= revision.n + 2, "{revision} became {now}");
    let (_, after) = mesh.get("/weft/v1/services").await;
    assert_eq!(after["services"], services["services"]);
    assert_eq!(after["services"][0]["instances"]["passing"], 20);
    let conditions = |v: &serde_json::Value| (v["metadata"].clone(), v["status"]["conditions"].clone());
    assert_eq!(conditions(&mesh.get(path).await.1), conditions(&before));
    // whoever comes back says what it has, and gets nothing of it again
    client.disconnect();
    let mut proxy = Proxy::reopen(mesh.channel(&web), client).await;
    proxy.until(|f| f.get(&collections[1]).is_some_and(|e| e.len() == 20)).await;
    assert!(proxy.received < 300, "{} of {first} bytes were sent again", proxy.received);
    let (_, metrics) = mesh.get("/metrics").await;
    let sent = metrics.as_str().unwrap().lines().find(|l| l.starts_with("weft_control_sent_bytes_total")).unwrap();
    assert!(sent.split(' ').nth(1).unwrap().parse::<usize>().unwrap() < 300, "{sent}");
}

#[tokio::test]
async fn sec_01_a_taken_port_leaves_no_mesh_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = Bind::exact(Addr::Tcp(taken.local_addr().unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let started = Server::start(Config { store: StoreKind::Redb, mesh: at, ..config(dir.path()) }).await;
    let Err(e) = started else { panic!("it started on a port that is taken") };
    assert!(matches!(e, ServerError::Bind(_)), "{e}");
    assert_eq!(std::fs::read_dir(dir.path().join("data")).unwrap().count(), 0, "nothing was made");
    // the next one is a first start
    let mesh = Mesh::on_redb(dir).await;
    assert!(mesh.server.first_start);
}

#[tokio::test]
async fn sec_01_a_lost_store_is_not_taken_for_a_new_mesh() {
    let dir = Mesh::on_redb(tempfile::tempdir().unwrap()).await.stop().await;
    let data = dir.path().join("data");
    let token = std::fs::read(data.join("admin.token")).unwrap();
    // as a disk leaves it that was full, or lost it; and as somebody who cleans up
    let lose: [fn(&std::path::Path); 2] =
        [|f| drop(std::fs::File::create(f).unwrap()), |f| std::fs::remove_file(f).unwrap()];
    for lose in lose {
        lose(&data.join("weft.redb"));
        let started = Server::start(Config { store: StoreKind::Redb, ..config(dir.path()) }).await;
        let Err(e) = started else { panic!("it made another mesh") };
        assert_eq!(
            e.to_string(),
            format!(
                "the store in {} is empty, but kek and ca.pem there are of a mesh that has been; restore the store from a \
                 backup, or move both files away to begin a new mesh",
                data.display()
            )
        );
        assert_eq!(std::fs::read(data.join("admin.token")).unwrap(), token, "what is there was left alone");
    }
    std::fs::remove_file(data.join("kek")).unwrap();
    std::fs::remove_file(data.join("ca.pem")).unwrap();
    assert!(Mesh::on_redb(dir).await.server.first_start);
}

#[tokio::test]
async fn a_server_that_drains_lets_its_streams_go() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let (mut attached, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_, ready) = mesh.get("/healthz/ready").await;
    assert_eq!(ready, json!("ok"));
    let stopped = tokio::time::timeout(Duration::from_secs(10), mesh.stop());
    let (stopped, reply) = tokio::join!(stopped, attached.reply());
    assert!(stopped.is_ok());
    assert!(matches!(reply, weft_wire::v1::attach_reply::Message::Lost(_)));
}

/// The process is killed: nothing is drained, the file is what was synced.
#[tokio::test]
async fn a_killed_server_comes_back_with_everything_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let mesh = Mesh::on_redb(dir).await;
    let policy = |i: usize| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p{i}, namespace: shop}}, spec: {{}}}}"
        )
    };
    for i in 0..10 {
        mesh.apply(&policy(i)).await;
    }
    // as the disk has it at this moment, while the server still runs
    std::fs::create_dir(copy.path().join("data")).unwrap();
    for entry in std::fs::read_dir(mesh.dir.path().join("data")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join("data").join(entry.file_name())).unwrap();
    }
    let revived = Mesh::on_redb(copy).await;
    let (_, list) = revived.get("/apis/security.istio.io/v1/authorizationpolicies").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 10);
}
