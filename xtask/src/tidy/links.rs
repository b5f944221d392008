//! Documents do not point at nothing: relative links, their anchors, and paths of the repository in backticks.

use super::{Problem, Texts};
use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

/// A path in backticks that begins so is meant to be there.
const OUR_PLACES: &[&str] =
    &["crates/", "xtask/", "docs/", "bench/", "fuzz/", "scenarios/", ".ci/", ".config/", "third_party/"];

pub fn check(texts: &Texts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in
        texts.iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "md") && !p.starts_with("third_party"))
    {
        let at = |number: usize| format!("{}:{}", path.display(), number);
        for (number, line) in prose(text) {
            for target in links(line) {
                if let Some(why) = broken(texts, path, target) {
                    problems.push(Problem::hard("link", at(number), why));
                }
            }
            for code in backticked(line) {
                let code = code.split([':', '#']).next().unwrap_or(code);
                let plain = !code.contains(['*', '<', ' ', '{', '…', '$']);
                if plain && OUR_PLACES.iter().any(|p| code.starts_with(p)) && !there(texts, Path::new(code)) {
                    problems.push(Problem::hard("link", at(number), format!("`{code}` is not there")));
                }
            }
        }
    }
    problems
}

/// Lines outside fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(i, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((i + 1, line))
    })
}

fn links(line: &str) -> Vec<&str> {
    let outside: Vec<(usize, &str)> = line.match_indices("](").collect();
    outside
        .into_iter()
        .filter(|(at, _)| line.get(..*at).is_some_and(|b| b.matches('`').count() % 2 == 0))
        .filter_map(|(at, _)| line.get(at + 2..)?.split(')').next()?.split_whitespace().next())
        .collect()
}

fn backticked(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn broken(texts: &Texts, from: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(f, a)| (f, Some(a)));
    let path =
        if file.is_empty() { from.to_owned() } else { normal(&from.parent().unwrap_or(Path::new("")).join(file)) };
    if !there(texts, &path) {
        return Some(format!("links to {target}, which is not there"));
    }
    let text = texts.get(&path).filter(|_| path.extension().is_some_and(|e| e == "md"))?;
    let anchor = anchor?;
    (!anchors(text).contains(anchor)).then(|| format!("links to {target}, but {} has no such heading", path.display()))
}

fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// A file we have, or a folder with one in it.
fn there(texts: &Texts, path: &Path) -> bool {
    texts.contains_key(path) || texts.keys().any(|k| k.starts_with(path))
}

/// Headings as GitHub names them.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    prose(text).filter(|(_, l)| l.starts_with('#')).map(|(_, l)| heading(l)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy;

    #[test]
    fn what_is_not_there_is_named() {
        let page = "# One page\n[ok](B.md#the-second-part) [bad](C.md) [bad](B.md#nothing) [web](https://x.y/z) `[not](a-link.md)`\n\
                    `crates/a/src/lib.rs` `crates/a/src/gone.rs:12` `crates/*/src`\n```\n[code](no.md)\n```\n[up](../README.md) [dir](../crates/a)\n";
        let texts = tidy::texts(&[
            ("docs/A.md", page),
            ("docs/B.md", "## The second part\n"),
            ("README.md", "[x](docs/A.md#one-page)"),
            ("crates/a/src/lib.rs", ""),
        ]);
        let found: Vec<_> = check(&texts).into_iter().map(|p| format!("{} {}", p.at, p.why)).collect();
        assert_eq!(
            found,
            [
                "docs/A.md:2 links to C.md, which is not there",
                "docs/A.md:2 links to B.md#nothing, but docs/B.md has no such heading",
                "docs/A.md:3 `crates/a/src/gone.rs` is not there",
            ]
        );
    }
}
