//! The bookshop that `weft dev --demo` runs: what it consists of, and what it may do.

mod call;
mod grpc;
pub mod load;
pub mod shop;

/// One process of the shop beside its sidecar.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Service and service account.
    pub service: &'static str,
    pub version: &'static str,
    /// The protocol its port declares; `None`: it serves nobody.
    pub protocol: Option<&'static str>,
    pub upstreams: &'static [&'static str],
    /// How its health is checked.
    pub check: &'static str,
}

/// Servers before their callers, so that the first requests already find somebody.
pub const SHOP: [Member; 7] = [
    Member { service: "stock", version: "v1", protocol: Some("tcp"), upstreams: &[], check: "tcp" },
    Member { service: "ratings", version: "v1", protocol: Some("grpc"), upstreams: &[], check: "tcp" },
    Member { service: "reviews", version: "v1", protocol: Some("http"), upstreams: &["ratings"], check: "tcp" },
    Member { service: "reviews", version: "v2", protocol: Some("http"), upstreams: &["ratings"], check: "tcp" },
    Member { service: "catalog", version: "v1", protocol: Some("http2"), upstreams: &["stock"], check: "tcp" },
    Member {
        service: "web",
        version: "v1",
        protocol: Some("http"),
        upstreams: &["catalog", "reviews"],
        check: "http=/",
    },
    Member { service: "load", version: "v1", protocol: None, upstreams: &["web"], check: "" },
];

/// What the demo applies before the shop opens.
pub const RESOURCES: &str = include_str!("bookshop.yaml");

/// Documents to play with: file name and text.
pub const TRY: [(&str, &str); 2] =
    [("deny.yaml", include_str!("deny.yaml")), ("split.yaml", include_str!("split.yaml"))];

/// Pages asked for per second.
pub const LOAD_PER_SECOND: u32 = 50;

/// `weft demo-service`.
pub async fn service(flags: crate::cli::DemoService) -> anyhow::Result<u8> {
    let mut upstreams = std::collections::BTreeMap::new();
    for text in &flags.upstreams {
        let (name, addr) = text.split_once('=').ok_or_else(|| anyhow::anyhow!("--upstream {text}: write NAME=ADDR"))?;
        upstreams.insert(name.to_owned(), addr.parse()?);
    }
    let shop = shop::Shop { service: flags.service, version: flags.shop_version, listen: flags.listen, upstreams };
    tokio::select! {
        biased; // being told to stop wins
        ended = stopped() => ended,
        served = shop.serve() => served.map(|()| 0),
    }
}

/// `weft demo-load`.
pub async fn customers(flags: crate::cli::DemoLoad) -> anyhow::Result<u8> {
    tokio::select! {
        biased; // being told to stop wins
        ended = stopped() => ended,
        ended = load::run(flags.web, flags.listen, flags.rate) => ended.map(|()| 0),
    }
}

async fn stopped() -> anyhow::Result<u8> {
    weft_rt::process::Stop::listen()?.next().await;
    Ok(0)
}
