//! `fuzz TARGET`: libFuzzer on one entry point of `fuzz/`, built by the ordinary compiler (no nightly, no cargo-fuzz).
//! The corpora are also replayed by the ordinary tests of `weft-fuzz`.

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
    let (target, time) = match args {
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
    // With an explicit --target, build scripts are built without the coverage flags; LTO would drop their tables.
    run::run(
        run::cargo(&folder)
            .args(["build", "--release", "--locked", "-p", "weft-fuzz", "--features", "libfuzzer", "--target", host])
            .env("CARGO_TARGET_DIR", &out)
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f")),
    )?;
    // New inputs go to the build folder; only what a person copies into fuzz/corpus is kept.
    let found = out.join("corpus").join(target);
    std::fs::create_dir_all(&found)?;
    let kept = folder.join("corpus").join(target);
    let mut fuzzer = run::command(out.join(host).join("release/weft-fuzz"), &folder);
    fuzzer.env("WEFT_FUZZ_TARGET", target).arg(&found);
    if kept.is_dir() {
        fuzzer.arg(kept);
    }
    fuzzer.arg(format!("-max_total_time={time}")).arg(format!("-artifact_prefix={}/{target}-", out.display()));
    fuzzer.args(["-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    run::run(&mut fuzzer)
}

fn targets(root: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("fuzz/src/lib.rs")).context("cannot read fuzz/src/lib.rs")?;
    Ok(listed(&text))
}

/// The rows of `TARGETS`: `("name", function),`.
fn listed(text: &str) -> Vec<String> {
    let rows = text.lines().skip_while(|l| !l.contains("TARGETS:")).skip(1).take_while(|l| l.trim() != "];");
    rows.filter_map(|l| Some(l.trim().strip_prefix("(\"")?.split('"').next()?.to_owned())).collect()
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
    fn targets_are_read_from_their_table() {
        let text =
            "const X: u8 = 1;\npub const TARGETS: &[T] = &[\n    (\"a\", a),\n    (\"b_c\", b),\n];\n(\"d\", d)\n";
        assert_eq!(listed(text), ["a", "b_c"]);
        assert!(targets(&crate::workspace::root()).unwrap().contains(&"spiffe_id".to_owned()));
    }

    #[test]
    fn times_are_read() {
        assert_eq!((seconds("60s").unwrap(), seconds("2m").unwrap(), seconds("7").unwrap()), (60, 120, 7));
        assert!(seconds("fast").is_err() && seconds("5d").is_err());
    }
}
