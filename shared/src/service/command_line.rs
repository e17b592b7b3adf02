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

/// How long the service gets to say how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a service does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// Port 0 is another one each time.
    #[error("listen.operations has no fixed port, so it is not known where to ask")]
    NoPort,
    /// Nothing answers there.
    #[error("nothing answers at {0}")]
    NoAnswer(SocketAddr, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers, and takes no requests (yet, or any more).
    #[error("not ready")]
    NotReady,
}

/// Asks the service that listens for operations at `operations` whether it is ready. For the health checks of
/// containers, whose images have no other program that could ask.
///
/// # Errors
///
/// [`Unhealthy`].
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

/// Listening on all addresses is reached on the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address
}

/// Prints what makes `shell` complete the command line of `command`.
pub fn completions(mut command: clap::Command, shell: Shell) {
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut io::stdout());
}

/// Writes a man page for `command` and for each of its commands into `folder`, which is made if it is not there.
///
/// # Errors
///
/// What the operating system said.
pub fn man_pages(command: clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
