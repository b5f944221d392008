//! End to end over loopback: real sockets, real handshakes, two sidecars in one process.

#[path = "../support/mod.rs"]
mod support;

mod http1;
mod origin;
