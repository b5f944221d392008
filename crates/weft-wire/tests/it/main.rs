//! The delta engine, both sides against each other, and the services over a pipe.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes only the test functions themselves for tests, not what they call"
)]

mod deltas;
mod memory;
mod refused;
mod simulation;
mod world;
