//! Fragments → snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_model::{Digest, Labels, Name, Revision, ServiceKey, Uid};

use super::{EndpointView, Fragments, Rejection, RevocationsView, ServiceView, Snapshot, WorkloadView, check};
use crate::{
    authz::InboundView,
    balance::Pool,
    fragment::{Collection, Fragment, Service},
    route::RouteTable,
};

type Entries = BTreeMap<String, Arc<Fragment>>;
/// Compiled, with what it was compiled from.
type Table = (Arc<RouteTable>, Arc<Fragment>);
type Tables = BTreeMap<(ServiceKey, Name), Table>;
/// Per service the (port, labels) that some route chooses.
type Subsets = BTreeMap<ServiceKey, BTreeSet<(u16, Labels)>>;

pub(super) fn build(
    prev: Option<&Snapshot>,
    revision: Revision,
    digest: Digest,
    fragments: &Fragments,
) -> Result<Snapshot, Vec<Rejection>> {
    let mut b = Builder { prev, fragments, rejections: Vec::new() };
    let bundles = b.bundles();
    let workloads = b.workloads();
    let routes = b.routes();
    let services = b.services(&routes);
    let revocations = b.revocations();
    b.closure(&workloads, &bundles, &services);
    if !b.rejections.is_empty() {
        return Err(b.rejections);
    }
    let mut by_ip: BTreeMap<_, Vec<Uid>> = BTreeMap::new();
    for w in workloads.values() {
        for ip in w.workload.listens.iter().map(|l| l.app.ip().to_canonical()) {
            let uids = by_ip.entry(ip).or_default();
            if uids.last() != Some(&w.workload.uid) {
                uids.push(w.workload.uid.clone());
            }
        }
    }
    Ok(Snapshot {
        revision,
        digest,
        by_sni: workloads.values().map(|w| (w.workload.sni.clone(), w.workload.uid.clone())).collect(),
        by_ip,
        workloads,
        services,
        bundles,
        revocations,
    })
}

struct Builder<'a> {
    prev: Option<&'a Snapshot>,
    fragments: &'a Fragments,
    rejections: Vec<Rejection>,
}

impl<'a> Builder<'a> {
    fn reject(&mut self, collection: &Collection, entry: &str, reason: impl Into<String>) {
        self.rejections.push(Rejection { collection: collection.clone(), entry: entry.into(), reason: reason.into() });
    }

    /// The one entry of a collection that holds one; none, when it is empty.
    fn single(&mut self, collection: &Collection, entries: &'a Entries) -> Option<(&'a str, &'a Arc<Fragment>)> {
        let mut all = entries.iter();
        let first = all.next();
        for (extra, _) in all {
            self.reject(collection, extra, "the collection holds one entry, and this is another");
        }
        first.map(|(name, f)| (name.as_str(), f))
    }

    fn wrong_kind(&mut self, collection: &Collection, entry: &str) {
        self.reject(collection, entry, "the fragment is of another kind, or of something else, than its collection");
    }

    fn bundles(&mut self) -> BTreeMap<weft_model::TrustDomain, Arc<Fragment>> {
        let mut out = BTreeMap::new();
        for (collection, entries) in self.fragments {
            let Collection::Bundle(td) = collection else { continue };
            let Some((entry, source)) = self.single(collection, entries) else { continue };
            match &**source {
                Fragment::Bundle(b) if b.trust_domain == *td => {
                    if b.authorities.is_empty() {
                        self.reject(collection, entry, "the bundle has no authorities");
                    }
                    out.insert(td.clone(), source.clone());
                }
                _ => self.wrong_kind(collection, entry),
            }
        }
        out
    }

    fn workloads(&mut self) -> BTreeMap<Uid, Arc<WorkloadView>> {
        let mut out = BTreeMap::new();
        for (collection, entries) in self.fragments {
            match collection {
                Collection::Workload(uid) => {
                    if let Some(view) = self.workload(collection, uid, entries) {
                        out.insert(uid.clone(), view);
                    }
                }
                Collection::Inbound(uid) if !entries.is_empty() && !self.has(&Collection::Workload(uid.clone())) => {
                    self.reject(collection, "", "there is no workload of that uid");
                }
                _ => {}
            }
        }
        out
    }

    fn has(&self, collection: &Collection) -> bool {
        self.fragments.get(collection).is_some_and(|e| !e.is_empty())
    }

