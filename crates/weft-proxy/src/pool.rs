//! Connections that are used again: multiplexed ones to mesh peers and to HTTP/2 applications, idle ones to HTTP/1
//! applications. One pool per worker; nothing here crosses a thread.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::oneshot;
use weft_model::{Digest, Mono, SpiffeId, Uid, Wall};
use weft_snapshot::fragment::Tunnel;

use crate::{
    codec::{
        h1::{SharedWire, client::Home},
        h2::{Client, Driver},
    },
    failure::{Failure, FailureKind, Side},
};

/// A multiplexed connection without streams is closed after this long (features.md 4.7).
const IDLE_SHARED: Duration = Duration::from_secs(300);
/// Applications close idle connections after five seconds and up; a request must not meet that close.
const IDLE_APP: Duration = Duration::from_secs(4);
/// Idle connections kept per application address.
const KEPT_PER_APP: usize = 256;

/// Class L4 and class L7 never share a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    L4,
    L7,
}

/// What must be equal for a connection to be shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Mesh {
        source: Uid,
        /// Serial of our SVID and digest of the bundle: a renewed identity or changed trust is another connection.
        source_serial: Arc<[u8]>,
        trust: Digest,
        expected: Vec<SpiffeId>,
        address: SocketAddr,
        sni: Arc<str>,
        tunnel: Tunnel2,
        class: Class,
    },
    /// HTTP/2 with prior knowledge to an application.
    App(SocketAddr),
}

/// [`Tunnel`] with the traits of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tunnel2 {
    Hbone,
    Weft1,
}

/// A multiplexed connection.
pub struct SharedConn {
    client: Client,
    limit: u32,
    streams: Cell<u32>,
    /// No new streams: it is going away, expired, or broken.
    retired: Cell<bool>,
    idle_since: Cell<Mono>,
    /// New streams until then.
    until: Option<Wall>,
    pub peer: Option<SpiffeId>,
    /// Our end.
    local: Option<SocketAddr>,
}

/// One stream's claim to its connection.
pub struct Stream1(Rc<SharedConn>);

/// What a dial made.
pub struct Dialled {
    pub client: Client,
    pub driver: Driver,
    pub limit: u32,
    pub until: Option<Wall>,
    pub peer: Option<SpiffeId>,
    pub local: Option<SocketAddr>,
}

type Waiter = oneshot::Sender<Result<Rc<SharedConn>, Failure>>;

/// The connections of one key. Held by whoever uses it often, so that a request hashes nothing.
pub struct Lane {
    key: Key,
    conns: RefCell<Vec<Rc<SharedConn>>>,
    /// A connect is under way; they wait for it.
    waiting: RefCell<Option<Vec<Waiter>>>,
}

/// Multiplexed connections by key.
#[derive(Default)]
pub struct SharedPool {
    lanes: RefCell<HashMap<Key, Rc<Lane>>>,
}

/// Idle HTTP/1 connections by address.
#[derive(Default)]
pub struct AppPool {
    idle: RefCell<HashMap<SocketAddr, Vec<(SharedWire, Mono)>>>,
    homes: RefCell<Vec<(SocketAddr, Home)>>,
}

impl Tunnel2 {
    pub fn of(t: Tunnel) -> Option<Self> {
        match t {
            Tunnel::None => None,
            Tunnel::Hbone => Some(Self::Hbone),
            Tunnel::Weft1 => Some(Self::Weft1),
        }
    }
}

// === impl SharedConn ===

impl SharedConn {
    /// A clone to send one request with; `None` when the connection takes no more.
    fn fit(&self, now: Wall) -> bool {
        if self.retired.get() || self.streams.get() >= self.limit {
            return false;
        }
        let expired = self.until.is_some_and(|u| now >= u);
        // After a GOAWAY or an error it says so here
        let dead =
            matches!(self.client.clone().poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)));
        if expired || dead {
            self.retired.set(true);
        }
        !self.retired.get()
    }
}

impl Stream1 {
    fn new(conn: Rc<SharedConn>) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        Self(conn)
    }

    pub fn client(&self) -> Client {
        self.0.client.clone()
    }

    pub fn local(&self) -> Option<SocketAddr> {
        self.0.local
    }

    pub fn peer(&self) -> Option<&SpiffeId> {
        self.0.peer.as_ref()
    }

    /// To be kept as long as the stream lives.
    pub fn held(self) -> Box<dyn Any> {
        Box::new(self)
    }
}

impl Drop for Stream1 {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

// === impl Lane ===

impl Lane {
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A stream on a connection that is there.
    pub fn ready(&self, now: Wall) -> Option<Stream1> {
        self.conns.borrow().iter().find(|c| c.fit(now)).map(|c| Stream1::new(c.clone()))
    }
}

// === impl SharedPool ===

impl SharedPool {
    pub fn lane(&self, key: Key) -> Rc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        if let Some(l) = lanes.get(&key) {
            return l.clone();
        }
        let lane = Rc::new(Lane { key: key.clone(), conns: RefCell::default(), waiting: RefCell::default() });
        lanes.insert(key, lane.clone());
        lane
    }

