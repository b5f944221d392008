//! Edges for the live table: read off the same counters that scrapers get, so that nothing is counted twice.

use std::collections::{BTreeMap, HashSet};

use weft_rt::metrics::{Counter, MILLISECONDS, UNKNOWN};
use weft_snapshot::failure::FailureKind;
use weft_wire::v1::{self, Bucket, EdgeStats};

use super::{
    Metrics, Worker,
    edges::{Edge, EdgeKey, Protocol},
    lock,
};
use crate::record::Direction;

/// What rows of the table are told apart by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    outbound: bool,
    source: String,
    destination: String,
    protocol: &'static str,
    version: String,
}

#[derive(Debug, Default)]
struct Sums {
    edge: v1::Edge,
    latency: Vec<u64>,
}

impl Metrics {
    /// Since the proxy started. Outbound edges are what our application asked of others, inbound ones what others asked of it.
    pub fn stats(&self) -> EdgeStats {
        let mut rows = BTreeMap::new();
        for worker in &self.workers {
            lock(worker).add_to(&mut rows);
        }
        let snapshot = self.snapshots.borrow().clone();
        EdgeStats {
            edges: rows.into_values().map(Sums::edge).collect(),
            revision: Some(v1::Revision { incarnation: snapshot.revision.incarnation, n: snapshot.revision.n }),
            digest: snapshot.digest.as_bytes().to_vec().into(),
            uptime_ms: u64::try_from(self.clock.mono().since(self.started).as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Worker {
    fn add_to(&self, rows: &mut BTreeMap<Row, Sums>) {
        // edges whose names the registry folded share a series: each is read once
        let mut read = HashSet::new();
        for (key, edge) in self.edges.iter() {
            let row = Row {
                outbound: key.direction == Direction::Outbound,
                source: source(key),
                destination: destination(key),
                protocol: key.protocol.label(),
                version: said(&key.destination.0.version),
            };
            let sums = rows.entry(row).or_insert_with(|| Sums::new(key));
            sums.add(edge, key.protocol, &mut |counter| read.insert(counter.series_id()));
            let group = if edge.key_exchange.is_empty() { self.group(key) } else { edge.key_exchange };
            if !group.is_empty() {
                sums.edge.key_exchange = group.into();
            }
        }
    }

    /// Of the latest connection to the destination, for edges of ours.
    fn group(&self, key: &EdgeKey) -> &'static str {
        if key.direction == Direction::Inbound || !key.mutual_tls {
            return "";
        }
        let id = key.destination.0.principal.parse().ok();
        id.and_then(|id: weft_model::SpiffeId| self.groups.get(&id)).copied().unwrap_or_default()
    }
}

// === impl Sums ===

impl Sums {
    fn new(key: &EdgeKey) -> Self {
        let edge = v1::Edge {
            direction: match key.direction {
                Direction::Outbound => "outbound".into(),
                Direction::Inbound => "inbound".into(),
            },
            source: source(key),
            source_identity: said(&key.source.0.principal),
            destination: destination(key),
            destination_identity: said(&key.destination.0.principal),
            protocol: key.protocol.label().into(),
            destination_version: said(&key.destination.0.version),
            ..v1::Edge::default()
        };
        Self { edge, latency: Vec::new() }
    }

    fn add(&mut self, edge: &Edge, protocol: Protocol, first: &mut dyn FnMut(&Counter) -> bool) {
        let e = &mut self.edge;
        // a connection inside HTTP (an upgrade) is part of its request
        let (requests, connections) = match protocol {
            Protocol::Tcp => (&[][..], &edge.connections[..]),
            Protocol::Http | Protocol::Grpc => (&edge.requests[..], &[][..]),
        };
        for (outcome, series) in requests.iter().filter(|(_, s)| first(&s.total)) {
            let n = series.total.get();
            e.requests += n;
            if outcome.is_success() {
                e.succeeded += n;
            } else {
                e.failed += n;
            }
            if is_denial(outcome.flag) {
                e.denied += n;
            }
            series.add_bytes(&mut e.rx, &mut e.tx);
            series.duration.add_to(&mut self.latency);
        }
        for (flag, series) in connections.iter().filter(|(_, s)| first(&s.opened)) {
            let (opened, closed) = (series.opened.get(), series.closed.get());
            e.requests += opened;
            if *flag == "-" {
                e.succeeded += closed;
            } else {
                e.failed += closed;
            }
            if is_denial(flag) {
                e.denied += closed;
            }
            // told under one flag while open, under another when it ended
            e.open = e.open.wrapping_add(opened).wrapping_sub(closed);
            e.rx += series.received.get();
            e.tx += series.sent.get();
        }
    }

    fn edge(mut self) -> v1::Edge {
        // a connection that was closed between two of our reads
        if self.edge.open.cast_signed() < 0 {
            self.edge.open = 0;
        }
        let mut total = 0;
        let bounds = MILLISECONDS.fine.iter().copied().chain([u64::MAX]);
        let cumulative = bounds.zip(self.latency).map(|(le_us, n)| {
            total += n;
            Bucket { le_us, count: total }
        });
        self.edge.latency = cumulative.collect();
        self.edge
    }
}

fn is_denial(flag: &str) -> bool {
    flag == FailureKind::Denied.flag()
}

fn source(key: &EdgeKey) -> String {
    said(&key.source.0.workload)
}

/// The service that was asked for, else the workload that was reached.
fn destination(key: &EdgeKey) -> String {
    key.service.as_ref().map_or_else(|| said(&key.destination.0.workload), ToString::to_string)
}

/// Empty on the wire where labels say unknown.
fn said(label: &str) -> String {
    if label == UNKNOWN { String::new() } else { label.into() }
}
