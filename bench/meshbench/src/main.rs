//! meshbench: helper for peers.py. One thread, no dependencies on any proxy.
//!
//!   meshbench origin ADDR BODY_BYTES          HTTP/1.1 + h2c (prior knowledge) origin; answers gRPC too
//!   meshbench sink ADDR                       TCP: first byte 'S' = discard, 'R' = send for ever, 'E' = echo
//!   meshbench bulk ADDR up|down CONNS SECS    bulk transfer; JSON on stdout
//!   meshbench conn ADDR CONNS SECS            closed loop: connect, GET, read response, close; JSON
//!   meshbench rate ADDR CONNS SECS RPS        open loop HTTP/1.1 keep-alive GET at a fixed rate (timerfd); latency is
//!                                             counted from when the request was due (no coordinated omission); JSON
//!   meshbench connrate ADDR CONNS SECS RPS    the same with a new connection per request, at most CONNS at a time; JSON
//!   meshbench rtt ADDR CONNS SECS BYTES       closed loop: echo of BYTES on kept connections; JSON
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Frame, service::service_fn, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

struct GrpcBody(u8, Bytes);
impl http_body::Body for GrpcBody {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        std::task::Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(self.1.clone()))),
            2 => {
                let mut t = hyper::HeaderMap::new();
                t.insert("grpc-status", "0".parse().unwrap());
                Some(Ok(Frame::trailers(t)))
            }
            _ => None,
        })
    }
}

async fn handle(req: Request<hyper::body::Incoming>, body: Bytes, grpc: Bytes) -> Result<Response<Body>, Infallible> {
    let is_grpc = req.headers().get("content-type").map_or(false, |v| v.as_bytes().starts_with(b"application/grpc"));
    if req.method() == "POST" {
        let mut b = req.into_body();
        while let Some(Ok(_)) = b.frame().await {}
    }
    Ok(if is_grpc {
        Response::builder().header("content-type", "application/grpc").body(GrpcBody(0, grpc).boxed_unsync()).unwrap()
    } else {
        Response::builder().header("content-type", "text/plain").body(Full::new(body).boxed_unsync()).unwrap()
    })
}

async fn origin(addr: SocketAddr, n: usize) {
    let body = Bytes::from(vec![b'x'; n]);
    let mut g = vec![0u8];
    g.extend_from_slice(&(n as u32).to_be_bytes());
    g.extend_from_slice(&body);
    let grpc = Bytes::from(g);
    let l = TcpListener::bind(addr).await.unwrap();
    loop {
        let Ok((s, _)) = l.accept().await else { continue };
        let _ = s.set_nodelay(true);
        let (body, grpc) = (body.clone(), grpc.clone());
        tokio::spawn(async move {
            let mut b = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            b.http2().max_concurrent_streams(1000);
            let _ =
                b.serve_connection(TokioIo::new(s), service_fn(move |r| handle(r, body.clone(), grpc.clone()))).await;
        });
    }
}

async fn sink(addr: SocketAddr) {
    let l = TcpListener::bind(addr).await.unwrap();
    loop {
        let Ok((mut s, _)) = l.accept().await else { continue };
        let _ = s.set_nodelay(true);
        tokio::spawn(async move {
            let mut buf = vec![0u8; 256 << 10];
            let mut total = 0u64;
            let Ok(m) = s.read_u8().await else { return };
            match m {
                b'S' => {
                    // discards; on EOF answers with the number of bytes it saw
                    while let Ok(n) = s.read(&mut buf).await {
                        if n == 0 {
                            break;
                        }
                        total += n as u64;
                    }
                    let _ = s.write_all(&total.to_be_bytes()).await;
                }
                b'R' => while s.write_all(&buf).await.is_ok() {},
                _ => loop {
                    match s.read(&mut buf).await {
                        Ok(0) | Err(_) => break,
                        Ok(n) => {
                            if s.write_all(&buf[..n]).await.is_err() {
                                break;
                            }
                        }
                    }
                },
            }
        });
    }
}

