//! The network between a robot and a server: a TCP forwarder that can be cut and mended.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Result;

/// Forwards connections to its own port, until it is dropped.
pub struct Link {
    port: u16,
    wires: Arc<Mutex<Wires>>,
}

#[derive(Default)]
struct Wires {
    cut: bool,
    /// What the client says is thrown away.
    deaf: bool,
    ended: bool,
    /// What each client has said, where that is recorded.
    said: Option<Vec<Vec<u8>>>,
    open: Vec<TcpStream>,
}

impl Link {
    /// To `port` on loopback.
    pub fn start(to: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let wires = Arc::new(Mutex::new(Wires::default()));
        let shared = wires.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if lock(&shared).ended {
                    return;
                }
                // A client that cannot be connected sees its connection closed.
                let _ = connect(&shared, client, to);
            }
        });
        Ok(Link { port, wires })
    }

    /// From now on keeps what clients say, in connections that begin later.
    pub fn record(&self) {
        lock(&self.wires).said = Some(Vec::new());
    }

    /// What was said in each recorded connection.
    pub fn said(&self) -> Vec<Vec<u8>> {
        lock(&self.wires).said.clone().unwrap_or_default()
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
    pub fn mend(&self) {
        let mut wires = lock(&self.wires);
        wires.cut = false;
        wires.deaf = false;
    }

    /// From now on nothing that the client says arrives, until [`Link::mend`].
    pub fn deafen(&self) {
        lock(&self.wires).deaf = true;
    }
}

impl Drop for Link {
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

fn connect(wires: &Arc<Mutex<Wires>>, client: TcpStream, to: u16) -> io::Result<()> {
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
            said[connection].extend(words);
        }
        !wires.deaf
    };
    thread::spawn(move || forward(client, server, hear));
    thread::spawn(move || forward(copies.1, copies.0, |_| true));
    Ok(())
}

/// Carries what `from` says to `to` where it `passes`, until either ends.
fn forward(mut from: TcpStream, mut to: TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let words = &buffer[..length];
                if passes(words) && to.write_all(words).is_err() {
                    break;
                }
            }
        }
    }
    // The other direction ends as well.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
