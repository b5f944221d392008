//! The one task runner: `cargo xtask VERB`. It needs cargo and git, nothing of the product, and (for `peers`) the package
//! clients of the machine. `check`, `tidy` and `ci` never write to the work tree.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a task runner reads the environment and the clock; the product may not"
)]

use anyhow::{Result, bail};

mod bench;
mod check;
mod ci;
mod features;
mod fuzz;
mod r#gen;
mod peers;
mod run;
mod test;
mod tidy;
mod workspace;

struct Verb {
    name: &'static str,
    args: &'static str,
    does: &'static str,
    run: fn(&[String]) -> Result<()>,
}

/// Help, dispatch and the list in CONTRIBUTING.md all come from here.
const VERBS: &[Verb] = &[
    Verb {
        name: "check",
        args: "[--all]",
        does: "fmt check and clippy on changed crates and their dependants; writes nothing",
        run: check::check,
    },
    Verb {
        name: "test",
        args: "[CRATE] [-- ARGS]",
        does: "run tests; without CRATE: all of them, after fetching the peers they need",
        run: test::test,
    },
    Verb {
        name: "sim",
        args: "[--seeds N | --seeds A..B | --seed S] [CRATE]",
        does: "run the simulation tests with more seeds than the CI does (default 200)",
        run: test::sim,
    },
    Verb { name: "fix", args: "", does: "cargo fmt, clippy --fix; nothing else is accepted for you", run: check::fix },
    Verb {
        name: "gen",
        args: "[--check]",
        does: "write (or compare) everything generated: protobuf code, docs/FEATURES.md",
        run: r#gen::run,
    },
    Verb {
        name: "tidy",
        args: "",
        does: "structure: layers, sizes, words, module cycles, links, licences",
        run: tidy::run,
    },
    Verb {
        name: "peers",
        args: "[--env]",
        does: "fetch the real peers into <target dir>/peers and print what is where",
        run: peers::run,
    },
    Verb {
        name: "bench",
        args: "peers [-s SCENARIO,…] [-p PEER,…] [-r ROUNDS] [-d SECS] | counts [--accept]",
        does: "Weft side by side with real peers; instructions per decision against bench/counts/budget.toml",
        run: bench::run,
    },
    Verb {
        name: "fuzz",
        args: "TARGET [--for 60s]",
        does: "fuzz one target; without TARGET: list them",
        run: fuzz::run,
    },
    Verb {
        name: "ci",
        args: "",
        does: "everything a submission must pass: gen --check, tidy, check --all, deny, test",
        run: ci::run,
    },
    Verb { name: "help", args: "", does: "this table", run: help },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = dispatch(&args) {
        eprintln!("xtask: {error:#}");
        std::process::exit(1);
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else { return help(&[]) };
    if ["-h", "--help"].contains(&name.as_str()) || rest.first().is_some_and(|a| a == "--help") {
        return help(&[]);
    }
    match VERBS.iter().find(|verb| verb.name == name) {
        Some(verb) => (verb.run)(rest),
        None => bail!("no verb {name:?}: `cargo xtask help` lists them"),
    }
}

fn help(_: &[String]) -> Result<()> {
    println!("cargo xtask VERB\n");
    for verb in VERBS {
        println!("  {:<6} {}\n           {}", verb.name, verb.args, verb.does);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_verb_is_refused_by_name() {
        let error = dispatch(&["tset".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("\"tset\"") && error.contains("help"), "{error}");
    }

    #[test]
    fn verbs_are_listed_once() {
        let mut names: Vec<_> = VERBS.iter().map(|v| v.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), VERBS.len());
    }
}
