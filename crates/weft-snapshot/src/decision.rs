//! What was decided about one request or connection, kept in a small ring so that `weft why` can tell (features.md NOV-01).

mod explain;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use weft_model::{ResourceRef, Revision, ServiceKey, SpiffeId, Uid, Wall};

pub use self::explain::explain;
use crate::{
    authz::{AllowReason, DenyReason},
    balance::{Skipped, Standing},
    failure::{FailureKind, Sent},
    retry::GiveUp,
};

/// One hop of one request, as one proxy saw it. Most of it is shared with the snapshot, so that a record stays small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `x-request-id`, the trace id, or the connection's number: what the hops have in common.
    pub request: Arc<str>,
    pub at: Wall,
    pub direction: Direction,
    pub protocol: Spoken,
    /// Who asked, by certificate.
    pub source: Option<SpiffeId>,
    /// Who was to answer: this workload (inbound), or the endpoint's identity (outbound).
    pub destination: Option<SpiffeId>,
    /// What was asked for.
    pub service: Option<(ServiceKey, u16)>,
    pub route: Route,
    pub policy: Policy,
    /// Outbound: what was picked, and what was passed over.
    pub pick: Option<Box<Pick>>,
    pub attempts: u8,
    /// Each of them, oldest first, at most [`MAX_TRIES`]: of more, the first ones and the last.
    pub tries: Box<[Try]>,
    /// Why no further try was made.
    pub gave_up: Option<GiveUp>,
    pub failure: Option<FailureKind>,
    /// Where there is a failure: who speaks of it.
    pub teller: Teller,
    /// Of the answer; 0 for a connection.
    pub status: u16,
    pub revision: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http,
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Not asked (inbound).
    NotAsked,
    /// No rule attached: the service itself.
    Default,
    Rule(Arc<ResourceRef>),
    NotFound,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Not asked (outbound).
    NotAsked,
    Allowed {
        rule: Option<Arc<ResourceRef>>,
        why: AllowReason,
    },
    Denied {
        rule: Option<Arc<ResourceRef>>,
        why: DenyReason,
    },
}

/// Who answered, of an answer that tells of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Teller {
    /// The proxy that decided.
    #[default]
    Proxy,
    /// The proxy of the endpoint.
    FarProxy,
    /// The application: its answer was to be tried again, and no try was left.
    Application,
}

/// Where one try went, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    pub endpoint: Uid,
    pub address: SocketAddr,
    pub standing: Standing,
    pub failure: Option<FailureKind>,
    /// 0: it was not answered, or is a connection.
    pub status: u16,
    pub sent: Sent,
    pub took: Duration,
    /// What is known of the failure besides its kind.
    pub detail: Option<Arc<str>>,
}

/// So many tries of one request are kept.
pub const MAX_TRIES: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// `None`: nothing could be picked.
    pub chosen: Option<Chosen>,
    /// The first few that were not, with the reason; `others` counts the rest.
    pub skipped: Vec<(Uid, Skipped)>,
    pub others: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub uid: Uid,
    pub address: SocketAddr,
    pub standing: Standing,
    /// The one it was preferred to.
    pub over: Option<Uid>,
}

/// So many skipped endpoints are kept by name.
pub const MAX_SKIPPED: usize = 4;

impl From<crate::authz::Verdict> for Policy {
    fn from(verdict: crate::authz::Verdict) -> Self {
        match verdict {
            crate::authz::Verdict::Allow { rule, why } => Self::Allowed { rule, why },
            crate::authz::Verdict::Deny { rule, why } => Self::Denied { rule, why },
        }
    }
}

impl Pick {
    /// From what the balancer said, with names in place of indices.
    pub fn new(
        chosen: Option<Chosen>,
        skipped: impl Iterator<Item = (crate::balance::EndpointIx, Skipped)>,
        service: &crate::snapshot::ServiceView,
    ) -> Self {
        let mut named = Vec::new();
        let mut others = 0;
        for (ix, why) in skipped {
            match service.endpoint(ix) {
                Some(e) if named.len() < MAX_SKIPPED => named.push((e.uid.clone(), why)),
                _ => others += 1,
            }
        }
        Self { chosen, skipped: named, others }
    }
}
