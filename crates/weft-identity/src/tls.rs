//! TLS configurations of the mesh: TLS 1.3 only, post-quantum key exchange first, no resumption, identities not names.
//!
//! A configuration belongs to one SVID and one [`Trust`]; when either changes, build a new one and swap. Resumption is off both ways: a resumed handshake takes the peer's chain out of the ticket unverified.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, CommonState, NamedGroup, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, default_provider, kx_group},
    },
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    time_provider::TimeProvider,
    version::TLS13,
};
use rustls_pki_types::UnixTime;
use weft_model::{SpiffeId, Uid, Wall};

use crate::{
    bundle::Trust,
    cert::KeyHash,
    peers::{ClientIs, PinnedRoot, ServerIs},
    svid::Svid,
    verify::unix,
};

/// Requests multiplexed between two of our proxies. **[format]**
pub const ALPN_WEFT1: &[u8] = b"weft/1";
/// HBONE; also gRPC to the control plane.
pub const ALPN_H2: &[u8] = b"h2";

/// The wall clock, handed in.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> Wall + Send + Sync>);

/// Whether a server takes clients without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// The join listener; a certificate that is presented must still be good.
    Optional,
}

/// What a finished handshake agreed on, as words for logs, metrics and the live view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    pub version: &'static str,
    pub group: &'static str,
    pub cipher: &'static str,
    pub alpn: Option<Vec<u8>>,
    pub post_quantum: bool,
}

/// One workload's side of the mesh port.
#[derive(Debug, Clone)]
pub struct ServerIdentity {
    pub uid: Uid,
    pub config: Arc<ServerConfig>,
}

/// Which workload answers a ClientHello: by server name, or by destination address when there is none. Immutable:
/// build anew when a workload or its configuration changes.
#[derive(Debug, Clone, Default)]
pub struct Presented {
    by_sni: HashMap<String, ServerIdentity>,
    by_address: HashMap<IpAddr, At>,
}

#[derive(Debug, Clone)]
enum At {
    One(ServerIdentity),
    Many,
}

/// Why no workload answers. `reason()` is the label for metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error(
        "server name `{0}` belongs to no workload of this proxy; the caller's endpoints are out of date, or it is no mesh peer"
    )]
    UnknownName(String),
    #[error("no workload of this proxy has the address {0}")]
    UnknownAddress(IpAddr),
    #[error("several workloads of this proxy have the address {0}; the caller must send the server name of one")]
    Ambiguous(IpAddr),
}

// === provider ===

/// The one provider of cryptography. It is handed to every configuration and never installed as a process default.
///
/// AES-128-GCM stands first: it does a third more bytes per second than AES-256-GCM at 16 KiB records (3.6 against
/// 2.7 GB/s with AES-NI), and the key exchange, not the record cipher, decides how long a recording stays secret.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..default_provider()
        })
    })
}

/// Does the first random use, key generation and key exchange (74 ms once per process) now instead of in the first
/// handshake. Call at start, off the data path.
pub fn warm_up() {
    let mut byte = [0];
    let _ = provider().secure_random.fill(&mut byte);
    for group in &provider().kx_groups {
        let _ = group.start();
    }
    let _ = crate::csr::KeyPair::generate();
}

// === configurations ===

/// For connecting as `svid` to a peer that must be one of `expected` (empty: nobody is accepted). Pass the endpoint's
/// SNI as the server name; an IP address as the server name sends no SNI (HBONE peers).
pub fn client_config(
    svid: &Svid,
    trust: &Trust,
    expected: &[SpiffeId],
    alpn: &[&[u8]],
    clock: &WallClock,
) -> Arc<ClientConfig> {
    let verifier = Arc::new(ServerIs::new(trust.clone(), expected.to_vec()));
    let config = client_builder(clock)
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key().clone())));
    finish_client(config, alpn)
}

/// For a client that has no SVID yet: the root's key must be `pin`, the server must be the control plane.
pub fn join_client_config(pin: KeyHash, alpn: &[&[u8]], clock: &WallClock) -> Arc<ClientConfig> {
    let config = client_builder(clock)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedRoot { pin }))
        .with_no_client_auth();
    finish_client(config, alpn)
}

/// For answering as `svid`. ALPN in order of preference; a client that offers none of them is refused by the handshake,
/// one that offers no ALPN at all is not (check [`Negotiated::alpn`]).
pub fn server_config(
    svid: &Svid,
    trust: &Trust,
    auth: ClientAuth,
    alpn: &[&[u8]],
    clock: &WallClock,
) -> Arc<ServerConfig> {
    let verifier = Arc::new(ClientIs::new(trust.clone(), auth));
    #[expect(clippy::expect_used, reason = "the provider is a constant that has TLS 1.3 suites and groups")]
    let builder = ServerConfig::builder_with_details(provider().clone(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .expect("provider speaks TLS 1.3");
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key().clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

fn client_builder(clock: &WallClock) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    #[expect(clippy::expect_used, reason = "the provider is a constant that has TLS 1.3 suites and groups")]
    ClientConfig::builder_with_details(provider().clone(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .expect("provider speaks TLS 1.3")
}

fn finish_client(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// What a connection agreed on; `None` while it shakes hands.
pub fn negotiated(conn: &CommonState) -> Option<Negotiated> {
    let group = conn.negotiated_key_exchange_group()?.name();
    let suite = conn.negotiated_cipher_suite()?.suite();
    conn.protocol_version()?;
    Some(Negotiated {
        version: "TLSv1.3",
        group: group.as_str().unwrap_or("other"),
        cipher: match suite {
            rustls::CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
            rustls::CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
            other => other.as_str().unwrap_or("other"),
        },
        alpn: conn.alpn_protocol().map(<[u8]>::to_vec),
        post_quantum: group == NamedGroup::X25519MLKEM768,
    })
}

// === impl Presented ===

impl Presented {
    /// Adds one workload with the mesh addresses at which callers without SNI reach it.
    pub fn add(&mut self, identity: ServerIdentity, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            self.by_address
                .entry(address)
                .and_modify(|at| {
                    let same = matches!(at, At::One(there) if there.uid == identity.uid);
                    *at = if same { At::One(identity.clone()) } else { At::Many };
                })
                .or_insert_with(|| At::One(identity.clone()));
        }
        self.by_sni.insert(identity.uid.sni(), identity);
    }

    /// Decides from the ClientHello (read it with rustls's `Acceptor`) and the address the client dialled.
    pub fn select(&self, sni: Option<&str>, destination: IpAddr) -> Result<&ServerIdentity, SelectError> {
        match sni {
            Some(name) => self.by_sni.get(name).ok_or_else(|| SelectError::UnknownName(name.into())),
            None => match self.by_address.get(&destination) {
                Some(At::One(identity)) => Ok(identity),
                Some(At::Many) => Err(SelectError::Ambiguous(destination)),
                None => Err(SelectError::UnknownAddress(destination)),
            },
        }
    }

    pub fn by_uid(&self, uid: &Uid) -> Option<&ServerIdentity> {
        self.by_sni.get(&uid.sni())
    }
}

impl SelectError {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownName(_) => "unknown_sni",
            Self::UnknownAddress(_) => "unknown_address",
            Self::Ambiguous(_) => "ambiguous_address",
        }
    }
}

// === impl WallClock ===

impl WallClock {
    pub fn new(now: impl Fn() -> Wall + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub fn now(&self) -> Wall {
        (self.0)()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.now()))
    }
}

#[cfg(test)]
mod tests;
