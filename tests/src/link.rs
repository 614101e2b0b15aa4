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
    {
        let mut wires = lock(wires);
        wires.open.push(client.try_clone()?);
        wires.open.push(server.try_clone()?);
        // It may have been cut while this one was made.
        if wires.cut || wires.ended {
            wires.hang_up();
        }
    }
    let shared = wires.clone();
    thread::spawn(move || forward(client, server, || !lock(&shared).deaf));
    thread::spawn(move || forward(copies.1, copies.0, || true));
    Ok(())
}

/// Carries what `from` says to `to` while `passes`, until either ends.
fn forward(mut from: TcpStream, mut to: TcpStream, passes: impl Fn() -> bool) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(_) if !passes() => {}
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }
    }
    // The other direction ends as well.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
