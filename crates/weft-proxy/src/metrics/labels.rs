//! Who is at the ends of an edge: names from certificates and the catalog, and what a peer says of itself.

use std::{
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use weft_model::{Revision, ServiceKey, SpiffeId, Uid};
use weft_rt::metrics::UNKNOWN;
use weft_snapshot::{
    fragment::{Endpoint, Tunnel, Workload},
    snapshot::Snapshot,
};

use crate::record::Peer;

/// Ends that a worker keeps apart. A peer names itself, so there must be an end to it.
const MAX_ENDS: usize = 2000;

/// One end of an edge, as metrics name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub principal: Arc<str>,
    pub cluster: Arc<str>,
    pub zone: Arc<str>,
}

/// Labels that [`Ends`] gave out: equal ones are one allocation, so comparing and hashing costs a pointer.
#[derive(Debug, Clone)]
pub struct End(pub Arc<Labels>);

/// Finds the labels of peers, endpoints and workloads.
#[derive(Debug)]
pub struct Ends {
    known: HashSet<Arc<Labels>>,
    unknown: Arc<Labels>,
    /// What no longer is in the snapshot stays: its connections are still to end, under the names that they began with.
    endpoints: HashMap<Uid, Found>,
    own: HashMap<Uid, (End, Revision)>,
    /// The newest that decided a record.
    revision: Revision,
}

#[derive(Debug, Clone)]
struct Found {
    end: End,
    meshed: bool,
    looked_up_at: Revision,
}

// === impl Labels ===

impl Labels {
    /// Istio's: what `app` says, else the workload.
    pub fn canonical_service(&self) -> &str {
        if &*self.app == UNKNOWN { &self.workload } else { &self.app }
    }

    pub fn canonical_revision(&self) -> &str {
        if &*self.version == UNKNOWN { "latest" } else { &self.version }
    }

    fn unknown() -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        Self {
            workload: unknown.clone(),
            namespace: unknown.clone(),
            app: unknown.clone(),
            version: unknown.clone(),
            principal: unknown.clone(),
            cluster: unknown.clone(),
            zone: unknown,
        }
    }

    /// Principal and namespace come from the certificate alone.
    fn of_peer(peer: &Peer) -> Self {
        let mut labels = Self::unknown();
        labels.authenticate(peer.id.as_ref());
        if let Some(hello) = &peer.hello {
            labels.workload = known(&hello.workload);
            labels.app = known(&hello.app);
            labels.version = known(&hello.version);
            if !hello.cluster.is_empty() {
                labels.cluster = hello.cluster.as_str().into();
            }
            labels.zone = known(&hello.zone);
        }
        labels
    }

    fn of_workload(w: &Workload) -> Self {
        let mut labels = Self::unknown();
        labels.authenticate(Some(&w.identity));
        labels.namespace = w.service.namespace.as_str().into();
        labels.workload = known(&w.workload);
        labels.app = known(&w.app);
        labels.version = known(&w.version);
        labels.zone = known(&w.locality.zone);
        labels
    }

    fn of_endpoint(service: &ServiceKey, e: &Endpoint) -> Self {
        let mut labels = Self::unknown();
        labels.authenticate(e.identities.first());
        labels.namespace = service.namespace.as_str().into();
        labels.workload = known(&e.workload);
        labels.app = known(&e.app);
        labels.version = known(&e.version);
        labels.zone = known(&e.locality.zone);
        labels
    }

    fn authenticate(&mut self, id: Option<&SpiffeId>) {
        let Some(id) = id else { return };
        self.principal = id.as_str().into();
        // One group of servers is one trust domain: that is what its workloads share, and others do not
        self.cluster = id.trust_domain_str().into();
        if let Some(namespace) = id.namespace() {
            self.namespace = namespace.into();
        }
    }
}

fn known(name: &str) -> Arc<str> {
    if name.is_empty() { UNKNOWN.into() } else { name.into() }
}

// === impl End ===

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for End {}

impl Hash for End {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

// === impl Ends ===

impl Default for Ends {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            unknown: Arc::new(Labels::unknown()),
            endpoints: HashMap::new(),
            own: HashMap::new(),
            revision: Revision::ZERO,
        }
    }
}

impl Ends {
    pub fn unknown(&self) -> End {
        End(self.unknown.clone())
    }

