//! Every format between our processes, and the sans-IO delta engine.
//!
//! [`pb`] is generated. [`grpc`] is the only place that knows tonic.

pub mod grpc;
pub mod pb;

/// Our own messages.
pub use pb::weft::v1;
