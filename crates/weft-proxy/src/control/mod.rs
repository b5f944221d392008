//! A proxy's ties to the control plane: its identity, its registration, its configuration, and questions about it.
//!
//! Everything here runs beside the data path, on the small runtime, and publishes values that workers load. When the
//! control plane is away each of them keeps what it has and tries again: the data path does not notice.

mod attach;
mod connect;
mod discovery;
mod identity;
mod join;
mod kept;
mod observe;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};
use weft_model::{Name, NameError, ServiceKey, Uid};
use weft_rt::{
    Clock, Dice, Tasks,
    net::{Net, System},
};
use weft_snapshot::snapshot::Snapshot;
use weft_wire::v1::{CheckResult, Drained, Register};

use self::{
    attach::Attachment, attach::Command, connect::Dialer, discovery::Discovery, identity::Identity, kept::Kept,
};
pub use self::{
    attach::Standing,
    join::{Claim, JoinError, JoinToken, Proof, TokenError},
    kept::KeptError,
    observe::Answers,
};
use crate::tls::Credentials;

/// Whom to be, and where the control plane is.
#[derive(Debug)]
pub struct Config {
    /// Its mesh address (mTLS).
    pub server: SocketAddr,
    pub proof: Proof,
    pub claim: Claim,
    /// The workload's uid.
    pub uid: Uid,
    /// Services that the application is known to call.
    pub upstreams: BTreeSet<ServiceKey>,
    /// Where identity and configuration survive a restart.
    pub state: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("the registration has a bad name")]
    Name(#[from] NameError),
    #[error("cannot set up the channel to the control plane: {0}")]
    Channel(String),
}

/// A workload that has an identity but is not registered yet: its listeners may be bound now.
pub struct Joined {
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    net: Arc<dyn Net>,
    config: Config,
    clock: Clock,
    identity: Identity,
    rotation: weft_identity::rotate::State,
    discovery: Discovery,
    wanted: watch::Sender<BTreeSet<ServiceKey>>,
}

/// A registered workload's ties, all running.
pub struct Control {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub standing: watch::Receiver<Standing>,
    /// Findings of health checks go here.
    pub results: mpsc::Sender<CheckResult>,
    /// Services to know besides the declared ones, at first use.
    pub wanted: watch::Sender<BTreeSet<ServiceKey>>,
    commands: mpsc::Sender<Command>,
    _tasks: Tasks,
}

/// Gets the workload an identity: a kept one, or a new one. Waits for a control plane that is away, telling `waiting`.
pub async fn join(
    config: Config,
    clock: Clock,
    dice: Dice,
    waiting: impl FnMut(&JoinError),
) -> Result<Joined, StartError> {
    join_over(Arc::new(System), config, clock, dice, waiting).await
}

/// The same over another network than the operating system's.
pub async fn join_over(
    net: Arc<dyn Net>,
    config: Config,
    clock: Clock,
    dice: Dice,
    waiting: impl FnMut(&JoinError),
) -> Result<Joined, StartError> {
    let kept = config.state.as_deref().map(Kept::open).transpose()?;
    let (published, credentials) = watch::channel(None);
    let mut identity = Identity {
        net: net.clone(),
        proof: config.proof.clone(),
        claim: config.claim.clone(),
        clock: clock.clone(),
        dice,
        kept,
        published,
    };
    let rotation = identity.first(waiting).await?;
    let trust_domain = credentials.borrow().as_ref().map(|c| c.svid.id().trust_domain());
    let trust_domain = trust_domain.ok_or_else(|| StartError::Channel("there is no identity".into()))?;
    let namespace: Name = config.claim.namespace.parse()?;
    let (wanted, wants) = watch::channel(config.upstreams.clone());
    let kept = config.state.as_deref().map(Kept::open).transpose()?;
    let (discovery, snapshots) = Discovery::new(&config.uid, &trust_domain, namespace, wants, kept);
    Ok(Joined { net, credentials, snapshots, config, clock, identity, rotation, discovery, wanted })
}

// === impl Joined ===

impl Joined {
    /// Registers, subscribes, and keeps all of it up until dropped.
    pub fn attach(self, register: Register, answers: Answers) -> Result<Control, StartError> {
        let wall = identity::wall_clock(&self.clock);
        let dialer = Dialer::new(self.net, self.config.server, self.credentials.clone(), wall);
        let (results, found) = mpsc::channel(64);
        let (commands, orders) = mpsc::channel(4);
        let (told, standing) = watch::channel(Standing::Unregistered);
        let attachment = Attachment { register, results: found, commands: orders, standing: told };

        let mut tasks = Tasks::new();
        tasks.spawn("registration", attachment.run(dialer.clone()));
        tasks.spawn("configuration", self.discovery.run(dialer.clone()));
        tasks.spawn("questions", observe::run(dialer.clone(), self.config.uid.as_str().into(), answers));
        tasks.spawn("identity", self.identity.renew(self.rotation, dialer));
        Ok(Control {
            snapshots: self.snapshots,
            credentials: self.credentials,
            standing,
            results,
            wanted: self.wanted,
            commands,
            _tasks: tasks,
        })
    }
}

// === impl Control ===

impl Control {
    /// No new work, please. Returns how many callers have heard, or at once when nobody can be told.
    pub async fn drain(&self) -> Drained {
        let (asked, answer) = oneshot::channel();
        let told = self.commands.send(Command::Drain(asked)).await;
        if told.is_err() {
            return Drained::default();
        }
        answer.await.unwrap_or_default()
    }

    /// The application listens beyond loopback: whoever asks for the mesh's status shall know.
    pub async fn bypassable(&self) {
        // an ended registration tells nobody anything
        let _ = self.commands.send(Command::Bypassable).await;
    }

    /// Takes the workload out of the catalog.
    pub async fn deregister(self) {
        let (done, written) = oneshot::channel();
        if self.commands.send(Command::Deregister(done)).await.is_ok() {
            // an unanswered one is the lease's to end
            let _ = written.await;
        }
    }
}
