//! May this peer do this to that workload? Istio's semantics, exactly (features.md SEC-12, SEC-20 … SEC-24).
//!
//! The order is fixed: mTLS mode, then DENY, then ALLOW, then the default. A connection is judged twice: by
//! [`evaluate_l4`] before anything is known of its protocol, and by [`evaluate`] per request, or once with
//! `http: None` when it turned out not to be HTTP. The first never contradicts the second: what it allows, every request
//! is allowed; what it denies, every request is denied.
//!
//! Nothing is allocated unless the answer is no.

mod normalize;
mod rules;
mod view;
mod why;

use std::{net::IpAddr, sync::Arc};

use weft_model::{ResourceRef, SpiffeId};

pub use self::{
    normalize::{Ambiguous, normalize, normalize_keeping_slashes},
    view::InboundView,
    why::{AllowReason, Clause, DenyReason, OperationField, SourceField},
};
use self::{
    rules::{Facts, Failing, Holds, Http},
    view::RuleView,
};
use crate::{
    fragment::{DefaultAction, MtlsMode},
    request::Request,
};

/// What is known of a request once its head was read.
pub type HttpAttributes<'a> = Request<'a>;

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// From a verified chain (or attested on this node), nothing else. `None`: plaintext.
    pub principal: Option<&'a SpiffeId>,
    /// The TCP peer.
    pub source_ip: IpAddr,
    pub dest_ip: IpAddr,
    /// The application's port.
    pub dest_port: u16,
    pub sni: Option<&'a str>,
    pub http: Option<HttpAttributes<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `rule`: the ALLOW rule that matched, if one had to.
    Allow { rule: Option<Arc<ResourceRef>>, why: AllowReason },
    /// `rule`: the DENY rule that matched, or the ALLOW rule that came nearest.
    Deny { rule: Option<Arc<ResourceRef>>, why: DenyReason },
}

/// Before it is known whether the connection carries HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum L4Verdict {
    Allow {
        rule: Option<Arc<ResourceRef>>,
        why: AllowReason,
    },
    Deny {
        rule: Option<Arc<ResourceRef>>,
        why: DenyReason,
    },
    /// It depends on the request. Should no HTTP follow, ask [`evaluate`] with `http: None`.
    NeedsHttp,
}

/// The final word on a request, or with `http: None` on a connection that does not carry HTTP.
pub fn evaluate(view: &InboundView, a: &Attributes<'_>) -> Verdict {
    let http = a.http.as_ref().map_or(Http::Not, Http::Is);
    match decide(view, a, http) {
        Decided::Allow(rule, why) => Verdict::Allow { rule, why },
        Decided::Deny(rule, why) => Verdict::Deny { rule, why },
        Decided::Open => Verdict::Deny { rule: None, why: DenyReason::NotHttp }, // only for Http::Unknown
    }
}

/// The word on a connection before its protocol is known; `a.http` is not looked at.
pub fn evaluate_l4(view: &InboundView, a: &Attributes<'_>) -> L4Verdict {
    match decide(view, a, Http::Unknown) {
        Decided::Allow(rule, why) => L4Verdict::Allow { rule, why },
        Decided::Deny(rule, why) => L4Verdict::Deny { rule, why },
        Decided::Open => L4Verdict::NeedsHttp,
    }
}

/// Calls `record` with each AUDIT rule that matches. Never changes a verdict.
pub fn audit(view: &InboundView, a: &Attributes<'_>, record: &mut dyn FnMut(&Arc<ResourceRef>)) {
    let facts = Facts::of(a, a.http.as_ref().map_or(Http::Not, Http::Is));
    for rule in &view.audit {
        if rules::widely(rule, &facts) == Holds::Yes {
            record(&rule.origin);
        }
    }
}

impl Verdict {
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    pub fn rule(&self) -> Option<&Arc<ResourceRef>> {
        match self {
            Self::Allow { rule, .. } | Self::Deny { rule, .. } => rule.as_ref(),
        }
    }
}

// === the decision ===

enum Decided {
    Allow(Option<Arc<ResourceRef>>, AllowReason),
    Deny(Option<Arc<ResourceRef>>, DenyReason),
    /// Depends on the request that may follow.
    Open,
}

fn decide(view: &InboundView, a: &Attributes<'_>, http: Http<'_>) -> Decided {
    if a.principal.is_none() && view.mtls_mode(a.dest_port) == MtlsMode::Strict {
        return Decided::Deny(view.mtls_origin.clone(), DenyReason::Plaintext { port: a.dest_port });
    }
    let facts = Facts::of(a, http);
    let mut open = false;
    for rule in &view.deny {
        match rules::widely(rule, &facts) {
            Holds::Yes => return Decided::Deny(Some(rule.origin.clone()), deny_reason(rule, http)),
            Holds::Open => open = true,
            Holds::No(_) => {}
        }
    }
    let decided = if view.has_allow { by_allow(view, &facts) } else { by_default(view, a) };
    match decided {
        Decided::Allow(..) if open => Decided::Open,
        decided => decided,
    }
}

fn by_allow(view: &InboundView, facts: &Facts<'_>) -> Decided {
    let mut open = false;
    for rule in &view.allow {
        match rules::narrowly(rule, facts) {
            Holds::Yes => return Decided::Allow(Some(rule.origin.clone()), AllowReason::Rule),
            Holds::Open => open = true,
            Holds::No(_) => {}
        }
    }
    if open { Decided::Open } else { nearest(view, facts) }
}

fn by_default(view: &InboundView, a: &Attributes<'_>) -> Decided {
    match (view.default, a.principal) {
        (DefaultAction::Allow, _) => Decided::Allow(None, AllowReason::Default),
        (DefaultAction::AllowAuthenticated, Some(_)) => Decided::Allow(None, AllowReason::DefaultAuthenticated),
        (DefaultAction::AllowAuthenticated, None) => Decided::Deny(None, DenyReason::NotAuthenticated),
        (DefaultAction::Deny, _) => Decided::Deny(None, DenyReason::DefaultDeny),
    }
}

/// Only when the answer is no: which ALLOW rule came nearest, and the clause of it that failed.
#[cold]
fn nearest(view: &InboundView, facts: &Facts<'_>) -> Decided {
    let mut best: Option<(&RuleView, Failing)> = None;
    for rule in &view.allow {
        if let Holds::No(failing) = rules::narrowly(rule, facts)
            && best.is_none_or(|(_, b)| failing.passed() > b.passed())
        {
            best = Some((rule, failing));
        }
    }
    match best {
        Some((rule, Failing::NotHttp)) => Decided::Deny(Some(rule.origin.clone()), DenyReason::NotHttp),
        Some((rule, failing)) => {
            Decided::Deny(Some(rule.origin.clone()), DenyReason::NoAllow { failing: why::clause(rule, failing) })
        }
        None => Decided::Deny(view.empty_allow.clone(), DenyReason::NoAllow { failing: Clause::NoRules }),
    }
}

fn deny_reason(rule: &RuleView, http: Http<'_>) -> DenyReason {
    match &rule.unresolved {
        Some(reference) => DenyReason::Unresolved { reference: reference.clone() },
        None if matches!(http, Http::Not) && rule.reads_http => DenyReason::RuleWithoutHttp,
        None => DenyReason::Rule,
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;
