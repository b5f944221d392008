//! The kinds of resources: one directory each, with what may be typed, admission, effect, and goldens.

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod authorization_policy;
pub mod grpc_route;
pub mod http_route;
pub mod mesh_defaults;
pub mod peer_authentication;
pub mod route;
pub mod service;
pub mod tcp_route;
pub mod workload_entry;

/// A kind that this build knows. Ordered by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Kind {
    AuthorizationPolicy,
    GrpcRoute,
    HttpRoute,
    MeshDefaults,
    PeerAuthentication,
    Service,
    TcpRoute,
    WorkloadEntry,
}

/// How a kind appears in the resource API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    /// As in `kind:`.
    pub name: &'static str,
    /// Empty for Kubernetes' core group.
    pub group: &'static str,
    /// Accepted versions; the first is the one we write.
    pub versions: &'static [&'static str],
    /// As in API paths.
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    /// Otherwise there is one for the whole mesh, kept under the namespace [`MESH_SCOPE`].
    pub namespaced: bool,
}

/// What stands for the namespace in the names of resources that have none.
pub const MESH_SCOPE: &str = "-";

/// Kinds that are planned, so that whoever brings one hears that rather than a guess.
const LATER: &[&str] = &[
    "BackendTLSPolicy",
    "DestinationRule",
    "Gateway",
    "GatewayClass",
    "ReferenceGrant",
    "RequestAuthentication",
    "ServiceEntry",
    "Sidecar",
    "TLSRoute",
    "Telemetry",
    "UDPRoute",
    "VirtualService",
    "WorkloadGroup",
];

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::AuthorizationPolicy,
        Self::GrpcRoute,
        Self::HttpRoute,
        Self::MeshDefaults,
        Self::PeerAuthentication,
        Self::Service,
        Self::TcpRoute,
        Self::WorkloadEntry,
    ];

    pub const fn info(self) -> KindInfo {
        const GATEWAY: &str = "gateway.networking.k8s.io";
        const fn kind(name: &'static str, group: &'static str, versions: &'static [&'static str]) -> KindInfo {
            KindInfo { name, group, versions, plural: "", singular: "", short_names: &[], namespaced: true }
        }
        match self {
            Self::AuthorizationPolicy => KindInfo {
                plural: "authorizationpolicies",
                singular: "authorizationpolicy",
                short_names: &["ap"],
                ..kind("AuthorizationPolicy", "security.istio.io", &["v1", "v1beta1"])
            },
            Self::GrpcRoute => {
                KindInfo { plural: "grpcroutes", singular: "grpcroute", ..kind("GRPCRoute", GATEWAY, &["v1"]) }
            }
            Self::HttpRoute => KindInfo {
                plural: "httproutes",
                singular: "httproute",
                ..kind("HTTPRoute", GATEWAY, &["v1", "v1beta1"])
            },
            Self::MeshDefaults => KindInfo {
                plural: "meshdefaults",
                singular: "meshdefault",
                namespaced: false,
                ..kind("MeshDefaults", "weft.dev", &["v1"])
            },
            Self::PeerAuthentication => KindInfo {
                plural: "peerauthentications",
                singular: "peerauthentication",
                short_names: &["pa"],
                ..kind("PeerAuthentication", "security.istio.io", &["v1", "v1beta1"])
            },
            Self::Service => KindInfo {
                plural: "services",
                singular: "service",
                short_names: &["svc"],
                ..kind("Service", "", &["v1"])
            },
            Self::TcpRoute => {
                KindInfo { plural: "tcproutes", singular: "tcproute", ..kind("TCPRoute", GATEWAY, &["v1", "v1alpha2"]) }
            }
            Self::WorkloadEntry => KindInfo {
                plural: "workloadentries",
                singular: "workloadentry",
                short_names: &["we"],
                ..kind("WorkloadEntry", "networking.istio.io", &["v1", "v1beta1", "v1alpha3"])
            },
        }
    }

    pub fn as_str(self) -> &'static str {
        self.info().name
    }

    /// `group/version`, or the version alone for the core group; what we write.
    pub fn api_version(self) -> String {
        self.api_versions().into_iter().next().unwrap_or_default()
    }

    pub fn api_versions(self) -> Vec<String> {
        let info = self.info();
        let with_group = |v: &&str| if info.group.is_empty() { (*v).into() } else { format!("{}/{v}", info.group) };
        info.versions.iter().map(with_group).collect()
    }

    pub fn is_namespaced(self) -> bool {
        self.info().namespaced
    }

    /// By its `kind:`, exactly.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == name)
    }

    /// As people type it on a command line: kind, plural, singular or short name, in any case.
    pub fn from_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        Self::ALL.into_iter().find(|k| {
            let info = k.info();
            word == info.plural || word == info.singular || info.short_names.contains(&word.as_str())
        })
    }

    /// By what stands in an API path.
    pub fn from_plural(group: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.info().plural == plural && k.info().group == group)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.as_str().into()
    }
}

impl TryFrom<String> for Kind {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        Self::parse(&s).ok_or_else(|| unknown(&s))
    }
}

/// What to say of a kind that is none of ours.
pub(crate) fn unknown(name: &str) -> String {
    if LATER.contains(&name) {
        return format!("kind `{name}` is not supported yet");
    }
    match crate::violation::nearest(name, Kind::ALL.map(Kind::as_str)) {
        Some(near) => format!("unknown kind `{name}`; did you mean `{near}`?"),
        None => format!("unknown kind `{name}`; known kinds: {}", Kind::ALL.map(Kind::as_str).join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_on_a_command_line_name_kinds() {
        let check = |word, want| assert_eq!(Kind::from_word(word), want, "{word}");
        check("HTTPRoute", Some(Kind::HttpRoute));
        check("httproutes", Some(Kind::HttpRoute));
        check("svc", Some(Kind::Service));
        check("ap", Some(Kind::AuthorizationPolicy));
        check("pod", None);
        check("", None);
    }

    #[test]
    fn unknown_kinds_get_a_suggestion() {
        assert_eq!(unknown("HttpRoutes"), "unknown kind `HttpRoutes`; did you mean `HTTPRoute`?");
        assert_eq!(unknown("VirtualService"), "kind `VirtualService` is not supported yet");
        assert!(unknown("Cheese").starts_with("unknown kind `Cheese`; known kinds: AuthorizationPolicy, GRPCRoute"));
    }
}
