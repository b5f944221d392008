//! Who may be told what. Pure.

use weft_model::{SpiffeId, TrustDomain};
use weft_resources::World;
use weft_snapshot::fragment::Collection;

/// The answer, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// The name comes back as removed, as one that does not exist does.
    Deny(&'static str),
}

/// A proxy sees the workloads that run as its identity, and what every caller may know: services, where they are, the
/// routes of its own namespace, whom to trust.
pub fn may_subscribe(principal: &SpiffeId, collection: &Collection, world: &World, ours: &TrustDomain) -> Verdict {
    if principal.trust_domain_str() != ours.as_str() {
        return Verdict::Deny("another trust domain");
    }
    match collection {
        Collection::Workload(uid) | Collection::Inbound(uid) => {
            let identity = world.catalog.get(uid).and_then(|i| i.identity.as_ref());
            if identity == Some(principal) { Verdict::Allow } else { Verdict::Deny("another identity's workload") }
        }
        Collection::Routes { consumer, .. } => match principal.namespace() {
            Some(ns) if ns == consumer.as_str() => Verdict::Allow,
            _ => Verdict::Deny("another namespace's view of routes"),
        },
        Collection::Service(_) | Collection::Endpoints(_) | Collection::Bundle(_) | Collection::Revocations => {
            Verdict::Allow
        }
    }
}

impl Verdict {
    pub fn is_allow(&self) -> bool {
        *self == Self::Allow
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{Health, Labels, Locality, Name, ServiceKey, Uid};
    use weft_resources::{Instance, Mesh};
    use weft_snapshot::fragment::Tunnel;

    use super::*;

    #[test]
    fn a_proxy_sees_its_own_inbound_and_what_every_caller_may_know() {
        let n = |s: &str| Name::parse(s).unwrap();
        let td = TrustDomain::parse("td.weft").unwrap();
        let web = SpiffeId::workload(&td, "shop", "web").unwrap();
        let api = SpiffeId::workload(&td, "shop", "api").unwrap();
        let service = ServiceKey::new(n("shop"), n("web"));
        let uid = Uid::of(&service, &n("n1"), &n("web-1"));
        let mut world = World::new(Mesh::new(td.clone()));
        world.catalog.insert(Instance {
            uid: uid.clone(),
            service: service.clone(),
            node: n("n1"),
            identity: Some(web.clone()),
            ports: vec![],
            address: "127.0.0.1".parse().unwrap(),
            mesh: None,
            tunnel: Tunnel::Weft1,
            labels: Labels::default(),
            locality: Locality::default(),
            weight: 1,
            health: Health::Passing,
            workload: "".into(),
        });
        let allowed = |who: &SpiffeId, c: Collection| may_subscribe(who, &c, &world, &td).is_allow();
        for own in [Collection::Workload(uid.clone()), Collection::Inbound(uid.clone())] {
            assert!(allowed(&web, own.clone()));
            assert!(!allowed(&api, own), "the same namespace, another identity");
        }
        let gone = Uid::of(&service, &n("n1"), &n("web-2"));
        assert!(!allowed(&web, Collection::Inbound(gone)), "what is not there belongs to nobody");
        assert!(allowed(&api, Collection::Endpoints(service.clone())));
        let routes = |ns: &str| Collection::Routes { service: service.clone(), consumer: n(ns) };
        assert!(allowed(&api, routes("shop")));
        assert!(!allowed(&api, routes("bank")));
        let foreign = SpiffeId::parse("spiffe://other/ns/shop/sa/web").unwrap();
        assert!(!allowed(&foreign, Collection::Revocations));
    }
}
