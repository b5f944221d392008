//! A network in memory: hosts with addresses, listeners, and byte streams that are late, cut, half closed, read byte by
//! byte or refused, as a seed says.
//!
//! What happens to a connection follows from the seed, its two ends and its number among them, never from how many bytes
//! went over it or in which order tasks ran: TLS may be as random as it likes, the same seed still has the same weather.
//! Time is tokio's, meant to be paused. Streams within one host (an application and its proxy) are never disturbed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    time::{Instant, Sleep},
};
use weft_rt::net::{Addr, Connecting, Net, Pipe, Stream};

use crate::seeded::Dice;

/// What is on its way in one direction; more makes the writer wait.
const CAPACITY: usize = 256 * 1024;
/// A stream that is to break does so within this time of its beginning.
const BREAKS_WITHIN: Duration = Duration::from_secs(30);

/// How badly new connections fare, each out of a thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    pub refused: u32,
    /// Reset some time later.
    pub cut: u32,
    /// One direction ends some time later as if its writer had closed it.
    pub truncated: u32,
    /// Read one byte at a time.
    pub crumbs: u32,
    /// The longest delay of a stream.
    pub delay: Duration,
}

/// The network. Clones are the same one.
#[derive(Debug, Clone)]
pub struct PipeNet(Arc<Shared>);

/// The network as seen from one address.
#[derive(Debug, Clone)]
pub struct Host {
    net: PipeNet,
    ip: IpAddr,
}

/// Takes connections until dropped.
#[derive(Debug)]
pub struct Listener {
    net: PipeNet,
    at: SocketAddr,
    incoming: mpsc::UnboundedReceiver<(Stream, SocketAddr)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of who reaches whom: connects that hang look again.
    reach: watch::Sender<u64>,
    open: AtomicUsize,
}

#[derive(Debug)]
struct State {
    seed: u64,
    weather: Weather,
    listeners: BTreeMap<SocketAddr, mpsc::UnboundedSender<(Stream, SocketAddr)>>,
    /// How many connections there were between two ends.
    counted: BTreeMap<(IpAddr, SocketAddr), u64>,
    /// Unordered pairs that do not reach each other.
    parted: BTreeSet<(IpAddr, IpAddr)>,
    wires: Vec<std::sync::Weak<Mutex<Wire>>>,
}

/// One connection.
#[derive(Debug)]
struct Wire {
    ends: (IpAddr, IpAddr),
    fate: Fate,
    stalled: bool,
    reset: bool,
    /// From the one who connected, and to it.
    lanes: [Lane; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    delay: Duration,
    crumbs: bool,
    cut_at: Option<Instant>,
    /// Of the lane with this index.
    ends_at: Option<(usize, Instant)>,
}

#[derive(Debug, Default)]
struct Lane {
    on_the_way: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// The writer closed it; seen by the reader from then on.
    ended: Option<Instant>,
    /// The reader is gone.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One end of a [`Wire`].
struct End {
    net: PipeNet,
    wire: Arc<Mutex<Wire>>,
    /// Index of the lane that this end writes.
    writes: usize,
    reset_on_drop: bool,
    timer: Pin<Box<Sleep>>,
}

// === impl PipeNet ===

impl PipeNet {
    pub fn new(seed: u64) -> Self {
        let state = State {
            seed,
            weather: Weather::default(),
            listeners: BTreeMap::new(),
            counted: BTreeMap::new(),
            parted: BTreeSet::new(),
            wires: Vec::new(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), reach: watch::Sender::new(0), open: AtomicUsize::new(0) }))
    }

    pub fn host(&self, ip: IpAddr) -> Host {
        Host { net: self.clone(), ip }
    }

    /// Of connections from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Nothing passes between them: what is sent waits, connects hang.
    pub fn part(&self, a: IpAddr, b: IpAddr) {
        self.lock().parted.insert(pair(a, b));
        self.stall();
    }

    /// What waited arrives now.
    pub fn rejoin(&self, a: IpAddr, b: IpAddr) {
        self.lock().parted.remove(&pair(a, b));
        self.stall();
    }

    pub fn are_parted(&self, a: IpAddr, b: IpAddr) -> bool {
        self.lock().parted.contains(&pair(a, b))
    }

    /// Resets what is open between them.
    pub fn cut(&self, a: IpAddr, b: IpAddr) {
        self.reset(|ends| pair(ends.0, ends.1) == pair(a, b));
    }

    /// The host is gone as after `kill -9`: all its streams are reset, nobody listens.
    pub fn crash(&self, ip: IpAddr) {
        self.lock().listeners.retain(|at, _| at.ip() != ip);
        self.reset(|ends| ends.0 == ip || ends.1 == ip);
    }

    /// Ends of streams that somebody holds.
    pub fn open_ends(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
    }

