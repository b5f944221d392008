//! How a set of fragments reaches a proxy: delta xDS framing, our own rules (DESIGN section 5), no I/O.
//!
//! [`Collections`] is what the publisher knows, encoded once. A [`Session`] is the server's side of one stream: what its
//! client has, and what to send next. A [`Client`] is the other side: it gathers a set, and at its `Commit` yields one
//! new set or a rejection that names the resource and the reason.
//!
//! A set is one or more responses; the last one ends with a `Commit`. Acknowledging an earlier response says *received*,
//! acknowledging the last one says *applied*. One set is on its way at a time: the next one starts from what was applied
//! and goes to the newest, however much happened in between.

mod client;
mod ring;
mod server;

use bytes::Bytes;
use prost::Message as _;
use weft_model::Digest;
use weft_snapshot::fragment::Collection;

pub use client::{Client, Event, Presence, Rejection, Set};
pub use ring::{Change, Collections, TooLarge};
pub use server::{Limits, Poll, ProtocolError, Session, SessionStatus};

use crate::{
    fragment::TYPE_URL,
    name::collection_name,
    pb::{envoy::service::discovery::v3::Resource, google::protobuf::Any},
};

/// Largest response: a proxy can always buffer one, and a stream is never long behind one.
pub const MAX_RESPONSE: usize = 1 << 20;
/// Type of the details of a rejection.
pub const REJECTIONS_URL: &str = "type.googleapis.com/weft.v1.Rejections";

// === digests: both sides must count alike ===

/// A collection that is there counts even when it is empty, so that "empty" and "not there" differ.
fn collection_base(collection: &Collection) -> Digest {
    Digest::of_named(&collection_name(collection), b"")
}

fn entry_digest(name: &str, value: &[u8]) -> Digest {
    Digest::of_named(name, value)
}

/// What a rejected entry counts as, whichever version the client fell back to.
fn held_digest(name: &str) -> Digest {
    Digest::of_named(name, b"held")
}

fn resource(name: &str, value: Bytes) -> Bytes {
    let any = Any { type_url: TYPE_URL.to_owned(), value };
    Resource { version: String::new(), resource: Some(any), name: name.to_owned() }.encode_to_vec().into()
}

// === versions of collections, as a client tells them when it comes back ===

/// `<incarnation>.<digest>`, or `<incarnation>.-` for what is known not to be there.
fn version(incarnation: u32, digest: Option<Digest>) -> String {
    match digest {
        Some(digest) => {
            let hex: String = digest.as_bytes().iter().map(|b| format!("{b:02x}")).collect();
            format!("{incarnation}.{hex}")
        }
        None => format!("{incarnation}.-"),
    }
}

/// `None` for what is no version: the collection is sent whole then.
fn parse_version(text: &str) -> Option<(u32, Option<Digest>)> {
    let (incarnation, digest) = text.split_once('.')?;
    let incarnation = incarnation.parse().ok()?;
    if digest == "-" {
        return Some((incarnation, None));
    }
    let (pairs, rest) = digest.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs
        .iter()
        .map(|[hi, lo]| {
            let digit = |d: u8| char::from(d).to_digit(16);
            u8::try_from(digit(*hi)? << 4 | digit(*lo)?).ok()
        })
        .collect();
    Some((incarnation, Some(Digest::from_slice(&bytes.filter(|_| rest.is_empty())?)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip() {
        for digest in [None, Some(Digest::of(b"x"))] {
            assert_eq!(parse_version(&version(7, digest)), Some((7, digest)));
        }
        for bad in ["", "1", "1.", "1.00", "x.-", "1.zz", &format!("{}0", version(1, Some(Digest::ZERO)))] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }
}
