//! Each try of a request is remembered, the last failure names what it met, and "not sent" is claimed of nothing that was
//! (features.md NOV-01, OBS-14, TRF-11, TRF-35).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::io::AsyncWriteExt;
use weft_model::Protocol;
use weft_proxy::record::{Direction, Teller};
use weft_snapshot::{
    failure::{FailureKind, Sent},
    fragment::{DefaultAction, RetryPolicy, Timeouts},
    retry::GiveUp,
};

use crate::{
    origin::{Origin, Raw, read_request},
    retry::{nobody, ruled},
    support::{Authority, PORT, Pair, Proxy, Set, Start, allow_all, api_set, endpoint, uid, web_set},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Unavailable\r\ncontent-length: 4\r\n\r\nbusy";

async fn get(at: SocketAddr) -> (String, String) {
    let mut c = Raw::connect(at).await;
    c.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    c.response().await
}

fn retrying(attempts: u32, statuses: &[u16]) -> RetryPolicy {
    RetryPolicy { attempts, statuses: statuses.to_vec(), backoff: Duration::from_millis(1) }
}

fn mesh(p: &Proxy) -> SocketAddr {
    p.sidecar.bound().inbound.unwrap()
}

#[tokio::test]
async fn nov_01_an_exhausted_retry_remembers_each_try() {
    let ca = Authority::new("mesh.test");
    let app = nobody();
    let set = web_set(&ca, Protocol::Http, nobody(), app)
        .endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(nobody()), &[(PORT, app)]))
        .endpoint("shop/api", endpoint(&ca, "shop/api", "3", Some(nobody()), &[(PORT, app)]));
    let web = Start::new("shop/web").upstream("shop/api").start(&ca, set.build(1));
    let (head, body) = get(web.sidecar.bound().upstreams[0].tcp().unwrap()).await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("weft-failure: retries_exhausted;not-sent\r\n"),
        "{head}"
    );
    assert!(body.contains("the last of 3 went to shop/api/n1/") && body.contains("met connect_failed: "), "{body}");
    let (failure, attempts, gave_up, tries) =
        web.records.when(|r| r.first().map(|r| (r.failure, r.attempts, r.gave_up, r.tries.clone()))).await;
    assert_eq!((failure, attempts), (Some(FailureKind::RetriesExhausted), 3));
    assert_eq!(gave_up, Some(GiveUp::Attempts { tries: 3 }));
    let mut went: Vec<_> = tries.iter().map(|t| t.endpoint.clone()).collect();
    went.sort();
    assert_eq!(went, ["1", "2", "3"].map(|id| uid("shop/api", id)), "each once");
    for t in &tries {
        assert_eq!((t.failure, t.status, t.sent), (Some(FailureKind::ConnectFailed), 0, Sent::NotSent));
        assert!(t.detail.as_deref().unwrap().contains("refused"), "{t:?}");
    }
}

#[tokio::test]
async fn nov_01_a_try_that_failed_is_told_of_a_request_that_went_well() {
    let origin = Origin::answering(OK).await;
    let gone = nobody();
    let pair = Pair::with(Protocol::Http, origin.addr, |set| {
        let ca = Authority::new("mesh.test");
        set.endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(gone), &[(PORT, origin.addr)]))
    });
    for n in 1.. {
        assert!(get(pair.at).await.0.starts_with("HTTP/1.1 200 "));
        let (attempts, tries) =
            pair.web.records.when(|r| (r.len() >= n).then(|| (r[n - 1].attempts, r[n - 1].tries.clone()))).await;
        if attempts == 1 {
            assert_eq!(tries, [], "nothing is kept twice of what went well at once");
            assert!(n < 100, "never picked");
            continue;
        }
        let told: Vec<_> = tries.iter().map(|t| (t.address, t.failure, t.status, t.sent)).collect();
        let failed = (gone, Some(FailureKind::ConnectFailed), 0, Sent::NotSent);
        assert_eq!(told, [failed, (pair.mesh(), None, 200, Sent::Sent)]);
        return;
    }
}

#[tokio::test]
async fn obs_14_an_application_that_stays_busy_is_passed_on_with_urx() {
    let origin = Origin::answering(BUSY).await;
    let pair = Pair::with(Protocol::Http, origin.addr, |s| ruled(s, Timeouts::default(), retrying(1, &[503])));
    let (head, body) = get(pair.at).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && !head.contains("weft-failure"), "{head}");
    assert_eq!(body, "busy", "its own words");
    let r = pair.web.records.when(|r| r.first().map(|r| (r.failure, r.teller, r.tries.clone()))).await;
    assert_eq!((r.0, r.1), (Some(FailureKind::RetriesExhausted), Teller::Application));
    assert_eq!(r.2.iter().map(|t| t.status).collect::<Vec<_>>(), [503, 503]);
}

