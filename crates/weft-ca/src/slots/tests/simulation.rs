//! Signing slots that follow each other through crashes, lost commits and a root that is away.

use weft_sim::seeded::{Dice, Seeds};

use super::*;

/// A server that crashes, loses commits and cannot always reach the root. What is stored are bytes; what is in memory is
/// opened from them. Invariants: there is always a signer; it never signs before its journal entry is stored; no leaf is
/// shorter than asked or outlives its slot; unexpired leaves verify against the bundle of every later moment.
fn simulate(seed: u64, days: u32) -> Vec<(i64, u64)> {
    let mut dice = Dice::seeded(seed);
    let (start, kek, mut signer) = mesh();
    let roots = start.roots;
    let mut stored = start.signing.encode();
    let mut now = NOW;
    let end = NOW.plus(DAY * days);
    let mut live: Vec<(Wall, Vec<rustls_pki_types::CertificateDer<'static>>)> = Vec::new();
    let mut trace = Vec::new();
    let mut root_away_until = NOW;
    while now < end {
        now = now.plus(Duration::from_secs(600 + dice.next_u64() % (6 * 3600)));
        if now > root_away_until && dice.next_u64().is_multiple_of(40) {
            root_away_until = now.plus(HOUR * u32::try_from(dice.next_u64() % 24).unwrap());
        }
        let journal = Journal::decode(&stored).unwrap();
        let planned = match plan(now, &journal) {
            Step::Nothing => None,
            Step::Prepare if now < root_away_until => None,
            Step::Prepare => {
                let root = root_signer(&roots, &kek).unwrap();
                Some(prepare_signing(&journal, &root, &kek, now).unwrap())
            }
            Step::Activate => Some(activate(&journal, now).unwrap()),
        };
        // one commit in four is lost, and with it the step: nothing in memory may have changed
        if let Some(next) = planned.filter(|_| !dice.next_u64().is_multiple_of(4)) {
            stored = next.encode();
            let before = signer.key_hash();
            signer = current_signer(&next, &roots, &kek).unwrap();
            if signer.key_hash() != before {
                trace.push((now.as_secs(), next.current().unwrap().number));
            }
        }
        if dice.next_u64().is_multiple_of(10) {
            signer = current_signer(&Journal::decode(&stored).unwrap(), &roots, &kek).unwrap();
        }
        let journal = Journal::decode(&stored).unwrap();
        let current = journal.current().expect("there is always a signer");
        assert_eq!(current.certificate, *signer.certificate(), "seed {seed}: only the journalled slot signs");
        assert!(current.not_after > now, "seed {seed}: the signing slot expired at {now}");
        let id = SpiffeId::workload(signer.trust_domain(), "sim", "w").unwrap();
        let issue =
            Issue { id, public_key: KeyPair::generate().unwrap().public_key(), ttl: DEFAULT_TTL, dns_names: vec![] };
        let issued = signer.issue(&issue, now).unwrap();
        assert!(issued.not_after <= signer.not_after());
        assert!(
            issued.not_after >= now.plus(DEFAULT_TTL).minus(Duration::from_secs(1)),
            "seed {seed}: cut short at {now}"
        );
        live.push((issued.not_after, issued.chain));
        live.retain(|(until, _)| *until > now);
        let bundle = roots.bundle(now).unwrap();
        let one = usize::try_from(dice.next_u64()).unwrap() % live.len();
        for (_, chain) in [&live[one], &live[live.len() - 1]] {
            recheck(chain, &bundle, &Revocations::default(), now).unwrap();
        }
    }
    trace
}

#[test]
fn sec_01_slots_follow_each_other_through_crashes_and_lost_commits() {
    Seeds::from_env_or(4).each(|seed| {
        let trace = simulate(seed, 40);
        assert!(trace.len() >= 6, "seed {seed}: {trace:?}");
        assert!(trace.is_sorted_by(|a, b| a.1 < b.1), "seed {seed}: numbers only rise");
    });
}

/// Keys are as random as ever: what follows from them is no part of the trace.
#[test]
fn sec_01_same_seed_same_trace() {
    assert_eq!(simulate(3, 15), simulate(3, 15));
    assert_ne!(simulate(3, 15), simulate(4, 15));
}
