//! Getting the peers: apt-get and dpkg for Debian's, pip for Python's, all below one folder, without root. Done once per
//! content of the table; a lock keeps two runs apart.

use super::{PROGRAMS, Program, table::Pin, table::TEXT, table::Table};
use crate::run;
use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The tree and the wrappers depend on this code as well as on the table.
const SELF: &str = concat!(include_str!("fetch.rs"), include_str!("mod.rs"));

pub fn fetch(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let lock = fs::File::create(folder.join("lock"))?;
    lock.lock().context("cannot lock the peers folder")?;
    let wanted = hex(&Sha256::digest(format!("{TEXT}{SELF}{}", folder.display())));
    let stamp = folder.join("stamp");
    if fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        return Ok(());
    }
    eprintln!("fetching the peers into {} (once; about 60 MB)", folder.display());
    let table = Table::parse(TEXT)?;
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    for deb in debs(folder, &table)? {
        unpack(&deb, &root)?;
    }
    python(folder, &table)?;
    let interpreter = run::output(run::command("python3", folder).args(["-c", "import sys; print(sys.executable)"]))?;
    fs::create_dir_all(folder.join("bin"))?;
    for program in PROGRAMS {
        wrap(folder, program, interpreter.trim())?;
    }
    libraries(folder, &table)?;
    for program in PROGRAMS.iter().filter(|p| !p.version.is_empty()) {
        let path = folder.join("bin").join(program.name);
        run::output(run::command("sh", folder).arg("-c").arg(format!("'{}' {}", path.display(), program.version)))
            .with_context(|| format!("{} was fetched but does not start", program.name))?;
    }
    fs::write(stamp, wanted)?;
    Ok(())
}

/// The version that a fetched program says of itself.
pub fn version(folder: &Path, path: &Path) -> String {
    let program = PROGRAMS.iter().find(|p| path.ends_with(p.name)).filter(|p| !p.version.is_empty());
    let Some(program) = program else { return String::new() };
    let command = format!("'{}' {} 2>&1", path.display(), program.version);
    let text = run::output(run::command("sh", folder).arg("-c").arg(command)).unwrap_or_default();
    let number = |word: &str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    text.split(|c: char| c.is_whitespace() || matches!(c, '/' | '=' | ','))
        .find(|w| number(w))
        .unwrap_or_default()
        .to_owned()
}

// === Debian ===

fn debs(folder: &Path, table: &Table) -> Result<Vec<PathBuf>> {
    let store = folder.join("debs");
    fs::create_dir_all(&store)?;
    let missing: Vec<(&String, &Pin)> =
        table.debian.iter().filter(|(name, pin)| find(&store, name).is_none_or(|deb| !matches(&deb, pin))).collect();
    if !missing.is_empty() {
        for (name, _) in &missing {
            find(&store, name).map(fs::remove_file).transpose()?;
        }
        let pinned: Vec<String> = missing.iter().map(|(name, pin)| format!("{name}={}", pin.version)).collect();
        let apt = Apt::new(folder);
        if !apt.download(&store, &pinned, false) {
            apt.update()?;
            if !apt.download(&store, &pinned, true) {
                newer(&apt, &store, &missing)?;
            }
        }
    }
    table
        .debian
        .iter()
        .map(|(name, pin)| {
            let deb = find(&store, name).with_context(|| format!("apt-get brought no {name}"))?;
            if deb_version(&deb) == pin.version && !matches(&deb, pin) {
                bail!("{} is not the {name} {} of the table: its checksum differs", deb.display(), pin.version);
            }
            Ok(deb)
        })
        .collect()
}

/// Where a pinned version has left the archive, what replaced it.
fn newer(apt: &Apt, store: &Path, missing: &[(&String, &Pin)]) -> Result<()> {
    for (name, pin) in missing.iter().filter(|(name, _)| find(store, name).is_none()) {
        if apt.download(store, &[format!("{name}={}", pin.version)], true) {
            continue;
        }
        if !apt.download(store, &[(*name).clone()], true) {
            bail!("apt-get has no {name} {}, nor any other version", pin.version);
        }
        let got = find(store, name).map(|d| deb_version(&d)).unwrap_or_default();
        eprintln!("NOTE: {name} {} has left the archive: using {got}; bring xtask/peers.toml up to date", pin.version);
    }
    Ok(())
}

/// apt-get with the machine's sources, and with lists and caches of our own when the machine's are empty or old.
struct Apt {
    own: PathBuf,
}

impl Apt {
    fn new(folder: &Path) -> Self {
        Self { own: folder.join("apt") }
    }

    fn command(&self, dir: &Path, own: bool) -> Command {
        let mut command = run::command("apt-get", dir);
        command.args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]);
        if own {
            for (key, place) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
                command.arg("-o").arg(format!("{key}={}", self.own.join(place).display()));
            }
        }
        command
    }

    fn update(&self) -> Result<()> {
        for place in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.own.join(place))?;
        }
        run::output(self.command(&self.own, true).arg("update")).context("apt-get update, into a folder of our own")?;
        Ok(())
    }

    fn download(&self, into: &Path, packages: &[String], own: bool) -> bool {
        run::succeeds(self.command(into, own).arg("download").args(packages))
    }
}

