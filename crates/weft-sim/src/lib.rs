//! Fakes, builders, the seeded loop and the simulated cluster.
