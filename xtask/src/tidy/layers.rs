//! Who may use whom. DESIGN section 8, written down once.

use super::Problem;
use crate::workspace::{Kind, Workspace};
use std::collections::BTreeSet;

struct Row {
    name: &'static str,
    /// Our crates that it may name as a dependency.
    may: &'static [&'static str],
    /// Anything of these in what it links, however far away, is a fault.
    never: &'static [&'static str],
}

/// No async, no sockets, no protobuf: what is decided can be tested in a second.
const PURE: &[&str] = &["tokio", "mio", "hyper", "h2", "prost", "tonic", "axum", "tower", "socket2"];

const ROWS: &[Row] = &[
    Row { name: "weft-model", may: &[], never: PURE },
    Row { name: "weft-rt", may: &["weft-model"], never: &["hyper", "prost", "tonic", "axum"] },
    Row { name: "weft-snapshot", may: &["weft-model"], never: PURE },
    Row { name: "weft-identity", may: &["weft-model"], never: PURE },
    Row { name: "weft-store", may: &["weft-model"], never: PURE },
    Row { name: "weft-registry", may: &["weft-model", "weft-store"], never: PURE },
    Row { name: "weft-resources", may: &["weft-model", "weft-snapshot"], never: PURE },
    Row { name: "weft-ca", may: &["weft-model", "weft-identity"], never: PURE },
    Row { name: "weft-wire", may: &["weft-model", "weft-snapshot"], never: &["rustls"] },
    Row { name: "weft-dns", may: &["weft-model", "weft-rt", "weft-registry"], never: &["tonic", "axum"] },
    Row {
        name: "weft-proxy",
        may: &["weft-model", "weft-rt", "weft-snapshot", "weft-identity", "weft-wire"],
        never: &[
            "weft-store",
            "weft-registry",
            "weft-resources",
            "weft-ca",
            "weft-control",
            "weft-agent",
            "weft-consul",
            "redb",
        ],
    },
    Row {
        name: "weft-control",
        may: &[
            "weft-model",
            "weft-rt",
            "weft-snapshot",
            "weft-identity",
            "weft-store",
            "weft-registry",
            "weft-resources",
            "weft-ca",
            "weft-wire",
            "weft-dns",
        ],
        never: &["weft-proxy", "weft-agent"],
    },
    Row {
        name: "weft-consul",
        may: &["weft-model", "weft-rt", "weft-registry"],
        never: &["weft-control", "weft-agent", "weft-proxy"],
    },
    Row {
        name: "weft-agent",
        may: &["weft-model", "weft-rt", "weft-identity", "weft-wire", "weft-dns"],
        never: &["weft-control", "weft-proxy", "weft-ca", "weft-store"],
    },
    Row {
        name: "weft",
        may: &[
            "weft-model",
            "weft-rt",
            "weft-snapshot",
            "weft-identity",
            "weft-store",
            "weft-registry",
            "weft-resources",
            "weft-ca",
            "weft-wire",
            "weft-dns",
            "weft-proxy",
            "weft-control",
            "weft-consul",
            "weft-agent",
        ],
        never: &[],
    },
    // Fakes and scenarios may reach for every crate; nobody may ship them (checked below).
    Row {
        name: "weft-sim",
        may: &[
            "weft-model",
            "weft-rt",
            "weft-snapshot",
            "weft-identity",
            "weft-store",
            "weft-registry",
            "weft-resources",
            "weft-ca",
            "weft-wire",
            "weft-proxy",
            "weft-control",
            "weft-agent",
        ],
        never: &[],
    },
    Row {
        name: "weft-fuzz",
        may: &["weft-model", "weft-snapshot", "weft-identity", "weft-resources", "weft-wire", "weft-proxy"],
        never: &["weft-control"],
    },
    Row { name: "xtask", may: &[], never: PURE },
];

/// A member, reduced to names.
#[derive(Debug, Default)]
pub struct Member {
    pub name: String,
    pub normal: BTreeSet<String>,
    pub dev: BTreeSet<String>,
    pub closure: BTreeSet<String>,
}

