//! Admission of one rule: `from`, `to`, `when`.
//!
//! What is read here decides who gets in, so nothing is guessed: an empty list, an empty source or a dash with nothing
//! behind it is refused, because "no condition" would match everybody.

use std::sync::Arc;

use weft_model::Name;
use weft_snapshot::fragment::{
    Action, Blocks, Condition, ConditionKey, Operation, Ports, Rule, Source, StringMatch, Values,
};

use super::{Account, HttpRuleUse};
use crate::{
    schema::{At, Field, schema},
    violation::{Sink, Spot, nearest},
    words,
};

/// Istio's limits.
const MAX_FROM: usize = 512;
const MAX_ACCOUNTS: usize = 16;

schema! {
    struct RawRule {
        from: Vec<At<RawFrom>> = "from",
        to: Vec<At<RawTo>> = "to",
        when: Vec<At<RawCondition>> = "when",
    }

    struct RawFrom {
        source: RawSource = "source",
    }

    struct RawTo {
        operation: RawOperation = "operation",
    }

    struct RawSource {
        principals: Vec<At<String>> = "principals",
        not_principals: Vec<At<String>> = "notPrincipals",
        request_principals: Vec<At<String>> = "requestPrincipals",
        not_request_principals: Vec<At<String>> = "notRequestPrincipals",
        namespaces: Vec<At<String>> = "namespaces",
        not_namespaces: Vec<At<String>> = "notNamespaces",
        service_accounts: Vec<At<String>> = "serviceAccounts",
        not_service_accounts: Vec<At<String>> = "notServiceAccounts",
        trust_domains: Vec<At<String>> = "trustDomains",
        not_trust_domains: Vec<At<String>> = "notTrustDomains",
        ip_blocks: Vec<At<String>> = "ipBlocks",
        not_ip_blocks: Vec<At<String>> = "notIpBlocks",
        remote_ip_blocks: Vec<At<String>> = "remoteIpBlocks",
        not_remote_ip_blocks: Vec<At<String>> = "notRemoteIpBlocks",
    }

    struct RawOperation {
        hosts: Vec<At<String>> = "hosts",
        not_hosts: Vec<At<String>> = "notHosts",
        ports: Vec<At<String>> = "ports",
        not_ports: Vec<At<String>> = "notPorts",
        methods: Vec<At<String>> = "methods",
        not_methods: Vec<At<String>> = "notMethods",
        paths: Vec<At<String>> = "paths",
        not_paths: Vec<At<String>> = "notPaths",
    }

    struct RawCondition {
        key: String = "key",
        values: Vec<At<String>> = "values",
        not_values: Vec<At<String>> = "notValues",
    }
}

/// Reads rules, and notes on the way what the status will want to know.
pub(super) struct RuleReader<'a> {
    pub action: Action,
    pub namespace: &'a Name,
    pub accounts: Vec<Account>,
    pub http_rules: Vec<HttpRuleUse>,
}

/// A source as read: what it asks of the peer, and what has to be asked of the whole rule.
struct ReadSource {
    source: Source,
    remote: Option<Condition>,
    /// Asks for a verified token, and nothing here verifies any: it never allows.
    never: bool,
}

type Texts = Field<Vec<At<String>>>;

// === impl RuleReader ===

