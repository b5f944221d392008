//! Structural checks. Each is a function from plain values to problems, so that a test can show it failing on a bad input;
//! `run` feeds them the real workspace and repository.

use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

mod allow;
mod budget;
mod cycles;
mod deps;
mod layers;
mod lexicon;
mod links;
mod lints;
mod machine;
pub mod rust;

/// One thing that is wrong, or (soft) that will be if it grows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub soft: bool,
    pub check: &'static str,
    pub at: String,
    pub why: String,
}

impl Problem {
    fn hard(check: &'static str, at: impl Into<String>, why: impl Into<String>) -> Self {
        Self { soft: false, check, at: at.into(), why: why.into() }
    }

    fn soft(check: &'static str, at: impl Into<String>, why: impl Into<String>) -> Self {
        Self { soft: true, check, at: at.into(), why: why.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.soft { "note" } else { "error" };
        write!(f, "{level}: {}: {}: {}", self.check, self.at, self.why)
    }
}

/// The texts of the repository, by path relative to its root. Files that are not UTF-8 or over 1 MiB are left out.
pub type Texts = BTreeMap<PathBuf, String>;

pub fn run(_: &[String]) -> Result<()> {
    let workspace = Workspace::load()?;
    let texts = read(&workspace.root)?;
    let allow = allow::Allow::parse(texts.get(Path::new(allow::FILE)).map(String::as_str).unwrap_or_default())
        .with_context(|| format!("cannot read {}", allow::FILE))?;
    let deny = texts.get(Path::new("deny.toml")).context("deny.toml is missing")?;

    let mut problems = layers::check(&layers::members(&workspace));
    problems.extend(deps::check(&workspace, &deps::Rules::parse(deny)?));
    problems.extend(lints::check(&workspace, &texts));
    problems.extend(budget::check(&texts, &allow));
    problems.extend(cycles::check(&texts, &allow));
    problems.extend(lexicon::check(&texts));
    problems.extend(links::check(&texts));
    problems.extend(machine::check(&texts));
    if let Some(before) = allow::committed(&workspace.root)? {
        problems.extend(allow.grown_since(&before));
    }
    report(problems, texts.len())
}

pub fn read(root: &Path) -> Result<Texts> {
    let mut texts = Texts::new();
    for path in workspace::files(root)? {
        let Ok(bytes) = std::fs::read(root.join(&path)) else { continue };
        if bytes.len() <= 1 << 20
            && let Ok(text) = String::from_utf8(bytes)
        {
            texts.insert(path, text);
        }
    }
    Ok(texts)
}

fn report(mut problems: Vec<Problem>, files: usize) -> Result<()> {
    problems.sort();
    for problem in problems.iter().rev() {
        println!("{problem}");
    }
    let hard = problems.iter().filter(|p| !p.soft).count();
    println!("tidy: {files} files, {hard} errors, {} notes", problems.len() - hard);
    if hard > 0 {
        bail!("tidy found {hard} errors");
    }
    Ok(())
}

/// Rust that a person wrote and the rules of STYLE apply to.
fn is_ours(path: &Path, text: &str) -> bool {
    let rust = path.extension().is_some_and(|e| e == "rs");
    let place = ["crates", "xtask", "fuzz"].iter().any(|d| path.starts_with(d));
    rust && place && !is_generated(text)
}

fn is_generated(text: &str) -> bool {
    text.lines().take(5).any(|l| l.contains("@generated"))
}

#[cfg(test)]
fn texts(files: &[(&str, &str)]) -> Texts {
    files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect()
}
