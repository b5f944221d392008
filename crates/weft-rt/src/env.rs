//! The environment, read through one door. Flags with `env` in a role's clap definition are the normal way; this is for what
//! is inherited rather than configured (`RUST_LOG`, `NO_COLOR`).

/// A variable, if it is set, not empty, and UTF-8.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// This machine's name, as far as the kernel knows; `localhost` otherwise.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() || name == "(none)" { "localhost".into() } else { name.into() }
}
