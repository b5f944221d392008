//! `weft server`, and the server inside `weft dev`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use weft_control::{Config, Server, StoreKind};
use weft_rt::{
    Clock, Dice,
    listen::{Bind, holder_of},
    log,
    net::Addr,
    process::Stop,
};

use crate::{
    cli, place,
    say::{say, tell},
};

/// How long open streams may take to end.
const DRAIN: Duration = Duration::from_secs(5);

pub async fn run(flags: cli::Server) -> Result<u8> {
    log::init(log::Format::Text, &log::filter("info"), std::io::stderr);
    let mut stop = Stop::listen()?;
    let mut server = Running::start(Config {
        store: StoreKind::Redb,
        data: flags.data.clone(),
        http: Bind::exact(Addr::Tcp(flags.http)),
        mesh: Bind::exact(Addr::Tcp(flags.mesh)),
        leaf_ttl: flags.leaf_ttl,
        clock: Clock::real(),
        dice: Dice::from_os(),
        ..Config::default()
    })
    .await?;
    say!(
        "weft server: HTTP API http://{}  gRPC {}  trust domain {}",
        server.http(),
        server.mesh(),
        server.trust_domain()
    );
    let first = if server.server.first_start { "first start: " } else { "" };
    say!("{first}the admin token is in {}", server.admin_token().display());
    say!("the mesh's root is in {}", place::absolute(&flags.data.join("ca.pem")).display());
    tokio::select! {
        biased; // being told to stop wins
        _ = stop.next() => {}
        why = server.server.failed() => anyhow::bail!("{why}"),
    }
    tokio::select! {
        biased; // a second signal ends the patience
        _ = stop.next() => {}
        () = server.drain(DRAIN) => {}
    }
    Ok(0)
}

/// The server inside `weft dev`: any free port will do, and this user's processes join by a socket.
pub async fn start_dev(flags: &cli::Dev, directory: &Path) -> Result<Running> {
    let server = Running::start(Config {
        store: if flags.data.is_some() { StoreKind::Redb } else { StoreKind::Memory },
        data: flags.data.clone().unwrap_or_else(|| directory.join("data")),
        http: Bind::preferred(Addr::Tcp(flags.http)),
        mesh: Bind::preferred(Addr::Tcp(flags.mesh)),
        socket: Some(directory.join("join.sock")),
        leaf_ttl: flags.leaf_ttl,
        clock: Clock::real(),
        dice: Dice::from_os(),
        ..Config::default()
    })
    .await?;
    instead("the HTTP API", flags.http, server.http());
    instead("gRPC", flags.mesh, server.mesh());
    Ok(server)
}

/// Says so when what was asked for is taken, and by whom.
fn instead(what: &str, wanted: SocketAddr, got: SocketAddr) {
    if wanted.port() == 0 || wanted == got {
        return;
    }
    let by = holder_of(wanted.port()).map(|holder| format!(" by {holder}")).unwrap_or_default();
    tell!("weft: {wanted} is in use{by}: {what} is at {got} instead");
}

/// A running server and where things are.
pub struct Running {
    pub server: Server,
    admin_token: PathBuf,
}

impl Running {
    async fn start(config: Config) -> Result<Self> {
        let admin_token = place::absolute(&config.data.join("admin.token"));
        // redb is opened on this thread; nothing else runs yet
        let server = Server::start(config).await.context("the control plane cannot start")?;
        Ok(Self { server, admin_token })
    }

    pub fn http(&self) -> SocketAddr {
        self.server.addresses().http
    }

    pub fn mesh(&self) -> SocketAddr {
        self.server.addresses().mesh
    }

    pub fn trust_domain(&self) -> String {
        self.server.control().authority.trust_domain().to_string()
    }

    pub fn admin_token(&self) -> &Path {
        &self.admin_token
    }

    pub async fn drain(self, deadline: Duration) {
        self.server.drain(deadline).await;
    }
}
