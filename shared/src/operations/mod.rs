//! For operators: the operations listener with health, metrics and the status page, and the report of `doctor`.

pub mod doctor;
pub mod health;
pub mod routes;
pub mod status;

pub use self::{health::Readiness, routes::routes, status::Operations};
