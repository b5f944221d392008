//! The side that asks.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use http::{Method, StatusCode};

use super::{Incoming, Outgoing, SharedWire, parse, wire::HeadFault, write};
use crate::codec::{
    Body, Frame, Framing, Origin, RequestHead, ResponseHead, content_length,
    send::{Answer, AskError, Sink, copy},
};

/// Takes a connection back that is fit for another exchange.
pub type Home = Rc<dyn Fn(SharedWire)>;

/// A connection that is lent for one exchange.
pub struct Lease {
    wire: SharedWire,
    home: Option<Home>,
    /// The request went out whole.
    sent: Rc<Cell<bool>>,
    keep_alive: bool,
}

// === impl Lease ===

impl Lease {
    pub(crate) fn give_back(self) {
        if self.sent.get()
            && self.keep_alive
            && let Some(home) = self.home
        {
            home(self.wire);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("keep_alive", &self.keep_alive).finish_non_exhaustive()
    }
}

/// Sends a request and waits for the head of its answer. `interim` gets each 1xx before it.
///
/// The request's body is sent in a task of its own when it does not go out with the head; the answer's body owns that task.
pub(crate) async fn ask(
    wire: SharedWire,
    head: &RequestHead,
    mut body: Body,
    home: Option<Home>,
    interim: &dyn Fn(&ResponseHead),
) -> Result<Answer, AskError> {
    let framing = framing(head, &body);
    let local = wire.borrow().local();
    {
        let mut w = wire.borrow_mut();
        w.mark();
        write::request(w.out(), head, framing);
    }
    let sent = Rc::new(Cell::new(false));
    let mut out = Outgoing { wire: wire.clone(), framing, done: Some(sent.clone()) };

    let whole = framing == Framing::None || whole_at_once(&mut body, &mut out).await.map_err(AskError::Body)?;
    let mut sender = None;
    if whole {
        sent.set(true);
    } else {
        sender = Some(weft_rt::tasks::spawn_local(async move {
            let wire = out.wire.clone();
            // The answer's reader learns of it by the broken wire, and asks the replay why
            if copy(&mut body, &mut Sink::H1(out)).await.is_err() {
                wire.borrow_mut().break_off();
            }
        }));
    }
    let parsed = loop {
        let bytes = poll_fn(|cx| {
            let mut w = wire.borrow_mut();
            if whole && let Poll::Ready(Err(e)) = w.poll_flush(cx) {
                return Poll::Ready(Err(HeadFault::Io(e)));
            }
            w.poll_head(cx)
        })
        .await;
        let bytes = match bytes {
            Ok(Some(b)) => b,
            Ok(None) => return Err(AskError::Closed { nothing_written: !wire.borrow().has_written() }),
            Err(HeadFault::Io(source)) => {
                return Err(AskError::Io { source, nothing_written: !wire.borrow().has_written() });
            }
            Err(HeadFault::Truncated) => return Err(AskError::Closed { nothing_written: false }),
            Err(HeadFault::Head(e)) => return Err(AskError::Head(e)),
        };
        let parsed = parse::response(&bytes, &head.method).map_err(AskError::Head)?;
        let status = parsed.head.status;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            break parsed;
        }
        interim(&parsed.head);
    };
    if parsed.head.status == StatusCode::SWITCHING_PROTOCOLS || is_tunnel(&head.method, parsed.head.status) {
        let io = wire.borrow_mut().take_io();
        return Ok(Answer { head: parsed.head, body: Body::empty(), switched: Some(io), local });
    }
    let lease = Lease { wire: wire.clone(), home, sent, keep_alive: parsed.keep_alive };
    wire.borrow_mut().begin_body(parsed.framing);
    let mut body = if parsed.framing == Framing::None {
        lease.give_back();
        Body::empty()
    } else {
        Body::h1(Incoming::new(wire, Some(lease)))
    };
    body.sender = sender;
    Ok(Answer { head: parsed.head, body, switched: None, local })
}

/// A body that is all there goes out with the head.
async fn whole_at_once(body: &mut Body, out: &mut Outgoing) -> Result<bool, crate::codec::BodyError> {
    loop {
        if body.is_end() {
            out.end(None);
            return Ok(true);
        }
        let ready = poll_fn(|cx| {
            Poll::Ready(match body.poll_frame(cx) {
                Poll::Ready(f) => Some(f),
                Poll::Pending => None,
            })
        })
        .await;
        match ready {
            None => return Ok(false),
            Some(None) => {
                out.end(None);
                return Ok(true);
            }
            Some(Some(frame)) => match frame? {
                Frame::Data(b) => {
                    let big = b.len() >= LARGE;
                    out.data(b);
                    if big && !body.is_end() {
                        return Ok(false);
                    }
                }
                Frame::Trailers(t) => {
                    out.end(Some(&t));
                    return Ok(true);
                }
            },
        }
    }
}

/// From here on a body is streamed, not gathered.
const LARGE: usize = 16 * 1024;

fn framing(head: &RequestHead, body: &Body) -> Framing {
    if body.is_end() {
        return Framing::None;
    }
    match (body.length(), content_length(&head.headers)) {
        (Some(0), _) => Framing::None,
        (Some(n), _) | (None, Ok(Some(n))) => Framing::Length(n),
        (None, _) if head.origin == Origin::Http10 => Framing::Chunked, // written as 1.1 by whoever restores it
        (None, _) => Framing::Chunked,
    }
}

fn is_tunnel(method: &Method, status: StatusCode) -> bool {
    *method == Method::CONNECT && status.is_success()
}

/// So that a caller with bytes need not know the body's type.
impl From<Bytes> for Body {
    fn from(b: Bytes) -> Self {
        Self::full(b)
    }
}
