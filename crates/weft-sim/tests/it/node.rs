//! One workload: a host with an application and a real proxy worker, tied to the control plane as `weft run` ties it.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::LocalSet,
};
use weft_model::{Mono, Name, ServiceKey, Uid};
use weft_proxy::{
    Credentials, Record, Sink,
    control::{self, Answers, Claim, Proof, Standing},
    http::Outbound,
    loads::Shared,
    record::Peer,
    serve,
    worker::{Deps, Worker},
};
use weft_rt::{
    Clock, Dice, Tasks, drain,
    net::Net,
    tasks::{Task, spawn_local},
};
use weft_sim::pipe_net::{Host, Listener, PipeNet};
use weft_snapshot::snapshot::Snapshot;
use weft_wire::v1;

use crate::{
    calls::{self, Taken},
    control as plane,
};

pub const CONTROL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const MESH: u16 = 15008;
const APP: u16 = 8080;
/// The first local port of an upstream.
const LOCAL: u16 = 9001;
/// Longer than any flow of ours needs once it is told.
const DRAIN: Duration = Duration::from_secs(60);

/// Who is in the mesh.
pub struct Spec {
    pub service: &'static str,
    pub id: &'static str,
    pub calls: &'static [&'static str],
}

pub const NODES: [Spec; 5] = [
    Spec { service: "web", id: "web-1", calls: &["api", "db"] },
    Spec { service: "api", id: "api-1", calls: &["db"] },
    Spec { service: "api", id: "api-2", calls: &["db"] },
    Spec { service: "beta", id: "beta-1", calls: &["api", "db"] },
    Spec { service: "db", id: "db-1", calls: &[] },
];

pub struct Node {
    pub spec: &'static Spec,
    pub host: Host,
    pub clock: Clock,
    pub records: Arc<Records>,
    pub app: watch::Sender<bool>,
    pub phase: Rc<RefCell<Phase>>,
    net: PipeNet,
    state: PathBuf,
    taken: Taken,
    dice: Dice,
    process: Option<Process>,
}

pub enum Phase {
    Off,
    Joining,
    Up(Ties),
    Refused(String),
}

/// What is seen of a running proxy.
#[derive(Clone)]
pub struct Ties {
    pub since: Mono,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub standing: watch::Receiver<Standing>,
}

/// How a proxy ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub inbound_in_time: bool,
    pub outbound_in_time: bool,
    /// Nothing was left running.
    pub empty: bool,
}

struct Process {
    _task: Task,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<Ended>,
}

/// Finished records, until they are taken.
#[derive(Default)]
pub struct Records(Mutex<Vec<Record>>);

/// What one life of a proxy is made of.
struct Life {
    spec: &'static Spec,
    host: Host,
    clock: Clock,
    records: Arc<Records>,
    app: watch::Receiver<bool>,
    phase: Rc<RefCell<Phase>>,
    state: PathBuf,
    taken: Taken,
    dice: Dice,
    token: String,
    stop: watch::Receiver<bool>,
}

// === impl Node ===

impl Node {
    pub fn new(ix: usize, net: &PipeNet, state: &Path, clock: Clock, taken: Taken, dice: Dice) -> Self {
        let spec = &NODES[ix];
        let ip = IpAddr::from([10, 0, 1, u8::try_from(ix + 1).unwrap()]);
        Self {
            spec,
            host: net.host(ip),
            clock,
            records: Arc::default(),
            app: watch::Sender::new(true),
            phase: Rc::new(RefCell::new(Phase::Off)),
            net: net.clone(),
            state: state.join(spec.id),
            taken,
            dice,
            process: None,
        }
    }

    /// Without `token` only what was kept on disk lets it join.
    pub fn start(&mut self, token: Option<String>) {
        let token = token.unwrap_or_else(|| format!("none.none.{}", "00".repeat(32)));
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        *self.phase.borrow_mut() = Phase::Joining;
        let life = Life {
            spec: self.spec,
            host: self.host.clone(),
            clock: self.clock.clone(),
            records: self.records.clone(),
            app: self.app.subscribe(),
            phase: self.phase.clone(),
            state: self.state.clone(),
            taken: self.taken.clone(),
            dice: self.dice.split(),
            token,
            stop: stopped,
        };
        let task = spawn_local(async move {
            // a set of its own: dropping it is what `kill -9` does to every task of a process
            let local = LocalSet::new();
            let (inbound_in_time, outbound_in_time) = local.run_until(life.run()).await;
            let empty = tokio::time::timeout(Duration::from_secs(5), local).await.is_ok();
            let _ = end.send(Ended { inbound_in_time, outbound_in_time, empty });
        });
        self.process = Some(Process { _task: task, stop, ended });
    }

