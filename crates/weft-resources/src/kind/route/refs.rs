//! References of routes: the parents they attach to, the backends they send to.

use weft_model::ServiceKey;
use weft_snapshot::fragment::HttpFilter;

use super::{BackendRef, BackendTarget, MAX_BACKENDS, MAX_PARENTS, MAX_WEIGHT, ParentRef, filters::RawFilter};
use crate::{
    admit::Subject,
    schema::{At, Field, schema},
    violation::{Sink, Spot},
    words,
};

schema! {
    struct RawParentRef {
        group: String = "group",
        kind: String = "kind",
        namespace: String = "namespace",
        name: String = "name",
        section_name: String = "sectionName",
        port: i64 = "port",
    }

    struct RawBackendRef {
        group: String = "group",
        kind: String = "kind",
        namespace: String = "namespace",
        name: String = "name",
        port: i64 = "port",
        weight: i64 = "weight",
        filters: Vec<At<RawFilter>> = "filters",
    }
}

/// Gateway API defaults a parent's kind to Gateway; here it is a Service in the mesh, and must be said.
pub(crate) fn parents(raw: &Field<Vec<At<RawParentRef>>>, subject: &Subject<'_>, out: &mut Sink) -> Vec<ParentRef> {
    let Some(At { spot, value: raw }) = raw.as_ref().filter(|at| !at.value.is_empty()) else {
        let message =
            "is missing; name the Service whose callers are routed, such as `[{kind: Service, name: reviews}]`";
        out.missing(&subject.spot, "parentRefs", message);
        return Vec::new();
    };
    words::at_most(raw, MAX_PARENTS, spot, out);
    let parents: Vec<_> = raw.iter().filter_map(|p| parent(p, subject, out)).collect();
    for (i, one) in parents.iter().enumerate() {
        let same =
            |other: &&ParentRef| (&other.service, other.port, &other.section) == (&one.service, one.port, &one.section);
        if parents.iter().take(i).any(|other| same(&other)) {
            out.invalid(spot, format!("Service/{} is named twice with the same port", one.service));
        }
    }
    parents
}

fn parent(At { spot, value: raw }: &At<RawParentRef>, subject: &Subject<'_>, out: &mut Sink) -> Option<ParentRef> {
    let text = |field: &Field<String>| field.as_ref().map(|at| at.value.clone());
    let kind = text(&raw.kind).unwrap_or_else(|| "Gateway".into());
    let service = reference(&raw.namespace, &raw.name, spot, subject, out);
    if kind != "Service" {
        let at = raw.kind.as_ref().map_or_else(|| spot.absent("kind"), |at| at.spot.clone());
        let message = match (&raw.kind, kind.as_str()) {
            (None, _) => {
                "is missing, which means Gateway, and gateways are not supported yet; write `kind: Service`".into()
            }
            (Some(_), "Gateway") => "gateways are not supported yet; attach to a Service".into(),
            _ => format!("a route cannot attach to the kind `{kind}`; attach to a Service"),
        };
        out.unsupported(&at, message);
        return None;
    }
    if let Some(at) = raw.group.as_ref().filter(|g| !matches!(g.value.as_str(), "" | "core")) {
        out.invalid(&at.spot, format!("a Service is of the group \"\", not `{}`; leave it out", at.value));
    }
    let port = raw.port.as_ref().and_then(|at| words::port(at, out));
    Some(ParentRef { service: service?, port, section: text(&raw.section_name).map(Into::into), written: written(raw) })
}

fn written(raw: &RawParentRef) -> serde_json::Value {
    let texts = [
        ("group", &raw.group),
        ("kind", &raw.kind),
        ("namespace", &raw.namespace),
        ("name", &raw.name),
        ("sectionName", &raw.section_name),
    ];
    let mut map: serde_json::Map<String, serde_json::Value> = texts
        .into_iter()
        .filter_map(|(key, field)| field.as_ref().map(|at| (key.into(), at.value.clone().into())))
        .collect();
    if let Some(port) = &raw.port {
        map.insert("port".into(), port.value.into());
    }
    map.into()
}

/// `namespace` defaults to the resource's own.
pub(crate) fn reference(
    namespace: &Field<String>,
    name: &Field<String>,
    spot: &Spot,
    subject: &Subject<'_>,
    out: &mut Sink,
) -> Option<ServiceKey> {
    let namespace = match namespace {
        Some(at) => words::name(at, out),
        None => Some(subject.key.namespace.clone()),
    };
    let name = match name {
        Some(at) => words::name(at, out),
        None => {
            out.missing(spot, "name", "is missing");
            None
        }
    };
    Some(ServiceKey::new(namespace?, name?))
}

/// For TCP, where backends have no filters, pass a `read` that refuses them.
pub(crate) fn backends(
    raw: &Field<Vec<At<RawBackendRef>>>,
    subject: &Subject<'_>,
    read: impl Fn(&Field<Vec<At<RawFilter>>>, &mut Sink) -> Vec<HttpFilter>,
    out: &mut Sink,
) -> Vec<BackendRef> {
    let Some(At { spot, value: raw }) = raw else { return Vec::new() };
    words::at_most(raw, MAX_BACKENDS, spot, out);
    let backend = |at: &At<RawBackendRef>| backend(at, subject, &read, out);
    raw.iter().filter_map(backend).collect()
}

fn backend(
    At { spot, value: raw }: &At<RawBackendRef>,
    subject: &Subject<'_>,
    read: impl Fn(&Field<Vec<At<RawFilter>>>, &mut Sink) -> Vec<HttpFilter>,
    out: &mut Sink,
) -> Option<BackendRef> {
    let text = |field: &Field<String>| field.as_ref().map(|at| at.value.clone());
    let key = reference(&raw.namespace, &raw.name, spot, subject, out);
    let port = raw.port.as_ref().and_then(|at| words::port(at, out));
    let weight = raw.weight.as_ref().map_or(Some(1), |at| {
        let weight = u32::try_from(at.value).ok().filter(|_| at.value <= MAX_WEIGHT);
        if weight.is_none() {
            out.invalid(&at.spot, format!("weight {} is not between 0 and {MAX_WEIGHT}", at.value));
        }
        weight
    });
    let filters = read(&raw.filters, out);
    let group = text(&raw.group).filter(|g| g != "core").unwrap_or_default();
    let kind = text(&raw.kind).unwrap_or_else(|| "Service".into());
    let target = if kind == "Service" && group.is_empty() {
        if raw.port.is_none() {
            out.missing(spot, "port", "is missing; a Service needs it");
        }
        BackendTarget::Service { key: key?, port: port? }
    } else {
        BackendTarget::InvalidKind { group, kind, name: text(&raw.name)? }
    };
    Some(BackendRef { target, weight: weight?, filters, path: spot.path.clone() })
}
