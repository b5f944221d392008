//! `AuthorizationPolicy` (Istio): who may do what to a workload (features.md SEC-18 to SEC-23).

mod admit;
pub(crate) mod effect;
mod rule;

use std::sync::Arc;

use weft_model::{Name, Selector, ServiceKey};
use weft_snapshot::fragment::{Action, Rule};

#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicy {
    pub action: Action,
    /// Empty, and no targets: the whole namespace; in the root namespace, the mesh.
    pub selector: Selector,
    /// The workloads of these services.
    pub targets: Vec<Target>,
    /// None: never matches, so that ALLOW without rules denies everything.
    pub rules: Vec<Rule>,
    /// Service accounts that rules name, for the status: one that nothing runs as never matches.
    pub accounts: Vec<Account>,
    /// Rules that ask for what only HTTP has (features.md SEC-22).
    pub http_rules: Vec<HttpRuleUse>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub service: ServiceKey,
    /// Where it stands, such as `spec.targetRefs[0]`.
    pub path: Arc<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    pub namespace: Name,
    pub account: Name,
    /// Where it stands, such as `spec.rules[0].from[0].source.serviceAccounts[0]`.
    pub path: Arc<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpRuleUse {
    /// Where the rule stands.
    pub path: Arc<str>,
    /// The ports that it names; empty: all.
    pub ports: Vec<u16>,
}
