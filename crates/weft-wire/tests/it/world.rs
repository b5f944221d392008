//! A catalog small enough that everything happens to everything, and what a faultless mirror of it would hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use weft_model::{Digest, Health, Labels, Locality, Protocol, Revision, ServiceKey, SpiffeId, Uid};
use weft_sim::seeded::Dice;
use weft_snapshot::{
    fragment::{
        Balance, Collection, DefaultAction, Endpoint, Fragment, Inbound, MtlsMode, Revocations, Service, ServicePort,
        Tunnel,
    },
    snapshot::{Fragments, Rejection},
};
use weft_wire::{
    delta::Change,
    fragment::encode,
    name::{EntryName, collection_name},
};

/// Wire name to bytes.
pub type Entries = BTreeMap<String, Bytes>;
pub type Content = BTreeMap<Collection, Entries>;

pub const SERVICES: u64 = 4;
const ENDPOINTS: u64 = 6;
const WORKLOADS: u64 = 3;
/// An endpoint of this weight, a service that balances at random, an inbound of this mode on port 1: rejected by whoever
/// builds from them.
const POISON_WEIGHT: u32 = 13;

pub fn service_key(n: u64) -> ServiceKey {
    format!("shop/s{n}").parse().unwrap()
}

fn endpoint_uid(service: u64, n: u64) -> Uid {
    Uid::of(&service_key(service), &"node".parse().unwrap(), &format!("e{n}").parse().unwrap())
}

fn workload_uid(n: u64) -> Uid {
    format!("shop/w{n}/node/1").parse().unwrap()
}

pub fn universe() -> Vec<Collection> {
    let mut all = vec![Collection::Revocations];
    for n in 0..SERVICES {
        all.push(Collection::Service(service_key(n)));
        all.push(Collection::Endpoints(service_key(n)));
    }
    all.extend((0..WORKLOADS).map(|n| Collection::Inbound(workload_uid(n))));
    all
}

pub fn endpoint(uid: Uid, weight: u32) -> Fragment {
    Fragment::Endpoint(Endpoint {
        uid,
        mesh: Some("10.0.0.1:15008".parse().unwrap()),
        tunnel: Tunnel::Weft1,
        sni: "w-0123456789abcdef0123456789abcdef.weft.internal".into(),
        identities: vec![SpiffeId::parse("spiffe://mesh.weft/ns/shop/sa/s").unwrap()],
        ports: [(80, "10.0.0.1:8080".parse().unwrap())].into(),
        locality: Locality { region: "r".into(), zone: "z".into() },
        weight,
        health: Health::Passing,
        workload: "s".into(),
        app: "s".into(),
        version: "v1".into(),
        labels: Labels::from_iter([("version", "v1")]),
    })
}

pub fn service(key: ServiceKey, port: u16, balance: Balance) -> Fragment {
    Fragment::Service(Service {
        key,
        ports: vec![ServicePort { name: "http".into(), port, protocol: Protocol::Http }],
        balance,
    })
}

fn inbound(uid: Uid, port: u16, poison: bool) -> Fragment {
    let mode = if poison { MtlsMode::Disable } else { MtlsMode::Strict };
    Fragment::Inbound(Inbound {
        uid,
        mtls: MtlsMode::Permissive,
        port_mtls: [(port, MtlsMode::Strict), (1, mode)].into(),
        mtls_origin: None,
        default: DefaultAction::Allow,
        policies: vec![],
    })
}

pub fn is_poison(fragment: &Fragment) -> bool {
    match fragment {
        Fragment::Endpoint(e) => e.weight == POISON_WEIGHT,
        Fragment::Service(s) => s.balance == Balance::Random,
        Fragment::Inbound(i) => i.port_mtls.get(&1) == Some(&MtlsMode::Disable),
        _ => false,
    }
}

/// What a proxy does with a set: refuses what it cannot use, by name.
pub fn build(fragments: &Fragments) -> Result<usize, Vec<Rejection>> {
    let mut bad = Vec::new();
    for (collection, entries) in fragments {
        for (entry, _) in entries.iter().filter(|(_, f)| is_poison(f)) {
            bad.push(Rejection { collection: collection.clone(), entry: entry.clone(), reason: "poison".into() });
        }
    }
    if bad.is_empty() { Ok(fragments.len()) } else { Err(bad) }
}

