//! A workload's sidecar as a program runs it: `weft run`, `weft sidecar` and `weft-proxy`.
//!
//! In order: an identity → listeners → registration → the first configuration → … → drain, deregister.

mod flags;
mod register;
mod spec;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use weft_model::{Name, NameError, Protocol, ServiceKey, Uid};
use weft_rt::{
    Clock, Dice,
    listen::Bind,
    net::{Addr, System},
};
use weft_wire::v1::{CheckDefinition, CheckResult};

pub use self::{
    flags::{AccessLog, Flags, duration},
    spec::{ListenSpec, PortSpec, SpecError, UpstreamSpec},
};
use crate::{
    access_log,
    control::{self, Claim, Control, JoinError, Proof, Standing, TokenError},
    observe::{self, Observability, ObserveError},
    sidecar::{Config, PortRef, Sidecar, Sources, StartError, Upstream},
};

/// How long deregistration may take before the lease is left to end by itself.
const DEREGISTER: Duration = Duration::from_secs(2);
/// How long the first configuration may take before the application is started without it: its calls then wait or fail
/// with a reason, which is what they would do later too.
const FIRST_CONFIGURATION: Duration = Duration::from_secs(10);

/// What was typed, understood.
#[derive(Debug)]
pub struct Plan {
    pub service: ServiceKey,
    pub service_account: String,
    pub node: Name,
    pub id: Name,
    pub ports: Vec<PortSpec>,
    pub upstreams: Vec<UpstreamSpec>,
    pub labels: Vec<(String, String)>,
    pub server: SocketAddr,
    pub proof: Proof,
}

/// What is wrong with what was typed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{flag} {text} is not a name")]
    Name {
        flag: &'static str,
        text: String,
        #[source]
        source: NameError,
    },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("--label {0}: write KEY=VALUE")]
    Label(String),
    #[error("--join {0}: {1}; write HOST:PORT, the mesh address of a `weft server`")]
    Join(String, String),
    #[error("--join needs a token: make one with `weft token create --service NAME` and pass it as WEFT_TOKEN")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "there is no mesh to join: start one with `weft dev`, or name one with --join ADDRESS (WEFT_JOIN) and a token (WEFT_TOKEN)"
    )]
    NoMesh,
}

/// Why a workload does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot join the mesh")]
    Control(#[from] control::StartError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error("the mesh port is not bound")]
    NoMeshPort,
    #[error("the control plane refuses this registration: {0}")]
    Refused(String),
}

/// Whether a workload that was asked to register has what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Configured,
    /// The control plane did not answer in time; it is still being asked.
    Unconfigured,
}

/// A running sidecar with its ties to the control plane.
pub struct Workload {
    sidecar: Sidecar,
    control: Control,
    observability: Observability,
}

// === impl Plan ===

impl Plan {
    /// `local`: the mesh address and join socket of a control plane on this host that trusts this user.
    pub fn new(flags: &Flags, local: Option<(SocketAddr, PathBuf)>) -> Result<Self, PlanError> {
        let name = |flag, text: &str| {
            text.parse::<Name>().map_err(|source| PlanError::Name { flag, text: text.into(), source })
        };
        let service = ServiceKey::parse_in(&flags.service, &Name::default_namespace())
            .map_err(|source| PlanError::Name { flag: "--service", text: flags.service.clone(), source })?;
        let ports = flags.ports.iter().map(|p| PortSpec::parse(p)).collect::<Result<Vec<_>, _>>()?;
        let upstreams = flags.upstreams.iter().map(|u| UpstreamSpec::parse(u, &service.namespace));
        let upstreams = upstreams.collect::<Result<Vec<_>, _>>()?;
        let (server, proof) = reach(flags, local)?;
        let id = match &flags.id {
            Some(id) => name("--id", id)?,
            None => name("--id", &format!("{}-{:06x}", service.name, Dice::from_os().next_u64() & 0xff_ffff))?,
        };
        let node = match &flags.node {
            Some(node) => name("--node", node)?,
            None => name("--node", &weft_rt::env::host_name())?,
        };
        let mut labels = vec![("app".to_owned(), service.name.to_string()), ("version".to_owned(), "v1".to_owned())];
        for text in &flags.labels {
            let (key, value) = text.split_once('=').ok_or_else(|| PlanError::Label(text.clone()))?;
            labels.retain(|(k, _)| k != key);
            labels.push((key.into(), value.into()));
        }
        let service_account = flags.service_account.clone().unwrap_or_else(|| service.name.to_string());
        Ok(Self { service, service_account, node, id, ports, upstreams, labels, server, proof })
    }

    pub fn uid(&self) -> Uid {
        Uid::of(&self.service, &self.node, &self.id)
    }

