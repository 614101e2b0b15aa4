// SPDX-License-Identifier: MPL-2.0

//! The network between a robot and a server: a TCP forwarder that can be cut, mended and slow; many
//! connections from many addresses.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// Forwards connections to its own port, until it is dropped.
pub struct Proxy {
    port: u16,
    wires: Arc<Mutex<Wires>>,
}

/// What a client says, piece by piece.
pub type Recording = Vec<(Instant, Vec<u8>)>;

#[derive(Default)]
struct Wires {
    cut: bool,
    /// What the client says is thrown away.
    deaf: bool,
    ended: bool,
    /// What each client has said, and when, where that is recorded.
    said: Option<Vec<Recording>>,
    open: Vec<TcpStream>,
}

impl Proxy {
    /// To `port` on loopback.
    pub fn start(to: u16) -> Result<Self> {
        Self::start_with_delay(to, Duration::ZERO)
    }

    /// As [`Proxy::start`]; what is said takes `delay` on its way, in both directions.
    pub fn start_with_delay(to: u16, delay: Duration) -> Result<Self> {
        Self::listen(0, to, delay)
    }

    /// As [`Proxy::start`], at a port of one's own, for a network of one's own.
    pub fn start_at(port: u16, to: u16) -> Result<Self> {
        Self::listen(port, to, Duration::ZERO)
    }

    fn listen(port: u16, to: u16, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let port = listener.local_addr()?.port();
        let wires = Arc::new(Mutex::new(Wires::default()));
        let shared = wires.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if lock(&shared).ended {
                    return;
                }
                // A client that cannot be connected sees its connection closed.
                let _ = connect(&shared, client, to, delay);
            }
        });
        Ok(Proxy { port, wires })
    }

    /// From now on keeps what clients say, in connections that begin later.
    pub fn record(&self) {
        lock(&self.wires).said = Some(Vec::new());
    }

    /// What was said in each recorded connection, and when.
    pub fn words(&self) -> Vec<Recording> {
        lock(&self.wires).said.clone().unwrap_or_default()
    }

    /// What was said in each recorded connection.
    pub fn said(&self) -> Vec<Vec<u8>> {
        let words = self.words().into_iter();
        words
            .map(|words| words.into_iter().flat_map(|(_, words)| words).collect())
            .collect()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections, and each new one at once.
    pub fn cut(&self) {
        let mut wires = lock(&self.wires);
        wires.cut = true;
        wires.hang_up();
    }

    /// Lets through again.
    pub fn restore(&self) {
        let mut wires = lock(&self.wires);
        wires.cut = false;
        wires.deaf = false;
    }

    /// From now on nothing that the client says arrives, until [`Proxy::restore`].
    pub fn discard_upstream(&self) {
        lock(&self.wires).deaf = true;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut wires = lock(&self.wires);
        wires.ended = true;
        wires.hang_up();
        drop(wires);
        // Ends the accepting thread.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Wires {
    fn hang_up(&mut self) {
        for stream in self.open.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn lock(wires: &Mutex<Wires>) -> MutexGuard<'_, Wires> {
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(
    wires: &Arc<Mutex<Wires>>,
    client: TcpStream,
    to: u16,
    delay: Duration,
) -> io::Result<()> {
    if lock(wires).cut {
        return Ok(());
    }
    let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to)))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let copies = (client.try_clone()?, server.try_clone()?);
    let recorded = {
        let mut wires = lock(wires);
        wires.open.push(client.try_clone()?);
        wires.open.push(server.try_clone()?);
        // It may have been cut while this one was made.
        if wires.cut || wires.ended {
            wires.hang_up();
        }
        wires.said.as_mut().map(|said| {
            said.push(Vec::new());
            said.len() - 1
        })
    };
    let shared = wires.clone();
    let hear = move |words: &[u8]| {
        let mut wires = lock(&shared);
        if let (Some(said), Some(connection)) = (&mut wires.said, recorded) {
            said[connection].push((Instant::now(), words.to_vec()));
        }
        !wires.deaf
    };
    thread::spawn(move || forward(client, server, delay, hear));
    thread::spawn(move || forward(copies.1, copies.0, delay, |_| true));
    Ok(())
}

/// Carries what `from` says to `to` where it `passes`, until either ends.
fn forward(
    mut from: TcpStream,
    mut to: TcpStream,
    delay: Duration,
    passes: impl Fn(&[u8]) -> bool,
) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    let writer = thread::spawn(move || {
        for (due, words) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&words).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let words = &buffer[..length];
                let due = Instant::now() + delay;
                if passes(words) && sender.send((due, words.to_vec())).is_err() {
                    break;
                }
            }
        }
    }
    drop(sender);
    // The other direction ends as well.
    let _ = from.shutdown(Shutdown::Both);
    let _ = writer.join();
}

/// For one connection to be made.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that comes from this address.
pub fn connect_from(source: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// Lets this process have as many files open as it is allowed to; those that it has started
/// before keep their limit.
pub fn raise_file_limit() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}
