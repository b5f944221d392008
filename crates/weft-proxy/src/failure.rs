//! One failure on the data path: what, whose fault, and whether anything had been sent.

use std::sync::Arc;

use weft_model::{ResourceRef, Uid};
pub use weft_snapshot::failure::{FailureKind, Sent};
use weft_snapshot::retry::{NeverSent, Outcome};

use crate::codec::{AskError, h1::parse::HeadError};

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
    Internal,
    Policy,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", kind.sentence())]
pub struct Failure {
    pub kind: FailureKind,
    pub side: Side,
    /// Proof that the request cannot have been seen by an application.
    pub never_sent: Option<NeverSent>,
    /// The clause of an operator's document that decided.
    pub rule: Option<Arc<ResourceRef>>,
    /// What is known besides; for logs and for meshed callers.
    pub detail: Option<Arc<str>>,
}

// === impl Side ===

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
            Self::Policy => "policy",
        }
    }
}

// === impl Failure ===

impl Failure {
    pub fn new(kind: FailureKind, side: Side) -> Self {
        Self { kind, side, never_sent: None, rule: None, detail: None }
    }

    /// Nothing had been sent: it may be tried elsewhere.
    pub fn before_sending(kind: FailureKind, side: Side) -> Self {
        Self { never_sent: Some(NeverSent::NoByteWritten), ..Self::new(kind, side) }
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = Some(detail.to_string().into());
        self
    }

    #[must_use]
    pub fn with_rule(mut self, rule: Option<Arc<ResourceRef>>) -> Self {
        self.rule = rule;
        self
    }

    /// The tries are used up, and this is what the last one met. `by`: who says so, if it is not this proxy.
    #[must_use]
    pub fn exhausted(self, tries: impl std::fmt::Display, endpoint: &Uid, by: Option<&str>) -> Self {
        let by = by.map(|by| format!(", says {by}")).unwrap_or_default();
        let what = self.detail.as_deref().unwrap_or(self.kind.sentence());
        let detail = format!("the last of {tries} went to {endpoint} and met {}{by}: {what}", self.kind);
        Self { kind: FailureKind::RetriesExhausted, detail: Some(detail.into()), ..self }
    }

    /// Unless an earlier try was sent: then nobody may be told that the request was not.
    #[must_use]
    pub fn unless_sent(mut self, before: bool) -> Self {
        if before {
            self.never_sent = None;
        }
        self
    }

    pub fn sent(&self) -> Sent {
        if self.never_sent.is_some() { Sent::NotSent } else { Sent::Sent }
    }

    /// As the retry plan asks.
    pub fn outcome(&self) -> Outcome {
        match (self.never_sent, self.kind) {
            (Some(n), _) => Outcome::NeverSent(n),
            (None, FailureKind::TryTimeout) => Outcome::TryTimedOut,
            _ => Outcome::Lost,
        }
    }
}

/// Of a request's head that cannot be read.
impl From<HeadError> for Failure {
    fn from(e: HeadError) -> Self {
        let kind = match e {
            HeadError::TooLarge | HeadError::TooManyFields => FailureKind::RequestHeadTooLarge,
            HeadError::Syntax
            | HeadError::BareLf
            | HeadError::LengthAndEncoding
            | HeadError::Length
            | HeadError::Encoding
            | HeadError::Host
            | HeadError::Target
            | HeadError::Version => FailureKind::BadRequest,
        };
        Self::before_sending(kind, Side::Downstream).with_detail(format_args!("{}: {e}", e.code()))
    }
}

impl From<AskError> for Failure {
    fn from(e: AskError) -> Self {
        use FailureKind as K;
        let (kind, side) = match &e {
            AskError::Io { .. } | AskError::Closed { .. } => (K::UpstreamClosed, Side::Upstream),
            AskError::Head(HeadError::TooLarge | HeadError::TooManyFields) => (K::ResponseHeadTooLarge, Side::Upstream),
            AskError::Head(_) => (K::UpstreamProtocol, Side::Upstream),
            AskError::Refused | AskError::AboveGoaway => (K::UpstreamRefused, Side::Upstream),
            AskError::Reset(_) => (K::UpstreamReset, Side::Upstream),
            AskError::Body(_) => (K::DownstreamClosed, Side::Downstream),
        };
        Self {
            never_sent: e.never_sent(),
            detail: Some(weft_rt::log::chain(&e).to_string().into()),
            ..Self::new(kind, side)
        }
    }
}
