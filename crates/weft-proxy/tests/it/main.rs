//! End to end over loopback: real sockets, real handshakes, two sidecars in one process.

#[path = "../support/mod.rs"]
mod support;

mod drain;
mod explicit;
mod http1;
mod http2;
mod mesh;
mod origin;
mod policy;
mod retry;
mod smuggling;
mod tcp;
