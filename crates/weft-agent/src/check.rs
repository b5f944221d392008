//! Active health checks of the application beside us (features.md REG-05): HTTP, TCP and gRPC. TTL checks are refreshed
//! by the application itself through the API; thresholds (REG-06) are the registry's.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc};
use weft_model::Health;
use weft_wire::grpc::{self, HealthCheckRequest, HealthClient, ServingStatus};

/// Output is cut here (Consul's `OutputMaxSize`).
const MAX_OUTPUT: usize = 4096;
/// Redirects that an HTTP check follows before it gives up.
const MAX_REDIRECTS: usize = 5;

/// What to do, how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub id: String,
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// 2xx passes, 429 warns, everything else is critical. Redirects are followed on the same address.
    Http { addr: SocketAddr, path: String },
    /// A connection that opens passes.
    Tcp { addr: SocketAddr },
    /// The standard health protocol; the empty service is the whole server.
    Grpc { addr: SocketAddr, service: String },
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub check: String,
    pub health: Health,
    pub output: String,
}

/// Why a text is not a check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a check: use tcp, http=/path, grpc or grpc=service, with an optional @INTERVAL such as @5s")]
pub struct CheckError(String);

impl Check {
    /// From a command line: `tcp`, `http=/healthz`, `grpc[=service]`, each with an optional `@5s`.
    pub fn parse(text: &str, addr: SocketAddr) -> Result<Self, CheckError> {
        let bad = || CheckError(text.into());
        let (what, interval) = match text.rsplit_once('@') {
            Some((what, every)) => (what, seconds(every).ok_or_else(bad)?),
            None => (text, Duration::from_secs(2)),
        };
        let (kind, value) = what.split_once('=').map_or((what, None), |(k, v)| (k, Some(v)));
        let probe = match (kind, value) {
            ("tcp", None) => Probe::Tcp { addr },
            ("http", Some(path)) if path.starts_with('/') => Probe::Http { addr, path: path.into() },
            ("grpc", service) => Probe::Grpc { addr, service: service.unwrap_or_default().into() },
            _ => return Err(bad()),
        };
        Ok(Self { id: kind.into(), probe, interval, timeout: interval.max(Duration::from_secs(1)) })
    }

    /// Probes for ever and tells each finding; ends when nobody listens.
    pub async fn run(self, findings: mpsc::Sender<Finding>) {
        let mut due = tokio::time::interval(self.interval);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            if findings.send(self.once().await).await.is_err() {
                return;
            }
        }
    }

    /// One probe, bounded by the timeout.
    pub async fn once(&self) -> Finding {
        let probed = tokio::time::timeout(self.timeout, self.probe.probe()).await;
        let (health, mut output) =
            probed.unwrap_or_else(|_| (Health::Critical, format!("no answer within {:?}", self.timeout)));
        truncate(&mut output);
        Finding { check: self.id.clone(), health, output }
    }
}

impl Probe {
    async fn probe(&self) -> (Health, String) {
        let found = match self {
            Self::Tcp { addr } => tcp(*addr).await,
            Self::Http { addr, path } => http(*addr, path).await,
            Self::Grpc { addr, service } => grpc(*addr, service).await,
        };
        found.unwrap_or_else(|why| (Health::Critical, why))
    }
}

async fn tcp(addr: SocketAddr) -> Result<(Health, String), String> {
    connect(addr).await.map(|_| (Health::Passing, format!("TCP connect {addr}: success")))
}

async fn http(addr: SocketAddr, path: &str) -> Result<(Health, String), String> {
    let mut path = path.to_owned();
    for _ in 0..=MAX_REDIRECTS {
        let (status, location, body) = get(addr, &path).await?;
        match location.filter(|_| status.is_redirection()) {
            Some(next) => path = next,
            None => return Ok((of_status(status), format!("HTTP GET http://{addr}{path}: {status} Output: {body}"))),
        }
    }
    Err(format!("HTTP GET http://{addr}{path}: more than {MAX_REDIRECTS} redirects"))
}

/// features.md REG-05.
fn of_status(status: StatusCode) -> Health {
    match status {
        s if s.is_success() => Health::Passing,
        StatusCode::TOO_MANY_REQUESTS => Health::Warning,
        _ => Health::Critical,
    }
}

