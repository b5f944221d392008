//! Power losses at every access. After each: every acknowledged transaction is there, none is there by half, and
//! revisions go on above all that anyone has seen.

use weft_model::Revision;
use weft_store::{CommitError, Dice, Keep, Store, Txn, conformance};

use crate::{
    disk::Disk,
    model::{Model, commit_together, random_txn},
};

const BATCHES: u64 = 8;

/// What was submitted, in order, and how much of it was acknowledged.
struct Run {
    /// The store after each transaction that committed, or would have.
    states: Vec<Model>,
    txns: Vec<Txn>,
    acknowledged: usize,
}

/// Runs batches on `disk` until they are through or the power goes.
fn run(disk: &Disk, seed: u64) -> Run {
    let mut dice = Dice::seeded(seed);
    let mut run = Run { states: vec![Model::default()], txns: vec![], acknowledged: 0 };
    let Ok(store) = disk.open(Keep::default()) else { return run };
    let mut id = 0;
    for _ in 0..BATCHES {
        let mut batch = vec![];
        let mut expected = vec![];
        for _ in 0..=dice.below(4) {
            id += 1;
            let mut now = run.states.last().unwrap().clone();
            let txn = random_txn(&mut dice, id, &now);
            let allowed = now.allows(&txn);
            if allowed {
                now.apply(&txn, Revision::new(0, now.head.n + 1));
                run.states.push(now);
                run.txns.push(txn.clone());
            }
            expected.push(allowed);
            batch.push(txn);
        }
        for (outcome, allowed) in commit_together(&store, batch).into_iter().zip(expected) {
            match outcome {
                Ok(r) => {
                    run.acknowledged += 1;
                    assert_eq!(r, run.states[run.acknowledged].head);
                }
                Err(CommitError::Conflict { .. }) => assert!(!allowed),
                Err(CommitError::Unknown { .. } | CommitError::Io { .. } | CommitError::SyncFailed) => return run,
                Err(e) => panic!("{e}"),
            }
        }
    }
    run
}

/// What is wrong with the store that is found after the crash.
fn check(found: &Disk, run: &Run) -> Result<(), String> {
    let store = found.open(Keep::default()).map_err(|e| format!("it does not open: {e}"))?;
    let head = store.head().unwrap().revision;
    let survived = head.n as usize;
    if survived < run.acknowledged {
        return Err(format!("{} were acknowledged, {survived} survived", run.acknowledged));
    }
    let Some(state) = run.states.get(survived) else { return Err(format!("{head} was never submitted")) };
    if store.range("", None).unwrap().items != state.items("") {
        return Err(format!("at {head} the rows are not those of {survived} whole transactions"));
    }
    let log = conformance::entries(&mut store.watch(Revision::ZERO).unwrap(), head);
    let ids: Vec<_> = log.iter().map(|e| e.txn_id).collect();
    if !run.txns.iter().take(survived).map(|t| t.txn_id).eq(ids.iter().copied()) {
        return Err(format!("the log holds {ids:?}"));
    }
    for (id, state) in ids.iter().zip(&run.states[1..]) {
        if store.lookup(*id).unwrap() != Some(state.head) {
            return Err(format!("{id} is not found"));
        }
    }
    let next = store.commit(conformance::txn("after the crash").put("z", conformance::val("1"))).unwrap();
    if next <= head { Err(format!("{next} after {head}")) } else { Ok(()) }
}

/// Crashes a run at each of its accesses; `each` sees the disk and what was promised on it.
fn at_every_access(seed: u64, ignores_syncs: bool, mut each: impl FnMut(&Disk, &Run, u64)) -> u64 {
    let fresh = Disk::new();
    drop(fresh.store());
    let content = fresh.set(|i| i.live.clone());
    let mut point = 1;
    loop {
        let disk = Disk::holding(content.clone());
        disk.set(|i| (i.dies_at, i.ignores_syncs) = (Some(point), ignores_syncs));
        let outcome = run(&disk, seed);
        if disk.set(|i| i.accesses < point) {
            return point;
        }
        each(&disk, &outcome, point);
        point += 1;
    }
}

#[test]
fn nothing_acknowledged_is_lost_whenever_the_power_goes() {
    for seed in 0..3 {
        let mut committed = 0;
        let points = at_every_access(seed, false, |disk, run, point| {
            let mut dice = Dice::seeded(seed << 32 | point);
            for image in 0..2 {
                let found = disk.after_crash(&mut dice);
                check(&found, run).unwrap_or_else(|e| panic!("seed {seed}, access {point}, image {image}: {e}"));
            }
            committed = committed.max(run.acknowledged);
        });
        assert!(points > 50 && committed > 5, "seed {seed}: {points} points, {committed} commits");
    }
}

/// The power goes again while the store repairs what the first loss left.
#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes_again_during_repair() {
    let seed = 11;
    at_every_access(seed, false, |disk, run, point| {
        let mut dice = Dice::seeded(point);
        let found = disk.after_crash(&mut dice);
        found.set(|i| i.dies_at = Some(1 + point % 7));
        drop(found.open(Keep::default()));
        check(&found.after_crash(&mut dice), run).unwrap_or_else(|e| panic!("access {point}: {e}"));
    });
}

/// The suite above can fail: without syncs, the same checker finds lost or broken commits.
#[test]
fn without_syncs_the_checker_finds_the_loss() {
    let mut found = 0;
    let mut complaints = std::collections::BTreeSet::new();
    at_every_access(0, true, |disk, run, point| {
        if let Err(e) = check(&disk.after_crash(&mut Dice::seeded(point)), run) {
            found += 1;
            complaints.insert(e);
        }
    });
    assert!(found > 10, "only {found}");
    assert!(complaints.iter().any(|e| e.contains("were acknowledged")), "{complaints:?}");
}

#[test]
fn the_same_seed_gives_the_same_accesses() {
    let trace = |seed| {
        let disk = Disk::new();
        run(&disk, seed);
        disk.set(|i| (i.trace, i.accesses))
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

/// After a failed sync nothing can be promised any more: the outcome is unknown, and further writes are refused.
#[test]
fn a_failed_sync_stops_the_store() {
    let disk = Disk::new();
    let store = disk.store();
    let put = || conformance::txn("").put("k", conformance::val("1"));
    store.commit(put()).unwrap();
    disk.set(|i| i.fails_syncs = true);
    let e = store.commit(put()).unwrap_err();
    assert!(matches!(e, CommitError::Unknown { .. }), "{e}");
    disk.set(|i| i.fails_syncs = false);
    let e = store.commit(put()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the store takes no more writes since a sync to its disk failed; check the disk, then restart the server"
    );
    drop(store);
    let store = disk.store();
    store.commit(put()).unwrap();
}
