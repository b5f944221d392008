//! Child processes that never outlive their parent, and signals by pid.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd, AsRawFd as _, RawFd},
};

use tokio::process::Command;

/// The signals that `weft run` hands on to its application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Term,
    Int,
    Kill,
    Hup,
    Usr1,
    Usr2,
    Cont,
    Stop,
}

impl Signal {
    pub const fn number(self) -> i32 {
        match self {
            Self::Term => libc::SIGTERM,
            Self::Int => libc::SIGINT,
            Self::Kill => libc::SIGKILL,
            Self::Hup => libc::SIGHUP,
            Self::Usr1 => libc::SIGUSR1,
            Self::Usr2 => libc::SIGUSR2,
            Self::Cont => libc::SIGCONT,
            Self::Stop => libc::SIGSTOP,
        }
    }
}

/// Puts the child in a process group of its own, and has the kernel send it `signal` when the thread that spawns it
/// ends, also by `kill -9` (Linux; elsewhere only the group).
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid), nothing allocates, and
        // the closure owns plain numbers. Tested by `a_child_dies_with_the_thread_that_spawned_it`.
        #[expect(unsafe_code, reason = "pre_exec is the only place where prctl reaches the child")]
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, signal.number()) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // the parent may have died between fork and prctl
                if libc::getppid().unsigned_abs() != parent {
                    return Err(io::Error::from(io::ErrorKind::BrokenPipe));
                }
                Ok(())
            });
        }
    }
}

/// Has the child write `word`, a space, its process id and a newline to `to` before it becomes the program: whoever reads
/// there knows of every child, also when the parent is killed in the middle of starting it. The reader sees the end of
/// its input only after that line.
pub fn announce(command: &mut Command, word: &'static [u8], to: impl AsFd) -> io::Result<()> {
    let to = to.as_fd().try_clone_to_owned()?;
    // SAFETY: between fork and exec only async-signal-safe calls are made (getpid, write); the line is built on the stack
    // and nothing allocates. Tested by `a_child_is_announced_before_it_becomes_the_program`.
    #[expect(unsafe_code, reason = "pre_exec is the only place where the child can speak before the program does")]
    unsafe {
        command.pre_exec(move || announce_self(word, to.as_raw_fd()));
    }
    Ok(())
}

/// A pipe takes a line this short whole or not at all.
fn announce_self(word: &[u8], to: RawFd) -> io::Result<()> {
    let mut line = [0_u8; 64];
    let length = {
        let mut rest = &mut line[..];
        // writes to a slice do not allocate
        rest.write_all(word)?;
        writeln!(rest, " {}", std::process::id())?;
        rest.len()
    };
    let said = line.get(..line.len().saturating_sub(length)).unwrap_or_default();
    // SAFETY: write reads `said`, which is a slice of ours, and touches no memory besides.
    #[expect(unsafe_code, reason = "the descriptor belongs to the parent's copy; std would take it over")]
    let written = unsafe { libc::write(to, said.as_ptr().cast(), said.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to a process, or to the whole group that `pid` leads. `Ok(false)`: there is no such process any more.
pub fn send(signal: Signal, pid: u32, group: bool) -> io::Result<bool> {
    let Ok(pid) = i32::try_from(pid) else { return Ok(false) };
    // pid 0 and 1 mean "my own group" and "everyone" once negated
    if pid <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "refusing to signal a process id of 1 or less"));
    }
    // SAFETY: kill takes two integers and touches no memory of ours.
    #[expect(unsafe_code, reason = "std cannot send a signal by pid")]
    let sent = unsafe { libc::kill(if group { -pid } else { pid }, signal.number()) };
    if sent == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        e => Err(e),
    }
}

/// The two signals that ask a process to end.
pub struct Stop {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Stop {
    /// Listens from now on; the signals no longer end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next of them. Safe to drop and call again.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased; // either will do
            _ = self.term.recv() => Signal::Term,
            _ = self.int.recv() => Signal::Int,
        }
    }
}

/// From now on the kernel gives this process pages of 4 KiB, never huge ones: a small heap spread over a few of those takes
/// megabytes that it does not use. Children inherit it, so this is for programs that start none.
pub fn small_pages() {
    #[cfg(target_os = "linux")]
    {
        let (yes, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: this prctl takes integers and touches no memory of ours.
        #[expect(unsafe_code, reason = "std has no way to say it")]
        // refused (by an old kernel, by seccomp): only memory is lost
        let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, unused, unused, unused) };
    }
}

/// The effective user of this process.
pub fn user_id() -> u32 {
    // SAFETY: geteuid takes nothing, touches nothing and cannot fail.
    #[expect(unsafe_code, reason = "std does not tell")]
    unsafe {
        libc::geteuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: u32) -> bool {
        // a zombie counts as gone
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
    }

    #[test]
    fn a_child_dies_with_the_thread_that_spawned_it() {
        let pid = std::thread::spawn(|| {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            rt.block_on(async {
                let mut command = Command::new("sleep");
                command.arg("60");
                die_with_parent(&mut command, Signal::Kill);
                let child = command.spawn().unwrap();
                child.id().unwrap()
            })
        })
        .join()
        .unwrap();
        for _ in 0..200 {
            if !alive(pid) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        send(Signal::Kill, pid, false).unwrap();
        panic!("the child outlived its parent");
    }

    #[tokio::test]
    async fn a_child_is_announced_before_it_becomes_the_program() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("true");
        announce(&mut command, b"process", &writer).unwrap();
        let mut child = command.spawn().unwrap();
        let pid = child.id().unwrap();
        drop((command, writer));
        let mut said = String::new();
        io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert_eq!(said, format!("process {pid}\n"));
        child.wait().await.unwrap();
    }

    #[test]
    fn never_signals_everyone() {
        assert!(send(Signal::Term, 1, true).is_err());
        assert!(send(Signal::Term, 0, false).is_err());
    }

    #[test]
    fn a_process_that_is_gone_is_no_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(!send(Signal::Term, pid, false).unwrap());
    }
}