async fn bulk(addr: SocketAddr, up: bool, conns: usize, secs: f64) {
    let t0 = Instant::now();
    let end = t0 + Duration::from_secs_f64(secs);
    let mut hs = vec![];
    for _ in 0..conns {
        hs.push(tokio::spawn(async move {
            let mut s = TcpStream::connect(addr).await.unwrap();
            let _ = s.set_nodelay(true);
            let mut buf = vec![7u8; 256 << 10];
            let mut total = 0u64;
            s.write_u8(if up { b'S' } else { b'R' }).await.unwrap();
            if up {
                while Instant::now() < end {
                    s.write_all(&buf).await.unwrap();
                }
                s.shutdown().await.unwrap();
                total = s.read_u64().await.unwrap_or(0);
            } else {
                while Instant::now() < end {
                    total += s.read(&mut buf).await.unwrap_or(0) as u64;
                }
            }
            total
        }));
    }
    let mut total = 0;
    for h in hs {
        total += h.await.unwrap();
    }
    let el = t0.elapsed().as_secs_f64();
    println!("{{\"bytes\":{total},\"secs\":{el:.4},\"gbps\":{:.4}}}", total as f64 / el / 1e9);
}

fn report(mut v: Vec<u32>, errors: u64, el: f64) {
    v.sort_unstable();
    let p = |q: f64| v.get(((v.len() as f64 * q) as usize).min(v.len().saturating_sub(1))).copied().unwrap_or(0);
    println!(
        "{{\"n\":{},\"errors\":{errors},\"secs\":{el:.4},\"rps\":{:.1},\"p50\":{},\"p90\":{},\"p99\":{},\"p999\":{}}}",
        v.len(),
        v.len() as f64 / el,
        p(0.5),
        p(0.9),
        p(0.99),
        p(0.999)
    );
}

async fn one_conn(addr: SocketAddr) -> std::io::Result<()> {
    let mut s = TcpStream::connect(addr).await?;
    s.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
    let mut buf = [0u8; 4096];
    let mut got = 0;
    loop {
        let n = s.read(&mut buf[got..]).await?;
        if n == 0 {
            break;
        }
        got += n;
    }
    if buf.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(std::io::ErrorKind::Other.into())
    }
}

async fn conn(addr: SocketAddr, conns: usize, secs: f64) {
    let t0 = Instant::now();
    let end = t0 + Duration::from_secs_f64(secs);
    let hs: Vec<_> = (0..conns)
        .map(|_| {
            tokio::spawn(async move {
                let (mut v, mut errs) = (vec![], 0u64);
                while Instant::now() < end {
                    let t = Instant::now();
                    match one_conn(addr).await {
                        Ok(()) => v.push(t.elapsed().as_micros() as u32),
                        Err(_) => {
                            errs += 1;
                            tokio::time::sleep(Duration::from_millis(5)).await
                        }
                    }
                }
                (v, errs)
            })
        })
        .collect();
    let (mut v, mut errs) = (vec![], 0);
    for h in hs {
        let (a, b) = h.await.unwrap();
        v.extend(a);
        errs += b;
    }
    report(v, errs, t0.elapsed().as_secs_f64());
}

/// One keep-alive GET; true if it was a 200.
async fn one_get(s: &mut TcpStream, buf: &mut [u8]) -> std::io::Result<bool> {
    s.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
    let (mut got, mut need) = (0, usize::MAX);
    while got < need {
        let n = s.read(&mut buf[got..]).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        got += n;
        if need == usize::MAX {
            if let Some(h) = buf[..got].windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&buf[..h]).unwrap_or("").to_ascii_lowercase();
                let len = head
                    .split("content-length:")
                    .nth(1)
                    .and_then(|x| x.split("\r\n").next())
                    .and_then(|x| x.trim().parse::<usize>().ok())
                    .unwrap_or(0);
                need = h + 4 + len;
            }
        }
    }
    Ok(buf.starts_with(b"HTTP/1.1 200"))
}

struct Queue {
    due: std::cell::RefCell<std::collections::VecDeque<Instant>>,
    lat: std::cell::RefCell<Vec<u32>>,
    errs: std::cell::Cell<u64>,
    wake: tokio::sync::Notify,
}

impl Queue {
    fn new() -> std::rc::Rc<Self> {
        std::rc::Rc::new(Self {
            due: Default::default(),
            lat: Default::default(),
            errs: Default::default(),
            wake: tokio::sync::Notify::new(),
        })
    }

    async fn next(&self) -> Instant {
        loop {
            let due = self.due.borrow_mut().pop_front();
            match due {
                Some(due) => return due,
                None => self.wake.notified().await,
            }
        }
    }

    fn done(&self, due: Instant, ok: bool) {
        if ok {
            self.lat.borrow_mut().push(due.elapsed().as_micros() as u32);
        } else {
            self.errs.set(self.errs.get() + 1);
        }
    }
}

