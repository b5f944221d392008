//! A golden case is one YAML file that a user could have written, beside what comes of it.
//!
//! Lines that begin with `#!` say what the catalog holds and what to show:
//!
//! ```text
//! #! instance shop/reviews/r1 127.0.0.1 port=http:9080 label=version:v1 sa=reviews plain health=critical
//! #! service shop/stock port=9000:tcp
//! #! show routes shop/reviews for shop
//! #! show service|endpoints shop/reviews
//! #! show workload|inbound shop/reviews/r1
//! ```

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use weft_model::{Health, Labels, Locality, Protocol, Revision, ServiceKey, SpiffeId, TrustDomain, Uid};
use weft_resources::{Instance, InstancePort, Mesh, Registered, World, admit, parse, status};
use weft_snapshot::{
    authz::InboundView,
    fragment::{
        Collection, Fragment, HttpFilter, HttpMatch, KeyMatch, PathMatch, PortRoutes, ServicePort, Target, Tunnel,
        ValueMatch,
    },
    route::RouteTable,
};

/// Runs `src/kind/<kind>/golden/<case>.yaml`.
pub fn run(kind: &str, case: &str) {
    let directory = directory(kind);
    let file = format!("{}.yaml", case.replace('_', "-"));
    let text = std::fs::read_to_string(directory.join(&file)).unwrap_or_else(|e| panic!("{kind}/{file}: {e}"));
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(&directory);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let shown = show(&file, &text);
    settings.bind(|| insta::assert_snapshot!(case.replace('_', "-"), shown));
}

pub fn directory(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/kind").join(kind).join("golden")
}

pub fn mesh() -> Mesh {
    Mesh::new(TrustDomain::parse("mesh.weft").unwrap())
}

fn show(file: &str, text: &str) -> String {
    let mut out = String::new();
    let mut world = World::new(mesh());
    let directives: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("#! ")).collect();
    for words in directives.iter().map(|d| d.split_whitespace().collect::<Vec<_>>()) {
        match words.as_slice() {
            ["instance", uid, address, rest @ ..] => drop(world.catalog.insert(instance(uid, address, rest))),
            ["service", key, rest @ ..] => {
                let ports = rest.iter().map(|p| service_port(p.strip_prefix("port=").unwrap())).collect();
                world.catalog.insert_service(key.parse().unwrap(), Registered { ports });
            }
            ["show", ..] => {}
            other => panic!("{file}: {other:?}"),
        }
    }
    let mut keys = Vec::new();
    for (i, document) in parse(file, text).into_iter().enumerate() {
        match document.and_then(|mut doc| {
            doc.metadata.created = Revision::new(1, i as u64 + 1);
            admit(&doc)
        }) {
            Ok(resource) => {
                resource.warnings.iter().for_each(|w| writeln!(out, "warning: {w}").unwrap());
                keys.push(resource.key.clone());
                world.resources.insert(resource);
            }
            Err(violations) => violations.iter().for_each(|v| writeln!(out, "{v}").unwrap()),
        }
    }
    for key in &keys {
        conditions(&world, key, &mut out);
    }
    for directive in directives.iter().filter_map(|d| d.strip_prefix("show ")) {
        writeln!(out, "\n== {directive}").unwrap();
        let fragments = weft_resources::compile(&world, &collection(directive));
        if fragments.is_empty() {
            out.push_str("nothing\n");
        }
        fragments.values().for_each(|f| fragment(f, &mut out));
    }
    out
}

fn conditions(world: &World, key: &weft_resources::ResourceKey, out: &mut String) {
    let status = status::status(world, key).unwrap();
    for c in status.conditions() {
        let holds = if c.holds { "True" } else { "False" };
        write!(out, "{key}: {}={holds} {}", c.name, c.reason).unwrap();
        c.message.lines().for_each(|l| write!(out, "\n    {l}").unwrap());
        out.push('\n');
    }
}

fn collection(directive: &str) -> Collection {
    let words: Vec<_> = directive.split_whitespace().collect();
    match words.as_slice() {
        ["service", key] => Collection::Service(key.parse().unwrap()),
        ["endpoints", key] => Collection::Endpoints(key.parse().unwrap()),
        ["routes", key, "for", consumer] => {
            Collection::Routes { service: key.parse().unwrap(), consumer: consumer.parse().unwrap() }
        }
        ["workload", id] => Collection::Workload(uid(id)),
        ["inbound", id] => Collection::Inbound(uid(id)),
        other => panic!("{other:?}"),
    }
}

// === the catalog ===

