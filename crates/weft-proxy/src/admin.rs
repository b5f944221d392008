//! Metrics and readiness over HTTP, on the small runtime.

use std::{convert::Infallible, sync::Arc};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::{Bytes, Incoming}, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use weft_rt::{Tasks, listen::Listener};

use crate::metrics::Metrics;

/// Connections at a time: scrapers and probes, not traffic.
const CONNECTIONS: usize = 64;

/// Answers until dropped.
pub async fn serve(mut listener: Listener, metrics: Arc<Metrics>, ready: watch::Receiver<bool>) {
    let mut connections = Tasks::new();
    loop {
        tokio::select! {
            biased; // ended connections make room for new ones
            Some(_) = connections.next_ended(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                let Ok((io, _)) = accepted else { continue };
                let (metrics, ready) = (metrics.clone(), ready.clone());
                connections.spawn("admin connection", async move {
                    let service = service_fn(move |req: Request<Incoming>| {
                        let reply = answer(req.uri().path(), &metrics, *ready.borrow());
                        async move { Ok::<_, Infallible>(reply) }
                    });
                    // a scraper that hangs up is no news
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(io), service)
                        .await;
                });
            }
        }
    }
}

fn answer(path: &str, metrics: &Metrics, ready: bool) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" | "/stats/prometheus" => (StatusCode::OK, metrics.exposition()),
        "/healthz/ready" if ready => (StatusCode::OK, "ready\n".into()),
        "/healthz/ready" => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
        _ => (StatusCode::NOT_FOUND, "there are /metrics, /stats/prometheus and /healthz/ready\n".into()),
    };
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply
}