impl RuleReader<'_> {
    pub fn rule(&mut self, At { spot, value: raw }: &At<RawRule>, out: &mut Sink) -> Option<Rule> {
        let mut rule = Rule::default();
        let mut http = Vec::new();
        if let Some(at) = not_empty(&raw.from, out) {
            words::at_most(&at.value, MAX_FROM, &at.spot, out);
            self.sources(at, &mut rule, out);
        }
        for at in not_empty(&raw.to, out).iter().flat_map(|at| &at.value) {
            match at.value.operation.as_ref().filter(|o| o.value != RawOperation::default()) {
                Some(operation) => rule.to.push(self.operation(&operation.value, &mut http, out)),
                None if out.refused(&at.spot) => {}
                None => out.missing(
                    &at.spot,
                    "operation",
                    "is missing or empty; an empty operation would match every request",
                ),
            }
        }
        for at in not_empty(&raw.when, out).iter().flat_map(|at| &at.value) {
            let condition = self.condition(at, out);
            if matches!(condition, Some(Condition { key: ConditionKey::RequestHeader(_), .. })) {
                http.push(Vec::new());
            }
            rule.when.extend(condition);
        }
        if !http.is_empty() {
            // a rule of which one part is for all ports is for all ports
            let all = http.iter().any(Vec::is_empty);
            let ports = if all { Vec::new() } else { http.concat() };
            self.http_rules.push(HttpRuleUse { path: spot.path.clone(), ports });
        }
        Some(rule)
    }

    fn sources(&mut self, from: &At<Vec<At<RawFrom>>>, rule: &mut Rule, out: &mut Sink) {
        let mut remote = None;
        for at in &from.value {
            let Some(source) = at.value.source.as_ref().filter(|s| s.value != RawSource::default()) else {
                if out.refused(&at.spot) {
                    continue;
                }
                out.missing(&at.spot, "source", "is missing or empty; an empty source would match everybody");
                continue;
            };
            let read = self.source(source, out);
            if let Some(condition) = read.remote {
                if from.value.len() > 1 {
                    let message = "remoteIpBlocks next to other sources is not supported; write one rule per source";
                    out.unsupported(&source.spot, message);
                }
                remote = Some(condition);
            }
            if !read.never {
                rule.from.push(read.source);
            }
        }
        rule.when.extend(remote);
        if rule.from.is_empty() && self.action == Action::Allow {
            // no source left that could match, and an empty list would match everybody
            let values = Values { any: vec![StringMatch::Present], none: Vec::new() };
            rule.when.push(Condition { key: ConditionKey::Unsupported("request.auth.principal".into()), values });
        }
    }

    fn source(&mut self, At { spot, value: raw }: &At<RawSource>, out: &mut Sink) -> ReadSource {
        let principals =
            Values { any: list(&raw.principals, principal, out), none: list(&raw.not_principals, principal, out) };
        let named = raw.service_accounts.is_some() || raw.not_service_accounts.is_some();
        let otherwise = raw.principals.is_some()
            || raw.not_principals.is_some()
            || raw.namespaces.is_some()
            || raw.not_namespaces.is_some();
        if named && otherwise {
            out.invalid(spot, "serviceAccounts cannot stand beside principals or namespaces in one source");
        }
        for at in [&raw.service_accounts, &raw.not_service_accounts].into_iter().flatten() {
            words::at_most(&at.value, MAX_ACCOUNTS, &at.spot, out);
        }
        let mut account = |at: &At<String>, out: &mut Sink| self.account(at, out);
        let service_accounts = Values {
            any: list(&raw.service_accounts, &mut account, out),
            none: list(&raw.not_service_accounts, &mut account, out),
        };
        let tokens = [&raw.request_principals, &raw.not_request_principals];
        for at in tokens.into_iter().flatten() {
            self.warn_of_tokens(&at.spot, out);
        }
        let never = self.action == Action::Allow && tokens.into_iter().any(Option::is_some);
        let remote = Values {
            any: list(&raw.remote_ip_blocks, block_text, out),
            none: list(&raw.not_remote_ip_blocks, block_text, out),
        };
        let source = Source {
            principals,
            namespaces: values(&raw.namespaces, &raw.not_namespaces, out),
            service_accounts,
            trust_domains: values(&raw.trust_domains, &raw.not_trust_domains, out),
            ip_blocks: Blocks {
                any: list(&raw.ip_blocks, words::ip_block, out),
                none: list(&raw.not_ip_blocks, words::ip_block, out),
            },
        };
        let remote = (remote != Values::default()).then_some(Condition { key: ConditionKey::RemoteIp, values: remote });
        ReadSource { source, remote, never }
    }

    /// What cannot be answered counts against the peer, whatever the action.
    fn warn_of_tokens(&self, spot: &Spot, out: &mut Sink) {
        let effect = match self.action {
            Action::Allow => "this allows nobody",
            Action::Deny => "this denies whoever the rest of the rule matches",
            Action::Audit => "this records whatever the rest of the rule matches",
        };
        out.warn(spot, format!("tokens of requests are not verified yet, so that {effect}"));
    }

    /// `namespace/account`, or `account` in the policy's own namespace; no patterns.
    fn account(&mut self, at: &At<String>, out: &mut Sink) -> Option<StringMatch> {
        if at.value.contains('*') {
            out.invalid(
                &at.spot,
                format!("`{}`: service accounts are compared exactly; use principals for patterns", at.value),
            );
            return None;
        }
        let part = |text: &str| At { spot: at.spot.clone(), value: text.to_string() };
        let (namespace, account) = match at.value.split_once('/') {
            Some((namespace, account)) => (words::name(&part(namespace), out)?, words::account(&part(account), out)?),
            None => (self.namespace.clone(), words::account(at, out)?),
        };
        let text = format!("{namespace}/{account}");
        self.accounts.push(Account { namespace, account, path: at.spot.path.clone() });
        Some(StringMatch::Exact(text.into()))
    }

    fn operation(&self, raw: &RawOperation, http: &mut Vec<Vec<u16>>, out: &mut Sink) -> Operation {
        let hosts = |field, out: &mut Sink| list(field, |at, out: &mut Sink| words::pattern(at, out).map(lower), out);
        let operation = Operation {
            hosts: Values { any: hosts(&raw.hosts, out), none: hosts(&raw.not_hosts, out) },
            methods: values(&raw.methods, &raw.not_methods, out),
            paths: Values { any: list(&raw.paths, path, out), none: list(&raw.not_paths, path, out) },
            ports: Ports {
                any: list(&raw.ports, words::port_text, out),
                none: list(&raw.not_ports, words::port_text, out),
            },
        };
        let asks_http =
            [&operation.hosts, &operation.methods, &operation.paths].iter().any(|v| **v != Values::default());
        if asks_http {
            http.push(operation.ports.any.clone());
        }
        operation
    }

    /// `None` where something is wrong with it.
    fn condition(&mut self, At { spot, value: raw }: &At<RawCondition>, out: &mut Sink) -> Option<Condition> {
        let Some(typed) = &raw.key else {
            out.missing(spot, "key", "is missing; such as `source.namespace`");
            return None;
        };
        if raw.values.is_none() && raw.not_values.is_none() {
            out.missing(spot, "values", "is missing; write values or notValues");
        }
        let key = condition_key(typed, out)?;
        let mut read = |at: &At<String>, out: &mut Sink| match &key {
            ConditionKey::SourceIp | ConditionKey::RemoteIp | ConditionKey::DestinationIp => block_text(at, out),
            ConditionKey::DestinationPort => {
                words::port_text(at, out).map(|port| StringMatch::Exact(port.to_string().into()))
            }
            ConditionKey::SourceServiceAccount => self.account(at, out),
            ConditionKey::SourcePrincipal => principal(at, out),
            _ => words::pattern(at, out),
        };
        let values = Values { any: list(&raw.values, &mut read, out), none: list(&raw.not_values, &mut read, out) };
        if let ConditionKey::Unsupported(_) = &key {
            self.warn_of_tokens(&typed.spot, out);
        }
        Some(Condition { key, values })
    }
}

