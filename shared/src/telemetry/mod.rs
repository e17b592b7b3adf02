//! Observability: logs, metrics, and the export of traces.

pub mod logs;
pub mod metrics;
pub mod otlp;
pub mod process;
