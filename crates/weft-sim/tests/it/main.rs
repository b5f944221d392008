//! The whole mesh in one thread: a real control plane, real proxies, real mTLS, over pipes and in paused time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(clippy::needless_range_loop, reason = "nodes are told by their number")]

mod calls;
mod control;
mod judge;
mod mesh;
mod node;
mod oracle;
mod simulation;
