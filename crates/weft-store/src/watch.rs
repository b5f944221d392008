//! Following the log, from any thread, with or without a runtime.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use weft_model::Revision;

use crate::{entry::Entry, error::WatchError};

/// A cursor in the event log. It yields every entry after the revision it started from, in order, each once, and never
/// a part of one. After an error it is over: what to do instead stands in the error.
pub struct Watch {
    source: Arc<dyn Source>,
    after: Revision,
    id: u64,
}

/// What a store gives its watches.
pub(crate) trait Source: Send + Sync {
    /// The next entries after `after`, oldest first, at most about [`BATCH`] of them.
    fn after(&self, after: Revision) -> Result<Step, WatchError>;
    fn wakers(&self) -> &Wakers;
}

pub(crate) enum Step {
    /// Never empty.
    Entries(Vec<Arc<Entry>>),
    Idle,
    /// There is something, but the simulated network has not delivered it yet: ask again.
    Held,
}

/// The most entries that one step yields: a reader who is behind catches up in bounded pieces.
pub(crate) const BATCH: usize = 256;

/// Whom to wake at the next commit.
#[derive(Default)]
pub(crate) struct Wakers(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

// === impl Watch ===

impl Watch {
    pub(crate) fn new(source: Arc<dyn Source>, after: Revision) -> Self {
        let id = source.wakers().id();
        Self { source, after, id }
    }

    /// The last revision that was yielded, or where the watch started.
    pub fn position(&self) -> Revision {
        self.after
    }

    /// What is there now; `None` when the watch has caught up.
    pub fn try_next(&mut self) -> Result<Option<Vec<Arc<Entry>>>, WatchError> {
        let step = self.source.after(self.after)?;
        Ok(self.took(step))
    }

    /// For `std::future::poll_fn`, on any runtime.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Arc<Entry>>, WatchError>> {
        // Before looking: a commit in between must not be missed.
        self.set_waker(cx.waker().clone());
        let step = match self.source.after(self.after) {
            Ok(step) => step,
            Err(e) => return Poll::Ready(Err(e)),
        };
        if matches!(step, Step::Held) {
            cx.waker().wake_by_ref();
        }
        self.took(step).map_or(Poll::Pending, |entries| Poll::Ready(Ok(entries)))
    }

    /// Wakes `waker` once at the next commit, restore or close. Set it *before* finding `try_next` empty.
    pub fn set_waker(&self, waker: Waker) {
        self.source.wakers().set(self.id, waker);
    }

    /// Blocks the calling thread until there is something. Not for a thread that runs async tasks.
    pub fn wait_next(&mut self) -> Result<Vec<Arc<Entry>>, WatchError> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match self.poll_next(&mut Context::from_waker(&waker)) {
                Poll::Ready(next) => return next,
                Poll::Pending => thread::park(),
            }
        }
    }

    fn took(&mut self, step: Step) -> Option<Vec<Arc<Entry>>> {
        let Step::Entries(entries) = step else { return None };
        if let Some(last) = entries.last() {
            debug_assert!(last.revision > self.after, "a watch went from {} to {}", self.after, last.revision);
            self.after = last.revision;
        }
        Some(entries)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.source.wakers().forget(self.id);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("after", &self.after).finish_non_exhaustive()
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

// === impl Wakers ===

impl Wakers {
    fn id(&self) -> u64 {
        let mut waiting = lock(&self.0);
        waiting.next += 1;
        waiting.next
    }

    fn set(&self, id: u64, waker: Waker) {
        lock(&self.0).wakers.insert(id, waker);
    }

    fn forget(&self, id: u64) {
        lock(&self.0).wakers.remove(&id);
    }

    /// Call it without holding a lock that a woken task may take.
    pub(crate) fn wake_all(&self) {
        let wakers = std::mem::take(&mut lock(&self.0).wakers);
        wakers.into_values().for_each(Waker::wake);
    }
}

/// A panic elsewhere does not make what the lock guards unusable: each critical section here leaves it whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
