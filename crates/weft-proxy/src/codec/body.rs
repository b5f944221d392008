//! Bodies, whatever they come from.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use weft_rt::Task;

use super::h1;

/// A body is kept for another try up to here (DESIGN section 6).
pub const REPLAY_LIMIT: usize = 64 * 1024;

#[derive(Debug)]
pub enum Frame {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Why a body ended before its end. None of these may ever look like one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    #[error("stream was reset ({0})")]
    Reset(h2::Reason),
    #[error("connection broke before the body ended")]
    Broken,
    #[error("body ended early: the connection closed before its announced end")]
    Truncated,
    #[error("body is malformed: {0}")]
    Malformed(&'static str),
    #[error("body was given up: nobody could replay it")]
    Spent,
}

/// A stream of frames. Dropping it before its end abandons whatever produces it.
#[derive(Debug, Default)]
pub struct Body {
    kind: Kind,
    /// Sends the request's body while this response's is read; ends with it.
    pub(crate) sender: Option<Task>,
    /// Whatever else must live as long.
    hold: Option<Box<dyn Any>>,
    meter: Option<Rc<Meter>>,
}

/// What came out of a body so far, for the record of its request.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: Cell<u64>,
    grpc_status: Cell<Option<u16>>,
}

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    H1(h1::Incoming),
    H2 {
        recv: RecvStream,
        data_done: bool,
    },
    Replay {
        shared: Rc<RefCell<Kept>>,
        at: usize,
    },
}

/// A body that may be read from its beginning again while it is small.
#[derive(Debug, Clone)]
pub struct Replay(Rc<RefCell<Kept>>);

#[derive(Debug)]
struct Kept {
    source: Body,
    frames: VecDeque<Kept1>,
    bytes: usize,
    /// Frames fell off: no second reader.
    spent: bool,
    error: Option<BodyError>,
    ended: bool,
}

#[derive(Debug, Clone)]
enum Kept1 {
    Data(Bytes),
    Trailers(HeaderMap),
}

// === impl Body ===

impl Body {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::default() } else { Self { kind: Kind::Full(bytes), ..Self::default() } }
    }

    pub(crate) fn h1(incoming: h1::Incoming) -> Self {
        Self { kind: Kind::H1(incoming), ..Self::default() }
    }

    pub fn h2(recv: RecvStream) -> Self {
        if recv.is_end_stream() {
            return Self::default();
        }
        Self { kind: Kind::H2 { recv, data_done: false }, ..Self::default() }
    }

    /// Keeps `what` until the body is gone.
    pub fn hold(&mut self, what: Box<dyn Any>) {
        self.hold = Some(what);
    }

    /// Counts what is read from here on; `None` where nothing will come.
    pub fn meter(&mut self) -> Option<Rc<Meter>> {
        if self.is_end() {
            return None;
        }
        Some(self.meter.get_or_insert_default().clone())
    }

    /// Nothing more will come, and that is known without asking.
    pub fn is_end(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(b) => b.is_empty(),
            Kind::H1(i) => i.is_end(),
            Kind::H2 { recv, .. } => recv.is_end_stream(),
            Kind::Replay { shared, at } => {
                let kept = shared.borrow();
                *at >= kept.frames.len() && (kept.ended || kept.source.is_end())
            }
        }
    }

    /// How many bytes will come, where that is known.
    pub fn length(&self) -> Option<u64> {
        match &self.kind {
            Kind::Empty => Some(0),
            Kind::Full(b) => u64::try_from(b.len()).ok(),
            Kind::H1(i) => i.length(),
            Kind::H2 { .. } => None,
            Kind::Replay { shared, at } => {
                let kept = shared.borrow();
                let read: usize =
                    kept.frames.iter().skip(*at).map(|k| if let Kept1::Data(b) = k { b.len() } else { 0 }).sum();
                kept.source.length()?.checked_add(u64::try_from(read).ok()?)
            }
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut frame = self.poll_kind(cx);
        if let Poll::Ready(Some(Ok(Frame::Trailers(t)))) = &mut frame {
            // No proxy says anything in trailers: what claims so is somebody else's
            crate::head::strip(t);
        }
        if let (Some(meter), Poll::Ready(Some(Ok(frame)))) = (&self.meter, &frame) {
            meter.pass(frame);
        }
        frame
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(b) => {
                let b = std::mem::take(b);
                self.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::Data(b))))
            }
            Kind::H1(i) => i.poll_frame(cx),
            Kind::H2 { recv, data_done } => poll_h2(recv, data_done, cx),
            Kind::Replay { shared, at } => Kept::poll(&mut shared.borrow_mut(), at, cx),
        }
    }
}

