use std::time::Duration;

use weft_identity::{Serial, csr::KeyPair};
use weft_model::SpiffeId;

use super::*;
use crate::{
    issue::tests::{NOW, mesh, web},
    slots, template,
};

/// Signs `signed` and checks it against `decided`: what a defect between the two would look like.
fn differs(change: impl FnOnce(&mut Template)) -> Violation {
    let (_, _, signer) = mesh();
    let decided = signer.plan(&web(&KeyPair::generate().unwrap()), NOW).unwrap();
    let mut signed = decided.clone();
    change(&mut signed);
    let cert = signer.sign_unchecked(&signed).unwrap();
    check(&decided, &cert, &signer).unwrap_err()
}

#[test]
fn sec_01_every_field_that_differs_is_caught_after_signing() {
    let (_, _, signer) = mesh();
    let good = signer.plan(&web(&KeyPair::generate().unwrap()), NOW).unwrap();
    check(&good, &signer.sign_unchecked(&good).unwrap(), &signer).unwrap();

    let is = |v: Violation, what| assert_eq!(v, Violation::Differs(what));
    let admin = SpiffeId::parse("spiffe://mesh.weft/ns/shop/sa/admin").unwrap();
    is(differs(|t| t.id = admin), "subject alternative name");
    is(differs(|t| t.form = Form::Leaf { dns_names: vec![] }), "subject alternative name");
    is(differs(|t| t.public_key = KeyPair::generate().unwrap().public_key()), "public key");
    is(differs(|t| t.serial = Serial::new(&[1; 16])), "serial number");
    is(differs(|t| t.not_after = t.not_after.plus(Duration::from_secs(1))), "validity");
    is(differs(|t| t.not_before = t.not_before.minus(Duration::from_secs(1))), "validity");
    let ca = Form::Authority { kind: crate::Kind::Signing, number: 1, path_len: 0 };
    let no_names = differs(|t| t.form = ca.clone());
    assert!(matches!(no_names, Violation::Differs(_)));
}

#[test]
fn sec_01_a_wrong_signer_and_an_overlong_life_are_caught() {
    let (_, _, ours) = mesh();
    let (_, _, theirs) = mesh();
    let t = ours.plan(&web(&KeyPair::generate().unwrap()), NOW).unwrap();
    let cert = theirs.sign_unchecked(&t).unwrap();
    assert_eq!(check(&t, &cert, &ours).unwrap_err(), Violation::Differs("issuer"));
    let mut long = t.clone();
    long.not_after = ours.not_after().plus(Duration::from_secs(1));
    let cert = ours.sign_unchecked(&long).unwrap();
    assert!(matches!(check(&long, &cert, &ours), Err(Violation::Differs(what)) if what.contains("outlives")));
    let mut late = t;
    late.decided = late.not_after.plus(Duration::from_secs(1));
    let cert = ours.sign_unchecked(&late).unwrap();
    assert!(matches!(check(&late, &cert, &ours), Err(Violation::Peer(_))));
}

#[test]
fn sec_01_a_flipped_signature_and_garbage_are_caught() {
    let (start, kek, signer) = mesh();
    let t = signer.plan(&web(&KeyPair::generate().unwrap()), NOW).unwrap();
    let mut der = signer.sign_unchecked(&t).unwrap().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert_eq!(check(&t, &der.into(), &signer).unwrap_err(), Violation::Signature);
    assert!(matches!(check(&t, &vec![1, 2, 3].into(), &signer), Err(Violation::Unreadable(_))));

    let root = slots::root_signer(&start.roots, &kek).unwrap();
    let key = KeyPair::generate().unwrap();
    let t = template::root(&key.public_key(), 2, root.trust_domain(), Serial::new(&[7; 16]), NOW).unwrap();
    check_root(&t, &crate::issue::self_sign(&t, &key).unwrap()).unwrap();
    let by_another = crate::issue::self_sign(&t, &KeyPair::generate().unwrap()).unwrap();
    assert_eq!(check_root(&t, &by_another).unwrap_err(), Violation::Differs("public key"));
}

#[test]
fn sec_01_an_extension_nobody_decided_is_caught() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut p = rcgen::CertificateParams::default();
    p.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    let cert = p.self_signed(&key).unwrap();
    assert_eq!(extensions(cert.der()).unwrap_err(), Violation::Extension("1.2.3.4".into()));
}