pub fn members(workspace: &Workspace) -> Vec<Member> {
    let name = |id: &str| workspace.packages.get(id).map(|p| p.name.clone());
    let of = |package: &crate::workspace::Package, dev: bool| {
        package.dependencies.iter().filter(|(_, k)| (*k == Kind::Dev) == dev).filter_map(|(id, _)| name(id)).collect()
    };
    workspace
        .members()
        .map(|(id, package)| Member {
            name: package.name.clone(),
            normal: of(package, false),
            dev: of(package, true),
            closure: workspace.closure(id).into_iter().filter_map(name).collect(),
        })
        .collect()
}

pub fn check(members: &[Member]) -> Vec<Problem> {
    let ours: BTreeSet<&str> = members.iter().map(|m| m.name.as_str()).collect();
    let mut problems = Vec::new();
    for member in members {
        let Some(row) = ROWS.iter().find(|r| r.name == member.name) else {
            problems.push(Problem::hard(
                "layers",
                &member.name,
                "is not in the table: give it a row in xtask/src/tidy/layers.rs",
            ));
            continue;
        };
        let mine = |set: &BTreeSet<String>| -> Vec<String> {
            set.iter().filter(|d| ours.contains(d.as_str())).cloned().collect()
        };
        for dependency in mine(&member.normal) {
            if dependency == "weft-sim" || dependency == "weft-fuzz" {
                problems.push(Problem::hard(
                    "layers",
                    &member.name,
                    format!("links {dependency}, which is for tests only"),
                ));
            } else if !row.may.contains(&dependency.as_str()) {
                problems.push(Problem::hard("layers", &member.name, format!("may not depend on {dependency}")));
            }
        }
        for dependency in mine(&member.dev) {
            let up = ROWS.iter().find(|r| r.name == dependency).is_some_and(|r| r.may.contains(&row.name));
            if up && dependency != "weft-sim" {
                problems.push(Problem::hard(
                    "layers",
                    &member.name,
                    format!("its tests use {dependency}, a layer above it"),
                ));
            }
        }
        for banned in row.never.iter().filter(|b| member.closure.contains(**b)) {
            problems.push(Problem::hard(
                "layers",
                &member.name,
                format!("links {banned}, directly or not: it never may"),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, normal: &[&str], dev: &[&str], closure: &[&str]) -> Member {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Member { name: name.to_owned(), normal: set(normal), dev: set(dev), closure: set(closure) }
    }

    fn faults(members: &[Member]) -> Vec<String> {
        check(members).into_iter().map(|p| format!("{}: {}", p.at, p.why)).collect()
    }

    #[test]
    fn the_allowed_shape_passes() {
        let members = [
            member("weft-model", &["serde"], &["proptest"], &["serde"]),
            member("weft-snapshot", &["weft-model"], &["weft-sim"], &["weft-model"]),
            member("weft-sim", &["weft-snapshot"], &[], &["weft-snapshot", "tokio"]),
        ];
        assert_eq!(faults(&members), [""; 0]);
    }

    #[test]
    fn a_layer_above_is_refused() {
        let members = [member("weft-model", &["weft-snapshot"], &[], &[]), member("weft-snapshot", &[], &[], &[])];
        assert_eq!(faults(&members), ["weft-model: may not depend on weft-snapshot"]);
    }

    #[test]
    fn the_proxy_may_not_reach_the_store_through_another() {
        let members = [
            member("weft-proxy", &["weft-wire"], &[], &["weft-wire", "weft-store"]),
            member("weft-wire", &[], &[], &[]),
        ];
        assert_eq!(faults(&members), ["weft-proxy: links weft-store, directly or not: it never may"]);
    }

    #[test]
    fn a_pure_crate_may_not_link_tokio() {
        assert_eq!(
            faults(&[member("weft-registry", &[], &[], &["tokio"])]),
            ["weft-registry: links tokio, directly or not: it never may"]
        );
    }

    #[test]
    fn fakes_are_not_shipped() {
        let members = [member("weft", &["weft-sim"], &[], &[]), member("weft-sim", &[], &[], &[])];
        assert_eq!(faults(&members), ["weft: links weft-sim, which is for tests only"]);
    }

    #[test]
    fn tests_do_not_reach_upwards() {
        let members = [member("weft-snapshot", &[], &["weft-proxy"], &[]), member("weft-proxy", &[], &[], &[])];
        assert_eq!(faults(&members), ["weft-snapshot: its tests use weft-proxy, a layer above it"]);
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        assert!(faults(&[member("weft-new", &[], &[], &[])]).concat().contains("is not in the table"));
    }
}
