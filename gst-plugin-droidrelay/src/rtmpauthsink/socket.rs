// SPDX-License-Identifier: MPL-2.0

//! The connection to the server, and how much of what was written has arrived there.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use droidrelay_rtmp::location::Location;
use droidrelay_wire::net::{
    connect::{ConnectError, connect as connect_tcp, look_up},
    tls,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Bytes that the kernel holds unsent: what waits should wait where it can be dropped. This
/// much is sent in a tenth of a second at 640 kbit/s.
const UNSENT_LIMIT: u32 = 8 * 1024;

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Tells what the server's kernel has of the bytes that were written.
pub struct Gauge {
    /// The socket's.
    descriptor: OwnedFd,
    written: Arc<AtomicU64>,
}

impl Gauge {
    /// Bytes that the kernel has taken.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes of them that have been acknowledged.
    pub fn acknowledged(&self) -> u64 {
        let mut outstanding: libc::c_int = 0;
        let descriptor = self.descriptor.as_raw_fd();
        // SAFETY: the descriptor is open for as long as `self` lives, and the request (SIOCOUTQ
        // of sockets, tcp(7)) stores one C int.
        let failed = unsafe { libc::ioctl(descriptor, libc::TIOCOUTQ, &raw mut outstanding) };
        if failed != 0 {
            // Of a connection that has ended; reading and writing tell why.
            outstanding = 0;
        }
        let outstanding = u64::try_from(outstanding).unwrap_or_default();
        self.written().saturating_sub(outstanding)
    }
}

/// A TCP connection that counts what is written.
struct Socket {
    tcp: TcpStream,
    written: Arc<AtomicU64>,
}

impl Socket {
    fn count(&self, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(sent)) = sent {
            self.written.fetch_add(sent as u64, Ordering::Relaxed);
        }
        sent
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.count(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.count(sent)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Why there is no connection.
pub enum NoConnection {
    /// The network is not there: nothing has left this machine.
    Unreachable(String),
    Failed(String),
}

impl From<String> for NoConnection {
    fn from(reason: String) -> Self {
        NoConnection::Failed(reason)
    }
}

/// Connects to the location's server, at its first port, within `patience`, with `tls` where it is given; the error
/// says what did not answer.
pub async fn connect(
    location: &Location,
    tls: Option<&tls::Client>,
    patience: Duration,
) -> Result<(Box<dyn Stream>, Gauge), NoConnection> {
    let host = location.host.as_str();
    let seconds = patience.as_secs_f64();
    let deadline = Instant::now() + patience;
    let addresses = look_up(host, location.ports()[0], patience).await?;
    let left = deadline.saturating_duration_since(Instant::now());
    let tcp = connect_tcp(&addresses, left)
        .await
        .map_err(|err| match err {
            late @ ConnectError::Timeout { .. } => NoConnection::Failed(format!(
                "{location} has not answered within {seconds} s: {late}"
            )),
            failed => {
                let reason = format!("cannot connect to {location}: {failed}");
                if failed.is_unreachable() {
                    NoConnection::Unreachable(reason)
                } else {
                    NoConnection::Failed(reason)
                }
            }
        })?;
    let written = Arc::<AtomicU64>::default();
    let descriptor = tune(&tcp, patience)
        .and_then(|()| tcp.as_fd().try_clone_to_owned())
        .map_err(|err| format!("cannot set up the socket: {err}"))?;
    let gauge = Gauge {
        descriptor,
        written: written.clone(),
    };
    let socket = Socket { tcp, written };
    let Some(tls) = tls else {
        return Ok((Box::new(socket), gauge));
    };
    let stream = timeout_at(deadline, tls.connect(host, socket))
        .await
        .map_err(|_| format!("no TLS session with {location} within {seconds} s"))?
        .map_err(|err| format!("no TLS session with {location}: {err}"))?;
    Ok((Box::new(stream), gauge))
}

fn tune(tcp: &TcpStream, timeout: Duration) -> io::Result<()> {
    let socket = socket2::SockRef::from(tcp);
    socket.set_tcp_user_timeout(Some(timeout))?;
    socket.set_tcp_notsent_lowat(UNSENT_LIMIT)
}
