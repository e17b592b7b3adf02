//! A push service over HTTP/2 and TLS that accepts everything unseen: at once, or below `/late/MS` after that many
//! milliseconds.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use waypost_tests::ca::{Alpn, Ca};

/// Writes the root certificate to `ca_file`, prints the address, and serves until killed.
pub(crate) async fn serve(ca_file: &str) {
    let ca = Ca::new();
    std::fs::write(ca_file, ca.pem()).unwrap();
    let acceptor = TlsAcceptor::from(ca.leaf(&["127.0.0.1"], Alpn::Both));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            stream.set_nodelay(true).unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(|request: http::Request<Incoming>| async move {
                let late = request.uri().path().strip_prefix("/late/").and_then(|rest| rest.split('/').next());
                let late = late.and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
                drop(request.into_body().collect().await);
                if let Some(late) = late {
                    tokio::time::sleep(late).await;
                }
                // Serves as a token endpoint as well.
                let body = Bytes::from_static(
                    br#"{"name":"x","access_token":"token","expires_in":3600,"token_type":"Bearer"}"#,
                );
                Ok::<_, Infallible>(http::Response::new(Full::new(body)))
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(1000);
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}
