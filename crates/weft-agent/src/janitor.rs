//! Cleaning up after a parent that was killed.
//!
//! `weft dev` starts a second, tiny process that holds the reading end of a pipe and knows which process groups and
//! which directory belong to it. When the pipe closes, for whatever reason, that process ends what is left and removes
//! the directory. It needs no cooperation of the dead, at any moment: the directory is made by the janitor itself, and
//! every process tells it of itself before it becomes the program that the parent asked for.

mod claim;

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::process::Command;
use weft_rt::process::{self, Signal};

pub use self::claim::{Claim, ClaimError};

/// How long what is left may take to end by itself once told.
const GRACE: Duration = Duration::from_secs(3);
/// How long what was killed may take to be gone; the kernel needs no more, unless a disk hangs.
const GONE: Duration = Duration::from_secs(2);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(20);
/// What a child says of itself.
const PROCESS: &str = "process";
/// The answer to a directory that is made.
const MADE: &str = "made";

/// What a parent tells its janitor, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// A process (leading its own group) to end.
    Process(u32),
    /// It ended by itself.
    Forget(u32),
    /// A directory to make, and to remove at the end. Answered by a line.
    Directory(PathBuf),
}

impl Order {
    pub fn line(&self) -> String {
        match self {
            Self::Process(pid) => format!("{PROCESS} {pid}\n"),
            Self::Forget(pid) => format!("forget {pid}\n"),
            Self::Directory(path) => format!("directory {}\n", path.display()),
        }
    }

    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            PROCESS => Self::Process(rest.parse().ok()?),
            "forget" => Self::Forget(rest.parse().ok()?),
            "directory" => Self::Directory(rest.into()),
            _ => return None,
        })
    }
}

/// Takes orders until they end, then cleans up. Runs in a process of its own, in its own session.
pub fn tend(orders: impl BufRead, mut answers: impl Write) {
    let mut pids = BTreeSet::new();
    let mut claims = Vec::new();
    for line in orders.lines() {
        // a reading error means what the end means: nobody is there any more
        let Ok(line) = line else { break };
        match Order::parse(&line) {
            Some(Order::Process(pid)) => drop(pids.insert(pid)),
            Some(Order::Forget(pid)) => drop(pids.remove(&pid)),
            Some(Order::Directory(path)) => {
                let answer = match Claim::new(&path) {
                    Ok(claim) => {
                        claims.push(claim);
                        MADE.to_owned()
                    }
                    Err(e) => weft_rt::log::chain(&e).to_string(),
                };
                // nobody may be left to read it: then the orders end too
                let _ = writeln!(answers, "{}", answer.replace('\n', " ")).and_then(|()| answers.flush());
            }
            None => {}
        }
    }
    end(&pids);
    for claim in claims {
        claim.remove();
    }
}

/// Asks the groups to end, then ends them.
fn end(pids: &BTreeSet<u32>) {
    let tell = |signal| pids.iter().filter(|pid| process::send(signal, **pid, true).unwrap_or(false)).count();
    if tell(Signal::Term) == 0 || until_gone(pids, GRACE) {
        return;
    }
    tell(Signal::Kill);
    until_gone(pids, GONE);
}

fn until_gone(pids: &BTreeSet<u32>, patience: Duration) -> bool {
    let mut waited = Duration::ZERO;
    // who inherits a process may be slow to reap it, or never do: a zombie has ended
    let runs = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
    while pids.iter().any(runs) {
        if waited >= patience {
            return false;
        }
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
    true
}

/// The parent's end. Dropping it is the order to clean up.
pub struct Janitor<W, R> {
    orders: W,
    answers: BufReader<R>,
}

impl<W: Write, R: Read> Janitor<W, R> {
    pub fn new(orders: W, answers: R) -> Self {
        Self { orders, answers: BufReader::new(answers) }
    }

    pub fn tell(&mut self, order: &Order) -> io::Result<()> {
        self.orders.write_all(order.line().as_bytes())?;
        self.orders.flush()
    }

    /// Has it make a directory that only this user may enter, and remove it at the end. What is left of a parent that
    /// nobody cleaned up after is removed first.
    pub fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.tell(&Order::Directory(path.to_owned()))?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim_end() {
            MADE => Ok(()),
            "" => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the janitor ended without an answer")),
            why => Err(io::Error::other(why)),
        }
    }
}

impl<W: Write + AsFd, R: Read> Janitor<W, R> {
    /// Has the process that `command` will start end with everything else. It must lead a process group of its own.
    pub fn watch(&self, command: &mut Command) -> io::Result<()> {
        process::announce(command, PROCESS.as_bytes(), &self.orders)
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
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("letter"), b"dear").unwrap();
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 60"]).process_group(0).spawn().unwrap();
        let orders = [Order::Directory(ours.clone()), Order::Directory(theirs.clone()), Order::Process(child.id())];
        let text: String = orders.iter().map(Order::line).collect();
        let watcher = std::thread::spawn(move || child.wait().unwrap());
        let mut answers = Vec::new();
        tend(text.as_bytes(), &mut answers);
        let not_ours = format!("{} exists and is not ours: it holds other things; move it away\n", theirs.display());
        assert_eq!(String::from_utf8(answers).unwrap(), format!("made\n{not_ours}"));
        assert!(!watcher.join().unwrap().success());
        assert!(!ours.exists());
        assert!(theirs.join("letter").exists());
    }

    #[tokio::test]
    async fn a_process_that_is_only_being_started_is_known() {
        let (orders, ours) = io::pipe().unwrap();
        let janitor = Janitor::new(ours, io::empty());
        let mut command = Command::new("sleep");
        command.arg("60").process_group(0);
        janitor.watch(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        drop((command, janitor)); // as a kill would
        let tended = std::thread::spawn(move || tend(BufReader::new(orders), io::sink()));
        assert!(!child.wait().await.unwrap().success());
        tended.join().unwrap();
    }
}
