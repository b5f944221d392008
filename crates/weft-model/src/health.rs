//! Health of a check, a node or an instance.

use serde::{Deserialize, Serialize};

/// What the catalog says of an instance, best first: the order of the variants is the order of preference, and the
/// worst over several checks is the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Passing,
    Warning,
    /// Its lease lapsed a short while ago: used only when nothing better is there.
    Unknown,
    Critical,
    /// Going away by its own word; finishes what it has, gets nothing new.
    Draining,
    /// Taken out by an operator.
    Maintenance,
}

impl Health {
    /// May new work be sent there at all?
    pub fn is_pickable(self) -> bool {
        self <= Self::Unknown
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Critical => "critical",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
