//! A store is a map with a log: the smallest thing that gives a store's answers, and random transactions to ask with.

use std::{collections::BTreeMap, sync::mpsc};

use weft_model::{Revision, Wall};
use weft_store::{CommitError, Dice, Expect, Key, KeyState, Store, Txn, TxnId, Versioned, Write, conformance};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    pub rows: BTreeMap<Key, Versioned>,
    pub head: Revision,
}

impl Model {
    /// Whether the transaction commits. The random ones delete with guards, so that every store sees the same.
    pub fn allows(&self, txn: &Txn) -> bool {
        txn.expects.iter().all(|e| match e {
            Expect::Key { key, state: KeyState::Absent } => !self.rows.contains_key(key),
            Expect::Key { key, state: KeyState::ModRevision(r) } => {
                self.rows.get(key).is_some_and(|v| v.modified == *r)
            }
            Expect::Prefix { prefix, unchanged_since } => {
                self.under(prefix).all(|(_, v)| v.modified <= *unchanged_since)
            }
            Expect::Leader { .. } => false,
        })
    }

    pub fn apply(&mut self, txn: &Txn, r: Revision) {
        assert!(r > self.head, "{r} after {}", self.head);
        self.head = r;
        for prefix in &txn.delete_prefixes {
            self.rows.retain(|k, _| !k.starts_with(prefix.as_str()));
        }
        for (key, write) in &txn.writes {
            match write {
                Write::Put(value) => {
                    let created = self.rows.get(key).map_or(r, |v| v.created);
                    self.rows.insert(key.clone(), Versioned { value: value.clone(), created, modified: r });
                }
                Write::Delete => {
                    self.rows.remove(key);
                }
            }
        }
    }

    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a Key, &'a Versioned)> {
        self.rows.iter().filter(move |(k, _)| k.starts_with(prefix))
    }

    pub fn items(&self, prefix: &str) -> Vec<(Key, Versioned)> {
        self.under(prefix).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// A transaction that a planner might make which last saw the store at `seen` of `past`.
pub fn random_txn(dice: &mut Dice, id: u64, seen: &Model) -> Txn {
    let mut txn = Txn::new(TxnId(id.into()), format!("writer {}", dice.below(3)), Wall::secs(id as i64), "because");
    let group = |dice: &mut Dice| format!("g{}/", dice.below(3));
    for _ in 0..dice.below(3) {
        let key = Key::from(format!("{}{}", group(dice), dice.below(4)));
        txn = match (dice.below(3), seen.rows.get(&key)) {
            (0, Some(v)) => txn.expect(Expect::unchanged(key, v.modified)),
            (0, None) => txn.expect(Expect::absent(key)),
            _ => txn.expect_all(Expect::group(&group(dice), seen.head)),
        };
    }
    for _ in 0..=dice.below(3) {
        let group = group(dice);
        let key = format!("{group}{}", dice.below(4));
        if txn.delete_prefixes.iter().any(|p| p.as_str() == group) {
            continue;
        }
        txn = match dice.below(8) {
            0 if !txn.writes.keys().any(|k| k.starts_with(&group)) => txn.delete_prefix(&*group).touch_guard(&group),
            1 | 2 => txn.delete(key).touch_guard(&group),
            _ => txn.put(key, conformance::val(&"x".repeat(dice.below(400) as usize))),
        };
    }
    txn
}

/// Random transactions, some planned on an old view; each answer is compared to the model's. Returns what happened.
pub fn drive(store: &dyn Store, seed: u64, steps: u64) -> Vec<String> {
    let mut dice = Dice::seeded(seed);
    let mut past = vec![Model::default()];
    let mut trace = vec![];
    for id in 1..=steps {
        let seen = past[past.len() - 1 - dice.below(3.min(past.len() as u64)) as usize].clone();
        let txn = random_txn(&mut dice, id, &seen);
        let mut now = past.last().unwrap().clone();
        let outcome = conformance::commit(store, txn.clone());
        trace.push(format!("{outcome:?}"));
        match outcome {
            Ok(r) => {
                assert!(now.allows(&txn), "seed {seed}, step {id}: {txn:?} committed");
                now.apply(&txn, r);
                past.push(now);
            }
            Err(CommitError::Conflict { .. }) => {
                assert!(!now.allows(&txn), "seed {seed}, step {id}: {txn:?} was refused")
            }
            Err(e) => panic!("seed {seed}, step {id}: {e}"),
        }
    }
    for (i, then) in past.iter().enumerate().step_by(7) {
        let range = store.range("g1/", Some(then.head)).unwrap();
        assert_eq!(range.items, then.items("g1/"), "seed {seed}, commit {i}");
    }
    let last = past.last().unwrap();
    assert_eq!(store.range("", None).unwrap().items, last.items(""), "seed {seed}");
    let log = conformance::entries(&mut store.watch(Revision::ZERO).unwrap(), last.head);
    let revisions: Vec<_> = past.iter().skip(1).map(|m| m.head).collect();
    assert_eq!(log.iter().map(|e| e.revision).collect::<Vec<_>>(), revisions, "seed {seed}");
    trace
}

/// Submits a batch at once and waits for all outcomes.
pub fn commit_together(store: &dyn Store, txns: Vec<Txn>) -> Vec<Result<Revision, CommitError>> {
    let (tell, outcomes) = mpsc::channel();
    let batch = txns.into_iter().map(|txn| {
        let tell = tell.clone();
        let done: weft_store::Done = Box::new(move |o| tell.send(o).unwrap());
        (txn, done)
    });
    store.submit_all(batch.collect());
    drop(tell);
    outcomes.iter().collect()
}
