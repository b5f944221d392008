use std::time::Duration;

use weft_identity::{Revocations, recheck};
use weft_model::SpiffeId;

use super::*;
use crate::{Kek, first_start, slots};

pub(crate) const NOW: Wall = Wall::secs(1_800_000_000);

pub(crate) fn mesh() -> (crate::FirstStart, Kek, Signer) {
    let td = TrustDomain::parse("mesh.weft").unwrap();
    let kek = Kek::generate().unwrap();
    let start = first_start(&td, &kek, NOW).unwrap();
    let signer = slots::current_signer(&start.signing, &start.roots, &kek).unwrap();
    (start, kek, signer)
}

pub(crate) fn web(key: &KeyPair) -> Issue {
    Issue {
        id: SpiffeId::parse("spiffe://mesh.weft/ns/shop/sa/web").unwrap(),
        public_key: key.public_key(),
        ttl: template::DEFAULT_TTL,
        dns_names: vec!["web.shop".into(), "web".into()],
    }
}

#[test]
fn sec_01_a_request_becomes_an_svid_that_peers_accept() {
    let (start, kek, signer) = mesh();
    let key = KeyPair::generate().unwrap();
    let public_key = weft_identity::csr::parse_csr(&key.csr().unwrap()).unwrap();
    let issued = signer.issue(&Issue { public_key, ..web(&key) }, NOW).unwrap();
    let svid = key.into_svid(issued.chain.clone()).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://mesh.weft/ns/shop/sa/web");
    assert_eq!(
        (svid.not_before(), svid.not_after()),
        (NOW.minus(Duration::from_secs(300)), NOW.plus(template::DEFAULT_TTL))
    );
    assert_eq!(svid.serial(), &issued.serial);
    assert_eq!(issued.serial.as_bytes().len(), 16);
    assert_eq!(issued.chain.len(), 2, "leaf and signing slot; the root is in the bundle");

    let bundle = start.roots.bundle(NOW).unwrap();
    let peer = recheck(&issued.chain, &bundle, &Revocations::default(), NOW).unwrap();
    assert_eq!(peer.id, *svid.id());
    assert_eq!(peer.authority, slots::root_signer(&start.roots, &kek).unwrap().key_hash());
    assert!(KeyPair::generate().unwrap().into_svid(issued.chain).is_err(), "someone else's key does not fit");
}

#[test]
fn sec_01_roots_and_slots_are_constrained() {
    let (start, kek, signer) = mesh();
    let root = Facts::read(&start.roots.current().unwrap().certificate).unwrap();
    assert_eq!(root.uris, ["spiffe://mesh.weft"]);
    assert_eq!((root.ca, root.path_len), (true, Some(1)));
    assert_eq!(root.not_after, NOW.plus(template::ROOT_TTL));
    assert_eq!((signer.facts.ca, signer.facts.path_len), (true, Some(0)));
    assert_eq!(signer.facts.uris, ["spiffe://mesh.weft"]);
    assert_eq!(signer.facts.not_after, NOW.plus(template::SIGNING_TTL));
    let usage = signer.facts.key_usage.unwrap();
    assert!(usage.cert_sign && !usage.digital_signature);

    // a signing slot cannot make another authority that peers accept
    let root = slots::root_signer(&start.roots, &kek).unwrap();
    let sub = KeyPair::generate().unwrap();
    let t = template::signing_slot(&sub.public_key(), 9, signer.bounds(), random_serial().unwrap(), NOW).unwrap();
    let sub_cert = signer.sign_unchecked(&t).unwrap();
    let rogue =
        Signer::new(signer.trust_domain.clone(), Kind::Signing, sub_cert, signer.certificate.clone(), sub).unwrap();
    let key = KeyPair::generate().unwrap();
    let t = rogue.plan(&web(&key), NOW).unwrap();
    let leaf = rogue.sign_unchecked(&t).unwrap();
    let chain = [leaf, rogue.certificate.clone(), signer.certificate.clone()];
    let e = recheck(&chain, root.root(), &Revocations::default(), NOW).unwrap_err();
    assert_eq!(e.reason(), "path_too_long");
}

#[test]
fn sec_01_lifetimes_end_with_the_signer_and_serials_differ() {
    let (_, _, signer) = mesh();
    let key = KeyPair::generate().unwrap();
    let late = signer.not_after().minus(Duration::from_secs(60));
    let issued = signer.issue(&web(&key), late).unwrap();
    assert_eq!(issued.not_after, signer.not_after());
    let e = signer.issue(&web(&key), signer.not_after()).unwrap_err();
    assert!(matches!(e, IssueError::Template(TemplateError::SignerExpired { .. })));
    let serials: std::collections::BTreeSet<_> = (0..64).map(|_| random_serial().unwrap()).collect();
    assert_eq!(serials.len(), 64);
    assert!(serials.iter().all(|s| s.as_bytes().len() == 16 && s.as_bytes()[0] & 0xc0 == 0x40));
}

#[test]
fn sec_01_a_plan_for_another_slot_is_not_signed() {
    let (_, _, old) = mesh();
    let (_, _, new) = mesh();
    let key = KeyPair::generate().unwrap();
    let planned = old.plan(&web(&key), NOW).unwrap();
    assert_eq!(planned.record("n1").issuer, old.key_hash());
    assert!(matches!(new.sign(&planned), Err(IssueError::OtherSigner { .. })));
}

#[test]
fn sec_01_signers_need_their_own_key_and_root() {
    let (start, kek, signer) = mesh();
    let root = slots::root_signer(&start.roots, &kek).unwrap();
    let (td, cert, root_cert) = (signer.trust_domain.clone(), signer.certificate.clone(), root.certificate.clone());
    let other = KeyPair::generate().unwrap();
    let e = Signer::new(td.clone(), Kind::Signing, cert.clone(), root_cert, other).unwrap_err();
    assert_eq!(e, SignerError::KeyMismatch { kind: Kind::Signing });
    let (foreign, foreign_kek, _) = mesh();
    let foreign_root = slots::root_signer(&foreign.roots, &foreign_kek).unwrap().certificate.clone();
    let e = Signer::new(td, Kind::Signing, cert, foreign_root, signer.key).unwrap_err();
    assert!(matches!(e, SignerError::NotUnderRoot { .. }));
}
