//! What the control plane counts about itself, under the names that Istio's dashboards know (features.md OBS-12), and
//! its own where Istio has none.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Cumulative buckets in seconds, as Prometheus reads them.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

/// From what a loopback ack takes to what nobody should wait for.
const BOUNDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0];

#[derive(Debug, Default)]
pub struct Metrics {
    /// From a commit's publication to its application by a proxy.
    pub convergence: Histogram,
    /// Folding and compiling one batch.
    pub push_time: Histogram,
    /// From a change to its being handed to a stream.
    pub queue_time: Histogram,
    pub pushes: Counter,
    pub rejects: Counter,
    pub sent_bytes: Counter,
    pub compiled: Counter,
    pub joins: Counter,
    pub join_refusals: Counter,
    pub renewals: Counter,
    pub status_writes: Counter,
}

/// What is read off rather than counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    pub services: usize,
    pub endpoints: usize,
    pub proxies: usize,
    pub collections: usize,
    pub revision: u64,
}

// === impl Counter, Histogram ===

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            if seconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let count = self.count.load(Ordering::Relaxed);
        let sum = Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {}", bucket.load(Ordering::Relaxed));
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

// === impl Metrics ===

impl Metrics {
    /// In Prometheus' text format.
    pub fn render(&self, gauges: Gauges) -> String {
        let mut out = String::new();
        let histograms = [
            (
                &self.convergence,
                "pilot_proxy_convergence_time",
                "From a change's publication to its application by a proxy, in seconds.",
            ),
            (&self.push_time, "pilot_xds_push_time", "Folding and compiling one batch of changes, in seconds."),
            (&self.queue_time, "pilot_proxy_queue_time", "From a change to its being handed to a stream, in seconds."),
        ];
        for (histogram, name, help) in histograms {
            histogram.write(&mut out, name, help);
        }
        let counters = [
            (&self.pushes, "pilot_xds_pushes", "{type=\"weft\"}", "Responses sent to proxies."),
            (&self.rejects, "pilot_total_xds_rejects", "{type=\"weft\"}", "Sets that proxies rejected."),
            (&self.sent_bytes, "weft_control_sent_bytes_total", "", "Bytes of resources sent to proxies."),
            (&self.compiled, "weft_control_compiled_total", "", "Collections compiled."),
            (&self.joins, "weft_control_joins_total", "{result=\"ok\"}", "Joins."),
            (&self.join_refusals, "weft_control_join_refusals_total", "", "Joins that were refused."),
            (&self.renewals, "weft_control_renewals_total", "", "Identities renewed."),
            (&self.status_writes, "weft_control_status_writes_total", "", "Statuses of resources written."),
        ];
        for (counter, name, labels, help) in counters {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name}{labels} {}", counter.get());
        }
        let values = [
            (gauges.services as u64, "pilot_services", "Services in the catalog."),
            (gauges.endpoints as u64, "weft_control_endpoints", "Instances in the catalog."),
            (gauges.proxies as u64, "pilot_xds", "Proxies connected to this server."),
            (gauges.collections as u64, "weft_control_collections", "Collections that somebody subscribed to."),
            (gauges.revision, "weft_control_revision", "The revision that this server has reached."),
        ];
        for (value, name, help) in values {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obs_12_renders_what_was_counted() {
        let metrics = Metrics::default();
        metrics.convergence.observe(Duration::from_millis(30));
        metrics.convergence.observe(Duration::from_secs(60));
        metrics.pushes.add(3);
        let text = metrics.render(Gauges { services: 2, ..Gauges::default() });
        for line in [
            "pilot_proxy_convergence_time_bucket{le=\"0.025\"} 0",
            "pilot_proxy_convergence_time_bucket{le=\"0.05\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"+Inf\"} 2",
            "pilot_proxy_convergence_time_sum 60.03",
            "pilot_xds_pushes{type=\"weft\"} 3",
            "pilot_services 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
