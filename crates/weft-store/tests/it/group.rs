//! Group commit: one sync, many transactions, each its own revision.

use std::sync::mpsc;

use weft_model::Revision;
use weft_store::{CommitError, Expect, Store, conformance};

use crate::disk::Disk;

#[test]
fn what_waits_for_a_sync_shares_the_next() {
    const WAITING: u64 = 200;
    let disk = Disk::new();
    let store = disk.store();
    disk.set(|i| i.holds_syncs = true);
    let (tell, outcomes) = mpsc::channel();
    for i in 0..=WAITING {
        let tell = tell.clone();
        let txn = conformance::txn("").put(format!("k/{i}"), conformance::val("1"));
        store.submit(txn, Box::new(move |o| tell.send(o).unwrap()));
    }
    assert!(outcomes.try_recv().is_err(), "acknowledged before it was synced");
    let before = disk.set(|i| {
        i.holds_syncs = false;
        i.syncs
    });
    let revisions: Vec<_> = outcomes.iter().take(WAITING as usize + 1).map(Result::unwrap).collect();
    assert_eq!(revisions, (1..=WAITING + 1).map(|n| Revision::new(0, n)).collect::<Vec<_>>());
    let syncs = disk.set(|i| i.syncs) - before;
    // The one that was held, the group's, and those of growing the file.
    assert!(syncs <= 8, "{syncs} syncs for {WAITING} transactions");
    let log = conformance::entries(&mut store.watch(Revision::ZERO).unwrap(), *revisions.last().unwrap());
    assert!(log.iter().all(|e| e.changes.len() == 1));
}

/// Within one group too, each transaction sees those before it, and a refused one leaves no trace.
#[test]
fn transactions_of_a_group_see_each_other() {
    let disk = Disk::new();
    let store = disk.store();
    let put = |v| conformance::txn("").put("k", conformance::val(v));
    let batch = vec![
        put("1").expect(Expect::absent("k")),
        put("2").expect(Expect::absent("k")).put("other", conformance::val("1")),
        put("3").expect(Expect::unchanged("k", Revision::new(0, 1))),
    ];
    let outcomes = crate::model::commit_together(&store, batch);
    assert!(matches!(outcomes[0], Ok(Revision { n: 1, .. })), "{:?}", outcomes[0]);
    assert!(matches!(outcomes[1], Err(CommitError::Conflict { .. })), "{:?}", outcomes[1]);
    assert!(matches!(outcomes[2], Ok(Revision { n: 2, .. })), "{:?}", outcomes[2]);
    let rows = store.range("", None).unwrap().items;
    assert_eq!(rows, [conformance::row("k", "3", Revision::new(0, 1), Revision::new(0, 2))]);
}

/// What was submitted before the store closes is committed; what comes later is told.
#[test]
fn closing_finishes_what_was_submitted() {
    let disk = Disk::new();
    let store = disk.store();
    let (tell, outcomes) = mpsc::channel();
    for i in 0..20 {
        let tell = tell.clone();
        let txn = conformance::txn("").put(format!("k/{i}"), conformance::val("1"));
        store.submit(txn, Box::new(move |o| tell.send(o).unwrap()));
    }
    drop(store);
    assert_eq!(outcomes.try_iter().filter(Result::is_ok).count(), 20);
    assert_eq!(disk.store().range("k/", None).unwrap().items.len(), 20);
}
