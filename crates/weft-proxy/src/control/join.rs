//! The first identity: a join token, or the peer credentials of a socket on this host.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use rustls_pki_types::CertificateDer;
use weft_identity::{Bundle, KeyHash, Revocations, Svid, Trust, VerifyError, WallClock, csr::KeyPair};
use weft_model::TrustDomain;
use weft_rt::net::Net;
use weft_wire::{
    grpc::{Code, Status, WorkloadApiClient},
    v1::{Issued, JoinRequest},
};

use super::connect;
use crate::tls::Credentials;

/// `id.secret.sha256(root key)`, each in hex but the id. **[format]** Never printed.
#[derive(Clone)]
pub struct JoinToken {
    pub id: String,
    secret: String,
    pub pin: KeyHash,
}

/// How this workload proves that it may have its first identity.
#[derive(Debug, Clone)]
pub enum Proof {
    Token {
        server: SocketAddr,
        token: JoinToken,
    },
    /// The Unix socket of a server on this host that trusts this user.
    Socket(PathBuf),
    /// It cannot: it lives on the identity that it kept.
    Kept,
}

/// Whose identity is asked for.
#[derive(Debug, Clone)]
pub struct Claim {
    pub namespace: String,
    pub service_account: String,
    pub service: String,
    pub node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the join token is not of the form id.secret.pin; make one with `weft token create --service NAME`")]
pub struct TokenError;

/// Why there is no identity yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(
        "no identity that is still valid was kept here, and there is no token to join with: make one with `weft token create \
         --service NAME` and pass it as WEFT_TOKEN"
    )]
    NothingKept,
    /// Worth trying again.
    #[error("no answer from the control plane at {server}: {why}; is `weft server` or `weft dev` running there?")]
    Unreachable { server: String, why: String },
    /// Trying again changes nothing.
    #[error("the control plane refuses to let this workload join: {0}")]
    Refused(String),
    #[error(
        "the control plane at {server} is not the one that made the join token (its root is another); make a new token there"
    )]
    Foreign { server: String },
    #[error("cannot make a key for this workload: {0}")]
    Key(String),
    #[error("the control plane answered with an identity that cannot be used: {0}")]
    Unusable(String),
}

// === impl JoinToken ===

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError);
        };
        let pin = pin.parse().map_err(|_| TokenError)?;
        if id.is_empty() || secret.is_empty() {
            return Err(TokenError);
        }
        Ok(Self { id: id.into(), secret: secret.into(), pin })
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

// === impl JoinError ===

impl JoinError {
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unreachable { .. })
    }
}

/// One attempt. The same `key` every time: a retry of a spent token by the key that spent it succeeds.
pub async fn join(
    net: &Arc<dyn Net>,
    proof: &Proof,
    claim: &Claim,
    key: &KeyPair,
    clock: &WallClock,
) -> Result<Credentials, JoinError> {
    let csr_der = key.csr().map_err(|e| JoinError::Key(e.to_string()))?;
    let (channel, token_id, secret) = match proof {
        Proof::Token { server, token } => (connect::pinned(net, *server, token.pin, clock), &*token.id, &*token.secret),
        Proof::Socket(path) => (connect::socket(path), "", ""),
        Proof::Kept => return Err(JoinError::NothingKept),
    };
    let unreachable = |why: String| JoinError::Unreachable { server: proof.server(), why };
    let mut client = WorkloadApiClient::new(channel.map_err(|e| unreachable(chain(&e)))?);
    let request = JoinRequest {
        token_id: token_id.into(),
        secret: secret.into(),
        csr_der: csr_der.into(),
        namespace: claim.namespace.clone(),
        service_account: claim.service_account.clone(),
        node: claim.node.clone(),
        service: claim.service.clone(),
    };
    let joined = tokio::time::timeout(super::identity::ANSWER, client.join(request)).await;
    match joined.unwrap_or_else(|_| Err(Status::deadline_exceeded("it took too long"))) {
        Ok(issued) => credentials(key, issued.into_inner()).map_err(JoinError::Unusable),
        Err(status) => Err(proof.failed(&status)),
    }
}

/// What the control plane issued, checked.
pub fn credentials(key: &KeyPair, issued: Issued) -> Result<Credentials, String> {
    let chain = issued.chain_der.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let svid: Svid = key.into_svid(chain).map_err(|e| e.to_string())?;
    let trust_domain = TrustDomain::parse(&issued.trust_domain).map_err(|e| e.to_string())?;
    let authorities = issued.bundle.map(|b| b.authorities).unwrap_or_default();
    let authorities = authorities.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let bundle = Bundle::new(trust_domain, authorities).map_err(|e| e.to_string())?;
    Ok(Credentials { svid, trust: Trust::new(bundle, Revocations::default()) })
}

impl Proof {
    fn server(&self) -> String {
        match self {
            Self::Token { server, .. } => server.to_string(),
            Self::Socket(path) => path.display().to_string(),
            Self::Kept => String::new(),
        }
    }

