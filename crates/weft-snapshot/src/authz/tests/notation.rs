//! The words of the table, read into fragments and requests.

use std::net::IpAddr;

use weft_model::{ResourceRef, SpiffeId};

use super::super::*;
use crate::fragment::{
    Action, Condition, ConditionKey, DefaultAction, Inbound, IpBlock, MtlsMode, Operation, Policy, Rule, Source,
    StringMatch, Values,
};

/// A verdict in the table's words.
pub(in crate::authz) fn told(verdict: &Verdict) -> String {
    let name = |rule: &Option<Arc<ResourceRef>>| rule.as_deref().map_or("-".into(), short);
    match verdict {
        Verdict::Allow { why: AllowReason::Rule, rule } => format!("allow {}", name(rule)),
        Verdict::Allow { .. } => "allow default".into(),
        Verdict::Deny { rule, why } => {
            let why = match why {
                DenyReason::Plaintext { .. } => "plaintext".into(),
                DenyReason::Rule => "rule".into(),
                DenyReason::RuleWithoutHttp => "rule-without-http".into(),
                DenyReason::Unresolved { .. } => "unresolved".into(),
                DenyReason::NotHttp => "not-http".into(),
                DenyReason::NotAuthenticated => "not-authenticated".into(),
                DenyReason::DefaultDeny => "default".into(),
                DenyReason::NoAllow { failing } => format!("no-allow:{}", failing_name(failing)),
            };
            format!("deny {} {why}", name(rule))
        }
    }
}

fn failing_name(clause: &Clause) -> String {
    match clause {
        Clause::NoRules => "no-rules".into(),
        Clause::From(f) => f.as_str().into(),
        Clause::To(f) => f.as_str().into(),
        Clause::When(k) => k.to_string(),
        Clause::Unresolved(_) => "unresolved".into(),
        Clause::NotHttp => "not-http".into(),
    }
}

pub(super) fn short(rule: &ResourceRef) -> String {
    let section = rule.section.as_ref().map(|s| s.as_str().replace("rule-", "."));
    format!("{}{}", rule.name, section.unwrap_or_default())
}

pub(in crate::authz) fn view(policies: &str) -> InboundView {
    InboundView::compile(&inbound(policies)).unwrap_or_else(|why| panic!("{policies}: {why}"))
}

pub(crate) fn inbound(text: &str) -> Inbound {
    let mut inbound = Inbound {
        uid: "shop/cart/n1/cart-1".parse().unwrap(),
        mtls: MtlsMode::Permissive,
        port_mtls: Default::default(),
        mtls_origin: Some("PeerAuthentication/shop/mtls".parse().unwrap()),
        default: DefaultAction::AllowAuthenticated,
        policies: Vec::new(),
    };
    let mode = |s: &str| match s {
        "strict" => MtlsMode::Strict,
        "permissive" => MtlsMode::Permissive,
        "disable" => MtlsMode::Disable,
        other => panic!("mtls mode {other}"),
    };
    let mut words = text.split_whitespace().peekable();
    while let Some((key, value)) = words.peek().and_then(|w| w.split_once('=')) {
        match (key, value) {
            ("mtls", m) => inbound.mtls = mode(m),
            ("port-mtls", m) => {
                let (port, m) = m.split_once(':').unwrap();
                inbound.port_mtls.insert(port.parse().unwrap(), mode(m));
            }
            ("default", "allow") => inbound.default = DefaultAction::Allow,
            ("default", "deny") => inbound.default = DefaultAction::Deny,
            ("default", "authenticated") => inbound.default = DefaultAction::AllowAuthenticated,
            _ => break,
        }
        words.next();
    }
    let rest: Vec<&str> = words.collect();
    let rest = rest.join(" ");
    for (i, policy) in rest.split(';').map(str::trim).filter(|p| !p.is_empty()).enumerate() {
        inbound.policies.push(parse_policy(i, policy));
    }
    inbound
}

fn parse_policy(i: usize, text: &str) -> Policy {
    let (action, rules) = text.split_once(' ').unwrap_or((text, ""));
    let action = match action {
        "ALLOW" => Action::Allow,
        "DENY" => Action::Deny,
        "AUDIT" => Action::Audit,
        other => panic!("action {other}"),
    };
    let rules = rules.split('|').map(str::trim).filter(|r| !r.is_empty()).map(parse_rule).collect();
    Policy { origin: format!("AuthorizationPolicy/shop/p{i}").parse().unwrap(), action, rules }
}

fn parse_rule(text: &str) -> Rule {
    let mut rule = Rule::default();
    let mut part = "";
    for word in text.split_whitespace() {
        match word {
            "{}" => {}
            "from" => rule.from.push(Source::default()),
            "to" => rule.to.push(Operation::default()),
            "when" => {} // its one condition follows
            field => match part {
                "from" => source_field(rule.from.last_mut().unwrap(), field),
                "to" => operation_field(rule.to.last_mut().unwrap(), field),
                "when" => rule.when.push(parse_condition(field)),
                _ => rule.unresolved = Some(field.strip_prefix("unresolved=").unwrap().into()),
            },
        }
        if matches!(word, "from" | "to" | "when") {
            part = word;
        }
    }
    rule
}

