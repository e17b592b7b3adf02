//! The result of server discovery.

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// The name for the URI, for `Host` and for TLS.
    pub(super) authority: String,
    /// Hosts and ports to connect to, in this order.
    pub(super) targets: Vec<(String, u16)>,
}
