//! What runs on a host beside its workloads: the application as a child process, its health checks, and a janitor that
//! cleans up when everything above it was killed.
//!
//! Architecture invariant: nothing here decides about traffic, and nothing here talks to the control plane by itself;
//! it reports on channels which the composition in `weft` connects to the sidecar.

pub mod check;
pub mod child;
pub mod exposure;
pub mod janitor;
