//! What a proxy says of itself over HTTP: metrics, readiness, its configuration and certificates. On the small runtime.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{
    Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_model::Wall;
use weft_rt::{Clock, Tasks, listen::Listener, metrics::Format};
use weft_snapshot::snapshot::{ServiceView, Snapshot, WorkloadView};

use crate::{metrics::Metrics, tls::Credentials};

/// Connections at a time: scrapers and probes, not traffic. More wait to be accepted.
const CONNECTIONS: usize = 64;
/// For a request's head, and between requests: longer than scrapers usually pause.
const HEAD: Duration = Duration::from_secs(75);
/// Of a connection, so that one whose reader stalls does not hold its place for ever.
const LIFE: Duration = Duration::from_secs(600);
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
/// After a connection could not be accepted, mostly for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

const PATHS: &str = "/metrics\n/stats/prometheus\n/healthz/ready\n/config\n/certs\n";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What there is to tell.
#[derive(Clone)]
pub struct Pages {
    pub metrics: Arc<Metrics>,
    pub ready: watch::Receiver<bool>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub clock: Clock,
}

/// Answers until dropped.
pub async fn serve(mut listener: Listener, pages: Pages) {
    let mut connections = Tasks::new();
    loop {
        tokio::select! {
            biased; // ended connections make room for new ones
            Some(_) = connections.next_ended(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                let Ok((io, _)) = accepted else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let pages = pages.clone();
                connections.spawn("admin connection", async move {
                    let service = service_fn(move |req: Request<Incoming>| {
                        let answer = pages.answer(&req);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let mut builder = http1::Builder::new();
                    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
                    // a scraper that hangs up is no news
                    let _ = tokio::time::timeout(LIFE, builder.serve_connection(TokioIo::new(io), service)).await;
                });
            }
        }
    }
}

// === impl Pages ===

impl Pages {
    fn answer<B>(&self, req: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*req.method(), Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "these pages can only be read: use GET\n".into());
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match req.uri().path() {
            "/metrics" | "/stats/prometheus" => {
                let format = Format::accepted(req.headers().get(ACCEPT).and_then(|v| v.to_str().ok()));
                reply(StatusCode::OK, format.content_type(), self.metrics.expose(format))
            }
            "/healthz/ready" if *self.ready.borrow() => text(StatusCode::OK, "ready\n".into()),
            "/healthz/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
            "/config" => {
                let snapshot = self.snapshots.borrow().clone();
                reply(StatusCode::OK, JSON, pretty(&config(&snapshot)))
            }
            "/certs" => {
                let credentials = self.credentials.borrow().clone();
                reply(StatusCode::OK, JSON, pretty(&certs(credentials.as_deref(), self.clock.wall())))
            }
            _ => text(StatusCode::NOT_FOUND, format!("there is no such page; there are:\n{PATHS}")),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, TEXT, body)
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// What the proxy works by, in short.
fn config(snapshot: &Snapshot) -> Value {
    json!({
        "revision": snapshot.revision.to_string(),
        "digest": snapshot.digest.to_string(),
        "workloads": snapshot.workloads().map(|w| workload(w)).collect::<Vec<_>>(),
        "services": snapshot.services().map(|s| service(s)).collect::<Vec<_>>(),
        "trust_domains": snapshot.bundles().map(|b| b.trust_domain.to_string()).collect::<Vec<_>>(),
    })
}

fn workload(view: &WorkloadView) -> Value {
    let w = &view.workload;
    let listens = w.listens.iter().map(|l| {
        json!({
            "port": l.service_port, "name": &*l.name, "protocol": l.protocol.as_str(), "application": l.connect.to_string(),
        })
    });
    json!({
        "uid": w.uid.as_str(),
        "service": w.service.to_string(),
        "identity": w.identity.as_str(),
        "workload": &*w.workload,
        "version": &*w.version,
        "listens": listens.collect::<Vec<_>>(),
    })
}

fn service(view: &ServiceView) -> Value {
    let ports =
        view.service.ports.iter().map(|p| json!({ "port": p.port, "name": &*p.name, "protocol": p.protocol.as_str() }));
    let endpoints = view.endpoints().iter().map(|e| {
        json!({
            "uid": e.uid.as_str(),
            "health": e.health.as_str(),
            "weight": e.weight,
            "version": &*e.version,
            "identities": e.identities.iter().map(weft_model::SpiffeId::as_str).collect::<Vec<_>>(),
        })
    });
    json!({
        "service": view.service.key.to_string(),
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// Who the proxy is, and whom it believes. Never its key.
fn certs(credentials: Option<&Credentials>, now: Wall) -> Value {
    let Some(c) = credentials else {
        return json!({ "identity": null, "authorities": [] });
    };
    let (svid, bundle) = (&c.svid, &c.trust.bundle);
    let authorities = bundle.authorities().iter().map(|a| {
        json!({
            "subject": a.subject, "key": a.key.to_string(),
            "not_before": a.not_before.to_string(), "not_after": a.not_after.to_string(),
        })
    });
    json!({
        "identity": svid.id().as_str(),
        "serial": svid.serial().to_string(),
        "not_before": svid.not_before().to_string(),
        "not_after": svid.not_after().to_string(),
        "seconds_left": svid.not_after().as_secs().saturating_sub(now.as_secs()),
        "trust_domain": bundle.trust_domain().to_string(),
        "authorities": authorities.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use weft_model::Uid;
    use weft_rt::{
        listen::{Bind, bind},
        net::Addr,
    };

    use super::*;

    struct Fixture {
        pages: Pages,
        ready: watch::Sender<bool>,
        _told: (watch::Sender<Arc<Snapshot>>, watch::Sender<Option<Arc<Credentials>>>),
    }

    fn fixture() -> Fixture {
        let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::empty()));
        let (credential, credentials) = watch::channel(None);
        let (ready, seen) = watch::channel(false);
        let clock = Clock::real();
        let uid = Uid::parse("shop/web/n1/1").unwrap();
        let metrics = Metrics::new(uid, clock.clone(), snapshots.clone(), credentials.clone());
        let pages = Pages { metrics, ready: seen, snapshots, credentials, clock };
        Fixture { pages, ready, _told: (snapshot, credential) }
    }

    fn get(f: &Fixture, path: &str) -> (StatusCode, String) {
        let answer = f.pages.answer(&Request::get(path).body(()).unwrap());
        let (parts, body) = answer.into_parts();
        let body = futures_util::FutureExt::now_or_never(http_body_util::BodyExt::collect(body)).unwrap().unwrap();
        (parts.status, String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }

    #[test]
    fn obs_01_both_paths_serve_metrics_in_the_format_that_is_asked_for() {
        let f = fixture();
        for path in ["/metrics", "/stats/prometheus"] {
            let (status, text) = get(&f, path);
            assert!(status == StatusCode::OK && text.contains("istio_build{component=\"proxy\""), "{text}");
        }
        let req = Request::get("/metrics").header(ACCEPT, "application/openmetrics-text; version=1.0.0, */*;q=0.1");
        let answer = f.pages.answer(&req.body(()).unwrap());
        let told = answer.headers().get(CONTENT_TYPE).unwrap().to_str().unwrap();
        assert!(told.starts_with("application/openmetrics-text"), "{told}");
    }

    #[test]
    fn readiness_is_what_was_said_last() {
        let f = fixture();
        for (ready, status) in [(false, 503), (true, 200), (false, 503)] {
            f.ready.send_replace(ready);
            assert_eq!(get(&f, "/healthz/ready").0.as_u16(), status);
        }
    }

    #[test]
    fn config_and_certs_are_json() {
        let f = fixture();
        let config: Value = serde_json::from_str(&get(&f, "/config").1).unwrap();
        assert_eq!((&config["revision"], &config["services"]), (&json!("0.0"), &json!([])));
        let certs: Value = serde_json::from_str(&get(&f, "/certs").1).unwrap();
        assert_eq!(certs["identity"], Value::Null);
    }

    #[test]
    fn what_is_not_there_names_what_is() {
        let f = fixture();
        let (status, text) = get(&f, "/metricz");
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(PATHS.lines().all(|p| text.contains(p)), "{text}");
        assert!(PATHS.lines().all(|p| get(&f, p).0 != StatusCode::NOT_FOUND));
        let posted = f.pages.answer(&Request::post("/config").body(()).unwrap());
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn scrapes_share_a_connection_and_large_heads_are_refused() {
        let f = fixture();
        let listener = bind(&Bind::exact(Addr::Tcp("127.0.0.1:0".parse().unwrap()))).unwrap();
        let address = listener.addr().tcp().unwrap();
        let mut tasks = Tasks::new();
        tasks.spawn("admin", serve(listener, f.pages.clone()));
        let exchange = async |request: String| {
            let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
            io.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // a reset after a refusal is fine: what it said before that counts
            let _ = io.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        let two = "GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = exchange(two.into()).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("HTTP/1.1 200 OK"), "{answer}");
        let large = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(2 * MAX_HEAD));
        let answer = exchange(large).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}
