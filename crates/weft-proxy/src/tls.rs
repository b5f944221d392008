//! mTLS of the mesh port, both sides. The principal comes from the verified chain and from nowhere else.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rustls::server::Acceptor;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};
use weft_identity::{
    ALPN_H2, ALPN_WEFT1, ClientAuth, Presented, ServerIdentity, Svid, Trust, VerifyError, WallClock, client_config,
    negotiated, recheck, server_config,
};
use weft_model::{SpiffeId, Uid, Wall};
use weft_rt::{log::chain, net::Stream};
use weft_snapshot::{failure::FailureKind, fragment::Tunnel, snapshot::Snapshot};

use crate::failure::{Failure, Side};

/// What a peer gets for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who this proxy is, and whom it believes: one value, one swap.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub svid: Svid,
    pub trust: Trust,
}

/// What both sides agreed on, and who the peer is.
#[derive(Debug, Clone)]
pub struct Shaken {
    pub peer: SpiffeId,
    pub chain: Arc<[CertificateDer<'static>]>,
    /// When the first certificate of the peer's chain expires.
    pub not_after: Wall,
    pub weft1: bool,
    pub group: &'static str,
    pub cipher: &'static str,
    pub sni: Option<Arc<str>>,
}

/// The mesh port's side, for the workloads of a snapshot that the credentials are for. Rebuilt when either changes.
pub fn presented(c: &Credentials, snapshot: &Snapshot, clock: &WallClock) -> Presented {
    let mut presented = Presented::default();
    let config = server_config(&c.svid, &c.trust, ClientAuth::Required, &[ALPN_WEFT1, ALPN_H2], clock);
    for w in snapshot.workloads().filter(|w| w.workload.identity == *c.svid.id()) {
        let identity = ServerIdentity { uid: w.workload.uid.clone(), config: config.clone() };
        presented.add(identity, w.workload.listens.iter().map(|l| l.app.ip().to_canonical()));
    }
    presented
}

/// `only`: the workload of a sidecar, to which every address of its listener belongs.
pub async fn accept(
    stream: Stream,
    presented: &Presented,
    only: Option<&Uid>,
    dest: IpAddr,
    trust: &Trust,
    now: Wall,
) -> Result<(TlsStream<Stream>, Uid, Shaken), Failure> {
    let shaking = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(refused)?;
        let sni: Option<Arc<str>> = start.client_hello().server_name().map(Into::into);
        let selected = presented.select(sni.as_deref(), dest);
        let identity = match (selected, only) {
            (Ok(i), _) => i,
            (Err(_), Some(uid)) if sni.is_none() => presented.by_uid(uid).ok_or_else(no_identity)?,
            (Err(e), _) => {
                return Err(Failure::new(FailureKind::Misdirected, Side::Downstream).with_detail(e));
            }
        };
        let (uid, config) = (identity.uid.clone(), identity.config.clone());
        let tls = start.into_stream(config).await.map_err(refused)?;
        let shaken = shaken(tls.get_ref().1, sni, trust, now)
            .map_err(|why| Failure::new(FailureKind::PeerUntrusted, Side::Downstream).with_detail(why))?;
        Ok((TlsStream::Server(tls), uid, shaken))
    };
    match tokio::time::timeout(HANDSHAKE, shaking).await {
        Ok(done) => done,
        Err(_) => {
            Err(Failure::new(FailureKind::DownstreamIdle, Side::Downstream).with_detail("no TLS handshake in time"))
        }
    }
}

/// Connects as `c` to whoever must be one of `expected`. The caller bounds the time.
pub async fn connect(
    stream: Stream,
    c: &Credentials,
    expected: &[SpiffeId],
    tunnel: Tunnel,
    sni: &str,
    address: IpAddr,
    clock: &WallClock,
) -> Result<(TlsStream<Stream>, Shaken), Failure> {
    let weft1 = tunnel == Tunnel::Weft1;
    let alpn: &[&[u8]] = if weft1 { &[ALPN_WEFT1, ALPN_H2] } else { &[ALPN_H2] };
    let config = client_config(&c.svid, &c.trust, expected, alpn, clock);
    // An address as the server name sends none, as HBONE wants it
    let name = match ServerName::try_from(sni.to_owned()) {
        Ok(name) if weft1 => name,
        _ => ServerName::IpAddress(address.into()),
    };
    let failed = |kind| Failure::before_sending(kind, Side::Upstream);
    let tls = TlsConnector::from(config).connect(name, stream).await.map_err(|e| {
        let verdict = e.get_ref().and_then(|e| e.downcast_ref()).and_then(VerifyError::in_handshake);
        let kind = match verdict {
            Some(VerifyError::UnexpectedId { .. }) => FailureKind::IdentityMismatch,
            _ => FailureKind::TlsFailed,
        };
        match verdict {
            Some(v) => failed(kind).with_detail(chain(v)),
            None => failed(kind).with_detail(chain(&e)),
        }
    })?;
    let shaken = shaken(tls.get_ref().1, None, &c.trust, clock.now())
        .map_err(|why| failed(FailureKind::TlsFailed).with_detail(why))?;
    Ok((TlsStream::Client(tls), shaken))
}

fn shaken(conn: &rustls::CommonState, sni: Option<Arc<str>>, trust: &Trust, now: Wall) -> Result<Shaken, String> {
    let n = negotiated(conn).ok_or("the handshake is not over")?;
    let chain: Arc<[CertificateDer<'static>]> = conn
        .peer_certificates()
        .ok_or("the peer presented no certificate")?
        .iter()
        .map(|c| c.clone().into_owned())
        .collect();
    // The verifier of the handshake said yes; this reads what it saw.
    let peer =
        recheck(&chain, &trust.bundle, &trust.revocations, now).map_err(|e| weft_rt::log::chain(&e).to_string())?;
    Ok(Shaken {
        peer: peer.id,
        chain,
        not_after: peer.not_after,
        weft1: n.alpn.as_deref() == Some(ALPN_WEFT1),
        group: n.group,
        cipher: n.cipher,
        sni,
    })
}

fn refused(e: std::io::Error) -> Failure {
    let untrusted = Failure::new(FailureKind::PeerUntrusted, Side::Downstream);
    let tls: Option<&rustls::Error> = e.get_ref().and_then(|e| e.downcast_ref());
    match tls.and_then(VerifyError::in_handshake) {
        Some(v @ VerifyError::Revoked { .. }) => {
            Failure::new(FailureKind::PeerRevoked, Side::Downstream).with_detail(chain(v))
        }
        Some(v) => untrusted.with_detail(chain(v)),
        None if tls.is_some_and(offers_no_tls13) => untrusted.with_detail(OLD_TLS),
        None => untrusted.with_detail(chain(&e)),
    }
}

/// Envoy is named since it is the one that offers less unless it is told, as a client.
const OLD_TLS: &str = "the peer does not offer TLS 1.3, and the mesh speaks nothing else; let it \
                       (in Envoy's tls_params: tls_maximum_protocol_version: TLSv1_3)";

/// rustls says what it misses in the hello, not what that means.
fn offers_no_tls13(e: &rustls::Error) -> bool {
    use rustls::{Error::PeerIncompatible, PeerIncompatible as P};
    matches!(
        e,
        PeerIncompatible(
            P::SupportedVersionsExtensionRequired
                | P::Tls12NotOffered
                | P::Tls12NotOfferedOrEnabled
                | P::ServerDoesNotSupportTls12Or13
        )
    )
}

fn no_identity() -> Failure {
    Failure::new(FailureKind::NoIdentity, Side::Internal)
}
