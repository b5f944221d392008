//! The registry as pure functions: [`plan`] says what an operation writes, [`View::fold`] what a commit means.
//!
//! The only way a view changes is by folding committed entries, so that every replica that has folded the same entries
//! knows the same. Nothing here is async, does I/O or reads a clock; what depends on time ([`lease`], [`checks`]) takes
//! `now`.

pub mod checks;
pub mod keys;
pub mod lease;
pub mod object;
pub mod plan;
pub mod value;
pub mod view;

pub use object::{
    Check, CheckId, Holder, Instance, InstanceId, Lease, LeaseState, Node, Owner, Port, Status, Stored, Thresholds,
    Tunnel, Unknown, Upstream, Weights,
};
pub use plan::{Op, Plan, PlanError, Reply, plan};
pub use value::ValueError;
pub use view::{Merged, Touched, View};
