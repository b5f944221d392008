//! `test` and `sim`: nextest where it is there, `cargo test` where it is not.

use crate::{peers, run, workspace};
use anyhow::{Result, bail};
use std::{path::Path, process::Command};

/// Read by the simulation tests: `N` seeds, `A..B`, or `=S`, the one seed to replay.
const SEEDS: &str = "WEFT_SIM_SEEDS";
/// The whole mesh takes some seconds for each.
const MANY_SEEDS: &str = "200";

/// Simulation tests have one of these as a word of their name or module.
const SIMULATIONS: &str = r"test(/(^|::|_)(sim|simulation|seeds?|seeded)(_|::|$)/)";

pub fn test(args: &[String]) -> Result<()> {
    let root = workspace::root();
    let (ours, rest) = args.split_at(args.iter().position(|a| a == "--").unwrap_or(args.len()));
    if let Some(flag) = ours.iter().find(|a| a.starts_with('-')) {
        bail!("no flag {flag}: arguments for the test runner go behind `--`");
    }
    let mut cargo = runner(&root, ours, run::in_ci().then_some("ci"));
    cargo.args(rest.get(1..).unwrap_or_default());
    if ours.is_empty() || ours.iter().any(|name| speaks_to_peers(&root, name)) {
        cargo.envs(peers::for_tests()?);
    }
    run::run(&mut cargo)
}

pub fn sim(args: &[String]) -> Result<()> {
    let root = workspace::root();
    let (mut seeds, mut crates) = (MANY_SEEDS.to_owned(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.clone().next()) {
            ("--seeds", Some(n)) => seeds.clone_from(n),
            ("--seed", Some(n)) => seeds = format!("={n}"),
            (flag, _) if flag.starts_with('-') => bail!("no flag {flag}: `--seeds N`, `--seeds A..B` or `--seed S`"),
            (package, _) => {
                crates.push(package.to_owned());
                continue;
            }
        }
        args.next();
    }
    // many seeds take as long as they take
    let mut cargo = runner(&root, &crates, Some("sim"));
    if has_nextest(&root) {
        cargo.args(["--no-tests=fail", "-E", SIMULATIONS]);
    } else {
        cargo.args(["--", "sim", "seed"]);
    }
    eprintln!("{SEEDS}={seeds}");
    run::run(cargo.env(SEEDS, seeds))
}

fn runner(root: &Path, crates: &[String], profile: Option<&str>) -> Command {
    let mut cargo = run::cargo(root);
    if has_nextest(root) {
        cargo.args(["nextest", "run"]);
        if let Some(profile) = profile {
            cargo.args(["--profile", profile]);
        }
    } else {
        eprintln!("cargo-nextest is not there: falling back to `cargo test` (no timeouts, no groups)");
        // The heavy end-to-end tests share ports and cores with nobody under nextest; keep the fallback calm as well.
        cargo.args(["test", "--no-fail-fast"]);
    }
    cargo.arg("--locked");
    if crates.is_empty() {
        cargo.arg("--workspace");
    }
    for name in crates {
        cargo.args(["-p", name]);
    }
    // A golden that differs is a failure, never a file written.
    cargo.env("INSTA_UPDATE", "no");
    cargo
}

fn has_nextest(root: &Path) -> bool {
    run::succeeds(run::cargo(root).args(["nextest", "--version"]))
}

/// Only crates whose tests ask for a peer make us fetch any.
fn speaks_to_peers(root: &Path, name: &str) -> bool {
    let folder = root.join("crates").join(name);
    let mut todo = vec![folder];
    while let Some(path) = todo.pop() {
        if let Ok(entries) = std::fs::read_dir(&path) {
            todo.extend(entries.flatten().map(|e| e.path()));
        } else if path.extension().is_some_and(|e| e == "rs")
            && std::fs::read_to_string(&path).is_ok_and(|text| text.contains(peers::PREFIX))
        {
            return true;
        }
    }
    false
}
