//! Does one rule hold? Three-valued while the request is not known.

use std::net::IpAddr;

use weft_model::SpiffeId;

use super::{
    Attributes,
    view::{ConditionView, RuleView, Test},
};
use crate::{
    fragment::{Blocks, ConditionKey, Operation, Source, StringMatch, Values},
    pattern,
    request::{Headers, Request},
};

/// What is known of HTTP.
#[derive(Clone, Copy)]
pub(super) enum Http<'a> {
    Unknown,
    Not,
    Is(&'a Request<'a>),
}

/// What rules compare, taken out of the attributes once.
pub(super) struct Facts<'a> {
    pub a: &'a Attributes<'a>,
    pub http: Http<'a>,
    /// Without `spiffe://`.
    id: Option<&'a [u8]>,
    /// Namespace and service account.
    account: Option<(&'a str, &'a str)>,
    namespace: Option<&'a [u8]>,
    trust_domain: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    /// Depends on the request.
    Open,
    No(Failing),
}

/// The clause that failed, without allocating; the number is where in its list it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    Unresolved,
    NotHttp,
    From(SourceField),
    To(OperationField),
    When(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceField {
    Principals,
    NotPrincipals,
    Namespaces,
    NotNamespaces,
    ServiceAccounts,
    NotServiceAccounts,
    TrustDomains,
    NotTrustDomains,
    IpBlocks,
    NotIpBlocks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationField {
    Ports,
    NotPorts,
    Hosts,
    NotHosts,
    Methods,
    NotMethods,
    Paths,
    NotPaths,
}

/// How a clause that cannot be answered counts: against the peer.
#[derive(Clone, Copy, PartialEq)]
enum Unanswerable {
    Holds,
    Fails,
}

// === impl Facts ===

impl<'a> Facts<'a> {
    pub fn of(a: &'a Attributes<'a>, http: Http<'a>) -> Self {
        let account = a.principal.and_then(SpiffeId::workload_parts);
        Self {
            a,
            http,
            id: a.principal.map(|p| p.without_scheme().as_bytes()),
            account,
            namespace: account.map(|(ns, _)| ns.as_bytes()),
            trust_domain: a.principal.map(|p| p.trust_domain_str().as_bytes()),
        }
    }
}

// === impl Failing ===

impl Failing {
    /// How much of its rule held: the more, the nearer.
    pub fn passed(self) -> u32 {
        match self {
            Self::Unresolved => 0,
            Self::From(_) => 1,
            Self::NotHttp => 2,
            Self::To(OperationField::Ports | OperationField::NotPorts) => 3,
            Self::To(OperationField::Hosts | OperationField::NotHosts) => 4,
            Self::To(OperationField::Methods | OperationField::NotMethods) => 5,
            Self::To(OperationField::Paths | OperationField::NotPaths) => 6,
            Self::When(i) => 7_u32.saturating_add(u32::try_from(i).unwrap_or(u32::MAX)),
        }
    }
}

// === rules ===

/// For DENY and AUDIT: without a request, clauses about requests are dropped (SEC-22), and what cannot be answered
/// counts as holding.
pub(super) fn widely(rule: &RuleView, f: &Facts<'_>) -> Holds {
    holds(rule, f, Unanswerable::Holds)
}

/// For ALLOW: without a request, a rule with clauses about requests is dropped whole (SEC-22), and what cannot be
/// answered counts as failing.
pub(super) fn narrowly(rule: &RuleView, f: &Facts<'_>) -> Holds {
    if rule.unresolved.is_some() {
        return Holds::No(Failing::Unresolved);
    }
    match holds(rule, f, Unanswerable::Fails) {
        Holds::Yes | Holds::Open if rule.reads_http => match f.http {
            Http::Is(_) => Holds::Yes,
            Http::Unknown => Holds::Open,
            Http::Not => Holds::No(Failing::NotHttp),
        },
        held => held,
    }
}

/// (any `from`) and (any `to`) and (all `when`), in that order.
fn holds(rule: &RuleView, f: &Facts<'_>, unanswerable: Unanswerable) -> Holds {
    let from = any(&rule.from, |s| source(s, f));
    if let Holds::No(_) = from {
        return from;
    }
    let to = any(&rule.to, |o| operation(o, f));
    if let Holds::No(_) = to {
        return to;
    }
    let mut open = to == Holds::Open;
    for (i, c) in rule.when.iter().enumerate() {
        match condition(c, f, unanswerable) {
            Some(true) => {}
            Some(false) => return Holds::No(Failing::When(i)),
            None => open = true,
        }
    }
    if open { Holds::Open } else { Holds::Yes }
}

/// An empty list holds. Of several failures the one that came farthest is told.
fn any<T>(list: &[T], one: impl Fn(&T) -> Holds) -> Holds {
    let mut result: Option<Holds> = None;
    for item in list {
        result = Some(match (result, one(item)) {
            (_, Holds::Yes) => return Holds::Yes,
            (Some(Holds::Open), _) | (_, Holds::Open) => Holds::Open,
            (Some(Holds::No(a)), Holds::No(b)) => Holds::No(if b.passed() > a.passed() { b } else { a }),
            (_, failed) => failed,
        });
    }
    result.unwrap_or(Holds::Yes)
}

/// Fields that were not given cost a look at their length.
fn source(s: &Source, f: &Facts<'_>) -> Holds {
    use SourceField as F;
    let failed = text(&s.principals, f.id)
        .map(|negative| if negative { F::NotPrincipals } else { F::Principals })
        .or_else(|| text(&s.namespaces, f.namespace).map(|n| if n { F::NotNamespaces } else { F::Namespaces }))
        .or_else(|| {
            accounts(&s.service_accounts, f.account).map(|n| if n { F::NotServiceAccounts } else { F::ServiceAccounts })
        })
        .or_else(|| {
            text(&s.trust_domains, f.trust_domain).map(|n| if n { F::NotTrustDomains } else { F::TrustDomains })
        })
        .or_else(|| blocks(&s.ip_blocks, f.a.source_ip).map(|n| if n { F::NotIpBlocks } else { F::IpBlocks }));
    failed.map_or(Holds::Yes, |field| Holds::No(Failing::From(field)))
}

fn operation(o: &Operation, f: &Facts<'_>) -> Holds {
    use OperationField as F;
    let no = |f| Holds::No(Failing::To(f));
    if !o.ports.any.is_empty() && !o.ports.any.contains(&f.a.dest_port) {
        return no(F::Ports);
    }
    if o.ports.none.contains(&f.a.dest_port) {
        return no(F::NotPorts);
    }
    let reads_http = [&o.hosts, &o.methods, &o.paths].into_iter().any(|v| !(v.any.is_empty() && v.none.is_empty()));
    let request = match f.http {
        _ if !reads_http => return Holds::Yes,
        Http::Unknown => return Holds::Open,
        Http::Not => return Holds::Yes, // dropped; an ALLOW rule is dropped as a whole by its caller
        Http::Is(request) => request,
    };
    if let Some(negative) = hosts(&o.hosts, request) {
        return no(if negative { F::NotHosts } else { F::Hosts });
    }
    if let Some(negative) = text(&o.methods, Some(request.method.as_bytes())) {
        return no(if negative { F::NotMethods } else { F::Methods });
    }
    if let Some(negative) = text(&o.paths, Some(request.path_only().as_bytes())) {
        return no(if negative { F::NotPaths } else { F::Paths });
    }
    Holds::Yes
}

/// `None`: it depends on the request.
fn condition(c: &ConditionView, f: &Facts<'_>, unanswerable: Unanswerable) -> Option<bool> {
    let a = f.a;
    let text = |value: Option<&[u8]>| match &c.test {
        Test::Text(values) => Some(text(values, value).is_none()),
        Test::Ip(_) | Test::Port { .. } => Some(unanswerable == Unanswerable::Holds), // not built
    };
    let ip = |ip| match &c.test {
        Test::Ip(b) => Some(blocks(b, ip).is_none()),
        Test::Text(_) | Test::Port { .. } => Some(unanswerable == Unanswerable::Holds), // not built
    };
    match &c.key {
        ConditionKey::RequestHeader(name) => match (f.http, &c.test) {
            (Http::Unknown, _) => None,
            (Http::Is(request), Test::Text(values)) if unanswerable == Unanswerable::Holds => {
                Some(header(values, request.headers, name) || any_member(values, request.headers, name))
            }
            (Http::Is(request), Test::Text(values)) => Some(header(values, request.headers, name)),
            _ => Some(true), // dropped; see `operation`
        },
        // HBONE and the mesh carry no other address yet that could be trusted
        ConditionKey::SourceIp | ConditionKey::RemoteIp => ip(a.source_ip),
        ConditionKey::DestinationIp => ip(a.dest_ip),
        ConditionKey::DestinationPort => match &c.test {
            Test::Port { any, none } => {
                Some((any.is_empty() || any.contains(&a.dest_port)) && !none.contains(&a.dest_port))
            }
            Test::Text(_) | Test::Ip(_) => Some(unanswerable == Unanswerable::Holds), // not built
        },
        ConditionKey::SourceNamespace => text(f.namespace),
        ConditionKey::SourceTrustDomain => text(f.trust_domain),
        ConditionKey::SourcePrincipal => text(f.id),
        ConditionKey::ConnectionSni => text(a.sni.map(str::as_bytes)),
        ConditionKey::SourceServiceAccount => match &c.test {
            Test::Text(values) => Some(accounts(values, f.account).is_none()),
            Test::Ip(_) | Test::Port { .. } => Some(unanswerable == Unanswerable::Holds), // not built
        },
        ConditionKey::Unsupported(_) => Some(unanswerable == Unanswerable::Holds),
    }
}

// === values: `None` when all holds, else whether the negative list failed ===

/// An absent value matches nothing: the positive list fails, the negative holds (SEC-23).
fn text(values: &Values, value: Option<&[u8]>) -> Option<bool> {
    test(values, |m| value.is_some_and(|v| pattern::matches(m, v)))
}

fn test(values: &Values, matches: impl Fn(&StringMatch) -> bool) -> Option<bool> {
    if !values.any.is_empty() && !values.any.iter().any(&matches) {
        return Some(false);
    }
    values.none.iter().any(matches).then_some(true)
}

fn accounts(values: &Values, account: Option<(&str, &str)>) -> Option<bool> {
    test(values, |m| match (m, account) {
        (StringMatch::Exact(want), Some((ns, sa))) => want.split_once('/') == Some((ns, sa)),
        (StringMatch::Present, Some(_)) => true,
        _ => false,
    })
}

/// A host matches with or without its port, so that a port cannot hide it.
fn hosts(values: &Values, request: &Request<'_>) -> Option<bool> {
    let (full, bare) = (request.host.as_bytes(), request.host_only().as_bytes());
    test(values, |m| pattern::matches_host(m, full) || pattern::matches_host(m, bare))
}

fn blocks(blocks: &Blocks, ip: IpAddr) -> Option<bool> {
    if !blocks.any.is_empty() && !blocks.any.iter().any(|b| pattern::contains(b, ip)) {
        return Some(false);
    }
    blocks.none.iter().any(|b| pattern::contains(b, ip)).then_some(true)
}

/// Several fields of one name count as one, joined by commas (RFC 9110, section 5.3).
fn header(values: &Values, headers: &dyn Headers, name: &str) -> bool {
    let mut fields = 0_u32;
    let mut held = None;
    headers.each(name, &mut |v| {
        fields += 1;
        held = Some(text(values, Some(v)).is_none());
    });
    match held {
        Some(held) if fields == 1 => held,
        Some(_) => text(values, Some(&joined(headers, name))).is_none(),
        None => text(values, None).is_none(),
    }
}

/// For DENY: an application may read the first field, the last, or one member of a list, so that none of them may be hidden
/// by company.
fn any_member(values: &Values, headers: &dyn Headers, name: &str) -> bool {
    let mut held = false;
    headers.each(name, &mut |field| {
        held |= text(values, Some(field)).is_none();
        held |= field.split(|b| *b == b',').any(|member| text(values, Some(member.trim_ascii())).is_none());
    });
    held
}

#[cold]
fn joined(headers: &dyn Headers, name: &str) -> Vec<u8> {
    let mut all = Vec::new();
    let mut first = true;
    headers.each(name, &mut |v| {
        if !std::mem::take(&mut first) {
            all.push(b',');
        }
        all.extend_from_slice(v);
    });
    all
}
