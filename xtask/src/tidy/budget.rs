//! Sizes: a file 400 lines soft, 800 hard; a function 60 soft, 120 hard.

use super::{Problem, Texts, allow::Allow, is_ours, rust};
use std::collections::BTreeSet;

const FILE: Budget = Budget { soft: 400, hard: 800 };
const FUNCTION: Budget = Budget { soft: 60, hard: 120 };

struct Budget {
    soft: usize,
    hard: usize,
}

impl Budget {
    fn judge(&self, check: &'static str, at: &str, lines: usize, allowed: Option<&usize>) -> Option<Problem> {
        let Self { soft, hard } = self;
        match allowed {
            Some(limit) if lines > *limit => {
                Some(Problem::hard(check, at, format!("{lines} lines, {limit} are allowed it: split it")))
            }
            Some(limit) if lines < *limit => Some(Problem::hard(
                check,
                at,
                format!("{lines} lines now: lower its entry in the allowlist from {limit} (drop it at {hard})"),
            )),
            Some(_) => None,
            None if lines > *hard => Some(Problem::hard(check, at, format!("{lines} lines, over {hard}: split it"))),
            None if lines > *soft => Some(Problem::soft(check, at, format!("{lines} lines, over {soft}"))),
            None => None,
        }
    }
}

pub fn check(texts: &Texts, allow: &Allow) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, text) in texts.iter().filter(|(p, t)| is_ours(p, t)) {
        let at = path.display().to_string();
        problems.extend(FILE.judge("file", &at, text.lines().count(), allow.files.get(&at)));
        for function in rust::functions(&rust::mask(text)) {
            let key = format!("{at}::{}", function.name);
            problems.extend(FUNCTION.judge("function", &key, function.lines, allow.functions.get(&key)));
            seen.insert(key);
        }
        seen.insert(at);
    }
    for stale in allow.files.keys().chain(allow.functions.keys()).filter(|k| !seen.contains(*k)) {
        problems.push(Problem::hard("allowlist", stale, "is not there any more: drop its entry"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy;

    fn found(files: &[(&str, &str)], allow: &str) -> Vec<(bool, &'static str, String)> {
        check(&tidy::texts(files), &Allow::parse(allow).unwrap()).into_iter().map(|p| (p.soft, p.check, p.at)).collect()
    }

    #[test]
    fn files_are_measured() {
        let (small, big, huge) = ("\n".repeat(400), "\n".repeat(401), "\n".repeat(801));
        let files = [
            ("crates/a/src/s.rs", small.as_str()),
            ("crates/a/src/b.rs", &big),
            ("crates/a/src/h.rs", &huge),
            ("bench/h.rs", &huge),
        ];
        assert_eq!(
            found(&files, ""),
            [(true, "file", "crates/a/src/b.rs".into()), (false, "file", "crates/a/src/h.rs".into())]
        );
    }

    #[test]
    fn functions_are_measured() {
        let text = format!(
            "fn soft() {{{}}}\nfn hard() {{{}}}\nfn fine() {{{}}}",
            "\n".repeat(60),
            "\n".repeat(120),
            "\n".repeat(59)
        );
        let files = [("crates/a/src/f.rs", text.as_str())];
        assert_eq!(
            found(&files, ""),
            [
                (true, "function", "crates/a/src/f.rs::soft".into()),
                (false, "function", "crates/a/src/f.rs::hard".into())
            ]
        );
    }

    #[test]
    fn an_exception_is_exact_and_not_stale() {
        let huge = "\n".repeat(900);
        let files = [("crates/a/src/h.rs", huge.as_str())];
        assert_eq!(found(&files, "[files]\n\"crates/a/src/h.rs\" = 900"), []);
        assert_eq!(found(&files, "[files]\n\"crates/a/src/h.rs\" = 899").len(), 1);
        assert_eq!(found(&files, "[files]\n\"crates/a/src/h.rs\" = 901").len(), 1);
        assert_eq!(
            found(&[], "[files]\n\"crates/a/src/h.rs\" = 900"),
            [(false, "allowlist", "crates/a/src/h.rs".into())]
        );
    }

    #[test]
    fn generated_files_are_not_measured() {
        let text = format!("// @generated\n{}", "\n".repeat(900));
        assert_eq!(found(&[("crates/a/src/g.rs", &text)], ""), []);
    }
}