    /// The host loses power; with `wipe` its disk too.
    pub fn crash(&mut self, wipe: bool) {
        self.process = None;
        self.net.crash(self.host.ip());
        *self.phase.borrow_mut() = Phase::Off;
        if wipe {
            let _ = std::fs::remove_dir_all(&self.state);
        }
    }

    /// Drains, deregisters, ends.
    pub async fn stop(&mut self) -> Option<Ended> {
        let process = self.process.take()?;
        process.stop.send_replace(true);
        let ended = process.ended.await.ok();
        *self.phase.borrow_mut() = Phase::Off;
        ended
    }

    pub fn is_off(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Off)
    }

    pub fn ties(&self) -> Option<Ties> {
        match &*self.phase.borrow() {
            Phase::Up(ties) => Some(ties.clone()),
            _ => None,
        }
    }

    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        Some(self.ties()?.snapshots.borrow().clone())
    }

    pub fn uid(&self) -> Uid {
        uid(self.spec)
    }

    /// Where the application dials to reach a service.
    pub fn port_to(&self, service: &str) -> u16 {
        let ix = self.spec.calls.iter().position(|c| *c == service).unwrap();
        LOCAL + u16::try_from(ix).unwrap()
    }
}

impl Records {
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Sink for Records {
    fn take(&self, record: Box<Record>) {
        self.0.lock().unwrap().push(*record);
    }
}

pub fn key(service: &str) -> ServiceKey {
    format!("shop/{service}").parse().unwrap()
}

pub fn service_port(service: &str) -> u16 {
    if service == "db" { 5432 } else { 80 }
}

fn uid(spec: &Spec) -> Uid {
    let name = |s: &str| Name::parse(s).unwrap();
    Uid::of(&key(spec.service), &name(&format!("on-{}", spec.id)), &name(spec.id))
}

// === impl Life ===

impl Life {
    async fn run(mut self) -> (bool, bool) {
        let mut tasks = Tasks::new();
        tasks.spawn_local(
            "application",
            application(self.spec, self.host.clone(), self.app.clone(), self.taken.clone()),
        );
        self.proxy().await
    }

    async fn proxy(&mut self) -> (bool, bool) {
        let net: Arc<dyn Net> = Arc::new(self.host.clone());
        let mut stop = self.stop.clone();
        let joining = control::join_over(net.clone(), self.config(), self.clock.clone(), self.dice.split(), |_| {});
        let joined = tokio::select! {
            biased; // whoever is told to stop does not begin
            _ = stop.wait_for(|s| *s) => return (true, true),
            joined = joining => joined,
        };
        let joined = match joined {
            Ok(joined) => joined,
            Err(e) => {
                *self.phase.borrow_mut() = Phase::Refused(e.to_string());
                let _ = stop.wait_for(|s| *s).await;
                return (true, true);
            }
        };
        let listener = |port| self.host.listen(port).unwrap();
        let mesh = listener(MESH);
        let upstreams: Vec<_> = self.spec.calls.iter().zip(LOCAL..).map(|(to, port)| (*to, listener(port))).collect();
        let own: BTreeSet<SocketAddr> =
            upstreams.iter().map(|(_, l)| l.addr()).chain([SocketAddr::new(self.host.ip(), MESH)]).collect();
        let deps = Deps {
            net,
            clock: self.clock.clone(),
            snapshots: joined.snapshots.clone(),
            credentials: joined.credentials.clone(),
            shared: Arc::new(Shared::default()),
            sink: self.records.clone(),
            workload: uid(self.spec),
            own: Arc::new(own),
            cluster: "sim".into(),
        };
        let w = Worker::new(&deps, self.dice.split());
        let answers: Answers = Arc::new(|_| v1::Answer::default());
        let ties = joined.attach(self.register(), answers).unwrap();
        *self.phase.borrow_mut() = Phase::Up(Ties {
            since: self.clock.mono(),
            snapshots: ties.snapshots.clone(),
            credentials: ties.credentials.clone(),
            standing: ties.standing.clone(),
        });

        let (inbound, in_watch) = drain::new();
        let (outbound, out_watch) = drain::new();
        let (end, _) = drain::new();
        let mut tasks = Tasks::new();
        let (keeping, stop) = (w.clone(), end.observer());
        tasks.spawn_local("keep", async move { keeping.keep(&deps, stop, &|_| {}).await });
        tasks.spawn_local("mesh", accept_mesh(w.clone(), mesh, in_watch));
        for (to, listener) in upstreams {
            tasks.spawn_local("upstream", accept_app(w.clone(), to, listener, out_watch.clone()));
        }
        drop((w, out_watch));
        tasks.spawn_local("health", report(self.app.clone(), ties.results.clone()));

        let _ = self.stop.wait_for(|s| *s).await;
        ties.drain().await;
        let ended = (inbound.drain(DRAIN).await, outbound.drain(DRAIN).await);
        ties.deregister().await;
        drop(end);
        ended
    }

