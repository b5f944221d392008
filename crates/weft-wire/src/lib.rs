//! Every format between our processes, and the sans-IO delta engine.
//!
//! In reading order: [`name`] and [`fragment`] are what is said, [`delta`] is how a set of it reaches a proxy, [`pb`] is
//! generated, [`grpc`] is the only place that knows tonic.
//!
//! Architecture invariant: no policy is decided here; who may subscribe is an argument.

#[cfg(test)]
mod arbitrary;
mod codec;
pub mod delta;
pub mod fragment;
pub mod grpc;
pub mod hello;
pub mod name;
pub mod observe;
pub mod pb;

/// Our own messages.
pub use pb::weft::v1;
