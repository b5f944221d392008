//! Names on the delta stream. **[format]**
//!
//! | collection | name | its entries |
//! |---|---|---|
//! | a service's definition | `service/<ns>/<name>` | itself |
//! | its endpoints | `endpoints/<ns>/<name>` | `endpoints/<ns>/<name>#<uid>` |
//! | its routes for one namespace | `routes/<ns>/<name>/<consumer>` | itself |
//! | a workload | `workload/<uid>` | itself |
//! | what may reach it | `inbound/<uid>` | itself |
//! | the authorities of a trust domain | `bundle/<trust domain>` | itself |
//! | what was revoked | `revocations` | itself |
//!
//! Names are escaped as `weft_model::Name` says; a uid is escaped by its making and stands as it is, at the end.

use std::{fmt, str::FromStr};

use weft_model::{Name, NameError, ServiceKey, SpiffeError, TrustDomain, Uid};
use weft_snapshot::fragment::{Collection, Fragment};

/// Name of the resource that carries a `Commit`.
pub const COMMIT: &str = "commit";

/// Why a string names no collection and no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectionNameError {
    #[error("`{0}` names no kind of collection that this version knows")]
    Kind(String),
    #[error("`{0}` has a name that is none")]
    Name(String, #[source] NameError),
    #[error("`{0}` has a trust domain that is none")]
    TrustDomain(String, #[source] SpiffeError),
}

/// One entry of a collection; `entry` is there for endpoints alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName {
    pub collection: Collection,
    pub entry: Option<Uid>,
}

/// Has this collection many entries, named apart from it?
pub fn is_plural(collection: &Collection) -> bool {
    matches!(collection, Collection::Endpoints(_))
}

pub fn collection_name(collection: &Collection) -> String {
    match collection {
        Collection::Service(key) => format!("service/{key}"),
        Collection::Endpoints(key) => format!("endpoints/{key}"),
        Collection::Routes { service, consumer } => format!("routes/{service}/{}", consumer.escaped()),
        Collection::Workload(uid) => format!("workload/{uid}"),
        Collection::Inbound(uid) => format!("inbound/{uid}"),
        Collection::Bundle(td) => format!("bundle/{td}"),
        Collection::Revocations => "revocations".into(),
    }
}

pub fn parse_collection(s: &str) -> Result<Collection, CollectionNameError> {
    let name = |e| CollectionNameError::Name(s.into(), e);
    let (kind, rest) = s.split_once('/').unwrap_or((s, ""));
    Ok(match kind {
        "service" => Collection::Service(rest.parse().map_err(name)?),
        "endpoints" => Collection::Endpoints(rest.parse().map_err(name)?),
        "routes" => {
            let (service, consumer) =
                rest.rsplit_once('/').ok_or_else(|| name(NameError::NotQualified(rest.into())))?;
            Collection::Routes { service: service.parse().map_err(name)?, consumer: one_name(consumer).map_err(name)? }
        }
        "workload" => Collection::Workload(Uid::parse(rest).map_err(name)?),
        "inbound" => Collection::Inbound(Uid::parse(rest).map_err(name)?),
        "bundle" => {
            Collection::Bundle(TrustDomain::parse(rest).map_err(|e| CollectionNameError::TrustDomain(s.into(), e))?)
        }
        "revocations" if rest.is_empty() && s.len() == kind.len() => Collection::Revocations,
        _ => return Err(CollectionNameError::Kind(s.into())),
    })
}

/// The one name that is no part of a key: read as a service of a namespace, so that escapes have one reader.
fn one_name(escaped: &str) -> Result<Name, NameError> {
    if escaped.contains('/') {
        return Err(NameError::NotQualified(escaped.into()));
    }
    ServiceKey::parse_in(escaped, &Name::default_namespace()).map(|key| key.name)
}

// === impl EntryName ===

impl EntryName {
    /// The entry that `fragment` is.
    pub fn of(fragment: &Fragment, service: &ServiceKey) -> Self {
        let (collection, entry) = match fragment {
            Fragment::Service(s) => (Collection::Service(s.key.clone()), None),
            Fragment::Endpoint(e) => (Collection::Endpoints(service.clone()), Some(e.uid.clone())),
            Fragment::Routes(r) => {
                (Collection::Routes { service: r.service.clone(), consumer: r.consumer.clone() }, None)
            }
            Fragment::Workload(w) => (Collection::Workload(w.uid.clone()), None),
            Fragment::Inbound(i) => (Collection::Inbound(i.uid.clone()), None),
            Fragment::Bundle(b) => (Collection::Bundle(b.trust_domain.clone()), None),
            Fragment::Revocations(_) => (Collection::Revocations, None),
        };
        Self { collection, entry }
    }

    /// The only entry of a collection that has one.
    pub fn only(collection: Collection) -> Self {
        Self { collection, entry: None }
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&collection_name(&self.collection))?;
        match &self.entry {
            Some(uid) => write!(f, "#{uid}"),
            None => Ok(()),
        }
    }
}

impl FromStr for EntryName {
    type Err = CollectionNameError;
    fn from_str(s: &str) -> Result<Self, CollectionNameError> {
        // only here: `#` may stand in a uid, which ends every other name that has one
        if let (true, Some((collection, uid))) = (s.starts_with("endpoints/"), s.split_once('#')) {
            let uid = Uid::parse(uid).map_err(|e| CollectionNameError::Name(s.into(), e))?;
            return Ok(Self { collection: parse_collection(collection)?, entry: Some(uid) });
        }
        Ok(Self::only(parse_collection(s)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary;

    proptest! {
        #[test]
        fn names_round_trip(collection in arbitrary::collection(), uid in proptest::option::of(arbitrary::uid())) {
            let name = collection_name(&collection);
            prop_assert_eq!(parse_collection(&name).unwrap(), collection.clone());
            let entry = EntryName { entry: uid.filter(|_| is_plural(&collection)), collection };
            prop_assert_eq!(entry.to_string().parse::<EntryName>().unwrap(), entry);
        }

        #[test]
        fn any_string_is_read_or_refused(s: String) {
            if let Ok(entry) = s.parse::<EntryName>() {
                prop_assert_eq!(entry.to_string().parse::<EntryName>().unwrap(), entry);
            }
        }
    }

    #[test]
    fn names_are_a_stable_format() {
        let key: ServiceKey = "shop/a%2Fb".parse().unwrap();
        let check = |c: Collection, want: &str| assert_eq!(collection_name(&c), want);
        check(Collection::Service(key.clone()), "service/shop/a%2Fb");
        check(Collection::Routes { service: key, consumer: "x:y".parse().unwrap() }, "routes/shop/a%2Fb/x%3Ay");
        check(Collection::Revocations, "revocations");
        for bad in ["", "service", "service/a", "routes/a/b", "revocations/", "revocations/x", "bundle/", "other/a/b"] {
            assert!(parse_collection(bad).is_err(), "{bad}");
        }
    }
}
