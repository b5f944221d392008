//! What one proxy knows, as one immutable value: swapped in whole, loaded once per decision.
//!
//! A snapshot is closed, or it is not built: what would be needed and is missing is a named [`Rejection`], never
//! silence. Building costs what changed: views whose fragments are the same allocations as before are kept.

mod build;
mod check;
mod service;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use weft_model::{Digest, Name, Revision, ServiceKey, SpiffeId, TrustDomain, Uid};

pub use self::service::{EndpointView, ServiceView};
use crate::{
    authz::InboundView,
    fragment::{Bundle, Collection, Fragment, Revocations, Workload},
};

/// In the order and with the names in which a proxy staged them.
pub type Fragments = BTreeMap<Collection, BTreeMap<String, Arc<Fragment>>>;

#[derive(Debug)]
pub struct Snapshot {
    pub revision: Revision,
    pub digest: Digest,
    workloads: BTreeMap<Uid, Arc<WorkloadView>>,
    by_sni: BTreeMap<Arc<str>, Uid>,
    by_ip: BTreeMap<IpAddr, Vec<Uid>>,
    services: BTreeMap<ServiceKey, Arc<ServiceView>>,
    bundles: BTreeMap<TrustDomain, Arc<Fragment>>,
    revocations: Arc<RevocationsView>,
}

/// A workload that this proxy serves, and what may reach it.
#[derive(Debug)]
pub struct WorkloadView {
    pub workload: Workload,
    pub inbound: Arc<InboundView>,
    source: Arc<Fragment>,
    inbound_source: Arc<Fragment>,
}

/// What was revoked, for look-up.
#[derive(Debug, Default)]
pub struct RevocationsView {
    serials: std::collections::BTreeSet<Arc<[u8]>>,
    ids: std::collections::BTreeSet<SpiffeId>,
    issuer_keys: std::collections::BTreeSet<Arc<[u8]>>,
    source: Option<Arc<Fragment>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    Serial,
    Id,
    IssuerKey,
}

/// Why a set of fragments is no snapshot: which one, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{collection} entry `{entry}`: {reason}")]
pub struct Rejection {
    pub collection: Collection,
    /// Empty where an entry is missing.
    pub entry: String,
    pub reason: String,
}

/// Why no workload takes a mesh connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWorkload {
    #[error("no workload here has the server name `{0}`")]
    Sni(String),
    #[error("no workload here has the address {0}")]
    Address(IpAddr),
    #[error("{count} workloads share the address {ip}; the client must send a server name")]
    Ambiguous { ip: IpAddr, count: usize },
}

// === impl Snapshot ===

impl Snapshot {
    /// What a proxy knows before it was told anything: nobody is served, nobody is reached.
    pub fn empty() -> Self {
        Self {
            revision: Revision::ZERO,
            digest: Digest::ZERO,
            workloads: BTreeMap::new(),
            by_sni: BTreeMap::new(),
            by_ip: BTreeMap::new(),
            services: BTreeMap::new(),
            bundles: BTreeMap::new(),
            revocations: Arc::default(),
        }
    }

    /// All reasons at once.
    pub fn build(
        prev: Option<&Self>,
        revision: Revision,
        digest: Digest,
        fragments: &Fragments,
    ) -> Result<Self, Vec<Rejection>> {
        let built = build::build(prev, revision, digest, fragments)?;
        #[cfg(debug_assertions)]
        built.check_invariants();
        Ok(built)
    }

