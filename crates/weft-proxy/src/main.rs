//! The data plane alone.
fn main() {}
