//! Every value that the formats can carry, for properties.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proptest::{collection::vec, option, prelude::*};
use weft_model::{Health, Labels, Locality, Name, Protocol, ResourceRef, ServiceKey, SpiffeId, TrustDomain, Uid};
use weft_snapshot::fragment::{
    Action, Backend, Balance, Blocks, Bundle, Collection, Condition, ConditionKey, DefaultAction, Endpoint, Fragment,
    HeaderEdit, HttpFilter, HttpMatch, HttpRule, Inbound, IpBlock, KeyMatch, Listen, MtlsMode, Operation, PathMatch,
    PathRewrite, Policy, PortRoutes, Ports, RetryPolicy, Revocations, Routes, Rule, Service, ServicePort, Source,
    StringMatch, Target, TcpRule, Timeouts, Tunnel, ValueMatch, Values, Workload,
};

pub fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9/#:%._ß-]{1,12}".prop_map(|s| Name::parse(&s).unwrap())
}

pub fn key() -> impl Strategy<Value = ServiceKey> {
    (name(), name()).prop_map(|(ns, n)| ServiceKey::new(ns, n))
}

pub fn uid() -> impl Strategy<Value = Uid> {
    prop_oneof![
        (key(), name(), name()).prop_map(|(k, node, id)| Uid::of(&k, &node, &id)),
        "[a-z#/%]{1,20}".prop_map(|s| Uid::parse(&s).unwrap()),
    ]
}

fn trust_domain() -> impl Strategy<Value = TrustDomain> {
    "[a-z0-9.-]{1,12}".prop_map(|s| TrustDomain::parse(&s).unwrap())
}

fn spiffe() -> impl Strategy<Value = SpiffeId> {
    (trust_domain(), "[a-z0-9]{1,6}", "[A-Za-z0-9_]{1,6}")
        .prop_map(|(td, ns, sa)| SpiffeId::workload(&td, &ns, &sa).unwrap())
}

pub fn collection() -> impl Strategy<Value = Collection> {
    prop_oneof![
        key().prop_map(Collection::Service),
        key().prop_map(Collection::Endpoints),
        (key(), name()).prop_map(|(service, consumer)| Collection::Routes { service, consumer }),
        uid().prop_map(Collection::Workload),
        uid().prop_map(Collection::Inbound),
        trust_domain().prop_map(Collection::Bundle),
        Just(Collection::Revocations),
    ]
}

pub fn fragment() -> impl Strategy<Value = Fragment> {
    prop_oneof![
        service().prop_map(Fragment::Service),
        endpoint().prop_map(Fragment::Endpoint),
        routes().prop_map(Fragment::Routes),
        workload().prop_map(Fragment::Workload),
        inbound().prop_map(Fragment::Inbound),
        (trust_domain(), blobs())
            .prop_map(|(trust_domain, authorities)| { Fragment::Bundle(Bundle { trust_domain, authorities }) }),
        (blobs(), vec(spiffe(), 0..3), blobs()).prop_map(|(serials, ids, issuer_keys)| {
            Fragment::Revocations(Revocations { serials, ids, issuer_keys })
        }),
    ]
}

// === words ===

fn text() -> impl Strategy<Value = Arc<str>> {
    "[ -~ß]{0,8}".prop_map(Into::into)
}

fn texts() -> impl Strategy<Value = Vec<Arc<str>>> {
    vec(text(), 0..3)
}

fn blobs() -> impl Strategy<Value = Vec<Arc<[u8]>>> {
    vec(vec(any::<u8>(), 0..20).prop_map(Into::into), 0..3)
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((text(), text()), 0..3).prop_map(|l| l.into_iter().collect())
}

fn locality() -> impl Strategy<Value = Locality> {
    (text(), text()).prop_map(|(region, zone)| Locality { region, zone })
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>(), any::<u32>()).prop_map(|(ip, port, scope)| match ip {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), port),
        IpAddr::V6(v6) => std::net::SocketAddrV6::new(v6, port, 0, scope).into(),
    })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    use Protocol::{Grpc, Http, Http2, Tcp, Tls, Undeclared};
    prop::sample::select(vec![Undeclared, Http, Http2, Grpc, Tcp, Tls])
}

fn health() -> impl Strategy<Value = Health> {
    use Health::{Critical, Draining, Maintenance, Passing, Unknown, Warning};
    prop::sample::select(vec![Passing, Warning, Unknown, Critical, Draining, Maintenance])
}

