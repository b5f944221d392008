//! What is committed: keys, values, expectations, transactions, and the limits that every store enforces alike.

use std::{borrow::Borrow, collections::BTreeMap, fmt, ops::Deref, str::FromStr, sync::Arc};

use weft_model::{Revision, Wall};

use crate::error::CommitError;

/// **[format]** The largest transaction, by [`Txn::size`]. etcd refuses requests over 1.5 MiB.
pub const MAX_TXN_BYTES: usize = 1 << 20;
/// The most expectations of one transaction. etcd allows 128 compares, and ours must all stand at the top level of its
/// request, beside those that the store adds itself. Whoever reads more keys than this expects their prefix.
pub const MAX_EXPECTS: usize = 96;
/// The most writes and prefix deletes of one transaction. etcd allows 128 operations a level, so these nest.
pub const MAX_WRITES: usize = 2048;
/// The longest key or prefix.
pub const MAX_KEY_BYTES: usize = 4096;
/// **[format]** Whoever holds leadership owns this key; its mod revision is the term. A restore drops it.
pub const LEADER_KEY: &str = "sys/leader";

/// What a value is made of. Cheap to clone.
pub type Bytes = Arc<[u8]>;

/// The name of a value: `/`-separated, escaped by whoever makes it. Order is by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// Names one transaction for ever: 128 random bits from the caller's dice. Its text form is 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TxnId(pub u128);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// The value begins with a format byte: see [`Format`].
    Put(Bytes),
    Delete,
}

/// Something that the planner read and that must still be so when its transaction commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    Key {
        key: Key,
        state: KeyState,
    },
    /// No key under `prefix` was written after `unchanged_since`. Whether a *deletion* counts differs: the embedded
    /// stores notice it as far back as their log reaches, etcd compares only what exists. So expect a group through
    /// [`Expect::group`], and delete from it with [`Txn::touch_guard`].
    Prefix {
        prefix: Key,
        unchanged_since: Revision,
    },
    /// [`LEADER_KEY`] was last written at `term`. When it fails, leadership is lost: planning again does not help.
    Leader {
        term: Revision,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Absent,
    ModRevision(Revision),
}

/// One transaction: one revision, the unit that a user sees. Each key has one fate: a key that is written, or deleted by
/// name, must not lie under a deleted prefix, nor one deleted prefix under another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    pub txn_id: TxnId,
    pub who: String,
    pub when: Wall,
    pub why: String,
    pub expects: Vec<Expect>,
    pub writes: BTreeMap<Key, Write>,
    pub delete_prefixes: Vec<Key>,
}

/// **[format]** The first byte of every value says what the rest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Bytes that mean nothing to us, such as a secret or an empty marker.
    Raw,
    Json,
    /// Unknown fields survive a rewrite.
    Proto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("the value is empty: it lacks its format byte")]
    Empty,
    #[error("value format {0} is unknown: a newer version may have written it; upgrade this one to read it")]
    Unknown(u8),
}

// === impl Key ===

