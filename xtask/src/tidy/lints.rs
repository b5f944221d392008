//! Every member takes the workspace's lints: a crate without them would be free to panic.

use super::{Problem, Texts};
use crate::workspace::Workspace;

pub fn check(workspace: &Workspace, texts: &Texts) -> Vec<Problem> {
    workspace
        .members()
        .filter_map(|(_, package)| package.manifest.as_ref())
        .filter(|manifest| !inherits(texts.get(*manifest).map(String::as_str).unwrap_or_default()))
        .map(|manifest| Problem::hard("lints", manifest.display().to_string(), "lacks `[lints] workspace = true`"))
        .collect()
}

fn inherits(manifest: &str) -> bool {
    let Ok(table) = manifest.parse::<toml::Table>() else { return false };
    table.get("lints").and_then(|l| l.get("workspace")).and_then(|v| v.as_bool()) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tidy, workspace::Package};

    #[test]
    fn a_member_without_lints_is_named() {
        let member =
            |name: &str| Package { manifest: Some(format!("crates/{name}/Cargo.toml").into()), ..Package::default() };
        let workspace = Workspace {
            packages: [
                ("a".to_owned(), member("a")),
                ("b".to_owned(), member("b")),
                ("x".to_owned(), Package::default()),
            ]
            .into(),
            ..Workspace::default()
        };
        let texts = tidy::texts(&[
            ("crates/a/Cargo.toml", "[package]\nname = \"a\"\n[lints]\nworkspace = true\n"),
            ("crates/b/Cargo.toml", "[package]\nname = \"b\"\n# [lints] workspace = true\n"),
        ]);
        let found: Vec<_> = check(&workspace, &texts).into_iter().map(|p| p.at).collect();
        assert_eq!(found, ["crates/b/Cargo.toml"]);
    }
}
