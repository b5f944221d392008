//! The version of everything: one committed transaction.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `(incarnation, n)`. **[format]** `n` is sparse and opaque: etcd assigns it, the embedded stores count. A restore starts
/// a new incarnation above the old head. Revisions only move forward within an incarnation; another incarnation means
/// that nothing known before may be compared. Its text form is `incarnation.n`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision {
    pub incarnation: u32,
    pub n: u64,
}

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self { incarnation: 0, n: 0 };

    pub const fn new(incarnation: u32, n: u64) -> Self {
        Self { incarnation, n }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.n)
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a revision of the form incarnation.n")]
pub struct RevisionError(String);

impl FromStr for Revision {
    type Err = RevisionError;
    fn from_str(s: &str) -> Result<Self, RevisionError> {
        let bad = || RevisionError(s.into());
        let (i, n) = s.split_once('.').ok_or_else(bad)?;
        Ok(Self::new(i.parse().map_err(|_| bad())?, n.parse().map_err(|_| bad())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let r = Revision::new(3, 1042);
        assert_eq!(r.to_string(), "3.1042");
        assert_eq!("3.1042".parse::<Revision>().unwrap(), r);
        for bad in ["", "3", "3.", ".1", "a.b", "-1.2"] {
            assert!(bad.parse::<Revision>().is_err(), "{bad}");
        }
    }
}
