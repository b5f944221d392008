//! The register of exceptions, `xtask/tidy-allow.toml`. Sizes in it may only shrink; a cycle needs its reason.

use super::Problem;
use crate::run;
use anyhow::{Context as _, Result};
use std::{collections::BTreeMap, path::Path};

pub const FILE: &str = "xtask/tidy-allow.toml";

#[derive(Debug, Default)]
pub struct Allow {
    /// Path → lines.
    pub files: BTreeMap<String, usize>,
    /// `path::function` → lines.
    pub functions: BTreeMap<String, usize>,
    /// `crate: a b c` (modules sorted) → why.
    pub cycles: BTreeMap<String, String>,
}

impl Allow {
    pub fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse()?;
        let entries = |key: &str| table.get(key).and_then(|v| v.as_table()).cloned().unwrap_or_default();
        let sizes = |key: &str| -> Result<BTreeMap<String, usize>> {
            let one = |(name, value): (String, toml::Value)| -> Result<(String, usize)> {
                let lines = value
                    .as_integer()
                    .and_then(|n| usize::try_from(n).ok())
                    .with_context(|| format!("{key}.{name} is no number"))?;
                Ok((name, lines))
            };
            entries(key).into_iter().map(one).collect()
        };
        let why = |(name, value): (String, toml::Value)| -> Result<(String, String)> {
            let why = value
                .as_str()
                .filter(|s| !s.trim().is_empty())
                .with_context(|| format!("cycles.{name:?} has no reason"))?;
            Ok((name, why.to_owned()))
        };
        Ok(Self {
            files: sizes("files")?,
            functions: sizes("functions")?,
            cycles: entries("cycles").into_iter().map(why).collect::<Result<_>>()?,
        })
    }

    /// Sizes that are new or larger than in the committed list.
    pub fn grown_since(&self, before: &Allow) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (now, then) in [(&self.files, &before.files), (&self.functions, &before.functions)] {
            for (name, lines) in now.iter().filter(|(n, l)| then.get(*n).is_none_or(|t| t < *l)) {
                let old = then.get(name).map_or("nothing".to_owned(), ToString::to_string);
                problems.push(Problem::hard(
                    "allowlist",
                    name,
                    format!("grew from {old} to {lines}: the list may only shrink"),
                ));
            }
        }
        problems
    }
}

/// The list to compare with: the last commit's, or its parent's when the work tree has no change of its own (as in CI).
/// None where there was none yet.
pub fn committed(root: &Path) -> Result<Option<Allow>> {
    let clean = run::succeeds(run::command("git", root).args(["diff", "--quiet", "HEAD", "--", FILE]));
    let revision = if clean { "HEAD~1" } else { "HEAD" };
    let text = run::output(run::command("git", root).args(["show", &format!("{revision}:{FILE}")]));
    text.ok().map(|t| Allow::parse(&t)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_may_only_shrink() {
        let before = Allow::parse("[files]\na = 900\nb = 900\n").unwrap();
        let now = Allow::parse("[files]\na = 850\nb = 901\nc = 900\n").unwrap();
        let found: Vec<_> = now.grown_since(&before).into_iter().map(|p| p.at).collect();
        assert_eq!(found, ["b", "c"]);
        assert!(before.grown_since(&before).is_empty());
    }

    #[test]
    fn a_cycle_needs_its_reason() {
        assert!(Allow::parse("[cycles]\n\"weft-x: a b\" = \"  \"\n").is_err());
        assert!(Allow::parse("[cycles]\n\"weft-x: a b\" = \"a is the story, b re-enters it\"\n").is_ok());
    }
}
