//! Who is at the other end of a gRPC connection.

use std::sync::Arc;

use weft_identity::PeerInfo;
use weft_model::{SpiffeId, Wall};
use weft_wire::grpc::{Request, Status};

pub use crate::slots::Joined;

/// Known before the first call: from the handshake, or from the socket.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Over mTLS.
    Identified(Arc<PeerInfo>),
    /// Over TLS, without a certificate: the connection lasts if it joins.
    Anonymous(Joined),
    /// Over the Unix socket, as this server's own user or root.
    Local,
}

impl Peer {
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// The SPIFFE ID, for calls that need one. A connection may be older than its certificate: that is looked at here.
    pub fn identity(&self, now: Wall) -> Result<SpiffeId, Status> {
        match self {
            Self::Identified(peer) if now < peer.not_after => Ok(peer.id.clone()),
            Self::Identified(peer) => Err(Status::unauthenticated(format!(
                "the certificate of {} expired at {}; join again with a new token",
                peer.id, peer.not_after
            ))),
            Self::Anonymous(_) | Self::Local => {
                Err(Status::unauthenticated("this call needs an SVID; without one only Join answers"))
            }
        }
    }
}
