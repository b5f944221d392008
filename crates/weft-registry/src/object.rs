//! What the catalog holds. **[format]** Field names are the stored ones (see [`crate::value`]).
//!
//! Each object is written only by its [`Owner`]. Fields of a later format survive a rewrite in `unknown`.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use weft_model::{Health, Labels, Locality, Name, NameError, Protocol, Revision, ServiceKey, SpiffeId, Uid};

/// Fields that this build does not know.
pub type Unknown = serde_json::Map<String, serde_json::Value>;

/// An object and when it was created and last changed (Consul's CreateIndex and ModifyIndex, whole revisions).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    pub value: Arc<T>,
    pub created: Revision,
    pub modified: Revision,
}

/// Who may write an object: `agent/<node>`, `run/<id>`, `api`, `resource/<ns>/<name>`, `k8s/<cluster>/<uid>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    Agent(Name),
    Run(Name),
    Api,
    Resource { namespace: Name, name: Name },
    K8s { cluster: Name, uid: Name },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: Name,
    pub owner: Owner,
    /// Where the host is reached by others; advisory, each instance has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    #[serde(default)]
    pub locality: Locality,
    #[serde(default)]
    pub meta: Labels,
    /// The reason that an operator gave for taking the node out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Arc<str>>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A running copy of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub service: ServiceKey,
    pub node: Name,
    /// Unique on its node and in its namespace.
    pub id: Name,
    pub owner: Owner,
    pub identity: SpiffeId,
    /// Where its proxy takes mesh connections; `None` without a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<SocketAddr>,
    #[serde(default)]
    pub tunnel: Tunnel,
    #[serde(default)]
    pub ports: Vec<Port>,
    #[serde(default)]
    pub locality: Locality,
    #[serde(default)]
    pub labels: Labels,
    /// What is to be known of it, selected by nobody.
    #[serde(default)]
    pub meta: Labels,
    /// Its name in metrics; empty: the service's.
    #[serde(default)]
    pub workload: Arc<str>,
    #[serde(default)]
    pub weights: Weights,
    /// What it declared to call, and where it does locally.
    #[serde(default)]
    pub upstreams: Vec<Upstream>,
    /// Where its proxy is administered and scraped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// The application also takes connections past its proxy.
    #[serde(default)]
    pub bypassable: bool,
    /// Goes away by its own word.
    #[serde(default)]
    pub draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Arc<str>>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    #[default]
    None,
    Hbone,
    Weft1,
}

/// One port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Empty only where the instance has one port without a name.
    #[serde(default)]
    pub name: Arc<str>,
    /// The service's port number: what callers name.
    pub port: u16,
    #[serde(default)]
    pub protocol: Protocol,
    /// The application's address as others know it.
    pub app: SocketAddr,
    /// Where its own proxy connects, when that is another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<SocketAddr>,
    /// Carried as bytes even when it is HTTP/1.1.
    #[serde(default)]
    pub preserve: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub service: ServiceKey,
    /// Number or name; empty: the only one.
    #[serde(default)]
    pub port: Arc<str>,
    /// Local address, or `unix:<path>`.
    #[serde(default)]
    pub listen: Arc<str>,
    #[serde(default)]
    pub protocol: Protocol,
}

/// Capacity by health, as in Consul.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    pub passing: u32,
    pub warning: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// A check of an instance, or of a node when `instance` is `None`. Definition and last committed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub id: Name,
    pub node: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    pub owner: Owner,
    pub status: Status,
    /// At most [`crate::checks::OUTPUT_MAX`] bytes.
    #[serde(default)]
    pub output: Arc<str>,
    #[serde(default)]
    pub thresholds: Thresholds,
    /// Goes critical when not refreshed for so long.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "millis")]
    pub ttl: Option<Duration>,
    /// An instance that was critical for so long is deregistered (REG-06; at least a minute).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "millis")]
    pub deregister_after: Option<Duration>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passing,
    Warning,
    Critical,
}

/// How many results in a row change a check (features.md REG-06): 0 and 1 both mean the first one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Thresholds {
    pub success_before_passing: u32,
    pub failures_before_warning: u32,
    pub failures_before_critical: u32,
}

/// An instance within the catalog: (node, namespace, id).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    pub node: Name,
    pub namespace: Name,
    pub id: Name,
}

/// A check within the catalog: a node's own, or one of an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CheckId {
    Node { node: Name, id: Name },
    Instance { of: InstanceId, id: Name },
}

/// Whose liveness a lease is: an agent's node, or one `weft run`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Holder {
    Agent(Name),
    Run(Name),
}

