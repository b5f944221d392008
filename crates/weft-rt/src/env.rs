//! The environment, read through one door. Flags with `env` in a role's clap definition are the normal way; this is for what
//! is inherited rather than configured (`RUST_LOG`, `NO_COLOR`).

/// A variable, if it is set, not empty, and UTF-8.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}
