//! A disk without room: refused by name, readable throughout, writable again when there is room.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use weft_model::Revision;
use weft_store::{CommitError, Dice, Keep, Store, conformance};

use crate::{
    disk::Disk,
    model::{Model, commit_together, random_txn},
};

fn fill(blocks: usize, copies_on_write: bool) -> Result<(), String> {
    let disk = Disk::new();
    let store = disk.store();
    let mut dice = Dice::seeded(blocks as u64);
    let mut model = Model::default();
    let mut watch = store.watch(Revision::ZERO).unwrap();
    disk.set(|i| (i.blocks, i.copies_on_write) = (Some(blocks), copies_on_write));
    let (mut id, mut full) = (0, 0);
    while full < 3 {
        id += 1;
        if id == 400 {
            return Err("never full".into());
        }
        // Big enough to need new blocks, and mixed with a transaction that conflicts.
        let big = random_txn(&mut dice, id, &model).put(format!("big/{id}"), conformance::val(&"x".repeat(3000)));
        let allowed = model.allows(&big);
        match commit_together(&store, vec![big.clone()]).remove(0) {
            Ok(r) if allowed => model.apply(&big, r),
            Err(CommitError::Conflict { .. }) if !allowed => {}
            Err(CommitError::Full { .. }) => {
                full += 1;
                assert_eq!(store.lookup(big.txn_id).unwrap(), None);
            }
            other => return Err(format!("transaction {id} ended {other:?}")),
        }
        let range = store.range("", None).map_err(|e| format!("no reads: {e}"))?;
        assert_eq!((range.items, store.head().unwrap().revision), (model.items(""), model.head));
    }
    let log = conformance::entries(&mut watch, model.head);
    assert_eq!(log.len() as u64, model.head.n);
    disk.set(|i| i.blocks = None);
    let more = conformance::txn("room again").put("more", conformance::val("1"));
    let r = store.commit(more.clone()).map_err(|e| format!("room again, but {e}"))?;
    model.apply(&more, r);
    assert_eq!(conformance::entries(&mut watch, r).len(), 1);
    drop(store);
    let again = disk.open(Keep::default()).map_err(|e| e.to_string())?;
    assert_eq!(again.range("", None).unwrap().items, model.items(""));
    Ok(())
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    for blocks in 30..90 {
        fill(blocks, false).unwrap_or_else(|e| panic!("{blocks} blocks: {e}"));
    }
}

/// Where even rewriting a block takes room, the file cannot be opened for writing; it is still read.
#[test]
fn a_full_disk_that_copies_on_write_refuses_writes_and_nothing_else() {
    for blocks in 60..90 {
        fill(blocks, true).unwrap_or_else(|e| panic!("{blocks} blocks: {e}"));
    }
}

#[test]
fn a_full_disk_is_named() {
    let disk = Disk::new();
    let store = disk.store();
    disk.set(|i| (i.blocks, i.copies_on_write) = (Some(0), true));
    let e = store.commit(conformance::txn("").put("k", conformance::val("1"))).unwrap_err();
    assert_eq!(e.to_string(), "the disk of the store is full, nothing was written; free some space and try again");
}

/// Whoever reads while a write fails does not notice.
#[test]
fn readers_do_not_notice_a_full_disk() {
    let disk = Disk::new();
    let store = disk.store();
    let put = |i: u32| conformance::txn("").put(format!("k/{}", i % 3), conformance::val(&"x".repeat(3000)));
    store.commit(put(0)).unwrap();
    disk.set(|i| (i.blocks, i.copies_on_write) = (Some(0), true));
    let writing = AtomicBool::new(true);
    thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut reads = 0;
            while writing.load(Ordering::SeqCst) {
                store.range("", None).unwrap();
                store.get("k/0").unwrap().unwrap();
                reads += 1;
            }
            reads
        });
        for i in 0..30 {
            // Every other time there is room for a moment, so that there is something to fail.
            disk.set(|d| d.blocks = (i % 2 == 0).then_some(0));
            let outcome = store.commit(put(i));
            assert!(matches!((i % 2, &outcome), (0, Err(CommitError::Full { .. })) | (1, Ok(_))), "{outcome:?}");
        }
        writing.store(false, Ordering::SeqCst);
        assert!(reader.join().unwrap() > 0);
    });
}
