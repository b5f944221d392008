//! Modules of one crate call forward: the graph of `crate::…` paths between its top-level modules has no cycle.

use super::{Problem, Texts, allow::Allow, is_ours, rust};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

type Graph = BTreeMap<String, BTreeSet<String>>;

pub fn check(texts: &Texts, allow: &Allow) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for (name, graph) in graphs(texts) {
        for cycle in cycles(&graph) {
            // An exception covers what is left of its cycle, so that a cycle may shrink but not grow.
            match allow.cycles.keys().find(|key| covers(key, &name, &cycle)) {
                Some(key) => {
                    used.insert(key);
                }
                None => problems.push(Problem::hard(
                    "cycle",
                    format!("{name}: {}", cycle.join(" ")),
                    advice(&graph, &cycle),
                )),
            }
        }
    }
    for stale in allow.cycles.keys().filter(|k| !used.contains(k)) {
        problems.push(Problem::hard("allowlist", stale, "is no cycle any more: drop its entry"));
    }
    problems
}

fn covers(key: &str, name: &str, cycle: &[String]) -> bool {
    let Some((of, modules)) = key.split_once(": ") else { return false };
    let modules: BTreeSet<&str> = modules.split(' ').collect();
    of == name && cycle.iter().all(|m| modules.contains(m.as_str()))
}

fn advice(graph: &Graph, cycle: &[String]) -> String {
    let edges = cycle.iter().flat_map(|from| {
        let to = graph.get(from).into_iter().flatten().filter(|to| cycle.contains(to));
        to.map(move |to| format!("{from} → {to}"))
    });
    let edges: Vec<String> = edges.collect();
    format!("{}: turn an edge round, or list it in xtask/tidy-allow.toml with its reason", edges.join(", "))
}

/// Crate → module → modules it uses; product code only.
fn graphs(texts: &Texts) -> BTreeMap<String, Graph> {
    let mut graphs: BTreeMap<String, Graph> = BTreeMap::new();
    let mut sources = Vec::new();
    for (path, text) in texts.iter().filter(|(p, t)| is_ours(p, t)) {
        let Some((name, module)) = module_of(path) else { continue };
        if let Some(top) = module.first() {
            graphs.entry(name.clone()).or_default().entry(top.clone()).or_default();
            sources.push((name, module, text));
        }
    }
    for (name, module, text) in sources {
        let code = rust::without_test_modules(&rust::mask(text));
        let Some(graph) = graphs.get_mut(&name) else { continue };
        let used: Vec<String> = used(&code, module.len()).into_iter().filter(|u| graph.contains_key(u)).collect();
        if let Some((top, edges)) = module.first().and_then(|top| graph.get_mut(top).map(|e| (top, e))) {
            edges.extend(used.into_iter().filter(|u| u != top));
        }
    }
    graphs
}

/// `crates/weft-x/src/a/b.rs` → (`weft-x`, [a, b]); None outside a `src`, [] for the roots, None for files of tests.
fn module_of(path: &Path) -> Option<(String, Vec<String>)> {
    let parts: Vec<&str> = path.iter().filter_map(|p| p.to_str()).collect();
    let src = parts.iter().position(|p| *p == "src")?;
    let name = parts.get(src.checked_sub(1)?)?;
    let mut module: Vec<String> = parts.get(src + 1..)?.iter().map(|p| p.trim_end_matches(".rs").to_owned()).collect();
    if module.iter().any(|m| m == "tests" || m == "bin") {
        return None;
    }
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    Some(((*name).to_owned(), module))
}

/// First segments behind `crate::`, and behind as many `super::` as lead to the root.
fn used(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&prefix) {
            let before = code.get(..at).and_then(|s| s.chars().next_back());
            // `$crate::` is our own too; `xcrate::` and a longer `super::` chain are not.
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            segments(code.get(at + prefix.len()..).unwrap_or_default(), &mut found);
        }
    }
    found
}

fn segments(rest: &str, found: &mut BTreeSet<String>) {
    let word = |s: &str| -> String {
        s.trim_start().trim_start_matches("r#").chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else {
        found.insert(word(rest));
        return;
    };
    let (mut depth, mut start) = (1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                found.insert(word(group.get(start..at).unwrap_or_default()));
                start = at + 1;
            }
            _ => {}
        }
        if depth == 0 {
            found.insert(word(group.get(start..at).unwrap_or_default()));
            return;
        }
    }
}

/// Groups of modules that can all reach each other, sorted.
fn cycles(graph: &Graph) -> Vec<Vec<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = graph.keys().map(|m| (m, reachable(graph, m))).collect();
    let reaches = |a: &String, b: &String| reach.get(a).is_some_and(|r| r.contains(b));
    let mut groups = BTreeSet::new();
    for module in graph.keys().filter(|m| reaches(m, m)) {
        groups.insert(graph.keys().filter(|m| reaches(module, m) && reaches(m, module)).cloned().collect::<Vec<_>>());
    }
    groups.into_iter().collect()
}

fn reachable<'a>(graph: &'a Graph, from: &String) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(next) = todo.pop() {
        if seen.insert(next) {
            todo.extend(graph.get(next).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy;

    fn found(files: &[(&str, &str)], allow: &str) -> Vec<String> {
        check(&tidy::texts(files), &Allow::parse(allow).unwrap()).into_iter().map(|p| p.at).collect()
    }

    #[test]
    fn a_cycle_is_found_through_groups_and_super() {
        let files = [
            ("crates/x/src/lib.rs", "mod a; mod b; mod c;"),
            ("crates/x/src/a.rs", "use crate::{b::{T, U}, Root};"),
            ("crates/x/src/b/mod.rs", "mod deep;"),
            ("crates/x/src/b/deep.rs", "fn f() { super::super::c::g() }"),
            ("crates/x/src/c.rs", "use super::a;"),
        ];
        assert_eq!(found(&files, ""), ["x: a b c"]);
        assert_eq!(found(&files, "[cycles]\n\"x: a b c\" = \"one thing in three files\""), [""; 0]);
    }

    #[test]
    fn a_cycle_may_shrink_and_not_grow() {
        let files =
            [("crates/x/src/a.rs", "use crate::b;"), ("crates/x/src/b.rs", "use crate::a;"), ("crates/x/src/c.rs", "")];
        assert_eq!(found(&files, "[cycles]\n\"x: a b c\" = \"why\""), [""; 0]);
        assert_eq!(found(&files, "[cycles]\n\"x: a c\" = \"why\""), ["x: a b", "x: a c"]);
        let told = check(&tidy::texts(&files), &Allow::default()).into_iter().map(|p| p.why).collect::<String>();
        assert!(told.starts_with("a → b, b → a: "), "{told}");
    }

    #[test]
    fn forward_calls_and_tests_are_no_cycle() {
        let files = [
            ("crates/x/src/a.rs", "use crate::b::T; // crate::a"),
            ("crates/x/src/b.rs", "pub struct T;\n#[cfg(test)]\nmod tests { use crate::a; }"),
            ("crates/x/src/b/tests.rs", "use crate::a;"),
            ("crates/y/src/b.rs", "use crate::a;"),
        ];
        assert_eq!(found(&files, ""), [""; 0]);
    }

    #[test]
    fn a_stale_exception_is_named() {
        assert_eq!(found(&[("crates/x/src/a.rs", "")], "[cycles]\n\"x: a b\" = \"why\""), ["x: a b"]);
    }
}
