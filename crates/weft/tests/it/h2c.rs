//! HTTP/2 without TLS, as gRPC speaks it: an origin that breaks its answers off in every way, and a client that tells a
//! clean end from any other. Neither knows anything of what it tests.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use crate::mesh::{PATIENCE, eventually};

/// An origin: `/echo` sends back what comes; `/reset/CODE`, `/goaway`, `/graceful` and `/gone` send half an answer, wait for
/// a permit, and then reset the stream, give up the connection, end it in order, or reset TCP. Anything else is answered
/// at once.
pub fn serve_h2() -> (SocketAddr, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let its = gate.clone();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let mut connections = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                connections.spawn(connection(io, its.clone()));
            }
        });
    });
    (told.recv().unwrap(), gate)
}

/// What a stream asks of its connection.
enum End {
    Abrupt,
    Graceful,
    Gone,
}

async fn connection(io: TcpStream, gate: Arc<Semaphore>) {
    // the same socket twice, so that it can be told how to close
    let io = io.into_std().unwrap();
    let same = TcpStream::from_std(io.try_clone().unwrap()).unwrap();
    let Ok(mut conn) = h2::server::handshake(TcpStream::from_std(io).unwrap()).await else { return };
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased; // a stream that asks for an end has said all
            Some(end) = told.recv() => match end {
                End::Abrupt => conn.abrupt_shutdown(Reason::INTERNAL_ERROR),
                End::Graceful => conn.graceful_shutdown(),
                End::Gone => return same.set_zero_linger().unwrap(),
            },
            next = conn.accept() => match next {
                Some(Ok((request, reply))) => drop(streams.spawn(stream(request, reply, gate.clone(), tell.clone()))),
                _ => return,
            }
        }
    }
}

async fn stream(
    request: Request<RecvStream>,
    mut reply: SendResponse<Bytes>,
    gate: Arc<Semaphore>,
    tell: mpsc::UnboundedSender<End>,
) {
    let path = request.uri().path().to_owned();
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = reply.send_response(head, false).unwrap();
    if path == "/echo" {
        let mut recv = request.into_body();
        while let Some(Ok(said)) = recv.data().await {
            let _ = recv.flow_control().release_capacity(said.len());
            let _ = send.send_data(said, false);
        }
        return finish(&mut send);
    }
    let breaks = ["/reset/", "/goaway", "/graceful", "/gone"].iter().any(|p| path.starts_with(p));
    if !breaks {
        send.send_data("small".into(), false).unwrap();
        return finish(&mut send);
    }
    send.send_data("half".into(), false).unwrap();
    gate.acquire().await.unwrap().forget();
    match path.strip_prefix("/reset/").map(|code| code.parse::<u32>().unwrap()) {
        Some(code) => send.send_reset(code.into()),
        None => {
            let end = match path.as_str() {
                "/goaway" => End::Abrupt,
                "/gone" => End::Gone,
                _ => End::Graceful,
            };
            let graceful = matches!(end, End::Graceful);
            let _ = tell.send(end);
            if graceful {
                // after the notice, so that the answer ends on a connection that takes no new ones
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                let _ = send.send_data("rest".into(), false);
                finish(&mut send);
            } else {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn finish(send: &mut SendStream<Bytes>) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ = send.send_trailers(trailers);
}

/// One connection of a client.
pub struct Client {
    runtime: Runtime,
    send: h2::client::SendRequest<Bytes>,
}

/// One stream of it.
pub struct Call {
    pub send: SendStream<Bytes>,
    recv: RecvStream,
}

/// What a stream had when it ended: its bytes, and trailers if the end was a clean one.
pub type Ended = (Bytes, Result<HeaderMap, h2::Error>);

// === impl Client ===

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let send = eventually("somebody speaks HTTP/2", || {
            runtime.block_on(async {
                let io = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
                let (send, conn) = h2::client::handshake(io).await.map_err(|e| e.to_string())?;
                tokio::task::spawn(conn);
                Ok::<_, String>(send)
            })
        });
        Self { runtime, send }
    }

    fn within<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, what).await.expect("it takes too long") })
    }

    /// Sends a head and takes the answer's, which must be 200.
    pub fn call(&self, path: &str) -> Result<Call, h2::Error> {
        self.within(async {
            let request = Request::post(format!("http://api{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (answer, send) = self.send.clone().ready().await?.send_request(request, false)?;
            let answer = answer.await?;
            assert_eq!(answer.status(), 200, "{path}: {:?}", answer.headers());
            Ok(Call { send, recv: answer.into_body() })
        })
    }

    /// The next `n` bytes.
    pub fn read(&self, call: &mut Call, n: usize) -> Result<Bytes, h2::Error> {
        let mut all = Vec::new();
        self.within(async {
            while all.len() < n {
                let Some(data) = call.recv.data().await else { break };
                let data = data?;
                call.recv.flow_control().release_capacity(data.len())?;
                all.extend_from_slice(&data);
            }
            Ok(all.into())
        })
    }

    /// All that is left, and how it ends.
    pub fn rest(&self, call: &mut Call) -> Ended {
        let mut all = Vec::new();
        let end = self.within(async {
            while let Some(data) = call.recv.data().await {
                all.extend_from_slice(&data?);
            }
            Ok(call.recv.trailers().await?.unwrap_or_default())
        });
        (all.into(), end)
    }

    /// One line there and back on a stream that stays open.
    pub fn ping(&self, call: &mut Call, n: usize) -> Result<(), String> {
        let said = format!("ping {n}\n");
        call.send.send_data(said.clone().into(), false).map_err(|e| e.to_string())?;
        let got = self.read(call, said.len()).map_err(|e| e.to_string())?;
        if got == said.as_bytes() { Ok(()) } else { Err(format!("{got:?}")) }
    }
}
