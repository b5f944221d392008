//! The command line: every role and every verb, its flags, their environment names, defaults and words, once.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A service mesh in one binary.
#[derive(Debug, Parser)]
#[command(name = "weft", version, about, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole mesh on this machine; with --demo also a small bookshop with traffic and a live view
    Dev(Dev),
    /// Run the control plane: registry, resource API, certificate authority, publisher
    Server(Server),
    /// Run a program as a service of the mesh, with its sidecar
    Run(Box<Run>),
    /// Run a sidecar alone, for an application that something else started
    Sidecar(Box<Sidecar>),
    /// Create or change resources from YAML or JSON files
    Apply(Apply),
    /// Show resources
    Get(Get),
    /// Delete resources
    Delete(Delete),
    /// Follow the changes of resources
    Watch(Watch),
    /// Check documents without sending them anywhere
    Lint(Lint),
    /// Show each proxy: whether it has the current configuration, and what it refused
    Status(Query),
    /// List services
    Services(Services),
    /// List the endpoints of a service
    Endpoints(Endpoints),
    /// Show who may reach a service, and by which rule
    Allow(Allow),
    /// Explain what happened to a request
    Why(Why),
    /// Show who talks to whom, live
    Top(Top),
    /// Make and list join tokens
    #[command(subcommand)]
    Token(Token),
    /// Show the certificate authority
    #[command(subcommand)]
    Ca(Ca),
    /// A service of the bookshop
    #[command(hide = true)]
    DemoService(DemoService),
    /// The customers of the bookshop
    #[command(hide = true)]
    DemoLoad(DemoLoad),
    /// Cleans up after a parent that was killed
    #[command(hide = true)]
    Janitor,
}

/// How to reach the server. Without flags: the `weft dev` of this user, else http://127.0.0.1:8500.
#[derive(Debug, Clone, Args)]
pub struct Client {
    /// Address of the server's HTTP API, such as http://127.0.0.1:8500
    #[arg(long, env = "WEFT_SERVER", value_name = "URL", global = true)]
    pub server: Option<String>,
    /// File that holds the token to present (default: <data>/admin.token of a server on this machine)
    #[arg(long, env = "WEFT_TOKEN_FILE", value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub struct Dev {
    /// Also run the bookshop: services, sidecars, policies, traffic, and a live view
    #[arg(long)]
    pub demo: bool,
    /// Keep the mesh's state here (default: in memory, gone at the end)
    #[arg(long, env = "WEFT_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// HTTP API, preferred; when taken, any free port
    #[arg(long, default_value = "127.0.0.1:8500", value_name = "ADDR")]
    pub http: SocketAddr,
    /// gRPC for proxies (mTLS), preferred; when taken, any free port
    #[arg(long, default_value = "127.0.0.1:15012", value_name = "ADDR")]
    pub mesh: SocketAddr,
    /// Lifetime of workload certificates
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = duration)]
    pub leaf_ttl: std::time::Duration,
    /// End by itself after this long
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub for_: Option<std::time::Duration>,
    /// Pages per second that the demo's customers ask for
    #[arg(long, default_value_t = crate::demo::LOAD_PER_SECOND, value_name = "N")]
    pub rate: u32,
}

#[derive(Debug, Args)]
pub struct Server {
    /// Directory of the store, the key-encryption key and the admin token
    #[arg(long, env = "WEFT_DATA", default_value = "./.weft", value_name = "DIR")]
    pub data: PathBuf,
    /// HTTP API: resources, queries, metrics
    #[arg(long, default_value = "127.0.0.1:8500", value_name = "ADDR")]
    pub http: SocketAddr,
    /// gRPC for proxies: joining, configuration, certificates (mTLS)
    #[arg(long, default_value = "127.0.0.1:15012", value_name = "ADDR")]
    pub mesh: SocketAddr,
    /// Lifetime of workload certificates
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = duration)]
    pub leaf_ttl: std::time::Duration,
}

/// What `weft run` and `weft sidecar` share: the workload and its sidecar.
#[derive(Debug, Clone, Args)]
pub struct Workload {
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
    /// Health check: tcp, http=/path, grpc[=service], each with an optional @INTERVAL (default: tcp on the first port)
    #[arg(long = "check", value_name = "CHECK")]
    pub checks: Vec<String>,
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

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub workload: Workload,
    /// The program and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Sidecar {
    #[command(flatten)]
    pub workload: Workload,
}

#[derive(Debug, Args)]
pub struct Apply {
    /// Files, or - for standard input
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Namespace for documents that name none
    #[arg(short = 'n', long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// Return when every proxy concerned has applied the change
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub timeout: std::time::Duration,
    /// Check and show what would happen, change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Args)]
pub struct Get {
    /// Kind, such as httproute or AuthorizationPolicy
    pub kind: String,
    /// One name; without it, all
    pub name: Option<String>,
    #[arg(short = 'n', long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// In every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Kind; with -f, read from the files
    #[arg(required_unless_present = "files")]
    pub kind: Option<String>,
    #[arg(required_unless_present = "files")]
    pub name: Option<String>,
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[arg(short = 'n', long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// Return when every proxy concerned has applied the change
    #[arg(long)]
    pub wait: bool,
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub timeout: std::time::Duration,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Args)]
pub struct Watch {
    pub kind: String,
    #[arg(short = 'n', long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Args)]
pub struct Lint {
    /// Files, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Query {
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Args)]
pub struct Services {
    #[command(flatten)]
    pub query: Query,
}

#[derive(Debug, Args)]
pub struct Endpoints {
    /// [namespace/]service
    pub service: String,
    #[command(flatten)]
    pub query: Query,
}

#[derive(Debug, Args)]
pub struct Allow {
    /// [namespace/]service
    pub service: String,
    /// Only this source: [namespace/]service account
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,
    #[command(flatten)]
    pub query: Query,
}

#[derive(Debug, Args)]
pub struct Why {
    /// The request's id (x-request-id); without it, the latest refusals
    pub request: Option<String>,
    /// How many of the latest, without an id
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub last: usize,
    /// Successes too
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub query: Query,
}

#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between readings
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    pub interval: u64,
    /// Print one table and end
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a one-use join token for a workload
    Create(TokenCreate),
}

#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Service account that the token may take, [namespace/]name
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// How long it may be used
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = duration)]
    pub ttl: std::time::Duration,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Root, signing certificate, and when each ends
    Status(Query),
}

#[derive(Debug, Args)]
pub struct DemoService {
    pub service: String,
    #[arg(long)]
    pub listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    pub shop_version: String,
    #[arg(long = "upstream", value_name = "NAME=ADDR")]
    pub upstreams: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DemoLoad {
    #[arg(long)]
    pub web: SocketAddr,
    #[arg(long)]
    pub listen: SocketAddr,
    #[arg(long, default_value_t = crate::demo::LOAD_PER_SECOND)]
    pub rate: u32,
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Ok(std::time::Duration::from_millis(250)));
        assert_eq!(duration("24h"), Ok(std::time::Duration::from_secs(86_400)));
        for bad in ["", "5", "s", "5 s", "5x", "-5s", "99999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_comes_after_two_dashes() {
        let cli = Cli::try_parse_from(["weft", "run", "--service", "web", "--port", "8080", "--", "python3", "-m", "http.server"]);
        let Command::Run(run) = cli.unwrap().command else { panic!() };
        assert_eq!(run.program.len(), 3);
        assert_eq!(run.workload.ports, ["8080"]);
    }
}
