//! Properties over whole worlds: the order of arrival does not matter, what is recompiled after a change equals what
//! would have been compiled afresh, and the data plane takes whatever comes out.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_model::{Revision, ServiceKey};
use weft_resources::{
    Change, Instance, Registered, Resource, ResourceKey, World, admit, affected, compile, document, parse, status,
};
use weft_snapshot::{
    authz::InboundView,
    fragment::{Collection, Fragment, ServicePort, Tunnel},
    route::RouteTable,
};

use crate::golden;

const NAMESPACES: [&str; 3] = ["a", "b", "weft-system"];
const NAMES: [&str; 3] = ["x", "y", "z"];

// === made up worlds ===

fn one(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    proptest::sample::select(words)
}

fn namespace() -> impl Strategy<Value = &'static str> + Clone {
    one(&NAMESPACES)
}

fn name() -> impl Strategy<Value = &'static str> + Clone {
    one(&NAMES)
}

fn labels() -> impl Strategy<Value = Value> + Clone {
    prop_oneof![
        Just(json!({})),
        name().prop_map(|app| json!({ "app": app })),
        (name(), one(&["1", "2"])).prop_map(|(app, v)| json!({ "app": app, "v": v })),
        one(&["1", "2"]).prop_map(|v| json!({ "v": v })),
    ]
}

fn document(
    version: &'static str,
    kind: &'static str,
    spec: impl Strategy<Value = Value>,
) -> impl Strategy<Value = Value> {
    (namespace(), name(), spec).prop_map(move |(ns, name, spec)| {
        json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name, "namespace": ns }, "spec": spec })
    })
}

fn service() -> impl Strategy<Value = Value> {
    let target = prop_oneof![Just(Value::Null), Just(json!("http")), (80..84u16).prop_map(|n| json!(n))];
    let port = (80..83u16, one(&["http", "tcp", "p"]), target);
    let ports = proptest::collection::vec(port, 0..3).prop_map(|ports| {
        let unique: BTreeMap<_, _> = ports.into_iter().map(|p| (p.0, p)).collect();
        let name = |i: usize, name: &str| format!("{name}-{i}");
        let port = |(i, (n, word, target)): (usize, (u16, &str, Value))| {
            json!({ "port": n, "name": name(i, word), "targetPort": target })
        };
        unique.into_values().enumerate().map(port).collect::<Vec<_>>()
    });
    let spec = (ports, labels()).prop_map(|(ports, selector)| json!({ "ports": ports, "selector": selector }));
    document("v1", "Service", spec)
}

fn backends() -> impl Strategy<Value = Value> + Clone {
    let one = (name(), namespace(), 80..83u16, 0..3u32);
    let one = one
        .prop_map(|(name, ns, port, weight)| json!({ "name": name, "namespace": ns, "port": port, "weight": weight }));
    proptest::collection::vec(one, 1..3).prop_map(Value::Array)
}

fn parents() -> impl Strategy<Value = Value> + Clone {
    let port = prop_oneof![Just(Value::Null), (80..83u16).prop_map(|n| json!(n))];
    (name(), namespace(), port)
        .prop_map(|(name, ns, port)| json!([{ "kind": "Service", "name": name, "namespace": ns, "port": port }]))
}

fn http_route() -> impl Strategy<Value = Value> {
    let path = (one(&["Exact", "PathPrefix", "RegularExpression"]), one(&["/", "/p", "/p/q"]));
    let path = path.prop_map(|(kind, value)| json!({ "path": { "type": kind, "value": value } }));
    let rest = prop_oneof![
        Just(json!({ "method": "GET" })),
        Just(json!({ "headers": [{ "name": "h", "value": "1" }] })),
        Just(json!({ "queryParams": [{ "name": "q", "value": "1" }] })),
        path,
    ];
    let rule = (proptest::collection::vec(rest, 0..3), backends());
    let rule = rule.prop_map(|(matches, backends)| json!({ "matches": matches, "backendRefs": backends }));
    let spec = (parents(), proptest::collection::vec(rule, 1..3))
        .prop_map(|(parents, rules)| json!({ "parentRefs": parents, "rules": rules }));
    document("gateway.networking.k8s.io/v1", "HTTPRoute", spec)
}

