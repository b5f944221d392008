//! What a member of the shop says, kept in a file that does not grow without bound.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Longer than this it is cut …
const MOST: u64 = 256 * 1024;
/// … to its last so many bytes.
const KEPT: usize = 64 * 1024;

#[derive(Debug)]
pub struct MemberLog {
    path: PathBuf,
}

impl MemberLog {
    /// The file, and the end of it that the member writes to.
    pub fn create(directory: &Path, name: &str) -> io::Result<(Self, File)> {
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("{name}.log"));
        // appending, so that the member goes on at the new end after a cut
        let file = File::options().create(true).append(true).mode(0o600).open(&path)?;
        Ok((Self { path }, file))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts it when it has grown too long. What is written in this very moment may be lost.
    pub fn bound(&self) -> io::Result<()> {
        if fs::metadata(&self.path)?.len() <= MOST {
            return Ok(());
        }
        let all = fs::read(&self.path)?;
        let mut file = File::options().append(true).open(&self.path)?;
        file.set_len(0)?;
        file.write_all(tail(&all, KEPT))
    }

    /// Its last lines.
    pub fn last(&self, lines: usize) -> Vec<String> {
        let all = fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(tail(&all, KEPT)).into_owned();
        let lines_before = text.lines().count().saturating_sub(lines);
        text.lines().skip(lines_before).map(str::to_owned).collect()
    }
}

/// The last `most` bytes, from the beginning of a line if there is one.
fn tail(all: &[u8], most: usize) -> &[u8] {
    let Some((_, last)) = all.len().checked_sub(most).filter(|n| *n > 0).and_then(|at| all.split_at_checked(at)) else {
        return all;
    };
    let line = last.iter().position(|b| *b == b'\n').and_then(|at| last.get(at + 1..));
    line.filter(|l| !l.is_empty()).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_begins_with_a_line() {
        assert_eq!(tail(b"one\ntwo\nthree\n", 100), b"one\ntwo\nthree\n");
        assert_eq!(tail(b"one\ntwo\nthree\n", 8), b"three\n");
        assert_eq!(tail(b"endless", 3), b"ess");
        assert_eq!(tail(b"", 3), b"");
    }

    #[test]
    fn it_is_cut_under_its_writer_who_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (log, mut member) = MemberLog::create(&dir.path().join("log"), "web").unwrap();
        for n in 0..40_000 {
            writeln!(member, "line {n:05}").unwrap();
        }
        log.bound().unwrap();
        let length = fs::metadata(log.path()).unwrap().len();
        assert!(length <= KEPT as u64, "{length}");
        writeln!(member, "and on").unwrap();
        assert_eq!(log.last(2), ["line 39999", "and on"]);
        log.bound().unwrap();
        assert_eq!(fs::metadata(log.path()).unwrap().len(), length + 7, "short enough: left alone");
    }
}
