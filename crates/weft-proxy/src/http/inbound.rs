//! The story of a request into the local application.
//!
//! snapshot → resolve → normalize → authorize → application → answer → record

use std::{rc::Rc, sync::Arc};

use weft_model::Protocol;
use weft_snapshot::{
    authz::{self, Attributes, DenyReason, Verdict},
    failure::FailureKind,
    fragment::Listen,
    resolve::resolve_claim,
    snapshot::Snapshot,
};

use super::{Inbound, note_request, recording, refuse, respond};
use crate::{
    codec::{Body, Reply, RequestHead, ResponseHead},
    failure::{Failure, Side},
    flows::{self, Admission, Asks},
    head::{self, Borrowed},
    local::Asked,
    record::{Direction, Policy, Recording},
    upstream,
};

pub(super) async fn inbound(i: &Rc<Inbound>, mut head: RequestHead, mut body: Body, reply: &Reply) {
    let w = &i.worker;
    let (snapshot, started) = (w.snapshot(), w.clock.mono());
    let asked = Asked::of(&head);
    let id = head::request_id(&mut head, &mut w.dice.borrow_mut());
    let mut rec = recording(w, id, Direction::Inbound, i.peer.borrow().clone(), &head, started, &snapshot);
    rec.get().workload = Some(i.workload.clone());
    let came = body.meter();

    match admit(i, &snapshot, head, &mut rec) {
        Ok((listen, head, flow)) => {
            let interim = |h: &ResponseHead| reply.interim(h);
            let answer = tokio::select! {
                biased; // an answer that is there counts
                a = upstream::ask_app(w, &listen, &head, body, &interim) => a,
                f = flow.denied() => Err(f),
                () = reply.gone() => Err(Failure::new(FailureKind::DownstreamClosed, Side::Downstream)),
            };
            match answer {
                Ok(mut answer) => {
                    (rec.get().attempts, rec.get().upstream_local) = (1, answer.local);
                    // an application that speaks under our names would be believed
                    head::strip(&mut answer.head.headers);
                    respond(w, answer, reply, Some(&flow), &mut rec).await;
                }
                Err(f) => Box::pin(refuse(&f, asked, reply, &mut rec)).await,
            }
        }
        Err(f) => Box::pin(refuse(&f, asked, reply, &mut rec)).await,
    }
    note_request(came, &mut rec);
    rec.finish();
}

/// Which port is meant, and may this peer do this? The head comes back as the application gets it.
fn admit(
    i: &Rc<Inbound>,
    snapshot: &Snapshot,
    mut head: RequestHead,
    rec: &mut Recording,
) -> Result<(Listen, Rc<RequestHead>, flows::Guard), Failure> {
    let view = snapshot
        .workload(&i.workload)
        .ok_or_else(|| Failure::before_sending(FailureKind::NoSnapshot, Side::Internal).with_detail(&i.workload))?;
    if head::count_hop(&mut head.headers).is_none() {
        return Err(Failure::before_sending(FailureKind::Loop, Side::Downstream));
    }
    let listen = match &i.listen {
        Some(l) => l.clone(),
        None => {
            let claim = head.header_str("weft-to").unwrap_or_default();
            let misdirected = |e| Failure::before_sending(FailureKind::Misdirected, Side::Downstream).with_detail(e);
            let listen = resolve_claim(view, claim).map_err(misdirected)?.clone();
            if matches!(listen.protocol, Protocol::Tcp | Protocol::Tls) {
                // its rules are those of connections, and what listens there does not expect requests
                let port = listen.service_port;
                let detail = format_args!("port {port} is declared {}, open a tunnel to it", listen.protocol);
                return Err(Failure::before_sending(FailureKind::Misdirected, Side::Downstream).with_detail(detail));
            }
            head.origin = head::orig(&head.headers);
            listen
        }
    };
    head::strip(&mut head.headers);
    let r = rec.get();
    r.service = Some((view.workload.service.clone(), listen.service_port));
    r.upstream_addr = Some(listen.connect);

    let ambiguous = |e| Failure::before_sending(FailureKind::AmbiguousPath, Side::Downstream).with_detail(e);
    let path = if view.inbound.reads_paths() {
        authz::normalize(head.path_str()).map_err(ambiguous)?
    } else {
        authz::normalize_keeping_slashes(head.path_str()).map_err(ambiguous)?
    };
    if let std::borrow::Cow::Owned(p) = path {
        head.path = p.into();
    }
    let borrowed = Borrowed(&head);
    let attributes = Attributes {
        principal: Some(&i.principal),
        source_ip: i.source_ip,
        dest_ip: listen.app.ip(),
        dest_port: listen.app.port(),
        sni: i.sni.as_deref(),
        http: Some(borrowed.request()),
    };
    let verdict = authz::evaluate(&view.inbound, &attributes);
    rec.get().policy = Policy::from(verdict.clone());
    if let Verdict::Deny { rule, why } = verdict {
        return Err(denied(rule, &why));
    }
    let head = Rc::new(head);
    let flow = i.worker.flows.register(i.admission(&listen, Asks::Request(head.clone())));
    Ok((listen, head, flow))
}

pub(crate) fn denied(rule: Option<Arc<weft_model::ResourceRef>>, why: &DenyReason) -> Failure {
    let kind = match why {
        DenyReason::Plaintext { .. } => FailureKind::PlaintextRefused,
        DenyReason::NotHttp => FailureKind::NotHttp,
        _ => FailureKind::Denied,
    };
    Failure::before_sending(kind, Side::Policy).with_rule(rule).with_detail(why)
}

impl Inbound {
    pub(crate) fn admission(self: &Rc<Self>, listen: &Listen, asks: Asks) -> Admission {
        Admission { by: self.clone(), dest_ip: listen.app.ip(), dest_port: listen.app.port(), asks }
    }
}
