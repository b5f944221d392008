use std::time::Duration;

use proptest::prelude::*;
use weft_identity::csr::KeyPair;

use super::*;

const NOW: Wall = Wall::secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn root() -> KeyHash {
    KeyHash::of(b"root")
}

fn id(s: &str) -> SpiffeId {
    SpiffeId::parse(s).unwrap()
}

fn web() -> SpiffeId {
    id("spiffe://mesh.weft/ns/shop/sa/web")
}

fn key() -> PublicKey {
    KeyPair::generate().unwrap().public_key()
}

fn minted() -> (JoinToken, TokenRecord) {
    mint("shop/*".parse().unwrap(), NOW.plus(HOUR), root()).unwrap()
}

#[test]
fn sec_10_a_token_reads_back_and_hides_its_secret() {
    let (token, record) = minted();
    let text = token.to_string();
    assert_eq!(text.len(), 16 + 1 + 43 + 1 + 64);
    assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
    let secret = text.split('.').nth(1).unwrap();
    assert!(!format!("{token:?}{record:?}").contains(secret));
    assert!(!record.encode().windows(32).any(|w| w == token.secret));
    assert_ne!(minted().0.to_string(), text);
}

#[test]
fn sec_10_spending_binds_to_one_key_and_repeats_for_it() {
    let (token, record) = minted();
    let (mine, other) = (key(), key());
    let spend = |r: &TokenRecord, k| spend(Some(r), &token, &web(), k, &[root()], NOW);
    let Verdict::Spend(spent) = spend(&record, &mine).unwrap() else { panic!("first use") };
    assert_eq!(spent.spent_by, Some(mine.hash()));
    assert_eq!(spend(&spent, &mine).unwrap(), Verdict::Again);
    let e = spend(&spent, &other).unwrap_err();
    assert_eq!(e, Refusal::SpentByAnother { id: token.id.clone() });
    assert!(e.to_string().contains("find out who used this one"));
    assert_eq!(TokenRecord::decode(&spent.encode()).unwrap(), spent);
    assert_eq!(TokenRecord::decode(&record.encode()).unwrap(), record);
}

#[test]
fn sec_10_a_token_grants_the_service_that_it_names() {
    let check = |service: Option<&str>, claimed: Option<&str>, want: Option<&str>| {
        let record = minted().1.for_service(service.map(ToOwned::to_owned));
        assert_eq!(record.grants(claimed), want, "{service:?} {claimed:?}");
        assert_eq!(TokenRecord::decode(&record.encode()).unwrap(), record);
    };
    check(None, Some("web"), None);
    check(Some("web"), None, Some("web"));
    check(Some("web"), Some("bank"), Some("web"));
    check(Some("*"), Some("bank"), Some("bank"));
    check(Some("*"), None, None);
}

#[test]
fn sec_10_every_refusal_has_its_name_and_says_what_to_do() {
    let (token, record) = minted();
    let (k, roots) = (key(), [root()]);
    let check = |got: Result<Verdict, Refusal>, reason: &str| {
        let e = got.unwrap_err();
        assert_eq!(e.reason(), reason);
        assert!(e.to_string().contains("weft token create") || reason == "foreign_root", "{e}");
    };
    check(spend(None, &token, &web(), &k, &roots, NOW), "unknown");
    let (_, unrelated) = minted();
    check(spend(Some(&unrelated), &token, &web(), &k, &roots, NOW), "unknown");
    check(spend(Some(&record), &token, &web(), &k, &roots, NOW.plus(HOUR)), "expired");
    check(spend(Some(&record), &token, &web(), &k, &[KeyHash::of(b"other")], NOW), "foreign_root");
    let admin = id("spiffe://mesh.weft/ns/admin/sa/web");
    check(spend(Some(&record), &token, &admin, &k, &roots, NOW), "not_allowed");
    let mut guess = token.clone();
    guess.secret[31] ^= 1;
    check(spend(Some(&record), &guess, &web(), &k, &roots, NOW), "wrong_secret");
    // who does not know the secret learns neither that it expired nor that it was spent
    check(spend(Some(&record), &guess, &web(), &k, &roots, NOW.plus(HOUR)), "wrong_secret");
    // during a root rotation tokens of either root are good
    assert!(spend(Some(&record), &token, &web(), &k, &[KeyHash::of(b"new"), root()], NOW).is_ok());
}

#[test]
fn sec_10_patterns_never_cover_the_control_plane() {
    let any = Allowed::any();
    assert!(any.matches(&web()));
    assert!(!any.matches(&control_plane_id(&web().trust_domain())));
    let exact: Allowed = "shop/web".parse().unwrap();
    assert!(exact.matches(&web()));
    assert!(!exact.matches(&id("spiffe://mesh.weft/ns/shop/sa/api")));
    for other in [
        "spiffe://mesh.weft",
        "spiffe://mesh.weft/x",
        "spiffe://mesh.weft/ns/a/dc/b/svc/c",
        "spiffe://mesh.weft/ns/a/sa/b/c",
    ] {
        assert!(!any.matches(&id(other)), "{other}");
    }
    for bad in ["", "shop", "/web", "shop/", "a/b/c", "sh*p/web", "a b/c"] {
        assert!(bad.parse::<Allowed>().is_err(), "{bad}");
    }
    assert_eq!("*/web".parse::<Allowed>().unwrap().to_string(), "*/web");
}

#[test]
fn sec_10_broken_tokens_say_which_part() {
    let text = minted().0.to_string();
    let parts: Vec<&str> = text.split('.').collect();
    assert_eq!("".parse::<JoinToken>().unwrap_err(), TokenError::Parts(1));
    assert_eq!(format!("{}.{}", parts[0], parts[1]).parse::<JoinToken>().unwrap_err(), TokenError::Parts(2));
    let with = |at: usize, value: &str| {
        let mut p = parts.clone();
        p[at] = value;
        p.join(".").parse::<JoinToken>().unwrap_err()
    };
    assert_eq!(with(0, "ABCDEF0123456789"), TokenError::Part("id"));
    assert_eq!(with(1, "c2hvcnQ"), TokenError::Part("secret"));
    assert_eq!(with(2, "00"), TokenError::Part("root key"));
}

proptest! {
    #[test]
    fn sec_10_token_texts_and_records_never_panic(text in ".{0,160}", bytes: Vec<u8>) {
        let _ = text.parse::<JoinToken>();
        let _ = TokenRecord::decode(&bytes);
    }
}