    /// A stream of the lane: on a connection that is there, else on one that `dial` opens. However many ask meanwhile, there
    /// is one dial per lane, and it outlives whoever asked first.
    pub async fn stream<F>(
        self: &Rc<Self>,
        lane: Rc<Lane>,
        now: Mono,
        dial: impl FnOnce() -> F,
    ) -> Result<Stream1, Failure>
    where
        F: Future<Output = Result<Dialled, Failure>> + 'static,
    {
        let wait = {
            lane.conns.borrow_mut().retain(|c| !c.retired.get());
            let (tx, rx) = oneshot::channel();
            let mut waiting = lane.waiting.borrow_mut();
            match &mut *waiting {
                Some(waiting) => waiting.push(tx),
                none => {
                    *none = Some(vec![tx]);
                    let (lane, dialling) = (lane.clone(), dial());
                    // ends by itself: dialling is bounded in time, and the driver ends with its connection
                    weft_rt::tasks::spawn_local(async move { dialled(lane, dialling.await, now).await }).detach();
                }
            }
            rx
        };
        let gone =
            || Failure::before_sending(FailureKind::Internal, Side::Internal).with_detail("dial ended without a word");
        wait.await.map_err(|_| gone())?.map(Stream1::new)
    }

    /// Lets go of what is idle, expired, or of a `key` that `keep` does not know; streams on it end by themselves.
    pub fn sweep(&self, mono: Mono, wall: Wall, keep: impl Fn(&Key) -> bool) {
        self.lanes.borrow_mut().retain(|key, lane| {
            let kept = keep(key);
            let mut conns = lane.conns.borrow_mut();
            conns.retain(|c| {
                if c.streams.get() > 0 {
                    c.idle_since.set(mono);
                }
                kept && c.fit_or_full(wall) && mono.since(c.idle_since.get()) < IDLE_SHARED
            });
            // what somebody holds stays known, or there would be two
            kept && (!conns.is_empty() || lane.waiting.borrow().is_some() || Rc::strong_count(lane) > 1)
        });
    }

    pub fn len(&self) -> usize {
        self.lanes.borrow().values().map(|l| l.conns.borrow().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Hands a dialled connection to those who wait, and drives it to its end.
async fn dialled(lane: Rc<Lane>, result: Result<Dialled, Failure>, now: Mono) {
    let (conn, driver) = match result {
        Ok(d) => {
            let conn = Rc::new(SharedConn {
                client: d.client,
                limit: d.limit,
                streams: Cell::new(0),
                retired: Cell::new(false),
                idle_since: Cell::new(now),
                until: d.until,
                peer: d.peer,
                local: d.local,
            });
            (Ok(conn), Some(d.driver))
        }
        Err(f) => (Err(f), None),
    };
    if let Ok(c) = &conn {
        lane.conns.borrow_mut().push(c.clone());
    }
    for w in lane.waiting.take().unwrap_or_default() {
        // whoever went away does not mind
        let _ = w.send(conn.clone());
    }
    let (Ok(conn), Some(mut driver)) = (conn, driver) else { return };
    // The pool and the streams keep it, not its driver: without them it ends
    let (conn, lane) = {
        let weak = (Rc::downgrade(&conn), Rc::downgrade(&lane));
        drop((conn, lane));
        weak
    };
    let ended = std::future::poll_fn(|cx| driver.poll(cx)).await;
    tracing::debug!(error = ended.err().map(tracing::field::display), "shared connection ended");
    if let Some(conn) = conn.upgrade() {
        conn.retired.set(true);
        if let Some(lane) = lane.upgrade() {
            lane.conns.borrow_mut().retain(|c| !Rc::ptr_eq(c, &conn));
        }
    }
}

impl SharedConn {
    fn fit_or_full(&self, now: Wall) -> bool {
        !self.retired.get() && self.until.is_none_or(|u| now < u)
    }
}

// === impl AppPool ===

impl AppPool {
    /// One that is open and quiet, the most recently used first.
    pub fn take(&self, to: SocketAddr, now: Mono) -> Option<SharedWire> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&to)?;
        while let Some((wire, since)) = list.pop() {
            if now.since(since) < IDLE_APP && wire.borrow().is_quiet() {
                return Some(wire);
            }
        }
        None
    }

    /// Where a connection goes that did its exchange.
    pub fn home(self: &Rc<Self>, to: SocketAddr, clock: &weft_rt::Clock) -> Home {
        /// A sidecar's application has a few ports; endpoints outside the mesh may be many.
        const REMEMBERED: usize = 32;
        let mut homes = self.homes.borrow_mut();
        if let Some((_, home)) = homes.iter().find(|(at, _)| *at == to) {
            return home.clone();
        }
        let (pool, clock) = (Rc::downgrade(self), clock.clone());
        let home: Home = Rc::new(move |wire| {
            let Some(pool) = pool.upgrade() else { return };
            let mut idle = pool.idle.borrow_mut();
            let list = idle.entry(to).or_default();
            if list.len() < KEPT_PER_APP {
                list.push((wire, clock.mono()));
            }
        });
        if homes.len() >= REMEMBERED {
            homes.clear();
        }
        homes.push((to, home.clone()));
        home
    }

    pub fn sweep(&self, now: Mono) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|(_, since)| now.since(*since) < IDLE_APP);
            !list.is_empty()
        });
    }

    pub fn len(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
