//! What the command lines of both programs have in common: the runtime that commands run on, the health check,
//! completions for shells, man pages.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    time::Duration,
};

pub use clap_complete::Shell;

use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Runs a program's command on a runtime of its own.
pub fn run(command: impl Future<Output = ExitCode>) -> ExitCode {
    // rustls asks for its provider at the first client. This fails only if there is one already, which will do.
    drop(rustls::crypto::ring::default_provider().install_default());
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How long the service has to answer the health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a service is not considered healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// Port 0 is a different port at every start.
    #[error("listen.operations has no fixed port, so there is no address to check")]
    NoPort,
    /// Nothing answers at the address.
    #[error("nothing answers at {0}")]
    NoAnswer(SocketAddr, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The service answers but takes no requests, because it is starting or stopping.
    #[error("not ready")]
    NotReady,
}

/// Asks the service whose operations listener is at `operations` whether it is ready. For container health checks, as
/// the images contain no other program that could ask.
///
/// # Errors
///
/// [`Unhealthy`] unless it is ready.
pub async fn health(operations: SocketAddr) -> Result<(), Unhealthy> {
    if operations.port() == 0 {
        return Err(Unhealthy::NoPort);
    }
    let address = reachable(operations);
    let asked = timeout(HEALTH_TIMEOUT, ask(address)).await;
    let status = match asked {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(Unhealthy::NoAnswer(address, error)),
        Err(elapsed) => return Err(Unhealthy::NoAnswer(address, elapsed.into())),
    };
    if status == StatusCode::OK { Ok(()) } else { Err(Unhealthy::NotReady) }
}

async fn ask(address: SocketAddr) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/health/ready").header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let answered = async { sender.send_request(request).await.map(|answer| answer.status()) };
    tokio::select! {
        status = answered => Ok(status?),
        ended = connection => {
            ended?;
            Err("the connection was closed".into())
        }
    }
}

/// A listener on all addresses is reached through loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address
}

/// Prints the completion script of `command` for `shell`.
pub fn completions(mut command: clap::Command, shell: Shell) {
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut io::stdout());
}

/// Writes man pages for `command` and all its subcommands into `folder`, creating it if necessary.
///
/// # Errors
///
/// If the folder or a page cannot be written.
pub fn man_pages(command: clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
