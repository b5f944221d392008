//! The server as its clients see it: over HTTP, over gRPC with mTLS, over a Unix socket.

mod ask;
mod attach;
mod join;
mod kit;
mod publish;
mod resources;
mod restart;
