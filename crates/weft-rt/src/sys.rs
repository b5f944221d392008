//! The few calls into libc, each with its reason to be sound.
#![expect(
    unsafe_code,
    reason = "the one module that may: clocks, randomness and socket options without a safe wrapper"
)]

use std::{io, os::fd::AsRawFd, time::Duration};

/// CLOCK_BOOTTIME: monotonic, and counts on through a suspend.
#[cfg(target_os = "linux")]
pub(crate) fn boot_time() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

/// Elsewhere the plain monotonic clock is the nearest thing.
#[cfg(not(target_os = "linux"))]
pub(crate) fn boot_time() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid, exclusively borrowed timespec for the duration of the call.
    let ok = unsafe { libc::clock_gettime(id, &raw mut t) };
    debug_assert_eq!(ok, 0, "clock_gettime fails only for an unknown clock");
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// Eight bytes from the kernel's generator.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut b = [0u8; 8];
    // SAFETY: the pointer and length describe `b`, which outlives the call.
    match unsafe { libc::getentropy(b.as_mut_ptr().cast(), b.len()) } {
        0 => Ok(u64::from_le_bytes(b)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The address that a redirected connection was meant for (`SO_ORIGINAL_DST`), IPv4.
#[cfg(target_os = "linux")]
pub(crate) fn original_dst_v4(s: &impl AsRawFd) -> io::Result<std::net::SocketAddrV4> {
    let mut a =
        libc::sockaddr_in { sin_family: 0, sin_port: 0, sin_addr: libc::in_addr { s_addr: 0 }, sin_zero: [0; 8] };
    let mut len = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).unwrap_or(0);
    // SAFETY: `a` is a sockaddr_in of the stated length; the kernel writes at most `len` bytes into it.
    let r = unsafe {
        libc::getsockopt(s.as_raw_fd(), libc::SOL_IP, libc::SO_ORIGINAL_DST, (&raw mut a).cast(), &raw mut len)
    };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(std::net::SocketAddrV4::new(u32::from_be(a.sin_addr.s_addr).into(), u16::from_be(a.sin_port)))
}

/// Files created meanwhile are the owner's alone; undone when dropped. The mask is the process's, so this is for start-up.
pub(crate) struct Umask(libc::mode_t);

impl Umask {
    pub(crate) fn owner_only() -> Self {
        // SAFETY: umask cannot fail and touches no memory of ours.
        Self(unsafe { libc::umask(0o177) })
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::umask(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_moves_forward() {
        let a = boot_time();
        assert!(a > Duration::ZERO && boot_time() >= a);
    }

    #[test]
    fn randomness_differs() {
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let s = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap();
        assert!(original_dst_v4(&s).is_err());
    }

    #[test]
    fn umask_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |p: &std::path::Path| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::metadata(p).unwrap().permissions().mode() & 0o777
        };
        let inside = Umask::owner_only();
        std::fs::write(dir.path().join("a"), b"").unwrap();
        drop(inside);
        assert_eq!(mode(&dir.path().join("a")), 0o600);
    }
}
