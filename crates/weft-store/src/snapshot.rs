//! A whole store at one revision, and its bytes for a backup file.

use weft_model::{Digest, Revision};

use crate::{
    codec::{self, Malformed, Reader, Writer},
    entry::Versioned,
    error::SnapshotError,
    txn::{Key, LEADER_KEY},
};

/// Every key at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    pub items: Vec<(Key, Versioned)>,
}

/// **[format]** How a snapshot file begins; its digest ends it.
const MAGIC: &[u8] = b"weft snapshot\n";

// === impl Snapshot ===

impl Snapshot {
    /// A file that says what it is and notices any damage.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::record();
        w.revision(self.revision).u64(self.items.len() as u64);
        for (key, value) in &self.items {
            codec::item(&mut w, key, value);
        }
        let mut file = [MAGIC, &w.bytes()].concat();
        let digest = Digest::of(&file);
        file.extend_from_slice(digest.as_bytes());
        file
    }

    pub fn from_bytes(file: &[u8]) -> Result<Self, SnapshotError> {
        if !file.starts_with(MAGIC) {
            return Err(SnapshotError::Unknown);
        }
        let (content, digest) = file.split_last_chunk::<32>().ok_or(SnapshotError::Checksum)?;
        if Digest::of(content).as_bytes() != digest {
            return Err(SnapshotError::Checksum);
        }
        let record = content.strip_prefix(MAGIC).ok_or(SnapshotError::Checksum)?;
        Self::read(record).map_err(|e| match e {
            Malformed::Layout(_) => SnapshotError::Unknown,
            e => SnapshotError::Malformed(e.to_string()),
        })
    }

    fn read(record: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::record(record)?;
        let (revision, n) = (r.revision()?, r.u64()?);
        let items = (0..n).map(|_| codec::read_item(&mut r)).collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Self { revision, items })
    }

    /// The rows as a restore writes them: made anew at its revision. Leadership is not restored: whoever held it when
    /// the snapshot was taken does not hold it now.
    pub(crate) fn rows_at(&self, revision: Revision) -> impl Iterator<Item = (Key, Versioned)> + '_ {
        let rows = self.items.iter().filter(|(key, _)| key.as_str() != LEADER_KEY);
        rows.map(move |(key, v)| {
            (key.clone(), Versioned { value: v.value.clone(), created: revision, modified: revision })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::Format;

    fn snapshot() -> Snapshot {
        let v = |n| Versioned {
            value: Format::Raw.wrap(b"v"),
            created: Revision::new(1, 2),
            modified: Revision::new(1, n),
        };
        Snapshot { revision: Revision::new(1, 9), items: vec![("a".into(), v(3)), ("b".into(), v(9))] }
    }

    #[test]
    fn reg_30_snapshot_files_round_trip() {
        assert_eq!(Snapshot::from_bytes(&snapshot().to_bytes()), Ok(snapshot()));
    }

    #[test]
    fn reg_30_any_damage_to_a_snapshot_file_is_noticed() {
        let file = snapshot().to_bytes();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            Snapshot::from_bytes(&bad).unwrap_err();
            Snapshot::from_bytes(&file[..at]).unwrap_err();
        }
        assert_eq!(Snapshot::from_bytes(b"{}"), Err(SnapshotError::Unknown));
    }
}
