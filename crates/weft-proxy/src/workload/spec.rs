//! What `--port` and `--upstream` say.

use std::{net::SocketAddr, path::PathBuf};

use weft_model::{Name, Protocol, ServiceKey};

/// A port of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    pub name: String,
    /// By which callers know it.
    pub service_port: u16,
    /// On which the application listens.
    pub port: u16,
    pub protocol: Protocol,
}

/// A service to call, and where the application finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSpec {
    pub service: ServiceKey,
    /// Number or name; `None`: the only one.
    pub port: Option<String>,
    pub listen: ListenSpec,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenSpec {
    Tcp(SocketAddr),
    /// Mode 0600.
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error(
        "--port {text}: {why}; write [NAME=][SERVICEPORT:]PORT[/PROTOCOL], such as 8080, http=8080 or 80:8080/grpc"
    )]
    Port { text: String, why: String },
    #[error(
        "--upstream {text}: {why}; write [namespace/]service[:port]=LOCALPORT, such as api=9001 or shop/api:http=127.0.0.1:9001"
    )]
    Upstream { text: String, why: String },
}

impl PortSpec {
    /// `[NAME=][SERVICEPORT:]PORT[/PROTOCOL]`; without a protocol the name's prefix declares it (`http-admin`).
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let bad = |why: String| SpecError::Port { text: text.into(), why };
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, p)) => (rest, Some(protocol(p).map_err(bad)?)),
            None => (text, None),
        };
        let (name, port) = rest.split_once('=').unwrap_or(("", rest));
        let (service_port, port) = port.split_once(':').unwrap_or((port, port));
        let (service_port, port) = (number(service_port).map_err(bad)?, number(port).map_err(bad)?);
        let protocol = protocol.unwrap_or_else(|| Protocol::of_port(None, Some(name)));
        let name = if name.is_empty() && protocol != Protocol::Undeclared { protocol.as_str() } else { name };
        Ok(Self { name: name.into(), service_port, port, protocol })
    }
}

impl UpstreamSpec {
    /// A bare service is in `namespace`.
    pub fn parse(text: &str, namespace: &Name) -> Result<Self, SpecError> {
        let bad = |why: String| SpecError::Upstream { text: text.into(), why };
        let (what, place) = text.split_once('=').ok_or_else(|| bad("it has no `=`".into()))?;
        let (service, port) = match what.rsplit_once(':') {
            Some((_, "")) => return Err(bad("the port after `:` is empty".into())),
            Some((service, port)) => (service, Some(port.to_owned())),
            None => (what, None),
        };
        let service = ServiceKey::parse_in(service, namespace).map_err(|e| bad(e.to_string()))?;
        let (listen, declared) = listen(place).map_err(bad)?;
        Ok(Self { service, port, listen, protocol: declared })
    }
}

/// `PORT`, `ADDRESS:PORT` or a path that begins with `/` or `.`, each but the path with an optional `/protocol`.
fn listen(text: &str) -> Result<(ListenSpec, Protocol), String> {
    if text.starts_with('/') || text.starts_with('.') {
        return Ok((ListenSpec::Unix(text.into()), Protocol::Undeclared));
    }
    let (place, declared) = match text.split_once('/') {
        Some((place, p)) => (place, protocol(p)?),
        None => (text, Protocol::Undeclared),
    };
    if let Ok(addr) = place.parse::<SocketAddr>() {
        return Ok((ListenSpec::Tcp(addr), declared));
    }
    Ok((ListenSpec::Tcp(([127, 0, 0, 1], number(place)?).into()), declared))
}

fn number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let known = "http, http2, grpc, tcp or tls";
    Protocol::from_app_protocol(text).ok_or_else(|| format!("`{text}` is not a protocol I know: {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let port = |t| PortSpec::parse(t).map(|p| (p.name, p.port, p.protocol)).map_err(|e| e.to_string());
        assert_eq!(port("8080"), Ok((String::new(), 8080, Protocol::Undeclared)));
        assert_eq!(port("http=8080"), Ok(("http".into(), 8080, Protocol::Http)));
        assert_eq!(port("8080/grpc"), Ok(("grpc".into(), 8080, Protocol::Grpc)));
        assert_eq!(port("admin=8080/tcp"), Ok(("admin".into(), 8080, Protocol::Tcp)));
        let mapped = PortSpec::parse("http=80:8080").unwrap();
        assert_eq!((mapped.service_port, mapped.port), (80, 8080));
        let why = "write [NAME=][SERVICEPORT:]PORT[/PROTOCOL], such as 8080, http=8080 or 80:8080/grpc";
        assert_eq!(port("x"), Err(format!("--port x: `x` is not a port from 1 to 65535; {why}")));
        assert_eq!(
            port("80/udp"),
            Err(format!("--port 80/udp: `udp` is not a protocol I know: http, http2, grpc, tcp or tls; {why}"))
        );
        assert!(port("0").is_err() && port("65536").is_err());
    }

    #[test]
    fn upstreams() {
        let ns = Name::default_namespace();
        let parse = |t: &str| UpstreamSpec::parse(t, &ns).map_err(|e| e.to_string());
        let plain = parse("api=9001").unwrap();
        assert_eq!(plain.service.to_string(), "default/api");
        assert_eq!((plain.port, plain.listen), (None, ListenSpec::Tcp("127.0.0.1:9001".parse().unwrap())));
        let full = parse("shop/api:http=127.0.0.2:9001/http2").unwrap();
        assert_eq!((full.service.to_string().as_str(), full.port.as_deref()), ("shop/api", Some("http")));
        assert_eq!(full.protocol, Protocol::Http2);
        assert_eq!(parse("db=/run/db.sock").unwrap().listen, ListenSpec::Unix("/run/db.sock".into()));
        assert!(parse("api").unwrap_err().starts_with("--upstream api: it has no `=`; write"));
        assert!(
            parse("api:=1").is_err() && parse("=1").is_err() && parse("a/b/c=1").is_err() && parse("api=0").is_err()
        );
    }
}
