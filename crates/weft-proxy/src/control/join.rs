//! The first identity: a join token, or the peer credentials of a socket on this host.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use rustls_pki_types::CertificateDer;
use weft_identity::{Bundle, KeyHash, Revocations, Svid, Trust, WallClock, csr::KeyPair};
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
    match client.join(request).await {
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
            _ if why.contains("pin") => JoinError::Foreign { server: self.server() },
            _ => JoinError::Unreachable { server: self.server(), why },
        }
    }
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
}
