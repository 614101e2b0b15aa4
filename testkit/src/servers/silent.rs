// SPDX-License-Identifier: MPL-2.0

//! Something between client and server that takes connections and then says nothing.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;

use crate::journal::Journal;

/// Connections made while it lasts stay silent for ever; later ones reach the server.
pub struct SilentServer {
    port: u16,
    over: Arc<AtomicBool>,
    connections: Journal<()>,
}

impl SilentServer {
    /// Listens on a port of its own for the server at `port` on loopback. Its threads end with
    /// the process.
    pub fn before(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let silence = SilentServer {
            port: listener.local_addr()?.port(),
            over: Arc::default(),
            connections: Journal::default(),
        };
        let (over, connections) = (silence.over.clone(), silence.connections.clone());
        thread::spawn(move || {
            let mut silent = Vec::new();
            for client in listener.incoming().flatten() {
                if over.load(Ordering::SeqCst) {
                    // A server that is not there shows to the client as a connection that ends.
                    let _ = join(client, port);
                } else {
                    silent.push(client);
                }
                connections.push(());
            }
        });
        Ok(silence)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// One entry for each connection that came.
    pub fn connections(&self) -> &Journal<()> {
        &self.connections
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn join(client: TcpStream, port: u16) -> io::Result<()> {
    let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        to.set_nodelay(true)?;
        thread::spawn(move || {
            // Either end may go at any time.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
