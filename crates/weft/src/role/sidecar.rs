//! The sidecar of one workload, made from what was typed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use weft_model::Protocol;
use weft_proxy::{
    Config, PortRef, Sidecar, Sources, Upstream,
    control::{Answers, Joined},
};
use weft_rt::{
    Clock,
    listen::Bind,
    log,
    net::{Addr, System},
};

use crate::{
    cli,
    role::{
        run::Plan,
        spec::{ListenSpec, UpstreamSpec},
    },
};

/// A sidecar whose listeners are bound, and what tells about it.
pub struct Running {
    pub sidecar: Sidecar,
    mesh: SocketAddr,
    metrics: SocketAddr,
}

pub fn log() {
    log::init(log::Format::Text, &log::filter("warn"), std::io::stderr);
}

impl Running {
    /// Binds every listener: an error names what is in the way.
    pub async fn start(flags: &cli::Workload, plan: &Plan, joined: &Joined) -> Result<Self> {
        let clock = Clock::real();
        let (snapshots, credentials) = (joined.snapshots.clone(), joined.credentials.clone());
        let config = Config {
            workload: plan.uid(),
            inbound: Some(Bind::preferred(Addr::Tcp(flags.mesh_listen))),
            upstreams: plan.upstreams.iter().map(upstream).collect(),
            explicit: flags.proxy_listen.map(|a| Bind::exact(Addr::Tcp(a))),
            workers: 1,
            cluster: "".into(),
        };
        let sources = Sources { snapshots, credentials, sink: Arc::new(weft_proxy::NoSink), net: Arc::new(System), clock };
        let sidecar = Sidecar::start(config, sources)?;
        let mesh = sidecar.bound().inbound.context("the mesh port is not bound")?;
        let metrics = flags.metrics;
        Ok(Self { sidecar, mesh, metrics })
    }

    pub fn mesh(&self) -> SocketAddr {
        self.mesh
    }

    pub fn metrics(&self) -> SocketAddr {
        self.metrics
    }

    pub fn answers(&self) -> Answers {
        Arc::new(|_| weft_wire::v1::Answer::default())
    }

    /// Readiness, as a probe sees it.
    pub fn ready(&self, ready: bool) {
        let _ = ready;
    }

    /// Ends what is left, then writes the last records.
    pub async fn stop(self, deadline: Duration) {
        self.sidecar.stop(deadline).await;
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
