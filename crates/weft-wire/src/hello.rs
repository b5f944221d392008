//! The first stream of a `weft/1` connection, both ways. **[format]**

use prost::Message as _;

/// Longest value that becomes a label; what is longer is cut at a character.
pub const MAX_LABEL: usize = 128;

/// Who speaks: labels of metrics, nothing else. Identity comes from the certificate alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    pub uid: String,
    pub workload: String,
    pub app: String,
    pub version: String,
    pub cluster: String,
    pub zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hello is no message of ours")]
pub struct HelloError(#[source] prost::DecodeError);

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        let Self { uid, workload, app, version, cluster, zone } = self.clone();
        crate::v1::Hello { uid, workload, app, version, cluster, zone }.encode_to_vec()
    }

    /// Fields are cut to [`MAX_LABEL`] (the uid to four names): a peer may say what it wants, not how much.
    pub fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let crate::v1::Hello { uid, workload, app, version, cluster, zone } =
            crate::v1::Hello::decode(bytes).map_err(HelloError)?;
        let label = |s| cut(s, MAX_LABEL);
        Ok(Self {
            uid: cut(uid, 4 * weft_model::name::MAX_NAME),
            workload: label(workload),
            app: label(app),
            version: label(version),
            cluster: label(cluster),
            zone: label(zone),
        })
    }
}

fn cut(mut s: String, most: usize) -> String {
    s.truncate(s.floor_char_boundary(most));
    s
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(fields in prop::array::uniform6("[ -~ß語]{0,40}")) {
            let [uid, workload, app, version, cluster, zone] = fields;
            let hello = Hello { uid, workload, app, version, cluster, zone };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Hello::decode(&bytes);
        }
    }

    #[test]
    fn long_fields_are_cut_at_a_character() {
        let hello = Hello { app: "語".repeat(100), ..Hello::default() };
        assert_eq!(Hello::decode(&hello.encode()).unwrap().app, "語".repeat(42));
    }
}
