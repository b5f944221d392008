//! libFuzzer on the target that `WEFT_FUZZ_TARGET` names. Started by `cargo xtask fuzz TARGET`.
#![no_main]
#![allow(unsafe_code, reason = "the macro exports libFuzzer's C entry point")]
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a fuzzer has no flags of its own, and says so by failing"
)]

use std::sync::LazyLock;

static BODY: LazyLock<weft_fuzz::Body> = LazyLock::new(|| {
    let name = std::env::var("WEFT_FUZZ_TARGET").unwrap_or_default();
    let found = weft_fuzz::TARGETS.iter().find(|(target, _)| *target == name);
    found.map(|(_, body)| *body).unwrap_or_else(|| panic!("no fuzz target {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| BODY(data));
