use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

use super::*;
use crate::testing::{HOUR, NOW, TestCa, dates, id, uri};

const WEB: &str = "spiffe://mesh.weft/ns/shop/sa/web";

fn judge(ca: &TestCa, chain: &[CertificateDer<'_>]) -> Result<PeerInfo, VerifyError> {
    recheck(chain, &ca.bundle(), &Revocations::default(), NOW)
}

fn judge_leaf(change: impl FnOnce(&mut CertificateParams)) -> VerifyError {
    let ca = TestCa::new("mesh.weft");
    judge(&ca, &ca.leaf(WEB, change).0).unwrap_err()
}

#[test]
fn sec_07_a_good_chain_yields_its_one_spiffe_id() {
    let root = TestCa::new("mesh.weft");
    let ca = root.intermediate(BasicConstraints::Constrained(0), |p| dates(p, NOW.minus(HOUR), NOW.plus(HOUR * 20)));
    let (chain, _) = ca.leaf(WEB, |_| ());
    let info = judge(&root, &chain).unwrap();
    assert_eq!(info.id, id(WEB));
    assert_eq!(info.serial, Serial::new(&[0x42; 16]));
    assert_eq!(info.not_after, NOW.plus(HOUR * 20), "the first certificate of the chain to expire decides");
    assert_eq!(info.authority, root.bundle().authorities()[0].key);
    assert_eq!(principal(&chain).unwrap(), id(WEB));
}

#[test]
fn sec_07_every_rule_of_an_svid_is_refused_by_name() {
    let check = |change: &dyn Fn(&mut CertificateParams), reason: &str, text: &str| {
        let e = judge_leaf(change);
        let chain = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source());
        let all = chain.map(|e| e.to_string()).collect::<Vec<_>>().join(": ");
        assert_eq!(e.reason(), reason, "{all}");
        assert!(all.contains(text), "{all}");
    };
    check(&|p| p.subject_alt_names.push(uri("spiffe://mesh.weft/ns/shop/sa/admin")), "bad_certificate", "has 2 URI");
    check(&|p| p.subject_alt_names.clear(), "no_spiffe_id", "has no SPIFFE ID");
    check(&|p| p.subject_alt_names = vec![uri("https://mesh.weft/x")], "bad_certificate", "is no SPIFFE ID");
    check(&|p| p.subject_alt_names = vec![uri("spiffe://mesh.weft")], "not_an_svid", "names an authority");
    check(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "not_an_svid", "CA:TRUE");
    check(&|p| p.key_usages.clear(), "not_an_svid", "no key usage");
    check(
        &|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement],
        "not_an_svid",
        "lacks the key usage digitalSignature",
    );
    check(&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign), "not_an_svid", "may sign certificates");
    check(&|p| p.extended_key_usages.clear(), "not_an_svid", "no extended key usage");
    let server_only = vec![ExtendedKeyUsagePurpose::ServerAuth];
    check(
        &|p| p.extended_key_usages.clone_from(&server_only),
        "not_an_svid",
        "lacks the extended key usage clientAuth",
    );
    let other = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::ClientAuth];
    check(&|p| p.extended_key_usages.clone_from(&other), "not_an_svid", "lacks the extended key usage serverAuth");
}

#[test]
fn sec_07_another_trust_domain_and_another_root_are_refused() {
    let (ours, theirs) = (TestCa::new("mesh.weft"), TestCa::new("other.weft"));
    let foreign = theirs.leaf("spiffe://other.weft/ns/shop/sa/web", |_| ()).0;
    let e = judge(&ours, &foreign).unwrap_err();
    assert_eq!(e.to_string(), "spiffe://other.weft/ns/shop/sa/web is of another trust domain than mesh.weft");
    // a foreign root that claims our names
    let forged = theirs.leaf(WEB, |_| ()).0;
    let e = judge(&ours, &forged).unwrap_err();
    assert_eq!(e.reason(), "unknown_authority");
    assert!(e.to_string().contains(WEB));
    assert_eq!(judge(&ours, &[]).unwrap_err(), VerifyError::NoCertificate);
}

#[test]
fn sec_07_expiry_says_whose_and_when() {
    let e = judge_leaf(|p| dates(p, NOW.minus(HOUR * 2), NOW.minus(HOUR)));
    let want = format!("certificate of {WEB} expired at {}, it is now {NOW}", NOW.minus(HOUR));
    assert!(e.to_string().starts_with(&want), "{e}");
    let e = judge_leaf(|p| dates(p, NOW.plus(HOUR), NOW.plus(HOUR * 2)));
    assert_eq!(e.reason(), "not_yet_valid");

    let root = TestCa::new("mesh.weft");
    let old = root.intermediate(BasicConstraints::Constrained(0), |p| dates(p, NOW.minus(HOUR * 9), NOW.minus(HOUR)));
    let e = judge(&root, &old.leaf(WEB, |_| ()).0).unwrap_err();
    assert!(e.to_string().contains("an intermediate above"), "{e}");

    let root = TestCa::with("mesh.weft", |p| dates(p, NOW.minus(HOUR * 9), NOW.minus(HOUR)));
    let e = judge(&root, &root.leaf(WEB, |_| ()).0).unwrap_err();
    assert!(e.to_string().starts_with("certificate of authority `CN=root of mesh.weft` expired at"), "{e}");
}