/// The committed side of a lease: renewals are never stored, transitions are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub holder: Holder,
    pub state: LeaseState,
    /// The replica that holds the stream.
    pub server: Arc<str>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    Alive,
    Unknown,
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an owner: agent/<node>, run/<id>, api, resource/<ns>/<name> or k8s/<cluster>/<uid>")]
pub struct OwnerError(String);

// === impl Owner ===

impl Owner {
    /// Whose lease decides whether what this owner registered on `node` still lives.
    pub fn holder(&self, node: &Name) -> Holder {
        match self {
            Self::Run(id) => Holder::Run(id.clone()),
            _ => Holder::Agent(node.clone()),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "agent/{}", node.escaped()),
            Self::Run(id) => write!(f, "run/{}", id.escaped()),
            Self::Api => f.write_str("api"),
            Self::Resource { namespace, name } => write!(f, "resource/{}/{}", namespace.escaped(), name.escaped()),
            Self::K8s { cluster, uid } => write!(f, "k8s/{}/{}", cluster.escaped(), uid.escaped()),
        }
    }
}

impl FromStr for Owner {
    type Err = OwnerError;
    fn from_str(s: &str) -> Result<Self, OwnerError> {
        let bad = |_: NameError| OwnerError(s.into());
        // a ServiceKey has the same text form as two escaped names
        let pair = |t: &str| t.parse::<ServiceKey>().map_err(bad);
        let one = |t: &str| pair(&format!("x/{t}")).map(|k| k.name);
        match s.split_once('/') {
            Some(("agent", node)) => Ok(Self::Agent(one(node)?)),
            Some(("run", id)) => Ok(Self::Run(one(id)?)),
            Some(("resource", rest)) => {
                pair(rest).map(|ServiceKey { namespace, name }| Self::Resource { namespace, name })
            }
            Some(("k8s", rest)) => pair(rest).map(|k| Self::K8s { cluster: k.namespace, uid: k.name }),
            None if s == "api" => Ok(Self::Api),
            _ => Err(OwnerError(s.into())),
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = OwnerError;
    fn try_from(s: String) -> Result<Self, OwnerError> {
        s.parse()
    }
}

impl From<Owner> for String {
    fn from(o: Owner) -> Self {
        o.to_string()
    }
}

// === impl Instance ===

impl Instance {
    pub fn key(&self) -> InstanceId {
        InstanceId { node: self.node.clone(), namespace: self.service.namespace.clone(), id: self.id.clone() }
    }

    pub fn uid(&self) -> Uid {
        Uid::of(&self.service, &self.node, &self.id)
    }

    pub fn holder(&self) -> Holder {
        self.owner.holder(&self.node)
    }
}

// === impl Check ===

impl Check {
    pub fn key(&self) -> CheckId {
        match &self.instance {
            None => CheckId::Node { node: self.node.clone(), id: self.id.clone() },
            Some(of) => CheckId::Instance { of: of.clone(), id: self.id.clone() },
        }
    }
}

// === impl CheckId ===

impl CheckId {
    pub fn node(&self) -> &Name {
        match self {
            Self::Node { node, .. } => node,
            Self::Instance { of, .. } => &of.node,
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.node.escaped(), self.namespace.escaped(), self.id.escaped())
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { node, id } => write!(f, "{}:{}", node.escaped(), id.escaped()),
            Self::Instance { of, id } => write!(f, "{of}:{}", id.escaped()),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "agent/{}", node.escaped()),
            Self::Run(id) => write!(f, "run/{}", id.escaped()),
        }
    }
}

// === impl Status ===

impl From<Status> for Health {
    fn from(s: Status) -> Self {
        match s {
            Status::Passing => Self::Passing,
            Status::Warning => Self::Warning,
            Status::Critical => Self::Critical,
        }
    }
}

impl From<LeaseState> for Health {
    fn from(s: LeaseState) -> Self {
        match s {
            LeaseState::Alive => Self::Passing,
            LeaseState::Unknown => Self::Unknown,
            LeaseState::Dead => Self::Critical,
        }
    }
}

/// Durations are stored as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde's `with` passes a reference to the field")]
    pub fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match d {
            Some(d) => s.serialize_u64(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_text_round_trips() {
        let n = |s: &str| Name::parse(s).unwrap();
        for owner in [
            Owner::Agent(n("a/b")),
            Owner::Run(n("x:1")),
            Owner::Api,
            Owner::Resource { namespace: n("shop"), name: n("web%") },
            Owner::K8s { cluster: n("c"), uid: n("u") },
        ] {
            assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
        }
        for bad in ["", "agent", "agent/", "agent/a/b", "api/x", "resource/x", "nobody/x"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
