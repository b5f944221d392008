//! `bench peers`: builds what is measured and hands over to `bench/peers.py`. `bench counts`: instructions per decision.

mod counts;

use crate::{peers, run, workspace::Workspace};
use anyhow::{Result, bail};

/// Variables of the harness, and the peers that they name.
const BINARIES: &[(&str, &str)] = &[
    ("ENVOY_BIN", "ENVOY"),
    ("HAPROXY_BIN", "HAPROXY"),
    ("NGINX_BIN", "NGINX"),
    ("WRK_BIN", "WRK"),
    ("H2LOAD_BIN", "H2LOAD"),
];

pub fn run(args: &[String]) -> Result<()> {
    match args.split_first() {
        Some((kind, rest)) if kind == "peers" => side_by_side(rest),
        Some((kind, rest)) if kind == "counts" => counts::run(rest),
        _ => bail!(
            "bench what? `cargo xtask bench peers [-s SCENARIO,…] [-p PEER,…] [-r ROUNDS] [-d SECS]`, `bench peers --list`, \
             `cargo xtask bench counts [--accept]`"
        ),
    }
}

fn side_by_side(args: &[String]) -> Result<()> {
    let workspace = Workspace::load()?;
    let found = peers::all(&peers::folder(&workspace))?;
    let path = |name: &str| found.iter().find(|(n, _)| *n == format!("{}_{name}", peers::PREFIX)).map(|(_, path)| path);
    let out = workspace.target.join("bench");
    run::run(
        run::cargo(&workspace.root.join("bench/meshbench"))
            .args(["build", "--quiet", "--release", "--locked"])
            .env("CARGO_TARGET_DIR", &out),
    )?;
    // Measured is what is shipped: the release profile, nothing else.
    run::run(run::cargo(&workspace.root).args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "weft",
        "-p",
        "weft-proxy",
    ]))?;
    let mut python = run::command("python3", &workspace.root);
    python.arg("bench/peers.py").args(args).env("PYTHONDONTWRITEBYTECODE", "1");
    for (variable, name) in BINARIES {
        if let Some(path) = path(name) {
            python.env(variable, path);
        }
    }
    let release = workspace.target.join("release");
    python.env("MESHBENCH_BIN", out.join("release/meshbench"));
    python.env("WEFT_BIN", release.join("weft")).env("WEFT_PROXY_BIN", release.join("weft-proxy"));
    run::run(&mut python)
}
