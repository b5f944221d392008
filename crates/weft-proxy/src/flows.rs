//! Everything that lives long enough for a policy to change under it (features.md SEC-28).
//!
//! A flow registers who asked for what, with no await between the verdict that let it in and that: what waits unregistered
//! (for a first byte, for the application to accept) would never hear of a denial. When the snapshot, trust or an mTLS mode changes, every flow is judged anew with
//! the same function that let it in; what is denied now is told so and resets itself, naming the rule.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::IpAddr,
    rc::Rc,
    task::{Poll, Waker},
};

use weft_identity::{Trust, recheck};
use weft_model::Wall;
use weft_snapshot::{
    authz::{self, Attributes, L4Verdict, Verdict},
    snapshot::Snapshot,
};

use crate::{
    codec::RequestHead,
    failure::{Failure, FailureKind, Side},
    head,
    http::Inbound,
};

/// Who asked for what, as the decision that let it in saw it.
#[derive(Clone)]
pub struct Admission {
    pub by: Rc<Inbound>,
    pub dest_ip: IpAddr,
    pub dest_port: u16,
    pub asks: Asks,
}

/// What was let in.
#[derive(Clone)]
pub enum Asks {
    Request(Rc<RequestHead>),
    /// A connection that is not HTTP.
    Bytes,
    /// A connection that has not spoken yet. Its requests will be judged one by one, and its bytes when they come; what is
    /// denied to both ends it now.
    Unknown,
}

/// The flows of one worker.
#[derive(Default)]
pub struct Flows {
    live: RefCell<Live>,
}

/// Places are used again, so that registering costs a push.
#[derive(Default)]
struct Live {
    places: Vec<Option<Rc<Flow>>>,
    free: Vec<usize>,
}

struct Flow {
    admission: Admission,
    denied: RefCell<Option<Failure>>,
    waker: Cell<Option<Waker>>,
}

/// Registered while it lives.
pub struct Guard {
    flows: Rc<Flows>,
    place: usize,
    flow: Rc<Flow>,
}

// === impl Flows ===

impl Flows {
    pub fn register(self: &Rc<Self>, admission: Admission) -> Guard {
        let flow = Rc::new(Flow { admission, denied: RefCell::new(None), waker: Cell::new(None) });
        let mut live = self.live.borrow_mut();
        let place = live.free.pop().unwrap_or(live.places.len());
        match live.places.get_mut(place) {
            Some(p) => *p = Some(flow.clone()),
            None => live.places.push(Some(flow.clone())),
        }
        Guard { flows: self.clone(), place, flow }
    }

    pub fn len(&self) -> usize {
        let live = self.live.borrow();
        live.places.len() - live.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Judges every flow by `snapshot`; returns how many were denied.
    pub fn judge(&self, snapshot: &Snapshot, trust: Option<&Trust>, now: Wall) -> usize {
        let mut denied = 0;
        for flow in self.live.borrow().places.iter().flatten() {
            if flow.denied.borrow().is_some() {
                continue;
            }
            let failure = untrusted(&flow.admission, trust, now).or_else(|| verdict(&flow.admission, snapshot));
            if let Some(f) = failure {
                denied += 1;
                *flow.denied.borrow_mut() = Some(f);
                if let Some(w) = flow.waker.take() {
                    w.wake();
                }
            }
        }
        denied
    }
}

/// Expiry is no reason here: a connection whose certificate expires was told to go away before, and what is in flight on it
/// may end (DESIGN section 6). Revocation and a withdrawn root are.
fn untrusted(a: &Admission, trust: Option<&Trust>, now: Wall) -> Option<Failure> {
    let trust = trust?;
    match recheck(&a.by.chain, &trust.bundle, &trust.revocations, now) {
        Ok(_) | Err(weft_identity::VerifyError::Expired { .. } | weft_identity::VerifyError::NotYetValid { .. }) => {
            None
        }
        Err(e @ weft_identity::VerifyError::Revoked { .. }) => {
            Some(Failure::new(FailureKind::PeerRevoked, Side::Policy).with_detail(e))
        }
        Err(e) => Some(Failure::new(FailureKind::PeerUntrusted, Side::Policy).with_detail(e)),
    }
}

fn verdict(a: &Admission, snapshot: &Snapshot) -> Option<Failure> {
    let changed = || Failure::new(FailureKind::PolicyChanged, Side::Policy);
    let Some(view) = snapshot.workload(&a.by.workload) else {
        return Some(changed().with_detail("workload is gone"));
    };
    let borrowed = match &a.asks {
        Asks::Request(head) => Some(head::Borrowed(head)),
        Asks::Bytes | Asks::Unknown => None,
    };
    let attributes = Attributes {
        principal: Some(&a.by.principal),
        source_ip: a.by.source_ip,
        dest_ip: a.dest_ip,
        dest_port: a.dest_port,
        sni: a.by.sni.as_deref(),
        http: borrowed.as_ref().map(head::Borrowed::request),
    };
    let denied = |rule, why| Some(changed().with_rule(rule).with_detail(why));
    if matches!(a.asks, Asks::Unknown) {
        return match authz::evaluate_l4(&view.inbound, &attributes) {
            L4Verdict::Allow { .. } | L4Verdict::NeedsHttp => None,
            L4Verdict::Deny { rule, why } => denied(rule, why),
        };
    }
    match authz::evaluate(&view.inbound, &attributes) {
        Verdict::Allow { .. } => None,
        Verdict::Deny { rule, why } => denied(rule, why),
    }
}

// === impl Guard ===

impl Guard {
    /// Resolves when the flow is not allowed any more, with the reason.
    pub async fn denied(&self) -> Failure {
        poll_fn(|cx| match self.flow.denied.borrow().clone() {
            Some(f) => Poll::Ready(f),
            None => {
                self.flow.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut live = self.flows.live.borrow_mut();
        if let Some(p) = live.places.get_mut(self.place) {
            *p = None;
            live.free.push(self.place);
        }
    }
}
