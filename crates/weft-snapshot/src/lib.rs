//! What one proxy knows, and every decision made from it.
//!
//! [`fragment`] holds what the control plane sends, as plain values. [`snapshot::Snapshot::build`] checks a set of them
//! and compiles it into one immutable value. The decisions are synchronous functions over it which return their reason;
//! in the order in which a request meets them: [`detect`], [`resolve`], [`authz`], [`route`], [`balance`], [`retry`],
//! [`eject`]. What they said is kept as a [`decision`], and what a proxy answers by itself is a [`failure`].
//!
//! Architecture invariant: no async, no I/O, no clock, no codec, no operator dialect in this crate.

pub mod authz;
pub mod balance;
pub mod deadline;
pub mod decision;
pub mod detect;
pub mod eject;
pub mod failure;
pub mod fragment;
pub mod request;
pub mod resolve;
pub mod retry;
pub mod route;
pub mod snapshot;

#[cfg(test)]
mod path_of_a_request;
mod pattern;
#[cfg(test)]
mod samples;
