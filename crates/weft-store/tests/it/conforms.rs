//! Every store under the conformance suite, and against the model.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use weft_store::{CommitError, EtcdLike, Expect, Keep, Memory, Redb, Store, conformance};

use crate::disk::Disk;

pub fn faulty(seed: u64) -> Memory {
    Memory::with(Keep::default(), Some(EtcdLike::faulty(seed)))
}

#[test]
fn reg_12_memory_conforms() {
    conformance::all(&|| Box::new(Memory::new()));
}

#[test]
fn reg_12_etcd_like_memory_conforms() {
    conformance::all(&|| Box::new(Memory::etcd_like(1)));
}

#[test]
fn reg_12_etcd_like_memory_with_faults_conforms() {
    for seed in 0..16 {
        conformance::all(&|| Box::new(faulty(seed)));
    }
}

#[test]
fn reg_12_redb_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicU32::new(0);
    conformance::all(&|| {
        let name = format!("{}.redb", next.fetch_add(1, Ordering::SeqCst));
        Box::new(Redb::open(&dir.path().join(name), Keep::default()).unwrap())
    });
}

/// What a plain prefix expectation cannot see on etcd, and why the guard discipline exists.
#[test]
fn only_the_embedded_stores_see_a_deletion_under_a_bare_prefix() {
    let put = |key| conformance::txn("").put(key, conformance::val("1"));
    let conflicts = |store: &dyn Store, since| {
        let expect = Expect::Prefix { prefix: "a/".into(), unchanged_since: since };
        match store.commit(conformance::txn("").expect(expect)) {
            Ok(_) => false,
            Err(CommitError::Conflict { .. }) => true,
            Err(e) => panic!("{e}"),
        }
    };
    let check = |store: &dyn Store, sees: bool| {
        let r1 = store.commit(put("a/1")).unwrap();
        store.commit(put("b/1")).unwrap();
        store.commit(conformance::txn("").delete("b/1")).unwrap();
        assert!(!conflicts(store, r1));
        let r2 = store.commit(conformance::txn("").delete("a/1")).unwrap();
        assert_eq!(conflicts(store, r1), sees);
        assert!(!conflicts(store, r2));
        // What came back counts as written.
        let r3 = store.commit(put("a/1")).unwrap();
        assert!(conflicts(store, r2) && !conflicts(store, r3));
        // What the log no longer holds is not seen: nobody who is that far behind commits without the guard.
        let r4 = store.commit(conformance::txn("").delete_prefix("a/")).unwrap();
        assert_eq!(conflicts(store, r3), sees);
        store.compact(r4).unwrap();
        assert!(!conflicts(store, r3));
    };
    check(&Memory::new(), true);
    check(&Disk::new().store(), true);
    check(&Memory::etcd_like(1), false);
}

/// Unknown outcomes are what they say: about half of them committed.
#[test]
fn the_faults_of_the_etcd_like_store_happen() {
    let store = faulty(7);
    let (mut committed, mut lost) = (0, 0);
    for _ in 0..1000 {
        let txn = conformance::txn("").put("k", conformance::val("v"));
        let id = txn.txn_id;
        if let Err(CommitError::Unknown { txn_id, .. }) = store.commit(txn) {
            assert_eq!(txn_id, id);
            match store.lookup(id).unwrap() {
                Some(_) => committed += 1,
                None => lost += 1,
            }
        }
    }
    assert!((20..100).contains(&committed) && (20..100).contains(&lost), "{committed} committed, {lost} lost");
}

#[test]
fn reg_12_held_watches_fall_behind_and_catch_up() {
    let store = Memory::new();
    let mut watch = store.watch(weft_model::Revision::ZERO).unwrap();
    store.hold_watches(true);
    let r = store.commit(conformance::txn("").put("k", conformance::val("v"))).unwrap();
    assert_eq!(watch.try_next().unwrap(), None);
    store.hold_watches(false);
    assert_eq!(watch.try_next().unwrap().unwrap()[0].revision, r);
}

/// The log stays within its limits by itself, and says where it starts.
#[test]
fn the_log_is_trimmed_as_it_grows() {
    let keep = Keep { entries: 10, bytes: 1 << 20 };
    let few_bytes = Keep { entries: 1000, bytes: 3000 };
    let check = |store: &dyn Store, most: usize| {
        let mut last = None;
        for _ in 0..50 {
            last = Some(store.commit(conformance::txn("").put("k", conformance::val(&"v".repeat(100)))).unwrap());
        }
        let Err(weft_store::ReadError::Compacted { oldest, .. }) = store.watch(weft_model::Revision::ZERO) else {
            panic!("nothing was trimmed")
        };
        let kept = conformance::entries(&mut store.watch(oldest).unwrap(), last.unwrap()).len();
        assert!((1..=most).contains(&kept), "{kept} entries");
    };
    check(&Memory::with(keep, None), 10);
    check(&Memory::with(few_bytes, None), 10);
    check(&Disk::new().store_with(keep), 10);
    check(&Disk::new().store_with(few_bytes), 10);
    let tiny = Keep { entries: 0, bytes: 0 };
    check(&Memory::with(tiny, None), 1);
    check(&Disk::new().store_with(tiny), 1);
}

#[test]
fn a_closed_store_says_so() {
    let disk = Disk::new();
    let store = Arc::new(disk.store());
    let mut watch = store.watch(weft_model::Revision::ZERO).unwrap();
    drop(store);
    assert!(matches!(watch.try_next(), Err(weft_store::ReadError::Closed)));
    assert!(matches!(watch.wait_next(), Err(weft_store::ReadError::Closed)));
}
