use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::issue::tests::{NOW, mesh};

fn entry(number: u64, not_after: Wall) -> Entry {
    let certificate = CertificateDer::from(vec![1, 2, 3]);
    Entry { number, status: Status::Prepared, issued: NOW, not_after, certificate, sealed_key: vec![9] }
}

fn empty() -> Journal {
    Journal::new(TrustDomain::parse("mesh.weft").unwrap(), Kind::Signing)
}

#[test]
fn sec_01_slots_advance_in_one_direction() {
    let hour = Duration::from_secs(3600);
    let kind = Kind::Signing;
    assert_eq!(empty().activate(NOW).unwrap_err(), JournalError::NothingPrepared { kind });
    let one = empty().prepare(entry(1, NOW.plus(hour)), NOW).unwrap();
    let e = one.prepare(entry(2, NOW.plus(hour)), NOW).unwrap_err();
    assert_eq!(e, JournalError::AlreadyPrepared { kind, number: 1 });
    let one = one.activate(NOW).unwrap();
    let e = one.prepare(entry(1, NOW.plus(hour)), NOW).unwrap_err();
    assert_eq!(e, JournalError::Number { kind, got: 1, want: 2 });
    let two = one.prepare(entry(2, NOW.plus(hour * 2)), NOW).unwrap();
    assert_eq!((two.current().unwrap().number, two.next().unwrap().number), (1, 2));
    let two = two.activate(NOW).unwrap();
    assert_eq!(two.entries().iter().map(|e| e.status).collect::<Vec<_>>(), [Status::Old, Status::Active]);
    // the old one stays for as long as what it signed may live, then goes
    let three = two.prepare(entry(3, NOW.plus(hour * 9)), NOW).unwrap().activate(NOW.plus(hour)).unwrap();
    assert_eq!(three.entries().iter().map(|e| e.number).collect::<Vec<_>>(), [2, 3]);
    // prepared and forgotten: it cannot be activated, but replaced
    let late = three.prepare(entry(4, NOW.plus(hour)), NOW).unwrap();
    assert!(matches!(late.activate(NOW.plus(hour)), Err(JournalError::PreparedExpired { number: 4, .. })));
    assert_eq!(late.prepare(entry(5, NOW.plus(hour * 9)), NOW.plus(hour)).unwrap().next().unwrap().number, 5);
}

#[test]
fn sec_01_journals_round_trip_and_refuse_inconsistent_bytes() {
    let (start, ..) = mesh();
    for journal in [&start.roots, &start.signing, &empty()] {
        assert_eq!(Journal::decode(&journal.encode()).unwrap(), *journal);
    }
    let mut two_active = start.signing.clone();
    two_active.entries.push(Entry { number: 2, ..two_active.entries[0].clone() });
    two_active.next_number = 3;
    assert_eq!(Journal::decode(&two_active.encode()).unwrap_err(), DecodeError::Corrupt(WHAT));
    assert!(matches!(Journal::decode(&[2]), Err(DecodeError::Format { format: 2, .. })));
}

proptest! {
    #[test]
    fn sec_01_journal_bytes_never_panic(bytes: Vec<u8>, at: prop::sample::Index, flip in 1_u8..) {
        let _ = Journal::decode(&bytes);
        let good = empty().prepare(entry(1, NOW), NOW.minus(Duration::from_secs(1))).unwrap();
        let mut bytes = good.encode();
        let cut = at.index(bytes.len());
        prop_assert!(Journal::decode(&bytes[..cut]).is_err());
        bytes[cut] ^= flip;
        let _ = Journal::decode(&bytes);
    }
}
