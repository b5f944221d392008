//! Where things of this user are: the running `weft dev`, the default data directory.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use serde::{Deserialize, Serialize};

pub const DEFAULT_HTTP: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8500));

/// Where a server keeps its state unless told otherwise.
pub static DEFAULT_DATA: LazyLock<&'static Path> = LazyLock::new(|| Path::new("./.weft"));

/// What `weft dev` tells the other commands of the same user, in `<directory>/dev.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevFile {
    pub http: SocketAddr,
    pub mesh: SocketAddr,
    /// Joining here needs no token: the peer credentials of the socket are proof enough.
    pub socket: PathBuf,
    pub admin_token: PathBuf,
    pub pid: u32,
}

impl DevFile {
    /// Whoever reads it meanwhile sees all of it or nothing.
    pub fn write(&self, directory: &Path) -> std::io::Result<()> {
        let new = directory.join("dev.json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, directory.join("dev.json"))
    }
}

/// A path that means the same in another directory.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The directory of this user's `weft dev`: `$XDG_RUNTIME_DIR/weft`, else `/tmp/weft-<uid>`.
pub fn dev_directory() -> PathBuf {
    let runtime = weft_rt::env::var("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_dir());
    runtime
        .map_or_else(|| std::env::temp_dir().join(format!("weft-{}", weft_rt::process::user_id())), |p| p.join("weft"))
}

/// The running `weft dev` of this user. A file whose process is gone is nobody's.
pub fn dev() -> Option<DevFile> {
    read(&dev_directory().join("dev.json")).filter(|d| Path::new(&format!("/proc/{}", d.pid)).exists())
}

fn read(path: &Path) -> Option<DevFile> {
    use std::os::unix::fs::MetadataExt as _;
    // somebody else's file in a shared /tmp would name somebody else's server
    let mine = std::fs::metadata(path).is_ok_and(|m| m.uid() == weft_rt::process::user_id());
    mine.then(|| std::fs::read(path).ok()).flatten().and_then(|b| serde_json::from_slice(&b).ok())
}
