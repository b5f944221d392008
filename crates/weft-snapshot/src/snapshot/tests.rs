use std::sync::Arc;

use proptest::prelude::*;

use weft_model::{Labels, TrustDomain};

use super::*;
use crate::{
    fragment::{
        Backend, HttpMatch, HttpRule, PathMatch, PortRoutes, RetryPolicy, Revocations, Routes, Service, Target,
        Timeouts, Tunnel,
    },
    samples::{self, Set, endpoint, inbound, key, name, service, uid, workload},
};

/// Two services with two endpoints each, and one workload.
fn mesh() -> Set {
    Set::new()
        .service(service("shop/cart", &[(80, "http"), (90, "admin")]))
        .endpoint("shop/cart", endpoint("shop/cart", "cart-1"))
        .endpoint("shop/cart", endpoint("shop/cart", "cart-2"))
        .service(service("shop/web", &[(80, "http")]))
        .endpoint("shop/web", endpoint("shop/web", "web-1"))
        .workload(workload("shop/web", "web-1"))
}

fn routes(path: &str, subset: &[(&str, &str)]) -> Routes {
    let subset: Labels = subset.iter().copied().collect();
    let backend = Target::Service { key: key("shop/cart"), port: 80, subset };
    let rule = HttpRule {
        origin: "HTTPRoute/shop/r#rule-0".parse().unwrap(),
        hosts: Vec::new(),
        matches: vec![HttpMatch { path: Some(PathMatch::Regex(path.into())), ..HttpMatch::default() }],
        filters: Vec::new(),
        backends: vec![Backend { target: backend, weight: 1, filters: Vec::new() }],
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    };
    let ports = [(80, PortRoutes { http: vec![rule], tcp: Vec::new() })].into();
    Routes { service: key("shop/cart"), consumer: name("shop"), ports }
}

#[test]
fn looks_things_up() {
    let s = mesh().routes(routes("/a", &[("version", "v1")])).build();
    let cart = s.service(&key("shop/cart")).unwrap();
    assert_eq!(cart.endpoints().len(), 2);
    assert_eq!(cart.port_named("admin").unwrap().port, 90);
    assert_eq!(cart.port_named("90").unwrap().port, 90);
    assert!(cart.port_named("none").is_none() && cart.port_named("").is_none() && cart.only_port().is_none());
    assert!(cart.pool_of_all(80).is_some() && cart.pool_of_all(91).is_none());
    assert!(cart.pool(80, &[("version", "v1")].into_iter().collect()).is_some());
    assert!(cart.pool(80, &[("version", "v2")].into_iter().collect()).is_none());
    assert!(cart.routes(&name("shop"), 80).is_some_and(|t| t.has_http()));
    assert!(cart.routes(&name("shop"), 90).is_none() && cart.routes(&name("ops"), 80).is_none());
    assert!(s.service_by_host("cart", &name("shop")).is_some());
    assert!(s.service_by_host("cart.shop.svc.cluster.local:80", &name("ops")).is_some());
    assert!(s.service_by_host("cart", &name("ops")).is_none());
    assert_eq!(s.bundle(&TrustDomain::parse("td").unwrap()).unwrap().authorities.len(), 1);
    assert!(s.bundle(&TrustDomain::parse("other").unwrap()).is_none());
}

#[test]
fn a_mesh_connection_finds_its_workload_by_name_or_by_an_unambiguous_address() {
    let (web, cart) = (uid("shop/web", "web-1"), uid("shop/cart", "cart-1"));
    let one = mesh().build();
    let accepting = |s: &Snapshot, sni: Option<&str>, ip: &str| {
        s.accepting(sni, ip.parse().unwrap()).map(|w| w.workload.uid.clone())
    };
    assert_eq!(accepting(&one, Some(&web.sni()), "10.0.0.1"), Ok(web.clone()));
    assert_eq!(accepting(&one, None, "10.0.0.1"), Ok(web.clone()));
    assert_eq!(accepting(&one, None, "::ffff:10.0.0.1"), Ok(web.clone()));
    assert_eq!(accepting(&one, None, "10.0.0.2"), Err(NoWorkload::Address("10.0.0.2".parse().unwrap())));
    // a wrong name is not rescued by a right address
    assert_eq!(accepting(&one, Some("x"), "10.0.0.1"), Err(NoWorkload::Sni("x".into())));
    let two = mesh().workload(workload("shop/cart", "cart-1")).build();
    assert_eq!(accepting(&two, Some(&cart.sni()), "10.0.0.1"), Ok(cart));
    let ip = "10.0.0.1".parse().unwrap();
    assert_eq!(accepting(&two, None, "10.0.0.1"), Err(NoWorkload::Ambiguous { ip, count: 2 }));
}

