//! `bench counts`: what `bench/counts` does under callgrind, compared with its committed budget. Instructions repeat on a
//! busy machine, so that three percent mean something.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{run, workspace::Workspace};

/// In percent, either way: what became cheaper is to be written down as well.
const TOLERANCE: f64 = 3.0;

type Counts = BTreeMap<String, u64>;

pub fn run(args: &[String]) -> Result<()> {
    let accept = match args {
        [] => false,
        [flag] if flag == "--accept" => true,
        _ => bail!("bench counts takes --accept or nothing"),
    };
    let workspace = Workspace::load()?;
    let folder = workspace.root.join("bench/counts");
    let counted = count(&workspace, &folder)?;
    let file = folder.join("budget.toml");
    if accept {
        fs::write(&file, written(&counted)).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{} counts accepted", counted.len());
        return Ok(());
    }
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let (table, failures) = compared(&read(&text)?, &counted);
    print!("{table}");
    if failures > 0 {
        bail!(
            "{failures} of {} differ by more than {TOLERANCE} %: mend them, or `cargo xtask bench counts --accept` and say \
             why in the commit",
            counted.len()
        );
    }
    Ok(())
}

fn count(workspace: &Workspace, folder: &Path) -> Result<Counts> {
    run::output(run::command("valgrind", folder).arg("--version")).context("install valgrind (Debian: `valgrind`)")?;
    let target = workspace.target.join("counts");
    let runner = runner(folder, &target)?;
    let out = target.join("out");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    run::run(
        run::cargo(folder)
            .args(["bench", "--quiet", "--locked"])
            .env("CARGO_TARGET_DIR", &target)
            .env("GUNGRAUN_RUNNER", runner)
            .env("GUNGRAUN_HOME", &out),
    )?;
    let mut counts = Counts::new();
    collect(&out, &mut counts)?;
    if counts.is_empty() {
        bail!("no counts in {}", out.display());
    }
    Ok(counts)
}

/// The framework's other half, of the version that the benchmark is locked to; installed below the target directory.
fn runner(folder: &Path, target: &Path) -> Result<PathBuf> {
    let lock: toml::Table = fs::read_to_string(folder.join("Cargo.lock"))?.parse()?;
    let packages = lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock names no packages")?;
    let version = packages.iter().find(|p| p.get("name").and_then(toml::Value::as_str) == Some("gungraun"));
    let version = version.and_then(|p| p.get("version")?.as_str()).context("Cargo.lock does not name gungraun")?;
    let root = target.join(format!("runner-{version}"));
    let runner = root.join("bin/gungraun-runner");
    if !runner.exists() {
        run::run(
            run::cargo(folder)
                .args(["install", "--quiet", "--locked", "gungraun-runner", "--version", version, "--root"])
                .arg(&root)
                .env("CARGO_TARGET_DIR", target),
        )?;
    }
    Ok(runner)
}

/// From every `callgrind.<function>.<case>.out`, however deep it lies.
fn collect(folder: &Path, counts: &mut Counts) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, counts)?;
            continue;
        }
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(case) = name.strip_prefix("callgrind.").and_then(|n| n.strip_suffix(".out")) else { continue };
        let total = total(&fs::read_to_string(&path)?).with_context(|| format!("{} has no totals", path.display()))?;
        counts.insert(case.to_owned(), total);
    }
    Ok(())
}

fn total(profile: &str) -> Option<u64> {
    let line = profile.lines().rev().find_map(|l| l.strip_prefix("totals:").or_else(|| l.strip_prefix("summary:")))?;
    line.split_whitespace().next()?.parse().ok()
}

fn read(budget: &str) -> Result<Counts> {
    let table: toml::Table = budget.parse().context("budget.toml")?;
    let number = |(case, value): (String, toml::Value)| {
        let count = value.as_integer().and_then(|n| u64::try_from(n).ok());
        Ok((case.clone(), count.with_context(|| format!("budget.toml: `{case}` is no count"))?))
    };
    table.into_iter().map(number).collect()
}

fn written(counts: &Counts) -> String {
    let mut out = String::from(
        "# Instructions of one call, counted by callgrind. `cargo xtask bench counts --accept` writes this; the commit says \
         why a number changed.\n\n",
    );
    counts.iter().for_each(|(case, n)| out.push_str(&format!("\"{case}\" = {n}\n")));
    out
}

/// A line per case, and how many are out of bounds, new or gone.
fn compared(budget: &Counts, counted: &Counts) -> (String, usize) {
    let (mut out, mut failures) = (String::new(), 0);
    let all: std::collections::BTreeSet<_> = budget.keys().chain(counted.keys()).collect();
    for case in all {
        let (line, fine) = match (budget.get(case), counted.get(case)) {
            (Some(&was), Some(&is)) => {
                let percent = (is as f64 / was.max(1) as f64 - 1.0) * 100.0;
                (format!("{is:>12} of {was:>12}  {percent:+.1} %"), percent.abs() <= TOLERANCE)
            }
            (None, Some(is)) => (format!("{is:>12}  has no budget"), false),
            (Some(was), None) => (format!("{:>12} of {was:>12}  was not counted", "-"), false),
            (None, None) => continue,
        };
        failures += usize::from(!fine);
        out.push_str(&format!("{} {case:<52} {line}\n", if fine { " " } else { "!" }));
    }
    (out, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_compared_with_their_budget() {
        let of = |text: &str| read(text).unwrap();
        let budget = of("\"a.x\" = 1000\n\"b.x\" = 1000\n\"gone.x\" = 1\n");
        let (table, failures) = compared(&budget, &of("\"a.x\" = 1029\n\"b.x\" = 960\n\"new.x\" = 1\n"));
        let marked: Vec<_> = table.lines().map(|l| &l[..3]).collect();
        assert_eq!((marked, failures), (vec!["  a", "! b", "! g", "! n"], 3), "{table}");
        assert_eq!(read(&written(&budget)).unwrap(), budget);
        assert!(read("\"a\" = \"many\"").is_err());
    }

    #[test]
    fn totals_are_read_from_a_profile() {
        assert_eq!(total("version: 1\nevents: Ir\nfn=a\n1 5\ntotals: 4711\n"), Some(4711));
        assert_eq!(total("events: Ir\nsummary: 12 3\n"), Some(12));
        assert_eq!(total("events: Ir\n"), None);
    }
}
