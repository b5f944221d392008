//! The real peers: which programs there are, where they end up, and under which variable a test or a bench finds each.

use crate::{run, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

mod fetch;
mod table;

/// Every variable by which tests find a peer begins so.
pub const PREFIX: &str = "WEFT_PEER";

/// A program that tests or benches start.
struct Program {
    /// `redis` is found as `WEFT_PEER_REDIS`, and as `<target dir>/peers/bin/redis`.
    name: &'static str,
    /// Below the unpacked tree; a program of the Python packages begins with `python/`.
    place: &'static str,
    /// What stands between the program and the arguments of its caller. `@` is the unpacked tree.
    flags: &'static str,
    version: &'static str,
}

/// MariaDB must be told where its parts are, and as root who it is.
const MARIADB_FLAGS: &str = "--no-defaults --basedir=\"@/usr\" --user=\"$(id -un)\"";

const PROGRAMS: &[Program] = &[
    Program { name: "envoy", place: "python/envoy/_bin/envoy", flags: "", version: "--version" },
    Program { name: "haproxy", place: "usr/sbin/haproxy", flags: "", version: "-v" },
    Program { name: "nginx", place: "usr/sbin/nginx", flags: "", version: "-v" },
    Program { name: "redis", place: "usr/bin/redis-server", flags: "", version: "--version" },
    Program { name: "redis-cli", place: "usr/bin/redis-cli", flags: "", version: "--version" },
    Program { name: "mariadbd", place: "usr/sbin/mariadbd", flags: MARIADB_FLAGS, version: "--version" },
    Program { name: "mariadb", place: "usr/bin/mariadb", flags: "--no-defaults", version: "--version" },
    Program {
        name: "mariadb-install",
        place: "usr/bin/mariadb-install-db",
        flags: "--no-defaults --basedir=\"@/usr\" --user=\"$(id -un)\" --auth-root-authentication-method=normal --skip-test-db --force",
        version: "",
    },
    Program { name: "wrk", place: "usr/bin/wrk", flags: "", version: "" },
    Program { name: "h2load", place: "usr/bin/h2load", flags: "", version: "--version" },
    // The machine's interpreter, with the Python packages on its path.
    Program {
        name: "python",
        place: "python",
        flags: "",
        version: "-c 'import grpc; print(\"grpcio\", grpc.__version__)'",
    },
];

impl Program {
    fn variable(&self) -> String {
        format!("{PREFIX}_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

pub type Found = Vec<(String, PathBuf)>;

pub fn run(args: &[String]) -> Result<()> {
    let only_env = match args {
        [] => false,
        [flag] if flag == "--env" => true,
        _ => bail!("peers takes nothing or --env"),
    };
    let folder = folder(&Workspace::load()?);
    let found = all(&folder)?;
    for (name, path) in &found {
        if only_env {
            println!("export {name}={}", path.display());
        } else {
            println!("{name:<28} {:<22} {}", fetch::version(&folder, path), path.display());
        }
    }
    Ok(())
}

/// For tests: outside CI a peer that cannot be had is a visible skip, in CI a failure.
pub fn for_tests() -> Result<Found> {
    match Workspace::load().and_then(|w| all(&folder(&w))) {
        Ok(found) => Ok(found),
        Err(error) if run::in_ci() => Err(error.context("the peers cannot be fetched, and CI skips no test")),
        Err(error) => {
            eprintln!("SKIPPING what needs real peers (Envoy, Redis, MariaDB, …): {error:#}");
            Ok(Vec::new())
        }
    }
}

/// Fetches what is missing. A variable that is already set wins over ours.
pub fn all(folder: &Path) -> Result<Found> {
    fetch::fetch(folder).context("fetching the peers")?;
    Ok(PROGRAMS
        .iter()
        .map(|program| {
            let variable = program.variable();
            let path = std::env::var_os(&variable).map_or_else(|| folder.join("bin").join(program.name), PathBuf::from);
            (variable, path)
        })
        .collect())
}

pub fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("peers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_after_programs() {
        let names: Vec<String> = PROGRAMS.iter().map(Program::variable).collect();
        for name in [
            "WEFT_PEER_ENVOY",
            "WEFT_PEER_MARIADBD",
            "WEFT_PEER_MARIADB_INSTALL",
            "WEFT_PEER_PYTHON",
            "WEFT_PEER_H2LOAD",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
    }
}
