//! `PeerAuthentication` (Istio): whether a workload takes connections without mTLS.

pub(crate) mod effect;

use std::collections::BTreeMap;

use weft_model::Selector;
use weft_snapshot::fragment::MtlsMode;

use crate::{
    admit::Subject,
    root,
    schema::{At, Decode, Entries, schema},
    violation::{Sink, nearest},
    words,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Empty: the whole namespace; in the root namespace, the mesh.
    pub selector: Selector,
    /// `None` inherits.
    pub mode: Option<MtlsMode>,
    /// By the workload's port.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

schema! {
    struct RawPeerAuthentication {
        selector: RawSelector = "selector",
        mtls: RawMtls = "mtls",
        port_level_mtls: Entries<RawMtls> = "portLevelMtls",
    }

    struct RawSelector {
        match_labels: Entries<String> = "matchLabels",
    }

    struct RawMtls {
        mode: String = "mode",
    }
}

// === impl PeerAuthentication ===

impl PeerAuthentication {
    pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Self> {
        let raw = RawPeerAuthentication::decode(&subject.doc.spec, &subject.spot, out).unwrap_or_default();
        root::warn_of_istios(&subject.key.namespace, &subject.spot, out);
        let labels = raw.selector.and_then(|s| s.value.match_labels);
        let selector = labels.map(|l| words::selector(&l.value, out)).unwrap_or_default();
        let mode = raw.mtls.and_then(|m| admit_mode(&m.value, out));
        let mut ports = BTreeMap::new();
        if let Some(at) = &raw.port_level_mtls {
            if selector.0.is_empty() {
                out.invalid(&at.spot, "needs a selector: ports are those of particular workloads");
            }
            for (port, mtls) in &at.value.0 {
                let typed = At { spot: mtls.spot.clone(), value: port.clone() };
                if let Some(port) = words::port_text(&typed, out) {
                    ports.insert(port, admit_mode(&mtls.value, out));
                }
            }
        }
        Some(Self { selector, mode, ports })
    }
}

fn admit_mode(raw: &RawMtls, out: &mut Sink) -> Option<MtlsMode> {
    let at = raw.mode.as_ref()?;
    match at.value.as_str() {
        "UNSET" => None,
        "STRICT" => Some(MtlsMode::Strict),
        "PERMISSIVE" => {
            out.warn(&at.spot, "sidecars take no plaintext yet: until they do, this is STRICT");
            Some(MtlsMode::Permissive)
        }
        "DISABLE" => {
            out.warn(
                &at.spot,
                "plaintext goes to the application itself: where an AuthorizationPolicy selects the workload, or the mesh denies \
                 by default, mTLS stays, since nobody would ask the policy",
            );
            Some(MtlsMode::Disable)
        }
        other => {
            let known = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
            let message = match nearest(other, known) {
                Some(near) => format!("unknown mode `{other}`; did you mean `{near}`?"),
                None => format!("unknown mode `{other}`; known: {}", known.join(", ")),
            };
            out.invalid(&at.spot, message);
            None
        }
    }
}
