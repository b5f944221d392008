//! The shell of the authority: which key signs now, and each issuance from ledger to certificate.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use weft_ca::{Issue, IssueError, Issued, JoinToken, Kek, Refusal, Signer, SlotError, Step, Verdict, slots, token};
use weft_identity::{
    ALPN_H2, BundleError, ClientAuth, PublicKey, Revocations, Svid, SvidError, Trust, WallClock, control_plane_id,
    csr::{CsrError, KeyPair},
    server_config,
};
use weft_model::{Name, SpiffeId, TrustDomain, Wall};
use weft_registry::value;
use weft_store::{Expect, Format, Key, Write};

use crate::{
    keys,
    may_register::Grant,
    replica::{CommitFailure, Draft, Replica},
    state::State,
};

/// How often it is looked whether a key or the server's own identity must be replaced.
const LOOK_EVERY: Duration = Duration::from_secs(30);

pub struct Authority {
    replica: Arc<Replica>,
    kek: Kek,
    leaf_ttl: Duration,
    /// Of the server's own certificate, for clients that check names.
    dns_names: Vec<String>,
    wall: WallClock,
    signer: ArcSwap<Signing>,
    /// `None` until the server has an identity of its own.
    serving: ArcSwap<Option<Serving>>,
}

/// What signs, and whom to trust.
pub struct Signing {
    pub signer: Signer,
    pub trust: Trust,
}

/// The server's own side of 15012.
struct Serving {
    tls: Arc<rustls::ServerConfig>,
    https: Arc<rustls::ServerConfig>,
    renew_at: Wall,
}

