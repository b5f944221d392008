//! What every process says of itself, read from `/proc` at scrape time; elsewhere nothing.

use std::fs;

use super::{Metric, Registry};

/// Linux counts processor time for user space in hundredths, whatever its tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Build, memory, processor time, descriptors.
pub fn observe_process(registry: &Registry, component: &'static str, version: &'static str) {
    registry.collect(move |out| {
        out.push(Metric::Build, &[component, version], 1_u64);
        if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident) {
            out.push(Metric::ProcessResident, &[], bytes);
        }
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some((cpu, start)) = times(&stat) {
            out.push(Metric::ProcessCpu, &[], cpu);
            if let Some(boot) = fs::read_to_string("/proc/stat").ok().as_deref().and_then(booted) {
                out.push(Metric::ProcessStart, &[], boot + start);
            }
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // the one that lists them is among them
            out.push(Metric::ProcessFds, &[], fds.count().saturating_sub(1) as u64);
        }
    });
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Seconds of processor time, and seconds after boot at which the process started.
fn times(stat: &str) -> Option<(f64, f64)> {
    // the second field, the command in parentheses, may hold anything
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let mut at = |n: usize| fields.nth(n)?.parse::<u64>().ok();
    // utime and stime are fields 14 and 15, starttime is 22; what is left begins with field 3
    let (user, kernel, start) = (at(11)?, at(0)?, at(6)?);
    Some(((user + kernel) as f64 / TICKS_PER_SECOND, start as f64 / TICKS_PER_SECOND))
}

fn booted(stat: &str) -> Option<f64> {
    stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        assert_eq!(resident("Name:\tweft\nVmRSS:\t   14336 kB\nThreads:\t3\n"), Some(14336 * 1024));
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 9000 1 1 1";
        assert_eq!(times(stat), Some((2.0, 90.0)));
        assert_eq!(booted("cpu 1\nbtime 1700000000\n"), Some(1_700_000_000.0));
        assert_eq!((resident(""), times(""), booted("")), (None, None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn obs_01_a_process_says_what_it_is_and_uses() {
        let registry = Registry::new();
        observe_process(&registry, "proxy", "1.2.3");
        let text = registry.render(super::super::Format::Prometheus);
        assert!(text.contains("istio_build{component=\"proxy\",tag=\"1.2.3\"} 1\n"), "{text}");
        for name in ["process_resident_memory_bytes ", "process_cpu_seconds_total ", "process_open_fds "] {
            assert!(text.lines().any(|l| l.starts_with(name)), "{name} is not in\n{text}");
        }
    }
}
