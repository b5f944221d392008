//! [`Inbound`] compiled: what can be refused is refused here, once, so that evaluation cannot fail.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use weft_model::{Name, ResourceRef, Uid};

use crate::{
    fragment::{
        Action, Blocks, Condition, ConditionKey, DefaultAction, Inbound, IpBlock, MtlsMode, Operation, Policy, Rule,
        Source, StringMatch, Values,
    },
    pattern,
};

/// What decides whether a peer reaches a workload.
#[derive(Debug)]
pub struct InboundView {
    pub uid: Uid,
    mtls: MtlsMode,
    port_mtls: BTreeMap<u16, MtlsMode>,
    pub(super) mtls_origin: Option<Arc<ResourceRef>>,
    pub(super) default: DefaultAction,
    pub(super) deny: Vec<RuleView>,
    pub(super) allow: Vec<RuleView>,
    pub(super) audit: Vec<RuleView>,
    /// An ALLOW policy without rules still means that one must match.
    pub(super) has_allow: bool,
    pub(super) empty_allow: Option<Arc<ResourceRef>>,
    reads_paths: bool,
    reads_http: bool,
}

#[derive(Debug)]
pub(super) struct RuleView {
    pub origin: Arc<ResourceRef>,
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<ConditionView>,
    pub unresolved: Option<Arc<str>>,
    /// Some clause needs a request.
    pub reads_http: bool,
}

#[derive(Debug)]
pub(super) struct ConditionView {
    pub key: ConditionKey,
    pub test: Test,
}

/// A condition's values, in the form in which they are compared.
#[derive(Debug)]
pub(super) enum Test {
    Text(Values),
    Ip(Blocks),
    Port { any: Vec<u16>, none: Vec<u16> },
}

// === impl InboundView ===

impl InboundView {
    /// `Err` says what cannot be honoured; the caller must then deny for the workload ([`Inbound::refusing`]).
    pub fn compile(inbound: &Inbound) -> Result<Self, String> {
        let mut view = Self {
            uid: inbound.uid.clone(),
            mtls: inbound.mtls,
            port_mtls: inbound.port_mtls.clone(),
            mtls_origin: inbound.mtls_origin.clone().map(Arc::new),
            default: inbound.default,
            deny: Vec::new(),
            allow: Vec::new(),
            audit: Vec::new(),
            has_allow: false,
            empty_allow: None,
            reads_paths: false,
            reads_http: false,
        };
        for policy in &inbound.policies {
            view.add(policy)?;
        }
        Ok(view)
    }

    fn add(&mut self, policy: &Policy) -> Result<(), String> {
        if policy.action == Action::Allow {
            self.has_allow = true;
            if policy.rules.is_empty() {
                self.empty_allow.get_or_insert_with(|| Arc::new(policy.origin.clone()));
            }
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            let view = compile_rule(policy, i, rule)?;
            self.reads_http |= view.reads_http;
            self.reads_paths |= rule.to.iter().any(|o| !is_empty(&o.paths));
            match policy.action {
                Action::Deny => self.deny.push(view),
                Action::Allow => self.allow.push(view),
                Action::Audit => self.audit.push(view),
            }
        }
        Ok(())
    }

    pub fn mtls_mode(&self, port: u16) -> MtlsMode {
        self.port_mtls.get(&port).copied().unwrap_or(self.mtls)
    }

    /// Does any rule read paths? Then a path must be forwarded as [`super::normalize`] returns it, or refused.
    pub fn reads_paths(&self) -> bool {
        self.reads_paths
    }

    /// Does any rule read requests? Then a port must carry HTTP for such a rule to allow anything.
    pub fn reads_http(&self) -> bool {
        self.reads_http
    }

    pub fn has_audit(&self) -> bool {
        !self.audit.is_empty()
    }
}

// === impl Inbound ===

impl Inbound {
    /// What stands in for an authorization fragment that was rejected or cannot be had: everybody is refused, by name.
    pub fn refusing(uid: &Uid, why: &str) -> Self {
        // A uid may be longer than a name; its beginning tells which workload it is
        let name: String = uid.as_str().chars().take(60).collect();
        let part = |s: &str| Name::parse(s).unwrap_or_else(|_| Name::default_namespace());
        let namespace = uid.as_str().split('/').next().map_or_else(Name::default_namespace, part);
        let rule = Rule { unresolved: Some(why.into()), ..Rule::default() };
        Self {
            uid: uid.clone(),
            mtls: MtlsMode::Strict,
            port_mtls: BTreeMap::new(),
            mtls_origin: None,
            default: DefaultAction::Deny,
            policies: vec![Policy {
                origin: ResourceRef::new(part("Inbound"), namespace, part(&name)),
                action: Action::Deny,
                rules: vec![rule],
            }],
        }
    }
}