fn origin() -> impl Strategy<Value = ResourceRef> {
    (name(), name(), name(), option::of(name())).prop_map(|(kind, namespace, name, section)| ResourceRef {
        kind,
        namespace,
        name,
        section,
    })
}

fn nanos() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

// === services, endpoints, workloads ===

fn service() -> impl Strategy<Value = Service> {
    let port =
        (text(), any::<u16>(), protocol()).prop_map(|(name, port, protocol)| ServicePort { name, port, protocol });
    let balance =
        prop::sample::select(vec![Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random]);
    (key(), vec(port, 0..3), balance).prop_map(|(key, ports, balance)| Service { key, ports, balance })
}

pub fn endpoint() -> impl Strategy<Value = Endpoint> {
    let place = (option::of(addr()), prop::collection::btree_map(any::<u16>(), addr(), 0..3), locality());
    let tunnel = prop::sample::select(vec![Tunnel::None, Tunnel::Hbone, Tunnel::Weft1]);
    let who = (uid(), text(), vec(spiffe(), 0..3), tunnel);
    (who, place, any::<u32>(), health(), (text(), text(), text(), labels())).prop_map(
        |(
            (uid, sni, identities, tunnel),
            (mesh, ports, locality),
            weight,
            health,
            (workload, app, version, labels),
        )| {
            Endpoint {
                uid,
                mesh,
                tunnel,
                sni,
                identities,
                ports,
                locality,
                weight,
                health,
                workload,
                app,
                version,
                labels,
            }
        },
    )
}

fn workload() -> impl Strategy<Value = Workload> {
    let listen = (any::<u16>(), text(), protocol(), addr(), addr(), any::<bool>()).prop_map(
        |(service_port, name, protocol, app, connect, preserve)| Listen {
            service_port,
            name,
            protocol,
            app,
            connect,
            preserve,
        },
    );
    let who = (uid(), key(), spiffe(), text());
    (who, vec(listen, 0..3), (name(), locality()), (text(), text(), text(), labels())).prop_map(
        |((uid, service, identity, sni), listens, (node, locality), (workload, app, version, labels))| Workload {
            uid,
            service,
            identity,
            sni,
            listens,
            node,
            locality,
            workload,
            app,
            version,
            labels,
        },
    )
}

// === routes ===

fn routes() -> impl Strategy<Value = Routes> {
    let tcp = (origin(), vec(backend(), 0..3)).prop_map(|(origin, backends)| TcpRule { origin, backends });
    let port = (vec(http_rule(), 0..3), vec(tcp, 0..2)).prop_map(|(http, tcp)| PortRoutes { http, tcp });
    (key(), name(), prop::collection::btree_map(any::<u16>(), port, 0..3))
        .prop_map(|(service, consumer, ports)| Routes { service, consumer, ports })
}

fn http_rule() -> impl Strategy<Value = HttpRule> {
    let timeouts =
        (option::of(nanos()), option::of(nanos())).prop_map(|(request, backend)| Timeouts { request, backend });
    let retry = (any::<u32>(), vec(any::<u16>(), 0..3), nanos())
        .prop_map(|(attempts, statuses, backoff)| RetryPolicy { attempts, statuses, backoff });
    (origin(), texts(), vec(http_match(), 0..3), vec(filter(), 0..3), vec(backend(), 0..3), timeouts, retry).prop_map(
        |(origin, hosts, matches, filters, backends, timeouts, retry)| HttpRule {
            origin,
            hosts,
            matches,
            filters,
            backends,
            timeouts,
            retry,
        },
    )
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        text().prop_map(PathMatch::Exact),
        text().prop_map(PathMatch::ElementPrefix),
        text().prop_map(PathMatch::Regex)
    ];
    (option::of(path), option::of(text()), vec(key_match(), 0..3), vec(key_match(), 0..3))
        .prop_map(|(path, method, headers, query)| HttpMatch { path, method, headers, query })
}

fn key_match() -> impl Strategy<Value = KeyMatch> {
    let value =
        prop_oneof![text().prop_map(ValueMatch::Exact), text().prop_map(ValueMatch::Regex), Just(ValueMatch::Present)];
    (text(), value).prop_map(|(key, value)| KeyMatch { key, value })
}

