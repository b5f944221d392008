//! `check` (writes nothing) and `fix` (writes).

use crate::{
    run,
    workspace::{self, Workspace},
};
use anyhow::Result;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Files that every crate is built from.
const FOR_ALL: &[&str] = &["Cargo.toml", "Cargo.lock", "clippy.toml", "rustfmt.toml", ".cargo/config.toml"];

pub fn check(args: &[String]) -> Result<()> {
    let workspace = Workspace::load()?;
    let all = args.iter().any(|a| a == "--all");
    let selected = if all { None } else { touched(&workspace, &workspace::changed(&workspace.root)?) };
    let Some(names) = selected else {
        run::run(run::cargo(&workspace.root).args(["fmt", "--all", "--check"]))?;
        return clippy(&workspace.root, &["--workspace".to_owned()]);
    };
    if names.is_empty() {
        println!("check: no crate differs from the last commit (`--all` checks every crate)");
        return Ok(());
    }
    let packages: Vec<String> = names.iter().flat_map(|n| ["-p".to_owned(), n.clone()]).collect();
    run::run(run::cargo(&workspace.root).arg("fmt").args(&packages).arg("--check"))?;
    let packages: Vec<String> =
        workspace.with_dependants(&names).iter().flat_map(|n| ["-p".to_owned(), n.clone()]).collect();
    clippy(&workspace.root, &packages)
}

fn clippy(root: &Path, packages: &[String]) -> Result<()> {
    run::run(run::cargo(root).args(["clippy", "--locked"]).args(packages).args([
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

pub fn fix(_: &[String]) -> Result<()> {
    let root = workspace::root();
    run::run(run::cargo(&root).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ]))?;
    run::run(run::cargo(&root).args(["fmt", "--all"]))
}

/// The members that changed files lie in; None = all of them.
fn touched(workspace: &Workspace, changed: &[PathBuf]) -> Option<BTreeSet<String>> {
    if changed.iter().any(|p| FOR_ALL.iter().any(|f| p == Path::new(f))) {
        return None;
    }
    let folder = |manifest: &PathBuf| manifest.parent().map(Path::to_owned).unwrap_or_default();
    let mut names = BTreeSet::new();
    for (_, package) in workspace.members() {
        let Some(folder) = package.manifest.as_ref().map(folder) else { continue };
        if changed.iter().any(|p| p.starts_with(&folder)) {
            names.insert(package.name.clone());
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Package;

    #[test]
    fn a_changed_file_selects_its_crate_and_the_lock_file_all() {
        let member = |name: &str| {
            let manifest = Some(format!("crates/{name}/Cargo.toml").into());
            (name.to_owned(), Package { name: name.to_owned(), manifest, ..Package::default() })
        };
        let workspace = Workspace { packages: [member("weft"), member("weft-rt")].into(), ..Workspace::default() };
        let of = |files: &[&str]| touched(&workspace, &files.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["crates/weft-rt/src/lib.rs", "docs/a.md"]), Some(BTreeSet::from(["weft-rt".to_owned()])));
        assert_eq!(of(&["docs/a.md"]), Some(BTreeSet::new()));
        assert_eq!(of(&["Cargo.lock"]), None);
    }
}
