//! The stores under one suite, against a model, and under crashes, full disks and damage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes only the test functions themselves for tests, not what they call"
)]

mod conforms;
mod crash;
mod disk;
mod file;
mod full;
mod group;
mod model;
mod simulation;
