use std::collections::BTreeSet;

use super::*;

fn lines(registry: &Registry) -> Vec<String> {
    registry.render(Format::Prometheus).lines().map(Into::into).collect()
}

fn denied<'a>(from: &'a str, rule: &'a str) -> [&'a str; 5] {
    ["destination", from, "spiffe://t/ns/a/sa/b", "http", rule]
}

#[test]
fn names_are_prometheus_and_said_once() {
    let mut seen = BTreeSet::new();
    for (i, metric) in Metric::ALL.iter().enumerate() {
        let d = metric.desc();
        assert_eq!(*metric as usize, i);
        assert!(seen.insert(d.name), "{} twice", d.name);
        assert!(d.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{}", d.name);
        assert!(d.help.ends_with('.') && !d.help.contains('\n'), "{}", d.name);
        let labels: BTreeSet<_> = d.labels.iter().map(|l| l.name()).collect();
        assert_eq!(labels.len(), d.labels.len(), "{} has a label twice", d.name);
        if let Kind::Histogram(b) = d.kind {
            assert!(b.fine.is_sorted_by(|a, b| a < b) && b.shown.is_sorted_by(|a, b| a < b), "{}", d.name);
            assert!(b.shown.iter().all(|s| b.fine.contains(s)), "{}: what is shown must be counted", d.name);
        }
        if d.name.starts_with("weft_") {
            assert_eq!(d.name.ends_with("_total"), d.kind == Kind::Counter, "{}", d.name);
        }
    }
}

#[test]
fn obs_01_labels_are_istios() {
    let http: Vec<_> = HTTP_LABELS.iter().map(|l| l.name()).collect();
    let want = "reporter source_workload source_workload_namespace source_canonical_service source_canonical_revision \
                source_principal source_app source_version source_cluster destination_service destination_service_name \
                destination_service_namespace destination_workload destination_workload_namespace \
                destination_canonical_service destination_canonical_revision destination_principal destination_app \
                destination_version destination_cluster request_protocol response_flags connection_security_policy \
                response_code grpc_response_status";
    assert_eq!(http, want.split_whitespace().collect::<Vec<_>>());
    assert_eq!(TCP_LABELS, &HTTP_LABELS[..HTTP_LABELS.len() - 2]);
}

#[test]
fn docs_metrics_is_the_catalogue() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    if crate::env::var("WEFT_WRITE").is_some() {
        std::fs::write(path, document()).unwrap();
    }
    let stands = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stands == document(), "docs/metrics.md is old: WEFT_WRITE=1 cargo test -p weft-rt docs_metrics");
}

#[test]
fn counts_per_shard_and_shows_the_sum() {
    let registry = Registry::new();
    let (a, b) = (registry.shard(), registry.shard());
    let values = denied("x", "r");
    a.counter(Metric::Denied, &values).add(2);
    a.counter(Metric::Denied, &values).add(1);
    b.counter(Metric::Denied, &values).add(4);
    registry.counter(Metric::Denied, &values).add(8);
    assert_eq!(a.counter(Metric::Denied, &values).get(), 3);
    let line = "weft_denied_total{reporter=\"destination\",source_principal=\"x\",\
                destination_principal=\"spiffe://t/ns/a/sa/b\",request_protocol=\"http\",rule=\"r\"} 15";
    let found = lines(&registry);
    assert!(found.iter().any(|l| l == line), "{found:#?}");
    assert_eq!(found.iter().filter(|l| l.starts_with("# TYPE")).count(), 1, "metrics without series are not there");
}

#[test]
fn gauges_go_down_over_shards() {
    let registry = Registry::new();
    let (a, b) = (registry.shard(), registry.shard());
    let values = ["source", "tcp"];
    a.gauge(Metric::OpenFlows, &values).add(2);
    b.gauge(Metric::OpenFlows, &values).add(-3);
    assert!(lines(&registry).contains(&"weft_open_flows{reporter=\"source\",request_protocol=\"tcp\"} -1".into()));
}

#[test]
fn obs_01_buckets_are_cumulative_and_inclusive() {
    let registry = Registry::new();
    let values = vec!["x"; HTTP_LABELS.len()];
    let histogram = registry.shard().histogram(Metric::RequestDuration, &values);
    // at a bound, just above it, between two fine bounds, beyond the last
    for us in [500, 501, 700, 999, 3_600_000_001] {
        histogram.observe(us);
    }
    let found = lines(&registry);
    let line = |part: &str, le: &str, n: &str| {
        let want =
            |l: &&String| l.starts_with(&format!("istio_request_duration_milliseconds_{part}{{")) && l.contains(le);
        let line = found.iter().find(want).unwrap_or_else(|| panic!("no {part} {le} in {found:#?}"));
        assert_eq!(line.rsplit(' ').next().unwrap(), n, "{line}");
    };
    line("bucket", "le=\"0.5\"", "1");
    line("bucket", "le=\"1\"", "4");
    line("bucket", "le=\"3600000\"", "4");
    line("bucket", "le=\"+Inf\"", "5");
    line("count", "", "5");
    line("sum", "", "3600002.701");
    let shown = found.iter().filter(|l| l.contains("_bucket{")).count();
    assert_eq!(shown, MILLISECONDS.shown.len() + 1, "fine buckets are our own");
    let mut fine = Vec::new();
    histogram.add_to(&mut fine);
    histogram.add_to(&mut fine);
    assert_eq!((fine.len(), fine.iter().sum::<u64>()), (MILLISECONDS.fine.len() + 1, 10));
}

