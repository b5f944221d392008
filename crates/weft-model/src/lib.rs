//! The words every other crate speaks: names, SPIFFE IDs, protocols, health, revisions, digests and time.
//!
//! Architecture invariant: nothing here is async, does I/O, or reads a clock.

pub mod digest;
pub mod health;
pub mod labels;
pub mod name;
pub mod protocol;
pub mod revision;
pub mod spiffe;
pub mod time;

pub use digest::Digest;
pub use health::Health;
pub use labels::{Labels, Locality, Selector};
pub use name::{Name, NameError, ResourceRef, ServiceKey, Uid};
pub use protocol::Protocol;
pub use revision::Revision;
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
pub use time::{Mono, Wall};
