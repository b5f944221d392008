//! What is typed to describe a workload: one definition for `weft run`, `weft sidecar` and `weft-proxy`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};

/// A workload and its sidecar.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Service to register, [namespace/]name
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// Port the application listens on, with the service's own port in front when it is another; several are allowed
    #[arg(long = "port", value_name = "[NAME=][SERVICEPORT:]PORT[/PROTOCOL]")]
    pub ports: Vec<String>,
    /// A service to call, and the local port (or Unix socket path) on which the application finds it:
    /// [namespace/]service[:port]=LOCALPORT[/protocol]
    #[arg(long = "upstream", value_name = "SERVICE=LOCALPORT")]
    pub upstreams: Vec<String>,
    /// Local address for HTTP_PROXY, CONNECT and SOCKS5 clients
    #[arg(long, value_name = "ADDR")]
    pub proxy_listen: Option<SocketAddr>,
    /// Service account, the last part of the identity (default: the service's name)
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Labels, such as version=v2 (app and version have defaults)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Name of this instance (default: made from the service and a random number)
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Name of this node (default: the host's)
    #[arg(long, env = "WEFT_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Zone, or region/zone
    #[arg(long, env = "WEFT_ZONE", value_name = "[REGION/]ZONE")]
    pub zone: Option<String>,
    /// Server to join: its mesh address (default: the `weft dev` of this user)
    #[arg(long, env = "WEFT_JOIN", value_name = "ADDR")]
    pub join: Option<String>,
    /// Join token
    #[arg(long, env = "WEFT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Where mesh connections come in, preferred; when taken, any free port
    #[arg(long, default_value = "127.0.0.1:15008", value_name = "ADDR")]
    pub mesh_listen: SocketAddr,
    /// Metrics and readiness, preferred; when taken, any free port
    #[arg(long, default_value = "127.0.0.1:15020", value_name = "ADDR")]
    pub metrics: SocketAddr,
    /// Access log on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub access_log: AccessLog,
    /// Keep the last configuration and the identity here, so that a restart works without the server
    #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How long open work may take to end when draining
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub drain: std::time::Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    #[default]
    Off,
    Text,
    Json,
}

/// `250ms`, `5s`, `2m`, `24h`: a number and a unit.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("`{text}` is not a duration: use a number and ms, s, m, h or d, such as 30s");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at_checked(at).ok_or_else(bad)?;
    let n: u64 = number.parse().map_err(|_| bad())?;
    let ms = match unit {
        "ms" => Some(n),
        "s" => n.checked_mul(1000),
        "m" => n.checked_mul(60_000),
        "h" => n.checked_mul(3_600_000),
        "d" => n.checked_mul(86_400_000),
        _ => None,
    };
    ms.map(std::time::Duration::from_millis).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Ok(std::time::Duration::from_millis(250)));
        assert_eq!(duration("24h"), Ok(std::time::Duration::from_secs(86_400)));
        for bad in ["", "5", "s", "5 s", "5x", "-5s", "99999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
