//! Power losses at every access. After each: every acknowledged transaction is there, none is there by half, and
//! revisions go on above all that anyone has seen.

use weft_model::Revision;
use weft_store::{CommitError, Dice, Keep, ReadError, Store, Txn, TxnId, conformance};

use crate::{
    disk::Disk,
    model::{Model, commit_together, random_txn},
};

const BATCHES: u64 = 8;

/// What was submitted, in order, and how much of it was acknowledged.
pub struct Run {
    /// The store after each transaction that committed, or would have.
    states: Vec<Model>,
    txns: Vec<Txn>,
    pub acknowledged: usize,
}

/// Runs batches on `disk` until they are through or the power goes.
pub fn run(disk: &Disk, seed: u64) -> Run {
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
pub fn check(found: &Disk, run: &Run) -> Result<(), String> {
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
pub fn at_every_access(seed: u64, ignores_syncs: bool, mut each: impl FnMut(&Disk, &Run, u64)) -> u64 {
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

/// The suite can fail: without syncs, the same checker finds lost or broken commits.
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

/// Some accesses fail, later ones do not: what committed is known, unless it was a sync that failed, and stays.
#[test]
fn passing_failures_leave_no_doubt_for_long() {
    for width in [1, 4] {
        let (mut failed, mut unknown, mut stopped) = (0, 0, 0);
        for point in 1.. {
            let outcome = run_with_failures(point, width);
            failed += outcome.failed;
            unknown += outcome.unknown;
            stopped += u32::from(outcome.stopped);
            if outcome.through {
                break;
            }
        }
        assert!(failed > 20 && unknown > 5 && stopped > 5, "{failed} failed, {unknown} unknown, {stopped} stopped");
    }
}

/// Grows the file, empties it, and goes on until redb has cut it. Tells what each transaction came to.
fn grow_and_shrink(disk: &Disk, store: &dyn Store) -> Vec<(Txn, Result<Revision, CommitError>)> {
    let mut done = vec![];
    for id in 0..12_u32 {
        let txn = match id {
            0..4 => conformance::txn("").put(format!("k/{id}"), conformance::val(&"x".repeat(400_000))),
            4 => conformance::txn("").delete_prefix("k/"),
            _ => conformance::txn("").put("small", conformance::val(&id.to_string())),
        };
        if id == 5 {
            // The log holds it as well.
            store.compact(store.head().unwrap().revision).unwrap();
            assert!(disk.set(|i| i.cuts.is_empty()), "it was cut too early for this test");
        }
        let before = disk.set(|i| i.cuts.len());
        let outcome = store.commit(txn.clone());
        done.push((txn, outcome));
        if disk.set(|i| i.cuts.len()) > before {
            break;
        }
    }
    done
}

/// redb cuts the file when a commit is durable already: when that fails, the transaction is in the file nevertheless.
#[test]
fn a_failure_after_a_commit_is_durable_does_not_deny_it() {
    let disk = Disk::new();
    let store = disk.store();
    grow_and_shrink(&disk, &store);
    let cut = disk.set(|i| i.cuts[0]);

    let disk = Disk::new();
    let store = disk.store();
    disk.set(|i| i.fails = cut..cut + 1);
    let done = grow_and_shrink(&disk, &store);
    assert_eq!(disk.set(|i| i.cuts[0]), cut, "the same accesses again");
    let (last, outcome) = done.last().unwrap();
    let r = *outcome.as_ref().unwrap();
    assert_eq!(store.lookup(last.txn_id).unwrap(), Some(r));
    assert_eq!(ids_after_the_compaction(&store, r), done.iter().skip(5).map(|(t, _)| t.txn_id).collect::<Vec<_>>());
    drop(store);
    assert_eq!(disk.synced().store().head().unwrap().revision, r);

    // When it cannot be reopened either, the outcome is unknown until it can.
    let disk = Disk::new();
    let store = disk.store();
    disk.set(|i| i.fails = cut..u64::MAX);
    let done = grow_and_shrink(&disk, &store);
    let (last, outcome) = done.last().unwrap();
    assert!(matches!(outcome, Err(CommitError::Unknown { .. })), "{outcome:?}");
    assert!(matches!(store.lookup(last.txn_id), Err(ReadError::Io { .. })));
    disk.set(|i| i.fails = 0..0);
    let next = store.commit(conformance::txn("").put("after", conformance::val("1"))).unwrap();
    assert_eq!(store.lookup(last.txn_id).unwrap(), Some(r));
    assert_eq!(next.n, r.n + 1);
    let ids = ids_after_the_compaction(&store, next);
    assert_eq!(ids[..ids.len() - 1], done.iter().skip(5).map(|(t, _)| t.txn_id).collect::<Vec<_>>());
}

fn ids_after_the_compaction(store: &dyn Store, head: Revision) -> Vec<TxnId> {
    let mut watch = store.watch(Revision::new(0, 5)).unwrap();
    conformance::entries(&mut watch, head).iter().map(|e| e.txn_id).collect()
}

#[derive(Default)]
struct Outcome {
    failed: u32,
    unknown: u32,
    stopped: bool,
    /// All was over before the first access that would have failed.
    through: bool,
}

fn run_with_failures(point: u64, width: u64) -> Outcome {
    let disk = Disk::new();
    let store = disk.store();
    let mut watch = store.watch(Revision::ZERO).unwrap();
    let first = disk.set(|i| {
        i.fails = i.accesses + point..i.accesses + point + width;
        i.fails.start
    });
    let (mut model, mut out, mut doubt) = (Model::default(), Outcome::default(), None::<Txn>);
    for id in 0..6_u32 {
        let txn = match id {
            4 => conformance::txn("").delete_prefix("k/"),
            _ => conformance::txn("").put(format!("k/{id}"), conformance::val(&"x".repeat(20_000))),
        };
        let outcome = store.commit(txn.clone());
        if let Err(CommitError::SyncFailed) = outcome {
            out.stopped = true;
            break;
        }
        // Once the store writes again, it can tell what was in doubt.
        if outcome.is_ok()
            && let Some(txn) = doubt.take()
            && let Some(r) = store.lookup(txn.txn_id).unwrap()
        {
            model.apply(&txn, r);
        }
        match outcome {
            Ok(r) => model.apply(&txn, r),
            Err(CommitError::Io { .. }) => out.failed += 1,
            Err(CommitError::Unknown { .. }) => {
                out.unknown += 1;
                doubt = Some(txn);
            }
            Err(e) => panic!("accesses {point} to {}: {e}", point + width),
        }
        if doubt.is_none() && outcome_is_visible(&store) {
            assert_eq!(store.range("", None).unwrap().items, model.items(""), "accesses {point} and {width} more");
            assert_eq!(store.head().unwrap().revision, model.head, "accesses {point} and {width} more");
        }
    }
    if doubt.is_none() && !out.stopped {
        let seen = conformance::entries(&mut watch, model.head);
        assert_eq!(seen.len() as u64, model.head.n, "accesses {point} and {width} more");
    }
    drop(store);
    out.through = disk.set(|i| i.accesses < first);
    // Also what was found by reopening was acknowledged, so it must have been synced.
    let head = disk.synced().store().head().unwrap().revision;
    assert!(head >= model.head, "accesses {point} and {width} more: {head} of {} was synced", model.head);
    out
}

/// A store that could not be reopened shows nothing until the next write.
fn outcome_is_visible(store: &dyn Store) -> bool {
    store.get("k/0").is_ok()
}
