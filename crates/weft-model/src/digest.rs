//! Fingerprints of encoded fragments, and their order-free sum.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// SHA-256 of something encoded. Digests add (lane-wise, wrapping): the digest of a set is the sum over its members, so
/// it can be kept incrementally and does not depend on the order of arrival. It finds drift; it is no signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of the empty set.
    pub const ZERO: Self = Self([0; 32]);

    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of a named member of a set: the name counts, so that two equal values under other names differ.
    pub fn of_named(name: &str, bytes: &[u8]) -> Self {
        let mut h = Sha256::new();
        h.update(u64::try_from(name.len()).unwrap_or(u64::MAX).to_le_bytes());
        h.update(name);
        h.update(bytes);
        Self(h.finalize().into())
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.lanes(other, u64::wrapping_add)
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.lanes(other, u64::wrapping_sub)
    }

    fn lanes(self, other: Self, op: fn(u64, u64) -> u64) -> Self {
        let mut out = [0; 32];
        for ((o, a), b) in out.chunks_exact_mut(8).zip(self.0.chunks_exact(8)).zip(other.0.chunks_exact(8)) {
            let lane = |x: &[u8]| x.try_into().map_or(0, u64::from_le_bytes);
            o.copy_from_slice(&op(lane(a), lane(b)).to_le_bytes());
        }
        Self(out)
    }
}

/// The first eight bytes: enough for a person to compare.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sum_is_order_free_and_undone_by_minus(a: Vec<u8>, b: Vec<u8>, c: Vec<u8>) {
            let [a, b, c] = [a, b, c].map(|x| Digest::of(&x));
            prop_assert_eq!(a.plus(b).plus(c), c.plus(a).plus(b));
            prop_assert_eq!(a.plus(b).minus(b), a);
            prop_assert_eq!(a.minus(a), Digest::ZERO);
        }
    }

    #[test]
    fn names_count() {
        assert_ne!(Digest::of_named("a", b"bc"), Digest::of_named("ab", b"c"));
    }
}
