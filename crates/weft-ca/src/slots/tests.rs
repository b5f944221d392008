use weft_identity::{Revocations, recheck};
use weft_model::SpiffeId;

use super::*;
use crate::{
    issue::tests::{NOW, mesh, web},
    template::{DEFAULT_TTL, Issue, ROOT_TTL, SIGNING_TTL},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn sec_01_thresholds_are_shares_of_a_life_with_a_cap() {
    let end = NOW.plus(SIGNING_TTL);
    assert!(!should_prepare(NOW.plus(HOUR * 83), NOW, end));
    assert!(should_prepare(NOW.plus(HOUR * 84), NOW, end));
    assert!(!should_activate(NOW.plus(HOUR * 111), NOW, end));
    assert!(should_activate(NOW.plus(HOUR * 112), NOW, end));
    let end = NOW.plus(ROOT_TTL);
    assert!(!should_prepare(end.minus(DAY * 366), NOW, end) && should_prepare(end.minus(DAY * 365), NOW, end));
    assert!(!should_activate(end.minus(DAY * 181), NOW, end) && should_activate(end.minus(DAY * 180), NOW, end));
}

#[test]
fn sec_01_first_start_makes_a_root_and_a_signing_slot() {
    let (start, kek, signer) = mesh();
    assert_eq!(plan(NOW, &start.roots), Step::Nothing);
    assert_eq!(plan(NOW, &start.signing), Step::Nothing);
    assert_eq!(start.roots.current().unwrap().number, 1);
    assert_eq!(signer.root(), &start.roots.bundle(NOW).unwrap());
    // the key on disk is not the key
    let sealed = &start.roots.current().unwrap().sealed_key;
    assert!(KeyPair::from_pkcs8(sealed).is_err());
    let e = root_signer(&start.roots, &Kek::generate().unwrap()).unwrap_err();
    assert!(matches!(e, SlotError::Seal { kind: Kind::Root, .. }));
    assert_eq!(e.to_string(), "the key of the root slot cannot be sealed or opened");
    let empty = Journal::new(start.roots.trust_domain().clone(), Kind::Root);
    assert!(matches!(root_signer(&empty, &kek), Err(SlotError::NoCurrent(Kind::Root))));
    let foreign = mesh().0;
    assert!(matches!(current_signer(&start.signing, &foreign.roots, &kek), Err(SlotError::NoRoot { .. })));
}

#[test]
fn sec_05_a_prepared_root_is_trusted_before_it_signs() {
    let (start, kek, signer) = mesh();
    let prepared = prepare_root(&start.roots, &kek, NOW).unwrap();
    assert_eq!(prepared.bundle(NOW).unwrap().authorities().len(), 2);
    assert_eq!(root_signer(&prepared, &kek).unwrap().key_hash(), root_signer(&start.roots, &kek).unwrap().key_hash());
    let active = activate(&prepared, NOW).unwrap();
    assert_ne!(root_signer(&active, &kek).unwrap().key_hash(), root_signer(&start.roots, &kek).unwrap().key_hash());
    // the old root's slot still opens and what it signs is still believed
    let old_slot = current_signer(&start.signing, &active, &kek).unwrap();
    let issued = old_slot.issue(&web(&KeyPair::generate().unwrap()), NOW).unwrap();
    assert_eq!(old_slot.key_hash(), signer.key_hash());
    recheck(&issued.chain, &active.bundle(NOW).unwrap(), &Revocations::default(), NOW).unwrap();
}

/// SplitMix64.
fn roll(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}

/// A server that crashes, loses commits and cannot always reach the root. What is stored are bytes; what is in memory is
/// opened from them. Invariants: there is always a signer; it never signs before its journal entry is stored; no leaf is
/// shorter than asked or outlives its slot; unexpired leaves verify against the bundle of every later moment.
fn simulate(seed: u64, days: u32) -> Vec<(i64, u64)> {
    let mut dice = seed;
    let (start, kek, mut signer) = mesh();
    let roots = start.roots;
    let mut stored = start.signing.encode();
    let mut now = NOW;
    let end = NOW.plus(DAY * days);
    let mut live: Vec<(Wall, Vec<rustls_pki_types::CertificateDer<'static>>)> = Vec::new();
    let mut trace = Vec::new();
    let mut root_away_until = NOW;
    while now < end {
        now = now.plus(Duration::from_secs(600 + roll(&mut dice) % (6 * 3600)));
        if now > root_away_until && roll(&mut dice).is_multiple_of(40) {
            root_away_until = now.plus(HOUR * u32::try_from(roll(&mut dice) % 24).unwrap());
        }
        let journal = Journal::decode(&stored).unwrap();
        let planned = match plan(now, &journal) {
            Step::Nothing => None,
            Step::Prepare if now < root_away_until => None,
            Step::Prepare => {
                let root = root_signer(&roots, &kek).unwrap();
                Some(prepare_signing(&journal, &root, &kek, now).unwrap())
            }
            Step::Activate => Some(activate(&journal, now).unwrap()),
        };
        // one commit in four is lost, and with it the step: nothing in memory may have changed
        if let Some(next) = planned.filter(|_| !roll(&mut dice).is_multiple_of(4)) {
            stored = next.encode();
            let before = signer.key_hash();
            signer = current_signer(&next, &roots, &kek).unwrap();
            if signer.key_hash() != before {
                trace.push((now.as_secs(), next.current().unwrap().number));
            }
        }
        if roll(&mut dice).is_multiple_of(10) {
            signer = current_signer(&Journal::decode(&stored).unwrap(), &roots, &kek).unwrap();
        }
        let journal = Journal::decode(&stored).unwrap();
        let current = journal.current().expect("there is always a signer");
        assert_eq!(current.certificate, *signer.certificate(), "seed {seed}: only the journalled slot signs");
        assert!(current.not_after > now, "seed {seed}: the signing slot expired at {now}");
        let id = SpiffeId::workload(signer.trust_domain(), "sim", "w").unwrap();
        let issue =
            Issue { id, public_key: KeyPair::generate().unwrap().public_key(), ttl: DEFAULT_TTL, dns_names: vec![] };
        let issued = signer.issue(&issue, now).unwrap();
        assert!(issued.not_after <= signer.not_after());
        assert!(
            issued.not_after >= now.plus(DEFAULT_TTL).minus(Duration::from_secs(1)),
            "seed {seed}: cut short at {now}"
        );
        live.push((issued.not_after, issued.chain));
        live.retain(|(until, _)| *until > now);
        let bundle = roots.bundle(now).unwrap();
        let one = usize::try_from(roll(&mut dice)).unwrap() % live.len();
        for (_, chain) in [&live[one], &live[live.len() - 1]] {
            recheck(chain, &bundle, &Revocations::default(), now).unwrap();
        }
    }
    trace
}

#[test]
fn sec_01_slots_follow_each_other_through_crashes_and_lost_commits() {
    for seed in 1..=4 {
        let trace = simulate(seed, 40);
        assert!(trace.len() >= 6, "seed {seed}: {trace:?}");
        assert!(trace.is_sorted_by(|a, b| a.1 < b.1), "seed {seed}: numbers only rise");
    }
    assert_eq!(simulate(3, 15), simulate(3, 15), "same seed, same trace");
}
