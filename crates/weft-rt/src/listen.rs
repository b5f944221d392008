//! Listening sockets: preferred ports, and an error that names who has the port.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::{
    net::{self, Addr, Stream},
    sys,
};

/// Connections that wait to be accepted: what Linux allows by default.
const BACKLOG: i32 = 4096;

/// What to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub addr: Addr,
    /// When the port is taken: any free one will do.
    pub preferred_only: bool,
}

#[derive(Debug)]
pub struct Listener {
    inner: Inner,
    addr: Addr,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "held for its drop")] UnlinkOnDrop),
}

/// A process that has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{addr} is in use by {holder}; stop it or choose another port")]
    InUseBy { addr: Addr, holder: Holder },
    #[error("{addr} is in use; stop whoever listens there or choose another port")]
    InUse { addr: Addr },
    #[error("{addr} needs a privilege (a port below 1024?); choose another port")]
    Denied { addr: Addr },
    #[error("{addr} is not an address of this host; choose one that `ip address` lists")]
    NotLocal { addr: Addr },
    #[error("cannot listen on {addr}")]
    Io {
        addr: Addr,
        #[source]
        source: io::Error,
    },
}

// === impl Bind ===

impl Bind {
    /// Exactly there.
    pub fn exact(addr: Addr) -> Self {
        Self { addr, preferred_only: false }
    }

    /// There if it is free, else on any free port of the same address.
    pub fn preferred(addr: Addr) -> Self {
        Self { addr, preferred_only: true }
    }
}

/// A bound and listening socket that no runtime knows yet: it may be carried to the thread that will accept.
#[derive(Debug)]
pub struct Reserved {
    inner: ReservedInner,
    addr: Addr,
}

#[derive(Debug)]
enum ReservedInner {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, UnlinkOnDrop),
}

/// Binds and listens. Unix sockets are the owner's alone (0600); one that nobody listens on any more is replaced.
pub fn reserve(want: &Bind) -> Result<Reserved, BindError> {
    let failed = |e| bind_error(&want.addr, e);
    match &want.addr {
        Addr::Tcp(addr) => {
            let bound = match bind_tcp(*addr) {
                Err(e) if want.preferred_only && e.kind() == io::ErrorKind::AddrInUse => {
                    bind_tcp(SocketAddr::new(addr.ip(), 0))
                }
                other => other,
            };
            let l = bound.map_err(failed)?;
            let addr = l.local_addr().map_err(failed)?.into();
            Ok(Reserved { inner: ReservedInner::Tcp(l), addr })
        }
        Addr::Unix(path) => {
            let l = bind_unix(path).map_err(failed)?;
            Ok(Reserved { inner: ReservedInner::Unix(l, UnlinkOnDrop(path.clone())), addr: want.addr.clone() })
        }
    }
}

/// [`reserve`] and [`Reserved::open`] in one, on the current runtime.
pub fn bind(want: &Bind) -> Result<Listener, BindError> {
    reserve(want)?.open().map_err(|e| bind_error(&want.addr, e))
}

// === impl Reserved ===

impl Reserved {
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Registers it with the current runtime.
    pub fn open(self) -> io::Result<Listener> {
        let inner = match self.inner {
            ReservedInner::Tcp(l) => Inner::Tcp(TcpListener::from_std(l)?),
            ReservedInner::Unix(l, path) => Inner::Unix(UnixListener::from_std(l)?, path),
        };
        Ok(Listener { inner, addr: self.addr })
    }
}

/// A free TCP port of `ip`, kept for a program that is started later and told the number: nobody else is given it while
/// this lives, as a listener or as the near end of a connection. The program binds it as nearly every server does, with
/// `SO_REUSEADDR`, which the kernel grants beside a socket that does not listen.
#[derive(Debug)]
pub struct Held {
    #[expect(dead_code, reason = "held for its drop")]
    socket: Option<Socket>,
    addr: SocketAddr,
}

/// Elsewhere than on Linux the port is free at this moment, and no more.
pub fn hold(ip: IpAddr) -> io::Result<Held> {
    let wanted = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(wanted), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&wanted.into())?;
    let addr = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Held { socket: cfg!(target_os = "linux").then_some(socket), addr })
}

