//! `weft dev`: a control plane for this user on this machine, and with `--demo` a bookshop on it.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};
use weft_agent::janitor::{self, Janitor, Order};
use weft_rt::process::{self, Signal, Stop};

use crate::{
    cli,
    client::Api,
    demo::{self, Member},
    place::{self, DevFile},
    role::server,
    top,
};

/// How long the shop may take to drain before it is ended.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the shop may take to open.
const OPEN: Duration = Duration::from_secs(60);

pub async fn run(flags: cli::Dev) -> Result<u8> {
    let mut stop = Stop::listen()?;
    let directory = place::dev_directory();
    if let Some(other) = place::dev() {
        bail!("`weft dev` is running already (process {}, HTTP API {}); stop it first", other.pid, other.http);
    }
    janitor::make_directory(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut janitor = start_janitor(&directory)?;
    let server = server::start_dev(&flags, &directory).await?;
    let dev = DevFile {
        http: server.http(),
        mesh: server.mesh(),
        socket: directory.join("join.sock"),
        admin_token: server.admin_token().to_owned(),
        pid: std::process::id(),
    };
    std::fs::write(directory.join("dev.json"), serde_json::to_vec_pretty(&dev)?)?;
    let api = Api::at(dev.http, Some(std::fs::read_to_string(&dev.admin_token)?.trim().to_owned()));
    println!("control plane: HTTP API http://{}  gRPC {}  trust domain {}", dev.http, dev.mesh, server.trust_domain());
    let mut shop = Shop::default();
    let ran = tokio::select! {
        biased; // being told to stop wins
        _ = stop.next() => Ok(()),
        () = after(flags.for_) => Ok(()),
        ran = show(&flags, &directory, &api, &mut shop, &mut janitor) => ran,
    };
    println!("\ndraining …");
    let drained = async {
        shop.drain().await;
        server.drain(DRAIN).await;
    };
    tokio::select! {
        biased; // a second signal ends the patience
        _ = stop.next() => {}
        () = drained => {}
    }
    // what is left, if anything, is the janitor's: it reads the end of its orders when we end
    ran.map(|()| 0)
}

/// Opens the shop, or says how to run something, and shows the live view until dropped.
async fn show(flags: &cli::Dev, directory: &Path, api: &Api, shop: &mut Shop, janitor: &mut Tidy) -> Result<()> {
    if !flags.demo {
        let weft = weft();
        println!("run a program in the mesh, from any directory:");
        println!("  {weft} run --service hello --port 8000/http -- python3 -m http.server 8000 --bind 127.0.0.1");
        return std::future::pending().await;
    }
    shop.open(flags, directory, api, janitor).await?;
    let below = shop.told(directory);
    top::show(api, Duration::from_secs(2), &below).await?;
    Ok(())
}

/// The processes of the bookshop.
#[derive(Default)]
struct Shop {
    children: Vec<(String, Child)>,
    counts: Option<SocketAddr>,
    web: Option<SocketAddr>,
}

type Tidy = Janitor<std::process::ChildStdin>;

impl Shop {
    async fn open(&mut self, flags: &cli::Dev, directory: &Path, api: &Api, janitor: &mut Tidy) -> Result<()> {
        let try_ = directory.join("try");
        std::fs::create_dir_all(&try_)?;
        for (file, text) in demo::TRY {
            std::fs::write(try_.join(file), text)?;
        }
        let reply =
            api.send_text(hyper::Method::POST, "/weft/v1/apply?file=bookshop.yaml", demo::RESOURCES.into()).await?;
        reply.good().context("the bookshop's resources")?;
        // the customers come when the shop is open
        for customers in [false, true] {
            for member in demo::SHOP.iter().filter(|m| m.protocol.is_none() == customers) {
                let child = self.start(flags, member)?;
                janitor.tell(&Order::Process(child.id().unwrap_or_default()))?;
                self.children.push((name(member), child));
            }
            self.wait_until_open(api).await?;
        }
        Ok(())
    }

    /// One sidecar with its service below it.
    fn start(&mut self, flags: &cli::Dev, member: &Member) -> Result<Child> {
        let me = std::env::current_exe()?;
        let mut run = Command::new(&me);
        run.args([
            "run",
            "--service",
            member.service,
            "--label",
            &format!("version={}", member.version),
            "--id",
            &name(member),
        ]);
        let mut app = vec![me.into_os_string()];
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut upstreams = BTreeMap::new();
        for service in member.upstreams {
            upstreams.insert(*service, SocketAddr::from(([127, 0, 0, 1], free_port()?)));
        }
        for (service, addr) in &upstreams {
            run.args(["--upstream", &format!("{service}={addr}")]);
        }
        match member.protocol {
            Some(protocol) => {
                // the service's port is 80 for all instances, wherever each application listens
                run.args(["--port", &format!("{protocol}=80:{}", listen.port()), "--check", member.check]);
                app.extend(
                    ["demo-service", member.service, "--shop-version", member.version, "--listen", &listen.to_string()]
                        .map(Into::into),
                );
                for (service, addr) in &upstreams {
                    app.extend(["--upstream".into(), format!("{service}={addr}").into()]);
                }
            }
            None => {
                let web = upstreams.get("web").context("the customers call web")?;
                app.extend(["demo-load", "--web", &web.to_string(), "--listen", &listen.to_string()].map(Into::into));
                app.extend(["--rate".into(), flags.rate.to_string().into()]);
                (self.counts, self.web) = (Some(listen), Some(*web));
            }
        }
        run.arg("--").args(app).stdin(Stdio::null());
        if flags.demo {
            // the live view owns the terminal; what goes wrong is told by it and by `weft status`
            run.stderr(Stdio::null()).stdout(Stdio::null());
        }
        process::die_with_parent(&mut run, Signal::Term);
        run.spawn().with_context(|| format!("cannot start {}", name(member)))
    }

    /// Every member that was started is registered and passing.
    async fn wait_until_open(&mut self, api: &Api) -> Result<()> {
        let opened = async {
            loop {
                for (name, child) in &mut self.children {
                    if let Some(status) = child.try_wait()? {
                        bail!("{name} ended before the shop was open: {status}");
                    }
                }
                let status = api.get("/weft/v1/endpoints").await?;
                let ready = crate::ctl::healthy(&status);
                if ready >= self.children.len() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(OPEN, opened).await.context("the bookshop did not open within a minute")?
    }

    /// What stands under the live table.
    fn told(&self, directory: &Path) -> Vec<String> {
        let weft = weft();
        let try_ = directory.join("try");
        let file = |name: &str| shell(&try_.join(name));
        let victim =
            self.children.iter().find(|(name, _)| name == "reviews-v2").and_then(|(_, c)| c.id()).unwrap_or_default();
        let mut lines = vec![String::new()];
        let web = self.web.map(|w| w.to_string()).unwrap_or_default();
        let counts = self.counts.map(|c| c.to_string()).unwrap_or_default();
        lines.push("try, in another terminal:".into());
        for (what, command) in [
            ("read a book", format!("curl -i http://{web}/book/9781593278281")),
            ("deny an edge", format!("{weft} apply --wait -f {}", file("deny.yaml"))),
            ("ask why", format!("{weft} why")),
            ("allow it again", format!("{weft} delete --wait -f {}", file("deny.yaml"))),
            ("split reviews 90/10", format!("{weft} apply --wait -f {}", file("split.yaml"))),
            ("kill an instance", format!("kill -9 {victim}")),
            ("look at the mesh", format!("{weft} services -o wide; {weft} status; {weft} allow reviews")),
            ("what customers saw", format!("curl http://{counts}/counts")),
        ] {
            lines.push(format!("  {what:<20} {command}"));
        }
        lines
    }

    /// Callers before the called, each with its own drain.
    async fn drain(&mut self) {
        for (_, child) in self.children.iter().rev() {
            if let Some(pid) = child.id() {
                let _ = process::send(Signal::Term, pid, false);
            }
        }
        let ended = async {
            for (_, child) in &mut self.children {
                let _ = child.wait().await;
            }
        };
        let _ = tokio::time::timeout(DRAIN, ended).await;
    }
}

fn start_janitor(directory: &Path) -> Result<Tidy> {
    use std::os::unix::process::CommandExt as _;
    let mut janitor = std::process::Command::new(std::env::current_exe()?);
    // a group of its own: Ctrl-C in the terminal is for us, not for it
    janitor.arg("janitor").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = janitor.spawn().context("cannot start the janitor")?;
    let mut orders = Janitor::new(child.stdin.take().context("the janitor has no ears")?);
    orders.tell(&Order::Directory(directory.to_owned()))?;
    Ok(orders)
}

fn name(member: &Member) -> String {
    let several = demo::SHOP.iter().filter(|m| m.service == member.service).count() > 1;
    if several { format!("{}-{}", member.service, member.version) } else { member.service.into() }
}

/// A port that nobody has at this moment. Whoever takes it meanwhile makes the service say so.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
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