#[test]
fn values_are_escaped() {
    let registry = Registry::new();
    registry.counter(Metric::Denied, &denied("a\"b\\c\nd", "语")).add(1);
    let text = registry.render(Format::Prometheus);
    assert!(text.contains("source_principal=\"a\\\"b\\\\c\\nd\","), "{text}");
    assert!(text.contains("rule=\"语\"} 1\n"), "{text}");
}

#[test]
fn obs_01_past_the_cap_names_fold_and_closed_labels_stay() {
    let registry = Registry::new();
    let shard = registry.shard();
    for i in 0..MAX_SERIES {
        shard.counter(Metric::Denied, &denied(&format!("p{i}"), "r")).add(1);
    }
    for i in 0..10 {
        shard.counter(Metric::Denied, &denied(&format!("late{i}"), "r")).add(1);
    }
    // what was there before the cap goes on under its own name
    shard.counter(Metric::Denied, &denied("p7", "r")).add(1);
    let found = lines(&registry);
    assert_eq!(found.iter().filter(|l| l.starts_with("weft_denied_total{")).count(), MAX_SERIES + 1);
    let folded = "weft_denied_total{reporter=\"destination\",source_principal=\"unknown\",\
                  destination_principal=\"unknown\",request_protocol=\"http\",rule=\"unknown\"} 10";
    assert!(found.iter().any(|l| l == folded));
    assert!(found.iter().any(|l| l.contains("source_principal=\"p7\"") && l.ends_with(" 2")));
    assert!(found.contains(&"weft_metrics_folded_total{metric=\"weft_denied_total\"} 10".into()));
}

#[test]
fn openmetrics_names_families_and_ends() {
    let registry = Registry::new();
    registry.counter(Metric::Denied, &denied("x", "r")).add(1);
    registry.counter(Metric::Pushes, &["weft"]).add(1);
    let text = registry.render(Format::OpenMetrics);
    assert!(text.contains("# TYPE weft_denied counter\n") && text.contains("\nweft_denied_total{"), "{text}");
    assert!(text.contains("# TYPE pilot_xds_pushes unknown\n"), "{text}");
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    assert!(!registry.render(Format::Prometheus).contains("# EOF"));
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    assert_eq!(Format::accepted(Some(accept)), Format::OpenMetrics);
    assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
    assert_eq!(Format::accepted(None), Format::Prometheus);
}

#[test]
fn collectors_are_asked_at_every_scrape() {
    let registry = Registry::new();
    let asked = AtomicU64::new(0);
    registry.collect(move |out| {
        let n = asked.fetch_add(1, Relaxed);
        out.push(Metric::ConfigInfo, &[&format!("1.{n}"), "d"], 1_u64);
        out.push(Metric::ProcessCpu, &[], 0.25);
    });
    let first = registry.render(Format::Prometheus);
    assert!(first.contains("weft_config_info{revision=\"1.0\",digest=\"d\"} 1\n"), "{first}");
    assert!(first.contains("\nprocess_cpu_seconds_total 0.25\n"), "{first}");
    assert!(registry.render(Format::Prometheus).contains("revision=\"1.1\""));
}

#[test]
fn a_scrape_in_the_middle_of_counting_is_consistent() {
    const EACH: u64 = 20_000;
    let registry = Registry::new();
    let values = vec!["x"; HTTP_LABELS.len()];
    let number = |text: &str, start: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(start));
        line.map_or(0, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
    };
    std::thread::scope(|threads| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (shard, values) = (registry.shard(), &values);
                threads.spawn(move || {
                    let requests = shard.counter(Metric::RequestsTotal, values);
                    let sizes = shard.histogram(Metric::RequestBytes, values);
                    for i in 0..EACH {
                        requests.add(1);
                        sizes.observe(i);
                    }
                })
            })
            .collect();
        let mut before = 0;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let text = registry.render(Format::Prometheus);
            let now = number(&text, "istio_requests_total{");
            assert!(now >= before, "a counter went from {before} to {now}");
            before = now;
            let inf = text.lines().find(|l| l.contains("le=\"+Inf\"")).map(|l| l.rsplit(' ').next().unwrap());
            let count = text
                .lines()
                .find(|l| l.starts_with("istio_request_bytes_count"))
                .map(|l| l.rsplit(' ').next().unwrap());
            assert_eq!(inf, count);
        }
    });
    let text = registry.render(Format::Prometheus);
    assert_eq!(number(&text, "istio_requests_total{"), 3 * EACH);
    assert_eq!(number(&text, "istio_request_bytes_count{"), 3 * EACH);
    assert_eq!(number(&text, "istio_request_bytes_sum{"), 3 * EACH * (EACH - 1) / 2);
}
