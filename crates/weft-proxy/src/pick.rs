//! Which endpoint takes this try? The balancer's answer, written into the record.

use std::{rc::Rc, sync::Arc};

use weft_model::{Revision, ServiceKey};
use weft_snapshot::{
    balance::{self, Ask, EndpointIx, Standing},
    decision::{Chosen, Pick},
    route::Destination,
    snapshot::{EndpointView, Snapshot},
};

use crate::{
    failure::{Failure, FailureKind, Side},
    loads,
    record::Recording,
    worker::Worker,
};

/// `tried`: taken again only when nothing else is left.
pub fn pick(
    w: &Worker,
    snapshot: &Snapshot,
    service: &Rc<loads::Service>,
    to: Destination<'_>,
    tried: &[EndpointIx],
    rec: &mut Recording,
) -> Result<(Arc<EndpointView>, EndpointIx), Failure> {
    service.refresh();
    let view = &service.view;
    let Some(pool) = view.pool(to.port, to.subset) else {
        return Err(none().with_detail(format_args!("{} has no port {}", to.service, to.port)));
    };
    let from = snapshot.workload(&w.workload).map(|v| &v.workload.locality);
    let ask = Ask { now: w.clock.mono(), avoid: tried, own: service.own(), from };
    let loads = service.loads.borrow();
    let picked = balance::pick(pool, &loads, &ask, &mut w.throw());
    let chosen = picked.as_ref().ok().and_then(|p| {
        let e = view.endpoint(p.ix)?;
        let r = rec.get();
        r.upstream_id = e.identities.first().cloned();
        r.upstream_uid = Some(e.uid.clone());
        r.upstream_addr = e.mesh.or_else(|| e.ports.get(&to.port).copied());
        let over = p.why.over.and_then(|o| view.endpoint(o)).map(|o| o.uid.clone());
        Some(Chosen { uid: e.uid.clone(), address: r.upstream_addr?, standing: p.why.standing, over })
    });
    // Whoever was passed over is of interest when not everything was well; asking costs a look at every endpoint.
    let well = picked.as_ref().is_ok_and(|p| p.why.standing == Standing::Passing) && tried.is_empty();
    let skipped = if well { None } else { Some(balance::skipped(pool, &loads, &ask)) };
    rec.get().pick = Some(Box::new(Pick::new(chosen, skipped.into_iter().flatten(), view)));
    let picked = picked.map_err(|e| {
        if e.is_own() {
            return Failure::before_sending(FailureKind::Loop, Side::Internal).with_detail(e);
        }
        match w.left(to.service) {
            Some(at) if e.reasons.is_empty() => none().with_detail(format_args!("{e}: the last one left at {at}")),
            _ => none().with_detail(e),
        }
    })?;
    Ok((view.endpoint(picked.ix).ok_or_else(none)?.clone(), picked.ix))
}

/// A service that is in no snapshot. Without a document that declares it a service is there as long as its instances are,
/// so that "unknown" and "nobody left" look the same from here; whoever names it on purpose is told the latter.
pub fn absent(w: &Worker, snapshot: &Snapshot, service: &ServiceKey) -> Failure {
    if snapshot.revision == Revision::ZERO {
        return Failure::before_sending(FailureKind::NoSnapshot, Side::Upstream).with_detail(service);
    }
    match w.left(service) {
        Some(at) => none().with_detail(format_args!("the last instance of {service} left at {at}")),
        None => none().with_detail(format_args!("neither a Service nor an instance of {service} is visible from here")),
    }
}

fn none() -> Failure {
    Failure::before_sending(FailureKind::NoHealthyEndpoint, Side::Upstream)
}
