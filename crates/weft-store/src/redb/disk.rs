//! The storage below redb: one wrapper that remembers what failed, one that never writes.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use ::redb::{BackendError, StorageBackend};

use crate::watch::lock;

/// Opens the storage anew: redb must be reopened after any failed access.
pub type Backends = Arc<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// What went wrong below redb, which itself tells later failures apart no more.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    first: Mutex<Option<Arc<io::Error>>>,
    sync_failed: AtomicBool,
}

/// Passes everything on, and notes failures.
#[derive(Debug)]
pub(super) struct Noted {
    inner: Box<dyn StorageBackend>,
    trouble: Arc<Trouble>,
}

/// Reads through and keeps what is written to itself: so a file can be verified, with the repair that a crash calls
/// for, before anything touches it; and read while its disk is full.
#[derive(Debug)]
pub(super) struct Overlay {
    inner: Box<dyn StorageBackend>,
    state: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    len: u64,
    /// Up to where `inner` still shows through: a cut hides what lay behind it for good.
    shows: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

const PAGE: usize = 4096;
const PAGE_LEN: u64 = PAGE as u64;

// === impl Trouble ===

impl Trouble {
    /// The first failure since the last call: those after it are its consequences.
    pub(super) fn take(&self) -> Option<Arc<io::Error>> {
        lock(&self.first).take()
    }

    /// After a failed sync the kernel may have dropped what it could not write, and says so only once: neither what is
    /// read back nor a later sync that succeeds proves anything.
    pub(super) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    fn note<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.inspect_err(|e| {
            let named = || io::Error::new(e.kind(), e.to_string());
            let copy = e.raw_os_error().map_or_else(named, io::Error::from_raw_os_error);
            lock(&self.first).get_or_insert(Arc::new(copy));
        })
    }
}

// === impl Noted ===

impl Noted {
    pub(super) fn new(inner: Box<dyn StorageBackend>, trouble: Arc<Trouble>) -> Self {
        Self { inner, trouble }
    }
}

/// Locks belong to the storage below.
macro_rules! locks_of_inner {
    () => {
        fn close(&self) -> io::Result<()> {
            self.inner.close()
        }

        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.inner.try_lock_range(start, end)
        }

        fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.inner.try_lock_shared_range(start, end)
        }

        fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.inner.lock_range(start, end)
        }

        fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.inner.lock_shared_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.inner.unlock_range(start, end)
        }

        fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.inner.query_lock_range(start, end)
        }
    };
}

impl StorageBackend for Noted {
    fn len(&self) -> io::Result<u64> {
        self.trouble.note(self.inner.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.trouble.note(self.inner.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.trouble.note(self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let outcome = self.inner.sync_data();
        if outcome.is_err() {
            self.trouble.sync_failed.store(true, Ordering::SeqCst);
        }
        self.trouble.note(outcome)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.trouble.note(self.inner.write(offset, data))
    }

    locks_of_inner!();
}

// === impl Overlay ===

impl Overlay {
    pub(super) fn new(inner: Box<dyn StorageBackend>) -> io::Result<Self> {
        let len = inner.len()?;
        Ok(Self { inner, state: Mutex::new(Written { len, shows: len, pages: BTreeMap::new() }) })
    }

    /// The page as it is below.
    fn below(&self, shows: u64, page: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut content = Box::new([0; PAGE]);
        let start = page.saturating_mul(PAGE_LEN);
        let n = usize::try_from(shows.saturating_sub(start).min(PAGE_LEN)).unwrap_or(PAGE);
        if let Some(part @ [_, ..]) = content.get_mut(..n) {
            self.inner.read(start, part)?;
        }
        Ok(content)
    }
}

/// The pieces of `len` bytes at `offset`: page, range in the page, range in the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.saturating_add(done as u64);
        let start = usize::try_from(at % PAGE_LEN).unwrap_or(0);
        let n = (PAGE - start).min(len - done);
        let piece = (at / PAGE_LEN, start..start + n, done..done + n);
        done += n;
        (n > 0).then_some(piece)
    })
}

fn beyond_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "access beyond the end of the store file")
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        if offset.saturating_add(out.len() as u64) > state.len {
            return Err(beyond_end());
        }
        for (page, there, here) in pieces(offset, out.len()) {
            let from_below = if state.pages.contains_key(&page) { None } else { Some(self.below(state.shows, page)?) };
            let content = from_below.as_ref().or_else(|| state.pages.get(&page));
            let (Some(from), Some(to)) = (content.and_then(|c| c.get(there)), out.get_mut(here)) else {
                return Err(beyond_end());
            };
            to.copy_from_slice(from);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        if len < state.len {
            state.shows = state.shows.min(len);
            state.pages.split_off(&len.div_ceil(PAGE_LEN));
            let tail = usize::try_from(len % PAGE_LEN).unwrap_or(0);
            if let Some(page) = state.pages.get_mut(&(len / PAGE_LEN)) {
                page.iter_mut().skip(tail).for_each(|b| *b = 0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        for (page, there, here) in pieces(offset, data.len()) {
            if !state.pages.contains_key(&page) {
                let below = self.below(state.shows, page)?;
                state.pages.insert(page, below);
            }
            let content = state.pages.get_mut(&page).and_then(|c| c.get_mut(there));
            let (Some(to), Some(from)) = (content, data.get(here)) else { return Err(beyond_end()) };
            to.copy_from_slice(from);
        }
        state.len = state.len.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }

    locks_of_inner!();
}

#[cfg(test)]
mod tests {
    use ::redb::backends::InMemoryBackend;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u16, Vec<u8>),
        Len(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..20_000_u16, prop::collection::vec(1..=255_u8, 1..9_000)).prop_map(|(at, data)| Op::Write(at, data)),
            (0..20_000_u16).prop_map(Op::Len),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// It reads as a file that was really written, and the one below stays as it was.
        #[test]
        fn the_overlay_is_a_file_and_leaves_the_one_below_alone(
            base in prop::collection::vec(1..=255_u8, 0..12_000),
            ops in prop::collection::vec(op(), 0..12),
        ) {
            let below = Arc::new(InMemoryBackend::new());
            below.set_len(base.len() as u64).unwrap();
            below.write(0, &base).unwrap();
            let overlay = Overlay::new(Box::new(Shared(below.clone()))).unwrap();
            let mut model = base.clone();
            for op in ops {
                match op {
                    Op::Write(at, data) => {
                        let at = usize::from(at).min(model.len());
                        overlay.write(at as u64, &data).unwrap();
                        model.resize(model.len().max(at + data.len()), 0);
                        model[at..at + data.len()].copy_from_slice(&data);
                    }
                    Op::Len(n) => {
                        overlay.set_len(n.into()).unwrap();
                        model.resize(n.into(), 0);
                    }
                }
                let mut all = vec![0; model.len()];
                overlay.read(0, &mut all).unwrap();
                prop_assert!(all == model, "they differ");
                prop_assert!(overlay.read(0, &mut vec![0; model.len() + 1]).is_err());
            }
            let mut kept = vec![0; base.len()];
            below.read(0, &mut kept).unwrap();
            prop_assert!(kept == base && below.len().unwrap() == base.len() as u64, "the file below changed");
        }
    }

    #[derive(Debug)]
    struct Shared(Arc<InMemoryBackend>);

    impl StorageBackend for Shared {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }
}
