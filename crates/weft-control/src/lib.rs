//! The control plane: registry shell, resource API, publisher, workload API.
//!
//! The way of a change, forward: [`api::resources`] or [`api::apply`] admits documents → [`documents`] plans their
//! transaction → [`replica`] commits it → [`publish`], the only loop, folds the log into [`state`], compiles the fragments
//! whose inputs changed and hands them to [`sessions`] → proxies acknowledge. The way of a workload: [`api::workload`]
//! (join, renew, attach) → [`authority`] and the registry; [`liveness`] is what silence means.
//!
//! Architecture invariant: no data-path code. State changes only by folding committed entries; one task writes it.

pub mod api;
pub mod authority;
pub mod documents;
pub mod first_start;
pub mod history;
pub mod keys;
pub mod liveness;
pub mod may_register;
pub mod may_subscribe;
pub mod metrics;
pub mod publish;
pub mod replica;
pub mod server;
pub mod sessions;
pub mod state;
pub mod status;

mod catalog;
mod housekeeping;
mod https;
mod slots;

pub use server::{Addresses, Config, Server, ServerError, StoreKind};
