//! The command line: every role and every verb, its flags, their environment names, defaults and words, once.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use weft_proxy::workload::{Flags, duration};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  what was typed, or what this machine has, does not allow it
  2  the server, or what was checked, has a problem with it
  3  no server can be reached
`weft run` ends as its program does: with 127 when there is no such program, 126 when it is not executable.";

/// The kinds of resources by the name in their API's paths.
pub fn kinds() -> String {
    let all: Vec<_> = weft_resources::Kind::ALL.into_iter().map(|k| k.info().plural).collect();
    all.join(", ")
}

fn kinds_help() -> String {
    format!("Kinds: {}; also in the singular, as in `kind:`, or short ({})", kinds(), short_kinds())
}

fn short_kinds() -> String {
    let all: Vec<_> = weft_resources::Kind::ALL.into_iter().flat_map(|k| k.info().short_names).copied().collect();
    all.join(", ")
}

/// A service mesh in one binary.
#[derive(Debug, Parser)]
#[command(name = "weft", version, about, max_term_width = 110, arg_required_else_help = true, after_help = EXIT_CODES)]
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
    /// Make, list and revoke join tokens
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
    /// Address of the server's HTTP API, such as http://127.0.0.1:8500, or https://HOST:8500 across a network
    #[arg(long, env = "WEFT_SERVER", value_name = "URL", global = true)]
    pub server: Option<String>,
    /// The mesh's root, for https: <data>/ca.pem of the server
    #[arg(long, env = "WEFT_CA_FILE", value_name = "FILE", global = true)]
    pub ca_file: Option<PathBuf>,
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

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub workload: Flags,
    /// Health check: tcp, http=/path, grpc[=service], each with an optional @INTERVAL (default: tcp on the first port)
    #[arg(long = "check", value_name = "CHECK")]
    pub checks: Vec<String>,
    /// The program and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Sidecar {
    #[command(flatten)]
    pub workload: Flags,
    /// Health check: tcp, http=/path, grpc[=service], each with an optional @INTERVAL (default: tcp on the first port)
    #[arg(long = "check", value_name = "CHECK")]
    pub checks: Vec<String>,
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
#[command(after_help = kinds_help())]
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
#[command(after_help = kinds_help())]
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
#[command(after_help = kinds_help())]
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
    #[arg(required_unless_present = "more", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The same, as `weft apply` takes them
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub more: Vec<PathBuf>,
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
    /// Only this source: [namespace/]service account, a SPIFFE ID, or `unauthenticated`
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,
    /// Only this port, by name or number
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// For a request with this method
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// For a request with this path
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// For a request to this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
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
    /// Tokens that can still be spent, and those that were
    List(Query),
    /// Make a token useless; an identity that was got with it stays
    Revoke(TokenRevoke),
}

#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Service that the token's holder may register, [namespace/]name
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// Identity that the token's holder may take, in the service's namespace (default: the service's name)
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// How long it may be used
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = duration)]
    pub ttl: std::time::Duration,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub client: Client,
}

#[derive(Debug, Args)]
pub struct TokenRevoke {
    /// As `weft token list` shows it: the part of the token before its first dot
    #[arg(value_name = "ID")]
    pub id: String,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_program_comes_after_two_dashes() {
        let cli = Cli::try_parse_from([
            "weft",
            "run",
            "--service",
            "web",
            "--port",
            "8080",
            "--",
            "python3",
            "-m",
            "http.server",
        ]);
        let Command::Run(run) = cli.unwrap().command else { panic!() };
        assert_eq!(run.program.len(), 3);
        assert_eq!(run.workload.ports, ["8080"]);
    }
}
