//! What survives a restart of the proxy when the control plane is away: the identity, its key sealed, and the last
//! configuration. Everything is written beside its final name and renamed, with mode 0600.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use weft_identity::{Bundle, Revocations, Svid, Trust, seal::Kek};
use weft_model::Wall;

use crate::tls::Credentials;

/// Binds a sealed key to its purpose.
const SEALED: &str = "key of the workload's SVID";

/// A state directory.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    kek: Kek,
}

#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("state directory {}: cannot {what} `{file}`; is the disk full, or the directory another user's?", directory.display())]
    File {
        directory: PathBuf,
        file: &'static str,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("state directory {}: `kek` is not a key of ours; remove the directory to join anew", directory.display())]
    Kek { directory: PathBuf },
    #[error("the workload's key cannot be sealed")]
    Seal,
}

impl Kept {
    /// Opens the directory, or makes it with a new key-encryption key.
    pub fn open(directory: &Path) -> Result<Self, KeptError> {
        let directory = directory.to_owned();
        let file = |what, source| KeptError::File { directory: directory.clone(), file: "kek", what, source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|e| file("make", e))?;
        let kek = match fs::read(directory.join("kek")) {
            Ok(bytes) => Kek::from_bytes(&bytes).map_err(|_| KeptError::Kek { directory: directory.clone() })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let kek = Kek::generate().map_err(|_| KeptError::Seal)?;
                write(&directory, "kek", kek.as_bytes()).map_err(|e| file("write", e))?;
                kek
            }
            Err(e) => return Err(file("read", e)),
        };
        Ok(Self { directory, kek })
    }

    pub fn keep_credentials(&self, c: &Credentials) -> Result<(), KeptError> {
        let key = self.kek.seal(SEALED, c.svid.key().secret_der()).map_err(|_| KeptError::Seal)?;
        self.keep("bundle.pem", c.trust.bundle.to_pem().as_bytes())?;
        self.keep("svid.key", &key)?;
        // the chain comes last: a pair that does not fit is no SVID, and is joined for anew
        self.keep("svid.pem", c.svid.chain_pem().as_bytes())
    }

    /// What was kept, if it is whole and not expired.
    pub fn credentials(&self, now: Wall) -> Option<Credentials> {
        let read = |file| fs::read(self.directory.join(file)).ok();
        let key = self.kek.open(SEALED, &read("svid.key")?).ok()?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&read("svid.pem")?).collect::<Result<_, _>>().ok()?;
        let svid = Svid::new(chain, PrivateKeyDer::try_from(key).ok()?).ok()?;
        let bundle = Bundle::from_pem(svid.id().trust_domain(), &read("bundle.pem")?).ok()?;
        (now < svid.not_after()).then(|| Credentials { svid, trust: Trust::new(bundle, Revocations::default()) })
    }

    pub fn keep_configuration(&self, encoded: &[u8]) -> Result<(), KeptError> {
        self.keep("configuration", encoded)
    }

    pub fn configuration(&self) -> Option<Vec<u8>> {
        fs::read(self.directory.join("configuration")).ok()
    }

    fn keep(&self, file: &'static str, bytes: &[u8]) -> Result<(), KeptError> {
        let error = |source| KeptError::File { directory: self.directory.clone(), file, what: "write", source };
        write(&self.directory, file, bytes).map_err(error)
    }
}

fn write(directory: &Path, file: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = directory.join(format!(".{file}.new"));
    let mut f = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    f.write_all(bytes)?;
    f.sync_all()?;
    fs::rename(beside, directory.join(file))
}
