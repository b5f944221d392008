//! The server as its clients see it: over HTTP, over gRPC with mTLS, over a Unix socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "everything here is a test, its helpers too"
)]

mod ask;
mod attach;
mod hostile;
mod join;
mod kit;
mod pair;
mod publish;
mod refusing;
mod resources;
mod restart;
