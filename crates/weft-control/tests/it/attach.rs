use std::time::Duration;

use weft_control::Config;
use weft_identity::csr::KeyPair;
use weft_model::Health;
use weft_rt::Clock;
use weft_snapshot::fragment::{Collection, Fragment};
use weft_wire::{
    delta::Client,
    grpc::WorkloadApiClient,
    v1::{
        self, CheckDefinition, CheckResult, Deregister, Drain, RenewLease, TtlCheck, attach_reply::Message as Reply,
        attach_request::Message, check_definition::Kind,
    },
};

use crate::kit::{Attached, LONG, Mesh, Proxy, attach, config, join_request, register, workload};

#[tokio::test]
async fn reg_01_a_workload_registers_is_seen_and_leaves() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let mut r = register("shop", "web", "web-1");
    r.checks = vec![CheckDefinition {
        id: "http".into(),
        kind: Some(Kind::Http(v1::HttpCheck::default())),
        failures_before_critical: 2,
        ..Default::default()
    }];
    r.version = "v2".into();
    r.bypassable = true;
    let (mut attached, registered) = attach(&mesh, &web, r).await;
    assert_eq!(registered.uid, "shop/web/n1/web-1");
    assert_eq!(registered.identity, web.svid.id().to_string());
    assert!(registered.sni.ends_with(".weft.internal"));
    let endpoint = |v: &serde_json::Value| v["endpoints"][0].clone();
    let seen = endpoint(&mesh.get("/weft/v1/endpoints?service=shop/web").await.1);
    assert_eq!(seen["health"], "critical", "until it was looked at once: {seen:#}");
    assert_eq!(seen["lease"], "alive");
    assert_eq!(seen["ports"][0]["app"], "127.0.0.1:8080");
    assert_eq!(seen["ports"][0]["connect"], "127.0.0.1:8081");
    assert_eq!(seen["labels"]["version"], "v2");
    assert_eq!(seen["bypassable"], true);
    let result = |status: v1::Health| {
        Message::Check(CheckResult { check_id: "http".into(), status: status.into(), output: "said".into() })
    };
    attached.say(result(v1::Health::Passing)).await;
    assert!(matches!(attached.reply().await, Reply::Ack(a) if a.seq == 2));
    let seen = endpoint(&mesh.until("/weft/v1/endpoints", |v| v["endpoints"][0]["health"] == "passing").await);
    assert_eq!(seen["checks"][0]["output"], "said");
    // one failure of two changes nothing
    attached.say(result(v1::Health::Critical)).await;
    attached.reply().await;
    assert_eq!(endpoint(&mesh.get("/weft/v1/endpoints").await.1)["health"], "passing");
    attached.say(result(v1::Health::Critical)).await;
    attached.reply().await;
    assert_eq!(endpoint(&mesh.get("/weft/v1/endpoints").await.1)["health"], "critical");
    // a check that is not its
    attached.say(Message::Check(CheckResult { check_id: "x".into(), status: 1, output: String::new() })).await;
    assert!(matches!(attached.reply().await, Reply::Refused(_)));
    attached.say(Message::Deregister(Deregister {})).await;
    assert!(matches!(attached.reply().await, Reply::Ack(_)));
    let (_, services) = mesh.get("/weft/v1/services").await;
    assert_eq!(services["services"], serde_json::json!([]));
}

#[tokio::test]
async fn reg_01_others_cannot_take_over_an_instance() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (_attached, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let (_, reply) = Attached::open(mesh.channel(&api), register("shop", "web", "web-1")).await;
    let Reply::Refused(refused) = reply else { panic!("{reply:?}") };
    let want = format!("`shop/web/n1/web-1` is registered by {}; choose another id", web.svid.id());
    assert_eq!(refused.reason, want);
    let (_, reply) = Attached::open(mesh.channel(&api), register("bank", "api", "api-1")).await;
    let Reply::Refused(refused) = reply else { panic!("{reply:?}") };
    assert!(refused.reason.contains("may register in namespace `shop` only, not in `bank`"), "{}", refused.reason);
}

fn refused(reply: Reply) -> String {
    let Reply::Refused(refused) = reply else { panic!("{reply:?}") };
    refused.reason
}

