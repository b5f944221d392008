//! Fragments as bytes, and back.
//!
//! Encoding is total and deterministic: the same fragment is the same bytes, hence the same digest. Decoding is checked
//! and names the field that is wrong; what this version does not know is refused, never skipped, where skipping could
//! let through what an operator forbade.

mod inbound;
mod routes;
mod service;
mod trust;
mod words;

use std::fmt::Display;

use bytes::Bytes;
use prost::Message as _;
use weft_model::{Digest, Revision};
use weft_snapshot::fragment::Fragment;

use crate::pb::weft::v1 as pb;

/// The one type of resource on our delta stream.
pub const TYPE_URL: &str = "type.googleapis.com/weft.v1.Fragment";

/// Why bytes are no fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub struct DecodeError {
    /// Path of the field, such as `inbound.policies[2].rules[0].from[1]`.
    pub field: String,
    pub why: String,
}

/// What a resource of our stream may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Entry(Fragment),
    /// See `Whole` in fragment.proto.
    Whole,
    /// See `Held` in fragment.proto.
    Held,
    Commit(Commit),
}

/// Ends a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    pub revision: Revision,
    pub set_digest: Digest,
    pub subscriptions_seq: u64,
}

pub fn encode(fragment: &Fragment) -> Bytes {
    use pb::fragment::Kind;
    of_kind(match fragment {
        Fragment::Service(s) => Kind::Service(service::service(s)),
        Fragment::Endpoint(e) => Kind::Endpoint(service::endpoint(e)),
        Fragment::Routes(r) => Kind::Routes(routes::routes(r)),
        Fragment::Workload(w) => Kind::Workload(service::workload(w)),
        Fragment::Inbound(i) => Kind::Inbound(inbound::inbound(i)),
        Fragment::Bundle(b) => Kind::Bundle(trust::bundle(b)),
        Fragment::Revocations(r) => Kind::Revocations(trust::revocations(r)),
    })
}

/// An [`Item`] that is no entry; entries are encoded by [`encode`] where they are compiled, once.
pub fn encode_item(item: &Item) -> Bytes {
    use pb::fragment::Kind;
    match item {
        Item::Entry(fragment) => encode(fragment),
        Item::Whole => of_kind(Kind::Whole(pb::Whole {})),
        Item::Held => of_kind(Kind::Held(pb::Held {})),
        Item::Commit(c) => of_kind(Kind::Commit(pb::Commit {
            revision: Some(revision(c.revision)),
            set_digest: Bytes::copy_from_slice(c.set_digest.as_bytes()),
            subscriptions_seq: c.subscriptions_seq,
        })),
    }
}

pub fn decode(bytes: &Bytes) -> Result<Item, DecodeError> {
    use pb::fragment::Kind;
    let message = pb::Fragment::decode(bytes.clone()).leaf("fragment")?;
    // An unknown field here could be one more condition of a rule: without it the rule would say something else.
    let strict =
        matches!(message.kind, Some(Kind::Routes(_) | Kind::Inbound(_) | Kind::Bundle(_) | Kind::Revocations(_)));
    if strict && message.encode_to_vec() != *bytes {
        return Err(bad("fragment", "has fields that this version does not know, or is encoded in another order"));
    }
    Ok(match message.kind {
        None => return Err(bad("fragment", "is of a kind that this version does not know")),
        Some(Kind::Service(s)) => Item::Entry(Fragment::Service(service::read_service(s).within("service")?)),
        Some(Kind::Endpoint(e)) => Item::Entry(Fragment::Endpoint(service::read_endpoint(e).within("endpoint")?)),
        Some(Kind::Routes(r)) => Item::Entry(Fragment::Routes(routes::read_routes(r).within("routes")?)),
        Some(Kind::Workload(w)) => Item::Entry(Fragment::Workload(service::read_workload(w).within("workload")?)),
        Some(Kind::Inbound(i)) => Item::Entry(Fragment::Inbound(inbound::read_inbound(i).within("inbound")?)),
        Some(Kind::Bundle(b)) => Item::Entry(Fragment::Bundle(trust::read_bundle(b).within("bundle")?)),
        Some(Kind::Revocations(r)) => {
            Item::Entry(Fragment::Revocations(trust::read_revocations(r).within("revocations")?))
        }
        Some(Kind::Whole(_)) => Item::Whole,
        Some(Kind::Held(_)) => Item::Held,
        Some(Kind::Commit(c)) => Item::Commit(read_commit(&c).within("commit")?),
    })
}

pub fn revision(r: Revision) -> pb::Revision {
    pb::Revision { incarnation: r.incarnation, n: r.n }
}

pub fn read_revision(r: &pb::Revision) -> Revision {
    Revision::new(r.incarnation, r.n)
}

pub use service::{address, read_address};
pub use trust::{bundle, read_bundle};
pub use words::{health, labels, locality, protocol, read_health, read_labels, read_locality, read_protocol};
pub use words::{read_tunnel, tunnel};

fn read_commit(c: &pb::Commit) -> Result<Commit, DecodeError> {
    Ok(Commit {
        revision: c.revision.as_ref().map(read_revision).ok_or_else(|| bad("revision", "is missing"))?,
        set_digest: Digest::from_slice(&c.set_digest).ok_or_else(|| bad("set_digest", "is not 32 bytes long"))?,
        subscriptions_seq: c.subscriptions_seq,
    })
}

fn of_kind(kind: pb::fragment::Kind) -> Bytes {
    pb::Fragment { kind: Some(kind) }.encode_to_vec().into()
}

// === naming what is wrong ===

fn bad(field: impl Into<String>, why: impl Into<String>) -> DecodeError {
    DecodeError { field: field.into(), why: why.into() }
}

/// A value's own error becomes that of its field.
trait Leaf<T> {
    fn leaf(self, field: &str) -> Result<T, DecodeError>;
}

impl<T, E: Display> Leaf<T> for Result<T, E> {
    fn leaf(self, field: &str) -> Result<T, DecodeError> {
        self.map_err(|e| bad(field, format!("is refused: {e}")))
    }
}

/// The path grows by the field around it.
trait Within<T> {
    fn within(self, field: &str) -> Result<T, DecodeError>;
}

impl<T> Within<T> for Result<T, DecodeError> {
    fn within(self, field: &str) -> Result<T, DecodeError> {
        self.map_err(|e| {
            let dot = if e.field.is_empty() { "" } else { "." };
            bad(format!("{field}{dot}{}", e.field), e.why)
        })
    }
}

/// Every element, or the error of the first bad one with its index.
fn each<A, B>(field: &str, items: Vec<A>, read: impl Fn(A) -> Result<B, DecodeError>) -> Result<Vec<B>, DecodeError> {
    items.into_iter().enumerate().map(|(i, a)| read(a).within(&format!("{field}[{i}]"))).collect()
}

fn required<T>(field: &str, value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or_else(|| bad(field, "is missing, or of a kind that this version does not know"))
}

fn port(field: &str, value: u32) -> Result<u16, DecodeError> {
    u16::try_from(value).map_err(|_| bad(field, format!("is {value}, which is no port or status")))
}

#[cfg(test)]
mod tests;