    fn config(&self) -> control::Config {
        let server = SocketAddr::new(CONTROL, plane::PORT);
        control::Config {
            server,
            proof: Proof::Token { server, token: self.token.parse().unwrap() },
            claim: Claim {
                namespace: "shop".into(),
                service_account: self.spec.service.into(),
                service: self.spec.service.into(),
                node: format!("on-{}", self.spec.id),
            },
            uid: uid(self.spec),
            upstreams: self.spec.calls.iter().map(|c| key(c)).collect(),
            state: Some(self.state.clone()),
        }
    }

    fn register(&self) -> v1::Register {
        let IpAddr::V4(ip) = self.host.ip() else { panic!("hosts have IPv4 addresses") };
        let at = |port: u16| Some(v1::Address { ip: ip.octets().to_vec().into(), port: port.into(), scope: 0 });
        let protocol = if self.spec.service == "db" { v1::Protocol::Tcp } else { v1::Protocol::Http };
        v1::Register {
            namespace: "shop".into(),
            service: self.spec.service.into(),
            node: format!("on-{}", self.spec.id),
            id: self.spec.id.into(),
            owner: format!("run/{}", self.spec.id),
            ports: vec![v1::RegisterPort {
                name: "main".into(),
                port: service_port(self.spec.service).into(),
                protocol: protocol.into(),
                app: at(APP),
                connect: None,
                preserve: false,
            }],
            mesh_address: at(MESH),
            tunnel: v1::Tunnel::Weft1.into(),
            checks: vec![v1::CheckDefinition {
                id: "app".into(),
                kind: Some(v1::check_definition::Kind::Tcp(v1::TcpCheck::default())),
                initial: v1::Health::Passing.into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }
}

async fn application(spec: &'static Spec, host: Host, mut up: watch::Receiver<bool>, taken: Taken) {
    loop {
        if up.wait_for(|up| *up).await.is_err() {
            return;
        }
        let listener = host.listen(APP).unwrap();
        let down = async { drop(up.wait_for(|up| !*up).await) };
        tokio::select! {
            biased; // a dead one answers nothing
            () = down => {}
            () = async {
                match spec.service {
                    "db" => calls::echo_app(listener, spec.id, taken.clone()).await,
                    _ => calls::http_app(listener, spec.id, taken.clone()).await,
                }
            } => return,
        }
    }
}

async fn report(mut up: watch::Receiver<bool>, results: tokio::sync::mpsc::Sender<v1::CheckResult>) {
    loop {
        let status = if *up.borrow_and_update() { v1::Health::Passing } else { v1::Health::Critical };
        let result = v1::CheckResult { check_id: "app".into(), status: status.into(), output: String::new() };
        if results.send(result).await.is_err() || up.changed().await.is_err() {
            return;
        }
    }
}

async fn accept_mesh(w: Rc<Worker>, mut listener: Listener, drain: drain::Watch) {
    let mut stop = drain.clone();
    loop {
        tokio::select! {
            biased; // who drains takes nothing new
            () = stop.draining() => return,
            Some((stream, from)) = listener.accept() => {
                // its end is waited for by the drain's token
                spawn_local(serve::mesh(w.clone(), stream, from, drain.clone())).detach();
            }
        }
    }
}

async fn accept_app(w: Rc<Worker>, to: &'static str, mut listener: Listener, drain: drain::Watch) {
    let mut stop = drain.clone();
    loop {
        tokio::select! {
            biased; // who drains takes nothing new
            () = stop.draining() => return,
            Some((stream, from)) = listener.accept() => {
                let peer = Arc::new(Peer { conn: w.next_conn(), addr: Some(from), ..Peer::default() });
                let o = Outbound {
                    worker: w.clone(),
                    peer,
                    service: key(to),
                    port: service_port(to),
                    protocol: None,
                    host: Worker::service_host(&key(to)),
                    drain: drain.clone(),
                };
                spawn_local(serve::outbound(Rc::new(o), stream)).detach();
            }
        }
    }
}
