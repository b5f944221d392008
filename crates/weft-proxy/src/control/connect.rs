//! gRPC channels to the control plane: by pinned root before there is an identity, by the current SVID afterwards.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{net::UnixStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_identity::{ALPN_H2, KeyHash, WallClock, client_config, control_plane_id, join_client_config};
use weft_rt::net::{Net, Stream};
use weft_wire::grpc::{self, Channel, TransportError};

use crate::tls::Credentials;

/// A server that does not answer within this is as good as gone.
const CONNECT: Duration = Duration::from_secs(5);

/// What requests name as their authority; the certificate decides who answers, not this.
const AUTHORITY: &str = "control-plane.weft.internal";

/// Before there is an identity: whoever answers must hold the root whose key is `pin`.
pub fn pinned(
    net: &Arc<dyn Net>,
    server: SocketAddr,
    pin: KeyHash,
    clock: &WallClock,
) -> Result<Channel, TransportError> {
    let config = join_client_config(pin, &[ALPN_H2], clock);
    let net = net.clone();
    grpc::channel(AUTHORITY, move || tls(net.clone(), server, config.clone()))
}

/// On this host: the server knows us by the credentials of the socket.
pub fn socket(path: &Path) -> Result<Channel, TransportError> {
    let path = path.to_owned();
    grpc::channel(AUTHORITY, move || {
        let path = path.clone();
        async move { UnixStream::connect(path).await }
    })
}

/// With the SVID that is current whenever a connection is made.
pub fn identified(
    net: &Arc<dyn Net>,
    server: SocketAddr,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    clock: &WallClock,
) -> Result<Channel, TransportError> {
    let (net, clock) = (net.clone(), clock.clone());
    grpc::channel(AUTHORITY, move || {
        let current = credentials.borrow().clone();
        let config = current.map(|c| {
            let expected = control_plane_id(&c.svid.id().trust_domain());
            client_config(&c.svid, &c.trust, &[expected], &[ALPN_H2], &clock)
        });
        let net = net.clone();
        async move {
            let config = config.ok_or_else(|| io::Error::other("there is no identity yet"))?;
            tls(net, server, config).await
        }
    })
}

async fn tls(net: Arc<dyn Net>, server: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<Stream>> {
    let connected = tokio::time::timeout(CONNECT, async {
        let io = net.connect(server.into()).await?;
        // an address as the name sends no SNI; the verifier looks at identities alone
        TlsConnector::from(config).connect(ServerName::IpAddress(server.ip().into()), io).await
    });
    connected.await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} did not answer"))))
}
