//! Taking requests: one server and one table of routes for all listeners of both programs.
//!
//! `server` accepts a connection, finds the route by its head alone, reads the body within its limits, and has `router`
//! answer it. Handlers are plain functions from a [`Incoming`] to a [`Response`] or an error that becomes a
//! [`MatrixError`].

pub mod body;
pub mod error;
pub mod params;
pub mod rate_limit;
pub mod request;
pub mod response;
pub mod router;
pub mod server;

pub use self::{
    error::MatrixError,
    request::{Incoming, json_object, not_json},
    response::{Response, json, json_with, redirect, with_body},
    router::{BodySize, Matched, Router, SMALL_BODY},
};
