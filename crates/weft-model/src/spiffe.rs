//! SPIFFE IDs and trust domains (SPIFFE-ID specification; features.md SEC-07).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
pub const MAX_ID: usize = 2048;
/// Longest trust domain in bytes.
pub const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a string is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("`{0}` does not begin with spiffe://")]
    Scheme(String),
    #[error("SPIFFE ID is {0} bytes long, at most {MAX_ID} are allowed")]
    TooLong(usize),
    #[error("trust domain `{0}` is empty, too long, or has other characters than a-z 0-9 . - _")]
    TrustDomain(String),
    #[error("path segment `{0}` is empty, `.`, `..`, or has other characters than a-z A-Z 0-9 . - _")]
    Segment(String),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

/// `spiffe://<trust domain>/<path>`; ours are `/ns/<namespace>/sa/<service account>` (Istio's form).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins in `text`.
    path_at: u16,
}

// === impl TrustDomain ===

impl TrustDomain {
    pub fn parse(s: &str) -> Result<Self, SpiffeError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || s.len() > MAX_TRUST_DOMAIN || !s.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain(s.chars().take(MAX_TRUST_DOMAIN).collect()));
        }
        Ok(Self(s.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    pub fn parse(s: &str) -> Result<Self, SpiffeError> {
        if s.len() > MAX_ID {
            return Err(SpiffeError::TooLong(s.len()));
        }
        let rest = s.strip_prefix(SCHEME).ok_or_else(|| SpiffeError::Scheme(s.into()))?;
        let (td, path) = rest.split_once('/').map_or((rest, None), |(td, path)| (td, Some(path)));
        let td = TrustDomain::parse(td)?;
        for segment in path.into_iter().flat_map(|p| p.split('/')) {
            check_segment(segment)?;
        }
        Ok(Self { text: s.into(), path_at: path_at(&td) })
    }

    /// Istio's form, the one Weft issues. Refuses names that SPIFFE's path characters cannot hold.
    pub fn workload(td: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        Self::parse(&format!("{SCHEME}{td}/ns/{namespace}/sa/{service_account}"))
    }

    /// The ID of the authority itself: no path.
    pub fn authority(td: &TrustDomain) -> Self {
        Self { text: format!("{SCHEME}{td}").into(), path_at: path_at(td) }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    pub fn trust_domain_str(&self) -> &str {
        self.text.get(SCHEME.len()..usize::from(self.path_at)).unwrap_or_default()
    }

    /// With its leading slash; empty for an authority.
    pub fn path(&self) -> &str {
        self.text.get(usize::from(self.path_at)..).unwrap_or_default()
    }

    /// What Istio's policies compare: the ID without `spiffe://`.
    pub fn without_scheme(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }

    /// Namespace and service account. Consul's `/ns/<ns>/dc/<dc>/svc/<svc>` is read as a view of the same.
    pub fn workload_parts(&self) -> Option<(&str, &str)> {
        let mut s = self.path().strip_prefix('/')?.split('/');
        let parts = match (s.next(), s.next(), s.next(), s.next(), s.next(), s.next()) {
            (Some("ns"), Some(ns), Some("sa"), Some(sa), None, None) => (ns, sa),
            (Some("ns"), Some(ns), Some("dc"), Some(_), Some("svc"), Some(svc)) if s.next().is_none() => (ns, svc),
            _ => return None,
        };
        Some(parts)
    }

    pub fn namespace(&self) -> Option<&str> {
        self.workload_parts().map(|(ns, _)| ns)
    }

    pub fn service_account(&self) -> Option<&str> {
        self.workload_parts().map(|(_, sa)| sa)
    }
}

fn path_at(td: &TrustDomain) -> u16 {
    // 9 + at most 255: always fits
    u16::try_from(SCHEME.len() + td.0.len()).unwrap_or(u16::MAX)
}

fn check_segment(s: &str) -> Result<(), SpiffeError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if s.is_empty() || s == "." || s == ".." || !s.bytes().all(allowed) {
        return Err(SpiffeError::Segment(s.into()));
    }
    Ok(())
}

macro_rules! text_forms {
    ($($t:ty, $s:ident => $text:expr);*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $s = self;
                f.write_str($text)
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $t {
            type Err = SpiffeError;
            fn from_str(s: &str) -> Result<Self, SpiffeError> {
                Self::parse(s)
            }
        }
        impl TryFrom<String> for $t {
            type Error = SpiffeError;
            fn try_from(s: String) -> Result<Self, SpiffeError> {
                Self::parse(&s)
            }
        }
        impl From<$t> for String {
            fn from(v: $t) -> Self {
                v.to_string()
            }
        }
    )*};
}
text_forms!(TrustDomain, s => &s.0; SpiffeId, s => &s.text);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_id_apart() {
        let id: SpiffeId = "spiffe://mesh.weft/ns/shop/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain_str(), "mesh.weft");
        assert_eq!(id.path(), "/ns/shop/sa/web");
        assert_eq!(id.without_scheme(), "mesh.weft/ns/shop/sa/web");
        assert_eq!(id.workload_parts(), Some(("shop", "web")));
        let consul: SpiffeId = "spiffe://11111111-2222.consul/ns/default/dc/dc1/svc/web".parse().unwrap();
        assert_eq!(consul.workload_parts(), Some(("default", "web")));
        let td = TrustDomain::parse("mesh.weft").unwrap();
        assert_eq!(SpiffeId::authority(&td).path(), "");
        assert_eq!(SpiffeId::workload(&td, "shop", "web").unwrap(), id);
    }

    #[test]
    fn refuses_what_the_specification_refuses() {
        let long = format!("spiffe://td/{}", "x".repeat(2048));
        let td = format!("spiffe://{}/x", "a".repeat(256));
        for bad in [
            "",
            "http://td/x",
            "spiffe://",
            "spiffe:///x",
            "spiffe://TD/x",
            "spiffe://td:80/x",
            "spiffe://u@td/x",
            "spiffe://td/",
            "spiffe://td//x",
            "spiffe://td/x/",
            "spiffe://td/./x",
            "spiffe://td/../x",
            "spiffe://td/a%20b",
            "spiffe://td/x?q",
            "spiffe://td/x#f",
            "spiffe://td/ü",
            &long,
            &td,
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
        let td = TrustDomain::parse("td").unwrap();
        assert!(SpiffeId::workload(&td, "a/b", "c").is_err());
    }
}
