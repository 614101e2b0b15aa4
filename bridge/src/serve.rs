// SPDX-License-Identifier: MPL-2.0

//! Connections: TCP, TLS where it is set up, HTTP/1.1, and an orderly end.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
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
use ring::digest::{SHA256, digest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    select,
    sync::watch,
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::connections::{ConnectionLimits, Connections, Seat};

/// For TLS to be set up.
const TLS_PATIENCE: Duration = Duration::from_secs(10);
/// For the head of each request, the first one and those that follow.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a reader to take anything at all of what is sent to it.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// Longest head of a request, and what is kept of an answer that is not taken yet.
const BUFFER: usize = 16 * 1024;
/// Descriptors beside those of the doors' connections: the broker, MediaMTX's API, webhooks, files.
const OTHER_FILES: u64 = 256;
/// After an error that is not one client's: files that ran out, mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that the kernel keeps until they are accepted, as far as it may: beyond them it
/// drops those of the owner as well.
const BACKLOG: u32 = 4096;

/// Listens at `address`; at `[::]` by IPv4 as well, and by that alone where a machine has no IPv6.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let (socket, address) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, address),
        SocketAddr::V6(_) => match TcpSocket::new_v6() {
            Err(err) if address.ip().is_unspecified() => {
                warn!("no IPv6 here ({err}): listening by IPv4 alone");
                let any = (Ipv4Addr::UNSPECIFIED, address.port());
                (TcpSocket::new_v4()?, any.into())
            }
            socket => (socket?, address),
        },
    };
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Whatever net.ipv6.bindv6only says.
        SockRef::from(&socket).set_only_v6(false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

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

    /// SHA-256 of the certificate, by which a robot knows this server.
    pub fn fingerprint(&self) -> Result<[u8; 32], String> {
        let chain = certificates(&self.cert_file)?;
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, &chain[0]).as_ref());
        Ok(fingerprint)
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

/// Raises this process's limit of open files where `doors` need more, as far as it is allowed to;
/// the connections that each may then have.
pub fn connections_by_files(limits: ConnectionLimits, doors: usize) -> ConnectionLimits {
    let doors = doors as u64;
    let needed = limits.total as u64 * doors + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut files = current.unwrap_or(u64::MAX);
    if files < needed {
        let raised = needed.min(maximum.unwrap_or(u64::MAX));
        let limit = Rlimit {
            current: Some(raised),
            maximum,
        };
        if raised > files && setrlimit(Resource::Nofile, limit).is_ok() {
            files = raised;
        }
    }
    if files >= needed {
        return limits;
    }
    let most = usize::try_from(files.saturating_sub(OTHER_FILES) / doors).unwrap_or(usize::MAX);
    let total = most.clamp(16, limits.total);
    warn!(
        "{files} files may be open: at most {total} connections in place of {}; raise the limit (systemd: LimitNOFILE={needed})",
        limits.total
    );
    ConnectionLimits { total, ..limits }
}

/// Serves until `closing`, then gives requests in progress `drain` to end.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    app: Router,
    connections: Arc<Connections>,
    closing: watch::Receiver<bool>,
    drain: Duration,
) {
    let mut ending = closing.clone();
    let mut tasks = JoinSet::new();
    loop {
        select! {
            biased;
            () = closed(&mut ending) => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    // By IPv4 to a socket for both, it is no other.
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    let Some(seat) = connections.enter(peer.ip()) else {
                        continue;
                    };
                    let (tls, app, closing) = (tls.clone(), app.clone(), closing.clone());
                    tasks.spawn(async move {
                        let seat = Arc::new(seat);
                        let guest = Guest { peer, seat: Some(seat.clone()), is_tls: tls.is_some() };
                        select! {
                            () = seat.gives_way() => {}
                            () = connection(tcp, guest, tls.as_deref(), app, closing) => {}
                        }
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
    let ended = async { while tasks.join_next().await.is_some() {} };
    if timeout(drain, ended).await.is_err() {
        tasks.shutdown().await;
    }
}

/// Who is at the other end.
struct Guest {
    peer: SocketAddr,
    seat: Option<Arc<Seat>>,
    is_tls: bool,
}

/// In the extensions of a request that came by TLS.
#[derive(Debug, Clone, Copy)]
pub struct CameByTls;

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
    guest: Guest,
    tls: Option<&Tls>,
    app: Router,
    closing: watch::Receiver<bool>,
) {
    // Slower without, not wrong.
    let _ = tcp.set_nodelay(true);
    // Who is gone without a word, or takes nothing: the kernel sees it where we do not write.
    let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(WRITE_PATIENCE));
    let peer = guest.peer;
    let tcp = Patient::new(tcp);
    let Some(tls) = tls else {
        return converse(tcp, guest, app, closing).await;
    };
    match timeout(TLS_PATIENCE, tls.acceptor().accept(tcp)).await {
        Ok(Ok(stream)) => converse(stream, guest, app, closing).await,
        Ok(Err(err)) => debug!(%peer, "no TLS: {err}"),
        Err(_) => debug!(%peer, "no TLS within {} s", TLS_PATIENCE.as_secs()),
    }
}

/// Serves one connection, to its end or, after `closing`, to that of the request in progress.
pub async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    app: Router,
    closing: watch::Receiver<bool>,
) {
    let guest = Guest {
        peer,
        seat: None,
        is_tls: false,
    };
    converse(stream, guest, app, closing).await;
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    guest: Guest,
    app: Router,
    mut closing: watch::Receiver<bool>,
) {
    let Guest { peer, seat, is_tls } = guest;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        let extensions = request.extensions_mut();
        extensions.insert(ConnectInfo(peer));
        if let Some(seat) = &seat {
            extensions.insert(seat.clone());
        }
        if is_tls {
            extensions.insert(CameByTls);
        }
        app.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(BUFFER)
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

/// A connection whose peer takes something of what is sent to it within [`WRITE_PATIENCE`].
struct Patient<S> {
    stream: S,
    /// Since when nothing has been taken.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S) -> Self {
        Patient {
            stream,
            waits: None,
        }
    }

    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = None;
            return written;
        }
        let waits = self
            .waits
            .get_or_insert_with(|| Box::pin(sleep(WRITE_PATIENCE)));
        ready!(waits.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer does not read",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up_and_one_that_reads_slowly_is_not() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Patient::new(ours);
        let began = Instant::now();
        let sends = async {
            for _ in 0..8 {
                ours.write_all(&[0; 16]).await?;
            }
            io::Result::Ok(began.elapsed())
        };
        let reads = async {
            let mut taken = [0; 16];
            for _ in 0..4 {
                sleep(WRITE_PATIENCE * 3 / 4).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
            // Still there, and reads no more.
            sleep(WRITE_PATIENCE * 10).await;
        };
        let (sent, ()) = tokio::join!(sends, reads);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
