// SPDX-License-Identifier: MPL-2.0

//! Connections: TCP, TLS where it is set up, HTTP/1.1, and an orderly end.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
};
use droidrelay_wire::net::tls::{certificates, private_key};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

/// For TLS to be set up, and for the head of each request, the first one and those that follow.
const PATIENCE: Duration = Duration::from_secs(60);
/// After an error that is not one client's: files that ran out, mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// The server's certificate and key, read anew when told so.
pub struct Tls {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: Mutex<Arc<ServerConfig>>,
    read: Mutex<Option<[SystemTime; 2]>>,
}

impl Tls {
    /// Reads both PEM files; the error names the file and the remedy.
    pub fn load(cert_file: PathBuf, key_file: PathBuf) -> Result<Self, String> {
        Ok(Tls {
            read: Mutex::new(times(&cert_file, &key_file)),
            current: Mutex::new(read(&cert_file, &key_file)?),
            cert_file,
            key_file,
        })
    }

    /// Reads the files again; what is there stays where they are not right.
    pub fn reload(&self) -> Result<(), String> {
        *self.read.lock() = times(&self.cert_file, &self.key_file);
        let config = read(&self.cert_file, &self.key_file)?;
        *self.current.lock() = config;
        Ok(())
    }

    /// Whether the files are others than those that were read last.
    pub fn has_changed(&self) -> bool {
        let times = times(&self.cert_file, &self.key_file);
        times.is_some() && times != *self.read.lock()
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.current.lock().clone().into()
    }
}

fn times(cert_file: &Path, key_file: &Path) -> Option<[SystemTime; 2]> {
    let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    Some([time(cert_file)?, time(key_file)?])
}

fn read(cert_file: &Path, key_file: &Path) -> Result<Arc<ServerConfig>, String> {
    let chain = certificates(cert_file).map_err(|err| {
        format!("cannot read cert-file {err}; give the server's certificate chain as PEM")
    })?;
    let key = private_key(key_file).map_err(|err| {
        format!("cannot read key-file {err}; give the server's private key as PEM")
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| format!("cannot set up TLS: {err}"))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|err| {
            let (cert, key) = (cert_file.display(), key_file.display());
            format!("cert-file {cert} and key-file {key} do not work together: {err}")
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `closing`, then gives requests in progress `drain` to end.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    app: Router,
    closing: watch::Receiver<bool>,
    drain: Duration,
) {
    let mut ending = closing.clone();
    let mut connections = JoinSet::new();
    loop {
        select! {
            biased;
            () = closed(&mut ending) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    let (tls, app, closing) = (tls.clone(), app.clone(), closing.clone());
                    connections.spawn(async move {
                        connection(tcp, peer, tls.as_deref(), app, closing).await;
                    });
                }
                Err(err) if is_of_one_client(&err) => {}
                Err(err) => {
                    warn!("cannot accept connections: {err}");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, ended).await.is_err() {
        connections.shutdown().await;
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // Without its owner, the bridge has ended.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn is_of_one_client(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Option<&Tls>,
    app: Router,
    closing: watch::Receiver<bool>,
) {
    // Slower without, not wrong.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = tls else {
        return http(tcp, peer, app, closing).await;
    };
    match timeout(PATIENCE, tls.acceptor().accept(tcp)).await {
        Ok(Ok(stream)) => http(stream, peer, app, closing).await,
        Ok(Err(err)) => debug!(%peer, "no TLS: {err}"),
        Err(_) => debug!(%peer, "no TLS within {} s", PATIENCE.as_secs()),
    }
}

/// Serves one connection, to its end or, after `closing`, to that of the request in progress.
pub async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    app: Router,
    mut closing: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = select! {
        ended = &mut connection => ended,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = ended {
        debug!(%peer, "connection ended: {err}");
    }
}
