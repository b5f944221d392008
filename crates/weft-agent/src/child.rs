//! The application as a child process: signals pass through, its exit status is ours.

use std::{ffi::OsString, io, process::ExitStatus};

use tokio::process::{Child, Command};
use weft_rt::process::{self, Signal};

/// Why the application could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start `{program}`: there is no such program; is it on PATH, or is the path right?")]
    NotFound { program: String },
    #[error("cannot start `{program}`: it is not executable; try `chmod +x`, or name its interpreter")]
    NotExecutable { program: String },
    #[error("cannot start `{program}`")]
    Other {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("there is nothing to run: put the program and its arguments after `--`")]
    Nothing,
}

/// A running application. It leads a process group of its own and dies with us.
pub struct Application {
    child: Child,
    pid: u32,
}

impl Application {
    /// Starts `argv` with our standard input and output.
    pub fn start(argv: &[OsString], env: &[(String, String)]) -> Result<Self, StartError> {
        let (program, args) = argv.split_first().ok_or(StartError::Nothing)?;
        let name = || program.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        // what let its sidecar join is not for the application to read
        command.args(args).envs(env.iter().map(|(k, v)| (k, v))).env_remove("WEFT_TOKEN");
        process::die_with_parent(&mut command, Signal::Kill);
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StartError::NotFound { program: name() },
            io::ErrorKind::PermissionDenied => StartError::NotExecutable { program: name() },
            _ => StartError::Other { program: name(), source },
        })?;
        let pid = child.id().unwrap_or_default();
        Ok(Self { child, pid })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// To the whole group, so that a shell's children hear it too.
    pub fn signal(&self, signal: Signal) {
        // gone already is as good as told
        let _ = process::send(signal, self.pid, true);
    }

    /// Waits for its end. Safe to drop and call again.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}

/// What a shell would report: the exit code, or 128 + the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<OsString> {
        words.iter().map(Into::into).collect()
    }

    #[tokio::test]
    async fn exit_status_and_signals_pass_through() {
        let mut app = Application::start(&argv(&["sh", "-c", "exit 7"]), &[]).unwrap();
        assert_eq!(exit_code(app.wait().await.unwrap()), 7);
        let mut app = Application::start(&argv(&["sleep", "60"]), &[]).unwrap();
        app.signal(Signal::Term);
        assert_eq!(exit_code(app.wait().await.unwrap()), 128 + 15);
    }

    #[tokio::test]
    async fn a_shells_children_hear_the_signal_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 60 & echo $! > {}; wait", file.path().display());
        let mut app = Application::start(&argv(&["sh", "-c", &script]), &[]).unwrap();
        let grandchild = loop {
            tokio::task::yield_now().await;
            if let Ok(pid) = std::fs::read_to_string(file.path()).unwrap().trim().parse::<u32>() {
                break pid;
            }
        };
        app.signal(Signal::Kill);
        assert_eq!(exit_code(app.wait().await.unwrap()), 128 + 9);
        // who inherits it may take a while to reap it; a zombie has ended
        let stat = || std::fs::read_to_string(format!("/proc/{grandchild}/stat"));
        while stat().is_ok_and(|s| !s.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn says_why_it_cannot_start() {
        let why = |words: &[&str]| Application::start(&argv(words), &[]).err().unwrap().to_string();
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _in = rt.enter();
        assert_eq!(
            why(&["/no/such/program"]),
            "cannot start `/no/such/program`: there is no such program; is it on PATH, or is the path right?"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(
            why(&[path]),
            format!("cannot start `{path}`: it is not executable; try `chmod +x`, or name its interpreter")
        );
        assert_eq!(why(&[]), "there is nothing to run: put the program and its arguments after `--`");
    }
}
