//! Fakes, builders, the seeded loop and the simulated cluster.
//!
//! [`seeded`] drives every pure state machine of ours in ordinary tests; it needs nothing but `weft-model`. What needs a
//! runtime stands behind the feature `cluster`: [`pipe_net`], the network of the simulated mesh. That mesh itself, real
//! control plane and real proxies under faults, is `tests/it/mesh.rs`.

#[cfg(feature = "cluster")]
pub mod pipe_net;
pub mod seeded;