    fn workload(&mut self, collection: &Collection, uid: &Uid, entries: &'a Entries) -> Option<Arc<WorkloadView>> {
        let (entry, source) = self.single(collection, entries)?;
        let workload = match &**source {
            Fragment::Workload(w) if w.uid == *uid => w,
            _ => {
                self.wrong_kind(collection, entry);
                return None;
            }
        };
        let inbound_collection = Collection::Inbound(uid.clone());
        let found = self.fragments.get(&inbound_collection).and_then(|e| self.single(&inbound_collection, e));
        let Some((inbound_entry, inbound_source)) = found else {
            self.reject(&inbound_collection, "", "the authorization of the workload is missing");
            return None;
        };
        let kept = self.prev.and_then(|p| p.workloads.get(uid));
        if let Some(kept) = kept
            && Arc::ptr_eq(&kept.source, source)
            && Arc::ptr_eq(&kept.inbound_source, inbound_source)
        {
            return Some(kept.clone());
        }
        if let Err(why) = check::workload(workload) {
            self.reject(collection, entry, why);
            return None;
        }
        let inbound = match (&**inbound_source, kept) {
            (_, Some(kept)) if Arc::ptr_eq(&kept.inbound_source, inbound_source) => kept.inbound.clone(),
            (Fragment::Inbound(i), _) if i.uid == *uid => match InboundView::compile(i) {
                Ok(view) => Arc::new(view),
                Err(why) => {
                    self.reject(&inbound_collection, inbound_entry, why);
                    return None;
                }
            },
            _ => {
                self.wrong_kind(&inbound_collection, inbound_entry);
                return None;
            }
        };
        let (source, inbound_source) = (source.clone(), inbound_source.clone());
        Some(Arc::new(WorkloadView { workload: workload.clone(), inbound, source, inbound_source }))
    }

    fn routes(&mut self) -> Tables {
        let mut out = BTreeMap::new();
        for (collection, entries) in self.fragments {
            let Collection::Routes { service, consumer } = collection else { continue };
            let Some((entry, source)) = self.single(collection, entries) else { continue };
            let kept = self.prev.and_then(|p| p.services.get(service)).and_then(|s| {
                let same = s.route_sources.get(consumer).is_some_and(|f| Arc::ptr_eq(f, source));
                s.routes.get(consumer).filter(|_| same)
            });
            let table = match (&**source, kept) {
                (_, Some(kept)) => kept.clone(),
                (Fragment::Routes(r), None) if r.service == *service && r.consumer == *consumer => {
                    match RouteTable::compile(r) {
                        Ok(table) => Arc::new(table),
                        Err(why) => {
                            self.reject(collection, entry, why);
                            continue;
                        }
                    }
                }
                _ => {
                    self.wrong_kind(collection, entry);
                    continue;
                }
            };
            out.insert((service.clone(), consumer.clone()), (table, source.clone()));
        }
        out
    }

    fn services(&mut self, routes: &Tables) -> BTreeMap<ServiceKey, Arc<ServiceView>> {
        let mut subsets = Subsets::new();
        for (table, _) in routes.values() {
            for (key, port, labels) in table.destinations().filter(|(_, _, l)| !l.0.is_empty()) {
                subsets.entry(key.clone()).or_default().insert((port, labels.clone()));
            }
        }
        let mut by_service: BTreeMap<&ServiceKey, Vec<(&Name, &Table)>> = BTreeMap::new();
        for ((service, consumer), table) in routes {
            by_service.entry(service).or_default().push((consumer, table));
        }
        let mut out = BTreeMap::new();
        for (collection, entries) in self.fragments {
            let Collection::Service(key) = collection else { continue };
            let Some((entry, source)) = self.single(collection, entries) else { continue };
            let service = match &**source {
                Fragment::Service(s) if s.key == *key => s,
                _ => {
                    self.wrong_kind(collection, entry);
                    continue;
                }
            };
            let parts = Parts {
                service,
                source,
                routes: by_service.get(key).map_or(&[], Vec::as_slice),
                subsets: subsets.get(key),
            };
            let view = self.service(key, &parts);
            out.insert(key.clone(), view);
        }
        out
    }

    fn service(&mut self, key: &ServiceKey, parts: &Parts<'_>) -> Arc<ServiceView> {
        let kept = self.prev.and_then(|p| p.services.get(key));
        let endpoints = self.endpoints(key, kept);
        let same_endpoints = kept.is_some_and(|k| same_arcs(&k.endpoints, &endpoints));
        if let Some(kept) = kept
            && Arc::ptr_eq(&kept.source, parts.source)
            && same_endpoints
            && kept.routes.len() == parts.routes.len()
            && parts.routes.iter().all(|(c, (_, f))| kept.route_sources.get(*c).is_some_and(|k| Arc::ptr_eq(k, f)))
            && parts.has_subsets_of(kept)
        {
            return kept.clone();
        }
        let reusable = kept.filter(|k| same_endpoints && k.service.balance == parts.service.balance);
        Arc::new(ServiceView {
            pools: parts.pools(&endpoints, reusable),
            service: parts.service.clone(),
            routes: parts.routes.iter().map(|(c, (table, _))| ((*c).clone(), table.clone())).collect(),
            route_sources: parts.routes.iter().map(|(c, (_, f))| ((*c).clone(), f.clone())).collect(),
            endpoints,
            source: parts.source.clone(),
        })
    }