const KEYS: [&str; 14] = [
    "request.headers[name]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.principal",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[name]",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

fn condition_key(at: &At<String>, out: &mut Sink) -> Option<ConditionKey> {
    let text = at.value.as_str();
    let bracketed = |prefix: &str| text.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']');
    Some(match text {
        "source.ip" => ConditionKey::SourceIp,
        "remote.ip" => ConditionKey::RemoteIp,
        "source.namespace" => ConditionKey::SourceNamespace,
        "source.serviceAccount" => ConditionKey::SourceServiceAccount,
        "source.trustDomain" => ConditionKey::SourceTrustDomain,
        "source.principal" => ConditionKey::SourcePrincipal,
        "destination.ip" => ConditionKey::DestinationIp,
        "destination.port" => ConditionKey::DestinationPort,
        "connection.sni" => ConditionKey::ConnectionSni,
        "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => {
            ConditionKey::Unsupported(text.into())
        }
        _ if bracketed("request.auth.claims").is_some() => ConditionKey::Unsupported(text.into()),
        _ if bracketed("request.headers").is_some() => {
            let name = bracketed("request.headers").unwrap_or_default().to_string();
            ConditionKey::RequestHeader(words::header_name(&At { spot: at.spot.clone(), value: name }, out)?)
        }
        _ if text.starts_with("experimental.envoy.filters.") => {
            out.unsupported(&at.spot, format!("`{text}` speaks of Envoy's filters, which are not here"));
            return None;
        }
        _ => {
            let message = match nearest(text, KEYS) {
                Some(near) => format!("unknown key `{text}`; did you mean `{near}`?"),
                None => format!("unknown key `{text}`; known: {}", KEYS.join(", ")),
            };
            out.invalid(&at.spot, message);
            return None;
        }
    })
}

