//! Stored values: the store's format byte, then the object. **[format]**
//!
//! Registry objects are JSON with the field names of [`crate::object`]. A format that this build does not know is an
//! error, never a guess: a feature level rises only when every server knows it.

use serde::{Serialize, de::DeserializeOwned};
use weft_store::{Bytes, Format, FormatError};

#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    #[error("value at `{key}` is not readable")]
    Format {
        key: String,
        #[source]
        source: FormatError,
    },
    #[error(
        "value at `{key}` is {found:?}, this build reads JSON there; start a version at least as new as the writer"
    )]
    NotJson { key: String, found: Format },
    #[error("value at `{key}` does not have the fields that belong there")]
    Fields {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

pub fn encode<T: Serialize>(value: &T) -> Bytes {
    #[expect(clippy::expect_used, reason = "our own types with string keys, into a Vec: nothing can fail")]
    let json = serde_json::to_vec(value).expect("plain data serializes");
    Format::Json.wrap(&json)
}

pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ValueError> {
    match Format::split(value).map_err(|source| ValueError::Format { key: key.into(), source })? {
        (Format::Json, json) => {
            serde_json::from_slice(json).map_err(|source| ValueError::Fields { key: key.into(), source })
        }
        (found, _) => Err(ValueError::NotJson { key: key.into(), found }),
    }
}
