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

mod simulation;
