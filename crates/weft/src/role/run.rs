//! `weft run` and `weft sidecar`: a workload of the mesh, with its application below it or beside it.
//!
//! In order: an identity → listeners → registration → the first configuration → the application → … → drain, signal,
//! wait, deregister.

mod register;

use std::{ffi::OsString, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use weft_agent::{
    check::{Check, Finding},
    child::{Application, exit_code},
};
use weft_model::{Name, ServiceKey, Uid};
use weft_proxy::control::{self, Claim, Config, Control, JoinToken, Proof, Standing};
use weft_rt::{
    Clock, Dice, Tasks,
    process::{Signal, Stop},
};
use weft_wire::v1::CheckResult;

use crate::{
    cli, place,
    role::{
        sidecar::{self, Running},
        spec::{PortSpec, UpstreamSpec},
    },
};

/// How long deregistration may take before the lease is left to end by itself.
const DEREGISTER: Duration = Duration::from_secs(2);
/// How long the first configuration may take before the application is started without it (its calls wait or fail
/// with a reason, which is what it would see later too).
const FIRST_CONFIGURATION: Duration = Duration::from_secs(10);

/// What was typed, understood.
pub struct Plan {
    pub service: ServiceKey,
    pub service_account: String,
    pub node: Name,
    pub id: Name,
    pub ports: Vec<PortSpec>,
    pub upstreams: Vec<UpstreamSpec>,
    pub checks: Vec<Check>,
    pub labels: Vec<(String, String)>,
    pub server: SocketAddr,
    pub proof: Proof,
}

pub async fn run(flags: cli::Run) -> Result<u8> {
    if flags.program.is_empty() {
        bail!("there is nothing to run: put the program and its arguments after `--`, or use `weft sidecar`");
    }
    workload(flags.workload, &flags.program).await
}

pub async fn sidecar(flags: cli::Sidecar) -> Result<u8> {
    workload(flags.workload, &[]).await
}

async fn workload(flags: cli::Workload, program: &[OsString]) -> Result<u8> {
    sidecar::log();
    let plan = Plan::new(&flags)?;
    let mut stop = Stop::listen()?;
    let joined = tokio::select! {
        biased; // being told to stop wins over waiting for a server
        _ = stop.next() => return Ok(0),
        joined = join(&flags, &plan) => joined?,
    };
    let sidecar = Running::start(&flags, &plan, &joined).await?;
    let control = joined.attach(register::register(&flags, &plan, &sidecar), sidecar.answers())?;
    registered(&control, &mut stop).await?;
    sidecar.ready(true);

    let mut tasks = Tasks::new();
    for check in plan.checks.clone() {
        let (send, found) = tokio::sync::mpsc::channel(8);
        tasks.spawn("check", check.run(send));
        tasks.spawn("findings", tell(found, control.results.clone()));
    }
    let code = match program {
        [] => {
            stop.next().await;
            tokio::select! {
                biased; // a second signal ends the patience
                _ = stop.next() => sidecar.sidecar.hasten(),
                () = leave(&control, &sidecar, flags.drain) => {}
            }
            0
        }
        program => supervise(program, &plan, &control, &sidecar, &mut stop, flags.drain).await?,
    };
    drop(tasks);
    tokio::select! {
        biased; // a second signal ends the patience
        _ = stop.next() => {}
        () = sidecar.stop(flags.drain) => {}
    }
    let _ = tokio::time::timeout(DEREGISTER, control.deregister()).await;
    Ok(code)
}

/// Nothing new comes in: callers are told, then what is in flight ends.
async fn leave(control: &Control, sidecar: &Running, deadline: Duration) {
    sidecar.ready(false);
    let drained = control.drain().await;
    tracing::info!(acknowledged = drained.acknowledged, total = drained.total, "draining: callers were told");
    sidecar.sidecar.drain_inbound(deadline).await;
}

/// Runs the application to its end; a signal drains what comes in before the application hears of it.
async fn supervise(
    program: &[OsString],
    plan: &Plan,
    control: &Control,
    sidecar: &Running,
    stop: &mut Stop,
    drain: Duration,
) -> Result<u8> {
    let mut app = Application::start(program, &plan.environment())?;
    let signal = tokio::select! {
        biased; // its end is the end
        status = app.wait() => return Ok(exit_code(status?)),
        signal = stop.next() => signal,
    };
    tokio::select! {
        biased; // an application that ends by itself needs no more patience; a second signal ends it
        status = app.wait() => return Ok(exit_code(status?)),
        _ = stop.next() => {}
        () = leave(control, sidecar, drain) => {}
    }
    app.signal(signal);
    let status = tokio::select! {
        biased; // a second signal, or too much patience, ends the application
        status = app.wait() => status?,
        _ = stop.next() => killed(&mut app).await?,
        () = tokio::time::sleep(drain) => killed(&mut app).await?,
    };
    Ok(exit_code(status))
}

async fn killed(app: &mut Application) -> Result<std::process::ExitStatus> {
    tracing::warn!("the application did not end in time: killed");
    app.signal(Signal::Kill);
    Ok(app.wait().await?)
}

async fn join(flags: &cli::Workload, plan: &Plan) -> Result<control::Joined> {
    let claim = Claim {
        namespace: plan.service.namespace.to_string(),
        service_account: plan.service_account.clone(),
        service: plan.service.name.to_string(),
        node: plan.node.to_string(),
    };
    let config = Config {
        server: plan.server,
        proof: plan.proof.clone(),
        claim,
        uid: plan.uid(),
        upstreams: plan.upstreams.iter().map(|u| u.service.clone()).collect(),
        state: flags.state.clone(),
    };
    let mut told = false;
    let joined = control::join(config, Clock::real(), Dice::from_os(), |why| {
        if !std::mem::replace(&mut told, true) {
            eprintln!("weft: waiting to join: {why}");
        }
    });
    let joined = joined.await.context("cannot join the mesh")?;
    if told {
        eprintln!("weft: joined");
    }
    Ok(joined)
}

/// Waits for the registration and the first configuration: what is started before would find nothing.
async fn registered(control: &Control, stop: &mut Stop) -> Result<()> {
    let mut standing = control.standing.clone();
    let mut snapshots = control.snapshots.clone();
    let ready = async {
        let reached = standing.wait_for(|s| !matches!(s, Standing::Unregistered)).await?.clone();
        if let Standing::Refused { why } = reached {
            bail!("the control plane refuses this registration: {why}");
        }
        if matches!(reached, Standing::Registered { .. }) {
            snapshots.wait_for(|s| s.revision != weft_model::Revision::ZERO).await?;
        }
        Ok(())
    };
    tokio::select! {
        biased; // being told to stop wins
        _ = stop.next() => bail!("told to stop before the workload was registered"),
        ready = ready => ready,
        () = tokio::time::sleep(FIRST_CONFIGURATION) => {
            eprintln!("weft: no configuration from the control plane yet; starting all the same");
            Ok(())
        }
    }
}

/// From what a probe found to what the registry is told.
async fn tell(mut found: tokio::sync::mpsc::Receiver<Finding>, results: tokio::sync::mpsc::Sender<CheckResult>) {
    while let Some(finding) = found.recv().await {
        let result =
            CheckResult { check_id: finding.check, status: register::health(finding.health).into(), output: finding.output };
        if results.send(result).await.is_err() {
            return;
        }
    }
}

// === impl Plan ===

impl Plan {
    fn new(flags: &cli::Workload) -> Result<Self> {
        let service = ServiceKey::parse_in(&flags.service, &Name::default_namespace())
            .with_context(|| format!("--service {}", flags.service))?;
        let ports = flags.ports.iter().map(|p| PortSpec::parse(p)).collect::<Result<Vec<_>, _>>()?;
        let upstreams = flags.upstreams.iter().map(|u| UpstreamSpec::parse(u, &service.namespace));
        let upstreams = upstreams.collect::<Result<Vec<_>, _>>()?;
        let (server, proof) = reach(flags)?;
        let id = match &flags.id {
            Some(id) => id.parse().with_context(|| format!("--id {id}"))?,
            None => format!("{}-{:06x}", service.name, Dice::from_os().next_u64() & 0xff_ffff).parse()?,
        };
        let node = match &flags.node {
            Some(node) => node.parse().with_context(|| format!("--node {node}"))?,
            None => weft_rt::env::host_name().parse().context("this host's name")?,
        };
        let mut labels = vec![("app".to_owned(), service.name.to_string()), ("version".to_owned(), "v1".to_owned())];
        for text in &flags.labels {
            let (key, value) = text.split_once('=').with_context(|| format!("--label {text}: write KEY=VALUE"))?;
            labels.retain(|(k, _)| k != key);
            labels.push((key.into(), value.into()));
        }
        let checks = checks(flags, &ports)?;
        let service_account = flags.service_account.clone().unwrap_or_else(|| service.name.to_string());
        Ok(Self { service, service_account, node, id, ports, upstreams, checks, labels, server, proof })
    }

    pub fn uid(&self) -> Uid {
        Uid::of(&self.service, &self.node, &self.id)
    }

    /// What the application may want to know.
    fn environment(&self) -> Vec<(String, String)> {
        vec![("WEFT_SERVICE".into(), self.service.to_string()), ("WEFT_INSTANCE".into(), self.id.to_string())]
    }

    pub fn label(&self, key: &str) -> &str {
        self.labels.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }
}

/// Where to join, and by which proof: a token for a named server, else the socket of this user's `weft dev`.
fn reach(flags: &cli::Workload) -> Result<(SocketAddr, Proof)> {
    if let Some(join) = &flags.join {
        use std::net::ToSocketAddrs as _;
        let server = join.to_socket_addrs().with_context(|| format!("--join {join}: write HOST:PORT"))?.next();
        let server = server.with_context(|| format!("--join {join}: the name has no address"))?;
        let token = flags.token.as_ref().context("--join needs a token: make one with `weft token create --service NAME` and pass it as WEFT_TOKEN")?;
        let token: JoinToken = token.parse()?;
        return Ok((server, Proof::Token { server, token }));
    }
    match place::dev() {
        Some(dev) => Ok((dev.mesh, Proof::Socket(dev.socket))),
        None => bail!(
            "there is no mesh to join: start one with `weft dev`, or name one with --join ADDRESS (WEFT_JOIN) and a token (WEFT_TOKEN)"
        ),
    }
}

/// The checks that were asked for; without any, a connection to the first port.
fn checks(flags: &cli::Workload, ports: &[PortSpec]) -> Result<Vec<Check>> {
    let Some(first) = ports.first() else {
        if flags.checks.is_empty() {
            return Ok(Vec::new());
        }
        bail!("--check needs a --port to probe");
    };
    let addr = SocketAddr::from(([127, 0, 0, 1], first.port));
    let texts = if flags.checks.is_empty() { vec!["tcp".to_owned()] } else { flags.checks.clone() };
    texts.iter().map(|t| Ok(Check::parse(t, addr)?)).collect()
}

