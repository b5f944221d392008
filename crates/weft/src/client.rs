//! The command line's way to the server's HTTP API, and how it ends when that fails.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::ClientConfig};
use weft_identity::{Facts, WallClock, join_client_config};
use weft_rt::Clock;

use crate::{cli, place, say::tell};

/// How long connecting may take; loopback or a rack away.
const CONNECT: Duration = Duration::from_secs(3);

/// How a verb ends when it does not end well. The number is the process's exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// 1: what was typed.
    #[error("{0}")]
    Usage(String),
    /// 2: the server, or what was checked, said no.
    #[error("{0}")]
    Problem(String),
    /// 3: nobody answered.
    #[error(
        "cannot reach a weft server at {server}: {why}; is it running? `weft dev` starts one, --server or WEFT_SERVER name another"
    )]
    Unreachable { server: String, why: String },
}

impl Failed {
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 1,
            Self::Problem(_) => 2,
            Self::Unreachable { .. } => 3,
        }
    }
}

/// A server, and the token to show it.
pub struct Api {
    addr: SocketAddr,
    token: Option<String>,
    /// Where the token is from, or was looked for.
    token_file: Option<PathBuf>,
    /// Speaks TLS to whoever is the control plane of a mesh with a known root; `None`: no TLS.
    tls: Option<Arc<ClientConfig>>,
}

/// A connection to the server, with or without TLS.
trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// A reply: status and JSON (null where the body is none).
pub struct Reply {
    pub status: StatusCode,
    pub json: Value,
    pub text: String,
}

impl Api {
    /// From flags, else from the `weft dev` of this user, else the default address with `./.weft/admin.token`.
    pub fn find(client: &cli::Client) -> Result<Self, Failed> {
        let dev = place::dev();
        let local = place::DEFAULT_DATA.join("admin.token");
        if let (None, Some(dev), true) = (&client.server, &dev, local.exists()) {
            tell!(
                "weft: asking the `weft dev` of this user at http://{}, not the server of {}; --server or WEFT_SERVER names that one",
                dev.http,
                place::DEFAULT_DATA.display()
            );
        }
        let (addr, secure) = match (&client.server, &dev) {
            (Some(url), _) => address(url)?,
            (None, Some(dev)) => (dev.http, false),
            (None, None) => (place::DEFAULT_HTTP, false),
        };
        let implied = || -> Option<PathBuf> {
            let of_dev = dev.as_ref().filter(|d| d.http == addr).map(|d| d.admin_token.clone());
            of_dev.or_else(|| Some(local.clone()).filter(|p| p.exists()))
        };
        let token_file = client.token_file.clone().or_else(implied);
        let token = match &token_file {
            None => None,
            Some(file) => Some(
                std::fs::read_to_string(file)
                    .map_err(|e| Failed::Usage(format!("cannot read the token file {}: {e}", file.display())))?
                    .trim()
                    .to_owned(),
            ),
        };
        if !secure && token.is_some() && !addr.ip().is_loopback() {
            return Err(Failed::Usage(format!(
                "the token would cross the network to {addr} in the clear; write --server https://{addr} and name the mesh's \
                 root with --ca-file (<data>/ca.pem of the server)"
            )));
        }
        let tls = if secure { Some(pinned(client.ca_file.as_deref())?) } else { None };
        let looked_at = token_file.unwrap_or(local);
        Ok(Self { addr, token, token_file: Some(place::absolute(&looked_at)), tls })
    }

    /// On this machine, without TLS.
    pub fn at(addr: SocketAddr, token: Option<String>) -> Self {
        Self { addr, token, token_file: None, tls: None }
    }

    pub async fn get(&self, path: &str) -> Result<Value, Failed> {
        self.send(Method::GET, path, None).await?.good()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.send(Method::POST, path, Some(body)).await?.good()
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Failed> {
        self.send(Method::DELETE, path, None).await?.good()
    }

    /// One request on a connection of its own.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply, Failed> {
        let body = body.map(|json| ("application/json", json.to_string()));
        self.exchange(method, path, body).await
    }

    /// Documents as they were typed.
    pub async fn send_text(&self, method: Method, path: &str, documents: String) -> Result<Reply, Failed> {
        self.exchange(method, path, Some(("application/yaml", documents))).await
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<(&str, String)>) -> Result<Reply, Failed> {
        let response = self.open(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| self.unreachable(&e))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        self.admitted(status, &text)?;
        Ok(Reply { status, json: serde_json::from_str(&text).unwrap_or(Value::Null), text })
    }

