//! A service as its callers see it: definition, endpoints, routes, and the pools that are balanced over.

use std::{collections::BTreeMap, sync::Arc};

use weft_model::{Labels, Name};

use crate::{
    balance::{EndpointIx, Pool, everything},
    fragment::{Endpoint, Fragment, Service, ServicePort},
    route::{PortTable, RouteTable},
};

#[derive(Debug)]
pub struct ServiceView {
    pub service: Service,
    pub(super) endpoints: Vec<Arc<EndpointView>>,
    pub(super) routes: BTreeMap<Name, Arc<RouteTable>>,
    /// Per port the endpoints by subset; the first is all of them.
    pub(super) pools: BTreeMap<u16, Vec<(Labels, Arc<Pool>)>>,
    pub(super) source: Arc<Fragment>,
    pub(super) route_sources: BTreeMap<Name, Arc<Fragment>>,
}

/// One endpoint, shared by all snapshots in which it did not change.
#[derive(Debug)]
pub struct EndpointView {
    pub endpoint: Endpoint,
    pub(super) source: Arc<Fragment>,
}

impl std::ops::Deref for EndpointView {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl ServiceView {
    /// In order of their uids.
    pub fn endpoints(&self) -> &[Arc<EndpointView>] {
        &self.endpoints
    }

    pub fn endpoint(&self, ix: EndpointIx) -> Option<&Arc<EndpointView>> {
        self.endpoints.get(usize::try_from(ix.0).ok()?)
    }

    /// `None`: the service has no such port, or no route names that subset of it.
    pub fn pool(&self, port: u16, subset: &Labels) -> Option<&Arc<Pool>> {
        self.pools.get(&port)?.iter().find(|(labels, _)| labels == subset).map(|(_, pool)| pool)
    }

    /// All endpoints that serve the port.
    pub fn pool_of_all(&self, port: u16) -> Option<&Arc<Pool>> {
        self.pool(port, everything())
    }

    /// The rules that callers in `consumer` see on a port; `None`: none are attached.
    pub fn routes(&self, consumer: &Name, port: u16) -> Option<&PortTable> {
        self.routes.get(consumer)?.port(port)
    }

    /// Were routes for callers in `consumer` subscribed to (even if there are none)?
    pub fn knows_routes_for(&self, consumer: &Name) -> bool {
        self.routes.contains_key(consumer)
    }

    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.service.ports.iter().find(|p| p.port == number)
    }

    /// By number or by name.
    pub fn port_named(&self, name_or_number: &str) -> Option<&ServicePort> {
        let by_name = self.service.ports.iter().find(|p| *p.name == *name_or_number && !p.name.is_empty());
        by_name.or_else(|| self.port(name_or_number.parse().ok()?))
    }

    /// The only port, if there is one only.
    pub fn only_port(&self) -> Option<&ServicePort> {
        match self.service.ports.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// Do both hold the same endpoints in the same places? Then what was measured by [`EndpointIx`] stays true.
    pub fn same_places(&self, other: &Self) -> bool {
        self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(|(a, b)| Arc::ptr_eq(a, b) || a.uid == b.uid)
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.endpoints.is_sorted_by(|a, b| a.uid < b.uid), "endpoints of {} out of order", self.service.key);
        for pools in self.pools.values() {
            assert!(pools.first().is_some_and(|(labels, _)| labels.0.is_empty()));
            for m in pools.iter().flat_map(|(_, p)| p.members()) {
                assert!(self.endpoint(m.ix).is_some_and(|e| e.health.is_pickable() && e.weight > 0));
            }
        }
    }
}
