//! The workspace as cargo sees it, and the repository as git sees it.

use crate::run;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Normal,
    Build,
    Dev,
}

#[derive(Clone, Debug, Default)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Some for members only, relative to the root.
    pub manifest: Option<PathBuf>,
    pub license: Option<String>,
    /// None = a path dependency.
    pub source: Option<String>,
    /// Package ids.
    pub dependencies: Vec<(String, Kind)>,
}

#[derive(Debug, Default)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    /// By package id. Cargo's metadata also has some that only a feature nobody asks for would bring.
    pub packages: BTreeMap<String, Package>,
    /// `name version` of what is really built for this machine, tests included.
    pub built: BTreeSet<String>,
}

/// The root is where the runner was compiled from: `cargo xtask` works from every folder below it.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

impl Workspace {
    pub fn load() -> Result<Self> {
        let root = root();
        let host = run::output(run::command("rustc", &root).arg("-vV"))?;
        let host = host.lines().find_map(|l| l.strip_prefix("host: ")).unwrap_or("x86_64-unknown-linux-gnu").to_owned();
        // --locked: a check never writes, not even Cargo.lock.
        let text = run::output(run::cargo(&root).args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            &host,
        ]))?;
        let mut workspace = Self::parse(&text)?;
        let tree = ["tree", "--workspace", "--locked", "--edges=normal,build,dev", "--prefix=none", "--format={p}"];
        workspace.built = built(&run::output(run::cargo(&root).args(tree))?);
        Ok(workspace)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text).context("cargo metadata printed no JSON")?;
        let root = PathBuf::from(string(&json, "workspace_root"));
        let members: BTreeSet<String> =
            list(&json, "workspace_members").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let mut packages = BTreeMap::new();
        for package in list(&json, "packages") {
            let id = string(package, "id");
            let manifest = PathBuf::from(string(package, "manifest_path"));
            let manifest = members.contains(&id).then(|| manifest.strip_prefix(&root).unwrap_or(&manifest).to_owned());
            let optional = |key| package.get(key).and_then(Value::as_str).map(str::to_owned);
            packages.insert(
                id,
                Package {
                    name: string(package, "name"),
                    version: string(package, "version"),
                    manifest,
                    license: optional("license"),
                    source: optional("source"),
                    dependencies: Vec::new(),
                },
            );
        }
        for node in json.get("resolve").map(|r| list(r, "nodes")).unwrap_or_default() {
            let Some(package) = packages.get_mut(&string(node, "id")) else { continue };
            for dependency in list(node, "deps") {
                for kind in list(dependency, "dep_kinds") {
                    let kind = match kind.get("kind").and_then(Value::as_str) {
                        Some("dev") => Kind::Dev,
                        Some("build") => Kind::Build,
                        _ => Kind::Normal,
                    };
                    package.dependencies.push((string(dependency, "pkg"), kind));
                }
            }
        }
        Ok(Self { target: PathBuf::from(string(&json, "target_directory")), root, packages, built: BTreeSet::new() })
    }

    pub fn members(&self) -> impl Iterator<Item = (&str, &Package)> {
        self.packages.iter().filter(|(_, p)| p.manifest.is_some()).map(|(id, p)| (id.as_str(), p))
    }

    /// Everything that is linked into `id` or used to build it, itself left out; dev-dependencies do not count.
    pub fn closure(&self, id: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![id];
        while let Some(next) = todo.pop() {
            for (dependency, kind) in self.packages.get(next).map(|p| p.dependencies.as_slice()).unwrap_or_default() {
                if *kind != Kind::Dev && seen.insert(dependency.as_str()) {
                    todo.push(dependency);
                }
            }
        }
        seen
    }

    /// `names` and every member that depends on one of them, dev-dependencies included.
    pub fn with_dependants(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let mut found = names.clone();
        loop {
            let before = found.len();
            for (_, package) in self.members() {
                let uses = |(id, _): &(String, Kind)| self.packages.get(id).is_some_and(|p| found.contains(&p.name));
                if package.dependencies.iter().any(uses) {
                    found.insert(package.name.clone());
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }
}

fn built(tree: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some(format!("{} {}", words.next()?, words.next()?.strip_prefix('v')?))
    };
    tree.lines().filter_map(line).collect()
}

/// Tracked files and new ones that git does not ignore, relative to the root; deleted ones left out.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let text =
        run::output(run::command("git", root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let mut files: Vec<PathBuf> =
        text.split('\0').filter(|p| !p.is_empty()).map(PathBuf::from).filter(|p| root.join(p).is_file()).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// Files that differ from the last commit, and new ones.
pub fn changed(root: &Path) -> Result<Vec<PathBuf>> {
    let text = run::output(run::command("git", root).args(["status", "--porcelain", "-z", "--untracked-files=all"]))?;
    Ok(text.split('\0').filter_map(|l| l.get(3..)).map(PathBuf::from).collect())
}

fn string(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{
      "workspace_root": "/w", "target_directory": "/w/target", "workspace_members": ["a", "b", "c"],
      "packages": [
        {"id": "a", "name": "a", "version": "1.0.0", "manifest_path": "/w/crates/a/Cargo.toml", "license": "MIT", "source": null},
        {"id": "b", "name": "b", "version": "1.0.0", "manifest_path": "/w/crates/b/Cargo.toml", "license": null, "source": null},
        {"id": "c", "name": "c", "version": "1.0.0", "manifest_path": "/w/crates/c/Cargo.toml", "license": null, "source": null},
        {"id": "x", "name": "x", "version": "2.0.0", "manifest_path": "/r/x/Cargo.toml", "license": "MIT", "source": "registry"}],
      "resolve": {"nodes": [
        {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": null}]}]},
        {"id": "b", "deps": [{"pkg": "x", "dep_kinds": [{"kind": "build"}]}, {"pkg": "c", "dep_kinds": [{"kind": "dev"}]}]}]}}"#;

    #[test]
    fn closure_follows_build_but_not_dev() {
        let workspace = Workspace::parse(TEXT).unwrap();
        assert_eq!(workspace.closure("a").into_iter().collect::<Vec<_>>(), ["b", "x"]);
        assert_eq!(workspace.members().count(), 3);
    }

    #[test]
    fn the_tree_is_read() {
        let built =
            built("weft-model v0.1.0 (/x/crates/weft-model)\nserde v1.0.2\nserde v1.0.2 (*)\nm v3.0.0 (proc-macro)\n");
        assert_eq!(built.into_iter().collect::<Vec<_>>(), ["m 3.0.0", "serde 1.0.2", "weft-model 0.1.0"]);
    }

    #[test]
    fn dependants_follow_dev_too() {
        let workspace = Workspace::parse(TEXT).unwrap();
        let found = workspace.with_dependants(&BTreeSet::from(["c".to_owned()]));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
