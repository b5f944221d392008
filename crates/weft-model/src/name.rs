//! Names of namespaces, services, workloads and resources.
//!
//! A name keeps Consul's character set; where it becomes part of a key or of a longer name it is percent-escaped, so
//! that `/`, `#`, `:` and `%` always mean structure there. Look-ups are case-sensitive (DNS alone folds case).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest name in bytes: what a DNS name holds.
pub const MAX_NAME: usize = 253;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("name is empty")]
    Empty,
    #[error("name is {0} bytes long, at most {MAX_NAME} are allowed")]
    TooLong(usize),
    #[error("name has the control character U+{:04X} at byte {at}", *.char as u32)]
    Control { char: char, at: usize },
    #[error("`{0}` is not of the form namespace/name")]
    NotQualified(String),
    #[error("`{0}` is not of the form kind/namespace/name[#section]")]
    NotResource(String),
    #[error("`{0}` has a broken percent escape")]
    Escape(String),
}

/// One name: of a namespace, a service, a node, a service account. Never empty, no control characters, ≤ 253 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// A service: `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceKey {
    pub namespace: Name,
    pub name: Name,
}

/// The identity of one instance in the catalog, opaque to everyone but its maker: `namespace/service/node/id`, escaped.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(Arc<str>);

/// An operator's document, or a clause of it: `kind/namespace/name#section`. The same string in the API, in logs,
/// metric labels, errors and the command line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceRef {
    pub kind: Name,
    pub namespace: Name,
    pub name: Name,
    /// A clause inside the document, such as `rule-2`; `None` for the whole of it.
    pub section: Option<Name>,
}

// === impl Name ===

impl Name {
    pub fn parse(s: &str) -> Result<Self, NameError> {
        if s.is_empty() {
            return Err(NameError::Empty);
        }
        if s.len() > MAX_NAME {
            return Err(NameError::TooLong(s.len()));
        }
        if let Some((at, char)) = s.char_indices().find(|(_, c)| c.is_control()) {
            return Err(NameError::Control { char, at });
        }
        Ok(Self(s.into()))
    }

    /// The namespace of whoever does not name one.
    pub fn default_namespace() -> Self {
        Self("default".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As part of a key or of a longer name: `/`, `#`, `:` and `%` escaped.
    pub fn escaped(&self) -> String {
        escape(&self.0)
    }
}

// === impl ServiceKey ===

impl ServiceKey {
    pub fn new(namespace: Name, name: Name) -> Self {
        Self { namespace, name }
    }

    /// `namespace/name`, or a bare `name` in `default_ns`.
    pub fn parse_in(s: &str, default_ns: &Name) -> Result<Self, NameError> {
        match s.split_once('/') {
            Some(_) => s.parse(),
            None => Ok(Self::new(default_ns.clone(), unescape(s)?)),
        }
    }

    /// The host name by which requests name the service inside the mesh: `name.namespace`.
    pub fn host(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }
}

// === impl Uid ===

impl Uid {
    pub fn of(service: &ServiceKey, node: &Name, id: &Name) -> Self {
        Self(format!("{service}/{}/{}", node.escaped(), id.escaped()).into())
    }

    pub fn parse(s: &str) -> Result<Self, NameError> {
        if s.is_empty() {
            return Err(NameError::Empty);
        }
        if s.len() > 4 * MAX_NAME {
            return Err(NameError::TooLong(s.len()));
        }
        if let Some((at, char)) = s.char_indices().find(|(_, c)| c.is_control()) {
            return Err(NameError::Control { char, at });
        }
        Ok(Self(s.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The server name that a `weft/1` client sends for this workload: `w-<hex>.weft.internal`. **[format]**
    /// 16 bytes of SHA-256 over the uid, so that the name fits a DNS label and says nothing of the workload.
    pub fn sni(&self) -> String {
        let digest = crate::Digest::of(self.0.as_bytes());
        let hex: String = digest.as_bytes().iter().take(16).map(|b| format!("{b:02x}")).collect();
        format!("w-{hex}.weft.internal")
    }
}

// === impl ResourceRef ===

impl ResourceRef {
    pub fn new(kind: Name, namespace: Name, name: Name) -> Self {
        Self { kind, namespace, name, section: None }
    }

    #[must_use]
    pub fn section(&self, section: Name) -> Self {
        Self { section: Some(section), ..self.clone() }
    }

    /// The document this is a clause of.
    #[must_use]
    pub fn document(&self) -> Self {
        Self { section: None, ..self.clone() }
    }
}

// === text forms ===

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.escaped(), self.name.escaped())
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.escaped(), self.namespace.escaped(), self.name.escaped())?;
        match &self.section {
            Some(s) => write!(f, "#{}", s.escaped()),
            None => Ok(()),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        Self::parse(s)
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        match s.split_once('/') {
            Some((ns, name)) if !name.contains('/') => Ok(Self::new(unescape(ns)?, unescape(name)?)),
            _ => Err(NameError::NotQualified(s.into())),
        }
    }
}

impl FromStr for Uid {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        Self::parse(s)
    }
}

impl FromStr for ResourceRef {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = || NameError::NotResource(s.into());
        let (path, section) = match s.split_once('#') {
            Some((path, section)) => (path, Some(unescape(section)?)),
            None => (s, None),
        };
        let mut parts = path.split('/');
        let mut part = || parts.next().ok_or_else(bad).and_then(unescape);
        let this = Self { kind: part()?, namespace: part()?, name: part()?, section };
        match parts.next() {
            None => Ok(this),
            Some(_) => Err(bad()),
        }
    }
}

