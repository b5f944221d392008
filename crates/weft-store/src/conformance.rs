//! What every store must do, as functions over any of them. A new implementation calls [`all`] from a test.
//!
//! The cases follow the caller's discipline: after `Unknown` they look the id up, and watches are read until they have
//! caught up. So they also hold for a store with simulated faults.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a suite tells what is wrong by panicking"
)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
};

use weft_model::{Revision, Wall};

use crate::{
    Bytes, Change, CommitError, Entry, Expect, Format, Key, LEADER_KEY, MAX_EXPECTS, MAX_KEY_BYTES, MAX_TXN_BYTES,
    MAX_WRITES, ReadError, Store, Txn, TxnId, Versioned, Watch, guard_key,
};

/// Makes a store that nobody has written to.
pub type Make<'a> = &'a dyn Fn() -> Box<dyn Store>;

pub type Case = fn(Make<'_>);

/// Each case by name, so that a failure says which.
pub const CASES: &[(&str, Case)] = &[
    ("one transaction is one revision", one_transaction_is_one_revision),
    ("an empty transaction is a revision", empty_transaction_is_a_revision),
    ("key expectations", key_expectations),
    ("a conflict changes nothing", conflict_changes_nothing),
    ("prefix expectations see writes", prefix_expectations_see_writes),
    ("the guard discipline sees deletions", guard_discipline_sees_deletions),
    ("a leader is fenced by its term", leader_is_fenced_by_its_term),
    ("refusals", refusals),
    ("deleted prefixes are spelled out", deleted_prefixes_are_spelled_out),
    ("created and modified", created_and_modified),
    ("ranges of the past", ranges_of_the_past),
    ("a watch yields each entry once", watch_yields_each_entry_once),
    ("a watch wakes", watch_wakes),
    ("compaction", compaction),
    ("ids are remembered", ids_are_remembered),
    ("restore", restore),
    ("restore into another store", restore_into_another_store),
    ("writers on threads", writers_on_threads),
];

pub fn all(make: Make<'_>) {
    for (name, case) in CASES {
        eprintln!("conformance: {name}");
        case(make);
    }
}

pub fn one_transaction_is_one_revision(make: Make<'_>) {
    let store = make();
    assert_eq!(store.head().unwrap().revision, Revision::ZERO);
    let t = txn("first").put("a", val("1")).put("b", val("2"));
    let id = t.txn_id;
    let r1 = commit(&*store, t).unwrap();
    assert!(r1 > Revision::ZERO);
    let head = store.head().unwrap();
    assert_eq!((head.revision, head.txn_id), (r1, id));
    assert_eq!((&*head.who, &*head.why, head.when), ("tester", "first", Wall::secs(7)));
    let r2 = commit(&*store, txn("second").put("b", val("3"))).unwrap();
    assert!(r2 > r1 && r2.incarnation == r1.incarnation);
    let range = store.range("", None).unwrap();
    assert_eq!(range.revision, r2);
    assert_eq!(range.items, [row("a", "1", r1, r1), row("b", "3", r1, r2)]);
    assert_eq!(store.get("a").unwrap(), Some(row("a", "1", r1, r1).1));
    assert_eq!(store.get("c").unwrap(), None);
    assert_eq!(store.range("b", None).unwrap().items.len(), 1);
}

pub fn empty_transaction_is_a_revision(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("nothing")).unwrap();
    let r2 = commit(&*store, txn("nothing again").delete("absent").delete_prefix("nobody/")).unwrap();
    assert!(r2 > r1);
    let log = entries(&mut store.watch(Revision::ZERO).unwrap(), r2);
    assert_eq!(log.iter().map(|e| (e.revision, e.changes.len())).collect::<Vec<_>>(), [(r1, 0), (r2, 0)]);
}

