//! Serving HTTP: one server and one routing table for all listeners of both programs.
//!
//! `server` accepts connections, matches a route from the request head alone, reads the body within its limits, and
//! passes the request to `router` for the response. Handlers are plain functions from an [`Incoming`] to a
//! [`Response`], or to an error that converts into a [`MatrixError`].

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
