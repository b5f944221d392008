//! The issuance ledger: what was signed, for whom, on which node. Written before the certificate exists.

use weft_identity::{KeyHash, Serial};
use weft_model::{SpiffeId, Wall};

use crate::codec::{DecodeError, Reader, Writer};

const FORMAT: u8 = 1;

/// One issuance. **[format]** by [`LedgerRecord::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRecord {
    pub serial: Serial,
    pub id: SpiffeId,
    /// The node that asked; empty for the control plane's own.
    pub node: String,
    pub issued: Wall,
    pub not_after: Wall,
    pub issuer: KeyHash,
}

impl LedgerRecord {
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT)
            .bytes(self.serial.as_bytes())
            .text(self.id.as_str())
            .text(&self.node)
            .wall(self.issued)
            .wall(self.not_after)
            .key(&self.issuer)
            .done()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes, "issuance record", FORMAT)?;
        let this = Self {
            serial: Serial::new(r.bytes()?),
            id: SpiffeId::parse(r.text()?).map_err(|_| r.corrupt())?,
            node: r.text()?.to_owned(),
            issued: r.wall()?,
            not_after: r.wall()?,
            issuer: r.key()?,
        };
        r.done()?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sec_01_ledger_records_round_trip(
            serial in proptest::collection::vec(any::<u8>(), 1..=16), node in "[a-z0-9-]{0,20}",
            sa in "[a-z]{1,20}", issued: i64, not_after: i64, issuer: [u8; 32], cut: prop::sample::Index,
        ) {
            let record = LedgerRecord {
                serial: Serial::new(&serial),
                id: SpiffeId::parse(&format!("spiffe://mesh.weft/ns/default/sa/{sa}")).unwrap(),
                node,
                issued: Wall::millis(issued),
                not_after: Wall::millis(not_after),
                issuer: KeyHash::from_bytes(issuer),
            };
            let bytes = record.encode();
            prop_assert_eq!(LedgerRecord::decode(&bytes).unwrap(), record);
            prop_assert!(LedgerRecord::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn sec_01_ledger_garbage_never_panics(bytes: Vec<u8>) {
            let _ = LedgerRecord::decode(&bytes);
        }
    }

    #[test]
    fn sec_01_a_newer_ledger_format_is_named() {
        let e = LedgerRecord::decode(&[9, 0]).unwrap_err();
        assert_eq!(e, DecodeError::Format { what: "issuance record", format: 9 });
    }
}
