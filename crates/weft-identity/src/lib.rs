//! Identities: SVIDs, bundles, certificate requests, verification, TLS configurations, and the plan of rotation.
//!
//! The way of an identity, forward: `rotate` says when → `csr` makes a key and a request → (the authority answers) →
//! `svid` admits the answer → `tls` builds configurations from it → `verify` judges the peer of each handshake, and
//! again while the connection lives.
//!
//! Architecture invariant: no sockets, no authority's private keys, no clock of its own.

pub mod bundle;
pub mod cert;
pub mod csr;
pub mod rotate;
pub mod seal;
pub mod svid;
pub mod tls;
pub mod verify;

mod peers;
mod pem;
#[cfg(test)]
mod testing;

pub use bundle::{Bundle, BundleError, Revocations, Trust};
pub use cert::{CertError, Facts, KeyHash, Serial};
pub use csr::{CsrError, PublicKey};
pub use svid::{Svid, SvidError};
pub use tls::{
    ALPN_H2, ALPN_WEFT1, ClientAuth, Negotiated, Presented, SelectError, ServerIdentity, WallClock, client_config,
    join_client_config, negotiated, provider, server_config, warm_up,
};
pub use verify::{PeerInfo, VerifyError, principal, recheck};

/// How far back an authority dates `notBefore`, so that a peer whose clock is behind accepts a new SVID at once.
pub const BACKDATE: std::time::Duration = std::time::Duration::from_secs(300);

/// The path of the control plane's own SPIFFE ID. Whoever joins demands exactly this identity before a token is sent:
/// any other SVID of the same root belongs to a workload, which must not be able to collect tokens.
pub const CONTROL_PLANE_PATH: (&str, &str) = ("weft-system", "control-plane");

/// `spiffe://<trust domain>/ns/weft-system/sa/control-plane`.
pub fn control_plane_id(td: &weft_model::TrustDomain) -> weft_model::SpiffeId {
    let (ns, sa) = CONTROL_PLANE_PATH;
    // both segments are constants of SPIFFE's characters; only a trust domain near 255 bytes could matter, and
    // 255 + 40 is far below 2048
    weft_model::SpiffeId::workload(td, ns, sa).unwrap_or_else(|_| weft_model::SpiffeId::authority(td))
}
