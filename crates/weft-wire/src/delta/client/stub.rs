//! What stands in for an entry that was rejected: it refuses, and says what was rejected.
//!
//! An entry that was applied before stays at that version. Authorization never does: whatever it said before, it denies
//! until a version that this proxy takes.

use std::collections::BTreeMap;

use weft_model::{Name, ResourceRef, ServiceKey};
use weft_snapshot::{
    fragment::{
        Backend, Balance, Collection, Fragment, HttpRule, Inbound, PortRoutes, RetryPolicy, Routes, Service, Target,
        TcpRule, Timeouts,
    },
    snapshot::Fragments,
};

use super::state::{self, State, Undo};
use crate::name::EntryName;

/// Puts a stub where nothing was applied. Where leaving out something more is the only way to refuse (a workload without
/// its listeners has no use for its policies), returns a copy without it. Without a version of what was revoked there is
/// no safe set at all.
pub fn fill(
    state: &mut State,
    refused: &BTreeMap<String, String>,
    undo: &mut Undo,
) -> Result<Option<Fragments>, String> {
    let mut hidden = None;
    let held = refused.iter().filter_map(|(name, why)| Some((name.parse::<EntryName>().ok()?, why)));
    for (name, why) in held.collect::<Vec<_>>() {
        let there = state.fragments().get(&name.collection).is_some_and(|e| e.contains_key(&state::key(&name)));
        let has = there && !state.is_stub(&name.collection);
        match &name.collection {
            Collection::Inbound(uid) => {
                let stub = Fragment::Inbound(Inbound::refusing(uid, &format!("rejected: {why}")));
                state.put_stub(&name.collection, stub, undo);
            }
            // an endpoint that is left out gets nothing
            _ if has || name.entry.is_some() => {}
            Collection::Service(key) => {
                let stub = Service { key: key.clone(), ports: Vec::new(), balance: Balance::default() };
                state.put_stub(&name.collection, Fragment::Service(stub), undo);
            }
            Collection::Routes { service, consumer } => {
                let stub = routes(state.fragments(), service, consumer, why);
                state.put_stub(&name.collection, Fragment::Routes(stub), undo);
            }
            Collection::Workload(uid) => {
                let copy = hidden.get_or_insert_with(|| state.fragments().clone());
                copy.remove(&Collection::Inbound(uid.clone()));
            }
            Collection::Revocations => return Err(format!("what was revoked is not known: {why}")),
            // of the own trust domain, the builder will say what cannot be verified; of another, nobody is trusted
            Collection::Bundle(_) | Collection::Endpoints(_) => {}
        }
    }
    Ok(hidden)
}

/// Leaving routes out would send requests to the service itself.
fn routes(fragments: &Fragments, service: &ServiceKey, consumer: &Name, why: &str) -> Routes {
    let ports = fragments
        .get(&Collection::Service(service.clone()))
        .into_iter()
        .flat_map(BTreeMap::values)
        .filter_map(|f| if let Fragment::Service(s) = &**f { Some(&s.ports) } else { None })
        .flatten();
    let origin = origin("Routes", &format!("{service}/{consumer}"));
    let backend = Backend {
        target: Target::Unresolved { reference: origin.to_string().into(), why: format!("rejected: {why}").into() },
        weight: 1,
        filters: Vec::new(),
    };
    let rule = HttpRule {
        origin: origin.clone(),
        hosts: Vec::new(),
        matches: Vec::new(),
        filters: Vec::new(),
        backends: vec![backend.clone()],
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    };
    let tcp = TcpRule { origin, backends: vec![backend] };
    let port = PortRoutes { http: vec![rule], tcp: vec![tcp] };
    Routes {
        service: service.clone(),
        consumer: consumer.clone(),
        ports: ports.map(|p| (p.port, port.clone())).collect(),
    }
}

/// No operator wrote it: kind and namespace say so.
fn origin(kind: &'static str, name: &str) -> ResourceRef {
    let fixed = |text| Name::parse(text).unwrap_or_else(|_| Name::default_namespace());
    let cut = name.get(..name.floor_char_boundary(weft_model::name::MAX_NAME)).unwrap_or_default();
    ResourceRef::new(fixed(kind), fixed("rejected"), fixed(cut))
}