impl Key {
    pub fn new(key: impl Into<Arc<str>>) -> Self {
        Self(key.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Key {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(s: &str) -> Self {
        Self(s.into())
    }
}

impl From<String> for Key {
    fn from(s: String) -> Self {
        Self(s.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

// === impl TxnId ===

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a transaction id of 32 hex digits")]
pub struct TxnIdError(String);

impl FromStr for TxnId {
    type Err = TxnIdError;
    fn from_str(s: &str) -> Result<Self, TxnIdError> {
        let digits = s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(s, 16).ok()).flatten().map(Self).ok_or_else(|| TxnIdError(s.into()))
    }
}

// === impl Expect ===

/// The key that stands for deletions from `group` (a prefix that ends in `/`). It lies outside the group, is rewritten
/// and never deleted, so every store sees it change. Guards nest as groups do: who expects `a/` also sees a deletion
/// that touched the guard of `a/b/`; the reverse does not hold, so a transaction that deletes whole groups touches the
/// guard of each group that anyone expects by itself.
pub fn guard_key(group: &str) -> Key {
    Key::from(format!("guard/{group}"))
}

impl Expect {
    pub fn absent(key: impl Into<Key>) -> Self {
        Self::Key { key: key.into(), state: KeyState::Absent }
    }

    pub fn unchanged(key: impl Into<Key>, modified: Revision) -> Self {
        Self::Key { key: key.into(), state: KeyState::ModRevision(modified) }
    }

    /// Nothing in `group` was written or, given the guard discipline, deleted after `since`.
    pub fn group(group: &str, since: Revision) -> [Self; 2] {
        [Key::from(group), guard_key(group)].map(|prefix| Self::Prefix { prefix, unchanged_since: since })
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { key, state: KeyState::Absent } => write!(f, "`{key}` is absent"),
            Self::Key { key, state: KeyState::ModRevision(r) } => write!(f, "`{key}` is at {r}"),
            Self::Prefix { prefix, unchanged_since } => write!(f, "`{prefix}*` is unchanged since {unchanged_since}"),
            Self::Leader { term } => write!(f, "the leader's term is {term}"),
        }
    }
}

// === impl Txn ===

/// Beside keys and values, what one element costs: a generous bound for any store's own encoding.
const OVERHEAD: usize = 64;

impl Txn {
    pub fn new(txn_id: TxnId, who: impl Into<String>, when: Wall, why: impl Into<String>) -> Self {
        let (who, why) = (who.into(), why.into());
        Self { txn_id, who, when, why, expects: vec![], writes: BTreeMap::new(), delete_prefixes: vec![] }
    }

    #[must_use]
    pub fn expect(mut self, expect: Expect) -> Self {
        self.expects.push(expect);
        self
    }

    #[must_use]
    pub fn expect_all(mut self, expects: impl IntoIterator<Item = Expect>) -> Self {
        self.expects.extend(expects);
        self
    }

    #[must_use]
    pub fn put(mut self, key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        self.writes.insert(key.into(), Write::Put(value.into()));
        self
    }

    #[must_use]
    pub fn delete(mut self, key: impl Into<Key>) -> Self {
        self.writes.insert(key.into(), Write::Delete);
        self
    }

    #[must_use]
    pub fn delete_prefix(mut self, prefix: impl Into<Key>) -> Self {
        self.delete_prefixes.push(prefix.into());
        self
    }

    /// Rewrites the guard of `group`: part of every transaction that deletes from it.
    #[must_use]
    pub fn touch_guard(self, group: &str) -> Self {
        self.put(guard_key(group), Format::Raw.wrap(&[]))
    }

    /// An upper bound of what it takes to send, the same on every store.
    pub fn size(&self) -> usize {
        let expects = self.expects.iter().map(|e| match e {
            Expect::Key { key, .. } => key.len(),
            Expect::Prefix { prefix, .. } => prefix.len(),
            Expect::Leader { .. } => LEADER_KEY.len(),
        });
        let writes = self.writes.iter().map(|(key, write)| match write {
            Write::Put(value) => key.len().saturating_add(value.len()),
            Write::Delete => key.len(),
        });
        let prefixes = self.delete_prefixes.iter().map(|p| p.len());
        let about = [self.who.len(), self.why.len()].into_iter();
        about.chain(expects).chain(writes).chain(prefixes).fold(0, |sum, n| sum.saturating_add(n + OVERHEAD))
    }

    /// The refusals that do not depend on what is stored: each store calls this first.
    pub fn check(&self) -> Result<(), CommitError> {
        let size = self.size();
        if size > MAX_TXN_BYTES {
            return Err(CommitError::TooLarge { what: "bytes", size, most: MAX_TXN_BYTES });
        }
        if self.expects.len() > MAX_EXPECTS {
            return Err(CommitError::TooLarge { what: "expectations", size: self.expects.len(), most: MAX_EXPECTS });
        }
        let writes = self.writes.len() + self.delete_prefixes.len();
        if writes > MAX_WRITES {
            return Err(CommitError::TooLarge { what: "writes", size: writes, most: MAX_WRITES });
        }
        let expected = self.expects.iter().filter_map(|e| match e {
            Expect::Key { key, .. } => Some(key),
            _ => None,
        });
        for key in self.writes.keys().chain(&self.delete_prefixes).chain(expected) {
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                let why = format!("a key has 1 to {MAX_KEY_BYTES} bytes, this one {}", key.len());
                return Err(CommitError::Invalid { key: key.clone(), why });
            }
        }
        for (key, write) in &self.writes {
            if matches!(write, Write::Put(value) if value.is_empty()) {
                return Err(CommitError::Invalid { key: key.clone(), why: FormatError::Empty.to_string() });
            }
        }
        for (i, prefix) in self.delete_prefixes.iter().enumerate() {
            let others = self.delete_prefixes.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, p)| p);
            if let Some(key) = self.writes.keys().chain(others).find(|k| k.starts_with(prefix.as_str())) {
                return Err(CommitError::DuplicateKey { key: key.clone(), prefix: prefix.clone() });
            }
        }
        Ok(())
    }
}

// === impl Format ===

impl Format {
    const fn byte(self) -> u8 {
        match self {
            Self::Raw => 1,
            Self::Json => 2,
            Self::Proto => 3,
        }
    }

    /// The value as stored: the format byte, then `body`.
    pub fn wrap(self, body: &[u8]) -> Bytes {
        std::iter::once(self.byte()).chain(body.iter().copied()).collect::<Vec<_>>().into()
    }

    /// The format of a stored value, and its body.
    pub fn split(value: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        let (first, body) = value.split_first().ok_or(FormatError::Empty)?;
        let known = [Self::Raw, Self::Json, Self::Proto].into_iter().find(|f| f.byte() == *first);
        known.map(|f| (f, body)).ok_or(FormatError::Unknown(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_format() {
        let value = Format::Json.wrap(b"{}");
        assert_eq!(&value[..], b"\x02{}");
        assert_eq!(Format::split(&value), Ok((Format::Json, &b"{}"[..])));
        assert_eq!(Format::split(b""), Err(FormatError::Empty));
        assert_eq!(Format::split(b"\x09x"), Err(FormatError::Unknown(9)));
    }

    #[test]
    fn txn_ids_round_trip() {
        let id = TxnId(0x1f);
        assert_eq!(id.to_string(), "0000000000000000000000000000001f");
        assert_eq!(id.to_string().parse::<TxnId>().unwrap(), id);
        for bad in ["", "1f", "+000000000000000000000000000000f", "0000000000000000000000000000001g"] {
            assert!(bad.parse::<TxnId>().is_err(), "{bad}");
        }
    }
}