// === helpers ===

fn compile_rule(policy: &Policy, index: usize, rule: &Rule) -> Result<RuleView, String> {
    let origin = match (&policy.origin.section, Name::parse(&format!("rule-{index}"))) {
        (None, Ok(section)) => policy.origin.section(section),
        _ => policy.origin.clone(),
    };
    let context = |what: String| format!("{origin}: {what}");
    for source in &rule.from {
        check_source(source).map_err(context)?;
    }
    for operation in &rule.to {
        check_values("methods", &operation.methods, Templates::No).map_err(context)?;
        check_values("hosts", &operation.hosts, Templates::No).map_err(context)?;
        check_values("paths", &operation.paths, Templates::Yes).map_err(context)?;
    }
    let when = rule.when.iter().map(compile_condition).collect::<Result<Vec<_>, _>>().map_err(context)?;
    let reads_http = rule.to.iter().any(|o| [&o.hosts, &o.methods, &o.paths].into_iter().any(|v| !is_empty(v)))
        || when.iter().any(|c| matches!(c.key, ConditionKey::RequestHeader(_) | ConditionKey::Unsupported(_)));
    Ok(RuleView {
        origin: Arc::new(origin),
        from: rule.from.clone(),
        to: rule.to.clone(),
        when,
        unresolved: rule.unresolved.clone(),
        reads_http,
    })
}

fn check_source(source: &Source) -> Result<(), String> {
    check_values("principals", &source.principals, Templates::No)?;
    check_values("namespaces", &source.namespaces, Templates::No)?;
    check_values("trustDomains", &source.trust_domains, Templates::No)?;
    check_accounts(&source.service_accounts)?;
    check_blocks(&source.ip_blocks)
}

/// SEC-20: whole names, qualified by whoever compiled them.
fn check_accounts(values: &Values) -> Result<(), String> {
    for m in values.any.iter().chain(&values.none) {
        match m {
            StringMatch::Exact(s) if s.split_once('/').is_some_and(|(ns, sa)| !ns.is_empty() && !sa.is_empty()) => {}
            StringMatch::Present => {}
            other => return Err(format!("service account {other:?} is not of the form namespace/name")),
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Templates {
    Yes,
    No,
}

fn check_values(field: &str, values: &Values, templates: Templates) -> Result<(), String> {
    for m in values.any.iter().chain(&values.none) {
        match m {
            StringMatch::Template(t) if templates == Templates::No => {
                return Err(format!("template `{t}` is allowed in paths only, not in {field}"));
            }
            StringMatch::Template(t) => pattern::check_template(t)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_blocks(blocks: &Blocks) -> Result<(), String> {
    match blocks.any.iter().chain(&blocks.none).find(|b| !pattern::is_valid_block(b)) {
        Some(b) => Err(format!("address block {}/{} has too long a prefix", b.addr, b.prefix)),
        None => Ok(()),
    }
}

fn compile_condition(condition: &Condition) -> Result<ConditionView, String> {
    let Condition { key, values } = condition;
    if is_empty(values) {
        return Err(format!("condition {} has neither values nor notValues", super::why::condition_key(key)));
    }
    let test = match key {
        ConditionKey::SourceIp | ConditionKey::RemoteIp | ConditionKey::DestinationIp => {
            Test::Ip(Blocks { any: each(&values.any, block)?, none: each(&values.none, block)? })
        }
        ConditionKey::DestinationPort => Test::Port { any: each(&values.any, port)?, none: each(&values.none, port)? },
        ConditionKey::SourceServiceAccount => {
            check_accounts(values)?;
            Test::Text(values.clone())
        }
        _ => {
            check_values(&super::why::condition_key(key), values, Templates::No)?;
            Test::Text(values.clone())
        }
    };
    Ok(ConditionView { key: key.clone(), test })
}

fn each<T>(values: &[StringMatch], parse: fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let one = |m: &StringMatch| match m {
        StringMatch::Exact(s) => parse(s).ok_or_else(|| format!("`{s}` is neither an address block nor a port")),
        other => Err(format!("{other:?} cannot be compared with an address or a port")),
    };
    values.iter().map(one).collect()
}

fn port(s: &str) -> Option<u16> {
    s.parse().ok()
}

fn block(s: &str) -> Option<IpBlock> {
    let (addr, prefix) = s.split_once('/').map_or((s, None), |(a, p)| (a, Some(p)));
    let addr: IpAddr = addr.parse().ok()?;
    let whole = if addr.is_ipv4() { 32 } else { 128 };
    let block = IpBlock { addr, prefix: prefix.map_or(Some(whole), |p| p.parse().ok())? };
    pattern::is_valid_block(&block).then_some(block)
}

fn is_empty(values: &Values) -> bool {
    values.any.is_empty() && values.none.is_empty()
}
