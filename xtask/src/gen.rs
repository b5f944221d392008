//! `gen` writes what is generated; `gen --check` compares and writes nothing.

use crate::{
    features, run, tidy,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use std::path::Path;

/// A crate of its own, outside the workspace: protox and the prost generators stay out of every ordinary build.
const PROTO_GENERATOR: &str = "xtask/gen-proto/Cargo.toml";

pub fn run(args: &[String]) -> Result<()> {
    let check = match args {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("gen takes nothing or --check"),
    };
    let root = workspace::root();
    let proto = proto(&root, check);
    let page = features(&root, check);
    // Both are told before either stops us.
    match (proto, page) {
        (Err(a), Err(b)) => bail!("{a:#}\n{b:#}"),
        (a, b) => a.and(b),
    }
}

fn features(root: &Path, check: bool) -> Result<()> {
    let (text, faults) = features::page(&tidy::read(root)?)?;
    put(root, features::PAGE, &text, check)?;
    if !faults.is_empty() {
        bail!("{} and the tests disagree:\n  {}", features::LIST, faults.join("\n  "));
    }
    Ok(())
}

fn proto(root: &Path, check: bool) -> Result<()> {
    if !root.join("crates/weft-wire/proto").is_dir() {
        return Ok(());
    }
    let mut cargo = run::cargo(root);
    cargo.args(["run", "--quiet", "--locked", "--manifest-path", PROTO_GENERATOR, "--"]);
    // Beside our own build, never in the source tree.
    cargo.env("CARGO_TARGET_DIR", Workspace::load()?.target.join("gen-proto"));
    if check {
        cargo.arg("--check");
    }
    run::run(&mut cargo)
}

fn put(root: &Path, path: &str, text: &str, check: bool) -> Result<()> {
    let old = std::fs::read_to_string(root.join(path)).unwrap_or_default();
    if old == text {
        return Ok(());
    }
    if check {
        bail!("{path} is not what `cargo xtask gen` writes: run it");
    }
    println!("writing {path}");
    std::fs::write(root.join(path), text).with_context(|| format!("cannot write {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_compares_and_writes_nothing() {
        let root = std::env::temp_dir().join(format!("xtask-gen-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        assert!(put(&root, "a.md", "new", true).is_err());
        assert!(!root.join("a.md").exists());
        put(&root, "a.md", "new", false).unwrap();
        put(&root, "a.md", "new", true).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
    }
}