    fn failed(&self, status: &Status) -> JoinError {
        let why = match std::error::Error::source(status) {
            // tonic's own words for it say nothing
            Some(source) => chain(source).trim_start_matches("transport error: ").to_owned(),
            None => status.message().to_owned(),
        };
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound => JoinError::Refused(status.message().into()),
            // the pinned root is not what answered: another server, or somebody in between
            _ if matches!(
                verdict(status),
                Some(VerifyError::ForeignRoot { .. } | VerifyError::UnknownAuthority { .. })
            ) =>
            {
                JoinError::Foreign { server: self.server() }
            }
            _ => JoinError::Unreachable { server: self.server(), why },
        }
    }
}

/// Of our verifier, when it was the one who refused the server: somewhere below what the transport says.
fn verdict<'a>(e: &'a (dyn std::error::Error + 'static)) -> Option<&'a VerifyError> {
    let mut next = Some(e);
    while let Some(e) = next {
        // an `io::Error` gives as its source what is below the error that it carries, so that one is looked at here
        let carried = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = e.downcast_ref().or_else(|| carried?.downcast_ref::<rustls::Error>());
        if let Some(verdict) = tls.and_then(VerifyError::in_handshake) {
            return Some(verdict);
        }
        next = carried.map(|c| c as &(dyn std::error::Error + 'static)).or_else(|| e.source());
    }
    None
}

fn chain(e: &dyn std::error::Error) -> String {
    weft_rt::log::chain(e).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_10_a_token_has_three_parts_and_never_shows_its_secret() {
        let pin = "ab".repeat(32);
        let token: JoinToken = format!("t1.s3cret.{pin}").parse().unwrap();
        assert_eq!(format!("{token:?}"), "JoinToken(t1)");
        for bad in ["", "a.b", &format!("a..{pin}"), "a.b.zz", &format!("a.b.{pin}.c")] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    /// A control plane of a mesh of its own: its key's hash, and what it serves with.
    fn control_plane(clock: &WallClock) -> (KeyHash, Arc<rustls::ServerConfig>) {
        use rcgen::{
            BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Use, IsCa, Issuer, KeyUsagePurpose,
        };
        let td = TrustDomain::parse("mesh.weft").unwrap();
        let params = |id: &str| {
            let mut p = CertificateParams::default();
            p.distinguished_name = rcgen::DistinguishedName::new();
            p.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
            p.not_before = rcgen::date_time_ymd(2020, 1, 1);
            p.not_after = rcgen::date_time_ymd(2090, 1, 1);
            p
        };
        let (ca_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let mut ca = params(weft_model::SpiffeId::authority(&td).as_str());
        ca.distinguished_name.push(rcgen::DnType::CommonName, "root");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = ca.self_signed(&ca_key).unwrap().der().clone();
        let mut leaf = params(weft_identity::control_plane_id(&td).as_str());
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![Use::ServerAuth, Use::ClientAuth];
        let chain = vec![leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap().der().clone()];
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let svid = Svid::new(chain, key).unwrap().with_authority(&root).unwrap();
        let bundle = Bundle::new(td, vec![root]).unwrap();
        let pin = bundle.authorities()[0].key;
        let trust = Trust::new(bundle, Revocations::default());
        let auth = weft_identity::ClientAuth::Optional;
        (pin, weft_identity::server_config(&svid, &trust, auth, &[weft_identity::ALPN_H2], clock))
    }

    #[tokio::test]
    async fn sec_10_a_server_of_another_root_is_told_from_one_that_does_not_answer() {
        use weft_rt::{listen, net::Addr};
        let wall = weft_rt::Clock::real();
        let clock = WallClock::new(move || wall.wall());
        let net: Arc<dyn Net> = Arc::new(weft_rt::net::System);
        let key = KeyPair::generate().unwrap();
        let name = || "web".to_owned();
        let claim = Claim { namespace: name(), service_account: name(), service: name(), node: name() };
        let (pin, config) = control_plane(&clock);
        let (other, _) = control_plane(&clock);
        let any = listen::Bind::exact(Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))));
        let mut listener = listen::bind(&any).unwrap();
        let server = listener.addr().tcp().unwrap();
        let serve = async {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                // what is not gRPC ends with the connection
                drop(tokio_rustls::TlsAcceptor::from(config.clone()).accept(io).await);
            }
        };
        let ask = async |pin: KeyHash| {
            let token = JoinToken { id: "t1".into(), secret: "s".into(), pin };
            join(&net, &Proof::Token { server, token }, &claim, &key, &clock).await.err().unwrap()
        };
        let asked = async { (ask(other).await, ask(pin).await) };
        let (foreign, silent) = tokio::select! {
            biased; // the server never ends by itself
            asked = asked => asked,
            () = serve => unreachable!(),
        };
        assert_eq!(
            foreign.to_string(),
            format!(
                "the control plane at {server} is not the one that made the join token (its root is another); make a new \
                 token there"
            )
        );
        assert!(foreign.is_final());
        assert!(matches!(silent, JoinError::Unreachable { .. }), "{silent}");
    }
}