impl Held {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

// === impl Listener ===

impl Listener {
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// The next connection, prepared, with its peer (a Unix peer has no address).
    ///
    /// Errors are those of one connection or of the process (descriptors); the listener itself stays good.
    pub async fn accept(&mut self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match &self.inner {
            Inner::Tcp(l) => {
                let (s, peer) = l.accept().await?;
                net::prepare(&s);
                Ok((Stream::Tcp(s), Some(peer)))
            }
            Inner::Unix(l, _) => {
                let (s, _) = l.accept().await?;
                Ok((Stream::Unix(s), None))
            }
        }
    }
}

#[derive(Debug)]
struct UnlinkOnDrop(PathBuf);

impl Drop for UnlinkOnDrop {
    fn drop(&mut self) {
        // gone already is fine
        let _ = fs::remove_file(&self.0);
    }
}

/// No SO_REUSEPORT: a stale process must not silently share the port, and its queue must not be reset.
fn bind_tcp(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let s = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    s.set_reuse_address(true)?;
    if addr.is_ipv6() {
        s.set_only_v6(!addr.ip().is_unspecified())?;
    }
    s.set_nonblocking(true)?;
    s.bind(&addr.into())?;
    s.listen(BACKLOG)?;
    Ok(s.into())
}

fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::UnixListener;
    let mask = sys::Umask::owner_only();
    let bound = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            // A socket file outlives its process: refused means that nobody listens.
            match std::os::unix::net::UnixStream::connect(path) {
                Err(c) if c.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                    UnixListener::bind(path)
                }
                _ => Err(e),
            }
        }
        other => other,
    };
    drop(mask);
    let l = bound?;
    l.set_nonblocking(true)?;
    Ok(l)
}

fn bind_error(addr: &Addr, source: io::Error) -> BindError {
    let addr = addr.clone();
    match source.kind() {
        io::ErrorKind::AddrInUse => match addr.tcp().and_then(|a| holder_of(a.port())) {
            Some(holder) => BindError::InUseBy { addr, holder },
            None => BindError::InUse { addr },
        },
        io::ErrorKind::PermissionDenied => BindError::Denied { addr },
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal { addr },
        _ => BindError::Io { addr, source },
    }
}

/// Who listens on a TCP port, as far as `/proc` tells the current user. Looked up only after a bind failed.
pub fn holder_of(port: u16) -> Option<Holder> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|f| fs::read_to_string(f).ok())
        .find_map(|table| listening_inode(&table, port))?;
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let has = fs::read_dir(process.path().join("fd"))
            .ok()?
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|l| l.as_os_str() == link.as_str()));
        has.then(|| Holder { pid, command: command_of(&process.path()) })
    })
}

/// A line of the table: `sl local_address rem_address st … inode`, addresses as `HEX:PORT`, state 0A is listening.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut f = line.split_ascii_whitespace();
        let local = f.nth(1)?;
        let state = f.nth(1)?;
        let inode = f.nth(5)?;
        let (_, p) = local.rsplit_once(':')?;
        (state == "0A" && u16::from_str_radix(p, 16) == Ok(port)).then(|| inode.parse().ok()).flatten()
    })
}

fn command_of(process: &Path) -> String {
    /// Enough to recognise a program; arguments may be long, or secret.
    const SHOWN: usize = 80;
    let raw = fs::read(process.join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&raw).replace('\0', " ");
    text.chars().take(SHOWN).collect::<String>().trim().to_owned()
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (`{}`)", self.pid, self.command)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn any() -> Addr {
        Addr::Tcp("127.0.0.1:0".parse().unwrap())
    }

    #[tokio::test]
    async fn a_taken_port_names_its_holder() {
        let first = bind(&Bind::exact(any())).unwrap();
        let e = bind(&Bind::exact(first.addr().clone())).unwrap_err();
        let want = format!("{} is in use by process {} (`", first.addr(), std::process::id());
        assert!(e.to_string().starts_with(&want), "{e}");
    }

    #[tokio::test]
    async fn a_preferred_port_falls_back_to_a_free_one() {
        let first = bind(&Bind::preferred(any())).unwrap();
        let second = bind(&Bind::preferred(first.addr().clone())).unwrap();
        assert_ne!(first.addr(), second.addr());
    }

    #[tokio::test]
    async fn a_held_port_is_nobodys_but_the_one_who_is_told() {
        let held = hold(Ipv4Addr::LOCALHOST.into()).unwrap();
        let refused = std::net::TcpStream::connect(held.addr()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "held is not listened on");
        // enough to meet it many times over, were it given away
        for _ in 0..1_000 {
            let other = bind(&Bind::exact(any())).unwrap();
            assert_ne!(other.addr(), &Addr::Tcp(held.addr()));
        }
        let told = bind(&Bind::exact(Addr::Tcp(held.addr()))).unwrap();
        assert_eq!(told.addr(), &Addr::Tcp(held.addr()));
        assert!(bind(&Bind::exact(Addr::Tcp(held.addr()))).is_err(), "one of them listens now");
        drop(told);
        drop(std::net::TcpListener::bind(held.addr()).unwrap());
    }

    #[tokio::test]
    async fn a_unix_socket_is_the_owners_alone_and_a_stale_one_is_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("up.sock");
        std::mem::forget(std::os::unix::net::UnixListener::bind(&path).map(drop));
        let l = bind(&Bind::exact(Addr::Unix(path.clone()))).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(&Bind::exact(Addr::Unix(path.clone()))).is_err(), "a live one stays");
        drop(l);
        assert!(!path.exists());
    }

    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n\
             1: 0100007F:1F91 0100007F:0001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n";
        assert_eq!(listening_inode(table, 8080), Some(4711));
        assert_eq!(listening_inode(table, 8081), None, "connected, not listening");
    }
}
