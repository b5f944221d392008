//! The janitor of `weft dev`, as a process.

use std::{
    io::{self, PipeReader, PipeWriter},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};
use weft_agent::janitor::{Janitor, Order};

/// How long it may take to clean up: it asks, then kills.
const PATIENCE: Duration = Duration::from_secs(8);

/// It cleans up when this is dropped, however that comes about.
pub struct Tidy {
    janitor: Janitor<PipeWriter, PipeReader>,
    process: Child,
}

impl Tidy {
    /// Starts it, and has it make the directory.
    pub fn start(directory: &Path) -> Result<Self> {
        let (theirs, orders) = io::pipe()?;
        let (answers, said) = io::pipe()?;
        let mut command = Command::new(std::env::current_exe()?);
        // a group of its own: Ctrl-C in the terminal is for us, not for it
        command.arg("janitor").stdin(theirs).stdout(said).stderr(Stdio::null()).process_group(0);
        let process = command.spawn().context("cannot start the janitor")?;
        // its ends of the pipes are its alone
        drop(command);
        let mut janitor = Janitor::new(orders, answers);
        janitor.make_directory(directory)?;
        Ok(Self { janitor, process })
    }

    /// What `command` will start ends with us.
    pub fn watch(&self, command: &mut Command) -> io::Result<()> {
        self.janitor.watch(command)
    }

    pub fn forget(&mut self, pid: u32) {
        // in vain when it is gone: then it ends nobody
        let _ = self.janitor.tell(&Order::Forget(pid));
    }

    /// Has it clean up, and waits until it has.
    pub async fn finish(self) {
        let Self { janitor, mut process } = self;
        drop(janitor);
        let _ = tokio::time::timeout(PATIENCE, process.wait()).await;
    }
}
