//! Writes the Rust code of our protocol definitions: `gen-proto <crates/weft-wire> <output directory>`.
//!
//! The output is checked in under `src/gen`; `cargo xtask gen` compares it. No `protoc` is needed.

use std::{fs, path::PathBuf};

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
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(wire), Some(out), None) = (args.next(), args.next(), args.next()) else {
        anyhow::bail!("usage: gen-proto <crates/weft-wire> <output directory>");
    };
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let descriptors = protox::compile(FILES, [wire.join("proto"), wire.join("third_party")]).context("parse")?;
    let mut config = prost_build::Config::new();
    config
        // maps in order: the same fragment must encode to the same bytes
        .btree_map(["."])
        // slices of what was received instead of copies
        .bytes(["."])
        .compile_well_known_types()
        .skip_debug(["weft.v1.JoinRequest"]);
    tonic_prost_build::configure()
        .out_dir(&out)
        .compile_well_known_types(true)
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(descriptors, config)
        .context("generate")
}
