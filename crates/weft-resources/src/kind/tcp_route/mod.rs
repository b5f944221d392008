//! `TCPRoute` (Gateway API): connections to a service, split by weight.

use crate::{
    admit::Subject,
    kind::route::{
        MAX_RULES, TcpRoute, TcpRouteRule,
        refs::{RawBackendRef, RawParentRef, backends, parents},
    },
    schema::{At, Decode, schema},
    violation::Sink,
    words,
};

schema! {
    struct RawTcpRoute {
        parent_refs: Vec<At<RawParentRef>> = "parentRefs",
        rules: Vec<At<RawRule>> = "rules",
    }

    struct RawRule {
        name: String = "name",
        backend_refs: Vec<At<RawBackendRef>> = "backendRefs",
    }
}

pub(crate) fn admit(subject: &Subject<'_>, out: &mut Sink) -> Option<TcpRoute> {
    let raw = RawTcpRoute::decode(&subject.doc.spec, &subject.spot, out)?;
    let parents = parents(&raw.parent_refs, subject, out);
    let Some(At { spot, value: raw }) = raw.rules.filter(|at| !at.value.is_empty()) else {
        out.missing(&subject.spot, "rules", "is missing; a TCPRoute needs one rule with backendRefs");
        return None;
    };
    words::at_most(&raw, MAX_RULES, &spot, out);
    if let Some(second) = raw.get(1) {
        out.warn(&second.spot, "is never used: the first rule takes every connection");
    }
    let rules = raw.iter().map(|rule| admit_rule(rule, subject, out)).collect();
    Some(TcpRoute { parents, rules })
}

fn admit_rule(At { spot, value: raw }: &At<RawRule>, subject: &Subject<'_>, out: &mut Sink) -> TcpRouteRule {
    let name = raw.name.as_ref().and_then(|at| words::name(at, out));
    let no_filters = |filters: &crate::schema::Field<Vec<_>>, out: &mut Sink| {
        if let Some(at) = filters {
            out.invalid(&at.spot, "a TCPRoute has no filters; remove them");
        }
        Vec::new()
    };
    let backends = backends(&raw.backend_refs, subject, no_filters, out);
    if raw.backend_refs.as_ref().is_none_or(|b| b.value.is_empty()) {
        out.missing(spot, "backendRefs", "is missing; name the Services that connections go to");
    }
    TcpRouteRule { name, backends }
}
