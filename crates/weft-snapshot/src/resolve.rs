//! Which port of a workload does a mesh peer mean? The workload is the one whose certificate the connection presented;
//! what the peer says chooses a port of it and nothing else.

use weft_model::ServiceKey;

use crate::{fragment::Listen, snapshot::WorkloadView};

/// 421 for a `weft-to`, 400 for a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolvable {
    #[error("`{0}` is not of the form address:port")]
    Authority(String),
    #[error("`{0}` is not an address of this workload")]
    Address(String),
    #[error("`{0}` is not of the form namespace/service:port")]
    Claim(String),
    #[error("this workload belongs to {is}, not to {claimed}")]
    Service { claimed: ServiceKey, is: ServiceKey },
    #[error("this workload has no port `{0}`")]
    Port(String),
}

/// The authority of a CONNECT: an address of the workload as others know it.
pub fn resolve_connect<'w>(view: &'w WorkloadView, authority: &str) -> Result<&'w Listen, Unresolvable> {
    let told: std::net::SocketAddr = authority.parse().map_err(|_| Unresolvable::Authority(clipped(authority)))?;
    let same = |l: &&Listen| l.app.port() == told.port() && l.app.ip().to_canonical() == told.ip().to_canonical();
    view.workload.listens.iter().find(same).ok_or_else(|| Unresolvable::Address(clipped(authority)))
}

/// `weft-to: namespace/service:port`, the port by number or by name.
pub fn resolve_claim<'w>(view: &'w WorkloadView, claim: &str) -> Result<&'w Listen, Unresolvable> {
    let (service, port) = claim.rsplit_once(':').ok_or_else(|| Unresolvable::Claim(clipped(claim)))?;
    if !names(service, &view.workload.service) {
        let claimed: ServiceKey = service.parse().map_err(|_| Unresolvable::Claim(clipped(claim)))?;
        return Err(Unresolvable::Service { claimed, is: view.workload.service.clone() });
    }
    let listens = &view.workload.listens;
    let by_name = listens.iter().find(|l| *l.name == *port && !l.name.is_empty());
    let by_number = || port.parse().ok().and_then(|n: u16| listens.iter().find(|l| l.service_port == n));
    by_name.or_else(by_number).ok_or_else(|| Unresolvable::Port(clipped(port)))
}

// === helpers ===

/// Without allocating where nothing is escaped, which is nearly always.
fn names(text: &str, key: &ServiceKey) -> bool {
    match text.split_once('/') {
        Some((ns, name)) if !text.contains('%') => ns == key.namespace.as_str() && name == key.name.as_str(),
        _ => text.parse().is_ok_and(|claimed: ServiceKey| claimed == *key),
    }
}

/// What came from a peer is repeated in part only.
fn clipped(s: &str) -> String {
    s.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests;
