//! What those may hold who have not shown who they are: so many connections per address, for so long.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

/// Connections of one address that are in their handshake, or over it without a certificate and not joined.
const PER_ADDRESS: usize = 64;
/// Further ones of it wait for their turn: a host that starts hundreds of workloads at once. Beyond that they are closed.
const WAITING: usize = 192;

/// By the address that connections come from.
#[derive(Default)]
pub struct Slots(Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>);

/// In the queue of an address.
pub struct Turn(Arc<Semaphore>);

/// A place of an address, until it is dropped.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Whether a connection without a certificate has joined.
#[derive(Debug, Clone, Default)]
pub struct Joined(Arc<AtomicBool>);

/// A connection that ends by itself if it has not joined in time.
pub struct Bounded<I> {
    io: I,
    /// `None` when there is nothing to prove, or it is proven.
    unproven: Option<Unproven>,
}

struct Unproven {
    until: Pin<Box<Sleep>>,
    joined: Joined,
    #[expect(dead_code, reason = "held for its drop")]
    slot: Slot,
}

// === impl Slots ===

impl Slots {
    /// `None`: the address has too many already.
    pub fn enter(&self, from: IpAddr) -> Option<Turn> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // every turn and every slot holds its semaphore, so that the count is theirs and ours
        all.retain(|_, s| Arc::strong_count(s) > 1);
        let of = all.entry(from.to_canonical()).or_insert_with(|| Arc::new(Semaphore::new(PER_ADDRESS)));
        (Arc::strong_count(of) <= PER_ADDRESS + WAITING).then(|| Turn(of.clone()))
    }
}

impl Turn {
    pub async fn slot(self) -> Option<Slot> {
        // nobody closes it
        self.0.acquire_owned().await.ok().map(Slot)
    }
}

impl Joined {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

// === impl Bounded ===

impl<I> Bounded<I> {
    pub fn proven(io: I) -> Self {
        Self { io, unproven: None }
    }

    pub fn unproven(io: I, slot: Slot, joined: Joined, within: Duration) -> Self {
        Self { io, unproven: Some(Unproven { until: Box::pin(tokio::time::sleep(within)), joined, slot }) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Bounded<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(unproven) = &mut this.unproven {
            if unproven.joined.is_set() {
                this.unproven = None;
            } else if unproven.until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "it did not join in time")));
            }
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Bounded<I> {
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

// === of the process ===

/// How many descriptors this process may have open, where the kernel tells.
pub fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Most likely out of descriptors: the listener stays good.
pub async fn accept_failed(e: &io::Error) {
    tracing::warn!(error = %e, "accept failed");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
