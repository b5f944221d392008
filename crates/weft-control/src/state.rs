//! Everything that a replica knows at one revision, as one value: the fold of the event log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_ca::{Journal, TokenRecord};
use weft_model::Revision;
use weft_registry::{Stored, Touched, ValueError, View, value};
use weft_resources::{Mesh, Resource, ResourceKey, Violations, World, admit, document};
use weft_store::{Change, Entry, Format, Range, Versioned};

use crate::{
    catalog,
    keys::{self, AdminRecord, MeshRecord},
    may_register::Grant,
    status::StatusRecord,
};

/// Cheap to clone: parts are shared until one changes.
#[derive(Clone)]
pub struct State {
    pub revision: Revision,
    pub mesh: MeshRecord,
    pub admin: AdminRecord,
    pub registry: Arc<View>,
    /// What compilation reads: resources and the catalog.
    pub world: Arc<World>,
    pub docs: Arc<BTreeMap<ResourceKey, Doc>>,
    pub statuses: Arc<BTreeMap<ResourceKey, Stored<StatusRecord>>>,
    pub tokens: Arc<BTreeMap<String, Stored<TokenRecord>>>,
    /// By their keys.
    pub grants: Arc<BTreeMap<String, Stored<Grant>>>,
    pub roots: Arc<Slots>,
    pub signing: Arc<Slots>,
}

/// A journal of authorities, and the revision it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    pub journal: Journal,
    pub modified: Revision,
}

/// A resource and its revisions.
#[derive(Debug, Clone)]
pub struct Doc {
    pub resource: Arc<Resource>,
    pub created: Revision,
    pub modified: Revision,
}

/// What an entry changed, as far as somebody has to act on it.
#[derive(Debug, Clone, Default)]
pub struct Folded {
    pub registry: Touched,
    /// For [`weft_resources::affected`].
    pub changes: Vec<weft_resources::Change>,
    pub statuses: BTreeSet<ResourceKey>,
    pub ca: bool,
}

