//! A store that takes no writes for a while, as a full disk makes it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use weft_control::{Config, StoreKind};
use weft_model::Revision;
use weft_store::{
    CommitError, Done, Head, Memory, Range, ReadError, Snapshot, Store, Txn, TxnId, Versioned, Watch, WatchError,
};
use weft_wire::v1::{
    self, CheckDefinition, CheckResult, HttpCheck, attach_reply::Message as Reply, attach_request::Message,
    check_definition::Kind,
};

use crate::kit::{Mesh, attach, config, register};

#[derive(Default)]
struct Refusing {
    store: Memory,
    refuses: AtomicBool,
}

impl Store for Refusing {
    fn submit_all(&self, batch: Vec<(Txn, Done)>) {
        if !self.refuses.load(SeqCst) {
            return self.store.submit_all(batch);
        }
        for (_, done) in batch {
            done(Err(CommitError::Full { source: Arc::new(std::io::ErrorKind::StorageFull.into()) }));
        }
    }

    fn head(&self) -> Result<Head, ReadError> {
        self.store.head()
    }

    fn get(&self, key: &str) -> Result<Option<Versioned>, ReadError> {
        self.store.get(key)
    }

    fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Range, ReadError> {
        self.store.range(prefix, at)
    }

    fn watch(&self, after: Revision) -> Result<Watch, WatchError> {
        self.store.watch(after)
    }

    fn lookup(&self, txn_id: TxnId) -> Result<Option<Revision>, ReadError> {
        self.store.lookup(txn_id)
    }

    fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.store.snapshot()
    }

    fn restore(&self, snapshot: &Snapshot, by: Txn) -> Result<Revision, CommitError> {
        self.store.restore(snapshot, by)
    }

    fn compact(&self, up_to: Revision) -> Result<(), ReadError> {
        self.store.compact(up_to)
    }
}

/// The workload is asked to come back, and what it then says again counts: it is no old news to a server that could not
/// write it the first time.
#[tokio::test]
async fn reg_06_a_result_that_could_not_be_written_is_asked_for_again() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(Refusing::default()));
    let mesh = Mesh::with(Config { store: StoreKind::Given(store.clone()), ..config(dir.path()) }, dir).await;
    let web = mesh.join("shop", "web").await;
    let registration = || {
        let check =
            CheckDefinition { id: "http".into(), kind: Some(Kind::Http(HttpCheck::default())), ..Default::default() };
        v1::Register { checks: vec![check], ..register("shop", "web", "web-1") }
    };
    let result = |status: v1::Health| {
        Message::Check(CheckResult { check_id: "http".into(), status: status.into(), output: "said".into() })
    };
    let (mut attached, _) = attach(&mesh, &web, registration()).await;
    store.refuses.store(true, SeqCst);
    attached.say(result(v1::Health::Passing)).await;
    let Reply::Lost(lost) = attached.reply().await else { panic!("it is not asked to come back") };
    assert!(lost.reason.contains("the disk of the store is full"), "{}", lost.reason);

    store.refuses.store(false, SeqCst);
    let (mut attached, _) = attach(&mesh, &web, registration()).await;
    attached.say(result(v1::Health::Passing)).await;
    assert!(matches!(attached.reply().await, Reply::Ack(_)));
    let (_, seen) = mesh.get("/weft/v1/endpoints").await;
    assert_eq!(seen["endpoints"][0]["health"], "passing", "{seen:#}");
}
