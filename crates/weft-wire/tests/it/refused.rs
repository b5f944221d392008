//! Rejected entries and the real snapshot: what was never applied refuses, and the set stays closed.

use std::sync::Arc;

use bytes::Bytes;
use weft_model::{Mono, Revision, TrustDomain, Uid};
use weft_snapshot::{
    fragment::{Balance, Bundle, Collection, DefaultAction, Fragment, Inbound, MtlsMode, PortRoutes, Routes, Workload},
    snapshot::Snapshot,
};
use weft_wire::{
    delta::{Change, Client, Collections, Event, Limits, Session},
    fragment::encode,
    name::{EntryName, collection_name},
};

use crate::world;

fn uid() -> Uid {
    Uid::parse("shop/web/node/1").unwrap()
}

fn collections() -> Vec<Collection> {
    let key = world::service_key(0);
    vec![
        Collection::Workload(uid()),
        Collection::Inbound(uid()),
        Collection::Bundle(TrustDomain::parse("mesh.weft").unwrap()),
        Collection::Service(key.clone()),
        Collection::Endpoints(key.clone()),
        Collection::Routes { service: key, consumer: "shop".parse().unwrap() },
        Collection::Revocations,
    ]
}

fn good(collection: &Collection) -> Fragment {
    match collection {
        Collection::Workload(uid) => Fragment::Workload(Workload {
            uid: uid.clone(),
            service: "shop/web".parse().unwrap(),
            identity: "spiffe://mesh.weft/ns/shop/sa/web".parse().unwrap(),
            sni: uid.sni().into(),
            listens: vec![],
            node: "node".parse().unwrap(),
            locality: Default::default(),
            workload: "web".into(),
            app: "web".into(),
            version: "v1".into(),
            labels: Default::default(),
        }),
        Collection::Inbound(uid) => Fragment::Inbound(Inbound {
            uid: uid.clone(),
            mtls: MtlsMode::Permissive,
            port_mtls: Default::default(),
            mtls_origin: None,
            default: DefaultAction::Allow,
            policies: vec![],
        }),
        Collection::Bundle(td) => {
            Fragment::Bundle(Bundle { trust_domain: td.clone(), authorities: vec![Arc::from(&b"der"[..])] })
        }
        Collection::Service(key) => world::service(key.clone(), 80, Balance::PeakEwma),
        Collection::Endpoints(_) => world::endpoint(Uid::parse("shop/s0/node/1").unwrap(), 1),
        Collection::Routes { service, consumer } => Fragment::Routes(Routes {
            service: service.clone(),
            consumer: consumer.clone(),
            ports: [(80, PortRoutes::default())].into(),
        }),
        Collection::Revocations => Fragment::Revocations(Default::default()),
    }
}

fn put(collection: &Collection, bytes: Option<Bytes>) -> Change {
    let entry = matches!(collection, Collection::Endpoints(_)).then(|| Uid::parse("shop/s0/node/1").unwrap());
    let bytes = bytes.unwrap_or_else(|| encode(&good(collection)));
    Change::Put(EntryName { collection: collection.clone(), entry }, bytes)
}

/// What no version of ours can read.
fn garbage() -> Option<Bytes> {
    Some(Bytes::from_static(&[0x62, 0x00]))
}

/// The last snapshot that a proxy builds, and what it refuses, when these are published one after the other.
fn outcome(revisions: Vec<Vec<Change>>) -> (Option<Snapshot>, Client) {
    let mut all = Collections::new();
    let mut client = Client::new("test");
    client.subscribe(collections());
    let mut session = Session::new(1, Limits::default());
    session.on_request(Mono::ZERO, client.connect()).unwrap();
    let (mut now, mut last) = (Mono::ZERO, None);
    for (n, changes) in revisions.into_iter().enumerate() {
        all.apply(Revision::new(1, n as u64 + 1), changes).unwrap();
        for _ in 0..20 {
            let polled = session.poll(now, &all, &|_| true);
            now = polled.wake_at.unwrap_or(now);
            for response in polled.send {
                let build = |set: &weft_wire::delta::Set<'_>| {
                    Snapshot::build(last.as_ref(), set.commit.revision, set.commit.set_digest, set.fragments)
                };
                let (answer, event) = client.on_response(response, build).unwrap();
                session.on_request(now, answer).unwrap();
                if let Event::Applied { value, .. } = event {
                    last = Some(value);
                }
            }
        }
    }
    (last, client)
}

#[test]
fn any_fragment_may_be_unreadable_from_the_start() {
    for bad in collections() {
        let changes = collections().iter().map(|c| put(c, garbage().filter(|_| *c == bad))).collect();
        let (snapshot, client) = outcome(vec![changes]);
        // without its trust anchors, or without what was revoked, a proxy serves nobody
        if matches!(bad, Collection::Bundle(_) | Collection::Revocations) {
            assert!(snapshot.is_none(), "{bad}");
            continue;
        }
        let snapshot = snapshot.unwrap_or_else(|| panic!("no snapshot though only {bad} is bad"));
        assert_eq!(client.refused().len(), 1, "{bad}");
        assert!(client.refused().keys().all(|name| name.starts_with(&collection_name(&bad))));
        let service = snapshot.service(&world::service_key(0)).unwrap();
        match &bad {
            Collection::Workload(uid) => assert!(snapshot.workload(uid).is_none()),
            Collection::Service(_) => assert!(service.service.ports.is_empty()),
            Collection::Endpoints(_) => assert!(service.endpoints().is_empty()),
            Collection::Routes { .. } => {
                let entries = client.fragments().get(&bad).unwrap();
                let text = format!("{entries:?}");
                assert!(text.contains("Unresolved") && text.contains("rejected"), "{text}");
            }
            _ => {}
        }
    }
}

#[test]
fn rejected_authorization_denies_and_never_stays_at_its_older_version() {
    let inbound = Collection::Inbound(uid());
    let first = collections().iter().map(|c| put(c, None)).collect();
    let (snapshot, client) = outcome(vec![first, vec![put(&inbound, garbage())]]);
    assert_eq!(snapshot.unwrap().revision, Revision::new(1, 2));
    let entries = client.fragments().get(&inbound).unwrap();
    let Fragment::Inbound(now) = &**entries.values().next().unwrap() else { panic!("no inbound") };
    assert_eq!((now.default, now.mtls), (DefaultAction::Deny, MtlsMode::Strict));
    let rule = &now.policies[0].rules[0];
    assert!(rule.unresolved.as_ref().unwrap().contains("kind that this version does not know"), "{rule:?}");
    // mended: the operator's word counts again
    let first = collections().iter().map(|c| put(c, None)).collect();
    let (_, client) = outcome(vec![first, vec![put(&inbound, garbage())], vec![put(&inbound, None)]]);
    assert!(client.refused().is_empty());
    assert_eq!(**client.fragments()[&inbound].values().next().unwrap(), good(&inbound));
}

#[test]
fn rejected_routes_refuse_on_ports_that_come_later_too() {
    let routes = Collection::Routes { service: world::service_key(0), consumer: "shop".parse().unwrap() };
    let first = collections().iter().map(|c| put(c, garbage().filter(|_| *c == routes))).collect();
    let service = world::service(world::service_key(0), 81, Balance::PeakEwma);
    let later = put(&Collection::Service(world::service_key(0)), Some(encode(&service)));
    let (_, client) = outcome(vec![first, vec![later]]);
    let entries = client.fragments().get(&routes).unwrap();
    let Fragment::Routes(stub) = &**entries.values().next().unwrap() else { panic!("no routes") };
    assert_eq!(stub.ports.keys().collect::<Vec<_>>(), [&81]);
}
