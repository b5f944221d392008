//! Byte streams and how they are opened: the seam at which an in-memory network replaces the kernel's.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Idle time before the first keepalive probe, the time between probes, and how many go unanswered: a dead peer is noticed
/// within about five minutes, and an idle mesh costs little.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(180), Duration::from_secs(30), 4);

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Addr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connected byte stream.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// In memory.
    Pipe(Box<dyn Pipe>),
}

/// What an in-memory stream can do.
pub trait Pipe: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug {
    /// The other end sees a reset, not an end, when this is dropped.
    fn reset_on_drop(&mut self);
}

/// A stream between two runtimes.
#[derive(Debug)]
pub enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
    Pipe(Box<dyn Pipe>),
}

/// Opens connections. [`System`] is the kernel's; simulations bring their own.
pub trait Net: Send + Sync + 'static {
    fn connect(&self, to: Addr) -> Connecting;
}

pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// The operating system's network.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no answer from {to} within {after:?}, maybe a firewall or network policy drops packets to it")]
    Timeout { to: Addr, after: Duration },
    #[error("cannot connect to {to}")]
    Io {
        to: Addr,
        #[source]
        source: io::Error,
    },
}

/// Connects within `timeout`.
pub async fn connect(net: &Arc<dyn Net>, to: &Addr, timeout: Duration) -> Result<Stream, ConnectError> {
    match tokio::time::timeout(timeout, net.connect(to.clone())).await {
        Ok(Ok(s)) => Ok(s),
        Ok(Err(source)) => Err(ConnectError::Io { to: to.clone(), source }),
        Err(_) => Err(ConnectError::Timeout { to: to.clone(), after: timeout }),
    }
}

// === impl System ===

impl Net for System {
    fn connect(&self, to: Addr) -> Connecting {
        Box::pin(async move {
            Ok(match to {
                Addr::Tcp(a) => {
                    let s = TcpStream::connect(a).await?;
                    prepare(&s);
                    Stream::Tcp(s)
                }
                Addr::Unix(p) => Stream::Unix(UnixStream::connect(p).await?),
            })
        })
    }
}

/// Options of every TCP connection, accepted or opened.
pub fn prepare(s: &TcpStream) {
    let s = SockRef::from(s);
    // A connection that is already gone refuses its options; whoever reads it next learns that better than we could say.
    let _ = s.set_tcp_nodelay(true);
    let (idle, interval, retries) = KEEPALIVE;
    let _ = s.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries));
}

// === impl Addr ===

impl Addr {
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(a) => Some(*a),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(a: SocketAddr) -> Self {
        Self::Tcp(a)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(a) => a.fmt(f),
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

// === impl Stream ===

impl Stream {
    /// From now on, dropping the stream resets the connection instead of ending it: the peer must not take what it got for
    /// the whole.
    pub fn reset_on_drop(&mut self) {
        match self {
            Self::Tcp(s) => {
                // fails only when the peer is already gone
                let _ = SockRef::from(&*s).set_linger(Some(Duration::ZERO));
            }
            // A Unix socket knows no reset; unread input makes its close one (ECONNRESET), nothing else does.
            Self::Unix(_) => {}
            Self::Pipe(p) => p.reset_on_drop(),
        }
    }

    /// Takes it off the current runtime.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(s) => Detached::Tcp(s.into_std()?),
            Self::Unix(s) => Detached::Unix(s.into_std()?),
            Self::Pipe(p) => Detached::Pipe(p),
        })
    }

    /// The peer's address, where it has one.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(s) => s.peer_addr().ok(),
            _ => None,
        }
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(s) => s.local_addr().ok(),
            _ => None,
        }
    }

    /// Where a redirected connection was going.
    #[cfg(target_os = "linux")]
    pub fn original_dst(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(s) => crate::sys::original_dst_v4(s).ok().map(SocketAddr::V4),
            _ => None,
        }
    }
}

impl Detached {
    /// Puts it on the current runtime.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(s) => Stream::Tcp(TcpStream::from_std(s)?),
            Self::Unix(s) => Stream::Unix(UnixStream::from_std(s)?),
            Self::Pipe(p) => Stream::Pipe(p),
        })
    }
}

macro_rules! each {
    ($self:ident, $s:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Tcp($s) => $body,
            Stream::Unix($s) => $body,
            Stream::Pipe($s) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::listen::{self, Bind};

    #[tokio::test]
    async fn a_reset_is_not_an_end() {
        let mut l = listen::bind(&Bind::exact("127.0.0.1:0".parse::<SocketAddr>().unwrap().into())).unwrap();
        let net: Arc<dyn Net> = Arc::new(System);
        let mut c = connect(&net, l.addr(), Duration::from_secs(5)).await.unwrap();
        let (mut s, _) = l.accept().await.unwrap();
        c.write_all(b"part").await.unwrap();
        let mut b = [0; 4];
        s.read_exact(&mut b).await.unwrap();
        c.reset_on_drop();
        drop(c);
        assert_eq!(s.read(&mut b).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_refused_connection_names_its_address() {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let a = l.local_addr().unwrap();
        drop(l);
        let net: Arc<dyn Net> = Arc::new(System);
        let e = connect(&net, &a.into(), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(e.to_string(), format!("cannot connect to {a}"));
    }
}
