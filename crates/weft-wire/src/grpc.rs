//! The edge: gRPC services of ours, and how to run them over any stream of bytes (our own TLS, a pipe in a test).
//!
//! tonic knows nothing of certificates here: whoever accepted the connection verified its peer and says so in
//! [`PeerIo::peer`], which handlers find with `request.extensions().get::<P>()`.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::Stream;
use tonic::transport::{Endpoint, Server, Uri, server::Connected};
pub use tonic::{
    Code, Request, Response, Status, Streaming, async_trait,
    service::Routes,
    transport::{Channel, Error as TransportError},
};

pub use crate::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus,
        health_client::HealthClient,
        health_server::{Health as HealthService, HealthServer},
    },
    weft::v1::{
        observe_client::ObserveClient,
        observe_server::{Observe, ObserveServer},
        workload_api_client::WorkloadApiClient,
        workload_api_server::{WorkloadApi, WorkloadApiServer},
    },
};

/// A dead peer behind a silent network is noticed within twice this.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// One response of a set is at most 1 MiB; two may be on their way.
const WINDOW: u32 = 2 << 20;

/// A connection whose peer is known.
#[derive(Debug)]
pub struct PeerIo<I, P> {
    pub io: I,
    pub peer: P,
}

/// A channel that connects with `connect` when first used, and anew after every loss.
///
/// `authority` is what requests name as `:authority`; nobody resolves it.
pub fn channel<F, Fut, I>(authority: &str, connect: F) -> Result<Channel, TransportError>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(Connector(connect)))
}

/// Serves `routes` on every connection of `incoming` until `shutdown` is ready; then refuses new streams and returns when
/// the open ones have ended (the caller bounds how long).
pub async fn serve<I, P>(
    routes: Routes,
    incoming: impl Stream<Item = io::Result<PeerIo<I, P>>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), TransportError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    P: Clone + Send + Sync + Unpin + 'static,
{
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
}

// === impl PeerIo ===

impl<I, P: Clone + Send + Sync + 'static> Connected for PeerIo<I, P> {
    type ConnectInfo = P;

    fn connect_info(&self) -> P {
        self.peer.clone()
    }
}

impl<I: AsyncRead + Unpin, P: Unpin> AsyncRead for PeerIo<I, P> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin, P: Unpin> AsyncWrite for PeerIo<I, P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

// === the seam to tonic's connector ===

struct Connector<F>(F);

impl<F, Fut, I> tower_service::Service<Uri> for Connector<F>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Response = TokioIo<I>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<I>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = (self.0)();
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}
