//! Edges for the live table: read off the same counters that scrapers get, so that nothing is counted twice.

use std::collections::{BTreeMap, HashSet};

use weft_model::SpiffeId;
use weft_rt::metrics::{Counter, MILLISECONDS, UNKNOWN};
use weft_snapshot::{failure::FailureKind, snapshot::Snapshot};
use weft_wire::v1::{self, Bucket, EdgeStats};

use super::{
    Metrics, Worker,
    edges::{Edge, EdgeKey, ended_well},
    lock,
};
use crate::record::Direction;

/// What rows of the table are told apart by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    direction: Direction,
    source: String,
    source_identity: String,
    destination: String,
    destination_identity: String,
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
        let snapshot = self.snapshots.borrow().clone();
        let mut rows = BTreeMap::new();
        for worker in &self.workers {
            lock(worker).add_to(&mut rows, &snapshot);
        }
        EdgeStats {
            edges: rows.into_iter().map(|(row, sums)| sums.edge(row)).collect(),
            revision: Some(v1::Revision { incarnation: snapshot.revision.incarnation, n: snapshot.revision.n }),
            digest: snapshot.digest.as_bytes().to_vec().into(),
            uptime_ms: u64::try_from(self.clock.mono().since(self.started).as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Worker {
    fn add_to(&self, rows: &mut BTreeMap<Row, Sums>, snapshot: &Snapshot) {
        // edges whose names the registry folded share a series: each is read once
        let mut read = HashSet::new();
        for (key, edge) in self.edges.iter() {
            let sums = rows.entry(self.row(key, snapshot)).or_default();
            sums.add(key, edge, &mut |counter| read.insert(counter.series_id()));
            let group = if edge.key_exchange.is_empty() { self.group(key) } else { edge.key_exchange };
            if !group.is_empty() {
                sums.edge.key_exchange = group.into();
            }
        }
    }

    fn row(&self, key: &EdgeKey, snapshot: &Snapshot) -> Row {
        let (source, destination) = (&key.source.0, &key.destination.0);
        let mut destination_identity = said(&destination.principal);
        if destination_identity.is_empty() {
            destination_identity = self.meant(key, snapshot);
        }
        Row {
            direction: key.direction,
            source: said(&source.workload),
            source_identity: said(&source.principal),
            // the service that was asked for, else the workload that was reached
            destination: key.service.as_ref().map_or_else(|| said(&destination.workload), ToString::to_string),
            destination_identity,
            protocol: key.protocol.as_str(),
            version: said(&destination.version),
        }
    }

    /// Whom something was for that was sent to nobody: who serves the service now, or did.
    fn meant(&self, key: &EdgeKey, snapshot: &Snapshot) -> String {
        let (Direction::Outbound, Some(service)) = (key.direction, &key.service) else { return String::new() };
        let serving = snapshot.service(service).and_then(|s| s.endpoints().iter().find_map(|e| e.identities.first()));
        if let Some(id) = serving {
            return id.to_string();
        }
        let of_service = self.edges.iter().filter(|(k, _)| k.service.as_ref() == Some(service));
        let mut known = of_service.map(|(k, _)| said(&k.destination.0.principal));
        known.find(|id| !id.is_empty()).unwrap_or_default()
    }

    /// Of the latest connection to the destination, for edges of ours.
    fn group(&self, key: &EdgeKey) -> &'static str {
        if key.direction == Direction::Inbound || !key.mutual_tls {
            return "";
        }
        let id = SpiffeId::parse(&key.destination.0.principal).ok();
        id.and_then(|id| self.groups.get(&id)).copied().unwrap_or_default()
    }
}

// === impl Sums ===

impl Sums {
    fn add(&mut self, key: &EdgeKey, edge: &Edge, first: &mut dyn FnMut(&Counter) -> bool) {
        let e = &mut self.edge;
        for (outcome, series) in edge.requests.iter().filter(|(_, s)| first(&s.total)) {
            let n = series.total.get();
            e.requests += n;
            *match outcome.is_success() {
                _ if is_denial(key, outcome.flag) => &mut e.denied,
                true => &mut e.succeeded,
                false => &mut e.failed,
            } += n;
            series.add_bytes(&mut e.rx, &mut e.tx);
            series.duration.add_to(&mut self.latency);
        }
        for (flag, series) in edge.connections.iter().filter(|(_, s)| first(&s.opened)) {
            let (opened, closed) = (series.opened.get(), series.closed.get());
            e.requests += opened;
            *match ended_well(flag) {
                _ if is_denial(key, flag) => &mut e.denied,
                true => &mut e.succeeded,
                false => &mut e.failed,
            } += closed;
            // told under one flag while open, under another when it ended
            e.open = e.open.wrapping_add(opened).wrapping_sub(closed);
            e.rx += series.received.get();
            e.tx += series.sent.get();
        }
    }

    fn edge(self, row: Row) -> v1::Edge {
        let mut total = 0;
        let bounds = MILLISECONDS.fine.iter().copied().chain([u64::MAX]);
        let latency = bounds.zip(self.latency).map(|(le_us, n)| {
            total += n;
            Bucket { le_us, count: total }
        });
        v1::Edge {
            direction: match row.direction {
                Direction::Outbound => "outbound".into(),
                Direction::Inbound => "inbound".into(),
            },
            source: row.source,
            source_identity: row.source_identity,
            destination: row.destination,
            destination_identity: row.destination_identity,
            protocol: row.protocol.into(),
            destination_version: row.version,
            latency: latency.collect(),
            // names can change while a connection lives: it may end as another edge than it began
            open: self.edge.open.cast_signed().max(0).cast_unsigned(),
            ..self.edge
        }
    }
}

/// By our own policy; what a far proxy denied is told by its own edges.
fn is_denial(key: &EdgeKey, flag: &str) -> bool {
    key.direction == Direction::Inbound && flag == FailureKind::Denied.flag()
}

/// Empty on the wire where labels say unknown.
fn said(label: &str) -> String {
    if label == UNKNOWN { String::new() } else { label.into() }
}
