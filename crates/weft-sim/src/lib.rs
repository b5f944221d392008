//! Fakes, builders, the seeded loop and the simulated cluster.
//!
//! [`seeded`] drives every pure state machine of ours in ordinary tests; it needs nothing but `weft-model`. What needs a
//! runtime stands behind the feature `cluster`.

pub mod seeded;