    fn reset(&self, which: impl Fn((IpAddr, IpAddr)) -> bool) {
        for wire in self.wires() {
            let mut wire = lock(&wire);
            if which(wire.ends) {
                wire.reset();
            }
        }
    }

    fn stall(&self) {
        let parted = self.lock().parted.clone();
        for wire in self.wires() {
            let mut wire = lock(&wire);
            wire.stalled = parted.contains(&pair(wire.ends.0, wire.ends.1));
            wire.wake();
        }
        self.0.reach.send_modify(|n| *n += 1);
    }

    fn wires(&self) -> Vec<Arc<Mutex<Wire>>> {
        let mut state = self.lock();
        state.wires.retain(|w| w.strong_count() > 0);
        state.wires.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    fn end(&self, wire: &Arc<Mutex<Wire>>, writes: usize) -> Stream {
        self.0.open.fetch_add(1, Ordering::SeqCst);
        let timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        Stream::Pipe(Box::new(End { net: self.clone(), wire: wire.clone(), writes, reset_on_drop: false, timer }))
    }

    async fn connect(self, from: IpAddr, to: SocketAddr) -> io::Result<Stream> {
        let (refused, fate) = self.lock().fate(from, to);
        let mut reach = self.0.reach.subscribe();
        loop {
            reach.mark_unchanged();
            tokio::time::sleep(fate.delay).await;
            if !self.are_parted(from, to.ip()) {
                break;
            }
            // an error cannot be: we hold the sender
            let _ = reach.changed().await;
        }
        let refuse = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens at {to}"));
        let mut state = self.lock();
        let listener = state.listeners.get(&to).filter(|_| !refused).cloned().ok_or_else(refuse)?;
        let wire = Wire {
            ends: (from, to.ip()),
            fate,
            stalled: false,
            reset: false,
            lanes: [Lane::default(), Lane::default()],
        };
        let wire = Arc::new(Mutex::new(wire));
        state.wires.push(Arc::downgrade(&wire));
        let port = u16::try_from(40_000 + state.counted.get(&(from, to)).copied().unwrap_or(0) % 20_000);
        drop(state);
        let (ours, theirs) = (self.end(&wire, 0), self.end(&wire, 1));
        let from = SocketAddr::new(from, port.unwrap_or(40_000));
        listener.send((theirs, from)).map_err(|_| refuse())?;
        Ok(ours)
    }
}

impl State {
    /// Whether the next connection between these two is refused, and what becomes of it otherwise.
    fn fate(&mut self, from: IpAddr, to: SocketAddr) -> (bool, Fate) {
        let n = self.counted.entry((from, to)).or_default();
        *n += 1;
        if from == to.ip() {
            return (false, Fate::default());
        }
        let text = format!("{from} {to} {n}");
        let mut dice =
            Dice::seeded(text.bytes().fold(self.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)));
        let within = |dice: &mut Dice, most: Duration| {
            Duration::from_millis(dice.below(u64::try_from(most.as_millis()).unwrap_or(0).saturating_add(1)))
        };
        // every throw is made, so that one kind of weather does not change another
        let (refused, cut, truncated, crumbs) =
            (dice.below(1000), dice.below(1000), dice.below(1000), dice.below(1000));
        let (delay, breaks) = (within(&mut dice, self.weather.delay), within(&mut dice, BREAKS_WITHIN));
        let lane = usize::from(dice.chance(500));
        let happens = |throw: u64, per_mille: u32| throw < u64::from(per_mille);
        let at = Instant::now() + delay + breaks;
        let fate = Fate {
            delay,
            crumbs: happens(crumbs, self.weather.crumbs),
            cut_at: happens(cut, self.weather.cut).then_some(at),
            ends_at: happens(truncated, self.weather.truncated).then_some((lane, at)),
        };
        (happens(refused, self.weather.refused), fate)
    }
}

fn pair(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    (a.min(b), a.max(b))
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Host ===

impl Host {
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Fails when somebody listens there.
    pub fn listen(&self, port: u16) -> io::Result<Listener> {
        let at = SocketAddr::new(self.ip, port);
        let mut state = self.net.lock();
        if state.listeners.get(&at).is_some_and(|l| !l.is_closed()) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("somebody listens at {at}")));
        }
        let (sender, incoming) = mpsc::unbounded_channel();
        state.listeners.insert(at, sender);
        drop(state);
        Ok(Listener { net: self.net.clone(), at, incoming })
    }
}

impl Net for Host {
    fn connect(&self, to: Addr) -> Connecting {
        let (net, from) = (self.net.clone(), self.ip);
        Box::pin(async move {
            match to {
                Addr::Tcp(to) => net.connect(from, to).await,
                Addr::Unix(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "no Unix sockets in here")),
            }
        })
    }
}

