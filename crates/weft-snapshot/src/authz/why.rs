//! Why a verdict is what it is, in the operator's own words: fields are named as in AuthorizationPolicy.

use std::{fmt, sync::Arc};

pub use super::rules::{OperationField, SourceField};
use super::{rules::Failing, view::RuleView};
use crate::fragment::ConditionKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowReason {
    /// An ALLOW rule matched.
    Rule,
    /// No ALLOW policy selects the workload, and the default allows everyone.
    Default,
    /// No ALLOW policy selects the workload, and the default allows peers with an identity.
    DefaultAuthenticated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenyReason {
    /// mTLS is STRICT on the port and the peer came without.
    Plaintext { port: u16 },
    /// A DENY rule matched.
    Rule,
    /// A DENY rule matched whose clauses about requests were dropped, since this is no HTTP.
    RuleWithoutHttp,
    /// A DENY rule refers to something that does not resolve, or stands in for a fragment that was rejected.
    Unresolved { reference: Arc<str> },
    /// ALLOW policies select the workload and none matched; of the nearest rule, this clause failed.
    NoAllow { failing: Clause },
    /// Only rules about requests could allow it, and this is no HTTP.
    NotHttp,
    /// No ALLOW policy selects the workload, and the default allows only peers with an identity.
    NotAuthenticated,
    /// No ALLOW policy selects the workload, and the default denies.
    DefaultDeny,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clause {
    /// An ALLOW policy without rules matches nothing.
    NoRules,
    From(SourceField),
    To(OperationField),
    When(Arc<str>),
    Unresolved(Arc<str>),
    NotHttp,
}

#[cold]
pub(super) fn clause(rule: &RuleView, failing: Failing) -> Clause {
    match failing {
        Failing::Unresolved => Clause::Unresolved(rule.unresolved.clone().unwrap_or_default()),
        Failing::NotHttp => Clause::NotHttp,
        Failing::From(f) => Clause::From(f),
        Failing::To(f) => Clause::To(f),
        Failing::When(i) => Clause::When(rule.when.get(i).map(|c| condition_key(&c.key)).unwrap_or_default().into()),
    }
}

/// Istio's name of the key.
pub(super) fn condition_key(key: &ConditionKey) -> String {
    match key {
        ConditionKey::RequestHeader(h) => return format!("request.headers[{h}]"),
        ConditionKey::Unsupported(k) => return k.to_string(),
        ConditionKey::SourceIp => "source.ip",
        ConditionKey::RemoteIp => "remote.ip",
        ConditionKey::SourceNamespace => "source.namespace",
        ConditionKey::SourceServiceAccount => "source.serviceAccount",
        ConditionKey::SourceTrustDomain => "source.trustDomain",
        ConditionKey::SourcePrincipal => "source.principal",
        ConditionKey::DestinationIp => "destination.ip",
        ConditionKey::DestinationPort => "destination.port",
        ConditionKey::ConnectionSni => "connection.sni",
    }
    .into()
}

// === text ===

impl SourceField {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Principals => "principals",
            Self::NotPrincipals => "notPrincipals",
            Self::Namespaces => "namespaces",
            Self::NotNamespaces => "notNamespaces",
            Self::ServiceAccounts => "serviceAccounts",
            Self::NotServiceAccounts => "notServiceAccounts",
            Self::TrustDomains => "trustDomains",
            Self::NotTrustDomains => "notTrustDomains",
            Self::IpBlocks => "ipBlocks",
            Self::NotIpBlocks => "notIpBlocks",
        }
    }
}

impl OperationField {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::NotPorts => "notPorts",
            Self::Hosts => "hosts",
            Self::NotHosts => "notHosts",
            Self::Methods => "methods",
            Self::NotMethods => "notMethods",
            Self::Paths => "paths",
            Self::NotPaths => "notPaths",
        }
    }
}

impl fmt::Display for AllowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "an ALLOW rule matched",
            Self::Default => "no ALLOW policy selects the workload and the default allows everyone",
            Self::DefaultAuthenticated => {
                "no ALLOW policy selects the workload and the default allows peers with an identity"
            }
        })
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plaintext { port } => write!(f, "mTLS is STRICT on port {port} and the peer came in plaintext"),
            Self::Rule => f.write_str("a DENY rule matched"),
            Self::RuleWithoutHttp => f.write_str(
                "a DENY rule matched; its conditions on requests do not count because the connection is not HTTP",
            ),
            Self::Unresolved { reference } => write!(f, "a DENY rule could not be resolved: {reference}"),
            Self::NoAllow { failing } => write!(f, "no ALLOW rule matched; of the nearest one {failing}"),
            Self::NotHttp => f.write_str("only ALLOW rules on requests could match and the connection is not HTTP"),
            Self::NotAuthenticated => {
                f.write_str("the default allows only peers with an identity and this one has none")
            }
            Self::DefaultDeny => f.write_str("no ALLOW policy selects the workload and the default denies"),
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules => f.write_str("there are no rules, which matches nothing"),
            Self::From(field) => write!(f, "`from.source.{}` did not hold", field.as_str()),
            Self::To(field) => write!(f, "`to.operation.{}` did not hold", field.as_str()),
            Self::When(key) => write!(f, "`when {key}` did not hold"),
            Self::Unresolved(reference) => write!(f, "a reference could not be resolved: {reference}"),
            Self::NotHttp => f.write_str("conditions on requests cannot hold because the connection is not HTTP"),
        }
    }
}
