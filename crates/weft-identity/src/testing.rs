//! Certificates for the tests of this crate, right and wrong ones.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_model::{SpiffeId, TrustDomain, Wall};

use crate::{Bundle, Revocations, Svid, Trust, WallClock};

/// The hour at which everything issued here is valid.
pub(crate) const NOW: Wall = Wall::secs(1_800_000_000);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct TestCa {
    pub(crate) td: TrustDomain,
    pub(crate) der: CertificateDer<'static>,
    /// Between this authority and the root, lowest first, itself included unless it is the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    params: CertificateParams,
    key: KeyPair,
}

pub(crate) fn id(s: &str) -> SpiffeId {
    SpiffeId::parse(s).unwrap()
}

pub(crate) fn clock() -> WallClock {
    WallClock::new(|| NOW)
}

pub(crate) fn dates(p: &mut CertificateParams, from: Wall, to: Wall) {
    let at = |w: Wall| date_time_ymd(1970, 1, 1) + w.since(Wall::EPOCH);
    (p.not_before, p.not_after) = (at(from), at(to));
}

pub(crate) fn uri(s: &str) -> SanType {
    SanType::URI(s.try_into().unwrap())
}

fn ca_params(td: &TrustDomain, name: &str, depth: BasicConstraints) -> CertificateParams {
    let mut p = CertificateParams::default();
    p.distinguished_name = DistinguishedName::new();
    p.distinguished_name.push(DnType::CommonName, name);
    p.is_ca = IsCa::Ca(depth);
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    p.subject_alt_names = vec![uri(SpiffeId::authority(td).as_str())];
    dates(&mut p, NOW.minus(HOUR * 100), NOW.plus(HOUR * 1000));
    p
}

impl TestCa {
    pub(crate) fn new(td: &str) -> Self {
        Self::with(td, |_| ())
    }

    pub(crate) fn with(td: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let td = TrustDomain::parse(td).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(&td, &format!("root of {td}"), BasicConstraints::Unconstrained);
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { td, der, chain: Vec::new(), params, key }
    }

    pub(crate) fn intermediate(&self, depth: BasicConstraints, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(&self.td, &format!("intermediate {}", self.chain.len()), depth);
        change(&mut params);
        let der = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap().der().clone();
        let chain = std::iter::once(der.clone()).chain(self.chain.iter().cloned()).collect();
        Self { td: self.td.clone(), der, chain, params, key }
    }

    /// A good leaf, spoiled by `change`: chain and key.
    pub(crate) fn leaf(
        &self,
        id: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new();
        p.is_ca = IsCa::ExplicitNoCa;
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        p.subject_alt_names = vec![uri(id)];
        p.serial_number = Some(SerialNumber::from_slice(&[0x42; 16]));
        dates(&mut p, NOW.minus(HOUR), NOW.plus(HOUR * 23));
        change(&mut p);
        let key = KeyPair::generate().unwrap();
        let leaf = p.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap().der().clone();
        let chain = std::iter::once(leaf).chain(self.chain.iter().cloned()).collect();
        (chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    pub(crate) fn svid(&self, id: &str) -> Svid {
        let (chain, key) = self.leaf(id, |_| ());
        Svid::new(chain, key).unwrap()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.td.clone(), vec![self.der.clone()]).unwrap()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(self.bundle(), Revocations::default())
    }
}