async fn get(addr: SocketAddr, path: &str) -> Result<(StatusCode, Option<String>, String), String> {
    let io = connect(addr).await?;
    let failed = |e: hyper::Error| format!("HTTP GET http://{addr}{path}: {e}");
    let (mut send, driver) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    let request =
        Request::get(path).header(header::HOST, addr.to_string()).header(header::USER_AGENT, "Weft Health Check");
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| format!("HTTP GET {path}: {e}"))?;
    // the sender goes with the exchange, and the connection with the sender
    let exchange = async move {
        let reply = send.send_request(request).await.map_err(failed)?;
        let (head, body) = reply.into_parts();
        // a body longer than we keep is no failure of the check
        let body = Limited::new(body, MAX_OUTPUT).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let location = head.headers.get(header::LOCATION).and_then(|l| l.to_str().ok()).and_then(local_path);
        Ok((head.status, location, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::join!(exchange, driver).0
}

/// The path of a redirect; its host is not followed: a check never leaves the machine.
fn local_path(location: &str) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    uri.path_and_query().map(ToString::to_string)
}

async fn grpc(addr: SocketAddr, service: &str) -> Result<(Health, String), String> {
    let named = if service.is_empty() { String::new() } else { format!("/{service}") };
    let failed = |why: String| format!("gRPC check {addr}{named}: {why}");
    let channel =
        grpc::channel(&addr.to_string(), move || TcpStream::connect(addr)).map_err(|e| failed(e.to_string()))?;
    let ask = HealthCheckRequest { service: service.into() };
    let reply = HealthClient::new(channel).check(ask).await.map_err(|e| failed(e.message().to_owned()))?;
    match reply.into_inner().status() {
        ServingStatus::Serving => Ok((Health::Passing, format!("gRPC check {addr}{named}: serving"))),
        other => Err(failed(other.as_str_name().to_owned())),
    }
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(addr).await.map_err(|e| format!("TCP connect {addr}: {e}"))
}

fn seconds(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.find(|c: char| !c.is_ascii_digit())?)?;
    let n: u64 = number.parse().ok()?;
    let d = match unit {
        "ms" => Duration::from_millis(n),
        "s" => Duration::from_secs(n),
        "m" => Duration::from_secs(n.checked_mul(60)?),
        _ => return None,
    };
    (!d.is_zero()).then_some(d)
}

fn truncate(output: &mut String) {
    if output.len() > MAX_OUTPUT {
        let end = output.floor_char_boundary(MAX_OUTPUT);
        output.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn answering(reply: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test's runtime owns it and ends it")]
        tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let n = io.read(&mut head).await.unwrap();
                let moved = head[..n].starts_with(b"GET /moved ");
                let reply = if moved {
                    "HTTP/1.1 302 Found\r\nlocation: http://elsewhere/here\r\ncontent-length: 0\r\n\r\n"
                } else {
                    reply
                };
                io.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        addr
    }

    async fn check(text: &str, addr: SocketAddr) -> Finding {
        Check::parse(text, addr).unwrap().once().await
    }

    #[tokio::test]
    async fn reg_05_http_statuses_map_as_consuls() {
        let ok = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(check("http=/x", ok).await.health, Health::Passing);
        assert_eq!(check("http=/moved", ok).await.health, Health::Passing);
        let busy = answering("HTTP/1.1 429 Slow\r\ncontent-length: 2\r\n\r\nhm").await;
        let found = check("http=/x", busy).await;
        assert_eq!(found.health, Health::Warning);
        assert!(found.output.ends_with("Output: hm"), "{}", found.output);
        let broken = answering("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(check("http=/x", broken).await.health, Health::Critical);
        let garbage = answering("what?\r\n\r\n").await;
        assert_eq!(check("http=/x", garbage).await.health, Health::Critical);
    }

    #[tokio::test]
    async fn reg_05_tcp_and_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(check("tcp", addr).await.health, Health::Passing);
        let mut silent = Check::parse("http=/", addr).unwrap();
        silent.timeout = Duration::from_millis(30);
        let found = silent.once().await;
        assert_eq!((found.health, &*found.output), (Health::Critical, "no answer within 30ms"));
        drop(listener);
        let found = check("tcp", addr).await;
        assert_eq!(found.health, Health::Critical);
        assert!(found.output.contains("refused"), "{}", found.output);
    }

    #[test]
    fn parses_what_a_command_line_says() {
        let addr = "127.0.0.1:80".parse().unwrap();
        let check = Check::parse("http=/healthz@500ms", addr).unwrap();
        assert_eq!(check.interval, Duration::from_millis(500));
        assert_eq!(check.probe, Probe::Http { addr, path: "/healthz".into() });
        assert_eq!(Check::parse("grpc", addr).unwrap().probe, Probe::Grpc { addr, service: String::new() });
        for bad in ["", "http", "http=x", "udp", "tcp@", "tcp@0s", "tcp@5", "tcp@99999999999999999999s", "tcp=1"] {
            assert!(Check::parse(bad, addr).is_err(), "{bad}");
        }
    }

    #[test]
    fn output_is_cut_at_a_character() {
        let mut long = "ä".repeat(MAX_OUTPUT);
        truncate(&mut long);
        assert_eq!(long.len(), MAX_OUTPUT);
        let mut odd = format!("x{}", "ä".repeat(MAX_OUTPUT));
        truncate(&mut odd);
        assert_eq!(odd.len(), MAX_OUTPUT - 1);
    }
}
