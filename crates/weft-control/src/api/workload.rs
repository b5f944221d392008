//! How a workload comes to an identity and into the catalog: join, renew, attach.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::stream::unfold;
use tokio_stream::Stream;
use weft_ca::JoinToken;
use weft_identity::{PublicKey, control_plane_id, csr::parse_csr};
use weft_model::{Name, ServiceKey, SpiffeId, Uid};
use weft_registry::{CheckId, Instance, Op, PlanError, Reply, lease, plan};
use weft_resources::{Kind, ResourceKey};
use weft_store::Expect;
use weft_wire::{
    grpc::{Code, Request, Response, Status, Streaming, WorkloadApi, async_trait},
    v1::{
        Ack, AttachReply, AttachRequest, Drained, Issued, JoinRequest, Lost, Refused, Register, Registered,
        RenewRequest, Revision, attach_reply::Message as Say, attach_request::Message,
    },
};

use super::{
    peer::Peer,
    register::{self, Registration},
};
use crate::{
    authority::{By, IssueFailure},
    keys,
    may_register::{ANNOTATION, Denied, Grant, Verdict, may_register},
    replica::{CommitFailure, Draft},
    server::Control,
    state::State,
};

/// The longest that a drain waits for callers to know.
const DRAIN: Duration = Duration::from_secs(2);

pub struct Workloads(pub Arc<Control>);

#[async_trait]
impl WorkloadApi for Workloads {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Issued>, Status> {
        let peer = Peer::of(&request)?;
        let joined = self.joined(&peer, request.into_inner()).await;
        match &joined {
            Ok(issued) => {
                if let Peer::Anonymous(joined) = &peer {
                    joined.set();
                }
                self.0.metrics.joins.add(1);
                tracing::info!(id = issued.spiffe_id, "joined");
            }
            Err(status) => {
                self.0.metrics.join_refusals.add(1);
                tracing::warn!(why = status.message(), "a join was refused");
            }
        }
        joined.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Issued>, Status> {
        let peer = Peer::of(&request)?;
        let id = peer.identity(self.0.replica.clock.wall())?;
        let key = public_key(&request.into_inner().csr_der)?;
        let node = match &peer {
            Peer::Identified(info) => self.node_of(&info.serial),
            _ => String::new(),
        };
        let issued = self.issue(&id, &key, &node, By::Svid).await?;
        self.0.metrics.renewals.add(1);
        Ok(Response::new(issued))
    }

    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachReply, Status>> + Send + 'static>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let who = Peer::of(&request)?.identity(self.0.replica.clock.wall())?;
        let attached = Attached { control: self.0.clone(), who, requests: request.into_inner(), of: None, over: false };
        Ok(Response::new(Box::pin(unfold(attached, |mut a| async {
            let say = a.next().await?;
            Some((Ok(AttachReply { message: Some(say) }), a))
        }))))
    }
}

impl Workloads {
    /// Attestation → which identity → ledger → certificate.
    async fn joined(&self, peer: &Peer, request: JoinRequest) -> Result<Issued, Status> {
        let name = |field: &str, s: &str| Name::parse(s).map_err(|e| Status::invalid_argument(format!("{field}: {e}")));
        let (namespace, account) =
            (name("namespace", &request.namespace)?, name("service_account", &request.service_account)?);
        let node = name("node", &request.node)?;
        let td = self.0.authority.trust_domain();
        let id = SpiffeId::workload(&td, namespace.as_str(), account.as_str())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if id == control_plane_id(&td) {
            return Err(Status::permission_denied(format!("{id} is the control plane's own identity")));
        }
        let service = match request.service.as_str() {
            "" => None,
            named => Some(name("service", named)?),
        };
        let service = service.as_ref();
        let key = public_key(&request.csr_der)?;
        match peer {
            // the socket lets in this user only: it may read the data directory anyway
            Peer::Local if request.token_id.is_empty() => {
                self.issue(&id, &key, node.as_str(), By::Socket { service }).await
            }
            _ => {
                let token = self.bearer(&request)?;
                self.issue(&id, &key, node.as_str(), By::Token { token: &token, service }).await
            }
        }
    }

    /// The pin has done its work at the client: only its holder has come so far. Ours stands in for it.
    fn bearer(&self, request: &JoinRequest) -> Result<JoinToken, Status> {
        if request.token_id.is_empty() || request.secret.is_empty() {
            return Err(Status::unauthenticated("no join token; make one with `weft token create` and set WEFT_TOKEN"));
        }
        let signing = self.0.authority.signing();
        let pin =
            signing.trust.bundle.authorities().first().map(|a| a.key).ok_or_else(|| Status::internal("no root"))?;
        let text = format!("{}.{}.{pin}", request.token_id, request.secret);
        text.parse::<JoinToken>().map_err(|e| Status::invalid_argument(e.to_string()))
    }

