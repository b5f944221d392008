//! What cargo-deny would say about licences, bans and sources, from `cargo metadata` alone and by the same deny.toml: a
//! machine without cargo-deny (it takes minutes to build) still checks.

use super::Problem;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The part of deny.toml that is checked here.
#[derive(Debug, Default)]
pub struct Rules {
    pub licences: BTreeSet<String>,
    pub banned: BTreeSet<String>,
    pub single: BTreeSet<String>,
}

/// Two of these in one program would be two truths.
const ONE_VERSION_ONLY: &[&str] = &["rustls", "aws-lc-rs", "tokio", "hyper", "h2", "http", "prost", "tonic"];

impl Rules {
    pub fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("deny.toml")?;
        let strings = |section: &str, key: &str| -> BTreeSet<String> {
            let list =
                table.get(section).and_then(|s| s.get(key)).and_then(|v| v.as_array()).cloned().unwrap_or_default();
            list.iter()
                .filter_map(|v| v.as_str().or_else(|| v.get("crate").and_then(|n| n.as_str())).map(str::to_owned))
                .collect()
        };
        Ok(Self {
            licences: strings("licenses", "allow"),
            banned: strings("bans", "deny"),
            single: ONE_VERSION_ONLY.iter().map(|s| (*s).to_owned()).collect(),
        })
    }
}

pub fn check(workspace: &Workspace, rules: &Rules) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in workspace.packages.values() {
        let at = format!("{} {}", package.name, package.version);
        if !workspace.built.contains(&at) {
            continue;
        }
        match &package.license {
            Some(licence) if allowed(licence, &rules.licences) => {}
            Some(licence) => {
                problems.push(Problem::hard("licence", at.clone(), format!("{licence} is not allowed by deny.toml")))
            }
            None => problems.push(Problem::hard("licence", at.clone(), "names no licence")),
        }
        if rules.banned.contains(&package.name) {
            problems.push(Problem::hard("ban", at.clone(), "is banned by deny.toml"));
        }
        if package.source.as_deref().is_some_and(|s| !s.starts_with("registry+")) {
            problems.push(Problem::hard("source", at, "does not come from a registry: no git dependencies"));
        }
        versions.entry(&package.name).or_default().push(&package.version);
    }
    for (name, found) in versions.into_iter().filter(|(_, v)| v.len() > 1) {
        let why = format!("is there in {} versions: {}", found.len(), found.join(", "));
        problems.push(if rules.single.contains(name) {
            Problem::hard("twice", name, why)
        } else {
            Problem::soft("twice", name, why)
        });
    }
    problems
}

/// Does the SPDX expression allow use under `licences` alone? OR, AND, WITH and parentheses; `/` is the old OR.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any_of(&tokens, &mut at, licences) && at == tokens.len()
}

fn any_of(tokens: &[&str], at: &mut usize, licences: &BTreeSet<String>) -> bool {
    let mut good = all_of(tokens, at, licences);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        good |= all_of(tokens, at, licences);
    }
    good
}

fn all_of(tokens: &[&str], at: &mut usize, licences: &BTreeSet<String>) -> bool {
    let mut good = one(tokens, at, licences);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(tokens, at, licences);
    }
    good
}

fn one(tokens: &[&str], at: &mut usize, licences: &BTreeSet<String>) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let good = any_of(tokens, at, licences);
        *at += 1;
        return good;
    }
    let mut name = (*token).to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    licences.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Package;

    fn rules() -> Rules {
        Rules::parse("[licenses]\nallow = [\"MIT\", \"Apache-2.0\", \"Apache-2.0 WITH LLVM-exception\"]\n[bans]\ndeny = [{ crate = \"openssl\" }]").unwrap()
    }

    fn workspace(packages: &[(&str, &str, Option<&str>, &str)]) -> Workspace {
        let packages = packages.iter().map(|(name, version, licence, source)| {
            let package = Package {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                license: licence.map(str::to_owned),
                source: Some((*source).to_owned()),
                ..Package::default()
            };
            (format!("{name}@{version}"), package)
        });
        let packages: BTreeMap<String, Package> = packages.collect();
        let built = packages.values().map(|p| format!("{} {}", p.name, p.version)).collect();
        Workspace { packages, built, ..Workspace::default() }
    }

    #[test]
    fn expressions_are_read() {
        let licences = rules().licences;
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0 WITH LLVM-exception OR MIT/GPL-3.0", true),
            ("", false),
        ] {
            assert_eq!(allowed(expression, &licences), expected, "{expression}");
        }
    }

    #[test]
    fn each_rule_can_fail() {
        let bad = workspace(&[
            ("a", "1.0.0", Some("GPL-3.0"), "registry+x"),
            ("b", "1.0.0", None, "registry+x"),
            ("openssl", "1.0.0", Some("MIT"), "registry+x"),
            ("c", "1.0.0", Some("MIT"), "git+x"),
            ("rustls", "0.22.0", Some("MIT"), "registry+x"),
            ("rustls", "0.23.0", Some("MIT"), "registry+x"),
        ]);
        let mut found: Vec<_> = check(&bad, &rules()).into_iter().filter(|p| !p.soft).map(|p| p.check).collect();
        found.sort_unstable();
        assert_eq!(found, ["ban", "licence", "licence", "source", "twice"]);
    }

    #[test]
    fn what_is_not_built_does_not_count() {
        let mut bad = workspace(&[("openssl", "1.0.0", None, "git+x")]);
        bad.built.clear();
        assert_eq!(check(&bad, &rules()), []);
    }

    #[test]
    fn a_harmless_duplicate_is_a_note() {
        let two =
            workspace(&[("syn", "1.0.0", Some("MIT"), "registry+x"), ("syn", "2.0.0", Some("MIT"), "registry+x")]);
        assert!(check(&two, &rules()).iter().all(|p| p.soft && p.check == "twice"));
    }
}
