//! Process metrics: memory, CPU time, file descriptors, read from `/proc/self` at each scrape.
//!
//! The names are those of Prometheus' own client libraries, so that generic dashboards show them.

use std::{
    fmt,
    fs::{self, read_to_string},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::clock::Clock;

/// Ticks per second in `/proc/self/stat`. Linux reports 100 to user space whatever the kernel uses internally.
const TICKS_PER_SECOND: f64 = 100.0;

/// A collector for the process metrics.
#[derive(Debug)]
struct Process {
    started_ms: i64,
}

/// Registers `process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds`, `process_max_fds` and
/// `process_start_time_seconds`. Values that cannot be read are omitted.
pub fn register(registry: &mut Registry, clock: &Clock) {
    registry.register_collector(Box::new(Process { started_ms: clock.now_ms() }));
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        gauge(
            &mut encoder,
            "process_start_time_seconds",
            "Start time of the process, in seconds since the epoch",
            Some(self.started_ms / 1000),
        )?;
        let memory = read_to_string("/proc/self/status").ok().and_then(|status| resident_bytes(&status));
        gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory, in bytes", memory)?;
        let open = fs::read_dir("/proc/self/fd").ok().and_then(|files| i64::try_from(files.count()).ok());
        gauge(&mut encoder, "process_open_fds", "Open file descriptors", open)?;
        let most = read_to_string("/proc/self/limits").ok().and_then(|limits| max_files(&limits));
        gauge(&mut encoder, "process_max_fds", "Limit on open file descriptors", most)?;
        if let Some(seconds) = read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_seconds(&stat)) {
            let help = "User and system CPU time, in seconds";
            let metric = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(metric)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: Option<i64>) -> Result<(), fmt::Error> {
    let Some(value) = value else { return Ok(()) };
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// Parses `VmRSS:   2184 kB` from `/proc/self/status`, in bytes.
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Parses the soft limit of `Max open files` from `/proc/self/limits`; `None` if unlimited.
fn max_files(limits: &str) -> Option<i64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Parses user and system time from `/proc/self/stat`, in seconds.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The parenthesised name may itself contain spaces and parentheses. Of the fields after it, utime and stime are
    // the 12th and 13th (proc(5) counts them as 14 and 15).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_formats_are_parsed() {
        let stat = "22594 (a ) b) R 1 2 8719 0 -1 4194304 102 0 0 0 1250 50 0 0 20 0 1 0 56763 3133440 389";
        assert_eq!(cpu_seconds(stat), Some(13.0));
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    2184 kB\nThreads:\t1\n"), Some(2_236_416));
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                524288 files\n";
        assert_eq!(max_files(limits), Some(1024));
        assert_eq!(max_files("Max open files            unlimited            unlimited            files"), None);
    }

    #[test]
    fn every_process_metric_is_exposed() {
        let mut registry = Registry::default();
        register(&mut registry, &Clock::manual(1_700_000_000_000));
        let text = crate::telemetry::metrics::text(&registry);
        assert!(text.contains("process_start_time_seconds 1700000000\n"), "{text}");
        for name in ["resident_memory_bytes ", "open_fds ", "max_fds ", "cpu_seconds_total "] {
            assert!(text.contains(&format!("\nprocess_{name}")), "{name} not in {text}");
        }
    }
}
