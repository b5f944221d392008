//! Health checks of the application, from the command line to the registry.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use tokio::sync::mpsc;
use weft_agent::check::{Check, Probe};
use weft_proxy::workload::PortSpec;
use weft_wire::fragment::health;
use weft_wire::v1::{self, CheckDefinition, CheckResult, GrpcCheck, HttpCheck, TcpCheck, check_definition::Kind};

/// Probes that must agree before an instance goes out of use.
const FAILURES_BEFORE_CRITICAL: u32 = 2;

/// The checks that were asked for; without any, a connection to the first port.
pub fn checks(texts: &[String], ports: &[PortSpec]) -> Result<Vec<Check>> {
    let Some(first) = ports.first() else {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        bail!("--check needs a --port to probe");
    };
    let addr = SocketAddr::from(([127, 0, 0, 1], first.port));
    if texts.is_empty() {
        return Ok(vec![Check::parse("tcp", addr)?]);
    }
    texts.iter().map(|t| Ok(Check::parse(t, addr)?)).collect()
}

/// Probes for ever, and tells the registry what was found.
pub async fn probe(check: Check, results: mpsc::Sender<CheckResult>) {
    let (send, mut found) = mpsc::channel::<weft_agent::check::Finding>(8);
    let telling = async {
        while let Some(finding) = found.recv().await {
            let status = health(finding.health);
            let result = CheckResult { check_id: finding.check, status, output: finding.output };
            if results.send(result).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased; // both end with the workload
        () = telling => {}
        () = check.run(send) => {}
    }
}

/// What the registry is told of a check.
pub fn definition(check: &Check) -> CheckDefinition {
    let kind = match &check.probe {
        Probe::Http { addr, path } => {
            Kind::Http(HttpCheck { url: format!("http://{addr}{path}"), method: "GET".into(), ..HttpCheck::default() })
        }
        Probe::Tcp { addr } => Kind::Tcp(TcpCheck { address: addr.to_string() }),
        Probe::Grpc { addr, service } => {
            Kind::Grpc(GrpcCheck { address: addr.to_string(), service: service.clone(), tls: false })
        }
    };
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    CheckDefinition {
        id: check.id.clone(),
        name: check.id.clone(),
        kind: Some(kind),
        interval_ms: millis(check.interval),
        timeout_ms: millis(check.timeout),
        success_before_passing: 0,
        failures_before_warning: 0,
        failures_before_critical: FAILURES_BEFORE_CRITICAL,
        deregister_critical_after_ms: 0,
        // an application that is starting gets nothing (features.md REG-05)
        initial: v1::Health::Critical.into(),
    }
}
