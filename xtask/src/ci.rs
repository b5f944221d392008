//! `ci`: what a submission must pass, in the order in which a fault is cheapest to find.

use crate::{check, r#gen, run, test, tidy, workspace};
use anyhow::{Result, bail};
use std::time::Instant;

type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("tidy", || tidy::run(&[])),
    ("gen --check", || r#gen::run(&["--check".to_owned()])),
    ("check --all", || check::check(&["--all".to_owned()])),
    ("deny", deny),
    ("test", || test::test(&[])),
];

/// `ci` runs every step and names all that failed; `ci STEP…` runs those.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(unknown) = args.iter().find(|a| !STEPS.iter().any(|(name, _)| first_word(name) == a.as_str())) {
        bail!(
            "ci has no step {unknown:?}: {}",
            STEPS.iter().map(|(n, _)| first_word(n)).collect::<Vec<_>>().join(", ")
        );
    }
    let mut failed = Vec::new();
    for (name, step) in STEPS.iter().filter(|(n, _)| args.is_empty() || args.iter().any(|a| a == first_word(n))) {
        let start = Instant::now();
        eprintln!("\n=== ci: {name}");
        let result = step();
        eprintln!(
            "=== ci: {name}: {} after {:.0} s",
            if result.is_ok() { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
        if let Err(error) = result {
            eprintln!("{error:#}");
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("ci failed: {}", failed.join(", "));
    }
    Ok(())
}

fn first_word(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}

/// Building cargo-deny takes minutes, so it runs where it is there; licences, bans, sources and duplicates are checked by
/// `tidy` from the same deny.toml in any case.
fn deny() -> Result<()> {
    let root = workspace::root();
    if !run::succeeds(run::cargo(&root).args(["deny", "--version"])) {
        eprintln!("cargo-deny is not there: tidy has checked licences, bans and sources by the same deny.toml");
        return Ok(());
    }
    run::run(run::cargo(&root).args(["deny", "--offline", "check", "licenses", "bans", "sources"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_step_is_refused() {
        assert!(run(&["tests".to_owned()]).unwrap_err().to_string().contains("tidy, gen, check, deny, test"));
    }
}