/// Debug prints what Display prints: a name in a failed assertion should read like the name.
macro_rules! text_debug_serde {
    ($($t:ty),*) => {$(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl TryFrom<String> for $t {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }
        impl From<$t> for String {
            fn from(v: $t) -> Self {
                v.to_string()
            }
        }
    )*};
}
text_debug_serde!(Name, ServiceKey, Uid, ResourceRef);

fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '/' => out.push_str("%2F"),
            '#' => out.push_str("%23"),
            ':' => out.push_str("%3A"),
            '%' => out.push_str("%25"),
            c => out.push(c),
        }
    }
    out
}

fn unescape(s: &str) -> Result<Name, NameError> {
    let broken = || NameError::Escape(s.into());
    let mut out = Vec::with_capacity(s.len());
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).ok_or_else(broken);
        let (hi, lo) = (digit()?, digit()?);
        out.push(u8::try_from(hi * 16 + lo).map_err(|_| broken())?);
    }
    Name::parse(&String::from_utf8(out).map_err(|_| broken())?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Name> {
        "[ -~äß語]{1,40}".prop_map(|s| Name::parse(&s).unwrap())
    }

    proptest! {
        #[test]
        fn service_key_round_trips(ns in name(), n in name()) {
            let key = ServiceKey::new(ns, n);
            prop_assert_eq!(key.to_string().parse::<ServiceKey>().unwrap(), key);
        }

        #[test]
        fn resource_ref_round_trips(k in name(), ns in name(), n in name(), s in proptest::option::of(name())) {
            let mut r = ResourceRef::new(k, ns, n);
            r.section = s;
            prop_assert_eq!(r.to_string().parse::<ResourceRef>().unwrap(), r);
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        assert_eq!(Name::parse(""), Err(NameError::Empty));
        assert_eq!(Name::parse(&"x".repeat(254)), Err(NameError::TooLong(254)));
        assert_eq!(Name::parse("a\nb").unwrap_err().to_string(), "name has the control character U+000A at byte 1");
        assert!("a/b/c".parse::<ServiceKey>().is_err());
        assert!("a%2".parse::<ServiceKey>().is_err());
        assert!("HTTPRoute/a".parse::<ResourceRef>().is_err());
        assert!("HTTPRoute/a/b/c".parse::<ResourceRef>().is_err());
    }

    #[test]
    fn sni_is_a_stable_format() {
        let uid = Uid::of(&"default/web".parse().unwrap(), &"n1".parse().unwrap(), &"web-1".parse().unwrap());
        assert_eq!(uid.as_str(), "default/web/n1/web-1");
        assert_eq!(uid.sni().len(), "w-.weft.internal".len() + 32);
        assert_eq!(uid.sni(), uid.clone().sni());
    }
}
