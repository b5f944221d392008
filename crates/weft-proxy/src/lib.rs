//! The data plane. A [`Sidecar`] serves one workload: its outbound listeners, and its mesh port.
//!
//! Reading order: `sidecar.rs` (what is started) → `worker.rs` (what connections share) → `serve.rs` (the story of a
//! connection) → `http.rs` (the story of a request) → `upstream.rs`, `pool.rs`, `pump.rs` (where it goes). `codec/` is the
//! seam to the protocols, `record.rs` the seam to metrics and logs.
//!
//! Architecture invariant: no CA, store, resource or control-plane code; no task without an owner; nothing that a socket
//! brings can panic the process.

pub mod access_log;
pub mod admin;
pub mod codec;
pub mod control;
pub mod explicit;
pub mod failure;
pub mod flows;
pub mod head;
pub mod http;
pub mod io;
pub mod loads;
pub mod local;
pub mod metrics;
pub mod observe;
pub mod pick;
pub mod pool;
pub mod pump;
pub mod record;
pub mod ring;
pub mod serve;
pub mod sidecar;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;
pub mod workload;

pub use record::{NoSink, Record, Sink};
pub use sidecar::{Bound, Config, PortRef, Sidecar, Sources, StartError, Upstream};
pub use tls::Credentials;