    pub fn label(&self, key: &str) -> &str {
        self.labels.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    fn control(&self, flags: &Flags) -> control::Config {
        control::Config {
            server: self.server,
            proof: self.proof.clone(),
            claim: Claim {
                namespace: self.service.namespace.to_string(),
                service_account: self.service_account.clone(),
                service: self.service.name.to_string(),
                node: self.node.to_string(),
            },
            uid: self.uid(),
            upstreams: self.upstreams.iter().map(|u| u.service.clone()).collect(),
            state: flags.state.clone(),
        }
    }
}

/// Where to join, and by which proof: a token for a named server, else the local socket. A token is spent once, so that who
/// keeps an identity needs none the next time.
fn reach(flags: &Flags, local: Option<(SocketAddr, PathBuf)>) -> Result<(SocketAddr, Proof), PlanError> {
    use std::net::ToSocketAddrs as _;
    let Some(join) = &flags.join else {
        let (server, socket) = local.ok_or(PlanError::NoMesh)?;
        return Ok((server, Proof::Socket(socket)));
    };
    let bad = |why: &str| PlanError::Join(join.clone(), why.into());
    let server = join.to_socket_addrs().map_err(|e| bad(&e.to_string()))?.next();
    let server = server.ok_or_else(|| bad("the name has no address"))?;
    match &flags.token {
        Some(token) => Ok((server, Proof::Token { server, token: token.parse()? })),
        None if flags.state.is_some() => Ok((server, Proof::Kept)),
        None => Err(PlanError::NoToken),
    }
}

// === impl Workload ===

impl Workload {
    /// Joins, binds every listener, and asks to be registered. Waits for a control plane that is away, telling `waiting`.
    pub async fn start(
        flags: &Flags,
        plan: &Plan,
        checks: Vec<CheckDefinition>,
        waiting: impl FnMut(&JoinError),
    ) -> Result<Self, RunError> {
        let clock = Clock::real();
        let joined = control::join(plan.control(flags), clock.clone(), Dice::from_os(), waiting).await?;
        let (snapshots, credentials) = (joined.snapshots.clone(), joined.credentials.clone());
        let observability = Observability::start(observe::Config {
            uid: plan.uid(),
            address: Bind::preferred(Addr::Tcp(flags.metrics)),
            access_log: match flags.access_log {
                AccessLog::Off => None,
                AccessLog::Text => Some(access_log::Format::Text),
                AccessLog::Json => Some(access_log::Format::Json),
            },
            snapshots: snapshots.clone(),
            credentials: credentials.clone(),
            clock: clock.clone(),
        })?;
        let sources = Sources { snapshots, credentials, sink: observability.sink(), net: Arc::new(System), clock };
        let sidecar = Sidecar::start(plan.sidecar(flags), sources)?;
        let mesh = sidecar.bound().inbound.ok_or(RunError::NoMeshPort)?;
        let register = register::register(flags, plan, mesh, observability.address(), checks);
        let control = joined.attach(register, observability.answers())?;
        Ok(Self { sidecar, control, observability })
    }

    /// Waits for the registration and the first configuration: an application started before would find nothing.
    pub async fn registered(&self) -> Result<Readiness, RunError> {
        let mut standing = self.control.standing.clone();
        let mut snapshots = self.control.snapshots.clone();
        let ready = async {
            let reached =
                standing.wait_for(|s| matches!(s, Standing::Registered { .. } | Standing::Refused { .. })).await;
            if let Ok(Standing::Refused { why }) = reached.as_deref() {
                return Err(RunError::Refused(why.clone()));
            }
            // an ended sender means that the process is ending: there is nothing to wait for
            let _ = snapshots.wait_for(|s| s.revision != weft_model::Revision::ZERO).await;
            self.observability.ready(true);
            Ok(Readiness::Configured)
        };
        tokio::time::timeout(FIRST_CONFIGURATION, ready).await.unwrap_or(Ok(Readiness::Unconfigured))
    }

    /// Where findings of health checks go.
    pub fn results(&self) -> tokio::sync::mpsc::Sender<CheckResult> {
        self.control.results.clone()
    }

    /// The application listens beyond loopback.
    pub async fn bypassable(&self) {
        self.control.bypassable().await;
    }

    /// Nothing new comes in: callers are told, then what is in flight ends, at the latest at the deadline.
    pub async fn leave(&self, deadline: Duration) {
        self.observability.ready(false);
        let drained = self.control.drain().await;
        tracing::info!(acknowledged = drained.acknowledged, total = drained.total, "draining: callers were told");
        self.sidecar.drain_inbound(deadline).await;
    }

    /// A second signal: whatever is being waited for ends now; the application's own calls still go through.
    pub fn hasten(&self) {
        self.sidecar.hasten();
    }

    /// Ends what is left, and takes the workload out of the catalog.
    pub async fn stop(self, deadline: Duration) {
        self.sidecar.stop(deadline).await;
        // in vain: the lease ends by itself
        let _ = tokio::time::timeout(DEREGISTER, self.control.deregister()).await;
    }
}

impl Plan {
    fn sidecar(&self, flags: &Flags) -> Config {
        Config {
            workload: self.uid(),
            inbound: Some(Bind::preferred(Addr::Tcp(flags.mesh_listen))),
            upstreams: self.upstreams.iter().map(upstream).collect(),
            explicit: flags.proxy_listen.map(|a| Bind::exact(Addr::Tcp(a))),
            workers: 1,
            cluster: "".into(),
        }
    }
}

fn upstream(spec: &UpstreamSpec) -> Upstream {
    let port = match spec.port.as_deref() {
        None => PortRef::Only,
        Some(text) => text.parse().map_or_else(|_| PortRef::Name(text.into()), PortRef::Number),
    };
    Upstream {
        service: spec.service.clone(),
        port,
        listen: Bind::exact(match &spec.listen {
            ListenSpec::Tcp(addr) => Addr::Tcp(*addr),
            ListenSpec::Unix(path) => Addr::Unix(path.clone()),
        }),
        protocol: Some(spec.protocol).filter(|p| *p != Protocol::Undeclared),
    }
}
