//! Writes the Rust code of our protocol definitions to `crates/weft-wire/src/gen`; `--check` compares and writes nothing.
//!
//! `cargo xtask gen` runs it. No `protoc` is needed.

use std::{fs, path::Path};

use anyhow::Context as _;

const FILES: [&str; 6] = [
    "weft/v1/fragment.proto",
    "weft/v1/hello.proto",
    "weft/v1/workload.proto",
    "weft/v1/observe.proto",
    "envoy/service/discovery/v3/ads.proto",
    "grpc/health/v1/health.proto",
];

fn main() -> anyhow::Result<()> {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(_) => anyhow::bail!("usage: gen-proto [--check]"),
    };
    let wire = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/weft-wire");
    let checked_in = wire.join("src/gen");
    let scratch = tempfile::tempdir().context("create a temporary directory")?;
    generate(&wire, scratch.path())?;
    for entry in fs::read_dir(scratch.path())? {
        let entry = entry?;
        let (new, at) = (fs::read(entry.path())?, checked_in.join(entry.file_name()));
        if fs::read(&at).is_ok_and(|old| old == new) {
            continue;
        }
        if check {
            anyhow::bail!("{} is not what the generator writes: run `cargo xtask gen`", at.display());
        }
        println!("writing {}", at.display());
        fs::create_dir_all(&checked_in)?;
        fs::write(&at, new).with_context(|| format!("write {}", at.display()))?;
    }
    Ok(())
}

fn generate(wire: &Path, out: &Path) -> anyhow::Result<()> {
    let descriptors = protox::compile(FILES, [wire.join("proto"), wire.join("third_party")]).context("parse")?;
    let mut config = prost_build::Config::new();
    config
        // maps in order: the same fragment must encode to the same bytes
        .btree_map(["."])
        // slices of what was received instead of copies
        .bytes(["."])
        // written by hand, without the secret
        .skip_debug(["weft.v1.JoinRequest"]);
    tonic_prost_build::configure()
        .out_dir(out)
        .codec_path("crate::codec::Small")
        .compile_well_known_types(true)
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(descriptors, config)
        .context("generate")
}
