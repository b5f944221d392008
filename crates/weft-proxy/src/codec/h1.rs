//! HTTP/1.0 and 1.1, both sides.

pub mod client;
mod decode;
pub mod parse;
pub mod server;
pub mod wire;
mod write;

pub(crate) use wire::Outgoing;
pub use wire::{Incoming, SharedWire, Wire};
