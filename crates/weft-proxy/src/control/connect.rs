//! gRPC channels to the control plane: by pinned root before there is an identity, by the current SVID afterwards.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{net::UnixStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_identity::{ALPN_H2, KeyHash, Serial, WallClock, client_config, control_plane_id, join_client_config};
use weft_rt::net::{Net, Stream};
use weft_wire::grpc::{self, Channel, Status, TransportError};

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

/// Channels with the current SVID. The connection of an old one is not asked anew: the server judges a connection by the
/// certificate with which it was made, which expires. Everything that asks at one time shares one connection.
#[derive(Clone)]
pub struct Dialer {
    net: Arc<dyn Net>,
    server: SocketAddr,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    clock: WallClock,
    last: Arc<Mutex<Option<(Serial, Channel)>>>,
}

impl Dialer {
    pub fn new(
        net: Arc<dyn Net>,
        server: SocketAddr,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        clock: WallClock,
    ) -> Self {
        Self { net, server, credentials, clock, last: Arc::default() }
    }

    /// To be asked for again whenever a stream is opened.
    pub fn channel(&self) -> Result<Channel, Status> {
        let current = self.credentials.borrow().clone();
        let current = current.ok_or_else(|| Status::unavailable("there is no identity yet"))?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((serial, channel)) = &*last
            && serial == current.svid.serial()
        {
            return Ok(channel.clone());
        }
        let expected = control_plane_id(&current.svid.id().trust_domain());
        let config = client_config(&current.svid, &current.trust, &[expected], &[ALPN_H2], &self.clock);
        let (net, server) = (self.net.clone(), self.server);
        let channel = grpc::channel(AUTHORITY, move || tls(net.clone(), server, config.clone()))
            .map_err(|e| Status::internal(weft_rt::log::chain(&e).to_string()))?;
        *last = Some((current.svid.serial().clone(), channel.clone()));
        Ok(channel)
    }
}

async fn tls(net: Arc<dyn Net>, server: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<Stream>> {
    let connected = tokio::time::timeout(CONNECT, async {
        let io = net.connect(server.into()).await?;
        // an address as the name sends no SNI; the verifier looks at identities alone
        TlsConnector::from(config).connect(ServerName::IpAddress(server.ip().into()), io).await
    });
    connected.await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} did not answer"))))
}