pub fn key_expectations(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").expect(Expect::absent("a")).put("a", val("1"))).unwrap();
    let e = commit(&*store, txn("").expect(Expect::absent("a")).put("a", val("2"))).unwrap_err();
    assert!(matches!(&e, CommitError::Conflict { found: Some(r), .. } if *r == r1) && e.is_conflict(), "{e}");
    let r2 = commit(&*store, txn("").expect(Expect::unchanged("a", r1)).put("a", val("2"))).unwrap();
    let e = commit(&*store, txn("").expect(Expect::unchanged("a", r1)).put("a", val("3"))).unwrap_err();
    assert!(matches!(&e, CommitError::Conflict { found: Some(r), .. } if *r == r2), "{e}");
    commit(&*store, txn("").expect(Expect::unchanged("a", r2)).delete("a")).unwrap();
    let e = commit(&*store, txn("").expect(Expect::unchanged("a", r2)).put("b", val("3"))).unwrap_err();
    assert!(matches!(&e, CommitError::Conflict { found: None, .. }), "{e}");
    commit(&*store, txn("").expect(Expect::absent("a")).put("a", val("4"))).unwrap();
}

pub fn conflict_changes_nothing(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").put("a", val("1"))).unwrap();
    let bad = txn("").expect(Expect::unchanged("a", r1)).expect(Expect::unchanged("b", r1)).put("a", val("2"));
    let id = bad.txn_id;
    assert!(commit(&*store, bad).unwrap_err().is_conflict());
    assert_eq!(store.head().unwrap().revision, r1);
    assert_eq!(store.range("", None).unwrap().items, [row("a", "1", r1, r1)]);
    assert_eq!(store.lookup(id).unwrap(), None);
    assert_eq!(store.watch(r1).unwrap().try_next().unwrap(), None);
}

pub fn prefix_expectations_see_writes(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").put("a/1", val("1")).put("b/1", val("1"))).unwrap();
    let expect = |since| Expect::Prefix { prefix: Key::from("a/"), unchanged_since: since };
    let r2 = commit(&*store, txn("").expect(expect(r1)).put("b/2", val("1"))).unwrap();
    // What happens beside the prefix does not matter.
    let r3 = commit(&*store, txn("").expect(expect(r1)).put("a/2", val("1"))).unwrap();
    let e = commit(&*store, txn("").expect(expect(r2)).put("b/3", val("1"))).unwrap_err();
    assert!(matches!(e, CommitError::Conflict { found: Some(r), .. } if r == r3), "{e}");
    commit(&*store, txn("").expect(expect(r3)).put("a/1", val("2"))).unwrap();
    assert!(commit(&*store, txn("").expect(expect(r3)).put("b/3", val("1"))).unwrap_err().is_conflict());
}

/// Two planners read a group. One deletes from it; the other must not commit as if nothing had happened, on no store.
pub fn guard_discipline_sees_deletions(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").put("svc/web/1", val("1")).put("svc/web/2", val("1"))).unwrap();
    let group = |group, since| txn("").expect_all(Expect::group(group, since));
    let r2 = commit(&*store, group("svc/web/", r1).delete("svc/web/1").touch_guard("svc/web/")).unwrap();
    let late = group("svc/web/", r1).put("plan", val("made from both"));
    assert!(commit(&*store, late).unwrap_err().is_conflict());
    // Who read an enclosing group sees it as well; who read afterwards, or another group, does not mind.
    assert!(commit(&*store, group("svc/", r1).put("plan", val("of all"))).unwrap_err().is_conflict());
    commit(&*store, group("svc/web/", r2).put("plan", val("made from one"))).unwrap();
    commit(&*store, group("svc/db/", r1).put("plan", val("of the other"))).unwrap();
    // The last of a group goes by its prefix: nothing is left in it that could tell.
    let r3 = commit(&*store, group("svc/web/", r2).delete_prefix("svc/web/").touch_guard("svc/web/")).unwrap();
    assert!(commit(&*store, group("svc/web/", r2).put("svc/web/3", val("1"))).unwrap_err().is_conflict());
    commit(&*store, group("svc/web/", r3).put("svc/web/3", val("1"))).unwrap();
    assert!(!guard_key("svc/web/").starts_with("svc/"), "a guard lies outside its group");
}