/// `name_version_arch.deb` in `store`.
fn find(store: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(store).ok()?;
    let begins = format!("{name}_");
    entries
        .flatten()
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|f| f.to_string_lossy().starts_with(&begins)))
}

fn deb_version(deb: &Path) -> String {
    let name = deb.file_name().unwrap_or_default().to_string_lossy().replace("%3a", ":");
    name.split('_').nth(1).unwrap_or_default().to_owned()
}

fn matches(file: &Path, pin: &Pin) -> bool {
    fs::read(file).is_ok_and(|bytes| pin.sha256.contains(&hex(&Sha256::digest(bytes))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unpack(deb: &Path, root: &Path) -> Result<()> {
    run::output(run::command("dpkg", root).arg("-x").arg(deb).arg(root)).map(drop)
}

/// Fetches the libraries that the loader misses, until it misses none.
fn libraries(folder: &Path, table: &Table) -> Result<()> {
    let apt = Apt::new(folder);
    let store = folder.join("libs");
    fs::create_dir_all(&store)?;
    let mut tried = BTreeSet::new();
    loop {
        let missing = not_found(folder)?;
        let Some(library) = missing.first() else { return Ok(()) };
        let package = table.libraries.get(library).filter(|p| tried.insert((*p).clone()));
        let Some(package) = package else {
            bail!(
                "a peer needs {}: install the package that brings it",
                missing.into_iter().collect::<Vec<_>>().join(", ")
            );
        };
        if !apt.download(&store, std::slice::from_ref(package), false) {
            apt.update()?;
            if !apt.download(&store, std::slice::from_ref(package), true) {
                bail!("a peer needs {library}, and apt-get has no {package}");
            }
        }
        let deb = find(&store, package).with_context(|| format!("apt-get brought no {package}"))?;
        unpack(&deb, &folder.join("root"))?;
    }
}

fn not_found(folder: &Path) -> Result<BTreeSet<String>> {
    let mut missing = BTreeSet::new();
    for program in PROGRAMS.iter().filter(|p| p.place.starts_with("usr/") && p.name != "mariadb-install") {
        let mut ldd = run::command("ldd", folder);
        ldd.env("LD_LIBRARY_PATH", library_path(folder)?).arg(folder.join("root").join(program.place));
        let text = run::output(&mut ldd).with_context(|| format!("{} is not what was expected", program.place))?;
        missing.extend(
            text.lines()
                .filter(|l| l.contains("not found"))
                .filter_map(|l| l.split_whitespace().next())
                .map(str::to_owned),
        );
    }
    Ok(missing)
}

/// Debian keeps libraries below the machine's triplet, some at the root of the tree.
fn library_path(folder: &Path) -> Result<String> {
    let triplet = run::output(run::command("dpkg-architecture", folder).arg("-qDEB_HOST_MULTIARCH"))
        .map_or_else(|_| format!("{}-linux-gnu", std::env::consts::ARCH), |t| t.trim().to_owned());
    let root = folder.join("root");
    Ok(format!("{0}/usr/lib/{triplet}:{0}/lib/{triplet}", root.display()))
}

// === Python ===

fn python(folder: &Path, table: &Table) -> Result<()> {
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, table.requirements())?;
    let target = folder.join("python");
    let _ = fs::remove_dir_all(&target);
    run::output(
        run::command("python3", folder)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--no-compile",
            ])
            .args(["--require-hashes", "--target"])
            .arg(&target)
            .arg("-r")
            .arg(&requirements),
    )
    .context("pip (it needs python3 with pip)")
    .map(drop)
}

// === Wrappers ===

/// A shell script that execs the program, so that the process id is the program's own.
fn wrap(folder: &Path, program: &Program, interpreter: &str) -> Result<()> {
    let root = folder.join("root").display().to_string();
    let flags = program.flags.replace('@', &root);
    let (setting, real) = match program.place {
        "python" => (format!("PYTHONPATH='{}'", folder.join("python").display()), interpreter.to_owned()),
        place if place.starts_with("python/") => (String::new(), folder.join(place).display().to_string()),
        place => (format!("LD_LIBRARY_PATH='{}'", library_path(folder)?), format!("{root}/{place}")),
    };
    let export = if setting.is_empty() { String::new() } else { format!("export {setting}\n") };
    let path = folder.join("bin").join(program.name);
    fs::write(&path, format!("#!/bin/sh\n{export}exec '{real}' {flags} \"$@\"\n"))?;
    executable(&path)?;
    if program.place.starts_with("python/") {
        executable(Path::new(&real))?;
    }
    Ok(())
}

fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("{} is not there", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_file_names() {
        assert_eq!(deb_version(Path::new("/x/libev4_1%3a4.33-1_amd64.deb")), "1:4.33-1");
    }

    #[test]
    fn other_bytes_do_not_match_a_pin() {
        let file = std::env::temp_dir().join(format!("xtask-pin-{}", std::process::id()));
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        assert!(matches(&file, &Pin { version: "1".into(), sha256: vec![abc] }));
        fs::write(&file, "abd").unwrap();
        let other = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        assert!(!matches(&file, &Pin { version: "1".into(), sha256: vec![other] }));
        fs::remove_file(file).unwrap();
    }
}
