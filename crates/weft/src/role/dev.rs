//! `weft dev`: a control plane for this user on this machine, and with `--demo` a bookshop on it.

mod member_log;
mod shop;
mod tidy;

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use weft_rt::process::Stop;

use self::{shop::Shop, tidy::Tidy};
use crate::{
    cli,
    client::Api,
    place::{self, DevFile},
    role::server,
    say::say,
    top,
};

/// How long open streams may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the live view reads.
const READ: Duration = Duration::from_secs(2);

pub async fn run(flags: cli::Dev) -> Result<u8> {
    let mut stop = Stop::listen()?;
    let directory = place::dev_directory();
    if let Some(other) = place::dev() {
        bail!("`weft dev` is running already (process {}, HTTP API {}); stop it first", other.pid, other.http);
    }
    let mut tidy = Tidy::start(&directory)?;
    let ran = mesh(&flags, &directory, &mut stop, &mut tidy).await;
    // what is left, if anything, is the janitor's
    tokio::select! {
        biased; // whoever cannot wait need not: it goes on without us
        _ = stop.next() => {}
        () = tidy.finish() => {}
    }
    ran.map(|()| 0)
}

/// The control plane and what runs on it, until told to stop and drained.
async fn mesh(flags: &cli::Dev, directory: &Path, stop: &mut Stop, tidy: &mut Tidy) -> Result<()> {
    let server = server::start_dev(flags, directory).await?;
    let dev = DevFile {
        http: server.http(),
        mesh: server.mesh(),
        socket: directory.join("join.sock"),
        admin_token: server.admin_token().to_owned(),
        pid: std::process::id(),
    };
    dev.write(directory)?;
    let api = Api::at(dev.http, Some(std::fs::read_to_string(&dev.admin_token)?.trim().to_owned()));
    say!("control plane: HTTP API http://{}  gRPC {}  trust domain {}", dev.http, dev.mesh, server.trust_domain());
    let mut shop = Shop::new(directory, server.trust_domain(), flags.rate);
    let ran = tokio::select! {
        biased; // being told to stop wins
        _ = stop.next() => Ok(()),
        () = after(flags.for_) => Ok(()),
        ran = show(flags, &api, &mut shop, tidy) => ran,
    };
    say!("\ndraining …");
    let drained = async {
        shop.drain(tidy).await;
        server.drain(DRAIN).await;
    };
    tokio::select! {
        biased; // a second signal ends the patience
        _ = stop.next() => {}
        () = drained => {}
    }
    ran
}

/// Opens the shop, or says how to run something, and shows the live view until dropped.
async fn show(flags: &cli::Dev, api: &Api, shop: &mut Shop, tidy: &mut Tidy) -> Result<()> {
    if !flags.demo {
        let weft = weft();
        say!("run a program in the mesh, from any directory:");
        say!("  {weft} run --service hello --port 8000/http -- python3 -m http.server 8000 --bind 127.0.0.1");
        return std::future::pending().await;
    }
    shop.open(api, tidy).await?;
    for line in shop.told() {
        say!("{line}");
    }
    top::show(api, READ, || shop.news(tidy)).await?;
    // nobody looks any more; the shop stays open
    std::future::pending().await
}

/// This program, as it is pasted into a shell.
fn weft() -> String {
    std::env::current_exe().map_or_else(|_| "weft".into(), |p| shell(&p))
}

fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
