//! A store in a real file: restarts, locks, levels, and damage.

use std::{fs, path::Path};

use redb::{Database, TableDefinition};
use weft_model::Revision;
use weft_store::{Dice, Keep, OpenError, ReadError, Redb, Snapshot, Store, conformance};

use crate::disk::Disk;

fn open(path: &Path) -> Result<Redb, OpenError> {
    Redb::open(path, Keep::default())
}

fn put(store: &dyn Store, key: &str) -> Revision {
    store.commit(conformance::txn(key).put(key, conformance::val(key))).unwrap()
}

#[test]
fn reg_12_watch_resumes_from_revision_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path).unwrap();
    let r: Vec<_> = (0..400).map(|i| put(&store, &format!("k/{i}"))).collect();
    store.compact(r[9]).unwrap();
    drop(store);
    let store = open(&path).unwrap();
    let head = store.head().unwrap();
    assert_eq!((head.revision, &*head.why), (r[399], "k/399"));
    let mut watch = store.watch(r[100]).unwrap();
    let r400 = put(&store, "after");
    let got: Vec<_> = conformance::entries(&mut watch, r400).iter().map(|e| e.revision).collect();
    assert_eq!(got, [&r[101..], &[r400]].concat());
    assert!(matches!(store.watch(r[8]), Err(ReadError::Compacted { oldest, .. }) if oldest == r[9]));
    assert_eq!(store.range("k/", Some(r[50])).unwrap().items.len(), 51);
}

#[test]
fn reg_30_a_snapshot_moves_to_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let old = open(&dir.path().join("old.redb")).unwrap();
    let last = put(&old, "k");
    let backup = old.snapshot().unwrap().to_bytes();
    let path = dir.path().join("new.redb");
    let new = open(&path).unwrap();
    let restored = new.restore(&Snapshot::from_bytes(&backup).unwrap(), conformance::txn("restore")).unwrap();
    drop(new);
    let new = open(&path).unwrap();
    assert_eq!(new.head().unwrap().revision, restored);
    assert!(restored.incarnation > last.incarnation);
    assert_eq!(new.range("", None).unwrap().items, [conformance::row("k", "k", restored, restored)]);
    assert_eq!(put(&new, "k"), Revision::new(restored.incarnation, restored.n + 1));
}

#[test]
fn a_file_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path).unwrap();
    let e = open(&path).map(drop).unwrap_err();
    let want = format!(
        "store file {} is in use by another process; stop that one, or give this one another data directory",
        path.display()
    );
    assert_eq!(e.to_string(), want);
    drop(store);
    open(&path).unwrap();
}

#[cfg(unix)]
#[test]
fn the_file_is_private_and_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    put(&open(&path).unwrap(), "k");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_missing_directory_is_named() {
    let e = open(Path::new("/nonexistent/weft/store.redb")).map(drop).unwrap_err();
    assert!(matches!(e, OpenError::Io { .. }), "{e}");
    let want =
        "store file /nonexistent/weft/store.redb cannot be opened; check its directory, permissions and disk space";
    assert_eq!(e.to_string(), want);
}

#[test]
fn a_newer_feature_level_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(open(&path).unwrap());
    let db = Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    let meta: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
    txn.open_table(meta).unwrap().insert("feature_level", &2_u32.to_be_bytes()[..]).unwrap();
    txn.commit().unwrap();
    drop(db);
    let before = fs::read(&path).unwrap();
    let e = open(&path).map(drop).unwrap_err();
    assert!(matches!(e, OpenError::Newer { level: 2, known: 1, .. }), "{e}");
    assert!(fs::read(&path).unwrap() == before, "the file was changed");
}

#[test]
fn a_corrupt_file_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    fs::write(&path, "this is no store").unwrap();
    let e = open(&path).map(drop).unwrap_err();
    let want = format!(
        "store file {} is corrupt and was refused: Not a redb database: magic number mismatch; the file was kept as it \
         is: copy it away for analysis, then restore the last snapshot into a new data directory",
        path.display()
    );
    assert_eq!(e.to_string(), want);
    assert_eq!(fs::read_to_string(&path).unwrap(), "this is no store");
}

/// Any damage to a file that was closed cleanly is noticed, or does not matter.
#[test]
fn damage_is_refused_or_harmless() {
    let disk = Disk::new();
    let store = disk.store();
    for i in 0..200 {
        put(&store, &format!("k/{i}"));
    }
    let (head, rows) = (store.head().unwrap(), store.range("", None).unwrap());
    drop(store);
    let good = disk.set(|i| i.live.clone());
    let mut dice = Dice::seeded(3);
    let (mut refused, mut harmless) = (0, 0);
    for i in 0..300 {
        let mut bad = good.clone();
        // Most damage where the header is and where pages are in use, the rest anywhere.
        let at = if i % 10 == 0 { dice.below(512) } else { dice.below(good.len() as u64) } as usize;
        match i % 3 {
            0 => bad[at] ^= 1 << dice.below(8),
            1 => bad[at..].iter_mut().take(4096).for_each(|b| *b = 0),
            _ => bad.truncate(at),
        }
        let bad = Disk::holding(bad);
        let before = bad.set(|i| i.live.clone());
        match bad.open(Keep::default()) {
            Ok(store) => {
                assert_eq!(
                    (store.head().unwrap(), store.range("", None).unwrap()),
                    (head.clone(), rows.clone()),
                    "damage {i} at {at}"
                );
                harmless += 1;
            }
            Err(OpenError::Corrupt { .. }) => {
                assert!(bad.set(|i| i.live == before), "damage {i} at {at}: the file was changed");
                refused += 1;
            }
            Err(e) => panic!("damage {i} at {at}: {e}"),
        }
    }
    assert!(refused > 50 && harmless > 10, "{refused} refused, {harmless} harmless");
}