fn grpc_route() -> impl Strategy<Value = Value> {
    let spec = (parents(), backends()).prop_map(|(parents, backends)| {
        json!({ "parentRefs": parents, "rules": [{ "matches": [{ "method": { "service": "s.S" } }], "backendRefs": backends }] })
    });
    document("gateway.networking.k8s.io/v1", "GRPCRoute", spec)
}

fn tcp_route() -> impl Strategy<Value = Value> {
    let spec = (parents(), backends())
        .prop_map(|(parents, backends)| json!({ "parentRefs": parents, "rules": [{ "backendRefs": backends }] }));
    document("gateway.networking.k8s.io/v1", "TCPRoute", spec)
}

fn policy() -> impl Strategy<Value = Value> {
    let rule = prop_oneof![
        Just(json!({})),
        name().prop_map(|sa| json!({ "from": [{ "source": { "serviceAccounts": [sa] } }] })),
        namespace().prop_map(|ns| json!({ "from": [{ "source": { "namespaces": [ns] } }] })),
        Just(json!({ "to": [{ "operation": { "methods": ["GET"], "paths": ["/a*", "/b/{*}"] } }] })),
        Just(json!({ "when": [{ "key": "request.headers[a]", "values": ["b"] }] })),
        Just(json!({ "from": [{ "source": { "requestPrincipals": ["*"] } }] })),
    ];
    let rules = proptest::collection::vec(rule, 0..3);
    let spec = (one(&["ALLOW", "DENY", "AUDIT"]), labels(), proptest::option::of(name()), rules);
    let spec = spec.prop_map(|(action, labels, target, rules)| match target {
        Some(target) => {
            json!({ "action": action, "targetRefs": [{ "kind": "Service", "name": target }], "rules": rules })
        }
        None => json!({ "action": action, "selector": { "matchLabels": labels }, "rules": rules }),
    });
    document("security.istio.io/v1", "AuthorizationPolicy", spec)
}

fn peer_authentication() -> impl Strategy<Value = Value> {
    let mode = one(&["STRICT", "PERMISSIVE", "DISABLE", "UNSET"]);
    let spec = (labels(), mode)
        .prop_map(|(labels, mode)| json!({ "selector": { "matchLabels": labels }, "mtls": { "mode": mode } }));
    document("security.istio.io/v1", "PeerAuthentication", spec)
}

fn workload_entry() -> impl Strategy<Value = Value> {
    let spec = (labels(), 1..250u8, any::<bool>()).prop_map(|(labels, host, hbone)| {
        let mut labels = labels;
        if hbone {
            labels["networking.istio.io/tunnel"] = json!("http");
        }
        json!({ "address": format!("10.9.0.{host}"), "labels": labels, "ports": { "http": 80 }, "serviceAccount": "w" })
    });
    document("networking.istio.io/v1", "WorkloadEntry", spec)
}

fn defaults() -> impl Strategy<Value = Value> {
    (one(&["allow", "deny"]), one(&["strict", "permissive", "disable"])).prop_map(|(authorization, mtls)| {
        let spec = json!({ "authorization": authorization, "mtls": mtls });
        json!({ "apiVersion": "weft.dev/v1", "kind": "MeshDefaults", "metadata": { "name": "default" }, "spec": spec })
    })
}

fn any_document() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => service(), 3 => http_route(), 1 => grpc_route(), 1 => tcp_route(),
        2 => policy(), 1 => peer_authentication(), 1 => workload_entry(), 1 => defaults(),
    ]
}

fn instance() -> impl Strategy<Value = Instance> {
    let port = prop_oneof![Just("port=http:80"), Just("port=81:tcp"), Just("port=p:82"), Just("port=http:80@8080")];
    let parts = (namespace(), name(), one(&["i", "j"]), port, proptest::option::of(one(&["1", "2"])), any::<bool>());
    parts.prop_map(|(ns, service, id, port, version, plain)| {
        let version = version.map(|v| format!("label=v:{v}"));
        let words: Vec<_> = [Some(port), version.as_deref(), plain.then_some("plain")].into_iter().flatten().collect();
        golden::instance(&format!("{ns}/{service}/{id}"), "10.0.0.1", &words)
    })
}