fn uid(text: &str) -> Uid {
    let parts: Vec<_> = text.split('/').collect();
    let key = ServiceKey::new(parts[0].parse().unwrap(), parts[1].parse().unwrap());
    Uid::of(&key, &"n1".parse().unwrap(), &parts[2].parse().unwrap())
}

/// `http:9080`, `9000:tcp`, `9080`.
fn service_port(text: &str) -> ServicePort {
    let parts: Vec<_> = text.split(':').collect();
    let (name, number, protocol) = match parts.as_slice() {
        [number, protocol] if number.parse::<u16>().is_ok() => {
            ("", number, Protocol::from_app_protocol(protocol).unwrap())
        }
        [name, number] => (*name, number, Protocol::of_port(None, Some(name))),
        [number] => ("", number, Protocol::Undeclared),
        other => panic!("{other:?}"),
    };
    ServicePort { name: name.into(), port: number.parse().unwrap(), protocol }
}

pub fn instance(id: &str, address: &str, rest: &[&str]) -> Instance {
    let service: Vec<_> = id.split('/').collect();
    let service = ServiceKey::new(service[0].parse().unwrap(), service[1].parse().unwrap());
    let address: std::net::IpAddr = address.parse().unwrap();
    let mut made = Instance {
        uid: uid(id),
        node: "n1".parse().unwrap(),
        identity: None,
        ports: Vec::new(),
        address,
        mesh: Some(SocketAddr::new(address, 15008)),
        tunnel: Tunnel::Weft1,
        labels: Labels::default(),
        locality: Locality::default(),
        weight: 1,
        health: Health::Passing,
        workload: "".into(),
        service,
    };
    let mut account = made.service.name.clone();
    for (key, value) in rest.iter().map(|w| w.split_once('=').unwrap_or((w, ""))) {
        match key {
            "port" => {
                // `http:80@18080`: the application listens elsewhere than the service says
                let (port, at) = value.split_once('@').map_or((value, None), |(p, at)| (p, Some(at.parse().unwrap())));
                let p = service_port(port);
                let app = SocketAddr::new(address, at.unwrap_or(p.port));
                made.ports.push(InstancePort {
                    name: p.name,
                    service_port: p.port,
                    protocol: p.protocol,
                    app,
                    connect: app,
                    preserve: false,
                });
            }
            "label" => {
                let (key, value) = value.split_once(':').unwrap();
                made.labels.0.insert(key.into(), value.into());
            }
            "sa" => account = value.parse().unwrap(),
            "health" => made.health = if value == "critical" { Health::Critical } else { Health::Unknown },
            "plain" => (made.tunnel, made.mesh) = (Tunnel::None, None),
            other => panic!("{other}"),
        }
    }
    if made.tunnel != Tunnel::None {
        let id = SpiffeId::workload(&mesh().trust_domain, made.service.namespace.as_str(), account.as_str());
        made.identity = Some(id.unwrap());
    }
    made
}

// === fragments, readable ===

fn fragment(fragment: &Fragment, out: &mut String) {
    match fragment {
        Fragment::Service(s) => {
            writeln!(out, "{} {:?}", s.key, s.balance).unwrap();
            s.ports.iter().for_each(|p| writeln!(out, "  port {} `{}` {}", p.port, p.name, p.protocol).unwrap());
        }
        Fragment::Endpoint(e) => {
            let mesh = e.mesh.map_or("in the clear".into(), |m| format!("{:?} at {m}", e.tunnel));
            write!(out, "{} {mesh} as {:?} {} weight {}", e.uid, e.identities, e.health, e.weight).unwrap();
            write!(out, " app={} version={} workload={}", e.app, e.version, e.workload).unwrap();
            if e.locality != Locality::default() {
                write!(out, " in {}/{}", e.locality.region, e.locality.zone).unwrap();
            }
            out.push('\n');
            e.ports.iter().for_each(|(port, at)| writeln!(out, "  {port} -> {at}").unwrap());
        }
        Fragment::Workload(w) => {
            writeln!(out, "{} of {} as {}", w.uid, w.service, w.identity).unwrap();
            for l in &w.listens {
                writeln!(out, "  {} `{}` {} at {} -> {}", l.service_port, l.name, l.protocol, l.app, l.connect)
                    .unwrap();
            }
        }
        Fragment::Routes(r) => {
            RouteTable::compile(r).unwrap();
            if r.ports.is_empty() {
                out.push_str("to the service itself\n");
            }
            r.ports.iter().for_each(|(port, routes)| port_routes(*port, routes, out));
        }
        Fragment::Inbound(i) => {
            InboundView::compile(i).unwrap();
            let by = i.mtls_origin.as_ref().map_or(String::new(), |o| format!(" by {o}"));
            writeln!(out, "mtls {:?}{by}, otherwise {:?}", i.mtls, i.default).unwrap();
            i.port_mtls.iter().for_each(|(port, mode)| writeln!(out, "  port {port} {mode:?}").unwrap());
            for p in &i.policies {
                writeln!(out, "{:?} {}", p.action, p.origin).unwrap();
                for (n, rule) in p.rules.iter().enumerate() {
                    writeln!(out, "  rule-{n}").unwrap();
                    rule.from.iter().for_each(|s| writeln!(out, "    from {}", terse(s)).unwrap());
                    rule.to.iter().for_each(|o| writeln!(out, "    to {}", terse(o)).unwrap());
                    rule.when.iter().for_each(|c| writeln!(out, "    when {:?} {}", c.key, terse(&c.values)).unwrap());
                }
            }
        }
        other => writeln!(out, "{other:?}").unwrap(),
    }
}