/// One change; `poison` in a thousand of them are bad.
pub fn change(dice: &mut Dice, poison: u32) -> Change {
    let n = dice.below(SERVICES);
    let bad = dice.chance(poison);
    match dice.below(12) {
        0 => Change::Drop(Collection::Endpoints(service_key(n))),
        1 => {
            let mut entries = Vec::new();
            for e in 0..ENDPOINTS {
                if dice.chance(500) {
                    let uid = endpoint_uid(n, e);
                    entries.push((Some(uid.clone()), encode(&endpoint(uid, weight(dice, false)))));
                }
            }
            Change::Whole(Collection::Endpoints(service_key(n)), entries)
        }
        2 => Change::Drop(Collection::Service(service_key(n))),
        3 | 4 => {
            let balance = if bad { Balance::Random } else { Balance::PeakEwma };
            put_only(Collection::Service(service_key(n)), &service(service_key(n), port(dice), balance))
        }
        5 => {
            let uid = workload_uid(dice.below(WORKLOADS));
            put_only(Collection::Inbound(uid.clone()), &inbound(uid, port(dice), bad))
        }
        6 => Change::Remove(EntryName::only(Collection::Inbound(workload_uid(dice.below(WORKLOADS))))),
        7 => {
            let serial: Vec<u8> = dice.next_u64().to_be_bytes().to_vec();
            let revoked = Revocations { serials: vec![serial.into()], ..Revocations::default() };
            put_only(Collection::Revocations, &Fragment::Revocations(revoked))
        }
        8 => Change::Remove(endpoint_name(n, dice.below(ENDPOINTS))),
        _ => {
            let e = dice.below(ENDPOINTS);
            // now and then something that nobody can read
            let bytes = match bad && dice.chance(300) {
                true => Bytes::from_static(&[0x62, 0x00]),
                false => encode(&endpoint(endpoint_uid(n, e), weight(dice, bad))),
            };
            Change::Put(endpoint_name(n, e), bytes)
        }
    }
}

/// Something that every subscriber of the first service notices.
pub fn last_change() -> Change {
    put_only(Collection::Service(service_key(0)), &service(service_key(0), 65_535, Balance::LeastRequest))
}

fn put_only(collection: Collection, fragment: &Fragment) -> Change {
    Change::Put(EntryName::only(collection), encode(fragment))
}

fn endpoint_name(service: u64, n: u64) -> EntryName {
    EntryName { collection: Collection::Endpoints(service_key(service)), entry: Some(endpoint_uid(service, n)) }
}

fn weight(dice: &mut Dice, poison: bool) -> u32 {
    match u32::try_from(dice.below(40)).unwrap() {
        _ if poison => POISON_WEIGHT,
        POISON_WEIGHT => 1,
        w => w,
    }
}

fn port(dice: &mut Dice) -> u16 {
    u16::try_from(2 + dice.below(50)).unwrap()
}

/// The plain meaning of a change.
pub fn apply(content: &mut Content, change: &Change) {
    match change {
        Change::Put(name, bytes) => {
            content.entry(name.collection.clone()).or_default().insert(name.to_string(), bytes.clone());
        }
        Change::Remove(name) if name.entry.is_some() => {
            if let Some(entries) = content.get_mut(&name.collection) {
                entries.remove(&name.to_string());
            }
        }
        Change::Remove(EntryName { collection, .. }) | Change::Drop(collection) => {
            content.remove(collection);
        }
        Change::Whole(collection, entries) => {
            let name = |uid: &Option<Uid>| EntryName { collection: collection.clone(), entry: uid.clone() }.to_string();
            let entries = entries.iter().map(|(uid, bytes)| (name(uid), bytes.clone())).collect();
            content.insert(collection.clone(), entries);
        }
    }
}

/// All of it at once, as a server that just started would publish it.
pub fn whole(content: &Content) -> Vec<Change> {
    content
        .iter()
        .map(|(collection, entries)| {
            let uid = |name: &String| name.parse::<EntryName>().unwrap().entry;
            Change::Whole(collection.clone(), entries.iter().map(|(n, b)| (uid(n), b.clone())).collect())
        })
        .collect()
}

/// Counted from scratch.
pub fn digest<'a>(collections: impl Iterator<Item = (&'a Collection, &'a Entries)>) -> Digest {
    collections.fold(Digest::ZERO, |sum, (collection, entries)| {
        let base = Digest::of_named(&collection_name(collection), b"");
        entries.iter().fold(sum.plus(base), |sum, (name, bytes)| sum.plus(Digest::of_named(name, bytes)))
    })
}

/// What was committed when.
#[derive(Default)]
pub struct History(pub Vec<(Revision, Content)>);

impl History {
    pub fn head(&self) -> (Revision, &Content) {
        self.0.last().map(|(r, c)| (*r, c)).unwrap()
    }

    /// The content at a revision; one that was restored away is found as well.
    pub fn at(&self, revision: Revision) -> Option<&Content> {
        self.0.iter().rev().find(|(r, _)| *r == revision).map(|(_, c)| c)
    }
}
