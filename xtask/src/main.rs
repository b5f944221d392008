//! The one task runner: `cargo xtask VERB`.
fn main() {}
