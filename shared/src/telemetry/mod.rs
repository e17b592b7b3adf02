//! Being watched: logs, metrics, and spans on their way to a collector.

pub mod logs;
pub mod metrics;
pub mod otlp;
pub mod process;
