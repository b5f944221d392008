//! What may reach a workload. Nothing here has a default that allows.

use std::collections::BTreeMap;

use weft_snapshot::fragment::{
    Blocks, Condition, ConditionKey, Inbound, IpBlock, Operation, Policy, Ports, Rule, Source, StringMatch, Values,
};

use super::{
    DecodeError, Leaf as _, Within as _, bad, each, port, required,
    service::{ip, read_ip},
    words::{action, default_action, mtls, read_action, read_default_action, read_mtls},
};
use crate::pb::weft::v1 as pb;

pub fn inbound(i: &Inbound) -> pb::Inbound {
    let Inbound { uid, mtls: mode, port_mtls, mtls_origin, default, policies } = i;
    pb::Inbound {
        uid: uid.to_string(),
        mtls: mtls(*mode),
        port_mtls: port_mtls.iter().map(|(p, m)| (u32::from(*p), mtls(*m))).collect(),
        mtls_origin: mtls_origin.as_ref().map(ToString::to_string),
        default_action: default_action(*default),
        policies: policies.iter().map(policy).collect(),
    }
}

pub fn read_inbound(i: pb::Inbound) -> Result<Inbound, DecodeError> {
    let port_mtls = i.port_mtls.into_iter().map(|(p, m)| {
        let field = format!("port_mtls[{p}]");
        Ok((port(&field, p)?, read_mtls(&field, m)?))
    });
    Ok(Inbound {
        uid: i.uid.parse().leaf("uid")?,
        mtls: read_mtls("mtls", i.mtls)?,
        port_mtls: port_mtls.collect::<Result<BTreeMap<_, _>, DecodeError>>()?,
        mtls_origin: i.mtls_origin.map(|o| o.parse()).transpose().leaf("mtls_origin")?,
        default: read_default_action("default_action", i.default_action)?,
        policies: each("policies", i.policies, read_policy)?,
    })
}

fn policy(p: &Policy) -> pb::Policy {
    let Policy { origin, action: a, rules } = p;
    pb::Policy { origin: origin.to_string(), action: action(*a), rules: rules.iter().map(rule).collect() }
}

fn read_policy(p: pb::Policy) -> Result<Policy, DecodeError> {
    Ok(Policy {
        origin: p.origin.parse().leaf("origin")?,
        action: read_action("action", p.action)?,
        rules: each("rules", p.rules, read_rule)?,
    })
}

fn rule(r: &Rule) -> pb::Rule {
    let Rule { from, to, when, unresolved } = r;
    pb::Rule {
        from: from.iter().map(source).collect(),
        to: to.iter().map(operation).collect(),
        when: when.iter().map(condition).collect(),
        unresolved: unresolved.as_ref().map(ToString::to_string),
    }
}

fn read_rule(r: pb::Rule) -> Result<Rule, DecodeError> {
    Ok(Rule {
        from: each("from", r.from, read_source)?,
        to: each("to", r.to, read_operation)?,
        when: each("when", r.when, read_condition)?,
        unresolved: r.unresolved.map(Into::into),
    })
}

fn source(s: &Source) -> pb::Source {
    let Source { principals, namespaces, service_accounts, trust_domains, ip_blocks } = s;
    pb::Source {
        principals: values(principals),
        namespaces: values(namespaces),
        service_accounts: values(service_accounts),
        trust_domains: values(trust_domains),
        ip_blocks: blocks(ip_blocks),
    }
}

fn read_source(s: pb::Source) -> Result<Source, DecodeError> {
    Ok(Source {
        principals: read_values("principals", s.principals)?,
        namespaces: read_values("namespaces", s.namespaces)?,
        service_accounts: read_values("service_accounts", s.service_accounts)?,
        trust_domains: read_values("trust_domains", s.trust_domains)?,
        ip_blocks: read_blocks("ip_blocks", s.ip_blocks)?,
    })
}

fn operation(o: &Operation) -> pb::Operation {
    let Operation { hosts, methods, paths, ports: p } = o;
    pb::Operation { hosts: values(hosts), methods: values(methods), paths: values(paths), ports: ports(p) }
}

fn read_operation(o: pb::Operation) -> Result<Operation, DecodeError> {
    Ok(Operation {
        hosts: read_values("hosts", o.hosts)?,
        methods: read_values("methods", o.methods)?,
        paths: read_values("paths", o.paths)?,
        ports: read_ports("ports", o.ports)?,
    })
}

// === lists: absent is empty, which holds ===

fn values(v: &Values) -> Option<pb::Values> {
    let Values { any, none } = v;
    let all = |list: &[StringMatch]| list.iter().map(string_match).collect();
    (*v != Values::default()).then(|| pb::Values { any: all(any), none: all(none) })
}

