//! Opening a store file: made in one piece, verified before anything is written to it, refused with reasons.

use std::{
    any::Any,
    fs::{self, File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use ::redb::{Builder, Database, DatabaseError, StorageBackend, StorageError, backends::FileBackend};

use super::{
    disk::{Backends, Noted, Overlay, Trouble},
    tables::{Tables, failed},
};
use crate::error::{OpenError, ReadError};

/// **[format]** What this version writes, and the highest that it reads.
pub const FEATURE_LEVEL: u32 = 1;

/// redb's own default is a gigabyte; the views are in memory anyway.
const CACHE_BYTES: usize = 32 << 20;

/// A store file, by name and by how to open it.
pub(super) struct Place {
    pub name: PathBuf,
    pub backends: Backends,
    pub trouble: Arc<Trouble>,
}

// === impl Place ===

impl Place {
    pub(super) fn new(name: PathBuf, backends: Backends) -> Self {
        Self { name, backends, trouble: Arc::default() }
    }

    /// First over an overlay: a file that is refused stays byte for byte as it is. Only the second open, which trusts
    /// what the first has verified, repairs what a crash left.
    pub(super) fn open_verified(&self) -> Result<Database, OpenError> {
        let verify = || -> Result<(), OpenError> {
            let overlay = self.overlay()?;
            let db = builder().set_check_integrity_on_open(true).create_with_backend(overlay);
            let db = db.map_err(|e| self.refusal(e))?;
            self.make_store(&db)
        };
        // redb asserts what no file of its making can contain; this one may be of another's making.
        catch_unwind(AssertUnwindSafe(verify)).unwrap_or_else(|panic| Err(self.corrupt(panic_text(&*panic))))?;
        let db = self.open()?;
        self.make_store(&db)?;
        Ok(db)
    }

    /// As after a crash: redb finds the last commit that is whole.
    pub(super) fn open(&self) -> Result<Database, OpenError> {
        let backend = Noted::new((self.backends)().map_err(|e| self.io(e))?, self.trouble.clone());
        builder().create_with_backend(backend).map_err(|e| self.refusal(e))
    }

    /// For reading only: what it "writes" is lost.
    pub(super) fn open_overlaid(&self) -> Result<Database, OpenError> {
        builder().create_with_backend(self.overlay()?).map_err(|e| self.refusal(e))
    }

    fn overlay(&self) -> Result<Overlay, OpenError> {
        (self.backends)().and_then(Overlay::new).map_err(|e| self.io(e))
    }

    /// Gives a fresh file its tables, and checks the level of any other.
    fn make_store(&self, db: &Database) -> Result<(), OpenError> {
        let wrong = |e: ReadError| match e {
            ReadError::Io { source } => self.io(io::Error::new(source.kind(), source)),
            e => self.corrupt(e.to_string()),
        };
        let txn = db.begin_write().map_err(|e| wrong(failed(e)))?;
        let mut tables = Tables::open(&txn).map_err(wrong)?;
        match tables.level().map_err(wrong)? {
            Some(level) if level > FEATURE_LEVEL => {
                Err(OpenError::Newer { path: self.name.clone(), level, known: FEATURE_LEVEL })
            }
            Some(_) => Ok(()),
            None => {
                tables.set_level(FEATURE_LEVEL).map_err(wrong)?;
                drop(tables);
                txn.commit().map_err(|e| wrong(failed(e)))
            }
        }
    }

    fn refusal(&self, e: DatabaseError) -> OpenError {
        match e {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path: self.name.clone() },
            // So redb says "not a database", and a file that ends early reads.
            DatabaseError::Storage(StorageError::Io(e))
                if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                self.corrupt(e.to_string())
            }
            DatabaseError::Storage(StorageError::Io(e)) => self.io(e),
            e => self.corrupt(e.to_string()),
        }
    }

    fn corrupt(&self, what: String) -> OpenError {
        OpenError::Corrupt { path: self.name.clone(), what }
    }

    fn io(&self, source: io::Error) -> OpenError {
        OpenError::Io { path: self.name.clone(), source }
    }
}

/// The file at `path`, which is made first when there is none.
pub(super) fn file(path: &Path) -> Result<Place, OpenError> {
    let at = path.to_owned();
    let place = Place::new(at.clone(), Arc::new(move || backend(OpenOptions::new().read(true).write(true).open(&at)?)));
    if !path.try_exists().map_err(|e| place.io(e))? {
        create(path)?;
    }
    Ok(place)
}

/// redb initializes a file in steps, and refuses one that a crash left between them. So it is made beside its place, and
/// linked to it when it is whole; a link, unlike a rename, never replaces what another process made meanwhile.
fn create(path: &Path) -> Result<(), OpenError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let place = Place::new(path.to_owned(), {
        let beside = beside.clone();
        Arc::new(move || backend(private().open(&beside)?))
    });
    let made = (|| {
        let left =
            fs::remove_file(&beside).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
        left.map_err(|e| place.io(e))?;
        drop(place.open_verified()?);
        match fs::hard_link(&beside, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Some file systems have no links. There, two first starts at once are one too many.
            Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                fs::rename(&beside, path).and_then(|()| sync_directory(path)).map_err(|e| place.io(e))
            }
            linked => linked.and_then(|()| sync_directory(path)).map_err(|e| place.io(e)),
        }
    })();
    // What is left of it is only in the way.
    drop(fs::remove_file(&beside));
    made
}

/// Without it, a crash may forget that the file exists.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Secrets lie in it.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn backend(file: File) -> io::Result<Box<dyn StorageBackend>> {
    Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the file is inconsistent").to_owned()
}
