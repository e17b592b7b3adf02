//! What the operating system lets this process use: open files for its connections, and no core dumps.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http::server::ServerConfig;

/// Open files that are left for everything but clients: the database, calls to others, the operations listener, logs.
const RESERVE: usize = 256;

/// Raises the limit of open files as far as the process may, forbids core dumps, and returns `server` with no more
/// connections than there are files for. Otherwise a client with enough idle connections would keep the service from its
/// database, and health checks from the service.
pub(super) fn prepare(server: &ServerConfig) -> ServerConfig {
    let mut server = server.clone();
    // The memory holds keys. A process may always lower its limits.
    set(Resource::Core, Some(0));
    let files = getrlimit(Resource::Nofile);
    if files.current != files.maximum {
        set(Resource::Nofile, files.maximum);
    }
    let most =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    let fitting = fitting(server.max_connections, most);
    if fitting < server.max_connections {
        tracing::warn!(
            max_connections = server.max_connections,
            open_files = most,
            accepted = fitting,
            "server.max_connections does not fit into the limit of open files: raise it (LimitNOFILE, ulimit -n)"
        );
        server.max_connections = fitting;
    }
    server
}

fn set(resource: Resource, limit: Option<u64>) {
    if let Err(error) = setrlimit(resource, Rlimit { current: limit, maximum: limit }) {
        tracing::debug!(?resource, %error, "a limit of the process could not be set");
    }
}

/// As many of `connections` as there is room for in `files`, and at least half of the files.
fn fitting(connections: usize, files: usize) -> usize {
    connections.min(files.saturating_sub(RESERVE).max(files / 2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        for (connections, files, expected) in [
            (4096, 65_536, 4096),
            (4096, 1024, 768),
            (4096, 256, 128),
            (100, 1024, 100),
            (4096, 1, 1),
            (9, usize::MAX, 9),
        ] {
            assert_eq!(fitting(connections, files), expected, "{connections} {files}");
        }
    }
}