pub fn leader_is_fenced_by_its_term(make: Make<'_>) {
    let store = make();
    let elect = |state| txn("elect").expect(state).put(LEADER_KEY, val("me"));
    let term = commit(&*store, elect(Expect::absent(LEADER_KEY))).unwrap();
    commit(&*store, txn("").expect(Expect::Leader { term }).put("a", val("1"))).unwrap();
    let next = commit(&*store, elect(Expect::unchanged(LEADER_KEY, term))).unwrap();
    let e = commit(&*store, txn("").expect(Expect::Leader { term }).put("a", val("2"))).unwrap_err();
    assert!(matches!(e, CommitError::Conflict { found: Some(r), .. } if r == next), "{e}");
    assert!(!e.is_conflict(), "planning again does not make one the leader");
    commit(&*store, txn("").expect(Expect::Leader { term: next }).put("a", val("2"))).unwrap();
}

pub fn refusals(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").put("a/1", val("1"))).unwrap();
    let refused = |t: Txn| {
        let id = t.txn_id;
        let e = store.commit(t);
        // A refusal comes before anything can be lost; a store with faults may still lose the answer.
        if let Err(CommitError::Unknown { .. }) = e {
            assert_eq!(store.lookup(id).unwrap(), None);
            return None;
        }
        Some(e.unwrap_err())
    };
    let check = |t: Txn, want: &dyn Fn(&CommitError) -> bool| {
        if let Some(e) = std::iter::repeat_with(|| refused(t.clone())).flatten().next() {
            assert!(want(&e), "{e}");
        }
    };
    let duplicate = |e: &CommitError| matches!(e, CommitError::DuplicateKey { .. });
    check(txn("").delete_prefix("a/").put("a/2", val("1")), &duplicate);
    check(txn("").delete_prefix("a/").delete("a/1"), &duplicate);
    check(txn("").delete_prefix("a/").delete_prefix("a/b/"), &duplicate);
    check(txn("").delete_prefix("a/").delete_prefix("a/"), &duplicate);
    let too = |what| move |e: &CommitError| matches!(e, CommitError::TooLarge { what: w, .. } if *w == what);
    check(txn("").put("big", Format::Raw.wrap(&vec![0; MAX_TXN_BYTES])), &too("bytes"));
    let many = |n: usize| (0..n).map(|i| Key::from(format!("many/{i:04}")));
    check(txn("").expect_all(many(MAX_EXPECTS + 1).map(Expect::absent)), &too("expectations"));
    check(many(MAX_WRITES + 1).fold(txn(""), |t, k| t.put(k, val("1"))), &too("writes"));
    let invalid = |e: &CommitError| matches!(e, CommitError::Invalid { .. });
    check(txn("").put("", val("1")), &invalid);
    check(txn("").put("k".repeat(MAX_KEY_BYTES + 1), val("1")), &invalid);
    check(txn("").delete_prefix(""), &invalid);
    check(txn("").put("no format byte", Vec::new()), &invalid);
    assert_eq!(store.range("", None).unwrap().items, [row("a/1", "1", r1, r1)]);
    // The largest of each kind commits.
    let most =
        many(MAX_WRITES).fold(txn("").expect_all(many(MAX_EXPECTS).map(Expect::absent)), |t, k| t.put(k, val("1")));
    commit(&*store, most).unwrap();
    let big = txn("").put("big", Format::Raw.wrap(&vec![0; MAX_TXN_BYTES - 1024]));
    commit(&*store, big).unwrap();
}

pub fn deleted_prefixes_are_spelled_out(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").put("a/1", val("1")).put("a/2", val("2")).put("a0", val("3"))).unwrap();
    let r2 = commit(&*store, txn("").delete_prefix("a/").put("z", val("4"))).unwrap();
    assert_eq!(store.range("", None).unwrap().items, [row("a0", "3", r1, r1), row("z", "4", r2, r2)]);
    let log = entries(&mut store.watch(r1).unwrap(), r2);
    let gone = |k: &str, v: &str| Change { key: k.into(), before: Some(row(k, v, r1, r1).1), after: None };
    let made = Change { key: "z".into(), before: None, after: Some(row("z", "4", r2, r2).1) };
    assert_eq!(log[0].changes, [gone("a/1", "1"), gone("a/2", "2"), made]);
}