    pub fn workload(&self, uid: &Uid) -> Option<&Arc<WorkloadView>> {
        self.workloads.get(uid)
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<WorkloadView>> {
        self.workloads.values()
    }

    /// Who takes a mesh connection: by server name, else by the address it came to, which must be unambiguous.
    pub fn accepting(&self, sni: Option<&str>, dest: IpAddr) -> Result<&Arc<WorkloadView>, NoWorkload> {
        let uid = match sni {
            Some(sni) => self.by_sni.get(sni).ok_or_else(|| NoWorkload::Sni(sni.chars().take(253).collect()))?,
            None => match self.by_ip.get(&dest.to_canonical()).map(Vec::as_slice) {
                Some([one]) => one,
                Some(many) if !many.is_empty() => {
                    return Err(NoWorkload::Ambiguous { ip: dest, count: many.len() });
                }
                _ => return Err(NoWorkload::Address(dest)),
            },
        };
        self.workloads.get(uid).ok_or(NoWorkload::Address(dest))
    }

    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceView>> {
        self.services.get(key)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.services.values()
    }

    /// `name`, `name.namespace` or `name.namespace.…` as a caller in `from` means it; a port is ignored.
    pub fn service_by_host(&self, host: &str, from: &Name) -> Option<&Arc<ServiceView>> {
        let mut labels = crate::request::host_only(host).split('.');
        let name = Name::parse(labels.next()?).ok()?;
        let namespace = labels.next().map_or(Ok(from.clone()), Name::parse).ok()?;
        self.service(&ServiceKey::new(namespace, name))
    }

    pub fn bundle(&self, td: &TrustDomain) -> Option<&Bundle> {
        match self.bundles.get(td).map(|f| &**f) {
            Some(Fragment::Bundle(b)) => Some(b),
            _ => None,
        }
    }

    pub fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.bundles.keys().filter_map(|td| self.bundle(td))
    }

    pub fn revocations(&self) -> &Arc<RevocationsView> {
        &self.revocations
    }

    /// # Panics
    /// When the snapshot is not closed, which `build` must have prevented.
    pub fn check_invariants(&self) {
        for (uid, w) in &self.workloads {
            assert_eq!(uid, &w.workload.uid);
            assert_eq!(uid, &w.inbound.uid);
            assert!(self.bundle(&w.workload.identity.trust_domain()).is_some(), "{uid} without its bundle");
            assert_eq!(self.by_sni.get(&w.workload.sni), Some(uid));
        }
        assert!(self.by_sni.values().chain(self.by_ip.values().flatten()).all(|uid| self.workloads.contains_key(uid)));
        for (key, service) in &self.services {
            assert_eq!(key, &service.service.key);
            service.check_invariants();
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::empty()
    }
}

// === impl WorkloadView ===

impl WorkloadView {
    /// Shared by whoever holds either view of the workload across a swap: did anything about it change?
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.source, &other.source) && Arc::ptr_eq(&self.inbound_source, &other.inbound_source)
    }
}

// === impl RevocationsView ===

impl RevocationsView {
    fn new(revocations: &Revocations, source: Arc<Fragment>) -> Self {
        Self {
            serials: revocations.serials.iter().cloned().collect(),
            ids: revocations.ids.iter().cloned().collect(),
            issuer_keys: revocations.issuer_keys.iter().cloned().collect(),
            source: Some(source),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.serials.is_empty() && self.ids.is_empty() && self.issuer_keys.is_empty()
    }

    /// `issuer_key`: SHA-256 of the issuer's public key.
    pub fn revoked(&self, serial: &[u8], id: &SpiffeId, issuer_key: &[u8]) -> Option<Revoked> {
        if self.serials.contains(serial) {
            Some(Revoked::Serial)
        } else if self.ids.contains(id) {
            Some(Revoked::Id)
        } else if self.issuer_keys.contains(issuer_key) {
            Some(Revoked::IssuerKey)
        } else {
            None
        }
    }
}

// === text ===

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Endpoints(key) => write!(f, "endpoints of {key}"),
            Self::Routes { service, consumer } => write!(f, "routes of {service} for {consumer}"),
            Self::Workload(uid) => write!(f, "workload {uid}"),
            Self::Inbound(uid) => write!(f, "inbound of {uid}"),
            Self::Bundle(td) => write!(f, "bundle of {td}"),
            Self::Revocations => f.write_str("revocations"),
        }
    }
}

#[cfg(test)]
mod tests;
