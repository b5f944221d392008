//! What the seeds of `WEFT_SIM_SEEDS` choose: random transactions on every store, and power losses at every access.

use weft_sim::seeded::Seeds;
use weft_store::{Dice, Memory};

use crate::{
    conforms::faulty,
    crash::{at_every_access, check, run},
    disk::Disk,
    model,
};

/// All stores give the model's answers to the same random transactions.
#[test]
fn every_store_agrees_with_the_model() {
    Seeds::from_env_or(24).each(|seed| {
        let plain = model::drive(&Memory::new(), seed, 150);
        let redb = model::drive(&Disk::new().store(), seed, 150);
        assert_eq!(plain, redb, "seed {seed}: the embedded stores differ");
        model::drive(&Memory::etcd_like(seed), seed, 150);
        model::drive(&faulty(seed), seed, 150);
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..4 {
        assert_eq!(model::drive(&faulty(seed), seed, 100), model::drive(&faulty(seed), seed, 100));
    }
    assert_ne!(model::drive(&faulty(1), 1, 100), model::drive(&faulty(2), 2, 100));
}

#[test]
fn nothing_acknowledged_is_lost_whenever_the_power_goes() {
    Seeds::from_env_or(3).each(|seed| {
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
    });
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
