//! Admission: a document becomes a resource, or everything that is wrong with it is said at once.

use std::fmt;

use serde_json::json;
use weft_model::{Name, ResourceRef};

use crate::{
    document::{Document, Metadata},
    kind::{
        Kind, MESH_SCOPE, authorization_policy::AuthorizationPolicy, grpc_route, http_route,
        mesh_defaults::MeshDefaults, peer_authentication::PeerAuthentication, route::Route, route::TcpRoute,
        service::Service, tcp_route, workload_entry::WorkloadEntry,
    },
    violation::{Sink, Spot, Violation, Violations},
};

/// What the resource is called: kind, namespace (the [`MESH_SCOPE`] for mesh-wide kinds) and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    pub kind: Kind,
    pub namespace: Name,
    pub name: Name,
}

/// An admitted document: validated, defaults applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    pub key: ResourceKey,
    pub metadata: Metadata,
    pub spec: Spec,
    /// The spec as it was written, for whoever asks for it.
    pub written: serde_json::Value,
    /// What was accepted, but probably not meant.
    pub warnings: Vec<Violation>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    AuthorizationPolicy(AuthorizationPolicy),
    GrpcRoute(Route),
    HttpRoute(Route),
    MeshDefaults(MeshDefaults),
    PeerAuthentication(PeerAuthentication),
    Service(Service),
    TcpRoute(TcpRoute),
    WorkloadEntry(WorkloadEntry),
}

/// What admission of every kind has at hand.
pub(crate) struct Subject<'a> {
    pub doc: &'a Document,
    pub key: &'a ResourceKey,
    /// Of the spec.
    pub spot: Spot,
}

/// Parse, don't validate.
pub fn admit(doc: &Document) -> Result<Resource, Violations> {
    let key = doc.key();
    let mut out = Sink::new(doc.file.clone());
    let spec = admit_spec(doc, &key, &mut out);
    let (spec, warnings) = out.finish(spec)?;
    let metadata = Metadata { namespace: Some(key.namespace.clone()), ..doc.metadata.clone() };
    Ok(Resource { key, metadata, spec, written: doc.spec.to_json(), warnings })
}

pub(crate) fn admit_spec(doc: &Document, key: &ResourceKey, out: &mut Sink) -> Option<Spec> {
    let subject = Subject { doc, key, spot: Spot::new("spec", doc.spec.line, doc.spec.column) };
    match doc.kind {
        Kind::AuthorizationPolicy => AuthorizationPolicy::admit(&subject, out).map(Spec::AuthorizationPolicy),
        Kind::GrpcRoute => grpc_route::admit(&subject, out).map(Spec::GrpcRoute),
        Kind::HttpRoute => http_route::admit(&subject, out).map(Spec::HttpRoute),
        Kind::MeshDefaults => MeshDefaults::admit(&subject, out).map(Spec::MeshDefaults),
        Kind::PeerAuthentication => PeerAuthentication::admit(&subject, out).map(Spec::PeerAuthentication),
        Kind::Service => Service::admit(&subject, out).map(Spec::Service),
        Kind::TcpRoute => tcp_route::admit(&subject, out).map(Spec::TcpRoute),
        Kind::WorkloadEntry => WorkloadEntry::admit(&subject, out).map(Spec::WorkloadEntry),
    }
}

// === impl Document ===

impl Document {
    /// Its name; without a namespace, in `default`.
    pub fn key(&self) -> ResourceKey {
        let namespace = match &self.metadata.namespace {
            _ if !self.kind.is_namespaced() => mesh_scope(),
            Some(namespace) => namespace.clone(),
            None => Name::default_namespace(),
        };
        ResourceKey { kind: self.kind, namespace, name: self.metadata.name.clone() }
    }
}

// === impl ResourceKey ===

impl ResourceKey {
    pub fn new(kind: Kind, namespace: Name, name: Name) -> Self {
        Self { kind, namespace, name }
    }

    /// The name that appears in logs, metrics and status: `kind/namespace/name`.
    pub fn reference(&self) -> ResourceRef {
        ResourceRef::new(kind_name(self.kind), self.namespace.clone(), self.name.clone())
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(f)
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Resource ===

impl Resource {
    /// As stored and as the API shows it: the spec as it was written, without status.
    pub fn to_json(&self) -> serde_json::Value {
        let meta = &self.metadata;
        let mut metadata = json!({ "name": self.key.name });
        let mut put = |key: &str, value: serde_json::Value| {
            if let Some(map) = metadata.as_object_mut() {
                map.insert(key.into(), value);
            }
        };
        if self.key.kind.is_namespaced() {
            put("namespace", json!(self.key.namespace));
        }
        if !meta.labels.0.is_empty() {
            put("labels", json!(meta.labels));
        }
        if !meta.annotations.is_empty() {
            put("annotations", json!(meta.annotations));
        }
        if let Some(uid) = &meta.uid {
            put("uid", json!(uid));
        }
        if let Some(version) = &meta.resource_version {
            put("resourceVersion", json!(version));
        }
        if meta.generation > 0 {
            put("generation", json!(meta.generation));
        }
        if let Some(at) = meta.creation_timestamp {
            put("creationTimestamp", json!(at.rfc3339()));
        }
        let mut doc = json!({
            "apiVersion": self.key.kind.api_version(),
            "kind": self.key.kind.as_str(),
            "metadata": metadata,
        });
        // a spec that was not written stays unwritten
        if let Some(map) = doc.as_object_mut().filter(|_| !self.written.is_null()) {
            map.insert("spec".into(), self.written.clone());
        }
        doc
    }

    /// Oldest first: by the transaction that created it, then by its time (which a restore keeps), then by name.
    pub(crate) fn age(&self) -> impl Ord + use<'_> {
        let time = self.metadata.creation_timestamp.map_or(i64::MAX, weft_model::Wall::as_millis);
        (self.metadata.created, time, &self.key.namespace, &self.key.name, self.key.kind)
    }
}

#[expect(clippy::expect_used, reason = "constants of ours that are names")]
fn kind_name(kind: Kind) -> Name {
    Name::parse(kind.as_str()).expect("kinds are names")
}

#[expect(clippy::expect_used, reason = "a constant of ours that is a name")]
fn mesh_scope() -> Name {
    Name::parse(MESH_SCOPE).expect("the mesh scope is a name")
}
