//! The certificate authority: what is signed, by which key, and the record of it.
//!
//! The way of an issuance, forward: `token` (may this key join?) → `template` (what the certificate will say, from
//! parameters only) → `ledger` (written before anything is signed) → `issue` (signs with the current slot) → `validate`
//! (what was signed is read back before it leaves). Beside it: `slots` says when authorities follow each other, `journal`
//! is what the store keeps of them, `kek` keeps their keys.
//!
//! Architecture invariant: no HTTP, no store, no clock of its own; never linked by the proxy.

pub mod issue;
pub mod journal;
pub mod kek;
pub mod ledger;
pub mod slots;
pub mod template;
pub mod token;
pub mod validate;

mod codec;
#[cfg(test)]
mod conformance;

pub use codec::DecodeError;
pub use issue::{IssueError, Issued, Signer, SignerError};
pub use journal::{Entry, Journal, JournalError, Kind, Status};
pub use ledger::LedgerRecord;
pub use slots::{
    FirstStart, SlotError, Step, activate, current_signer, first_start, plan, prepare_root, prepare_signing,
    root_signer, should_activate, should_prepare,
};
pub use template::{Issue, Template, TemplateError};
pub use token::{Allowed, JoinToken, Refusal, TokenError, TokenRecord, Verdict};
pub use weft_identity::seal::{Kek, SealError};
