//! The bookshop's processes: each member a `weft run` with its service below it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};
use weft_rt::{
    listen::{self, Held},
    process::{self, Signal},
};

use super::{member_log::MemberLog, shell, tidy::Tidy, weft};
use crate::{
    client::Api,
    demo::{self, Member},
};

/// How long the shop may take to drain before it is ended.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the shop may take to open.
const OPEN: Duration = Duration::from_secs(60);
/// How much of a log is shown when its member ended.
const LAST_LINES: usize = 10;

pub struct Shop {
    directory: PathBuf,
    trust_domain: String,
    /// Pages per second that its customers ask for.
    rate: u32,
    members: Vec<Running>,
    /// Ports that members were told of are nobody else's while the shop is open.
    held: Vec<Held>,
    counts: Option<SocketAddr>,
    web: Option<SocketAddr>,
}

/// A member that was started.
struct Running {
    name: String,
    member: Member,
    pid: u32,
    /// Where its service listens; callers reach it through its sidecar.
    listen: SocketAddr,
    child: Child,
    log: MemberLog,
    ended: Option<ExitStatus>,
}

// === impl Shop ===

impl Shop {
    pub fn new(directory: &Path, trust_domain: String, rate: u32) -> Self {
        Self {
            directory: directory.to_owned(),
            trust_domain,
            rate,
            members: Vec::new(),
            held: Vec::new(),
            counts: None,
            web: None,
        }
    }

    pub async fn open(&mut self, api: &Api, tidy: &mut Tidy) -> Result<()> {
        let try_ = self.directory.join("try");
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
                self.start(member, tidy)?;
            }
            self.wait_until_open(api).await?;
        }
        Ok(())
    }

    /// One sidecar with its service below it.
    fn start(&mut self, member: &Member, tidy: &Tidy) -> Result<()> {
        let me = std::env::current_exe()?;
        let name = name(member);
        let listen = self.hold()?;
        let mut upstreams = BTreeMap::new();
        for service in member.upstreams {
            upstreams.insert(*service, self.hold()?);
        }
        let mut run = Command::new(&me);
        run.args(["run", "--service", member.service, "--id", &name]);
        run.args(["--label", &format!("version={}", member.version)]);
        for (service, addr) in &upstreams {
            run.args(["--upstream", &format!("{service}={addr}")]);
        }
        let mut app: Vec<OsString> = vec![me.into()];
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
                app.extend(["--rate".into(), self.rate.to_string().into()]);
                (self.counts, self.web) = (Some(listen), Some(*web));
            }
        }
        // the live view owns the terminal
        let (log, end) = MemberLog::create(&self.directory.join("log"), &name).context("cannot make a log")?;
        run.arg("--").args(app).stdin(Stdio::null()).stdout(end.try_clone()?).stderr(end);
        process::die_with_parent(&mut run, Signal::Term);
        tidy.watch(&mut run)?;
        let child = run.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().unwrap_or_default();
        self.members.push(Running { name, member: *member, pid, listen, child, log, ended: None });
        Ok(())
    }

    fn hold(&mut self) -> Result<SocketAddr> {
        let held = listen::hold(Ipv4Addr::LOCALHOST.into()).context("no free port on 127.0.0.1")?;
        let addr = held.addr();
        self.held.push(held);
        Ok(addr)
    }

    /// Every member that was started is registered and passing.
    async fn wait_until_open(&mut self, api: &Api) -> Result<()> {
        let opened = async {
            loop {
                for running in &mut self.members {
                    if let Some(status) = running.child.try_wait()? {
                        let last = running.last_lines();
                        bail!("{} ended before the shop was open: {status}{last}", running.name);
                    }
                }
                let status = api.get("/weft/v1/endpoints").await?;
                let ready = crate::ctl::healthy(&status);
                if ready >= self.members.len() && self.answer().await {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        match tokio::time::timeout(OPEN, opened).await {
            Ok(opened) => opened,
            Err(_) => {
                let said: String = self.members.iter().map(|r| format!("\n{}:{}", r.name, r.last_lines())).collect();
                bail!("the bookshop did not open within a minute{said}")
            }
        }
    }

    /// Who has no port in the mesh has no health check either: it is there when it listens.
    async fn answer(&self) -> bool {
        for running in self.members.iter().filter(|r| r.member.protocol.is_none()) {
            if tokio::net::TcpStream::connect(running.listen).await.is_err() {
                return false;
            }
        }
        true
    }

    /// What happened since it was asked last: members that ended, with the end of their logs.
    pub fn news(&mut self, tidy: &mut Tidy) -> Vec<String> {
        let mut news = Vec::new();
        for running in self.members.iter_mut().filter(|r| r.ended.is_none()) {
            // a log that cannot be cut grows on: no reason to end the shop
            let _ = running.log.bound();
            if let Ok(Some(status)) = running.child.try_wait() {
                running.ended = Some(status);
                tidy.forget(running.pid);
                let (name, log) = (&running.name, shell(running.log.path()));
                let told = format!("{name} (process {}) ended: {status}; its log is {log}", running.pid);
                news.extend(format!("{told}{}", running.last_lines()).lines().map(str::to_owned));
            }
        }
        news
    }

    /// What runs, where, and as whom; then what to try.
    pub fn told(&self) -> Vec<String> {
        let mut lines = vec![String::new(), "what runs:".into()];
        for r in &self.members {
            let speaks = r.member.protocol.map_or("its counts", |p| p);
            lines.push(format!(
                "  {:<11} process {:<8} {speaks:<10} at {:<16} spiffe://{}/ns/default/sa/{}",
                r.name, r.pid, r.listen, self.trust_domain, r.member.service
            ));
        }
        lines.extend([format!("  logs: {}", shell(&self.directory.join("log"))), String::new()]);
        lines.push("try, in another terminal:".into());
        let weft = weft();
        let file = |name: &str| shell(&self.directory.join("try").join(name));
        let victim = self.members.iter().find(|r| r.name == "reviews-v2").map_or(0, |r| r.pid);
        let web = self.web.map(|w| w.to_string()).unwrap_or_default();
        let counts = self.counts.map(|c| c.to_string()).unwrap_or_default();
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
        lines.push(String::new());
        lines
    }

    /// Callers before the called, each with its own drain.
    pub async fn drain(&mut self, tidy: &mut Tidy) {
        for running in self.members.iter().rev().filter(|r| r.ended.is_none()) {
            // its id is its own until we waited for it
            let _ = process::send(Signal::Term, running.pid, false);
        }
        let ended = async {
            for running in &mut self.members {
                let _ = running.child.wait().await;
                tidy.forget(running.pid);
            }
        };
        let _ = tokio::time::timeout(DRAIN, ended).await;
    }
}

impl Running {
    /// To be put behind a sentence: nothing, or a line each.
    fn last_lines(&self) -> String {
        match self.log.last(LAST_LINES) {
            lines if lines.is_empty() => "; it said nothing".into(),
            lines => lines.iter().map(|l| format!("\n    {l}")).collect(),
        }
    }
}

fn name(member: &Member) -> String {
    let several = demo::SHOP.iter().filter(|m| m.service == member.service).count() > 1;
    if several { format!("{}-{}", member.service, member.version) } else { member.service.into() }
}
