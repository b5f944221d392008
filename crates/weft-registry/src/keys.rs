//! Where things are in the store. **[format]**
//!
//! | key | value |
//! |---|---|
//! | `reg/node/<node>` | [`crate::Node`] |
//! | `reg/instance/<node>/<ns>/<id>` | [`crate::Instance`] |
//! | `reg/check/<node>/<ns>/<id>/<check>` | [`crate::Check`] of an instance |
//! | `reg/nodecheck/<node>/<check>` | [`crate::Check`] of a node |
//! | `reg/lease/agent/<node>`, `reg/lease/run/<id>` | [`crate::Lease`] |
//! //!
//! Deletes from a group (a prefix that is read as a whole) touch its guard, see [`weft_store::guard_key`]. Each part is percent-escaped, so `/` is always structure. `reg/service/`, `reg/session/`, `kv/` and `acl/` are
//! reserved; so is everything outside `reg/` for the control plane. The same node comes first in the keys of all that
//! is registered on it, so that one prefix is what an agent's anti-entropy compares.

use weft_model::Name;

use crate::object::{CheckId, Holder, InstanceId};

/// All of the registry.
pub const ROOT: &str = "reg/";

/// A key taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Node(Name),
    Instance(InstanceId),
    Check(CheckId),
    Lease(Holder),
}

impl Key {
    /// `None`: not one of ours, or one of a later format.
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(ROOT)?.split('/');
        let kind = parts.next()?;
        let parts = parts.map(unescaped).collect::<Option<Vec<_>>>()?;
        Some(match (kind, parts.as_slice()) {
            ("node", [n]) => Self::Node(n.clone()),
            ("instance", [node, ns, id]) => {
                Self::Instance(InstanceId { node: node.clone(), namespace: ns.clone(), id: id.clone() })
            }
            ("check", [node, ns, id, check]) => Self::Check(CheckId::Instance {
                of: InstanceId { node: node.clone(), namespace: ns.clone(), id: id.clone() },
                id: check.clone(),
            }),
            ("nodecheck", [node, check]) => Self::Check(CheckId::Node { node: node.clone(), id: check.clone() }),
            ("lease", [kind, name]) => match kind.as_str() {
                "agent" => Self::Lease(Holder::Agent(name.clone())),
                "run" => Self::Lease(Holder::Run(name.clone())),
                _ => return None,
            },
            _ => return None,
        })
    }
}

pub fn node(node: &Name) -> String {
    format!("reg/node/{}", node.escaped())
}

pub fn instance(i: &InstanceId) -> String {
    format!("reg/instance/{i}")
}

/// All instances of a node.
pub fn instances_of(node: &Name) -> String {
    format!("reg/instance/{}/", node.escaped())
}

pub fn check(c: &CheckId) -> String {
    match c {
        CheckId::Node { node, id } => format!("reg/nodecheck/{}/{}", node.escaped(), id.escaped()),
        CheckId::Instance { of, id } => format!("reg/check/{of}/{}", id.escaped()),
    }
}

/// All checks of an instance.
pub fn checks_of(i: &InstanceId) -> String {
    format!("reg/check/{i}/")
}

pub fn lease(h: &Holder) -> String {
    format!("reg/lease/{h}")
}

fn unescaped(part: &str) -> Option<Name> {
    // a qualified name has the same escapes
    format!("x/{part}").parse::<weft_model::ServiceKey>().ok().map(|k| k.name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip(node in "[ -~]{1,12}", ns in "[ -~é]{1,12}", id in "[/%:#a]{1,8}", c in ".{1,8}") {
            let Ok(c) = Name::parse(&c) else { return Ok(()) };
            let n = |s: &str| Name::parse(s).unwrap();
            let of = InstanceId { node: n(&node), namespace: n(&ns), id: n(&id) };
            for key in [
                Key::Node(n(&node)),
                Key::Instance(of.clone()),
                Key::Check(CheckId::Instance { of: of.clone(), id: c.clone() }),
                Key::Check(CheckId::Node { node: n(&node), id: c }),
                Key::Lease(Holder::Run(n(&id))),
                Key::Lease(Holder::Agent(n(&node))),
            ] {
                let text = match &key {
                    Key::Node(n) => super::node(n),
                    Key::Instance(i) => instance(i),
                    Key::Check(c) => check(c),
                    Key::Lease(h) => lease(h),
                };
                prop_assert_eq!(Key::parse(&text), Some(key));
            }
        }
    }

    #[test]
    fn keys_of_others_are_not_ours() {
        for key in ["kv/x", "reg/", "reg/node", "reg/node/", "reg/node/a/b", "reg/session/x", "reg/lease/x/y"] {
            assert_eq!(Key::parse(key), None, "{key}");
        }
    }
}