/// Why there is no signer.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the signing key cannot be opened")]
    Slot(#[source] SlotError),
    #[error("the mesh's roots cannot be trusted")]
    Bundle(#[source] BundleError),
    #[error("the server's own identity could not be made")]
    Own(#[source] IssueFailure),
    #[error("no key could be made")]
    Key(#[source] CsrError),
    #[error("the server's own identity cannot be used")]
    Svid(#[source] SvidError),
}

/// By what somebody has an identity.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    /// It had one.
    Svid,
    /// The socket: this server's user. `service` is what it says that it will register.
    Socket { service: Option<&'a Name> },
    /// Spent in the commit of the issuance.
    Token { token: &'a JoinToken, service: Option<&'a Name> },
}

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueFailure {
    #[error(transparent)]
    Refused(Refusal),
    #[error("the certificate was not issued")]
    Issue(#[source] IssueError),
    #[error("the issuance could not be recorded, so nothing was signed: {0}")]
    Commit(String),
}

// === impl Authority ===

impl Authority {
    pub fn open(
        replica: Arc<Replica>,
        kek: Kek,
        leaf_ttl: Duration,
        mut dns_names: Vec<String>,
        wall: WallClock,
    ) -> Result<Self, AuthorityError> {
        dns_names.push("localhost".into());
        let signing = signing(&replica.state(), &kek, wall.now())?;
        let (signer, serving) = (ArcSwap::from_pointee(signing), ArcSwap::from_pointee(None));
        Ok(Self { replica, kek, leaf_ttl, dns_names, wall, signer, serving })
    }

    pub fn signing(&self) -> Arc<Signing> {
        self.signer.load_full()
    }

    pub fn trust_domain(&self) -> TrustDomain {
        self.signer.load().signer.trust_domain().clone()
    }

    pub fn leaf_ttl(&self) -> Duration {
        self.leaf_ttl
    }

    /// For the next connection to 15012; `None` before the first [`Authority::renew_own`].
    pub fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.serving.load().as_ref().as_ref().map(|s| s.tls.clone())
    }

    /// As [`Authority::tls`], for the HTTP API.
    pub fn https(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.serving.load().as_ref().as_ref().map(|s| s.https.clone())
    }

    /// The authorities in the store changed: sign and trust as they say.
    pub fn reopen(&self, state: &State) -> Result<(), AuthorityError> {
        self.signer.store(Arc::new(signing(state, &self.kek, self.wall.now())?));
        Ok(())
    }

    /// A new identity of the server's own.
    pub async fn renew_own(&self) -> Result<(), AuthorityError> {
        let signing = self.signing();
        let key = KeyPair::generate().map_err(AuthorityError::Key)?;
        let id = control_plane_id(signing.signer.trust_domain());
        let request = self.request(&id, &key.public_key(), self.dns_names.clone());
        let issued = self.issued(&request, "", By::Svid).await.map_err(AuthorityError::Own)?;
        let svid: Svid = key.into_svid(issued.chain).map_err(AuthorityError::Svid)?;
        // whoever joins holds a pin only, and must find the root in the chain
        let root = signing.signer.root().certificates().next().cloned();
        let svid = match root {
            Some(root) => svid.with_authority(&root).map_err(AuthorityError::Svid)?,
            None => svid,
        };
        let serve = |alpn: &[u8]| server_config(&svid, &signing.trust, ClientAuth::Optional, &[alpn], &self.wall);
        let (tls, https) = (serve(ALPN_H2), serve(b"http/1.1"));
        let renew_at = self.wall.now().plus(issued.not_after.since(self.wall.now()) / 2);
        self.serving.store(Arc::new(Some(Serving { tls, https, renew_at })));
        Ok(())
    }

    /// Ledger first, with the token's spending and what it grants in the same commit; then signs; what was signed is read back inside.
    pub async fn issue(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        node: &str,
        by: By<'_>,
    ) -> Result<Issued, IssueFailure> {
        self.issued(&self.request(id, public_key, Vec::new()), node, by).await
    }

    fn request(&self, id: &SpiffeId, public_key: &PublicKey, dns_names: Vec<String>) -> Issue {
        Issue { id: id.clone(), public_key: public_key.clone(), ttl: self.leaf_ttl, dns_names }
    }

    async fn issued(&self, request: &Issue, node: &str, by: By<'_>) -> Result<Issued, IssueFailure> {
        let signing = self.signing();
        let now = self.wall.now();
        let template = signing.signer.plan(request, now).map_err(IssueFailure::Issue)?;
        let record = template.record(node);
        let ledger: Key = keys::ledger(&record.serial).into();
        let roots: Vec<_> = signing.trust.bundle.authorities().iter().map(|a| a.key).collect();
        let committed = self.replica.commit("ca", "issue", |state, _| {
            let mut draft = Draft::idle(());
            let granted = match by {
                By::Svid => None,
                By::Socket { service } => service.cloned(),
                By::Token { token: bearer, service } => {
                    let stored = state.tokens.get(&bearer.id);
                    let record = stored.map(|s| &*s.value);
                    match token::spend(record, bearer, &request.id, &request.public_key, &roots, now)? {
                        // what it grants was committed when it was spent
                        Verdict::Again => None,
                        Verdict::Spend(spent) => {
                            let key = keys::token(&bearer.id);
                            draft.expects.extend(stored.map(|s| Expect::unchanged(key.clone(), s.modified)));
                            draft.writes.insert(key.into(), Write::Put(Format::Raw.wrap(&spent.encode())));
                            spent.grants(service.map(Name::as_str)).and_then(|s| Name::parse(s).ok())
                        }
                    }
                }
            };
            if let Some(grant) = granted.and_then(|service| Grant::of(&request.id, service)) {
                let key = keys::grant(&grant);
                if !state.grants.contains_key(&key) {
                    draft.writes.insert(key.into(), Write::Put(value::encode(&grant)));
                }
            }
            draft.expects.push(Expect::absent(ledger.clone()));
            draft.writes.insert(ledger.clone(), Write::Put(Format::Raw.wrap(&record.encode())));
            Ok(draft)
        });
        match committed.await {
            Ok(_) => signing.signer.sign(&template).map_err(IssueFailure::Issue),
            Err(CommitFailure::Refused(refusal)) => Err(IssueFailure::Refused(refusal)),
            Err(other) => Err(IssueFailure::Commit(other.told())),
        }
    }

    /// Keeps keys and the server's own identity current, for ever.
    pub async fn tend(self: Arc<Self>) {
        let look = LOOK_EVERY.min(self.leaf_ttl / 8).max(Duration::from_millis(250));
        loop {
            tokio::time::sleep(look).await;
            if let Err(e) = self.advance_signing().await {
                tracing::error!(error = e, "the signing key could not be replaced");
            }
            let due = self.serving.load().as_ref().as_ref().is_none_or(|s| self.wall.now() >= s.renew_at);
            if due && let Err(e) = self.renew_own().await {
                tracing::error!(error = %weft_rt::log::chain(&e), "the server's own identity was not renewed");
            }
        }
    }

    /// One step of the signing slots, when one is due. A new root is never activated by time alone: everyone must have
    /// it first.
    async fn advance_signing(&self) -> Result<(), String> {
        let told = |e: &dyn std::error::Error| weft_rt::log::chain(e).to_string();
        let (state, now) = (self.replica.state(), self.wall.now());
        let journal = &state.signing.journal;
        let next = match slots::plan(now, journal) {
            Step::Nothing => return Ok(()),
            Step::Prepare => {
                let root = slots::root_signer(&state.roots.journal, &self.kek).map_err(|e| told(&e))?;
                slots::prepare_signing(journal, &root, &self.kek, now).map_err(|e| told(&e))?
            }
            Step::Activate => slots::activate(journal, now).map_err(|e| told(&e))?,
        };
        let read_at = state.signing.modified;
        let committed = self.replica.commit::<(), AuthorityError>("ca", "advance the signing key", |_, _| {
            let mut draft = Draft::idle(());
            draft.expects.push(Expect::unchanged(keys::SIGNING, read_at));
            draft.writes.insert(keys::SIGNING.into(), Write::Put(Format::Raw.wrap(&next.encode())));
            Ok(draft)
        });
        committed.await.map_err(|e| e.told())?;
        tracing::info!("the authority's signing slots moved on");
        Ok(())
    }
}

fn signing(state: &State, kek: &Kek, now: Wall) -> Result<Signing, AuthorityError> {
    let signer =
        slots::current_signer(&state.signing.journal, &state.roots.journal, kek).map_err(AuthorityError::Slot)?;
    let bundle = state.roots.journal.bundle(now).map_err(AuthorityError::Bundle)?;
    Ok(Signing { signer, trust: Trust::new(bundle, Revocations::default()) })
}