fn source_field(source: &mut Source, field: &str) {
    let (negative, name, values) = field_parts(field);
    let list = match name {
        "principals" => &mut source.principals,
        "namespaces" => &mut source.namespaces,
        "accounts" => &mut source.service_accounts,
        "domains" => &mut source.trust_domains,
        "ip" => {
            let blocks = values.split(',').map(|b| {
                let (addr, prefix) = b.split_once('/').unwrap();
                IpBlock { addr: addr.parse().unwrap(), prefix: prefix.parse().unwrap() }
            });
            let list = if negative { &mut source.ip_blocks.none } else { &mut source.ip_blocks.any };
            return list.extend(blocks);
        }
        other => panic!("source field {other}"),
    };
    if negative { &mut list.none } else { &mut list.any }.extend(matches(values));
}

fn operation_field(operation: &mut Operation, field: &str) {
    let (negative, name, values) = field_parts(field);
    let list = match name {
        "hosts" => &mut operation.hosts,
        "methods" => &mut operation.methods,
        "paths" => &mut operation.paths,
        "ports" => {
            let list = if negative { &mut operation.ports.none } else { &mut operation.ports.any };
            return list.extend(values.split(',').map(|p| p.parse::<u16>().unwrap()));
        }
        other => panic!("operation field {other}"),
    };
    if negative { &mut list.none } else { &mut list.any }.extend(matches(values));
}

fn field_parts(field: &str) -> (bool, &str, &str) {
    let (name, values) = field.split_once('=').unwrap_or_else(|| panic!("field {field}"));
    (name.starts_with('!'), name.trim_start_matches('!'), values)
}

/// `key=a,b`, `key!=c`, or `key=a!=c`.
fn parse_condition(text: &str) -> Condition {
    let at = text.find("!=").into_iter().chain(text.find('=')).min().unwrap();
    let (key, rest) = text.split_at(at);
    let (any, none) = match rest.strip_prefix("!=") {
        Some(none) => ("", none),
        None => rest[1..].split_once("!=").unwrap_or((&rest[1..], "")),
    };
    let key = match key {
        "source.ip" => ConditionKey::SourceIp,
        "remote.ip" => ConditionKey::RemoteIp,
        "source.namespace" => ConditionKey::SourceNamespace,
        "source.serviceAccount" => ConditionKey::SourceServiceAccount,
        "source.trustDomain" => ConditionKey::SourceTrustDomain,
        "source.principal" => ConditionKey::SourcePrincipal,
        "destination.ip" => ConditionKey::DestinationIp,
        "destination.port" => ConditionKey::DestinationPort,
        "connection.sni" => ConditionKey::ConnectionSni,
        other => match other.strip_prefix("request.headers[") {
            Some(name) => ConditionKey::RequestHeader(name.trim_end_matches(']').into()),
            None => ConditionKey::Unsupported(other.into()),
        },
    };
    Condition { key, values: Values { any: matches(any).collect(), none: matches(none).collect() } }
}

fn matches(values: &str) -> impl Iterator<Item = StringMatch> {
    values.split(',').filter(|v| !v.is_empty()).map(|v| match v {
        "*" => StringMatch::Present,
        v if v.contains('{') => StringMatch::Template(v.into()),
        v if v.starts_with('*') => StringMatch::Suffix(v[1..].into()),
        v if v.ends_with('*') => StringMatch::Prefix(v[..v.len() - 1].into()),
        v => StringMatch::Exact(v.into()),
    })
}

/// A request of the table.
pub(in crate::authz) struct Asked {
    pub text: String,
    principal: Option<SpiffeId>,
    source_ip: IpAddr,
    dest_ip: IpAddr,
    dest_port: u16,
    sni: Option<String>,
    http: Option<(String, String)>,
    host: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn parse(text: &str) -> Self {
        let mut asked = Self {
            text: text.into(),
            principal: None,
            source_ip: "10.0.0.9".parse().unwrap(),
            dest_ip: "10.0.0.1".parse().unwrap(),
            dest_port: 8080,
            sni: None,
            http: None,
            host: "cart.shop".into(),
            headers: Vec::new(),
        };
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            match word.split_once('=') {
                _ if word.starts_with("h:") => {
                    let (name, value) = word[2..].split_once('=').unwrap();
                    asked.headers.push((name.into(), value.into()));
                }
                Some(("as", who)) => {
                    let (ns, sa) = who.split_once('/').unwrap();
                    asked.principal = Some(format!("spiffe://td/ns/{ns}/sa/{sa}").parse().unwrap());
                }
                Some(("ip", ip)) => asked.source_ip = ip.parse().unwrap(),
                Some(("dip", ip)) => asked.dest_ip = ip.parse().unwrap(),
                Some(("port", port)) => asked.dest_port = port.parse().unwrap(),
                Some(("sni", sni)) => asked.sni = Some(sni.into()),
                Some(("host", host)) => asked.host = host.into(),
                None if matches!(word, "tcp" | "plain") => {}
                None => asked.http = Some((word.into(), words.next().unwrap().into())),
                Some(other) => panic!("{other:?}"),
            }
        }
        asked
    }

    pub fn with<R>(&self, ask: impl FnOnce(&Attributes<'_>) -> R) -> R {
        ask(&Attributes {
            principal: self.principal.as_ref(),
            source_ip: self.source_ip,
            dest_ip: self.dest_ip,
            dest_port: self.dest_port,
            sni: self.sni.as_deref(),
            http: self.http.as_ref().map(|(method, path)| Request {
                method,
                path,
                host: &self.host,
                headers: &self.headers,
            }),
        })
    }

    pub fn evaluate(&self, view: &InboundView) -> Verdict {
        self.with(|a| evaluate(view, a))
    }
}