    /// In order of uid, whatever the entries are named.
    fn endpoints(&mut self, key: &ServiceKey, kept: Option<&Arc<ServiceView>>) -> Vec<Arc<EndpointView>> {
        let collection = Collection::Endpoints(key.clone());
        let Some(entries) = self.fragments.get(&collection) else { return Vec::new() };
        let old = kept.map_or(&[][..], |k| &k.endpoints);
        let mut out: Vec<Arc<EndpointView>> = Vec::with_capacity(entries.len());
        for (entry, source) in entries {
            let Fragment::Endpoint(e) = &**source else {
                self.wrong_kind(&collection, entry);
                continue;
            };
            let same = old.binary_search_by(|o| o.endpoint.uid.cmp(&e.uid)).ok().and_then(|i| old.get(i));
            if let Some(same) = same.filter(|s| Arc::ptr_eq(&s.source, source)) {
                out.push(same.clone());
            } else if let Err(why) = check::endpoint(e) {
                self.reject(&collection, entry, why);
            } else {
                out.push(Arc::new(EndpointView { endpoint: e.clone(), source: source.clone() }));
            }
        }
        out.sort_by(|a, b| a.endpoint.uid.cmp(&b.endpoint.uid));
        for pair in out.windows(2) {
            if let [a, b] = pair
                && a.endpoint.uid == b.endpoint.uid
            {
                self.reject(&collection, a.endpoint.uid.as_str(), "two entries are the same endpoint");
            }
        }
        out
    }

    fn revocations(&mut self) -> Arc<RevocationsView> {
        let collection = Collection::Revocations;
        let found = self.fragments.get(&collection).and_then(|e| self.single(&collection, e));
        let Some((entry, source)) = found else { return Arc::default() };
        let kept = self.prev.map(|p| &p.revocations);
        match (&**source, kept) {
            (_, Some(kept)) if kept.source.as_ref().is_some_and(|s| Arc::ptr_eq(s, source)) => kept.clone(),
            (Fragment::Revocations(r), _) => Arc::new(RevocationsView::new(r, source.clone())),
            _ => {
                self.wrong_kind(&collection, entry);
                Arc::default()
            }
        }
    }

    /// What refers to each other must be there together.
    fn closure(
        &mut self,
        workloads: &BTreeMap<Uid, Arc<WorkloadView>>,
        bundles: &BTreeMap<weft_model::TrustDomain, Arc<Fragment>>,
        services: &BTreeMap<ServiceKey, Arc<ServiceView>>,
    ) {
        let mut names: BTreeMap<&str, &Uid> = BTreeMap::new();
        for (uid, w) in workloads {
            let td = w.workload.identity.trust_domain();
            if !bundles.contains_key(&td) {
                let reason = format!("missing, and workload {uid} cannot verify its peers without it");
                self.reject(&Collection::Bundle(td), "", reason);
            }
            if let Some(other) = names.insert(&w.workload.sni, uid) {
                let reason = format!("has the same server name as {other}");
                self.reject(&Collection::Workload(uid.clone()), uid.as_str(), reason);
            }
        }
        for (collection, entries) in self.fragments {
            let key = match collection {
                Collection::Endpoints(key) | Collection::Routes { service: key, .. } => key,
                _ => continue,
            };
            if !entries.is_empty() && !services.contains_key(key) {
                self.reject(collection, "", format!("the definition of service {key} is missing"));
            }
        }
    }
}

struct Parts<'a> {
    service: &'a Service,
    source: &'a Arc<Fragment>,
    routes: &'a [(&'a Name, &'a Table)],
    subsets: Option<&'a BTreeSet<(u16, Labels)>>,
}

impl Parts<'_> {
    fn wanted(&self) -> impl Iterator<Item = (u16, Labels)> {
        let all = self.service.ports.iter().map(|p| (p.port, Labels::default()));
        let subsets = self.subsets.into_iter().flatten().filter(|(port, _)| self.serves(*port)).cloned();
        all.chain(subsets)
    }

    fn serves(&self, port: u16) -> bool {
        self.service.ports.iter().any(|p| p.port == port)
    }

    fn has_subsets_of(&self, kept: &ServiceView) -> bool {
        let count = kept.pools.values().map(Vec::len).sum::<usize>();
        self.wanted().count() == count && self.wanted().all(|(port, labels)| kept.pool(port, &labels).is_some())
    }

    fn pools(
        &self,
        endpoints: &[Arc<EndpointView>],
        kept: Option<&Arc<ServiceView>>,
    ) -> BTreeMap<u16, Vec<(Labels, Arc<Pool>)>> {
        let mut pools: BTreeMap<u16, Vec<(Labels, Arc<Pool>)>> = BTreeMap::new();
        for (port, labels) in self.wanted() {
            let pool = match kept.and_then(|k| k.pool(port, &labels)) {
                Some(pool) => pool.clone(),
                None => {
                    let list = endpoints.iter().map(|e| &e.endpoint);
                    Arc::new(Pool::build(self.service.balance, list, port, &labels))
                }
            };
            pools.entry(port).or_default().push((labels, pool));
        }
        pools
    }
}

fn same_arcs<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