    /// A reply whose body is read line by line, for watches.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, Failed> {
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(self.addr)).await;
        let io = match connected {
            Ok(Ok(io)) => self.secure(io).await?,
            Ok(Err(e)) => return Err(self.unreachable(&e)),
            Err(_) => return Err(self.unreachable(&"no answer to the connection")),
        };
        let (mut send, driver) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| self.unreachable(&e))?;
        #[expect(clippy::disallowed_methods, reason = "it ends with the connection, and the process with it")]
        tokio::spawn(driver);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.addr.to_string())
            .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bytes = match body {
            Some((kind, text)) => {
                request = request.header(header::CONTENT_TYPE, kind);
                Bytes::from(text)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes)).map_err(|e| Failed::Usage(format!("{path}: {e}")))?;
        send.send_request(request).await.map_err(|e| self.unreachable(&e))
    }

    /// What the server says of the token, with where this side has it from.
    fn admitted(&self, status: StatusCode, said: &str) -> Result<(), Failed> {
        let Some(file) = &self.token_file else { return Ok(()) };
        let next = "name the server's <data>/admin.token with --token-file or WEFT_TOKEN_FILE (`weft server` prints where it is)";
        let addr = self.addr;
        Err(Failed::Problem(match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => {
                format!("the server at {addr} wants a token, and there is no {}; {next}", file.display())
            }
            StatusCode::FORBIDDEN if said.contains("admin token") => {
                format!("the token in {} is not that of the server at {addr}; {next}", file.display())
            }
            _ => return Ok(()),
        }))
    }

    async fn secure(&self, io: TcpStream) -> Result<Box<dyn Io>, Failed> {
        let Some(config) = &self.tls else { return Ok(Box::new(io)) };
        let connector = TlsConnector::from(config.clone());
        // whom it must be is decided by its SPIFFE identity, so that any address will do
        let shaking = connector.connect(ServerName::from(self.addr.ip()), io);
        match tokio::time::timeout(CONNECT, shaking).await {
            Ok(Ok(io)) => Ok(Box::new(io)),
            Ok(Err(e)) => Err(self.unreachable(&format_args!("{e}; is --ca-file that of this mesh?"))),
            Err(_) => Err(self.unreachable(&"no answer to the TLS handshake")),
        }
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> Failed {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Failed::Unreachable { server: format!("{scheme}://{}", self.addr), why: why.to_string() }
    }
}

impl Reply {
    /// The JSON of a success; else what the server said, in its words.
    pub fn good(self) -> Result<Value, Failed> {
        if self.status.is_success() {
            return Ok(self.json);
        }
        let said = self.json.get("message").or_else(|| self.json.get("error")).and_then(Value::as_str);
        let said = said.map_or_else(|| self.text.trim().to_owned(), str::to_owned);
        Err(Failed::Problem(if said.is_empty() { format!("the server answered {}", self.status) } else { said }))
    }
}

/// `https://host:port`, `http://host:port`, `host:port`, or an address; names are looked up. The flag: whether TLS.
fn address(url: &str) -> Result<(SocketAddr, bool), Failed> {
    use std::net::ToSocketAddrs as _;
    let bad =
        |why: String| Failed::Usage(format!("server `{url}`: {why}; write https://HOST:PORT or http://HOST:PORT"));
    let (host, secure) = match url.strip_prefix("https://") {
        Some(host) => (host, true),
        None => (url.strip_prefix("http://").unwrap_or(url), false),
    };
    let found = host.trim_end_matches('/').to_socket_addrs().map_err(|e| bad(e.to_string()))?.next();
    Ok((found.ok_or_else(|| bad("the name has no address".into()))?, secure))
}

/// TLS to the control plane of the mesh whose root is the first certificate in `file`.
fn pinned(file: Option<&Path>) -> Result<Arc<ClientConfig>, Failed> {
    let local = place::DEFAULT_DATA.join("ca.pem");
    let file = file.unwrap_or(&local);
    let bad = |why: String| {
        Failed::Usage(format!(
            "cannot read the mesh's root from {}: {why}; https needs --ca-file (or WEFT_CA_FILE), the server's <data>/ca.pem",
            file.display()
        ))
    };
    let pem = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
    let root = CertificateDer::from_pem_slice(&pem).map_err(|_| bad("it holds no PEM certificate".into()))?;
    let pin = Facts::read(&root).map_err(|e| bad(e.to_string()))?.key;
    let clock = Clock::real();
    Ok(join_client_config(pin, &[], &WallClock::new(move || clock.wall())))
}

/// Percent-encodes one path segment or query value.
pub fn quoted(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address("http://127.0.0.1:8500/").unwrap(), (([127, 0, 0, 1], 8500).into(), false));
        assert_eq!(address("https://127.0.0.1:1").unwrap(), (([127, 0, 0, 1], 1).into(), true));
        assert!(!address("127.0.0.1:1").unwrap().1);
        assert!(address("localhost").is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_exit_code_3() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let err = Api::at(free, None).get("/x").await.unwrap_err();
        assert_eq!(err.code(), 3);
        assert!(err.to_string().contains("is it running? `weft dev` starts one"), "{err}");
    }

    #[test]
    fn quoting() {
        assert_eq!(quoted("a/b c%"), "a%2Fb%20c%25");
    }
}