#[derive(Debug, Clone)]
enum Step {
    /// Puts the document in, at its first or later age.
    Apply(Value, u64),
    Delete(Value),
    Register(ServiceKey, Option<u16>),
    Start(Instance),
    Stop(Instance),
}

fn step() -> impl Strategy<Value = Step> {
    let key = (namespace(), name()).prop_map(|(ns, n)| ServiceKey::new(ns.parse().unwrap(), n.parse().unwrap()));
    prop_oneof![
        6 => (any_document(), 1..5u64).prop_map(|(doc, at)| Step::Apply(doc, at)),
        2 => any_document().prop_map(Step::Delete),
        1 => (key, proptest::option::of(80..83u16)).prop_map(|(key, port)| Step::Register(key, port)),
        4 => instance().prop_map(Step::Start),
        2 => instance().prop_map(Step::Stop),
    ]
}

// === doing it ===

fn resource(doc: &Value, at: u64) -> Resource {
    let mut doc = document::from_json(doc).unwrap();
    doc.metadata.created = Revision::new(1, at);
    admit(&doc).unwrap_or_else(|e| panic!("{e}"))
}

fn take(world: &mut World, step: &Step) -> Change {
    match step {
        Step::Apply(doc, at) => {
            let resource = std::sync::Arc::new(resource(doc, *at));
            let before = world.resources.insert(resource.clone());
            Change::Resource { before, after: Some(resource) }
        }
        Step::Delete(doc) => {
            let before = world.resources.remove(&document::from_json(doc).unwrap().key());
            Change::Resource { before, after: None }
        }
        Step::Register(key, port) => {
            match port {
                Some(port) => {
                    let port = ServicePort { name: "r".into(), port: *port, protocol: Default::default() };
                    world.catalog.insert_service(key.clone(), Registered { ports: vec![port] });
                }
                None => drop(world.catalog.remove_service(key)),
            }
            Change::Service(key.clone())
        }
        Step::Start(instance) => {
            let before = world.catalog.insert(instance.clone());
            Change::Instance { before, after: world.catalog.get(&instance.uid).cloned() }
        }
        Step::Stop(instance) => Change::Instance { before: world.catalog.remove(&instance.uid), after: None },
    }
}

fn collections() -> Vec<Collection> {
    let mut all = Vec::new();
    for ns in NAMESPACES {
        for name in NAMES {
            let key = ServiceKey::new(ns.parse().unwrap(), name.parse().unwrap());
            all.push(Collection::Service(key.clone()));
            all.push(Collection::Endpoints(key.clone()));
            let routes =
                |consumer: &str| Collection::Routes { service: key.clone(), consumer: consumer.parse().unwrap() };
            all.extend(NAMESPACES.map(routes));
            for id in ["i", "j"] {
                let uid = golden::instance(&format!("{ns}/{name}/{id}"), "10.0.0.1", &[]).uid;
                all.extend([Collection::Workload(uid.clone()), Collection::Inbound(uid)]);
            }
        }
    }
    all
}

type Compiled = BTreeMap<Collection, BTreeMap<String, Fragment>>;

fn everything(world: &World) -> Compiled {
    collections().into_iter().map(|c| (c.clone(), compile(world, &c))).collect()
}

fn statuses(world: &World) -> BTreeMap<ResourceKey, Option<status::Status>> {
    world.resources.iter().map(|r| (r.key.clone(), status::status(world, &r.key))).collect()
}

