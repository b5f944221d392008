//! What this worker measured of each service's endpoints, kept in step with the snapshot.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use weft_model::{Mono, ServiceKey};
use weft_snapshot::{
    balance::{EndpointIx, LoadView},
    eject::{Ejector, Feed, Settings},
    fragment::Endpoint,
    retry::Budget,
    snapshot::ServiceView,
};

/// Per process: limits and ejections must not multiply by the threads.
#[derive(Debug, Default)]
pub struct Shared {
    services: Mutex<HashMap<ServiceKey, Arc<Process>>>,
}

#[derive(Debug)]
struct Process {
    view: Arc<ServiceView>,
    ejector: Ejector,
    budget: Arc<Budget>,
    /// Counts ejections, so that the other workers see them.
    epoch: AtomicU64,
}

/// The loads of one worker.
pub struct Loads {
    shared: Arc<Shared>,
    services: RefCell<HashMap<ServiceKey, Rc<Service>>>,
}

/// One service's endpoints as this worker sees them, for one version of their list.
pub struct Service {
    pub view: Arc<ServiceView>,
    pub loads: RefCell<LoadView>,
    process: Arc<Process>,
    /// Endpoints that lead back to this proxy.
    own: Vec<EndpointIx>,
    /// `weft-to` per port.
    claims: RefCell<Vec<(u16, http::HeaderValue)>>,
    seen_epoch: std::cell::Cell<u64>,
}

/// Counts one request in flight.
pub struct InFlight {
    service: Rc<Service>,
    ix: EndpointIx,
}

// === impl Shared ===

impl Shared {
    fn process(&self, view: &Arc<ServiceView>) -> Arc<Process> {
        // Taken when an endpoint list changes, never per request; the map is all that is touched under it.
        let mut services = self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = &view.service.key;
        match services.get(key) {
            Some(p) if Arc::ptr_eq(&p.view, view) || p.view.same_places(view) => p.clone(),
            before => {
                let count = view.endpoints().len();
                let p = match before {
                    None => Process::new(view.clone(), Ejector::new(Settings::default(), count), Arc::default()),
                    Some(old) => {
                        let ejector = old.ejector.carried(count, |ix| place(&old.view, view, ix));
                        Process::new(view.clone(), ejector, old.budget.clone())
                    }
                };
                let p = Arc::new(p);
                services.insert(key.clone(), p.clone());
                p
            }
        }
    }
}

impl Process {
    fn new(view: Arc<ServiceView>, ejector: Ejector, budget: Arc<Budget>) -> Self {
        Self { view, ejector, budget, epoch: AtomicU64::new(1) }
    }
}

/// Where the endpoint at `ix` of `new` stood in `old`.
fn place(old: &ServiceView, new: &ServiceView, ix: EndpointIx) -> Option<EndpointIx> {
    let uid = &new.endpoint(ix)?.uid;
    let at = old.endpoints().binary_search_by(|e| e.uid.cmp(uid)).ok()?;
    Some(EndpointIx(u32::try_from(at).ok()?))
}

// === impl Loads ===

impl Loads {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, services: RefCell::default() }
    }

    /// `is_own`: does an endpoint lead back to this proxy? Asked once per list.
    pub fn of(&self, view: &Arc<ServiceView>, is_own: impl Fn(&Endpoint) -> bool) -> Rc<Service> {
        let key = &view.service.key;
        if let Some(s) = self.services.borrow().get(key)
            && Arc::ptr_eq(&s.view, view)
        {
            return s.clone();
        }
        let process = self.shared.process(view);
        let old = self.services.borrow().get(key).cloned();
        let mut loads = LoadView::new(view.endpoints().len());
        if let Some(old) = old {
            let before = old.loads.borrow();
            for ix in (0..).map(EndpointIx).take(view.endpoints().len()) {
                if let (Some(was), Some(now)) = (place(&old.view, view, ix), loads.get_mut(ix)) {
                    // What is in flight there is given back to the old view
                    *now = weft_snapshot::balance::Load { in_flight: 0, ..*before.of(was) };
                }
            }
        }
        let places = (0..).map(EndpointIx).zip(view.endpoints());
        let own = places.filter(|(_, e)| is_own(e)).map(|(ix, _)| ix).collect();
        let s = Rc::new(Service {
            view: view.clone(),
            loads: RefCell::new(loads),
            process,
            own,
            claims: RefCell::default(),
            seen_epoch: std::cell::Cell::new(0),
        });
        self.services.borrow_mut().insert(key.clone(), s.clone());
        s
    }

    /// Forgets services that the snapshot does not have any more.
    pub fn retain(&self, known: impl Fn(&ServiceKey) -> bool) {
        self.services.borrow_mut().retain(|k, _| known(k));
    }
}

// === impl Service ===

impl Service {
    pub fn budget(&self) -> &Budget {
        &self.process.budget
    }

    /// What must never be picked.
    pub fn own(&self) -> &[EndpointIx] {
        &self.own
    }

    /// What names a port of the service to its endpoints' proxies.
    pub fn claim(&self, port: u16) -> Option<http::HeaderValue> {
        let mut claims = self.claims.borrow_mut();
        if let Some((_, v)) = claims.iter().find(|(p, _)| *p == port) {
            return Some(v.clone());
        }
        let v = crate::head::to_value(&self.view.service.key, port)?;
        claims.push((port, v.clone()));
        Some(v)
    }

    /// Takes over what other workers ejected.
    pub fn refresh(&self) {
        let epoch = self.process.epoch.load(Ordering::Relaxed);
        if self.seen_epoch.replace(epoch) != epoch {
            let mut loads = self.loads.borrow_mut();
            for (ix, load) in (0..).map(EndpointIx).zip(&mut loads.loads) {
                load.ejected_until = self.process.ejector.ejected_until(ix);
            }
        }
    }

    pub fn begin(self: &Rc<Self>, ix: EndpointIx) -> InFlight {
        if let Some(l) = self.loads.borrow_mut().get_mut(ix) {
            l.in_flight = l.in_flight.saturating_add(1);
        }
        InFlight { service: self.clone(), ix }
    }

    pub fn feed(&self, ix: EndpointIx, feed: Feed, now: Mono) {
        if let Some(out) = self.process.ejector.feed(ix, feed, now) {
            self.process.epoch.fetch_add(1, Ordering::Relaxed);
            let uid = self.view.endpoint(ix).map(|e| e.uid.clone());
            tracing::info!(endpoint = ?uid, times = out.times, "endpoint ejected");
        }
    }

    pub fn observe(&self, ix: EndpointIx, took: Duration, now: Mono) {
        if let Some(l) = self.loads.borrow_mut().get_mut(ix) {
            l.ewma.observe(took, now);
            if !l.connected {
                l.connect_succeeded();
            }
        }
    }

    pub fn connect_failed(&self, ix: EndpointIx, now: Mono) {
        if let Some(l) = self.loads.borrow_mut().get_mut(ix) {
            l.connect_failed(now);
        }
    }

    pub fn rate_limited(&self, ix: EndpointIx, retry_after: Option<Duration>, now: Mono) {
        if let Some(l) = self.loads.borrow_mut().get_mut(ix) {
            l.rate_limited(retry_after, now);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(l) = self.service.loads.borrow_mut().get_mut(self.ix) {
            l.in_flight = l.in_flight.saturating_sub(1);
        }
    }
}
