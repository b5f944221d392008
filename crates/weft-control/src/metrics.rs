//! What the control plane counts about itself, under the names that Istio's dashboards know (features.md OBS-12), and
//! its own where Istio has none.

use std::{sync::Arc, time::Duration};

use weft_rt::metrics::{self, Counter, Format, Gauge, Histogram, Metric, Registry};

#[derive(Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// From a commit's publication to its application by a proxy.
    pub convergence: Timer,
    /// Folding and compiling one batch.
    pub push_time: Timer,
    /// From a change to its being handed to a stream.
    pub queue_time: Timer,
    pub pushes: Counter,
    pub rejects: Counter,
    pub sent_bytes: Counter,
    pub compiled: Counter,
    pub joins: Counter,
    pub join_refusals: Counter,
    pub renewals: Counter,
    pub status_writes: Counter,
    services: Gauge,
    endpoints: Gauge,
    proxies: Gauge,
    collections: Gauge,
    revision: Gauge,
}

/// A histogram of durations.
#[derive(Debug)]
pub struct Timer(Histogram);

/// What is read off rather than counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    pub services: usize,
    pub endpoints: usize,
    pub proxies: usize,
    pub collections: usize,
    pub revision: u64,
}

// === impl Timer ===

impl Timer {
    pub fn observe(&self, took: Duration) {
        self.0.observe(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        metrics::observe_process(&registry, "server", env!("CARGO_PKG_VERSION"));
        let counter = |metric, labels: &[&str]| registry.counter(metric, labels);
        let gauge = |metric| registry.gauge(metric, &[]);
        let timer = |metric| Timer(registry.histogram(metric, &[]));
        Self {
            convergence: timer(Metric::Convergence),
            push_time: timer(Metric::PushTime),
            queue_time: timer(Metric::QueueTime),
            pushes: counter(Metric::Pushes, &["weft"]),
            rejects: counter(Metric::Rejects, &["weft"]),
            sent_bytes: counter(Metric::ControlSentBytes, &[]),
            compiled: counter(Metric::ControlCompiled, &[]),
            joins: counter(Metric::ControlJoins, &["ok"]),
            join_refusals: counter(Metric::ControlJoinRefusals, &[]),
            renewals: counter(Metric::ControlRenewals, &[]),
            status_writes: counter(Metric::ControlStatusWrites, &[]),
            services: gauge(Metric::Services),
            endpoints: gauge(Metric::ControlEndpoints),
            proxies: gauge(Metric::Proxies),
            collections: gauge(Metric::ControlCollections),
            revision: gauge(Metric::ControlRevision),
            registry,
        }
    }
}

impl Metrics {
    pub fn render(&self, gauges: Gauges, format: Format) -> String {
        let set = |gauge: &Gauge, to: u64| gauge.set(i64::try_from(to).unwrap_or(i64::MAX));
        set(&self.services, gauges.services as u64);
        set(&self.endpoints, gauges.endpoints as u64);
        set(&self.proxies, gauges.proxies as u64);
        set(&self.collections, gauges.collections as u64);
        set(&self.revision, gauges.revision);
        self.registry.render(format)
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
        let text = metrics.render(Gauges { services: 2, ..Gauges::default() }, Format::Prometheus);
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
        let build = format!("istio_build{{component=\"server\",tag=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&build) && text.contains("process_resident_memory_bytes"), "{text}");
    }
}
