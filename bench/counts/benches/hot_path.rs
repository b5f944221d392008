//! Instructions per decision. `cargo xtask bench counts` compares them with `budget.toml`.

use std::{hint::black_box, net::IpAddr};

use bytes::Bytes;
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use weft_counts::{before_a_change, caller, fragments, head, inbound, pool, table};
use weft_model::{Mono, SpiffeId};
use weft_snapshot::{
    authz::{self, Attributes, InboundView, Verdict},
    balance::{self, Ask, LoadView, Picked, Pool},
    detect::{Detect, detect},
    request::{Headers, Request},
    route::{self, PortTable},
    snapshot::{Fragments, Snapshot},
};

/// What a codec's map of fields would answer.
struct Fields;

impl Headers for Fields {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        const ALL: &[(&str, &str)] =
            &[("user-agent", "curl/8.5.0"), ("accept", "application/json"), ("x-tenant", "blue")];
        ALL.iter().filter(|(n, _)| *n == name).for_each(|(_, v)| f(v.as_bytes()));
    }
}

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

fn request() -> Request<'static> {
    Request {
        method: "GET",
        path: "/api/v2/orders/8842?expand=lines",
        host: "orders.shop.mesh:8080",
        headers: &Fields,
    }
}

#[library_benchmark]
#[bench::http1(weft_counts::HEAD)]
#[bench::opaque(b"\x10\x00\x00\x00\x03select 1 from orders")]
fn detects(bytes: &[u8]) -> Detect {
    black_box(detect(black_box(bytes), false))
}

#[library_benchmark]
#[bench::request(head())]
fn parses(head: Bytes) -> bool {
    black_box(weft_proxy::codec::h1::parse::request(black_box(&head))).is_ok()
}

#[library_benchmark]
#[bench::rules_10(args = (10), setup = table)]
#[bench::rules_1000(args = (1_000), setup = table)]
#[bench::rules_10000(args = (10_000), setup = table)]
fn selects(table: PortTable) -> PortTable {
    black_box(route::select(black_box(&table), &request()));
    table
}

fn guarded(rules: usize) -> (InboundView, SpiffeId) {
    (inbound(rules), caller(rules))
}

#[library_benchmark]
#[bench::rules_0(args = (0), setup = guarded)]
#[bench::rules_10(args = (10), setup = guarded)]
#[bench::rules_1000(args = (1_000), setup = guarded)]
fn authorizes((view, who): (InboundView, SpiffeId)) -> (InboundView, SpiffeId) {
    let attributes = Attributes {
        principal: Some(&who),
        source_ip: ADDRESS,
        dest_ip: ADDRESS,
        dest_port: 8080,
        sni: None,
        http: Some(request()),
    };
    let verdict = black_box(authz::evaluate(black_box(&view), &attributes));
    assert!(matches!(verdict, Verdict::Allow { .. }));
    (view, who)
}

#[library_benchmark]
#[bench::endpoints_3(args = (3), setup = pool)]
#[bench::endpoints_1000(args = (1_000), setup = pool)]
fn picks((pool, load): (Pool, LoadView)) -> Option<Picked> {
    let mut n = 0;
    let mut dice = |most: u32| {
        n += 1;
        n % most.max(1)
    };
    let ask = Ask { now: Mono::secs(2), avoid: &[], own: &[], from: None };
    black_box(balance::pick(black_box(&pool), &load, &ask, &mut dice)).ok()
}

#[library_benchmark]
#[bench::services_100(args = (100), setup = fragments)]
fn builds(fragments: Fragments) -> (Snapshot, Fragments) {
    (black_box(weft_counts::build(None, black_box(&fragments))), fragments)
}

#[library_benchmark]
#[bench::of_100_services_one_endpoint(args = (100), setup = before_a_change)]
fn rebuilds((before, fragments): (Snapshot, Fragments)) -> (Snapshot, Snapshot, Fragments) {
    (black_box(weft_counts::build(Some(&before), black_box(&fragments))), before, fragments)
}

library_benchmark_group!(name = hot_path; benchmarks = detects, parses, selects, authorizes, picks, builds, rebuilds);
main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"]));
    library_benchmark_groups = hot_path
);
