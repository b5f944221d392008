//! Keys of authorities at rest: sealed under the key-encryption key, each bound to its slot.

use weft_identity::{
    csr::KeyPair,
    seal::{Kek, SealError},
};
use weft_model::TrustDomain;

use crate::journal::Kind;

/// What a slot's sealed key is called, in messages and in the authenticated data. **[format]**
pub fn slot_name(td: &TrustDomain, kind: Kind, number: u64) -> String {
    format!("key of {kind} slot {number} of {td}")
}

pub fn wrap(kek: &Kek, td: &TrustDomain, kind: Kind, number: u64, key: &KeyPair) -> Result<Vec<u8>, SealError> {
    kek.seal(&slot_name(td, kind, number), key.pkcs8())
}

pub fn unwrap(kek: &Kek, td: &TrustDomain, kind: Kind, number: u64, sealed: &[u8]) -> Result<KeyPair, SealError> {
    let what = slot_name(td, kind, number);
    let pkcs8 = kek.open(&what, sealed)?;
    KeyPair::from_pkcs8(&pkcs8).map_err(|_| SealError::Open(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_01_a_sealed_key_opens_in_its_own_slot_only() {
        let td = TrustDomain::parse("mesh.weft").unwrap();
        let (kek, key) = (Kek::generate().unwrap(), KeyPair::generate().unwrap());
        let sealed = wrap(&kek, &td, Kind::Root, 3, &key).unwrap();
        assert_eq!(unwrap(&kek, &td, Kind::Root, 3, &sealed).unwrap().public_key(), key.public_key());
        let e = unwrap(&kek, &td, Kind::Root, 4, &sealed).unwrap_err();
        assert!(e.to_string().starts_with("sealed key of root slot 4 of mesh.weft does not open"), "{e}");
        assert!(unwrap(&kek, &td, Kind::Signing, 3, &sealed).is_err());
        let other = TrustDomain::parse("other.weft").unwrap();
        assert!(unwrap(&kek, &other, Kind::Root, 3, &sealed).is_err());
        assert!(unwrap(&Kek::generate().unwrap(), &td, Kind::Root, 3, &sealed).is_err());
    }
}