#[test]
fn a_change_costs_what_changed() {
    let set = mesh().routes(routes("/a", &[]));
    let before = set.build();
    let same =
        |a: &Snapshot, b: &Snapshot, k: &str| Arc::ptr_eq(a.service(&key(k)).unwrap(), b.service(&key(k)).unwrap());
    let web = uid("shop/web", "web-1");

    let again = set.build_after(Some(&before));
    assert!(same(&before, &again, "shop/cart") && same(&before, &again, "shop/web"));
    assert!(Arc::ptr_eq(before.workload(&web).unwrap(), again.workload(&web).unwrap()));
    assert!(Arc::ptr_eq(before.revocations(), again.revocations()) || before.revocations().is_empty());

    // one endpoint: the other, the routes and the other service stay
    let mut changed = endpoint("shop/cart", "cart-2");
    changed.weight = 7;
    let after = set.clone().endpoint("shop/cart", changed).build_after(Some(&before));
    assert!(same(&before, &after, "shop/web") && !same(&before, &after, "shop/cart"));
    let (old, new) = (before.service(&key("shop/cart")).unwrap(), after.service(&key("shop/cart")).unwrap());
    assert!(Arc::ptr_eq(&old.endpoints()[0], &new.endpoints()[0]));
    assert!(!Arc::ptr_eq(&old.endpoints()[1], &new.endpoints()[1]) && new.endpoints()[1].weight == 7);
    assert!(Arc::ptr_eq(&old.routes[&name("shop")], &new.routes[&name("shop")]));
    assert!(old.same_places(new));

    // routes: the pools stay
    let after = set.clone().routes(routes("/b", &[])).build_after(Some(&before));
    let new = after.service(&key("shop/cart")).unwrap();
    assert!(Arc::ptr_eq(old.pool_of_all(80).unwrap(), new.pool_of_all(80).unwrap()));
    assert!(!Arc::ptr_eq(&old.routes[&name("shop")], &new.routes[&name("shop")]));

    // a route that newly chooses a subset: its pool is there
    let after = set.clone().routes(routes("/a", &[("version", "v1")])).build_after(Some(&before));
    let new = after.service(&key("shop/cart")).unwrap();
    assert_eq!(new.pool(80, &[("version", "v1")].into_iter().collect()).unwrap().members().count(), 2);
    // … also when the routes of another service choose it
    let mut other = routes("/a", &[("version", "v1")]);
    other.service = key("shop/web");
    let by_other = set.clone().routes(other).build_after(Some(&before));
    let new = by_other.service(&key("shop/cart")).unwrap();
    assert!(new.pool(80, &[("version", "v1")].into_iter().collect()).is_some());
    // … and gone again with the route
    let back = set.build_after(Some(&after));
    assert!(back.service(&key("shop/cart")).unwrap().pool(80, &[("version", "v1")].into_iter().collect()).is_none());

    // the inbound: the workload's view is new, and says so
    let mut policy = inbound(&web);
    policy.mtls = crate::fragment::MtlsMode::Permissive;
    let after = set.inbound(policy).build_after(Some(&before));
    let (old, new) = (before.workload(&web).unwrap(), after.workload(&web).unwrap());
    assert!(!old.same_as(new) && old.same_as(old));
    assert_eq!(new.inbound.mtls_mode(80), crate::fragment::MtlsMode::Permissive);
}

#[test]
fn an_equal_fragment_in_another_allocation_is_taken_as_changed_and_gives_the_same() {
    let before = mesh().build();
    let after = mesh().build_after(Some(&before));
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}

fn rejected(set: Set, collection: &Collection, says: &str) {
    let rejections = set.try_build(None).expect_err(says);
    assert!(rejections.iter().any(|r| r.collection == *collection && r.reason.contains(says)), "{rejections:#?}");
}

