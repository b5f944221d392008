//! Every store under the conformance suite.

use weft_store::{EtcdLike, Keep, Memory, conformance};

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
        conformance::all(&|| Box::new(Memory::with(Keep::default(), Some(EtcdLike::faulty(seed)))));
    }
}
