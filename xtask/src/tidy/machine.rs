//! Nothing in the repository names one person's machine.

use super::{Problem, Texts};

/// Written in halves, so that this file does not find itself.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/main"),
    concat!("/wo", "rk/shared"),
    concat!("/wo", "rk/plan"),
    concat!("/wo", "rk/t/"),
    concat!("/wo", "rk/."),
    concat!("/ro", "ot/."),
    concat!("/Us", "ers/"),
    concat!("/ho", "me/"),
];

pub fn check(texts: &Texts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in texts {
        for (number, line) in text.lines().enumerate() {
            if let Some(place) = PLACES.iter().find(|p| names(line, p)) {
                problems.push(Problem::hard(
                    "machine",
                    format!("{}:{}", path.display(), number + 1),
                    format!("names {place}, a place of one machine"),
                ));
            }
        }
    }
    problems
}

/// As the beginning of an absolute path: `/x/home/y` is somebody's URL.
fn names(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line.get(..at).and_then(|s| s.chars().next_back());
        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '/' | '.' | '_' | '-' | '}' | '~'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy;

    #[test]
    fn machine_paths_are_found_and_urls_are_not() {
        let bad = concat!("see /ro", "ot/.cargo\n");
        let good = concat!("http://x/ho", "me/page and $HOME/ho", "me/x\n");
        let found: Vec<_> = check(&tidy::texts(&[("a.md", bad), ("b.md", good)])).into_iter().map(|p| p.at).collect();
        assert_eq!(found, ["a.md:1"]);
    }
}