pub fn created_and_modified(make: Make<'_>) {
    let store = make();
    let r1 = commit(&*store, txn("").put("a", val("1"))).unwrap();
    let r2 = commit(&*store, txn("").put("a", val("1"))).unwrap();
    assert_eq!(store.get("a").unwrap(), Some(row("a", "1", r1, r2).1), "an equal value is a write too");
    commit(&*store, txn("").delete("a")).unwrap();
    let r4 = commit(&*store, txn("").put("a", val("1"))).unwrap();
    assert_eq!(store.get("a").unwrap(), Some(row("a", "1", r4, r4).1));
}

pub fn ranges_of_the_past(make: Make<'_>) {
    let store = make();
    let mut model: BTreeMap<Key, Versioned> = BTreeMap::new();
    let mut past = vec![(Revision::ZERO, model.clone())];
    for i in 0..20_u32 {
        let (key, v) = (format!("k/{}", i % 5), i.to_string());
        let t = if i % 7 == 6 { txn("").delete_prefix("k/") } else { txn("").put(key.clone(), val(&v)) };
        let r = commit(&*store, t).unwrap();
        if i % 7 == 6 {
            model.clear();
        } else {
            let created = model.get(&*key).map_or(r, |old| old.created);
            model.insert(key.clone().into(), row(&key, &v, created, r).1);
        }
        past.push((r, model.clone()));
    }
    for (at, rows) in past {
        let range = store.range("k/", Some(at)).unwrap();
        assert_eq!((range.revision, range.items), (at, rows.into_iter().collect()), "at {at}");
    }
    let head = store.head().unwrap().revision;
    let ahead = Revision::new(head.incarnation, head.n + 1);
    assert!(matches!(store.range("", Some(ahead)), Err(ReadError::Ahead { .. })));
}

pub fn watch_yields_each_entry_once(make: Make<'_>) {
    let store = make();
    let mut early = store.watch(Revision::ZERO).unwrap();
    assert_eq!(early.try_next().unwrap(), None);
    let revisions: Vec<_> =
        (0..300).map(|i| commit(&*store, txn(&i.to_string()).put("k", val("v"))).unwrap()).collect();
    let head = *revisions.last().unwrap();
    let got: Vec<_> = entries(&mut early, head).iter().map(|e| e.revision).collect();
    assert_eq!(got, revisions);
    assert_eq!((early.position(), early.try_next().unwrap()), (head, None));
    for (i, from) in revisions.iter().enumerate().step_by(37) {
        let got: Vec<_> = entries(&mut store.watch(*from).unwrap(), head).iter().map(|e| e.revision).collect();
        assert_eq!(got, revisions[i + 1..], "resumed after {from}");
    }
    let ahead = Revision::new(head.incarnation, head.n + 1);
    assert!(matches!(store.watch(ahead), Err(ReadError::Ahead { .. })));
    assert!(matches!(store.watch(Revision::new(head.incarnation + 1, 0)), Err(ReadError::OtherIncarnation { .. })));
}

