//! What is spoken on a port.

use serde::{Deserialize, Serialize};

/// The declared protocol of a port, or that none is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Nothing was declared: found out by looking (features.md L4T-04).
    #[default]
    Undeclared,
    Http,
    Http2,
    Grpc,
    Tcp,
    /// TLS that ends at the application; carried as bytes.
    Tls,
}

impl Protocol {
    /// From a port's `appProtocol`, else from its name's prefix `<proto>[-suffix]` (features.md L4T-03). What is not
    /// known stays undeclared; UDP has no meaning here.
    pub fn of_port(app_protocol: Option<&str>, port_name: Option<&str>) -> Self {
        if let Some(p) = app_protocol.and_then(Self::from_app_protocol) {
            return p;
        }
        port_name.and_then(|n| Self::from_app_protocol(n.split('-').next().unwrap_or(n))).unwrap_or_default()
    }

    /// One of the names that Istio, Linkerd, Consul and Kubernetes use.
    pub fn from_app_protocol(s: &str) -> Option<Self> {
        Some(match s.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" | "http1" => Self::Http,
            "http2" | "h2c" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" | "grpc-web" => Self::Grpc,
            "tcp" | "linkerd.io/tcp" | "linkerd.io/opaque" | "mongo" | "mysql" | "redis" => Self::Tcp,
            "tls" | "https" | "kubernetes.io/wss" => Self::Tls,
            _ => return None,
        })
    }

    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undeclared => "undeclared",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_wins_over_the_port_name() {
        let check = |app, name, want| assert_eq!(Protocol::of_port(app, name), want, "{app:?} {name:?}");
        check(None, None, Protocol::Undeclared);
        check(None, Some("http"), Protocol::Http);
        check(None, Some("grpc-api"), Protocol::Grpc);
        check(None, Some("grpc-web"), Protocol::Grpc);
        check(None, Some("https"), Protocol::Tls);
        check(None, Some("web"), Protocol::Undeclared);
        check(Some("tcp"), Some("http"), Protocol::Tcp);
        check(Some("kubernetes.io/h2c"), None, Protocol::Http2);
        check(Some("example.com/own"), Some("http-x"), Protocol::Http);
    }
}
