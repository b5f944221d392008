//! Admission of everything but the rules.

use weft_model::Selector;
use weft_snapshot::fragment::Action;

use super::{
    AuthorizationPolicy, Target,
    rule::{RawRule, RuleReader},
};
use crate::{
    admit::Subject,
    kind::route::refs::reference,
    root,
    schema::{At, Decode, Entries, Ignored, schema},
    violation::{Sink, nearest},
    words,
};

/// Istio's limits.
const MAX_RULES: usize = 512;
const MAX_TARGETS: usize = 16;

schema! {
    struct RawPolicy {
        selector: RawSelector = "selector",
        target_ref: RawTargetRef = "targetRef",
        target_refs: Vec<At<RawTargetRef>> = "targetRefs",
        action: String = "action",
        provider: Ignored = "provider",
        rules: Vec<At<RawRule>> = "rules",
    }

    struct RawSelector {
        match_labels: Entries<String> = "matchLabels",
    }

    struct RawTargetRef {
        group: String = "group",
        kind: String = "kind",
        namespace: String = "namespace",
        name: String = "name",
    }
}

// === impl AuthorizationPolicy ===

impl AuthorizationPolicy {
    pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<Self> {
        let raw = RawPolicy::decode(&subject.doc.spec, &subject.spot, out)?;
        root::warn_of_istios(&subject.key.namespace, &subject.spot, out);
        let action = admit_action(&raw, out);
        let selector = match raw.selector.as_ref().map(|s| &s.value.match_labels) {
            Some(Some(labels)) => words::selector(&labels.value, out),
            _ => Selector::default(),
        };
        let targets = admit_targets(&raw, subject, out);
        if let (Some(at), false) = (&raw.selector, targets.is_empty()) {
            out.invalid(&at.spot, "a policy has a selector or targetRefs, not both");
        }
        let mut reader = RuleReader {
            action: action.unwrap_or(Action::Deny),
            namespace: &subject.key.namespace,
            accounts: Vec::new(),
            http_rules: Vec::new(),
        };
        let mut rules = Vec::new();
        if let Some(at) = &raw.rules {
            words::at_most(&at.value, MAX_RULES, &at.spot, out);
            rules.extend(at.value.iter().filter_map(|rule| reader.rule(rule, out)));
        }
        if rules.is_empty() && matches!(action, Some(Action::Deny | Action::Audit)) {
            let message =
                "has no rules, so that it never matches; to deny everything write an ALLOW policy without rules";
            out.warn(&subject.spot, message);
        }
        let RuleReader { accounts, http_rules, .. } = reader;
        Some(Self { action: action?, selector, targets, rules, accounts, http_rules })
    }
}

fn admit_action(raw: &RawPolicy, out: &mut Sink) -> Option<Action> {
    let action = match raw.action.as_ref().map(|at| (at, at.value.as_str())) {
        None | Some((_, "ALLOW")) => Some(Action::Allow),
        Some((_, "DENY")) => Some(Action::Deny),
        Some((_, "AUDIT")) => Some(Action::Audit),
        Some((at, "CUSTOM")) => {
            out.unsupported(
                &at.spot,
                "CUSTOM needs an external authorizer, which is not supported yet; write ALLOW or DENY",
            );
            None
        }
        Some((at, other)) => {
            let known = ["ALLOW", "DENY", "AUDIT"];
            let message = match nearest(other, known) {
                Some(near) => format!("unknown action `{other}`; did you mean `{near}`?"),
                None => format!("unknown action `{other}`; known: {}", known.join(", ")),
            };
            out.invalid(&at.spot, message);
            None
        }
    };
    if let (Some(at), Some(_)) = (&raw.provider, action) {
        out.invalid(&at.spot, "a provider belongs to the action CUSTOM alone; remove it");
    }
    action
}

fn admit_targets(raw: &RawPolicy, subject: &Subject<'_>, out: &mut Sink) -> Vec<Target> {
    let single = raw.target_ref.iter();
    let list = raw.target_refs.iter().flat_map(|at| &at.value);
    if let Some(at) = &raw.target_refs {
        words::at_most(&at.value, MAX_TARGETS, &at.spot, out);
        if at.value.is_empty() {
            out.invalid(&at.spot, "is empty; leave it out or name a Service");
        }
    }
    single.chain(list).filter_map(|at| admit_target(at, subject, out)).collect()
}

fn admit_target(At { spot, value: raw }: &At<RawTargetRef>, subject: &Subject<'_>, out: &mut Sink) -> Option<Target> {
    let service = reference(&raw.namespace, &raw.name, spot, subject, out);
    let group = raw.group.as_ref().map_or("", |at| at.value.as_str());
    match raw.kind.as_ref().map(|at| (at, at.value.as_str())) {
        None => {
            out.missing(spot, "kind", "is missing; write `kind: Service`");
            return None;
        }
        Some((_, "Service")) if matches!(group, "" | "core") => {}
        Some((at, kind @ ("Gateway" | "GatewayClass" | "ServiceEntry"))) => {
            out.unsupported(
                &at.spot,
                format!("a policy cannot target a {kind} yet; target a Service or write a selector"),
            );
            return None;
        }
        Some((at, kind)) => {
            out.invalid(&at.spot, format!("a policy cannot target the kind `{kind}`; target a Service"));
            return None;
        }
    }
    let service = service?;
    if service.namespace != subject.key.namespace {
        let at = raw.namespace.as_ref().map_or(spot, |at| &at.spot);
        let message = format!("a policy targets services of its own namespace `{}` alone", subject.key.namespace);
        out.invalid(at, message);
        return None;
    }
    Some(Target { service, path: spot.path.clone() })
}
