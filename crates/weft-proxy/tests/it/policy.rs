//! Policy changes reach what is open (features.md SEC-28).

use tokio::{io::AsyncWriteExt, sync::watch};
use weft_model::Protocol;
use weft_rt::net::{Addr, Connecting, Net};
use weft_snapshot::{
    failure::FailureKind,
    fragment::{Action, Inbound, Operation, Policy, Rule, StringMatch, Values},
};

use crate::{
    origin::{LIMIT, Origin, Raw, read_request},
    support::{Pair, Start, allow_all},
};

fn nobody() -> Inbound {
    let mut i = allow_all("shop/api", "1");
    i.policies.push(Policy {
        origin: "AuthorizationPolicy/shop/nobody".parse().unwrap(),
        action: Action::Deny,
        rules: vec![Rule::default()],
    });
    i
}

#[tokio::test]
async fn sec_28_a_live_tcp_connection_is_reset_with_the_rules_name() {
    let origin = Origin::echo().await;
    let pair = Pair::new(Protocol::Tcp, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("hello").await;
    c.until("hello").await;
    // a change that allows leaves it alone
    pair.set_policy(2, allow_all("shop/api", "1"));
    pair.api.when_revision(2).await;
    c.send("again").await;
    c.until("again").await;
    pair.set_policy(3, nobody());
    assert_eq!(c.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let (kind, rule) =
        pair.api.records.when(|r| r.iter().find_map(|r| Some((r.failure?, r.rule.as_ref()?.to_string())))).await;
    assert_eq!((kind, &*rule), (FailureKind::PolicyChanged, "AuthorizationPolicy/shop/nobody#rule-0"));
}

#[tokio::test]
async fn sec_28_a_live_upgrade_and_a_long_request_are_ended() {
    let origin = Origin::new(|mut s, _| async move {
        let mut seen = Vec::new();
        let r = read_request(&mut s, &mut seen).await.unwrap();
        let answer: &[u8] = if r.starts_with(b"GET /ws") {
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi"
        } else if r.starts_with(b"GET /stream") {
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n"
        } else {
            b""
        };
        s.write_all(answer).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut ws = Raw::connect(pair.at).await;
    ws.send("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    ws.until("hi").await;
    let mut stream = Raw::connect(pair.at).await;
    stream.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n").await;
    stream.until("hi\r\n").await;
    let mut waiting = Raw::connect(pair.at).await;
    waiting.send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await;
    origin.accepted(3).await;
    pair.set_policy(2, nobody());
    assert!(ws.rest().await.is_err(), "upgrade looked complete");
    assert!(stream.rest().await.is_err(), "stream looked complete");
    let (head, _) = waiting.response().await;
    assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("weft-failure: policy_changed;sent"), "{head}");
    assert!(head.contains("weft-rule: AuthorizationPolicy/shop/nobody#rule-0"), "{head}");
}

#[tokio::test]
async fn sec_28_a_revoked_identity_loses_its_live_connections() {
    let origin = Origin::echo().await;
    let pair = Pair::new(Protocol::Tcp, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("hello").await;
    c.until("hello").await;
    let mut believed = (**pair.api.credentials.borrow().as_ref().unwrap()).clone();
    let mut revoked = (*believed.trust.revocations).clone();
    revoked.ids.insert(pair.ca.id("shop/web"));
    believed.trust.revocations = revoked.into();
    pair.api.credentials.send_replace(Some(believed.into()));
    assert!(c.rest().await.is_err());
    let kind = pair.api.records.when(|r| r.iter().find_map(|r| r.failure)).await;
    assert_eq!(kind, FailureKind::PeerRevoked);
}

/// The first failure that the callee's side recorded, and the rule.
async fn ended_by(pair: &Pair) -> (FailureKind, Option<String>) {
    let first = |r: &weft_proxy::Record| Some((r.failure?, r.rule.as_ref().map(ToString::to_string)));
    pair.api.records.when(|r| r.iter().find_map(first)).await
}

fn by_nobody() -> (FailureKind, Option<String>) {
    (FailureKind::PolicyChanged, Some("AuthorizationPolicy/shop/nobody#rule-0".into()))
}

#[tokio::test]
async fn sec_28_a_silent_connection_on_an_undeclared_port_is_ended() {
    let origin = Origin::echo().await;
    let pair = Pair::new(Protocol::Undeclared, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    origin.accepted(1).await;
    pair.set_policy(2, nobody());
    // not a byte was said, and none needs to be
    assert!(c.rest().await.is_err(), "it looked complete");
    assert_eq!(ended_by(&pair).await, by_nobody());
}

#[tokio::test]
async fn sec_28_a_silent_connection_is_judged_anew_when_it_speaks() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let pair = Pair::new(Protocol::Undeclared, origin.addr);
    let (mut bytes, mut http) = (Raw::connect(pair.at).await, Raw::connect(pair.at).await);
    origin.accepted(2).await;
    let methods = Values { any: vec![StringMatch::Exact("GET".into())], none: Vec::new() };
    let mut get_only = allow_all("shop/api", "1");
    get_only.policies.push(Policy {
        origin: "AuthorizationPolicy/shop/get-only".parse().unwrap(),
        action: Action::Allow,
        rules: vec![Rule { to: vec![Operation { methods, ..Operation::default() }], ..Rule::default() }],
    });
    pair.set_policy(2, get_only);
    pair.api.when_revision(2).await;
    // it may still become what is allowed
    http.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(http.response().await.1, "ok");
    bytes.send("\x01\x02binary\r\n").await;
    assert!(bytes.rest().await.is_err(), "a refused stream is reset");
    assert_eq!(ended_by(&pair).await.0, FailureKind::NotHttp);
    assert!(!origin.logged().contains("binary"));
}

/// A network where nobody answers; says how often it was asked.
struct Silence(watch::Sender<usize>);

impl Net for Silence {
    fn connect(&self, _: Addr) -> Connecting {
        self.0.send_modify(|n| *n += 1);
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn sec_28_a_connection_to_an_application_that_did_not_accept_yet_is_ended() {
    for protocol in [Protocol::Undeclared, Protocol::Tcp] {
        let (asked, mut dialled) = watch::channel(0);
        let api = Start::new("shop/api").inbound().net(Silence(asked));
        let pair = Pair::of(api, protocol, "127.0.0.1:9".parse().unwrap(), |s| s);
        let mut c = Raw::connect(pair.at).await;
        tokio::time::timeout(LIMIT, dialled.wait_for(|n| *n > 0)).await.expect("never dialled").unwrap();
        pair.set_policy(2, nobody());
        assert!(c.rest().await.is_err(), "{protocol}: it looked complete");
        assert_eq!(ended_by(&pair).await, by_nobody(), "{protocol}");
    }
}