#[tokio::test]
async fn sec_11_a_service_is_registered_by_its_namesake_or_by_whom_an_operator_lets() {
    let mesh = Mesh::on_redb(tempfile::tempdir().unwrap()).await;
    let api = mesh.join("shop", "api").await;
    let not_granted = format!(
        "{} may not register service `shop/web`: join as service account `web` with a token of `weft token create --service \
         shop/web`, or have an operator annotate the Service `shop/web` with `weft.dev/service-accounts: api`",
        api.svid.id()
    );
    let (_, reply) = Attached::open(mesh.channel(&api), register("shop", "web", "web-1")).await;
    assert_eq!(refused(reply), not_granted);
    let (_, services) = mesh.get("/weft/v1/services").await;
    assert_eq!(services["services"], serde_json::json!([]), "nothing was written");
    // an operator says so at the Service
    let service = |accounts: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop, annotations: \
             {{weft.dev/service-accounts: '{accounts}'}}}}, spec: {{ports: [{{port: 80}}]}}}}"
        )
    };
    mesh.apply(&service("cli, api")).await;
    let (_attached, _) = attach(&mesh, &api, register("shop", "web", "web-1")).await;
    // and no more: it is asked at the registration
    mesh.apply(&service("cli")).await;
    let (_, reply) = Attached::open(mesh.channel(&api), register("shop", "web", "web-2")).await;
    assert_eq!(refused(reply), not_granted);
    // a token that names a service lets in its holder, for that service
    let token = mesh.new_token(r#"{"namespace": "shop", "service_account": "cli", "service": "db"}"#).await;
    let cli = mesh.join_by(&token, "shop", "cli", &KeyPair::generate().unwrap()).await.unwrap();
    let (_db, _) = attach(&mesh, &cli, register("shop", "db", "db-1")).await;
    let (_, reply) = Attached::open(mesh.channel(&cli), register("shop", "mail", "mail-1")).await;
    assert!(refused(reply).contains("may not register service `shop/mail`"));
    // one that names none grants none, whatever is said at the join
    let open = mesh.new_token("{}").await;
    let key = KeyPair::generate().unwrap();
    let claims = v1::JoinRequest { service: "db".into(), ..join_request(&open, "shop", "rogue", &key) };
    let issued = WorkloadApiClient::new(mesh.pinned(&open)).join(claims).await.unwrap().into_inner();
    let (_, reply) = Attached::open(mesh.channel(&workload(&key, issued)), register("shop", "db", "db-2")).await;
    assert!(refused(reply).contains("/sa/rogue may not register service `shop/db`"));
    // what a token granted is still so after a restart
    let mesh = Mesh::on_redb(mesh.stop().await).await;
    let (_db, _) = attach(&mesh, &cli, register("shop", "db", "db-3")).await;
}

#[tokio::test]
async fn sec_11_this_users_processes_register_what_they_said_at_the_socket() {
    let mesh = Mesh::start().await;
    let key = KeyPair::generate().unwrap();
    let request = v1::JoinRequest { service: "web".into(), ..join_request("", "shop", "me", &key) };
    let issued = WorkloadApiClient::new(mesh.socket()).join(request).await.unwrap().into_inner();
    let me = workload(&key, issued);
    let (_attached, _) = attach(&mesh, &me, register("shop", "web", "web-1")).await;
    let (_, reply) = Attached::open(mesh.channel(&me), register("shop", "db", "db-1")).await;
    assert!(refused(reply).contains("may not register service `shop/db`"));
}

/// Revoked access is a removal, and so is a workload that is gone.
#[tokio::test]
async fn a_proxy_of_a_deregistered_workload_loses_what_was_its_own() {
    let mesh = Mesh::start().await;
    let web = mesh.join("shop", "web").await;
    let (mut attached, registered) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let uid = weft_model::Uid::parse(&registered.uid).unwrap();
    let own = [Collection::Workload(uid.clone()), Collection::Inbound(uid)];
    let mut proxy = Proxy::open(mesh.channel(&web), &registered.uid, own.clone()).await;
    proxy.until(|f| own.iter().all(|c| f.contains_key(c))).await;
    attached.say(Message::Deregister(Deregister {})).await;
    assert!(matches!(attached.reply().await, Reply::Ack(_)));
    proxy.until(|f| own.iter().all(|c| !f.contains_key(c))).await;
    assert!(own.iter().all(|c| proxy.client.presence(c) == Some(weft_wire::delta::Presence::Absent)));
}

#[tokio::test]
async fn a_drain_waits_until_callers_know() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (mut attached, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let endpoints = Collection::Endpoints("shop/web".parse().unwrap());
    let mut caller = Proxy::open(mesh.channel(&api), "shop/api/n1/api-1", [endpoints.clone()]).await;
    caller.until(|_| true).await;
    attached.say(Message::Drain(Drain {})).await;
    caller
        .until(|f| {
            let entries = &f[&endpoints];
            entries.values().any(|e| matches!(&**e, Fragment::Endpoint(e) if e.health == Health::Draining))
        })
        .await;
    let Reply::Drained(drained) = attached.reply().await else { panic!() };
    assert_eq!((drained.acknowledged, drained.total), (1, 1));
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (mut attached, _) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let mut caller = Proxy::open(mesh.channel(&api), "p", [Collection::Endpoints("shop/web".parse().unwrap())]).await;
    caller.until(|_| true).await;
    // the caller reads no more
    attached.say(Message::Drain(Drain {})).await;
    let Reply::Drained(drained) = attached.reply().await else { panic!() };
    assert_eq!((drained.acknowledged, drained.total), (0, 1));
    drop(caller);
}

