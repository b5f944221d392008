//! A directory that one process at a time may have, made for it and removed with all that is in it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::LOOK;

/// The file that makes a directory ours to remove; locked by who has it.
const MARKER: &str = ".weft-temporary";
/// How long somebody who is leaving may take: as long as a janitor gives to what it ends, and some more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Held for as long as the directory is needed. Only [`Claim::remove`] removes it; a claim whose process was killed is
/// taken over by the next.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// The lock goes with the file, and with the process.
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("{} belongs to a `weft dev` that is just starting or ending; try again in a moment", .0.display())]
    Taken(PathBuf),
    #[error("{} exists and is not ours: {why}; move it away", .path.display())]
    NotOurs { path: PathBuf, why: &'static str },
    #[error("cannot make {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Claim {
    /// Makes the directory, for this user alone. Waits for one who is leaving, and removes what a dead one left.
    pub fn new(path: &Path) -> Result<Self, ClaimError> {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(lock) = attempt(path)? {
                return Ok(Self { path: path.to_owned(), _lock: lock });
            }
            if waited >= PATIENCE {
                return Err(ClaimError::Taken(path.to_owned()));
            }
            std::thread::sleep(LOOK);
            waited += LOOK;
        }
    }

    /// Removes the directory: the marker last, so that what is half removed is still known as ours.
    pub fn remove(self) {
        // nobody is left to tell; the next claim removes what could not be removed now
        let _ = clear(&self.path);
        let _ = fs::remove_file(self.path.join(MARKER));
        // fails when somebody else has begun to use it: then it is theirs
        let _ = fs::remove_dir(&self.path);
    }
}

/// `None`: somebody has it, or removed it while we looked.
fn attempt(path: &Path) -> Result<Option<File>, ClaimError> {
    let failed = |source| ClaimError::Io { path: path.to_owned(), source };
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed)?,
    }
    let not_ours = |why| Err(ClaimError::NotOurs { path: path.to_owned(), why });
    // in a shared /tmp it may be anybody's, and a link may lead anywhere
    match fs::symlink_metadata(path) {
        Ok(m) if !m.is_dir() => return not_ours("it is no directory"),
        Ok(m) if m.uid() != weft_rt::process::user_id() => return not_ours("it is another user's"),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let marker = path.join(MARKER);
    if !marker.exists() {
        match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            // unless somebody marked it just now
            Ok(true) if !marker.exists() => return not_ours("it holds other things"),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
    }
    let lock = match File::options().create(true).truncate(false).write(true).open(&marker) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
    }
    // its last owner may have removed the file between our opening and our locking it
    let same = |m: fs::Metadata| lock.metadata().is_ok_and(|l| (l.dev(), l.ino()) == (m.dev(), m.ino()));
    if !fs::metadata(&marker).is_ok_and(same) {
        return Ok(None);
    }
    clear(path).map_err(failed)?;
    Ok(Some(lock))
}

/// Everything but the marker.
fn clear(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_waits_for_who_is_leaving_and_keeps_what_it_then_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/weft");
        let first = Claim::new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::write(path.join("dev.json"), b"1").unwrap();
        assert!(attempt(&path).unwrap().is_none(), "somebody has it");
        let next = {
            let path = path.clone();
            std::thread::spawn(move || Claim::new(&path).unwrap())
        };
        first.remove();
        let next = next.join().unwrap();
        assert!(!path.join("dev.json").exists() && path.join(MARKER).exists());
        next.remove();
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_one_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft");
        let killed = Claim::new(&path).unwrap();
        fs::create_dir_all(path.join("data/deep")).unwrap();
        fs::write(path.join("dev.json"), b"old").unwrap();
        drop(killed); // its lock goes, its files stay
        let next = Claim::new(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the marker alone");
        next.remove();

        // an empty directory is taken, one with somebody's things is not
        fs::create_dir(&path).unwrap();
        Claim::new(&path).unwrap().remove();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("letter"), b"dear").unwrap();
        assert!(matches!(Claim::new(&path), Err(ClaimError::NotOurs { .. })));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Claim::new(&link), Err(ClaimError::NotOurs { .. })));
        assert!(path.join("letter").exists());
    }
}