// === values ===

/// Refuses a list that is there and empty: left out it means "no condition", and nobody writes an empty list for that.
fn not_empty<'a, T>(field: &'a Field<Vec<At<T>>>, out: &mut Sink) -> Option<&'a At<Vec<At<T>>>> {
    let at = field.as_ref()?;
    if at.value.is_empty() && !out.refused(&at.spot) {
        out.invalid(&at.spot, "is empty; leave it out or name something");
    }
    Some(at)
}

fn list<T>(field: &Texts, mut read: impl FnMut(&At<String>, &mut Sink) -> Option<T>, out: &mut Sink) -> Vec<T> {
    not_empty(field, out).iter().flat_map(|at| &at.value).filter_map(|at| read(at, out)).collect()
}

fn values(any: &Texts, none: &Texts, out: &mut Sink) -> Values {
    Values { any: list(any, words::pattern, out), none: list(none, words::pattern, out) }
}

/// `trust-domain/ns/namespace/sa/account`.
fn principal(at: &At<String>, out: &mut Sink) -> Option<StringMatch> {
    if let Some(rest) = at.value.strip_prefix("spiffe://") {
        out.invalid(&at.spot, format!("principals are written without `spiffe://`; write `{rest}`"));
        return None;
    }
    words::pattern(at, out)
}

/// A block in the form in which all blocks are written.
fn block_text(at: &At<String>, out: &mut Sink) -> Option<StringMatch> {
    words::ip_block(at, out).map(|b| StringMatch::Exact(format!("{}/{}", b.addr, b.prefix).into()))
}

/// A pattern, or a template with `{*}` for one segment and `{**}` for any number, after which none may follow.
fn path(at: &At<String>, out: &mut Sink) -> Option<StringMatch> {
    if !at.value.contains(['{', '}']) {
        return words::pattern(at, out);
    }
    let mut rest = false;
    let mut fits = |segment: &str| match segment {
        "{*}" | "{**}" if rest => false,
        "{**}" => {
            rest = true;
            true
        }
        "{*}" => true,
        other => !other.contains(['{', '}', '*']),
    };
    if !at.value.starts_with('/') || !at.value.split('/').all(&mut fits) {
        let message = format!(
            "`{}` is no path template: it begins with `/`, `{{*}}` is a whole segment, and nothing like it follows `{{**}}`",
            at.value
        );
        out.invalid(&at.spot, message);
        return None;
    }
    Some(StringMatch::Template(at.value.as_str().into()))
}

fn lower(pattern: StringMatch) -> StringMatch {
    let low = |s: Arc<str>| s.to_ascii_lowercase().into();
    match pattern {
        StringMatch::Exact(s) => StringMatch::Exact(low(s)),
        StringMatch::Prefix(s) => StringMatch::Prefix(low(s)),
        StringMatch::Suffix(s) => StringMatch::Suffix(low(s)),
        other => other,
    }
}