/// Why the log cannot be read. Nothing is skipped: serving on half of what was committed could let through what an
/// operator forbade.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error("the store has not been initialized: `{0}` is missing")]
    Uninitialized(&'static str),
    #[error("the store holds something that this version cannot read; start a version at least as new as the writer")]
    Value(#[from] ValueError),
    #[error("`{key}` in the store cannot be read")]
    Ca {
        key: String,
        #[source]
        source: weft_ca::DecodeError,
    },
    #[error("resource `{key}` in the store is not valid for this version:\n{violations}")]
    Resource { key: String, violations: Violations },
}

// === impl State ===

impl State {
    /// From a read of everything.
    pub fn load(range: &Range) -> Result<Self, FoldError> {
        let find = |key: &'static str| {
            let row = range.items.iter().find(|(k, _)| k.as_str() == key);
            row.map(|(_, v)| v).ok_or(FoldError::Uninitialized(key))
        };
        let mesh: MeshRecord = value::decode(keys::MESH, &find(keys::MESH)?.value)?;
        let admin: AdminRecord = value::decode(keys::ADMIN, &find(keys::ADMIN)?.value)?;
        let roots = Arc::new(slots(keys::ROOTS, find(keys::ROOTS)?)?);
        let signing = Arc::new(slots(keys::SIGNING, find(keys::SIGNING)?)?);
        let world = World::new(Mesh::new(mesh.trust_domain.clone()));
        let mut state = Self {
            revision: range.revision,
            mesh,
            admin,
            registry: Arc::new(View::load(range)?),
            world: Arc::new(world),
            docs: Arc::default(),
            statuses: Arc::default(),
            tokens: Arc::default(),
            grants: Arc::default(),
            roots,
            signing,
        };
        let mut folded = Folded::default();
        for (key, v) in &range.items {
            state.change(&Change { key: key.clone(), before: None, after: Some(v.clone()) }, &mut folded)?;
        }
        let services: Vec<_> = state.registry.services().cloned().collect();
        let world = Arc::make_mut(&mut state.world);
        for service in services {
            catalog::sync(&mut world.catalog, &state.registry, &service, &mut Vec::new());
        }
        Ok(state)
    }

    /// Takes in one committed transaction.
    pub fn fold(&mut self, entry: &Entry) -> Result<Folded, FoldError> {
        let mut folded = Folded::default();
        if entry.changes.iter().any(|c| weft_registry::view::is_ours(&c.key)) {
            folded.registry = Arc::make_mut(&mut self.registry).fold(entry)?;
            for service in &folded.registry.services {
                let world = Arc::make_mut(&mut self.world);
                catalog::sync(&mut world.catalog, &self.registry, service, &mut folded.changes);
            }
        }
        for change in &entry.changes {
            self.change(change, &mut folded)?;
        }
        self.revision = entry.revision;
        Ok(folded)
    }

    /// `n`, as Kubernetes' clients see it: of the resource or of its status, whichever changed last.
    pub fn resource_version(&self, key: &ResourceKey) -> Option<u64> {
        let doc = self.docs.get(key)?;
        let status = self.statuses.get(key).map(|s| s.modified).unwrap_or_default();
        Some(doc.modified.max(status).n)
    }

    fn change(&mut self, change: &Change, folded: &mut Folded) -> Result<(), FoldError> {
        let key = change.key.as_str();
        if let Some(rest) = key.strip_prefix(keys::RESOURCES) {
            if let Some(key) = keys::parse_resource(rest) {
                self.change_resource(key, change, folded)?;
            }
        } else if let Some(rest) = key.strip_prefix(keys::STATUSES) {
            if let Some(key) = keys::parse_resource(rest) {
                put(Arc::make_mut(&mut self.statuses), key.clone(), change)?;
                folded.statuses.insert(key);
            }
        } else if let Some(id) = key.strip_prefix(keys::TOKENS) {
            let tokens = Arc::make_mut(&mut self.tokens);
            match &change.after {
                None => drop(tokens.remove(id)),
                Some(v) => {
                    let value =
                        Arc::new(TokenRecord::decode(raw(key, v)?).map_err(|source| FoldError::ca(key, source))?);
                    tokens.insert(id.to_owned(), Stored { value, created: v.created, modified: v.modified });
                }
            }
        } else if key.starts_with(keys::GRANTS) {
            put(Arc::make_mut(&mut self.grants), key.to_owned(), change)?;
        } else if let (keys::ROOTS, Some(v)) = (key, &change.after) {
            self.roots = Arc::new(slots(key, v)?);
            folded.ca = true;
        } else if let (keys::SIGNING, Some(v)) = (key, &change.after) {
            self.signing = Arc::new(slots(key, v)?);
            folded.ca = true;
        } else if let (keys::ADMIN, Some(v)) = (key, &change.after) {
            self.admin = value::decode(key, &v.value)?;
        }
        Ok(())
    }

    fn change_resource(&mut self, key: ResourceKey, change: &Change, folded: &mut Folded) -> Result<(), FoldError> {
        let docs = Arc::make_mut(&mut self.docs);
        let world = Arc::make_mut(&mut self.world);
        let (before, after) = match &change.after {
            None => {
                world.resources.remove(&key);
                (docs.remove(&key), None)
            }
            Some(v) => {
                let resource = Arc::new(read_resource(&change.key, v)?);
                world.resources.insert(resource.clone());
                let doc = Doc { resource: resource.clone(), created: v.created, modified: v.modified };
                (docs.insert(key.clone(), doc), Some(resource))
            }
        };
        let before = before.map(|d| d.resource);
        folded.changes.push(weft_resources::Change::Resource { before, after });
        Ok(())
    }
}

fn slots(key: &str, v: &Versioned) -> Result<Slots, FoldError> {
    let journal = Journal::decode(raw(key, v)?).map_err(|source| FoldError::ca(key, source))?;
    Ok(Slots { journal, modified: v.modified })
}

/// The body of a value whose format is its own.
pub fn raw<'a>(key: &str, v: &'a Versioned) -> Result<&'a [u8], ValueError> {
    match Format::split(&v.value) {
        Ok((_, body)) => Ok(body),
        Err(source) => Err(ValueError::Format { key: key.into(), source }),
    }
}

impl FoldError {
    fn ca(key: &str, source: weft_ca::DecodeError) -> Self {
        Self::Ca { key: key.into(), source }
    }
}

/// A stored resource, admitted as if it came from outside.
pub fn read_resource(key: &str, v: &Versioned) -> Result<Resource, FoldError> {
    let json: serde_json::Value = value::decode(key, &v.value)?;
    let bad = |violations| FoldError::Resource { key: key.into(), violations };
    let mut doc = document::from_json(&json).map_err(bad)?;
    doc.metadata.created = v.created;
    admit(&doc).map_err(bad)
}

fn put<K: Ord, T: serde::de::DeserializeOwned>(
    map: &mut BTreeMap<K, Stored<T>>,
    key: K,
    change: &Change,
) -> Result<(), ValueError> {
    match &change.after {
        None => drop(map.remove(&key)),
        Some(v) => {
            let value = Arc::new(value::decode(&change.key, &v.value)?);
            map.insert(key, Stored { value, created: v.created, modified: v.modified });
        }
    }
    Ok(())
}