    /// A record was decided by `revision`: what was found in an older snapshot is looked up again.
    pub fn at(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// Looked up once per connection: a peer remembers its labels.
    pub fn peer(&mut self, peer: &Peer) -> End {
        let labels = peer.seen.0.get_or_init(|| self.end(Labels::of_peer(peer)).0);
        End(labels.clone())
    }

    /// The workload whose proxy this is.
    pub fn own(&mut self, uid: &Uid, snapshot: &dyn Fn() -> Arc<Snapshot>) -> End {
        let revision = self.revision;
        let before = self.own.get(uid).cloned();
        if let Some((end, _)) = before.as_ref().filter(|(_, at)| *at == revision) {
            return end.clone();
        }
        let end = match (snapshot().workload(uid), before) {
            (Some(view), _) => self.end(Labels::of_workload(&view.workload)),
            (None, Some((end, _))) => end,
            (None, None) => return End(self.unknown.clone()),
        };
        self.own.insert(uid.clone(), (end.clone(), revision));
        end
    }

    /// Where a request of ours went, and whether it went there over the mesh.
    pub fn endpoint(
        &mut self,
        service: &ServiceKey,
        uid: &Uid,
        snapshot: &dyn Fn() -> Arc<Snapshot>,
    ) -> Option<(End, bool)> {
        let revision = self.revision;
        if let Some(found) = self.endpoints.get(uid).filter(|found| found.looked_up_at == revision) {
            return Some((found.end.clone(), found.meshed));
        }
        let snapshot = snapshot();
        let endpoints = snapshot.service(service).map(|s| s.endpoints()).unwrap_or_default();
        let now = endpoints.binary_search_by(|e| e.uid.cmp(uid)).ok().and_then(|at| endpoints.get(at));
        let (end, meshed) = match (now, self.endpoints.get(uid)) {
            (Some(e), _) => (self.end(Labels::of_endpoint(service, e)), e.tunnel != Tunnel::None),
            (None, Some(before)) => (before.end.clone(), before.meshed),
            (None, None) => return None,
        };
        if self.endpoints.len() >= MAX_ENDS && !self.endpoints.contains_key(uid) {
            // instances come and go; those that matter come back here
            self.endpoints.clear();
        }
        self.endpoints.insert(uid.clone(), Found { end: end.clone(), meshed, looked_up_at: revision });
        Some((end, meshed))
    }

    /// Somebody of whom no more is known than an identity or a namespace.
    pub fn stranger(&mut self, id: Option<&SpiffeId>, namespace: Option<&str>) -> End {
        let mut labels = Labels::unknown();
        labels.authenticate(id);
        if let Some(namespace) = namespace {
            labels.namespace = namespace.into();
        }
        self.end(labels)
    }

    fn end(&mut self, labels: Labels) -> End {
        if let Some(known) = self.known.get(&labels) {
            return End(known.clone());
        }
        if self.known.len() >= MAX_ENDS {
            return End(self.unknown.clone());
        }
        let new = Arc::new(labels);
        self.known.insert(new.clone());
        End(new)
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::hello::Hello;

    use super::*;

    fn peer(workload: &str) -> Peer {
        Peer {
            id: Some("spiffe://td/ns/shop/sa/web".parse().unwrap()),
            hello: Some(Hello { workload: workload.into(), version: "v2".into(), ..Hello::default() }),
            ..Peer::default()
        }
    }

    #[test]
    fn obs_01_principal_and_namespace_come_from_the_certificate() {
        let mut ends = Ends::default();
        let labels = ends.peer(&peer("web-1")).0;
        assert_eq!((&*labels.principal, &*labels.namespace), ("spiffe://td/ns/shop/sa/web", "shop"));
        assert_eq!((&*labels.workload, &*labels.app), ("web-1", UNKNOWN));
        assert_eq!(&*labels.cluster, "td", "who says nothing else is of its trust domain's cluster");
        assert_eq!((labels.canonical_service(), labels.canonical_revision()), ("web-1", "v2"));
        let nobody = ends.peer(&Peer::default()).0;
        assert_eq!((&*nobody.principal, nobody.canonical_service()), (UNKNOWN, UNKNOWN));
        assert_eq!(nobody.canonical_revision(), "latest");
    }

    #[test]
    fn obs_01_a_peer_that_invents_names_becomes_unknown() {
        let mut ends = Ends::default();
        for i in 0..MAX_ENDS + 10 {
            ends.peer(&peer(&format!("w{i}")));
        }
        assert_eq!(ends.known.len(), MAX_ENDS);
        assert_eq!(&*ends.peer(&peer("one more")).0.workload, UNKNOWN);
        assert_eq!(&*ends.peer(&peer("w7")).0.workload, "w7");
    }
}
