//! Who talks to whom: edges of the mesh out of what its proxies count (`GET /weft/v1/edges`).

use std::collections::BTreeMap;

use serde::Deserialize;

/// An edge is known by the identities at its ends, the version that it reached, and what is spoken on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeKey {
    pub source: String,
    pub destination: String,
    /// Of the instance that took it; empty when none did.
    pub version: String,
    pub protocol: String,
}

/// Counted since the proxies started; differences between two readings are rates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edge {
    /// As the source saw it. TCP: connections.
    pub requests: u64,
    pub failed: u64,
    /// By the destination's proxies.
    pub denied: u64,
    /// Upper bound in microseconds (the last: none) → how many took at most that long.
    pub latency: BTreeMap<u64, u64>,
    pub key_exchange: String,
    /// Full SPIFFE IDs.
    pub source_id: String,
    pub destination_id: String,
}

/// The answer of `GET /weft/v1/edges`, as far as the table needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reading {
    pub proxies: Vec<Proxy>,
    /// Proxies that did not answer in time.
    pub silent: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Proxy {
    pub edges: Vec<Counted>,
}

/// One edge as one proxy counts it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counted {
    direction: String,
    source: String,
    source_identity: String,
    destination: String,
    destination_identity: String,
    destination_version: String,
    protocol: String,
    key_exchange: String,
    requests: u64,
    failed: u64,
    denied: u64,
    latency: Vec<Bucket>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bucket {
    le_us: u64,
    count: u64,
}

impl Reading {
    pub fn edges(&self) -> BTreeMap<EdgeKey, Edge> {
        let mut out: BTreeMap<EdgeKey, Edge> = BTreeMap::new();
        for c in self.proxies.iter().flat_map(|p| &p.edges) {
            let key = EdgeKey {
                source: name(&c.source_identity, &c.source),
                destination: name(&c.destination_identity, &c.destination),
                version: c.destination_version.clone(),
                protocol: c.protocol.clone(),
            };
            let edge = out.entry(key).or_default();
            edge.source_id.clone_from(&c.source_identity);
            edge.destination_id.clone_from(&c.destination_identity);
            if c.direction == "inbound" {
                edge.denied += c.denied;
                continue;
            }
            edge.requests += c.requests;
            edge.failed += c.failed;
            if !c.key_exchange.is_empty() {
                edge.key_exchange.clone_from(&c.key_exchange);
            }
            for bucket in &c.latency {
                *edge.latency.entry(bucket.le_us).or_default() += bucket.count;
            }
        }
        out
    }
}

impl Edge {
    /// What happened between an earlier reading and this one.
    pub fn since(&self, earlier: Option<&Self>) -> Self {
        let Some(e) = earlier else { return self.clone() };
        // a proxy that started anew counts from zero
        let less = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        let then = |le: &u64| e.latency.get(le).copied().unwrap_or(0);
        Self {
            requests: less(self.requests, e.requests),
            failed: less(self.failed, e.failed),
            denied: less(self.denied, e.denied),
            latency: self.latency.iter().map(|(le, n)| (*le, less(*n, then(le)))).collect(),
            ..self.clone()
        }
    }

    /// The duration in milliseconds below which the share `q` of requests stayed, interpolated inside its bucket.
    #[expect(clippy::cast_precision_loss, reason = "for people to read, to three digits")]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.latency.values().last().filter(|n| **n > 0)?;
        let want = q * *total as f64;
        let (mut below, mut low) = (0_u64, 0_u64);
        for (le, n) in &self.latency {
            if *n as f64 >= want {
                // the last bucket has no upper bound: its lower one is all that is known
                let inside = match n.checked_sub(below).filter(|d| *d > 0 && *le != u64::MAX) {
                    Some(here) => (want - below as f64) / here as f64 * (*le - low) as f64,
                    None => 0.0,
                };
                return Some((low as f64 + inside) / 1000.0);
            }
            (below, low) = (*n, *le);
        }
        Some(low as f64 / 1000.0)
    }
}

/// The service account of an identity, or what else is known.
fn name(identity: &str, otherwise: &str) -> String {
    let account = identity.rsplit('/').next().filter(|a| !a.is_empty() && identity.contains('/'));
    account.unwrap_or(otherwise).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        let edge = |direction: &str, numbers: serde_json::Value| {
            let mut edge = serde_json::json!({
                "direction": direction, "protocol": "http", "source": "web", "destination": "default/catalog",
                "source_identity": "spiffe://t/ns/default/sa/web", "destination_identity": "spiffe://t/ns/default/sa/catalog",
            });
            edge.as_object_mut().unwrap().extend(numbers.as_object().unwrap().clone());
            edge
        };
        let outbound = edge(
            "outbound",
            serde_json::json!({
                "requests": 100, "failed": 10, "key_exchange": "X25519MLKEM768",
                "latency": [{"le_us": 1000, "count": 50}, {"le_us": 5000, "count": 100}, {"le_us": u64::MAX, "count": 100}],
            }),
        );
        let inbound = edge("inbound", serde_json::json!({"requests": 90, "denied": 3}));
        serde_json::from_value(serde_json::json!({"proxies": [{"edges": [outbound]}, {"edges": [inbound]}]})).unwrap()
    }

    #[test]
    fn an_edge_is_what_its_source_saw_and_what_its_destination_refused() {
        let found = reading().edges();
        assert_eq!(found.len(), 1);
        let (key, edge) = found.first_key_value().unwrap();
        assert_eq!((&*key.source, &*key.destination, &*key.protocol), ("web", "catalog", "http"));
        assert_eq!((edge.requests, edge.failed, edge.denied), (100, 10, 3));
        assert_eq!(edge.key_exchange, "X25519MLKEM768");
        assert_eq!(edge.quantile(0.5), Some(1.0));
        assert_eq!(edge.quantile(0.75), Some(3.0));
        assert_eq!(edge.quantile(1.0), Some(5.0));
    }

    #[test]
    fn a_restarted_proxy_counts_from_zero() {
        let found = reading().edges();
        let edge = found.values().next().unwrap();
        let fewer = Edge { requests: 20, ..edge.clone() };
        assert_eq!(fewer.since(Some(edge)).requests, 20);
        assert_eq!(edge.since(Some(edge)).requests, 0);
        assert_eq!(edge.since(Some(edge)).quantile(0.5), None);
    }
}