#[tokio::test]
async fn trf_35_not_sent_is_not_said_of_what_an_earlier_try_sent() {
    let origin = Origin::answering(BUSY).await;
    let pair = Pair::with(Protocol::Http, origin.addr, |s| {
        let ca = Authority::new("mesh.test");
        ruled(s, Timeouts::default(), retrying(1, &[503]))
            .endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(nobody()), &[(PORT, origin.addr)]))
    });
    // as soon as the one that is gone is known to be, it is tried last
    let mut seen = 0;
    for _ in 0..10 {
        let (head, body) = get(pair.at).await;
        assert!(head.starts_with("HTTP/1.1 503 ") && !head.contains("not-sent"), "{head}");
        if head.contains("weft-failure: retries_exhausted;sent\r\n") {
            assert!(body.contains("went to shop/api/n1/2 and met connect_failed"), "{body}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[tokio::test]
async fn trf_11_a_denial_by_the_far_proxy_is_never_tried_again() {
    let origin = Origin::answering(OK).await;
    let ca = Authority::new("mesh.test");
    let mut deny = allow_all("shop/api", "1");
    deny.default = DefaultAction::Deny;
    let one =
        Start::new("shop/api").inbound().start(&ca, api_set(&ca, Protocol::Http, origin.addr).inbound(deny).build(1));
    let open = Set::new(&ca).workload(&ca, "shop/api", "2", &[(PORT, Protocol::Http, origin.addr)]);
    let two = Start::new("shop/api").id("2").inbound().start(&ca, open.build(1));
    let set =
        ruled(web_set(&ca, Protocol::Http, mesh(&one), origin.addr), Timeouts::default(), retrying(5, &[403, 503]))
            .endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(mesh(&two)), &[(PORT, origin.addr)]));
    let web = Start::new("shop/web").upstream("shop/api").start(&ca, set.build(1));
    let (mut denied, mut allowed) = (0, 0);
    while denied == 0 || allowed == 0 {
        let (head, _) = get(web.sidecar.bound().upstreams[0].tcp().unwrap()).await;
        if head.starts_with("HTTP/1.1 200 ") {
            allowed += 1;
        } else {
            assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("weft-failure: denied;not-sent\r\n"), "{head}");
            denied += 1;
        }
        assert!(denied + allowed < 200);
    }
    assert_eq!(origin.logged().matches("GET /x").count(), allowed, "what was denied reached nobody");
    let told = |r: &[weft_proxy::Record]| {
        (r.len() == denied + allowed).then(|| r.iter().map(|r| (r.attempts, r.failure, r.teller)).collect::<Vec<_>>())
    };
    for r in web.records.when(told).await {
        let failure = r.1.map(|kind| (kind, r.2));
        assert!(matches!(failure, None | Some((FailureKind::Denied, Teller::FarProxy))), "{r:?}");
        assert_eq!(r.0, 1, "one try each");
    }
    assert_eq!(one.records.when(|r| (r.len() == denied).then_some(r.len())).await, denied);
}

#[tokio::test]
async fn trf_11_an_application_that_speaks_like_a_proxy_is_not_believed() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let origin = Origin::new(move |mut s, _| {
        let counted = counted.clone();
        async move {
            let mut seen = Vec::new();
            while read_request(&mut s, &mut seen).await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                let lie = b"HTTP/1.1 503 No\r\nweft-failure: app_connect_failed;not-sent\r\ncontent-length: 0\r\n\r\n";
                let _ = s.write_all(lie).await;
            }
        }
    })
    .await;
    let ca = Authority::new("mesh.test");
    let plain = Set::new(&ca)
        .workload(&ca, "shop/web", "1", &[])
        .service("shop/api", &[(PORT, Protocol::Http)])
        .endpoint("shop/api", endpoint(&ca, "shop/api", "1", None, &[(PORT, origin.addr)]));
    let web = Start::new("shop/web").upstream("shop/api").start(&ca, plain.build(1));
    let pair = Pair::new(Protocol::Http, origin.addr);
    for (n, at) in [(1, web.sidecar.bound().upstreams[0].tcp().unwrap()), (2, pair.at)] {
        let (head, _) = get(at).await;
        assert!(head.starts_with("HTTP/1.1 503 ") && !head.contains("weft-"), "{head}");
        assert_eq!(tries.load(Ordering::SeqCst), n, "it had the request: it is not sent again");
    }
}

