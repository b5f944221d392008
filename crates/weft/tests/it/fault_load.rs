//! Load for the tests of faults: callers on connections of their own that ask without pause and count.

use std::{
    io::{BufReader, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::mesh::{connect, read_reply};

/// What one load saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub asked: u64,
    pub good: u64,
    pub bad: Vec<Bad>,
}

/// What one request got instead of 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    pub number: u64,
    /// Since the load began.
    pub at: Duration,
    /// Status, failure header and body; or what went wrong with the connection.
    pub why: String,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Load {
    /// `connections` callers of `addr`, each with about `pause` between its requests, half of them POSTs. A request
    /// carries its unique number as its body's text (POST) or path (GET).
    pub fn start(addr: SocketAddr, connections: usize, pause: Duration) -> Self {
        Self::bounded(addr, connections, pause, u64::MAX)
    }

    /// The same, but ends by itself after `limit` requests in all.
    pub fn bounded(addr: SocketAddr, connections: usize, pause: Duration, limit: u64) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..connections)
            .map(|_| {
                let (stop, asked) = (stop.clone(), asked.clone());
                std::thread::spawn(move || ask(addr, pause, &stop, &asked, limit))
            })
            .collect();
        Self { stop, asked, threads }
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for the end of a bounded one.
    pub fn join(self) -> Seen {
        let mut all = Seen::default();
        for thread in self.threads {
            let seen = thread.join().unwrap();
            all.asked += seen.asked;
            all.good += seen.good;
            all.bad.extend(seen.bad);
        }
        all
    }
}

fn ask(addr: SocketAddr, pause: Duration, stop: &AtomicBool, asked: &AtomicU64, limit: u64) -> Seen {
    let start = Instant::now();
    let mut seen = Seen::default();
    let mut io = None;
    while !stop.load(Ordering::Relaxed) {
        let n = asked.fetch_add(1, Ordering::Relaxed);
        if n >= limit {
            break;
        }
        seen.asked += 1;
        match one(&mut io, addr, n) {
            Ok(()) => seen.good += 1,
            Err(e) => {
                seen.bad.push(Bad { number: n, at: start.elapsed(), why: e.to_string() });
                io = None;
            }
        }
        std::thread::sleep(pause);
    }
    seen
}

/// One request on a kept connection. A connection that the proxy announced to close, or closed while idle, is made
/// anew before the request is written, as any pool does.
fn one(io: &mut Option<BufReader<std::net::TcpStream>>, addr: SocketAddr, n: u64) -> std::io::Result<()> {
    if let Some(kept) = io
        && closed(kept.get_ref())
    {
        *io = None;
    }
    let io_ref = match io {
        Some(io) => io,
        None => io.insert(BufReader::new(connect(addr)?)),
    };
    let request = if n.is_multiple_of(2) {
        format!("GET /{n} HTTP/1.1\r\nhost: api\r\n\r\n")
    } else {
        let body = n.to_string();
        format!("POST / HTTP/1.1\r\nhost: api\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    io_ref.get_mut().write_all(request.as_bytes())?;
    let reply = read_reply(io_ref)?;
    if reply.header("connection") == Some("close") {
        *io = None;
    }
    if reply.status != 200 {
        return Err(std::io::Error::other(format!(
            "{} {:?} {}",
            reply.status,
            reply.header("weft-failure"),
            reply.text()
        )));
    }
    Ok(())
}

/// Whether the other side has closed an idle connection.
fn closed(io: &std::net::TcpStream) -> bool {
    io.set_nonblocking(true).unwrap();
    let gone = !matches!(io.peek(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
    io.set_nonblocking(false).unwrap();
    gone
}
