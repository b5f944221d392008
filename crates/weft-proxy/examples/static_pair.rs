//! Two sidecars in one process with a mesh made in code: client → A → mTLS → B → origin. For measurements by hand.
//!
//! ```text
//! cargo run --release -p weft-proxy --example static_pair -- http 127.0.0.1:9001 127.0.0.1:9000
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool for the hand: it may panic"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;

use support::{Authority, Start, api_set, web_set};
use weft_model::Protocol;

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let ([_, protocol, listen, origin], verbose) = (match args.as_slice() {
        [first @ .., last] if last == "-v" => (first, true),
        all => (all, false),
    }) else {
        eprintln!("usage: static_pair http|grpc|tcp|undeclared LISTEN ORIGIN [-v]");
        std::process::exit(1);
    };
    if verbose {
        weft_rt::log::init(weft_rt::log::Format::Text, "weft_proxy=debug", std::io::stderr);
    }
    let protocol = match protocol.as_str() {
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        "undeclared" => Protocol::Undeclared,
        _ => Protocol::Http,
    };
    let (listen, origin): (SocketAddr, SocketAddr) = (listen.parse().unwrap(), origin.parse().unwrap());
    let ca = Authority::new("mesh.test");
    let mut api = Start::new("shop/api").inbound();
    api.quiet = !verbose;
    let api = api.start(&ca, api_set(&ca, protocol, origin).build(1));
    let mesh = api.sidecar.bound().inbound.unwrap();
    let mut web = Start::new("shop/web").upstream("shop/api");
    web.quiet = !verbose;
    web.upstreams[0].2 = listen;
    let web = web.start(&ca, web_set(&ca, protocol, mesh, origin).build(1));
    println!("{} -> {} -> {origin}", web.sidecar.bound().upstreams[0], mesh);
    loop {
        std::thread::park();
    }
}
