//! **[format]** What is stored and what a snapshot file holds, as bytes. Integers are big-endian, text and values have
//! their length before them, and each record begins with the version of its layout.

use std::sync::Arc;

use weft_model::{Revision, Wall};

use crate::{
    entry::{Change, Entry, Head, Versioned},
    txn::{Bytes, Key, TxnId},
};

/// The only layout so far, of every record.
const LAYOUT: u8 = 1;
const HAS_BEFORE: u8 = 1;
const HAS_AFTER: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the record ends early")]
    Short,
    #[error("the record goes on after its end")]
    Long,
    #[error("text is not UTF-8")]
    Text,
    #[error("layout {0} is unknown")]
    Layout(u8),
}

pub(crate) struct Writer(Vec<u8>);

pub(crate) struct Reader<'a>(&'a [u8]);

// === impl Writer ===

impl Writer {
    pub(crate) fn record() -> Self {
        Self(vec![LAYOUT])
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u64(&mut self, n: u64) -> &mut Self {
        self.raw(&n.to_be_bytes())
    }

    pub(crate) fn revision(&mut self, r: Revision) -> &mut Self {
        self.raw(&r.incarnation.to_be_bytes()).u64(r.n)
    }

    /// A transaction is far below what the length can say, so it never saturates.
    pub(crate) fn sized(&mut self, bytes: &[u8]) -> &mut Self {
        self.raw(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()).raw(bytes)
    }

    fn versioned(&mut self, v: &Versioned) -> &mut Self {
        self.revision(v.created).revision(v.modified).sized(&v.value)
    }

    fn about(&mut self, revision: Revision, txn_id: TxnId, when: Wall, who: &str, why: &str) -> &mut Self {
        self.revision(revision).raw(&txn_id.0.to_be_bytes()).raw(&when.as_millis().to_be_bytes());
        self.sized(who.as_bytes()).sized(why.as_bytes())
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(crate) fn record(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Self(bytes);
        match reader.array()? {
            [LAYOUT] => Ok(reader),
            [other] => Err(Malformed::Layout(other)),
        }
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Long) }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed::Short)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn revision(&mut self) -> Result<Revision, Malformed> {
        Ok(Revision::new(self.u32()?, self.u64()?))
    }

    fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.u32()?;
        self.take(usize::try_from(n).map_err(|_| Malformed::Short)?)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.sized()?).map_err(|_| Malformed::Text)
    }

    fn versioned(&mut self) -> Result<Versioned, Malformed> {
        let (created, modified, value) = (self.revision()?, self.revision()?, self.sized()?);
        Ok(Versioned { created, modified, value: Arc::from(value) })
    }

    pub(crate) fn head(&mut self) -> Result<Head, Malformed> {
        let (revision, id, when) = (self.revision()?, self.array()?, self.array()?);
        let (who, why) = (self.text()?.into(), self.text()?.into());
        Ok(Head {
            revision,
            txn_id: TxnId(u128::from_be_bytes(id)),
            who,
            when: Wall::millis(i64::from_be_bytes(when)),
            why,
        })
    }
}

// === records ===

/// A row: revisions, then the value up to the end.
pub(crate) fn row(v: &Versioned) -> Vec<u8> {
    let mut w = Writer::record();
    w.revision(v.created).revision(v.modified).raw(&v.value);
    w.bytes()
}

pub(crate) fn read_row(bytes: &[u8]) -> Result<Versioned, Malformed> {
    let mut r = Reader::record(bytes)?;
    let (created, modified) = (r.revision()?, r.revision()?);
    Ok(Versioned { created, modified, value: Bytes::from(r.0) })
}

/// Without copying the value.
pub(crate) fn read_modified(bytes: &[u8]) -> Result<Revision, Malformed> {
    let mut r = Reader::record(bytes)?;
    r.revision()?;
    r.revision()
}

pub(crate) fn head(w: &mut Writer, h: &Head) {
    w.about(h.revision, h.txn_id, h.when, &h.who, &h.why);
}

pub(crate) fn entry(e: &Entry) -> Vec<u8> {
    let mut w = Writer::record();
    w.about(e.revision, e.txn_id, e.when, &e.who, &e.why);
    for change in &e.changes {
        let before = if change.before.is_some() { HAS_BEFORE } else { 0 };
        let after = if change.after.is_some() { HAS_AFTER } else { 0 };
        w.sized(change.key.as_bytes()).raw(&[before | after]);
        for side in [&change.before, &change.after].into_iter().flatten() {
            w.versioned(side);
        }
    }
    w.bytes()
}

pub(crate) fn read_entry(bytes: &[u8]) -> Result<Entry, Malformed> {
    let mut r = Reader::record(bytes)?;
    let Head { revision, txn_id, who, when, why } = r.head()?;
    let mut changes = vec![];
    while r.end().is_err() {
        let key = Key::from(r.text()?);
        let [sides] = r.array()?;
        let before = if sides & HAS_BEFORE != 0 { Some(r.versioned()?) } else { None };
        let after = if sides & HAS_AFTER != 0 { Some(r.versioned()?) } else { None };
        changes.push(Change { key, before, after });
    }
    Ok(Entry { revision, txn_id, who, when, why, changes })
}

pub(crate) fn item(w: &mut Writer, key: &Key, v: &Versioned) {
    w.sized(key.as_bytes()).versioned(v);
}

pub(crate) fn read_item(r: &mut Reader<'_>) -> Result<(Key, Versioned), Malformed> {
    Ok((Key::from(r.text()?), r.versioned()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versioned() -> impl Strategy<Value = Versioned> {
        (any::<[u32; 2]>(), any::<[u64; 2]>(), any::<Vec<u8>>()).prop_map(|(i, n, value)| Versioned {
            created: Revision::new(i[0], n[0]),
            modified: Revision::new(i[1], n[1]),
            value: value.into(),
        })
    }

    prop_compose! {
        fn an_entry()(
            (i, n, id, ms) in any::<(u32, u64, u128, i64)>(),
            (who, why) in any::<(String, String)>(),
            changes in prop::collection::vec(
                (any::<String>(), prop::option::of(versioned()), prop::option::of(versioned())), 0..4),
        ) -> Entry {
            let change = |(key, before, after): (String, _, _)| Change { key: Key::from(key), before, after };
            let changes = changes.into_iter().map(change).collect();
            Entry { revision: Revision::new(i, n), txn_id: TxnId(id), who, when: Wall::millis(ms), why, changes }
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(v in versioned(), e in an_entry()) {
            prop_assert_eq!(read_modified(&row(&v)), Ok(v.modified));
            prop_assert_eq!(read_row(&row(&v)), Ok(v));
            prop_assert_eq!(read_entry(&entry(&e)), Ok(e));
        }

        #[test]
        fn a_cut_entry_is_never_read_as_the_whole(e in an_entry(), cut in any::<prop::sample::Index>()) {
            let bytes = entry(&e);
            let cut = cut.index(bytes.len());
            prop_assert_ne!(read_entry(&bytes[..cut]), Ok(e));
        }
    }

    #[test]
    fn an_unknown_layout_is_named() {
        assert_eq!(read_row(&[9]), Err(Malformed::Layout(9)));
        assert_eq!(read_row(&[]), Err(Malformed::Short));
    }
}
