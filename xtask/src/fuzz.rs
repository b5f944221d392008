//! `fuzz TARGET`: libFuzzer on one entry point of `fuzz/`, built by the ordinary compiler (no nightly, no cargo-fuzz).
//! The corpora are also replayed by plain tests of the crates they belong to.

use crate::{run, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::path::Path;

/// What cargo-fuzz passes, without the sanitizers that need a nightly compiler: coverage for libFuzzer, and overflow and
/// debug assertions as faults.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "--cfg=fuzzing",
];

pub fn run(args: &[String]) -> Result<()> {
    let workspace = Workspace::load()?;
    let targets = targets(&workspace.root)?;
    let (target, seconds) = match args {
        [] => {
            println!("fuzz targets: {}", targets.join(", "));
            return Ok(());
        }
        [target] => (target, 60),
        [target, flag, time] if flag == "--for" => (target, seconds(time)?),
        _ => bail!("fuzz takes TARGET [--for 60s]"),
    };
    if !targets.contains(target) {
        bail!("no fuzz target {target:?}: {}", targets.join(", "));
    }
    let folder = workspace.root.join("fuzz");
    let out = workspace.target.join("fuzz");
    let host = run::output(run::command("rustc", &folder).arg("-vV"))?;
    let host = host.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?;
    // With an explicit --target, build scripts are built without the coverage flags.
    run::run(
        run::cargo(&folder)
            .args(["build", "--release", "--bin", target, "--target", host])
            .env("CARGO_TARGET_DIR", &out)
            .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f")),
    )?;
    // New inputs go to the build folder; only what a person copies into fuzz/corpus is kept.
    let found = out.join("corpus").join(target);
    std::fs::create_dir_all(&found)?;
    let kept = folder.join("corpus").join(target);
    let mut fuzzer = run::command(out.join(host).join("release").join(target), &folder);
    fuzzer.arg(&found);
    if kept.is_dir() {
        fuzzer.arg(kept);
    }
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", out.display()));
    fuzzer.args(["-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    run::run(&mut fuzzer)
}

fn targets(root: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("fuzz/Cargo.toml")).context("cannot read fuzz/Cargo.toml")?;
    let table: toml::Table = text.parse().context("fuzz/Cargo.toml")?;
    let bins = table.get("bin").and_then(|b| b.as_array()).cloned().unwrap_or_default();
    Ok(bins.iter().filter_map(|b| b.get("name")?.as_str().map(str::to_owned)).collect())
}

/// `90`, `90s`, `10m`, `1h`.
fn seconds(text: &str) -> Result<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("{text:?} is no time: 60s, 10m, 1h"),
    };
    Ok(number.parse::<u64>().with_context(|| format!("{text:?} is no time: 60s, 10m, 1h"))? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!((seconds("60s").unwrap(), seconds("2m").unwrap(), seconds("7").unwrap()), (60, 120, 7));
        assert!(seconds("fast").is_err() && seconds("5d").is_err());
    }
}
