use proptest::prelude::*;

use super::*;

#[test]
fn sec_01_a_request_contributes_its_public_key_only() {
    let key = KeyPair::generate().unwrap();
    let csr = key.csr().unwrap();
    let public = parse_csr(&csr).unwrap();
    assert_eq!(public, key.public_key());
    assert_eq!(PublicKey::from_spki(public.spki()).unwrap(), public);
    assert_eq!(KeyPair::from_pkcs8(key.pkcs8()).unwrap().public_key(), public);
    assert_eq!(format!("{key:?}"), format!("KeyPair({})", public.hash()));
    // a request full of wishes: they are not even representable in the result
    let mut wishes = CertificateParams::new(["admin.example".to_owned()]).unwrap();
    wishes.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = wishes.serialize_request(key.signer()).unwrap();
    assert_eq!(parse_csr(csr.der()).unwrap(), public);
}

#[test]
fn sec_01_other_keys_and_broken_proofs_are_refused() {
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = CertificateParams::default().serialize_request(&p384).unwrap();
    assert_eq!(parse_csr(csr.der()).unwrap_err(), CsrError::Kind);
    // one key's request signed by another: swap the keys, which are equally long
    let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let csr = mine.csr().unwrap();
    let (a, b) = (mine.public_key(), theirs.public_key());
    let at = csr.windows(a.spki().len()).position(|w| w == a.spki()).unwrap();
    let mut forged = csr;
    forged[at..at + b.spki().len()].copy_from_slice(b.spki());
    assert_eq!(parse_csr(&forged).unwrap_err(), CsrError::Signature);
    assert_eq!(parse_csr(&[0; MAX_CSR + 1]).unwrap_err(), CsrError::TooLong(MAX_CSR + 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The envelope around the signed part is not itself signed; a request that still passes yields the same key.
    #[test]
    fn sec_01_mutated_requests_never_yield_another_key(at: prop::sample::Index, flip in 1_u8.., cut: bool) {
        static KEY: std::sync::OnceLock<(KeyPair, Vec<u8>)> = std::sync::OnceLock::new();
        let (key, csr) = KEY.get_or_init(|| {
            let key = KeyPair::generate().unwrap();
            let csr = key.csr().unwrap();
            (key, csr)
        });
        let mut csr = csr.clone();
        let at = at.index(csr.len());
        csr[at] ^= flip;
        if cut {
            csr.truncate(at);
        }
        if let Ok(public) = parse_csr(&csr) {
            prop_assert!(!cut);
            prop_assert_eq!(public, key.public_key());
        }
    }

    #[test]
    fn sec_01_garbage_requests_never_panic(bytes: Vec<u8>) {
        prop_assert!(parse_csr(&bytes).is_err());
        prop_assert!(PublicKey::from_spki(&bytes).is_err());
    }
}