fn filter() -> impl Strategy<Value = HttpFilter> {
    let pairs = || vec((text(), text()), 0..3);
    let edit = move || (pairs(), pairs(), texts()).prop_map(|(set, add, remove)| HeaderEdit { set, add, remove });
    let path = prop_oneof![text().prop_map(PathRewrite::Full), text().prop_map(PathRewrite::Prefix)];
    prop_oneof![
        edit().prop_map(HttpFilter::RequestHeaders),
        edit().prop_map(HttpFilter::ResponseHeaders),
        (option::of(text()), option::of(path)).prop_map(|(host, path)| HttpFilter::Rewrite { host, path }),
    ]
}

fn backend() -> impl Strategy<Value = Backend> {
    let target = prop_oneof![
        (key(), any::<u16>(), labels()).prop_map(|(key, port, subset)| Target::Service { key, port, subset }),
        (text(), text()).prop_map(|(reference, why)| Target::Unresolved { reference, why }),
    ];
    (target, any::<u32>(), vec(filter(), 0..2)).prop_map(|(target, weight, filters)| Backend {
        target,
        weight,
        filters,
    })
}

// === what may reach a workload ===

fn inbound() -> impl Strategy<Value = Inbound> {
    let mode = || prop::sample::select(vec![MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable]);
    let default =
        prop::sample::select(vec![DefaultAction::Deny, DefaultAction::AllowAuthenticated, DefaultAction::Allow]);
    let action = prop::sample::select(vec![Action::Deny, Action::Allow, Action::Audit]);
    let policy =
        (origin(), action, vec(rule(), 0..3)).prop_map(|(origin, action, rules)| Policy { origin, action, rules });
    let port_mtls = prop::collection::btree_map(any::<u16>(), mode(), 0..3);
    (uid(), mode(), port_mtls, option::of(origin()), default, vec(policy, 0..3)).prop_map(
        |(uid, mtls, port_mtls, mtls_origin, default, policies)| Inbound {
            uid,
            mtls,
            port_mtls,
            mtls_origin,
            default,
            policies,
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let source = (values(), values(), values(), values(), blocks()).prop_map(
        |(principals, namespaces, service_accounts, trust_domains, ip_blocks)| Source {
            principals,
            namespaces,
            service_accounts,
            trust_domains,
            ip_blocks,
        },
    );
    let ports = (vec(any::<u16>(), 0..3), vec(any::<u16>(), 0..3)).prop_map(|(any, none)| Ports { any, none });
    let operation = (values(), values(), values(), ports).prop_map(|(hosts, methods, paths, ports)| Operation {
        hosts,
        methods,
        paths,
        ports,
    });
    let condition = (condition_key(), values()).prop_map(|(key, values)| Condition { key, values });
    (vec(source, 0..3), vec(operation, 0..3), vec(condition, 0..3), option::of(text()))
        .prop_map(|(from, to, when, unresolved)| Rule { from, to, when, unresolved })
}

fn condition_key() -> impl Strategy<Value = ConditionKey> {
    use ConditionKey as K;
    prop_oneof![
        text().prop_map(K::RequestHeader),
        text().prop_map(K::Unsupported),
        prop::sample::select(vec![
            K::SourceIp,
            K::RemoteIp,
            K::SourceNamespace,
            K::SourceServiceAccount,
            K::SourceTrustDomain,
            K::SourcePrincipal,
            K::DestinationIp,
            K::DestinationPort,
            K::ConnectionSni
        ]),
    ]
}

fn values() -> impl Strategy<Value = Values> {
    let one = || {
        prop_oneof![
            text().prop_map(StringMatch::Exact),
            text().prop_map(StringMatch::Prefix),
            text().prop_map(StringMatch::Suffix),
            Just(StringMatch::Present),
            text().prop_map(StringMatch::Template)
        ]
    };
    (vec(one(), 0..3), vec(one(), 0..3)).prop_map(|(any, none)| Values { any, none })
}

fn blocks() -> impl Strategy<Value = Blocks> {
    let one = || {
        (any::<IpAddr>(), 0..=128u8)
            .prop_map(|(addr, p)| IpBlock { addr, prefix: if addr.is_ipv4() { p / 4 } else { p } })
    };
    (vec(one(), 0..3), vec(one(), 0..3)).prop_map(|(any, none)| Blocks { any, none })
}
