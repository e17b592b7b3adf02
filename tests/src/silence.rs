//! Servers that accept connections and say nothing.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Silent servers, stopped on drop.
#[derive(Debug)]
pub struct Silence {
    /// Their addresses.
    pub addresses: Vec<SocketAddr>,
    _servers: JoinSet<()>,
}

impl Silence {
    /// Listens on a free port of each address.
    pub async fn start(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let (mut listening, mut servers) = (Vec::new(), JoinSet::new());
        for address in addresses {
            let listener = TcpListener::bind((address, 0)).await.unwrap();
            listening.push(listener.local_addr().unwrap());
            servers.spawn(async move {
                let mut open = Vec::new();
                while let Ok(connection) = listener.accept().await {
                    open.push(connection);
                }
            });
        }
        Self { addresses: listening, _servers: servers }
    }
}