#[test]
fn sec_07_path_length_is_kept() {
    let root = TestCa::new("mesh.weft");
    let one = root.intermediate(BasicConstraints::Constrained(0), |_| ());
    assert!(judge(&root, &one.leaf(WEB, |_| ()).0).is_ok());
    let two = one.intermediate(BasicConstraints::Constrained(0), |_| ());
    let e = judge(&root, &two.leaf(WEB, |_| ()).0).unwrap_err();
    assert_eq!(e, VerifyError::PathTooLong { id: id(WEB) });
    let many = vec![root.der.clone(); MAX_CHAIN + 1];
    assert_eq!(judge(&root, &many).unwrap_err(), VerifyError::ChainTooLong);
}

#[test]
fn sec_06_each_kind_of_revocation_hits() {
    let root = TestCa::new("mesh.weft");
    let serial = rcgen::SerialNumber::from_slice(&[0x77; 16]);
    let ca = root.intermediate(BasicConstraints::Constrained(0), |p| p.serial_number = Some(serial));
    let (chain, _) = ca.leaf(WEB, |_| ());
    let judge = |r: Revocations| recheck(&chain, &root.bundle(), &r, NOW);
    let check = |r, by| assert_eq!(judge(r).unwrap_err(), VerifyError::Revoked { id: id(WEB), by });

    assert!(judge(Revocations { ids: [id("spiffe://mesh.weft/ns/shop/sa/api")].into(), ..Default::default() }).is_ok());
    check(Revocations { ids: [id(WEB)].into(), ..Default::default() }, RevokedBy::Id);
    for serial in [[0x42; 16], [0x77; 16]].map(|s| Serial::new(&s)) {
        check(Revocations { serials: [serial.clone()].into(), ..Default::default() }, RevokedBy::Serial(serial));
    }
    for der in [&ca.der, &root.der] {
        let key = Facts::read(der).unwrap().key;
        check(Revocations { issuer_keys: [key].into(), ..Default::default() }, RevokedBy::IssuerKey(key));
    }
}

#[test]
fn sec_07_an_unexpected_identity_says_got_and_wanted() {
    let ca = TestCa::new("mesh.weft");
    let info = judge(&ca, &ca.leaf(WEB, |_| ()).0).unwrap();
    let api = id("spiffe://mesh.weft/ns/shop/sa/api");
    assert!(expect(info.clone(), &[api.clone(), id(WEB)]).is_ok());
    let e = expect(info.clone(), &[api]).unwrap_err();
    assert_eq!(e.to_string(), format!("peer is {WEB}, expected spiffe://mesh.weft/ns/shop/sa/api"));
    let e = expect(info, &[]).unwrap_err();
    assert!(e.to_string().contains("nobody"), "{e}");
}

#[test]
fn sec_07_bundles_hold_authorities_of_their_domain_only() {
    let (a, b) = (TestCa::new("mesh.weft"), TestCa::new("mesh.weft"));
    let td = a.td.clone();
    let both = |x: &TestCa, y: &TestCa| Bundle::new(td.clone(), vec![x.der.clone(), y.der.clone()]).unwrap();
    assert_eq!(both(&a, &b).digest(), both(&b, &a).digest(), "order does not matter");
    assert_ne!(both(&a, &b).digest(), a.bundle().digest());
    assert_eq!(both(&a, &a), a.bundle());
    assert_eq!(Bundle::from_pem(td.clone(), both(&a, &b).to_pem().as_bytes()).unwrap(), both(&a, &b));
    // either root serves during a rotation
    for ca in [&a, &b] {
        assert!(recheck(&ca.leaf(WEB, |_| ()).0, &both(&a, &b), &Revocations::default(), NOW).is_ok());
    }
    assert!(matches!(Bundle::new(td.clone(), vec![]), Err(crate::BundleError::Empty(_))));
    let leaf = a.leaf(WEB, |_| ()).0.remove(0);
    assert!(matches!(Bundle::new(td.clone(), vec![leaf]), Err(crate::BundleError::NotAuthority { .. })));
    let foreign = TestCa::new("other.weft").der;
    assert!(matches!(Bundle::new(td, vec![foreign]), Err(crate::BundleError::Foreign { .. })));
}

fn sample() -> &'static (TestCa, Vec<CertificateDer<'static>>) {
    static SAMPLE: std::sync::OnceLock<(TestCa, Vec<CertificateDer<'static>>)> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| {
        let root = TestCa::new("mesh.weft");
        let chain = root.intermediate(BasicConstraints::Constrained(0), |_| ()).leaf(WEB, |_| ()).0;
        (root, chain)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens to the bytes: an error, never a panic, never an identity.
    #[test]
    fn sec_07_mutated_chains_never_verify_and_never_panic(
        which in 0_usize..2,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (root, chain) = sample();
        let mut der = chain[which].to_vec();
        for (at, byte) in &edits {
            let at = at.index(der.len());
            der[at] = *byte;
        }
        if let Some(cut) = cut {
            der.truncate(cut.index(der.len()));
        }
        prop_assume!(der != chain[which].as_ref());
        let mut chain = chain.clone();
        chain[which] = der.into();
        let _ = principal(&chain);
        prop_assert!(judge(root, &chain).is_err());
    }

    #[test]
    fn sec_07_garbage_never_panics(bytes: Vec<u8>) {
        let (root, chain) = sample();
        prop_assert!(judge(root, &[bytes.clone().into()]).is_err());
        prop_assert!(judge(root, &[chain[0].clone(), bytes.into()]).is_err());
    }
}