/// What the proxy would refuse must never be sent.
fn the_data_plane_takes_it(compiled: &Compiled) {
    for fragment in compiled.values().flat_map(BTreeMap::values) {
        match fragment {
            Fragment::Inbound(i) => drop(InboundView::compile(i).unwrap()),
            Fragment::Routes(r) => drop(RouteTable::compile(r).unwrap()),
            Fragment::Endpoint(e) if e.tunnel != Tunnel::None => {
                assert!(!e.identities.is_empty() && e.mesh.is_some());
                assert_eq!(e.tunnel == Tunnel::Weft1, !e.sni.is_empty());
            }
            Fragment::Workload(w) => {
                for (i, a) in w.listens.iter().enumerate() {
                    assert!(
                        w.listens.iter().take(i).all(|b| a.app != b.app && a.service_port != b.service_port),
                        "{w:?}"
                    );
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn parse_of_print_is_the_same_resource(doc in any_document()) {
        let first = resource(&doc, 0);
        let printed = first.to_json();
        let from_json = admit(&document::from_json(&printed).unwrap()).unwrap();
        prop_assert_eq!(&from_json.spec, &first.spec);
        let text_of = |r: &Resource| weft_resources::Metadata { created: Revision::ZERO, ..r.metadata.clone() };
        prop_assert_eq!(from_json.metadata.clone(), text_of(&first));
        prop_assert_eq!(from_json.to_json(), printed.clone());
        // JSON is YAML, and where something stood does not change what it means
        let text = serde_json::to_string_pretty(&printed).unwrap();
        let from_text = admit(&parse("f", &text).remove(0).unwrap()).unwrap();
        prop_assert_eq!(from_text.spec, first.spec);
        prop_assert_eq!(from_text.written, first.written);
    }

    #[test]
    fn the_order_of_arrival_does_not_matter(
        (steps, shuffled) in proptest::collection::vec(step(), 1..24).prop_flat_map(|steps| {
            // what has one name arrives once: the last would win, and that is order
            let mut steps: Vec<_> = steps.into_iter().filter(|s| matches!(s, Step::Apply(..) | Step::Start(_))).collect();
            let mut seen = std::collections::BTreeSet::new();
            steps.retain(|s| seen.insert(match s {
                Step::Apply(doc, _) => document::from_json(doc).unwrap().key().to_string(),
                Step::Start(i) => i.uid.to_string(),
                _ => String::new(),
            }));
            (Just(steps.clone()), Just(steps).prop_shuffle())
        })
    ) {
        let [one, other] = [steps, shuffled].map(|steps| {
            let mut world = World::new(golden::mesh());
            for step in &steps {
                take(&mut world, step);
            }
            world
        });
        prop_assert_eq!(statuses(&one), statuses(&other));
        let compiled = everything(&one);
        the_data_plane_takes_it(&compiled);
        prop_assert_eq!(compiled, everything(&other));
    }

    #[test]
    fn recompiling_what_is_affected_equals_compiling_everything(steps in proptest::collection::vec(step(), 1..24)) {
        let mut world = World::new(golden::mesh());
        let mut kept = everything(&world);
        let mut told = statuses(&world);
        for step in &steps {
            let change = take(&mut world, step);
            let affected = affected(&world, &change);
            for (collection, entries) in &mut kept {
                if affected.touches(collection) {
                    *entries = compile(&world, collection);
                }
            }
            for key in &affected.statuses {
                match status::status(&world, key) {
                    Some(status) => told.insert(key.clone(), Some(status)),
                    None => told.remove(key),
                };
            }
            prop_assert_eq!(&kept, &everything(&world), "after {:?}", step);
            prop_assert_eq!(&told, &statuses(&world), "after {:?}", step);
        }
        the_data_plane_takes_it(&kept);
    }
}

/// The property above would hold if everything were always affected: it is not.
#[test]
fn a_change_affects_what_it_can_and_no_more() {
    let mut world = World::new(golden::mesh());
    for id in ["a/x/i", "a/y/i", "b/x/i"] {
        world.catalog.insert(golden::instance(id, "10.0.0.1", &["port=http:80"]));
    }
    for key in ["a/x", "a/y", "b/x"] {
        let port = ServicePort { name: "http".into(), port: 80, protocol: Default::default() };
        world.catalog.insert_service(key.parse().unwrap(), Registered { ports: vec![port] });
    }
    let changed = golden::instance("a/x/i", "10.0.0.1", &["port=http:80", "health=critical"]);
    let change = take(&mut world, &Step::Start(changed));
    let touched: Vec<_> = collections().into_iter().filter(|c| affected(&world, &change).touches(c)).collect();
    let uid = golden::instance("a/x/i", "10.0.0.1", &[]).uid;
    let key: ServiceKey = "a/x".parse().unwrap();
    assert_eq!(touched, [Collection::Endpoints(key), Collection::Workload(uid.clone()), Collection::Inbound(uid)]);
}
