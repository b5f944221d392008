//! `WorkloadEntry` (Istio): an address outside every agent's reach that is an instance of a service all the same.

pub(crate) mod effect;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use weft_model::{Labels, Locality, Name};
use weft_snapshot::fragment::Tunnel;

use crate::{
    admit::Subject,
    schema::{At, Decode, Entries, schema},
    violation::{Sink, Spot},
    words,
};

/// Names the service directly, where neither a selector nor the `app` label should.
pub const SERVICE_ANNOTATION: &str = "weft.dev/service";
/// Istio's label for a workload that takes HBONE at port 15008.
pub const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    pub address: IpAddr,
    /// Port name to number at the address.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// Of the spec and of the metadata; the spec's win.
    pub labels: Labels,
    pub service_account: Option<Name>,
    pub weight: u32,
    pub locality: Locality,
    pub network: Arc<str>,
    /// By annotation.
    pub service: Option<Name>,
    pub tunnel: Tunnel,
}

schema! {
    struct RawWorkloadEntry {
        address: String = "address",
        ports: Entries<i64> = "ports",
        labels: Entries<String> = "labels",
        service_account: String = "serviceAccount",
        weight: i64 = "weight",
        locality: String = "locality",
        network: String = "network",
    }
}

// === impl WorkloadEntry ===

impl WorkloadEntry {
    pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Self> {
        let raw = RawWorkloadEntry::decode(&subject.doc.spec, &subject.spot, out)?;
        let address = match &raw.address {
            Some(at) => admit_address(at, out),
            None => {
                out.missing(&subject.spot, "address", "is missing; write an IP address");
                None
            }
        };
        let mut ports = BTreeMap::new();
        for (name, at) in raw.ports.iter().flat_map(|p| &p.value.0) {
            if let Some(port) = words::port(at, out) {
                ports.insert(name.as_str().into(), port);
            }
        }
        let mut labels = subject.doc.metadata.labels.clone();
        for (key, at) in raw.labels.iter().flat_map(|l| &l.value.0) {
            labels.0.insert(key.as_str().into(), at.value.as_str().into());
        }
        let service_account = raw.service_account.as_ref().and_then(|at| words::account(at, out));
        let weight = raw.weight.as_ref().map_or(Some(1), |at| match u32::try_from(at.value) {
            // Istio reads 0 as "not said"
            Ok(0) => Some(1),
            Ok(weight) => Some(weight),
            Err(_) => {
                out.invalid(&at.spot, format!("weight {} is not between 0 and 4294967295", at.value));
                None
            }
        });
        let annotation = subject.doc.metadata.annotations.get(SERVICE_ANNOTATION);
        let service = annotation.and_then(|value| {
            let spot = Spot::new(format!("metadata.annotations[{SERVICE_ANNOTATION}]"), subject.doc.line, 0);
            words::name(&At { spot, value: value.clone() }, out)
        });
        let tunnel = match labels.get(TUNNEL_LABEL) {
            Some("http") => Tunnel::Hbone,
            _ => Tunnel::None,
        };
        if tunnel == Tunnel::Hbone && service_account.is_none() && raw.service_account.is_none() {
            let message = format!("is missing; label `{TUNNEL_LABEL}: http` needs the identity to expect");
            out.missing(&subject.spot, "serviceAccount", message);
        }
        let locality = raw.locality.map(|at| at.value).unwrap_or_default();
        let mut places = locality.split('/');
        let mut place = || places.next().unwrap_or_default().into();
        let locality = Locality { region: place(), zone: place() };
        Some(Self {
            address: address?,
            ports,
            labels,
            service_account,
            weight: weight?,
            locality,
            network: raw.network.map(|at| at.value).unwrap_or_default().into(),
            service,
            tunnel,
        })
    }
}

fn admit_address(at: &At<String>, out: &mut Sink) -> Option<IpAddr> {
    if let Ok(address) = at.value.parse::<IpAddr>() {
        if address.is_unspecified() || address.is_multicast() {
            out.invalid(&at.spot, format!("`{address}` is no address that one can connect to"));
            return None;
        }
        return Some(address);
    }
    if at.value.starts_with("unix:") {
        out.unsupported(&at.spot, "Unix sockets are not supported here; write an IP address");
    } else if at.value.bytes().any(|b| b.is_ascii_alphabetic()) && !at.value.contains(':') {
        out.unsupported(&at.spot, format!("host names are not supported yet; write the IP address of `{}`", at.value));
    } else {
        out.invalid(&at.spot, format!("`{}` is not an IP address", at.value));
    }
    None
}
