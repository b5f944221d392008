//! Cleaning up after a parent that was killed.
//!
//! `weft dev` starts a second, tiny process that holds the reading end of a pipe and knows which process groups and
//! which directory belong to it. When the pipe closes, for whatever reason, that process ends what is left and removes
//! the directory. It needs no cooperation of the dead.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use weft_rt::process::{self, Signal};

/// How long what is left may take to end by itself once told.
const GRACE: Duration = Duration::from_secs(3);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// What a parent tells its janitor, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// A process (leading its own group) to end.
    Process(u32),
    /// It ended by itself.
    Forget(u32),
    /// A directory of ours to remove at the end.
    Directory(PathBuf),
}

impl Order {
    pub fn line(&self) -> String {
        match self {
            Self::Process(pid) => format!("process {pid}\n"),
            Self::Forget(pid) => format!("forget {pid}\n"),
            Self::Directory(path) => format!("directory {}\n", path.display()),
        }
    }

    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            "process" => Self::Process(rest.parse().ok()?),
            "forget" => Self::Forget(rest.parse().ok()?),
            "directory" => Self::Directory(rest.into()),
            _ => return None,
        })
    }
}

/// Takes orders until they end, then cleans up. Runs in a process of its own, in its own session.
pub fn tend(orders: impl BufRead) {
    let mut pids = BTreeSet::new();
    let mut directories = Vec::new();
    for line in orders.lines() {
        // a reading error means what the end means: nobody is there any more
        let Ok(line) = line else { break };
        match Order::parse(&line) {
            Some(Order::Process(pid)) => drop(pids.insert(pid)),
            Some(Order::Forget(pid)) => drop(pids.remove(&pid)),
            Some(Order::Directory(path)) => directories.push(path),
            None => {}
        }
    }
    end(&pids);
    for directory in &directories {
        remove(directory);
    }
}

/// Asks the groups to end, then ends them.
fn end(pids: &BTreeSet<u32>) {
    let tell = |signal| pids.iter().filter(|pid| process::send(signal, **pid, true).unwrap_or(false)).count();
    let mut waited = Duration::ZERO;
    if tell(Signal::Term) == 0 {
        return;
    }
    while waited < GRACE && pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
    tell(Signal::Kill);
}

/// Only what looks like ours: a directory that holds our marker.
fn remove(directory: &Path) {
    if directory.join(MARKER).exists() {
        // nobody is left to tell
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// The file that makes a directory ours to remove.
const MARKER: &str = ".weft-temporary";

/// Makes a directory that only we may enter and that the janitor may remove.
pub fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::write(path.join(MARKER), b"")
}

/// The parent's end.
pub struct Janitor<W> {
    orders: W,
}

impl<W: Write> Janitor<W> {
    pub fn new(orders: W) -> Self {
        Self { orders }
    }

    pub fn tell(&mut self, order: &Order) -> io::Result<()> {
        self.orders.write_all(order.line().as_bytes())?;
        self.orders.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_round_trip() {
        for order in [Order::Process(7), Order::Forget(8), Order::Directory("/tmp/a b".into())] {
            assert_eq!(Order::parse(order.line().trim_end()), Some(order));
        }
        assert_eq!(Order::parse("process x"), None);
        assert_eq!(Order::parse("rm /"), None);
    }

    #[test]
    fn ends_what_is_left_and_removes_only_what_is_ours() {
        use std::os::unix::process::CommandExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        make_directory(&ours).unwrap();
        std::fs::create_dir(&theirs).unwrap();
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 60"]).process_group(0).spawn().unwrap();
        let orders = [Order::Directory(ours.clone()), Order::Directory(theirs.clone()), Order::Process(child.id())];
        let text: String = orders.iter().map(Order::line).collect();
        let watcher = std::thread::spawn(move || child.wait().unwrap());
        tend(text.as_bytes());
        assert!(!watcher.join().unwrap().success());
        assert!(!ours.exists());
        assert!(theirs.exists());
    }
}