async fn rate(addr: SocketAddr, conns: usize, secs: f64, rps: f64) {
    let q = Queue::new();
    for _ in 0..conns {
        let q = q.clone();
        let mut s = TcpStream::connect(addr).await.unwrap();
        let _ = s.set_nodelay(true);
        tokio::task::spawn_local(async move {
            let mut buf = vec![0u8; 64 << 10];
            let _ = one_get(&mut s, &mut buf).await;
            loop {
                let due = q.next().await;
                let ok = matches!(one_get(&mut s, &mut buf).await, Ok(true));
                q.done(due, ok);
                if !ok {
                    if let Ok(n) = TcpStream::connect(addr).await {
                        s = n;
                    }
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    paced(&q, secs, rps).await;
}

async fn connrate(addr: SocketAddr, conns: usize, secs: f64, rps: f64) {
    let q = Queue::new();
    for _ in 0..conns {
        let q = q.clone();
        tokio::task::spawn_local(async move {
            loop {
                let due = q.next().await;
                let ok = one_conn(addr).await.is_ok();
                q.done(due, ok);
            }
        });
    }
    paced(&q, secs, rps).await;
}

/// Hands out what is due, on time whatever became of what was due before; waits for the rest and reports.
async fn paced(q: &Queue, secs: f64, rps: f64) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let fd = unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
        let ns = (1e9 / rps) as i64;
        let t = libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 };
        libc::timerfd_settime(fd, 0, &libc::itimerspec { it_interval: t, it_value: t }, std::ptr::null_mut());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: `fd` owns a timerfd that nothing replaces or closes while it is registered.
    let fd = unsafe { tokio::io::unix::AsyncFd::register(fd) }.unwrap();
    let t0 = Instant::now();
    let (mut k, total) = (0u64, (rps * secs) as u64);
    while k < total {
        let mut g = fd.readable().await.unwrap();
        let mut b = [0u8; 8];
        unsafe { libc::read(g.get_inner().as_raw_fd(), b.as_mut_ptr().cast(), 8) };
        g.clear_ready();
        let now = Instant::now();
        while k < total {
            let due = t0 + Duration::from_secs_f64(k as f64 / rps);
            if due > now {
                break;
            }
            q.due.borrow_mut().push_back(due);
            q.wake.notify_one();
            k += 1;
        }
    }
    // what is still under way is waited for, at most 2 s
    let end = Instant::now() + Duration::from_secs(2);
    while (q.lat.borrow().len() as u64 + q.errs.get()) < total && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let left = total - q.lat.borrow().len() as u64 - q.errs.get();
    report(q.lat.take(), q.errs.get() + left, t0.elapsed().as_secs_f64());
}

async fn rtt(addr: SocketAddr, conns: usize, secs: f64, n: usize) {
    let t0 = Instant::now();
    let end = t0 + Duration::from_secs_f64(secs);
    let hs: Vec<_> = (0..conns)
        .map(|_| {
            tokio::spawn(async move {
                let mut s = TcpStream::connect(addr).await.unwrap();
                let _ = s.set_nodelay(true);
                s.write_u8(b'E').await.unwrap();
                let (out, mut inp) = (vec![1u8; n], vec![0u8; n]);
                let mut v = vec![];
                while Instant::now() < end {
                    let t = Instant::now();
                    s.write_all(&out).await.unwrap();
                    s.read_exact(&mut inp).await.unwrap();
                    v.push(t.elapsed().as_micros() as u32);
                }
                v
            })
        })
        .collect();
    let mut v = vec![];
    for h in hs {
        v.extend(h.await.unwrap());
    }
    report(v, 0, t0.elapsed().as_secs_f64());
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let addr: SocketAddr = a.get(2).and_then(|x| x.parse().ok()).expect("see the head of main.rs");
    let num = |i: usize, d: f64| a.get(i).and_then(|x| x.parse().ok()).unwrap_or(d);
    match a[1].as_str() {
        "origin" => origin(addr, num(3, 100.0) as usize).await,
        "sink" => sink(addr).await,
        "bulk" => bulk(addr, a[3] == "up", num(4, 1.0) as usize, num(5, 3.0)).await,
        "conn" => conn(addr, num(3, 16.0) as usize, num(4, 3.0)).await,
        "rate" => {
            tokio::task::LocalSet::new().run_until(rate(addr, num(3, 64.0) as usize, num(4, 3.0), num(5, 1000.0))).await
        }
        "connrate" => {
            let (conns, secs, rps) = (num(3, 64.0) as usize, num(4, 3.0), num(5, 500.0));
            tokio::task::LocalSet::new().run_until(connrate(addr, conns, secs, rps)).await
        }
        "rtt" => rtt(addr, num(3, 1.0) as usize, num(4, 3.0), num(5, 64.0) as usize).await,
        _ => panic!("unknown command"),
    }
}