/// In paused time: the runtime moves the clock on whenever nothing else is to be done.
#[tokio::test]
async fn reg_01_silence_is_unknown_after_ten_seconds_and_never_empties_a_service() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::tokio(Clock::real().wall());
    let mesh = Mesh::with(Config { clock: clock.clone(), ..config(dir.path()) }, dir).await;
    let mut streams = Vec::new();
    for i in 0..4 {
        let web = mesh.join("shop", "web").await;
        streams.push(attach(&mesh, &web, register("shop", "web", &format!("web-{i}"))).await.0);
    }
    let control = mesh.server.control().clone();
    let health = |i: usize| {
        let state = control.replica.state();
        let mut all = state.registry.instances().map(|s| (s.value.id.to_string(), state.registry.health(&s.value)));
        all.find(|(id, _)| *id == format!("web-{i}")).unwrap().1
    };
    let mut revisions = control.replica.subscribe();
    tokio::time::pause();
    let began = clock.mono();
    // three go on speaking, one does not
    let silent = streams.remove(0);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let (mut unknown_at, mut dead_at) = (None, None);
    while dead_at.is_none() && clock.mono().since(began) < Duration::from_secs(120) {
        second.tick().await;
        for stream in &mut streams {
            stream.say(Message::Renew(RenewLease {})).await;
        }
        revisions.mark_unchanged();
        match health(0) {
            Health::Unknown => drop(unknown_at.get_or_insert(clock.mono().since(began))),
            Health::Critical => dead_at = Some(clock.mono().since(began)),
            _ => {}
        }
    }
    let (unknown_at, dead_at) = (unknown_at.unwrap().as_secs(), dead_at.unwrap().as_secs());
    assert!((9..=13).contains(&unknown_at), "unknown after {unknown_at} s");
    assert!((59..=64).contains(&dead_at), "dead after {dead_at} s");
    assert!((1..4).all(|i| health(i) == Health::Passing));
    // all of them: unknown, and so for ever
    drop((silent, streams));
    for _ in 0..300 {
        second.tick().await;
    }
    assert!((1..4).all(|i| health(i) == Health::Unknown));
}

#[tokio::test]
async fn reg_05_a_ttl_check_that_is_not_refreshed_goes_critical() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::tokio(Clock::real().wall());
    let mesh = Mesh::with(Config { clock: clock.clone(), ..config(dir.path()) }, dir).await;
    let web = mesh.join("shop", "web").await;
    let mut r = register("shop", "web", "web-1");
    r.checks = vec![CheckDefinition {
        id: "ttl".into(),
        kind: Some(Kind::Ttl(TtlCheck { ttl_ms: 5000 })),
        initial: v1::Health::Passing.into(),
        ..Default::default()
    }];
    let (_attached, _) = attach(&mesh, &web, r).await;
    let control = mesh.server.control().clone();
    tokio::time::pause();
    let critical = async {
        let mut revisions = control.replica.subscribe();
        while control.replica.state().registry.checks().all(|c| &*c.value.output != "not refreshed within its TTL") {
            revisions.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, critical).await.unwrap();
}

#[tokio::test]
async fn a_proxy_is_told_of_its_own_workload_only() {
    let mesh = Mesh::start().await;
    let (web, api) = (mesh.join("shop", "web").await, mesh.join("shop", "api").await);
    let (_attached, registered) = attach(&mesh, &web, register("shop", "web", "web-1")).await;
    let uid = weft_model::Uid::parse(&registered.uid).unwrap();
    let own = [Collection::Workload(uid.clone()), Collection::Inbound(uid)];
    let mut proxy = Proxy::open(mesh.channel(&web), &registered.uid, own.clone()).await;
    proxy.until(|f| own.iter().all(|c| f.contains_key(c))).await;
    let mut other = Proxy::open(mesh.channel(&api), &registered.uid, own.clone()).await;
    other.until(|_| true).await;
    assert!(own.iter().all(|c| !other.applied.contains_key(c)), "{:?}", other.applied);
    assert_eq!(
        own.iter().map(|c| other.client.presence(c)).collect::<Vec<_>>(),
        [Some(weft_wire::delta::Presence::Absent); 2]
    );
    let _: &Client = &other.client;
}

#[tokio::test]
async fn whoever_only_calls_is_counted_too() {
    let mesh = Mesh::start().await;
    let cli = mesh.join("shop", "cli").await;
    let r = v1::Register { ports: vec![], ..register("shop", "cli", "cli-1") };
    let (_attached, _) = attach(&mesh, &cli, r).await;
    let (_, services) = mesh.get("/weft/v1/services").await;
    let service = &services["services"][0];
    assert_eq!(service["instances"]["total"], 1, "{service:#}");
    assert_eq!(service["instances"]["passing"], 1);
    assert_eq!(service["identities"][0], cli.svid.id().to_string());
}
