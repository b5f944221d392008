//! The delta engine, both sides against each other, and the services over a pipe.

mod deltas;
mod simulation;
mod world;
