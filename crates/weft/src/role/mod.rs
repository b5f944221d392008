//! The long-lived roles: each composes what the crates below offer.

pub mod dev;
pub mod run;
pub mod server;