#[test]
fn a_snapshot_is_closed_or_not_built() {
    let web = uid("shop/web", "web-1");
    let td = TrustDomain::parse("td").unwrap();
    let (cart, web_key) = (key("shop/cart"), key("shop/web"));
    rejected(mesh().without(&Collection::Inbound(web.clone())), &Collection::Inbound(web.clone()), "is missing");
    rejected(mesh().without(&Collection::Workload(web.clone())), &Collection::Inbound(web.clone()), "no workload");
    rejected(mesh().without(&Collection::Bundle(td.clone())), &Collection::Bundle(td.clone()), "shop/web/n1/web-1");
    rejected(
        mesh().without(&Collection::Service(web_key.clone())),
        &Collection::Endpoints(web_key),
        "shop/web is missing",
    );
    let consumer = name("shop");
    rejected(
        Set::new().routes(routes("/a", &[])),
        &Collection::Routes { service: cart.clone(), consumer },
        "shop/cart is missing",
    );
    let mut empty = samples::bundle();
    empty.authorities.clear();
    let c = Collection::Bundle(td);
    rejected(mesh().entry(c.clone(), "", Fragment::Bundle(empty)), &c, "no authorities");
    // nothing at all is closed
    assert_eq!(Set::default().build().workloads().count(), 0);
    // a service without endpoints and without routes is one
    assert!(
        Set::new().service(service("shop/cart", &[(80, "")])).build().service(&cart).unwrap().endpoints().is_empty()
    );
}

#[test]
fn what_cannot_be_honoured_is_rejected_by_name() {
    let cart = key("shop/cart");
    let endpoints = Collection::Endpoints(cart.clone());
    let bad = |change: fn(&mut crate::fragment::Endpoint), says: &str| {
        let mut e = endpoint("shop/cart", "cart-1");
        change(&mut e);
        rejected(mesh().endpoint("shop/cart", e), &endpoints, says);
    };
    bad(|e| e.identities.clear(), "no identity");
    bad(|e| e.mesh = None, "no mesh address");
    bad(|e| e.sni = "".into(), "no server name");
    let mut plain = endpoint("shop/cart", "cart-1");
    (plain.tunnel, plain.mesh, plain.identities) = (Tunnel::None, None, Vec::new());
    assert!(mesh().endpoint("shop/cart", plain).try_build(None).is_ok());

    let table = Collection::Routes { service: cart.clone(), consumer: name("shop") };
    rejected(mesh().routes(routes("(", &[])), &table, "HTTPRoute/shop/r#rule-0: regular expression `(`");
    let twice = endpoint("shop/cart", "cart-1");
    rejected(mesh().entry(endpoints.clone(), "other", Fragment::Endpoint(twice)), &endpoints, "the same endpoint");
    let c = Collection::Service(cart.clone());
    let second = Fragment::Service(Service { key: cart.clone(), ports: Vec::new(), balance: Default::default() });
    rejected(mesh().entry(c.clone(), "second", second), &c, "holds one entry");
    rejected(mesh().entry(c.clone(), "", Fragment::Bundle(samples::bundle())), &c, "another kind");
    rejected(mesh().entry(c.clone(), "", Fragment::Service(service("shop/web", &[]))), &c, "something else");
    rejected(mesh().entry(endpoints.clone(), "x", Fragment::Bundle(samples::bundle())), &endpoints, "another kind");

    let web = uid("shop/web", "web-1");
    let mut twins = workload("shop/web", "web-2");
    twins.sni = workload("shop/web", "web-1").sni;
    rejected(mesh().workload(twins), &Collection::Workload(uid("shop/web", "web-2")), "same server name");
    let mut twice = workload("shop/web", "web-1");
    twice.listens.push(twice.listens[0].clone());
    rejected(mesh().workload(twice), &Collection::Workload(web.clone()), "10.0.0.1:8080");
    let mut policy = inbound(&web);
    policy.policies = crate::authz::tests::inbound("ALLOW from accounts=web").policies;
    rejected(mesh().inbound(policy), &Collection::Inbound(web.clone()), "namespace/name");
    // … and its stand-in is accepted
    let stand_in = crate::fragment::Inbound::refusing(&web, "no");
    assert!(mesh().inbound(stand_in).try_build(None).is_ok());
}

#[test]
fn all_reasons_are_told_at_once() {
    let web = uid("shop/web", "web-1");
    let mut e = endpoint("shop/cart", "cart-1");
    e.identities.clear();
    let set = mesh().endpoint("shop/cart", e).without(&Collection::Inbound(web)).routes(routes("(", &[]));
    let rejections = set.try_build(None).unwrap_err();
    assert_eq!(rejections.len(), 3, "{rejections:#?}");
    let text: Vec<_> = rejections.iter().map(ToString::to_string).collect();
    assert!(text.iter().any(|t| t.starts_with("endpoints of shop/cart entry `shop/cart/n1/cart-1`: ")), "{text:?}");
}

