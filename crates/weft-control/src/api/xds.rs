//! Delta xDS: carries requests and responses between a stream and its [`crate::sessions`].

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures_util::stream::unfold;
use tokio::sync::watch;
use tokio_stream::Stream;
use weft_model::{Mono, SpiffeId};
use weft_rt::Clock;
use weft_wire::grpc::{
    AggregatedDiscoveryService, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Request, Response, Status, Streaming,
    async_trait,
};

use super::peer::Peer;
use crate::{server::Control, sessions};

pub struct Discovery(pub Arc<Control>);

struct Ads {
    control: Arc<Control>,
    principal: SpiffeId,
    requests: Streaming<DeltaDiscoveryRequest>,
    changes: watch::Receiver<u64>,
    /// From the first request on.
    stream: Option<Open>,
    queue: VecDeque<DeltaDiscoveryResponse>,
    wake_at: Option<Mono>,
    over: bool,
}

/// Closes the stream's session whenever and however the stream ends.
struct Open {
    control: Arc<Control>,
    stream: Arc<sessions::Stream>,
}

#[async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let principal = Peer::of(&request)?.identity(self.0.replica.clock.wall())?;
        let ads = Ads {
            changes: self.0.sessions.changes(),
            control: self.0.clone(),
            principal,
            requests: request.into_inner(),
            stream: None,
            queue: VecDeque::new(),
            wake_at: None,
            over: false,
        };
        Ok(Response::new(Box::pin(unfold(ads, |mut ads| async {
            let next = ads.next().await?;
            Some((next, ads))
        }))))
    }
}

impl Ads {
    async fn next(&mut self) -> Option<Result<DeltaDiscoveryResponse, Status>> {
        loop {
            if let Some(response) = self.queue.pop_front() {
                return Some(Ok(response));
            }
            if self.over {
                return None;
            }
            let mut draining = self.control.draining.clone();
            tokio::select! {
                biased; // what the proxy says may make the rest moot
                request = self.requests.message() => match request {
                    Ok(Some(request)) => if let Err(status) = self.take(request) {
                        self.over = true;
                        return Some(Err(status));
                    },
                    Ok(None) | Err(_) => return None,
                },
                // proxies go to another server, or come back to this one
                () = draining.draining() => return None,
                changed = self.changes.changed(), if self.stream.is_some() => changed.ok()?,
                () = until(&self.control.replica.clock, self.wake_at) => {}
            }
            if let Some(open) = &self.stream {
                let poll = self.control.sessions.poll(&open.stream);
                self.queue.extend(poll.send);
                self.wake_at = poll.wake_at;
            }
        }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if self.stream.is_none() {
            let node = request.node.clone().unwrap_or_default();
            let stream = self.control.sessions.open(node.id, node.user_agent_version, self.principal.clone());
            tracing::info!(proxy = stream.node, "proxy connected");
            self.stream = Some(Open { control: self.control.clone(), stream });
        }
        let Some(open) = &self.stream else { return Ok(()) };
        let names = request.error_detail.as_ref().map(|e| e.message.clone());
        self.control.sessions.on_request(&open.stream, request).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if let Some(reason) = names {
            tracing::warn!(proxy = open.stream.node, reason, "a proxy rejected its configuration");
        }
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.control.sessions.close(&self.stream);
        tracing::info!(proxy = self.stream.node, "proxy disconnected");
    }
}

async fn until(clock: &Clock, at: Option<Mono>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}
