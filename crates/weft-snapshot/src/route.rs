//! Where does a request, or a connection, go? (features.md TRF-01 … TRF-06, L4T-01)
//!
//! Rules were put in order of precedence by whoever compiled them; here the first that matches wins. A port without
//! rules goes to the service itself; with rules, a request that none matches gets 404.

mod edits;
mod index;
mod matching;
mod view;

use std::sync::Arc;

use weft_model::{ResourceRef, ServiceKey};

pub use self::{
    edits::Edits,
    view::{BackendView, HttpRuleView, PortTable, RouteTable, TcpRuleView},
};
use crate::{
    fragment::{RetryPolicy, Target, Timeouts},
    request::Request,
};

/// `dice(n)` is uniform in `0..n`; `n` is never 0.
pub type Dice<'a> = dyn FnMut(u32) -> u32 + 'a;

#[derive(Debug, Clone, Copy)]
pub enum Selected<'t> {
    /// No rule is attached to the port: the service that was asked for.
    Default,
    Rule(Matched<'t>),
    /// Rules are attached and none matches: 404, `NR`.
    NotFound,
}

#[derive(Debug, Clone, Copy)]
pub struct Matched<'t> {
    pub rule: &'t Arc<HttpRuleView>,
    /// Which of the rule's matches held.
    pub alternative: u16,
}

#[derive(Debug, Clone, Copy)]
pub enum SelectedTcp<'t> {
    Default,
    Rule(&'t Arc<TcpRuleView>),
}

/// Why a rule has nowhere to send its request: 500 for its share (Gateway API).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    #[error("backend `{reference}` does not resolve: {why}")]
    Unresolved { reference: Arc<str>, why: Arc<str> },
    #[error("all backends of the rule have weight 0")]
    AllZero,
    #[error("the rule has no backends")]
    None,
}

/// Where a chosen backend leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination<'t> {
    pub service: &'t ServiceKey,
    pub port: u16,
    /// Empty: every endpoint.
    pub subset: &'t weft_model::Labels,
}

pub fn select<'t>(table: &'t PortTable, request: &Request<'_>) -> Selected<'t> {
    if table.http.is_empty() {
        return Selected::Default;
    }
    let matched = |rule: &'t Arc<HttpRuleView>| {
        let alternative = matching::rule(rule, request)?;
        Some(Matched { rule, alternative })
    };
    let found = match &table.index {
        None => table.http.iter().find_map(matched),
        Some(index) => index.candidates(request.path_only()).filter_map(|at| table.http.get(at)).find_map(matched),
    };
    found.map_or(Selected::NotFound, Selected::Rule)
}

/// Connections that are not HTTP: the first rule takes them all.
pub fn select_tcp(table: &PortTable) -> SelectedTcp<'_> {
    table.tcp.first().map_or(SelectedTcp::Default, SelectedTcp::Rule)
}

// === impl Matched ===

impl<'t> Matched<'t> {
    pub fn origin(&self) -> &'t Arc<ResourceRef> {
        &self.rule.origin
    }

    pub fn timeouts(&self) -> Timeouts {
        self.rule.timeouts
    }

    pub fn retry(&self) -> &'t RetryPolicy {
        &self.rule.retry
    }

    /// By weight.
    pub fn backend(&self, dice: &mut Dice<'_>) -> Result<&'t BackendView, NoBackend> {
        self.rule.backends.choose(dice)
    }

    /// What the codec changes in the request, and later in the response, for this rule and backend. `path` is the
    /// request's, query included.
    pub fn edits(&self, backend: &'t BackendView, path: &str) -> Edits<'t> {
        edits::plan(self.rule, self.alternative, backend, path)
    }
}

// === impl TcpRuleView ===

impl TcpRuleView {
    /// By weight, per connection.
    pub fn backend(&self, dice: &mut Dice<'_>) -> Result<&BackendView, NoBackend> {
        self.backends.choose(dice)
    }
}

// === impl BackendView ===

impl BackendView {
    pub fn destination(&self) -> Result<Destination<'_>, NoBackend> {
        match &self.target {
            Target::Service { key, port, subset } => Ok(Destination { service: key, port: *port, subset }),
            Target::Unresolved { reference, why } => {
                Err(NoBackend::Unresolved { reference: reference.clone(), why: why.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests;