#[test]
fn revocations_are_found() {
    let (id, other) = ("spiffe://td/ns/a/sa/b".parse().unwrap(), "spiffe://td/ns/a/sa/c".parse().unwrap());
    let r = Revocations {
        serials: vec![Arc::from(&b"\x01\x02"[..])],
        ids: vec![id],
        issuer_keys: vec![Arc::from(&[7_u8; 32][..])],
    };
    let id = r.ids[0].clone();
    let set = mesh().entry(Collection::Revocations, "", Fragment::Revocations(r));
    let s = set.build();
    let r = s.revocations();
    assert_eq!(r.revoked(b"\x01\x02", &other, b"k"), Some(Revoked::Serial));
    assert_eq!(r.revoked(b"\x01", &id, b"k"), Some(Revoked::Id));
    assert_eq!(r.revoked(b"\x01", &other, &[7; 32]), Some(Revoked::IssuerKey));
    assert_eq!(r.revoked(b"\x01", &other, b"k"), None);
    assert!(Arc::ptr_eq(r, set.build_after(Some(&s)).revocations()));
}

/// One change of what a proxy was told.
fn change(set: Set, what: u8, which: u8) -> Set {
    let (cart, web) = (key("shop/cart"), uid("shop/web", "web-1"));
    let id = format!("cart-{}", which % 4);
    let remove = |mut set: Set, collection: Collection| {
        set.0.remove(&collection);
        set
    };
    match what {
        0 | 1 => {
            let mut e = endpoint("shop/cart", &id);
            e.weight = u32::from(which / 4);
            e.health = if which.is_multiple_of(3) { weft_model::Health::Warning } else { weft_model::Health::Passing };
            if which.is_multiple_of(2) {
                e.labels = [("version", "v2")].into_iter().collect();
            }
            set.endpoint("shop/cart", e)
        }
        2 => {
            let mut set = set;
            if let Some(entries) = set.0.get_mut(&Collection::Endpoints(cart)) {
                entries.remove(uid("shop/cart", &id).as_str());
            }
            set
        }
        3 => set.routes(routes(["/a", "/b", "("][usize::from(which % 3)], &[("version", "v1")])),
        4 => set.routes(routes("/a", if which.is_multiple_of(2) { &[] } else { &[("version", "v2")] })),
        5 if which.is_multiple_of(2) => remove(set, Collection::Routes { service: cart, consumer: name("shop") }),
        // another service's routes choose a subset of this one
        5 => {
            let mut other = routes("/a", if which % 4 == 1 { &[] } else { &[("version", "v2")] });
            other.service = key("shop/web");
            set.routes(other)
        }
        6 => {
            let mut s =
                service("shop/cart", if which.is_multiple_of(2) { &[(80, "http")] } else { &[(80, ""), (90, "x")] });
            s.balance = [crate::fragment::Balance::Random, crate::fragment::Balance::PeakEwma][usize::from(which % 2)];
            set.service(s)
        }
        7 => {
            let mut policy = inbound(&web);
            policy.default = crate::fragment::DefaultAction::Allow;
            policy.policies =
                crate::authz::tests::inbound(["ALLOW {}", "DENY {}", "ALLOW from accounts=x"][usize::from(which % 3)])
                    .policies;
            set.inbound(policy)
        }
        8 => remove(remove(set, Collection::Inbound(web.clone())), Collection::Workload(web)),
        _ => set.workload(workload("shop/web", "web-1")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// What is kept from before is what would be built anew, rejections included.
    #[test]
    fn building_on_what_was_gives_what_building_anew_gives(changes in prop::collection::vec((0_u8..10, any::<u8>()), 1..25)) {
        let mut set = mesh();
        let mut before = set.build();
        for (what, which) in changes {
            set = change(set, what, which);
            match (set.try_build(Some(&before)), set.try_build(None)) {
                (Ok(on), Ok(anew)) => {
                    prop_assert_eq!(format!("{on:?}"), format!("{anew:?}"));
                    before = on;
                }
                (on, anew) => prop_assert_eq!(on.map(|_| ()), anew.map(|_| ())),
            }
        }
    }
}
