//! Logging: the names of fields, the set-up of a process, and how an error is printed with its causes.

use std::{error::Error, fmt};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// The message of an event is a constant; everything variable is a field under one of these names.
pub mod field {
    pub const CONN: &str = "conn";
    pub const REQ: &str = "req";
    pub const LISTENER: &str = "listener";
    pub const SRC_ID: &str = "src.id";
    pub const SRC_ADDR: &str = "src.addr";
    pub const DST_SERVICE: &str = "dst.service";
    pub const DST_ADDR: &str = "dst.addr";
    pub const ROUTE: &str = "route";
    pub const RULE: &str = "rule";
    pub const VERDICT: &str = "verdict";
    pub const FAILURE: &str = "failure";
    pub const SIDE: &str = "side";
    pub const REV: &str = "rev";
    pub const DIGEST: &str = "digest";
    pub const DUR_US: &str = "dur_us";
    pub const RX: &str = "rx";
    pub const TX: &str = "tx";
    pub const ATTEMPT: &str = "attempt";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Installs the process's subscriber, once; later calls change nothing. `filter` is in `RUST_LOG`'s syntax.
pub fn init<W>(format: Format, filter: &str, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(true);
    // fails when one is installed already
    let _ = match format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// What `RUST_LOG` says, else `default`.
pub fn filter(default: &str) -> String {
    crate::env::var("RUST_LOG").unwrap_or_else(|| default.into())
}

/// An error with its causes: `a: b: c`.
pub fn chain(error: &dyn Error) -> Chain<'_> {
    Chain(error)
}

pub struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.0.to_string();
        f.write_str(&told)?;
        let mut cause = self.0.source();
        while let Some(e) = cause {
            let text = e.to_string();
            // some errors of others print their source themselves
            if !told.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            told = text;
            cause = e.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the map")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn prints_every_cause_once() {
        let e = Outer(std::io::Error::other("it rained"));
        assert_eq!(chain(&e).to_string(), "cannot read the map: it rained");
        let e = Outer(std::io::Error::other(Outer(std::io::Error::other("it rained"))));
        assert_eq!(chain(&e).to_string(), "cannot read the map: it rained", "an error may print its source itself");
    }
}