    async fn issue(&self, id: &SpiffeId, key: &PublicKey, node: &str, by: By<'_>) -> Result<Issued, Status> {
        let issued = self.0.authority.issue(id, key, node, by).await.map_err(|e| status_of(&e))?;
        let bundle = crate::publish::bundle(&self.0.authority);
        Ok(Issued {
            chain_der: issued.chain.iter().map(|c| c.to_vec().into()).collect(),
            not_after_ms: issued.not_after.as_millis(),
            trust_domain: bundle.trust_domain.to_string(),
            spiffe_id: id.to_string(),
            bundle: Some(weft_wire::v1::Bundle {
                trust_domain: bundle.trust_domain.to_string(),
                authorities: bundle.authorities.iter().map(|der| der.to_vec().into()).collect(),
            }),
            federated: Vec::new(),
        })
    }

    /// From the ledger.
    fn node_of(&self, serial: &weft_identity::Serial) -> String {
        let stored = self.0.replica.store.get(&crate::keys::ledger(serial)).ok().flatten();
        let record = stored.and_then(|v| {
            let raw = crate::state::raw("ledger", &v).ok()?;
            weft_ca::LedgerRecord::decode(raw).ok()
        });
        record.map(|r| r.node).unwrap_or_default()
    }
}

fn public_key(csr: &[u8]) -> Result<PublicKey, Status> {
    parse_csr(csr).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn status_of(e: &IssueFailure) -> Status {
    let code = match e {
        IssueFailure::Refused(_) => Code::PermissionDenied,
        IssueFailure::Issue(_) => Code::FailedPrecondition,
        IssueFailure::Commit(_) => Code::Unavailable,
    };
    Status::new(code, weft_rt::log::chain(e).to_string())
}

// === attach ===

/// One stream: a lease.
struct Attached {
    control: Arc<Control>,
    who: SpiffeId,
    requests: Streaming<AttachRequest>,
    /// What it registered.
    of: Option<Instance>,
    over: bool,
}

impl Attached {
    async fn next(&mut self) -> Option<Say> {
        while !self.over {
            let mut draining = self.control.draining.clone();
            let request = tokio::select! {
                biased; // what was said counts, whatever happens here
                request = self.requests.message() => request.ok()??,
                () = draining.draining() => {
                    self.over = true;
                    return Some(lost("the server is going down; it keeps the registration"));
                }
            };
            let AttachRequest { seq, message: Some(message) } = request else { continue };
            match self.take(seq, message).await {
                Ok(Some(say)) => return Some(say),
                Ok(None) => {}
                Err(say) => {
                    // before it is registered there is nothing that the stream could go on with
                    self.over = self.of.is_none() || matches!(say, Say::Lost(_));
                    return Some(say);
                }
            }
        }
        None
    }

    async fn take(&mut self, seq: u64, message: Message) -> Result<Option<Say>, Say> {
        let refused = |reason: String| Say::Refused(Refused { reason, seq });
        let ack = Ok(Some(Say::Ack(Ack { seq })));
        let registered = || self.of.clone().ok_or_else(|| refused("register first".into()));
        match message {
            Message::Register(r) if self.of.is_none() => self.register(&r, seq).await.map(Some),
            Message::Register(_) => Err(refused("this stream has registered; open another one".into())),
            Message::Renew(_) => {
                let instance = registered()?;
                let known = self.control.liveness.renew(&instance.holder()).await;
                match known {
                    Ok(true) => Ok(None),
                    Ok(false) => Err(lost("the registration is gone")),
                    // renewals stay in memory; what could not be written is written with the next one
                    Err(e) => {
                        tracing::warn!(error = e.told(), "a lease was not made alive");
                        Ok(None)
                    }
                }
            }
            Message::Check(result) => {
                let instance = registered()?;
                let id = Name::parse(&result.check_id).map_err(|e| refused(e.to_string()))?;
                let status = register::status(result.status)
                    .ok_or_else(|| refused(format!("{} is no status of a check", result.status)))?;
                let check = CheckId::Instance { of: instance.key(), id };
                match self.control.liveness.report(&check, status, &result.output).await {
                    Ok(true) => ack,
                    Ok(false) => Err(refused(format!("check `{check}` is not registered"))),
                    Err(e @ CommitFailure::Refused(_)) => Err(refused(e.told())),
                    // it reports again what it found last when it comes back; of what is refused it does not speak again
                    Err(e) => Err(lost(&e.told())),
                }
            }
            Message::Drain(_) => {
                let instance = registered()?;
                self.drain(&instance).await.map(Some).map_err(refused)
            }
            Message::Deregister(_) => {
                let instance = registered()?;
                let op = Op::Deregister { instance: instance.key(), by: instance.owner.clone() };
                match self.control.replica.register(self.who.as_str(), op).await {
                    Ok(_) | Err(CommitFailure::Refused(PlanError::NoInstance(_))) => {
                        tracing::info!(uid = %instance.uid(), "deregistered");
                        self.over = true;
                        ack
                    }
                    Err(e) => Err(refused(e.told())),
                }
            }
        }
    }

    /// What is refused is refused for good; what could not be written now is *lost*: the workload tries again.
    async fn register(&mut self, r: &Register, seq: u64) -> Result<Say, Say> {
        let refused = |reason: String| Say::Refused(Refused { reason, seq });
        let registration = register::read(r, &self.who).map_err(|bad| refused(bad.join("; ")))?;
        let Registration { instance, checks } = registration;
        let server = self.control.liveness.server().clone();
        let committed = self.control.replica.commit(self.who.as_str(), "register", |state, _| {
            // an id names its owner, but anyone can say it: the identity decides who may take it over
            let there = state.registry.instance(&instance.key());
            if let Some(other) = there.filter(|s| s.value.identity != self.who) {
                return Err(NotYours::Other { uid: other.value.uid(), identity: other.value.identity.clone() });
            }
            let basis = judged(state, &self.who, &instance.service)?;
            let op = Op::Register { instance: instance.clone(), checks: checks.clone(), attach: Some(server.clone()) };
            let plan = plan(&state.registry, op).map_err(NotYours::Plan)?;
            let mut expects = plan.expects;
            expects.extend(basis);
            Ok(Draft { expects, writes: plan.writes, reply: plan.reply })
        });
        let committed = committed.await.map_err(|e| match e {
            CommitFailure::Refused(_) => refused(e.told()),
            _ => lost(&e.told()),
        })?;
        debug_assert!(matches!(committed.reply, Reply::Registered { .. }));
        // a registration that changed nothing renews as well
        self.control.liveness.renew(&instance.holder()).await.map_err(|e| lost(&e.told()))?;
        let uid = instance.uid();
        tracing::info!(uid = %uid, id = %self.who, "registered");
        let state = self.control.replica.state();
        let other = state.registry.instances_of(&instance.service).find(|s| s.value.identity != self.who);
        if let Some(other) = other {
            // callers accept either, as an operator granted it
            tracing::warn!(dst.service = %instance.service, id = %self.who, other = %other.value.identity, "a service is answered by several identities");
        }
        self.of = Some(instance);
        Ok(Say::Registered(Registered {
            sni: uid.sni(),
            uid: uid.to_string(),
            identity: self.who.to_string(),
            revision: Some(Revision { incarnation: committed.revision.incarnation, n: committed.revision.n }),
            lease_ms: u64::try_from(lease::UNKNOWN_AFTER.as_millis()).unwrap_or(u64::MAX),
        }))
    }

    /// Committed, and then known to all who may send to it, or time is up.
    async fn drain(&self, instance: &Instance) -> Result<Say, String> {
        let op = Op::Drain { instance: instance.key(), by: instance.owner.clone() };
        self.control.replica.register(self.who.as_str(), op).await.map_err(|e| e.told())?;
        let uid = instance.uid();
        let mut progress = self.control.sessions.watch_progress();
        let all_know = async {
            loop {
                progress.mark_unchanged();
                let (applied, total) = self.control.sessions.callers_of(&uid);
                if applied >= total || progress.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN, all_know).await;
        let (applied, total) = self.control.sessions.callers_of(&uid);
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Say::Drained(Drained { acknowledged: small(applied), total: small(total) }))
    }
}

#[derive(Debug, thiserror::Error)]
enum NotYours {
    #[error("`{uid}` is registered by {identity}; choose another id")]
    Other { uid: Uid, identity: SpiffeId },
    #[error(transparent)]
    Denied(Denied),
    #[error(transparent)]
    Plan(PlanError),
}

/// Whether the identity may register the service, and what the answer rests on: it must still be so at the commit.
fn judged(state: &State, who: &SpiffeId, service: &ServiceKey) -> Result<Option<Expect>, NotYours> {
    let key = Grant::of(who, service.name.clone()).map(|g| keys::grant(&g));
    let granted = key.as_ref().and_then(|key| state.grants.get(key));
    let resource = ResourceKey::new(Kind::Service, service.namespace.clone(), service.name.clone());
    let doc = state.docs.get(&resource);
    let annotation = doc.and_then(|d| d.resource.metadata.annotations.get(ANNOTATION));
    match may_register(who, service, granted.map(|s| &*s.value), annotation.map(String::as_str)) {
        Verdict::Namesake => Ok(None),
        Verdict::Granted => Ok(key.zip(granted).map(|(key, s)| Expect::unchanged(key, s.modified))),
        Verdict::Annotated => Ok(doc.map(|d| Expect::unchanged(keys::resource(&resource), d.modified))),
        Verdict::Deny(denied) => Err(NotYours::Denied(denied)),
    }
}

fn lost(reason: &str) -> Say {
    Say::Lost(Lost { reason: reason.into() })
}