/// Debug without the fields that say nothing.
fn terse(value: &impl std::fmt::Debug) -> String {
    let mut text = format!("{value:?}");
    for nothing in ["any: [], none: []", "any: []", "none: []"] {
        text = text.replace(nothing, "");
    }
    for name in [
        "principals",
        "namespaces",
        "service_accounts",
        "trust_domains",
        "ip_blocks",
        "hosts",
        "methods",
        "paths",
        "ports",
    ] {
        for of in ["Values", "Blocks", "Ports"] {
            text = text.replace(&format!(", {name}: {of} {{  }}"), "").replace(&format!("{name}: {of} {{  }}, "), "");
        }
    }
    for of in ["Values ", "Blocks ", "Ports ", "Source ", "Operation "] {
        text = text.replace(of, "");
    }
    text.replace("{ , ", "{ ").replace(",  }", " }")
}

fn port_routes(port: u16, routes: &PortRoutes, out: &mut String) {
    writeln!(out, "port {port}").unwrap();
    for rule in &routes.http {
        let matches: Vec<_> = rule.matches.iter().map(http_match).collect();
        let matches = if matches.is_empty() { "anything".into() } else { matches.join(" | ") };
        writeln!(out, "  {matches}  [{}]", rule.origin).unwrap();
        rule.filters.iter().for_each(|f| writeln!(out, "    {}", filter(f)).unwrap());
        backends(&rule.backends, out);
        if rule.timeouts != weft_snapshot::fragment::Timeouts::default() {
            writeln!(out, "    timeout {:?}, one try {:?}", rule.timeouts.request, rule.timeouts.backend).unwrap();
        }
        if rule.retry != weft_snapshot::fragment::RetryPolicy::default() {
            writeln!(out, "    {:?}", rule.retry).unwrap();
        }
    }
    for rule in &routes.tcp {
        writeln!(out, "  connections  [{}]", rule.origin).unwrap();
        backends(&rule.backends, out);
    }
}

fn backends(list: &[weft_snapshot::fragment::Backend], out: &mut String) {
    if list.is_empty() {
        out.push_str("    -> 500, no backend\n");
    }
    for b in list {
        let to = match &b.target {
            Target::Service { key, port, subset } if subset.0.is_empty() => format!("{key}:{port}"),
            Target::Service { key, port, subset } => format!("{key}:{port} where {:?}", subset.0),
            Target::Unresolved { reference, why } => format!("500, {reference}: {why}"),
        };
        writeln!(out, "    -> {to} × {}", b.weight).unwrap();
        b.filters.iter().for_each(|f| writeln!(out, "       {}", filter(f)).unwrap());
    }
}

fn http_match(m: &HttpMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(m.method.as_ref().map(|m| m.to_string()));
    parts.extend(m.path.as_ref().map(|p| match p {
        PathMatch::Exact(p) => format!("= {p}"),
        PathMatch::ElementPrefix(p) => format!("{p}…"),
        PathMatch::Regex(p) => format!("~ {p}"),
    }));
    let key = |of: &str, k: &KeyMatch| match &k.value {
        ValueMatch::Exact(v) => format!("{of}{}={v}", k.key),
        ValueMatch::Regex(v) => format!("{of}{}~{v}", k.key),
        ValueMatch::Present => format!("{of}{}", k.key),
    };
    parts.extend(m.headers.iter().map(|k| key("", k)));
    parts.extend(m.query.iter().map(|k| key("?", k)));
    parts.join(" ")
}

fn filter(f: &HttpFilter) -> String {
    match f {
        HttpFilter::RequestHeaders(e) => format!("request {e:?}"),
        HttpFilter::ResponseHeaders(e) => format!("response {e:?}"),
        HttpFilter::Rewrite { host, path } => format!("rewrite host {host:?} path {path:?}"),
    }
}