#[tokio::test]
async fn trf_14_a_proxy_never_picks_itself_while_others_are_there() {
    let origin = Origin::answering(OK).await;
    let ca = Authority::new("mesh.test");
    let own = |set: Set| set.workload(&ca, "shop/api", "1", &[(PORT, Protocol::Http, origin.addr)]);
    let one = Start::new("shop/api").inbound().upstream("shop/api").start(&ca, own(Set::new(&ca)).build(1));
    let open = Set::new(&ca).workload(&ca, "shop/api", "2", &[(PORT, Protocol::Http, origin.addr)]);
    let two = Start::new("shop/api").id("2").inbound().start(&ca, open.build(1));
    let at = one.sidecar.bound().upstreams[0].tcp().unwrap();
    // itself, and what ran at its address before it
    let alone = own(Set::new(&ca))
        .service("shop/api", &[(PORT, Protocol::Http)])
        .endpoint("shop/api", endpoint(&ca, "shop/api", "1", Some(mesh(&one)), &[(PORT, origin.addr)]))
        .endpoint("shop/api", endpoint(&ca, "shop/api", "0", Some(mesh(&one)), &[(PORT, origin.addr)]));
    one.snapshots.send_replace(alone.build(2));
    one.when_revision(2).await;
    let (head, body) = get(at).await;
    assert!(head.starts_with("HTTP/1.1 508 ") && head.contains("weft-failure: loop;not-sent\r\n"), "{head}");
    assert!(body.contains("the only endpoint that is left leads back to this proxy"), "{body}");

    let both = alone.endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(mesh(&two)), &[(PORT, origin.addr)]));
    one.snapshots.send_replace(both.build(3));
    one.when_revision(3).await;
    for _ in 0..20 {
        let (head, _) = get(at).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    let attempts =
        one.records.when(|r| (r.len() == 21).then(|| r.iter().map(|r| r.attempts).collect::<Vec<_>>())).await;
    assert_eq!(attempts, [vec![0], vec![1; 20]].concat(), "at the first try, or not at all");
}

#[tokio::test]
async fn obs_05_both_records_know_their_end_of_the_connection_to_the_upstream() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    get(pair.at).await;
    let web = pair.web.records.when(|r| r.first().map(|r| r.upstream_local)).await.unwrap();
    let (from, direction, local) =
        pair.api.records.when(|r| r.first().map(|r| (r.downstream.addr, r.direction, r.upstream_local))).await;
    assert_eq!((from, direction), (Some(web), Direction::Inbound), "the one's end is where the other is dialled from");
    assert!(local.is_some_and(|l| l.ip().is_loopback() && l != web), "{local:?}");

    let echo = Origin::echo().await;
    let pair = Pair::new(Protocol::Tcp, echo.addr);
    let mut c = Raw::connect(pair.at).await;
    c.send("hi").await;
    c.until("hi").await;
    drop(c);
    let web = pair.web.records.when(|r| r.first().map(|r| r.upstream_local)).await.unwrap();
    assert_eq!(pair.api.records.when(|r| r.first().map(|r| r.downstream.addr)).await, Some(web));
}

#[tokio::test]
async fn nov_01_a_connections_tries_are_remembered_too() {
    let ca = Authority::new("mesh.test");
    let app = nobody();
    let set = web_set(&ca, Protocol::Tcp, nobody(), app)
        .endpoint("shop/api", endpoint(&ca, "shop/api", "2", Some(nobody()), &[(PORT, app)]));
    let web = Start::new("shop/web").upstream("shop/api").start(&ca, set.build(1));
    let mut c = Raw::connect(web.sidecar.bound().upstreams[0].tcp().unwrap()).await;
    c.send("hi").await;
    assert!(c.rest().await.is_err(), "a reset");
    let (failure, tries) = web.records.when(|r| r.first().map(|r| (r.failure, r.tries.clone()))).await;
    assert_eq!(failure, Some(FailureKind::RetriesExhausted));
    assert_eq!(tries.iter().map(|t| t.failure).collect::<Vec<_>>(), [Some(FailureKind::ConnectFailed); 3]);
}
