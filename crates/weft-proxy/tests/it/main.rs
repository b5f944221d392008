//! End to end over loopback: real sockets, real handshakes, two sidecars in one process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod drain;
mod explicit;
mod http1;
mod http2;
mod memory;
mod mesh;
mod origin;
mod policy;
mod reasons;
mod retry;
mod smuggling;
mod tcp;
mod tries;
