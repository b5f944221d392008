//! Where the control plane keeps its own in the store. **[format]**
//!
//! | key | value |
//! |---|---|
//! | `sys/mesh` | [`MeshRecord`], committed by the first start |
//! | `sys/admin` | [`AdminRecord`]: the hash of the admin token |
//! | `sys/token/<id>` | [`weft_ca::TokenRecord`]: a join token, without its secret |
//! | `sys/grant/<ns>/<service account>/<service>` | [`crate::may_register::Grant`] |
//! | `sys/ca/roots`, `sys/ca/signing` | [`weft_ca::Journal`], keys sealed |
//! | `ledger/<serial>` | [`weft_ca::LedgerRecord`] |
//! | `res/<kind>/<ns>/<name>` | a resource as its document, without status |
//! | `status/<kind>/<ns>/<name>` | [`crate::status::StatusRecord`] |
//! | `hist/<txn id>` | [`crate::history::HistoryRecord`] |
//! | `reg/…` | the registry: `weft_registry::keys` |

use serde::{Deserialize, Serialize};
use weft_model::{TrustDomain, Wall};
use weft_resources::{Kind, ResourceKey};

use crate::may_register::Grant;

pub const MESH: &str = "sys/mesh";
pub const ADMIN: &str = "sys/admin";
pub const TOKENS: &str = "sys/token/";
pub const GRANTS: &str = "sys/grant/";
pub const CA: &str = "sys/ca/";
pub const ROOTS: &str = "sys/ca/roots";
pub const SIGNING: &str = "sys/ca/signing";
pub const LEDGER: &str = "ledger/";
pub const RESOURCES: &str = "res/";
pub const STATUSES: &str = "status/";
pub const HISTORY: &str = "hist/";

/// What is fixed at the first start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshRecord {
    pub trust_domain: TrustDomain,
    pub created: Wall,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminRecord {
    /// SHA-256 of the token, in hex.
    pub sha256: String,
}

pub fn resource(key: &ResourceKey) -> String {
    format!("{RESOURCES}{key}")
}

pub fn status(key: &ResourceKey) -> String {
    format!("{STATUSES}{key}")
}

pub fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}

pub fn grant(grant: &Grant) -> String {
    let Grant { namespace, account, service } = grant;
    format!("{GRANTS}{}/{}/{}", namespace.escaped(), account.escaped(), service.escaped())
}

pub fn ledger(serial: &weft_identity::Serial) -> String {
    format!("{LEDGER}{serial}")
}

/// Of a key below [`RESOURCES`] or [`STATUSES`], without that prefix, or as a user names it. `None`: of a later version, or
/// no name.
pub fn parse_resource(rest: &str) -> Option<ResourceKey> {
    let reference: weft_model::ResourceRef = rest.parse().ok()?;
    let kind = Kind::parse(reference.kind.as_str())?;
    Some(ResourceKey::new(kind, reference.namespace, reference.name))
}