pub fn watch_wakes(make: Make<'_>) {
    #[derive(Default)]
    struct Count(AtomicU64);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let store = make();
    let mut watch = store.watch(Revision::ZERO).unwrap();
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    assert!(watch.poll_next(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(count.0.load(Ordering::SeqCst), 0);
    let r = commit(&*store, txn("").put("a", val("1"))).unwrap();
    // The callback of a commit may come before the wakes.
    while count.0.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    let got = loop {
        if let Poll::Ready(got) = watch.poll_next(&mut Context::from_waker(&waker)) {
            break got.unwrap();
        }
    };
    assert_eq!(got.iter().map(|e| e.revision).collect::<Vec<_>>(), [r]);
    // A thread that blocks on it is woken as well.
    let blocked = thread::spawn(move || watch.wait_next().map(|got| got.len()));
    commit(&*store, txn("").put("a", val("2"))).unwrap();
    assert_eq!(blocked.join().unwrap().unwrap(), 1);
}

pub fn compaction(make: Make<'_>) {
    let store = make();
    let r: Vec<_> = (0..10).map(|i| commit(&*store, txn("").put("k", val(&i.to_string()))).unwrap()).collect();
    let mut behind = store.watch(r[2]).unwrap();
    store.compact(r[5]).unwrap();
    store.compact(r[3]).unwrap();
    for e in [behind.try_next().unwrap_err(), store.watch(r[4]).unwrap_err(), store.range("", Some(r[4])).unwrap_err()]
    {
        assert!(matches!(e, ReadError::Compacted { oldest, .. } if oldest == r[5]), "{e}");
    }
    let got: Vec<_> = entries(&mut store.watch(r[5]).unwrap(), r[9]).iter().map(|e| e.revision).collect();
    assert_eq!(got, r[6..]);
    assert_eq!(store.range("", Some(r[5])).unwrap().items, [row("k", "5", r[0], r[5])]);
    assert_eq!(store.range("", None).unwrap().items, [row("k", "9", r[0], r[9])]);
    store.compact(r[9]).unwrap();
    assert_eq!(store.watch(r[9]).unwrap().try_next().unwrap(), None);
    assert_eq!(store.head().unwrap().revision, r[9]);
    assert!(matches!(store.compact(Revision::new(0, u64::MAX)), Err(ReadError::Ahead { .. })));
    assert!(commit(&*store, txn("").put("k", val("10"))).unwrap() > r[9]);
}

pub fn ids_are_remembered(make: Make<'_>) {
    let store = make();
    let t = txn("").put("a", val("1"));
    let r = commit(&*store, t.clone()).unwrap();
    assert_eq!(store.lookup(t.txn_id).unwrap(), Some(r));
    let again = std::iter::repeat_with(|| store.commit(t.clone()).unwrap_err());
    let e = again.filter(|e| !matches!(e, CommitError::Unknown { .. })).take(1).next().unwrap();
    assert!(matches!(e, CommitError::AlreadyCommitted { revision, .. } if revision == r), "{e}");
    assert_eq!(store.get("a").unwrap().unwrap().modified, r);
    assert_eq!(store.lookup(TxnId(u128::MAX)).unwrap(), None);
}

pub fn restore(make: Make<'_>) {
    let store = make();
    let term = commit(&*store, txn("").put(LEADER_KEY, val("me"))).unwrap();
    let r1 = commit(&*store, txn("").put("a", val("1")).put("b", val("1"))).unwrap();
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.revision, r1);
    let r2 = commit(&*store, txn("").put("a", val("2")).delete("b").put("c", val("1"))).unwrap();
    let mut watch = store.watch(r1).unwrap();
    let not_leader = txn("").expect(Expect::Leader { term: r2 });
    assert!(matches!(store.restore(&snapshot, not_leader), Err(CommitError::Conflict { .. })));
    let by = txn("restore").expect(Expect::Leader { term }).put("restored", val("why"));
    let id = by.txn_id;
    let r3 = store.restore(&snapshot, by).unwrap();
    assert!(r3.incarnation > r2.incarnation && r3.n > r2.n, "{r2} then {r3}");
    assert_eq!(store.head().unwrap().why, "restore");
    assert_eq!(store.lookup(id).unwrap(), Some(r3));
    let want = [row("a", "1", r3, r3), row("b", "1", r3, r3), row("restored", "why", r3, r3)];
    assert_eq!(store.range("", None).unwrap().items, want);
    for e in [watch.try_next().unwrap_err(), store.watch(r2).unwrap_err(), store.range("", Some(r2)).unwrap_err()] {
        assert!(matches!(e, ReadError::OtherIncarnation { head, .. } if head == r3), "{e}");
    }
    let mut watch = store.watch(r3).unwrap();
    // Nothing that was read before the restore may be committed upon, even where the store is empty.
    for since in [r1, r2] {
        assert!(commit(&*store, txn("").expect(Expect::unchanged("a", since))).unwrap_err().is_conflict());
        let nothing = Expect::Prefix { prefix: "nothing/".into(), unchanged_since: since };
        assert!(commit(&*store, txn("").expect(nothing)).unwrap_err().is_conflict());
    }
    let r4 = commit(&*store, txn("").expect(Expect::unchanged("a", r3)).put("a", val("3"))).unwrap();
    assert!(r4 > r3 && r4.incarnation == r3.incarnation);
    assert_eq!(entries(&mut watch, r4).len(), 1);
}

pub fn restore_into_another_store(make: Make<'_>) {
    let (old, new) = (make(), make());
    let last = (0..5).map(|i| commit(&*old, txn("").put(format!("k/{i}"), val("1"))).unwrap()).last().unwrap();
    commit(&*new, txn("").put("gone", val("1"))).unwrap();
    let restored = new.restore(&old.snapshot().unwrap(), txn("move")).unwrap();
    assert!(restored.incarnation > last.incarnation && restored.n > last.n, "{last} then {restored}");
    let keys: Vec<_> = new.range("", None).unwrap().items.into_iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(keys, ["k/0", "k/1", "k/2", "k/3", "k/4"]);
}

/// Counters that several threads raise, each after reading it: no increment is lost, and a view that folds the log from
/// the first to the last entry equals the store.
pub fn writers_on_threads(make: Make<'_>) {
    const WRITERS: u32 = 4;
    const EACH: u32 = 25;
    let store = make();
    let mut watch = store.watch(Revision::ZERO).unwrap();
    thread::scope(|s| {
        for _ in 0..WRITERS {
            s.spawn(|| (0..EACH).for_each(|_| raise(&*store, "counter")));
        }
    });
    let head = store.head().unwrap().revision;
    let mut view = BTreeMap::new();
    for entry in entries(&mut watch, head) {
        for change in &entry.changes {
            assert_eq!(view.get(&change.key), change.before.as_ref());
            match &change.after {
                Some(after) => view.insert(change.key.clone(), after.clone()),
                None => view.remove(&change.key),
            };
        }
    }
    assert_eq!(store.range("", None).unwrap().items, view.into_iter().collect::<Vec<_>>());
    let counter = store.get("counter").unwrap().unwrap().value;
    assert_eq!(counter, val(&(WRITERS * EACH).to_string()));
}

fn raise(store: &dyn Store, key: &str) {
    loop {
        let old = store.get(key).unwrap();
        let n: u32 = old.as_ref().map_or(0, |v| std::str::from_utf8(&v.value[1..]).unwrap().parse().unwrap());
        let expect = old.map_or(Expect::absent(key), |v| Expect::unchanged(key, v.modified));
        match commit(store, txn("raise").expect(expect).put(key, val(&(n + 1).to_string()))) {
            Ok(_) => return,
            Err(e) => assert!(e.is_conflict(), "{e}"),
        }
    }
}

// === for callers that write cases of their own ===

/// A transaction with an id that no other has in this process.
pub fn txn(why: &str) -> Txn {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Far from the small numbers that a case may choose itself.
    let id = 1 << 64 | u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    Txn::new(TxnId(id), "tester", Wall::secs(7), why)
}

pub fn val(s: &str) -> Bytes {
    Format::Raw.wrap(s.as_bytes())
}

pub fn row(key: &str, value: &str, created: Revision, modified: Revision) -> (Key, Versioned) {
    (key.into(), Versioned { value: val(value), created, modified })
}

/// Commits as every caller must: an unknown outcome is looked up, and only what did not commit is tried again.
pub fn commit(store: &dyn Store, txn: Txn) -> Result<Revision, CommitError> {
    loop {
        match store.commit(txn.clone()) {
            Err(CommitError::Unknown { txn_id, .. }) => {
                if let Some(revision) = store.lookup(txn_id).unwrap() {
                    return Ok(revision);
                }
            }
            outcome => return outcome,
        }
    }
}

/// What a watch yields until it has reached `head`.
pub fn entries(watch: &mut Watch, head: Revision) -> Vec<Arc<Entry>> {
    let mut all = vec![];
    while watch.position() < head {
        all.extend(watch.wait_next().unwrap());
    }
    all
}