fn read_values(field: &str, v: Option<pb::Values>) -> Result<Values, DecodeError> {
    let Some(v) = v else { return Ok(Values::default()) };
    let read =
        || Ok(Values { any: each("any", v.any, read_string_match)?, none: each("none", v.none, read_string_match)? });
    read().within(field)
}

fn string_match(m: &StringMatch) -> pb::StringMatch {
    use pb::string_match::Kind;
    let kind = match m {
        StringMatch::Exact(s) => Kind::Exact(s.to_string()),
        StringMatch::Prefix(s) => Kind::Prefix(s.to_string()),
        StringMatch::Suffix(s) => Kind::Suffix(s.to_string()),
        StringMatch::Present => Kind::Present(pb::Present {}),
        StringMatch::Template(s) => Kind::Template(s.to_string()),
    };
    pb::StringMatch { kind: Some(kind) }
}

fn read_string_match(m: pb::StringMatch) -> Result<StringMatch, DecodeError> {
    use pb::string_match::Kind;
    Ok(match required("kind", m.kind)? {
        Kind::Exact(s) => StringMatch::Exact(s.into()),
        Kind::Prefix(s) => StringMatch::Prefix(s.into()),
        Kind::Suffix(s) => StringMatch::Suffix(s.into()),
        Kind::Present(_) => StringMatch::Present,
        Kind::Template(s) => StringMatch::Template(s.into()),
    })
}

fn ports(p: &Ports) -> Option<pb::Ports> {
    let Ports { any, none } = p;
    let all = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect();
    (*p != Ports::default()).then(|| pb::Ports { any: all(any), none: all(none) })
}

fn read_ports(field: &str, p: Option<pb::Ports>) -> Result<Ports, DecodeError> {
    let Some(p) = p else { return Ok(Ports::default()) };
    let all = |list| each(field, list, |p| port("", p));
    Ok(Ports { any: all(p.any)?, none: all(p.none)? })
}

fn blocks(b: &Blocks) -> Option<pb::Blocks> {
    let Blocks { any, none } = b;
    let all = |list: &[IpBlock]| list.iter().map(block).collect();
    (*b != Blocks::default()).then(|| pb::Blocks { any: all(any), none: all(none) })
}

fn read_blocks(field: &str, b: Option<pb::Blocks>) -> Result<Blocks, DecodeError> {
    let Some(b) = b else { return Ok(Blocks::default()) };
    let read = || Ok(Blocks { any: each("any", b.any, read_block)?, none: each("none", b.none, read_block)? });
    read().within(field)
}

fn block(b: &IpBlock) -> pb::IpBlock {
    let IpBlock { addr, prefix } = b;
    pb::IpBlock { addr: ip(*addr), prefix: u32::from(*prefix) }
}

fn read_block(b: pb::IpBlock) -> Result<IpBlock, DecodeError> {
    let addr = read_ip("addr", &b.addr)?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    match u8::try_from(b.prefix) {
        Ok(prefix) if prefix <= most => Ok(IpBlock { addr, prefix }),
        _ => Err(bad("prefix", format!("is {}, more than {most}", b.prefix))),
    }
}

// === conditions ===

/// The keys that carry no text, in both directions.
macro_rules! attributes {
    ($($v:ident),*) => {
        fn condition(c: &Condition) -> pb::Condition {
            use pb::condition::Key;
            let Condition { key, values: v } = c;
            let key = match key {
                ConditionKey::RequestHeader(name) => Key::RequestHeader(name.to_string()),
                ConditionKey::Unsupported(key) => Key::Unsupported(key.to_string()),
                $(ConditionKey::$v => Key::Attribute(pb::Attribute::$v as i32),)*
            };
            pb::Condition { key: Some(key), values: values(v) }
        }

        fn read_attribute(v: i32) -> Result<ConditionKey, DecodeError> {
            match pb::Attribute::try_from(v) {
                $(Ok(pb::Attribute::$v) => Ok(ConditionKey::$v),)*
                Ok(pb::Attribute::Unspecified) => Err(bad("key.attribute", "is missing")),
                Err(_) => Err(bad("key.attribute", format!("is {v}, which this version does not know"))),
            }
        }
    };
}
attributes!(
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourceServiceAccount,
    SourceTrustDomain,
    SourcePrincipal,
    DestinationIp,
    DestinationPort,
    ConnectionSni
);

fn read_condition(c: pb::Condition) -> Result<Condition, DecodeError> {
    use pb::condition::Key;
    let key = match required("key", c.key)? {
        Key::RequestHeader(name) => ConditionKey::RequestHeader(name.into()),
        Key::Unsupported(key) => ConditionKey::Unsupported(key.into()),
        Key::Attribute(v) => read_attribute(v)?,
    };
    Ok(Condition { key, values: read_values("values", c.values)? })
}
