//! HTTP/2 applications with prior knowledge, as gRPC is (features.md TRF-34), and streams that must not hold up each other.

use std::{future::poll_fn, net::SocketAddr};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use weft_model::Protocol;

use crate::{
    origin::LIMIT,
    support::{Pair, allow_all},
};

pub async fn within<T>(f: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, f).await.expect("timed out")
}

/// An origin that answers each stream by `serve`.
async fn origin<F>(
    serve: impl Fn(Request<RecvStream>, h2::server::SendResponse<Bytes>) -> F + Clone + Send + 'static,
) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = l.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut conns = JoinSet::new();
        loop {
            let (s, _) = l.accept().await.unwrap();
            let serve = serve.clone();
            conns.spawn(async move {
                let mut streams = JoinSet::new();
                let mut conn = h2::server::handshake(s).await.unwrap();
                while let Some(Ok((request, reply))) = conn.accept().await {
                    streams.spawn(serve(request, reply));
                }
            });
        }
    });
    (at, tasks)
}

pub async fn client(to: SocketAddr) -> (SendRequest<Bytes>, JoinSet<()>) {
    let (send, conn) = h2::client::handshake(TcpStream::connect(to).await.unwrap()).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = conn.await;
    });
    (send, tasks)
}

pub fn post(path: &str) -> Request<()> {
    Request::post(format!("http://api.shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

async fn data(recv: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let d = recv.data().await;
    if let Some(Ok(b)) = &d {
        recv.flow_control().release_capacity(b.len()).unwrap();
    }
    d
}

async fn send_all(send: &mut SendStream<Bytes>, mut b: Bytes, end: bool) {
    while !b.is_empty() {
        send.reserve_capacity(b.len());
        let n = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(b.split_to(n.min(b.len())), end && b.is_empty()).unwrap();
    }
}

/// Echoes each message as it comes, then trailers.
async fn echo(request: Request<RecvStream>, mut reply: h2::server::SendResponse<Bytes>) {
    let mut recv = request.into_body();
    let mut send = reply
        .send_response(Response::builder().header("content-type", "application/grpc").body(()).unwrap(), false)
        .unwrap();
    while let Some(Ok(b)) = data(&mut recv).await {
        send_all(&mut send, b, false).await;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ = send.send_trailers(trailers);
}

#[tokio::test]
async fn trf_34_a_grpc_stream_goes_both_ways_with_trailers() {
    let (at, _origin) = origin(echo).await;
    let pair = Pair::new(Protocol::Grpc, at);
    let (client, _conn) = client(pair.at).await;
    within(async {
        let (answer, mut send) = client.ready().await.unwrap().send_request(post("/pkg.S/Bidi"), false).unwrap();
        send.send_data("one".into(), false).unwrap();
        let mut recv = answer.await.unwrap().into_body();
        assert_eq!(data(&mut recv).await.unwrap().unwrap(), "one");
        send.send_data("two".into(), false).unwrap();
        assert_eq!(data(&mut recv).await.unwrap().unwrap(), "two");
        send.send_data(Bytes::new(), true).unwrap();
        assert!(data(&mut recv).await.is_none());
        assert_eq!(recv.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    })
    .await;
}

#[tokio::test]
async fn trf_34_the_server_may_answer_before_the_client_is_done() {
    let (at, _origin) = origin(|_, mut reply| async move {
        let mut send = reply.send_response(Response::new(()), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "3".parse().unwrap());
        send.send_trailers(trailers).unwrap();
    })
    .await;
    let pair = Pair::new(Protocol::Grpc, at);
    let (client, _conn) = client(pair.at).await;
    within(async {
        let (answer, mut send) = client.ready().await.unwrap().send_request(post("/pkg.S/Early"), false).unwrap();
        send.send_data("one".into(), false).unwrap();
        let mut recv = answer.await.unwrap().into_body();
        assert!(data(&mut recv).await.is_none());
        assert_eq!(recv.trailers().await.unwrap().unwrap()["grpc-status"], "3");
    })
    .await;
}

#[tokio::test]
async fn obs_01_both_records_tell_the_status_in_the_trailers_and_both_sizes() {
    let (at, _origin) = origin(|request, mut reply| async move {
        let mut recv = request.into_body();
        while data(&mut recv).await.is_some() {}
        let mut send = reply.send_response(Response::new(()), false).unwrap();
        send.send_data("sorry".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        send.send_trailers(trailers).unwrap();
    })
    .await;
    let pair = Pair::new(Protocol::Grpc, at);
    let (client, _conn) = client(pair.at).await;
    within(async {
        let (answer, mut send) = client.ready().await.unwrap().send_request(post("/pkg.S/Get"), false).unwrap();
        send.send_data("give me that".into(), true).unwrap();
        let mut recv = answer.await.unwrap().into_body();
        while data(&mut recv).await.is_some() {}
        for proxy in [&pair.web, &pair.api] {
            let told = |r: &weft_proxy::Record| Some((r.http.as_ref()?.grpc_status, r.rx, r.tx));
            let told = proxy.records.when(|r| r.first().and_then(told)).await;
            assert_eq!(told, (Some(5), 12, 5));
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_stream_is_a_reset_with_any_code() {
    let cut = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let gate = cut.clone();
    let (at, _origin) = origin(move |_, mut reply| {
        let gate = gate.clone();
        async move {
            let mut send = reply.send_response(Response::new(()), false).unwrap();
            send.send_data("part".into(), false).unwrap();
            // the part arrives first
            gate.acquire().await.unwrap().forget();
            send.send_reset(h2::Reason::NO_ERROR);
        }
    })
    .await;
    let pair = Pair::new(Protocol::Grpc, at);
    let (client, _conn) = client(pair.at).await;
    within(async {
        let (answer, _) = client.ready().await.unwrap().send_request(post("/pkg.S/Cut"), true).unwrap();
        let outcome = async {
            let mut recv = answer.await?.into_body();
            assert_eq!(data(&mut recv).await.unwrap()?, "part");
            cut.add_permits(1);
            while let Some(d) = data(&mut recv).await {
                d?;
            }
            recv.trailers().await
        };
        assert!(outcome.await.is_err(), "looked complete");
    })
    .await;
}

#[tokio::test]
async fn trf_35_a_denied_grpc_call_gets_its_status_in_a_head() {
    let (at, _origin) = origin(echo).await;
    let pair = Pair::new(Protocol::Grpc, at);
    let mut deny = allow_all("shop/api", "1");
    deny.default = weft_snapshot::fragment::DefaultAction::Deny;
    pair.set_policy(2, deny);
    let (client, _conn) = client(pair.at).await;
    within(async {
        // the swap is seen by its effect
        loop {
            let (answer, mut send) =
                client.clone().ready().await.unwrap().send_request(post("/pkg.S/Unary"), false).unwrap();
            let _ = send.send_data(Bytes::new(), true);
            let answer = answer.await.unwrap();
            if let Some(status) = answer.headers().get("grpc-status") {
                assert_eq!((answer.status().as_u16(), status.to_str().unwrap()), (200, "7"));
                assert_eq!(answer.headers()["weft-failure"], "denied;not-sent");
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn stalled_readers_on_all_streams_but_one_leave_that_one_flowing() {
    /// Most of what one connection between two sidecars carries at once.
    const STALLED: usize = 90;
    let (at, _origin) = origin(|_, mut reply| async move {
        let Ok(mut send) = reply.send_response(Response::new(()), false) else { return };
        let piece = Bytes::from(vec![1; 16 << 10]);
        // 8 MiB each: far more than any window
        for _ in 0..512 {
            let mut b = piece.clone();
            while !b.is_empty() {
                send.reserve_capacity(b.len());
                let Some(Ok(n)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
                if send.send_data(b.split_to(n.min(b.len())), false).is_err() {
                    return;
                }
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    })
    .await;
    let pair = Pair::new(Protocol::Grpc, at);
    let mut stalled = Vec::new();
    let mut conns = Vec::new();
    within(async {
        for _ in 0..STALLED {
            // a connection each, so that it is the one between the sidecars that is shared
            let (client, conn) = client(pair.at).await;
            let (answer, _) = client.ready().await.unwrap().send_request(post("/stall"), true).unwrap();
            stalled.push(answer.await.unwrap().into_body());
            conns.push(conn);
        }
        let (client, conn) = client(pair.at).await;
        conns.push(conn);
        let (answer, _) = client.ready().await.unwrap().send_request(post("/flow"), true).unwrap();
        let mut recv = answer.await.unwrap().into_body();
        let mut got = 0;
        while let Some(b) = data(&mut recv).await {
            got += b.unwrap().len();
        }
        assert_eq!(got, 8 << 20);
    })
    .await;
}
