//! Words that name nothing: no type of ours is a Manager, Handler, Context, Helper or Util.

use super::{Problem, Texts, is_ours, rust};

const EMPTY_WORDS: &[&str] = &["Manager", "Handler", "Context", "Helper", "Util", "Utils"];
const DECLARATIONS: &[&str] = &["struct ", "enum ", "trait ", "union ", "type "];

pub fn check(texts: &Texts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in texts.iter().filter(|(p, t)| p.starts_with("crates") && is_ours(p, t)) {
        for (number, line) in rust::mask(text).lines().enumerate() {
            for name in DECLARATIONS.iter().filter_map(|word| declared(line, word)) {
                if EMPTY_WORDS.iter().any(|w| name.ends_with(w)) {
                    let at = format!("{}:{}", path.display(), number + 1);
                    problems.push(Problem::hard("lexicon", at, format!("{name}: say what it is or does")));
                }
            }
        }
    }
    problems
}

fn declared<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let at = line.find(word)?;
    let before = line.get(..at)?.chars().next_back();
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let rest = line.get(at + word.len()..)?.trim_start();
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    rest.get(..end).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy;

    #[test]
    fn empty_words_are_refused() {
        let source = "pub struct PoolManager;\nenum Handler {}\n// struct OldHelper;\ntype Context = u8;\nfn f(cx: &mut std::task::Context) {}\nstruct Contexts;\ntrait ConnUtil {}\n";
        let found: Vec<_> = check(&tidy::texts(&[("crates/a/src/l.rs", source)])).into_iter().map(|p| p.at).collect();
        assert_eq!(found, ["crates/a/src/l.rs:1", "crates/a/src/l.rs:2", "crates/a/src/l.rs:4", "crates/a/src/l.rs:7"]);
    }
}
