use weft_identity::csr::KeyPair;

use super::*;

const NOW: Wall = Wall::millis(1_800_000_000_789);
const HOUR: Duration = Duration::from_secs(3600);

fn td() -> TrustDomain {
    TrustDomain::parse("mesh.weft").unwrap()
}

fn make(change: impl FnOnce(&mut Issue)) -> Result<Template, TemplateError> {
    let mut issue = Issue {
        id: SpiffeId::workload(&td(), "shop", "web").unwrap(),
        public_key: KeyPair::generate().unwrap().public_key(),
        ttl: DEFAULT_TTL,
        dns_names: vec!["web.shop".into()],
    };
    change(&mut issue);
    let td = td();
    let signer = Bounds {
        trust_domain: &td,
        not_before: NOW.minus(HOUR),
        not_after: NOW.plus(HOUR * 48),
        key: KeyHash::from_bytes([1; 32]),
    };
    leaf(&issue, signer, Serial::new(&[5; 16]), NOW)
}

#[test]
fn sec_01_a_leaf_is_backdated_and_capped_by_its_signer() {
    let t = make(|_| ()).unwrap();
    assert_eq!(t.not_before, Wall::secs(NOW.as_secs() - 300));
    assert_eq!(t.not_after, Wall::secs(NOW.as_secs() + 86_400));
    assert_eq!(t.common_name(), None);
    let capped = make(|i| i.ttl = HOUR * 72).unwrap();
    assert_eq!(capped.not_after, Wall::secs(NOW.as_secs() + 48 * 3600));
    let record = t.record("n1");
    assert_eq!((record.serial, record.id, record.not_after), (t.serial, t.id, t.not_after));
}

#[test]
fn sec_01_wishes_beyond_the_rules_are_refused_by_name() {
    let check = |change: &dyn Fn(&mut Issue), text: &str| {
        let e = make(change).unwrap_err().to_string();
        assert!(e.contains(text), "{e}");
    };
    check(&|i| i.id = SpiffeId::parse("spiffe://other/ns/a/sa/b").unwrap(), "is not of trust domain mesh.weft");
    check(&|i| i.id = SpiffeId::authority(&td()), "names the trust domain itself");
    check(&|i| i.ttl = Duration::from_millis(999), "out of bounds");
    check(&|i| i.ttl = MAX_TTL + HOUR, "out of bounds");
    for bad in ["", "*.shop", "Web.shop", "web..shop", "-a", "a-", "web_1", "a b", "\u{1F600}", &"x".repeat(64)] {
        check(&|i| i.dns_names = vec![bad.into()], "is no DNS name");
    }
    check(&|i| i.dns_names = vec!["a".into(); 65], "too many");
}

#[test]
fn sec_01_an_expired_signer_and_an_impossible_clock_sign_nothing() {
    let (td, key) = (td(), KeyPair::generate().unwrap().public_key());
    let signer = |end| Bounds { trust_domain: &td, not_before: Wall::EPOCH, not_after: end, key: key.hash() };
    let issue =
        Issue { id: SpiffeId::workload(&td, "a", "b").unwrap(), public_key: key.clone(), ttl: HOUR, dns_names: vec![] };
    let at = |end, now| leaf(&issue, signer(end), Serial::new(&[1]), now).unwrap_err();
    assert!(matches!(at(NOW, NOW), TemplateError::SignerExpired { .. }));
    assert!(matches!(at(Wall::millis(i64::MAX), Wall::millis(i64::MAX)), TemplateError::Clock(_)));
    assert!(matches!(at(NOW, Wall::EPOCH), TemplateError::Clock(_)));
}