// === impl Listener ===

impl Listener {
    pub fn addr(&self) -> SocketAddr {
        self.at
    }

    /// The next connection and where it comes from. `None`: its host crashed.
    pub async fn accept(&mut self) -> Option<(Stream, SocketAddr)> {
        self.incoming.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.incoming.close();
        let mut state = self.net.lock();
        // a crashed host may listen again already
        if state.listeners.get(&self.at).is_some_and(mpsc::UnboundedSender::is_closed) {
            state.listeners.remove(&self.at);
        }
    }
}

// === impl Wire ===

impl Wire {
    fn reset(&mut self) {
        self.reset = true;
        self.wake();
    }

    fn wake(&mut self) {
        for lane in &mut self.lanes {
            lane.wake();
        }
    }

    /// Carries out what was fated. An error: the stream is reset.
    fn check(&mut self, now: Instant) -> io::Result<()> {
        if self.fate.cut_at.is_some_and(|at| at <= now) && !self.reset {
            self.reset();
        }
        if let Some((lane, at)) = self.fate.ends_at
            && at <= now
            && let Some(lane) = self.lanes.get_mut(lane)
        {
            lane.on_the_way.retain(|(arrives, _)| *arrives <= at);
            lane.ended.get_or_insert(at);
        }
        if self.reset { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    /// When something happens by itself to whoever waits on `lane`.
    fn next(&self, lane: &Lane, now: Instant) -> Option<Instant> {
        let arrives = lane.on_the_way.front().map(|(at, _)| *at).or(lane.ended).filter(|_| !self.stalled);
        let ends = self.fate.ends_at.map(|(_, at)| at);
        [arrives, self.fate.cut_at, ends].into_iter().flatten().filter(|at| *at > now).min()
    }
}

impl Lane {
    fn wake(&mut self) {
        let both = [self.reader.take(), self.writer.take()];
        both.into_iter().flatten().for_each(Waker::wake);
    }
}

// === impl End ===

impl End {
    /// Waits for what happens by itself.
    fn poll_timer(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else { return Poll::Pending };
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
        self.timer.as_mut().poll(cx)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let now = Instant::now();
            let wire = self.wire.clone();
            let mut wire = lock(&wire);
            wire.check(now)?;
            let (stalled, crumbs) = (wire.stalled, wire.fate.crumbs);
            let [forth, back] = &mut wire.lanes;
            let lane = if self.writes == 0 { back } else { forth };
            if !stalled && let Some((_, bytes)) = lane.on_the_way.front_mut().filter(|(at, _)| *at <= now) {
                let n = bytes.len().min(buf.remaining()).min(if crumbs { 1 } else { usize::MAX });
                buf.put_slice(&bytes.split_to(n));
                if !bytes.has_remaining() {
                    lane.on_the_way.pop_front();
                }
                lane.bytes = lane.bytes.saturating_sub(n);
                if let Some(writer) = lane.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
            if !stalled && lane.on_the_way.is_empty() && lane.ended.is_some_and(|at| at <= now) {
                return Poll::Ready(Ok(()));
            }
            lane.reader = Some(cx.waker().clone());
            let [forth, back] = &wire.lanes;
            let at = wire.next(if self.writes == 0 { back } else { forth }, now);
            drop(wire);
            if self.poll_timer(at, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Pipe for End {
    fn reset_on_drop(&mut self) {
        self.reset_on_drop = true;
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_fill(cx, buf)
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        let mut wire = lock(&self.wire);
        wire.check(now)?;
        let arrives = now + wire.fate.delay;
        let Some(lane) = wire.lanes.get_mut(self.writes) else { return Poll::Pending };
        if lane.unread || lane.ended.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = buf.len().min(CAPACITY.saturating_sub(lane.bytes));
        if n == 0 && !buf.is_empty() {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if n > 0 {
            lane.on_the_way.push_back((arrives, Bytes::copy_from_slice(buf.get(..n).unwrap_or_default())));
            lane.bytes += n;
        }
        if let Some(reader) = lane.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.wire);
        let at = Instant::now() + wire.fate.delay;
        if let Some(lane) = wire.lanes.get_mut(self.writes) {
            lane.ended.get_or_insert(at);
            lane.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.net.0.open.fetch_sub(1, Ordering::SeqCst);
        let mut wire = lock(&self.wire);
        let at = Instant::now() + wire.fate.delay;
        let reset = self.reset_on_drop;
        for (i, lane) in wire.lanes.iter_mut().enumerate() {
            if i == self.writes {
                lane.ended.get_or_insert(at);
            } else {
                lane.unread = true;
            }
            lane.wake();
        }
        if reset {
            wire.reset();
        }
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let wire = lock(&self.wire);
        f.debug_struct("End").field("ends", &wire.ends).field("fate", &wire.fate).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
