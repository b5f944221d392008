//! The first start of a mesh, and every later one. **[format]**
//!
//! One transaction commits the trust domain, the authorities (keys sealed) and the admin token's hash; that they are
//! absent is expected, so that of several initializers one wins. The key-encryption key and the admin token are written
//! before it: a crash in between leaves files that the next first start takes over, never a store without its key.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use weft_ca::{Kek, SealError, SlotError, slots};
use weft_model::{Digest, TrustDomain, Wall};
use weft_registry::value;
use weft_store::{CommitError, Expect, Format, ReadError, Store, Txn, TxnId};

use crate::keys::{self, AdminRecord, MeshRecord};

pub const KEK_FILE: &str = "kek";
pub const TOKEN_FILE: &str = "admin.token";
/// The mesh's authorities, for clients outside it: `kubectl --certificate-authority`.
pub const BUNDLE_FILE: &str = "ca.pem";

/// What a start found or made.
#[derive(Debug)]
pub struct Started {
    pub kek: Kek,
    /// Whether this was the first one.
    pub first: bool,
}

/// Why a server cannot start on its data.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the data directory {} cannot be used; check that it exists and belongs to this user", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be {what}", path.display())]
    File {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the key-encryption key {} is missing, but the store has keys sealed with it; restore that file from a backup",
        .0.display()
    )]
    NoKek(PathBuf),
    #[error(
        "the store in {} is empty, but {KEK_FILE} and {BUNDLE_FILE} there are of a mesh that has been; restore the store from a backup, or move both files away to begin a new mesh",
        .0.display()
    )]
    Lost(PathBuf),
    #[error("the key-encryption key {} cannot be used", path.display())]
    Kek {
        path: PathBuf,
        #[source]
        source: SealError,
    },
    #[error("no key-encryption key could be made")]
    NewKek(#[source] SealError),
    #[error("no randomness could be had")]
    Random,
    #[error("the mesh's authorities could not be made")]
    Authorities(#[source] SlotError),
    #[error("the store cannot be read")]
    Read(#[source] ReadError),
    #[error("the first start could not be committed")]
    Commit(#[source] CommitError),
}

/// Initializes an empty store, or opens one that was.
pub fn start(store: &dyn Store, data: &Path, now: Wall, txn_id: TxnId) -> Result<Started, StartError> {
    make_directory(data)?;
    let kek_path = data.join(KEK_FILE);
    if store.get(keys::MESH).map_err(StartError::Read)?.is_some() {
        return Ok(Started { kek: read_kek(&kek_path)?, first: false });
    }
    let kek = match read_kek(&kek_path) {
        Ok(kek) => kek,
        Err(StartError::NoKek(_)) => {
            let kek = Kek::generate().map_err(StartError::NewKek)?;
            write_secret(&kek_path, kek.as_bytes())?;
            kek
        }
        Err(e) => return Err(e),
    };
    let token = admin_token()?;
    write_secret(&data.join(TOKEN_FILE), token.as_bytes())?;
    let trust_domain = random_trust_domain()?;
    let first = slots::first_start(&trust_domain, &kek, now).map_err(StartError::Authorities)?;
    let mesh = MeshRecord { trust_domain, created: now };
    let admin = AdminRecord { sha256: hex_sha256(token.as_bytes()) };
    let txn = Txn::new(txn_id, "weft", now, "first start")
        .expect(Expect::absent(keys::MESH))
        .put(keys::MESH, value::encode(&mesh))
        .put(keys::ADMIN, value::encode(&admin))
        .put(keys::ROOTS, Format::Raw.wrap(&first.roots.encode()))
        .put(keys::SIGNING, Format::Raw.wrap(&first.signing.encode()));
    match store.commit(txn) {
        Ok(_) => Ok(Started { kek, first: true }),
        // never blindly again: its id tells whether it committed
        Err(e @ CommitError::Unknown { .. }) => match store.lookup(txn_id).map_err(StartError::Read)? {
            Some(_) => Ok(Started { kek, first: true }),
            None => Err(StartError::Commit(e)),
        },
        Err(e) => Err(StartError::Commit(e)),
    }
}

/// Of a store that outlives the process: one that is empty where a mesh was is a lost one, never a first start. The
/// bundle stands for that there was one: it is written after the first start was committed, the key before.
pub fn refuse_lost(store: &dyn Store, data: &Path) -> Result<(), StartError> {
    let empty = store.get(keys::MESH).map_err(StartError::Read)?.is_none();
    if empty && data.join(KEK_FILE).exists() && data.join(BUNDLE_FILE).exists() {
        return Err(StartError::Lost(data.into()));
    }
    Ok(())
}

/// For clients outside the mesh. Nothing secret.
pub fn write_bundle(data: &Path, pem: &str) -> Result<(), StartError> {
    write_secret(&data.join(BUNDLE_FILE), pem.as_bytes())
}

fn read_kek(path: &Path) -> Result<Kek, StartError> {
    match fs::read(path) {
        Ok(bytes) => Kek::from_bytes(&bytes).map_err(|source| StartError::Kek { path: path.into(), source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StartError::NoKek(path.into())),
        Err(source) => Err(StartError::File { path: path.into(), what: "read", source }),
    }
}

/// `weft-` and 32 random bytes in hex.
fn admin_token() -> Result<String, StartError> {
    Ok(format!("weft-{}", hex(&random::<32>()?)))
}

/// Never a shared constant: two meshes must not accept each other by accident.
fn random_trust_domain() -> Result<TrustDomain, StartError> {
    let name = format!("{}.weft", hex(&random::<8>()?));
    TrustDomain::parse(&name).map_err(|_| StartError::Random)
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    weft_identity::provider().secure_random.fill(&mut bytes).map_err(|_| StartError::Random)?;
    Ok(bytes)
}

pub(crate) fn make_directory(data: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(data);
    made.map_err(|source| StartError::Directory { path: data.into(), source })
}

/// Whole or not at all, and the owner's alone.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("new");
    let write = || {
        // a leftover of a crash may have other permissions
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| StartError::File { path: path.into(), what: "written", source })
}

pub fn hex_sha256(bytes: &[u8]) -> String {
    hex(Digest::of(bytes).as_bytes())
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use weft_store::Memory;

    use super::*;

    const NOW: Wall = Wall::secs(1_800_000_000);

    #[test]
    fn sec_01_the_first_start_commits_once_and_later_ones_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Memory::new();
        let first = start(&store, dir.path(), NOW, TxnId(1)).unwrap();
        assert!(first.first);
        assert_eq!(store.head().unwrap().revision.n, 1, "one transaction");
        for file in [KEK_FILE, TOKEN_FILE] {
            let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let token = fs::read(dir.path().join(TOKEN_FILE)).unwrap();
        let second = start(&store, dir.path(), NOW, TxnId(2)).unwrap();
        assert!(!second.first);
        assert_eq!(second.kek.as_bytes(), first.kek.as_bytes());
        assert_eq!(store.head().unwrap().revision.n, 1);
        assert_eq!(fs::read(dir.path().join(TOKEN_FILE)).unwrap(), token);
        let everything = store.range("", None).unwrap();
        let holds =
            |needle: &[u8]| everything.items.iter().any(|(_, v)| v.value.windows(needle.len()).any(|w| w == needle));
        assert!(!holds(&token) && !holds(first.kek.as_bytes()), "a secret is in the store");
        fs::remove_file(dir.path().join(KEK_FILE)).unwrap();
        let error = start(&store, dir.path(), NOW, TxnId(3)).unwrap_err().to_string();
        assert!(error.contains("is missing, but the store has keys sealed with it"), "{error}");
    }

    #[test]
    fn two_meshes_have_two_trust_domains() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let domains = dirs.map(|dir| {
            let store = Memory::new();
            start(&store, dir.path(), NOW, TxnId(1)).unwrap();
            let mesh = store.get(keys::MESH).unwrap().unwrap();
            value::decode::<MeshRecord>(keys::MESH, &mesh.value).unwrap().trust_domain
        });
        assert_ne!(domains[0], domains[1]);
    }

    #[test]
    fn of_two_initializers_one_wins() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Memory::new();
        start(&store, a.path(), NOW, TxnId(1)).unwrap();
        // the other one found nothing and planned its own mesh
        let txn = Txn::new(TxnId(2), "weft", NOW, "first start")
            .expect(Expect::absent(keys::MESH))
            .put(keys::MESH, Format::Raw.wrap(b"x"));
        assert!(store.commit(txn).unwrap_err().is_conflict());
        assert!(matches!(start(&store, b.path(), NOW, TxnId(3)), Err(StartError::NoKek(_))));
    }
}