fn poll_h2(
    recv: &mut RecvStream,
    data_done: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame, BodyError>>> {
    while !*data_done {
        match ready!(recv.poll_data(cx)) {
            Some(Ok(chunk)) => {
                // The next frame is asked for only when this one went on: the window follows the reader.
                if recv.flow_control().release_capacity(chunk.len()).is_err() {
                    return Poll::Ready(Some(Err(BodyError::Broken)));
                }
                if !chunk.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::Data(chunk))));
                }
            }
            Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
            None => *data_done = true,
        }
    }
    match ready!(recv.poll_trailers(cx)) {
        Ok(Some(t)) => Poll::Ready(Some(Ok(Frame::Trailers(t)))),
        Ok(None) => Poll::Ready(None),
        Err(e) => Poll::Ready(Some(Err(e.into()))),
    }
}

impl From<h2::Error> for BodyError {
    fn from(e: h2::Error) -> Self {
        // Any code, NO_ERROR too: without END_STREAM it is no end.
        e.reason().map_or(Self::Broken, Self::Reset)
    }
}

// === impl Meter ===

impl Meter {
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Of the trailers, if they told one.
    pub fn grpc_status(&self) -> Option<u16> {
        self.grpc_status.get()
    }

    fn pass(&self, frame: &Frame) {
        match frame {
            Frame::Data(b) => self.bytes.set(self.bytes.get() + u64::try_from(b.len()).unwrap_or(0)),
            Frame::Trailers(t) => self.grpc_status.set(grpc_status(t)),
        }
    }
}

/// What a head or trailers say.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

// === impl Replay ===

impl Replay {
    pub fn new(source: Body) -> Self {
        Self(Rc::new(RefCell::new(Kept {
            source,
            frames: VecDeque::new(),
            bytes: 0,
            spent: false,
            error: None,
            ended: false,
        })))
    }

    /// A reader from the beginning. The one before must be gone.
    pub fn body(&self) -> Body {
        Body { kind: Kind::Replay { shared: self.0.clone(), at: 0 }, ..Body::default() }
    }

    /// May it be read again?
    pub fn is_whole(&self) -> bool {
        let kept = self.0.borrow();
        !kept.spent && kept.error.is_none()
    }

    /// Why the body could not be read, if that is how it went.
    pub fn error(&self) -> Option<BodyError> {
        self.0.borrow().error.clone()
    }

    /// There will be no further try: nothing is kept any more.
    pub fn keep_no_more(&self) {
        self.0.borrow_mut().spent = true;
    }
}

impl Kept {
    fn poll(&mut self, at: &mut usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(k) = self.frames.get(*at).cloned() {
            *at += 1;
            if self.spent && *at == self.frames.len() {
                // the last reader has caught up
                self.frames.clear();
                *at = 0;
            }
            return Poll::Ready(Some(Ok(match k {
                Kept1::Data(b) => Frame::Data(b),
                Kept1::Trailers(t) => Frame::Trailers(t),
            })));
        }
        if let Some(e) = &self.error {
            return Poll::Ready(Some(Err(e.clone())));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.source.poll_frame(cx));
        match &frame {
            None => self.ended = true,
            Some(Err(e)) => self.error = Some(e.clone()),
            Some(Ok(f)) => self.keep(f, at),
        }
        Poll::Ready(frame)
    }

    fn keep(&mut self, frame: &Frame, at: &mut usize) {
        let kept = match frame {
            Frame::Data(b) => {
                self.bytes += b.len();
                Kept1::Data(b.clone())
            }
            Frame::Trailers(t) => Kept1::Trailers(t.clone()),
        };
        if self.bytes > REPLAY_LIMIT {
            self.spent = true;
        }
        if self.spent {
            self.frames.clear();
            *at = 0;
        } else {
            self.frames.push_back(kept);
            *at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn read(mut b: Body) -> Result<usize, BodyError> {
        let mut n = 0;
        while let Some(f) = poll_fn(|cx| b.poll_frame(cx)).await {
            if let Frame::Data(d) = f? {
                n += d.len();
            }
        }
        Ok(n)
    }

    #[tokio::test]
    async fn a_small_body_is_read_twice() {
        let r = Replay::new(Body::full(vec![1; 1000]));
        assert_eq!(read(r.body()).await.unwrap(), 1000);
        assert!(r.is_whole());
        assert_eq!(read(r.body()).await.unwrap(), 1000);
    }

    #[tokio::test]
    async fn beyond_64_kib_nothing_is_kept() {
        let r = Replay::new(Body::full(vec![1; REPLAY_LIMIT + 1]));
        assert_eq!(read(r.body()).await.unwrap(), REPLAY_LIMIT + 1);
        assert!(!r.is_whole());
    }
}
