// SPDX-License-Identifier: MPL-2.0

//! A broker that speaks MQTT 3.1.1 only: stands in front of a real one, and lets nothing newer by.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::journal::DEADLINE;

/// What it does when somebody speaks MQTT 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// CONNACK with return code 1, as MQTT 3.1.1 says, and the end.
    Refuses,
    /// The same, but the connection stays.
    RefusesAndStays,
    HangsUp,
    IsSilent,
}

/// Listens until the process ends.
pub struct OldBroker {
    port: u16,
    link: Arc<Mutex<Link>>,
}

#[derive(Default)]
struct Link {
    is_cut: bool,
    ends: Vec<TcpStream>,
}

impl OldBroker {
    /// Before the broker at `port` on loopback.
    pub fn before(port: u16, answer: Answer) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let link = Arc::<Mutex<Link>>::default();
        let broker = OldBroker {
            port: listener.local_addr()?.port(),
            link: link.clone(),
        };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let link = link.clone();
                // Who connects may go at any time.
                thread::spawn(move || drop(serve(client, port, answer, &link)));
            }
        });
        Ok(broker)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections, and takes none until [`OldBroker::heal`].
    pub fn cut(&self) {
        let mut link = self.link.lock().unwrap();
        link.is_cut = true;
        for end in link.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub fn heal(&self) {
        self.link.lock().unwrap().is_cut = false;
    }
}

fn serve(mut client: TcpStream, port: u16, answer: Answer, link: &Mutex<Link>) -> io::Result<()> {
    client.set_read_timeout(Some(DEADLINE))?;
    // Fixed header (two bytes or three), protocol name, level.
    let mut head = [0; 11];
    client.read_exact(&mut head)?;
    let level = match head[1] & 0x80 {
        0 => head[8],
        _ => head[9],
    };
    if level >= 5 {
        const REFUSAL: [u8; 4] = [0x20, 2, 0, 1];
        let mut rest = [0; 256];
        match answer {
            Answer::Refuses => client.write_all(&REFUSAL)?,
            Answer::RefusesAndStays => {
                client.write_all(&REFUSAL)?;
                while client.read(&mut rest)? > 0 {}
            }
            Answer::HangsUp => {}
            Answer::IsSilent => while client.read(&mut rest)? > 0 {},
        }
        return client.shutdown(Shutdown::Both);
    }
    let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    client.set_read_timeout(None::<Duration>)?;
    {
        let mut link = link.lock().unwrap();
        if link.is_cut {
            return client.shutdown(Shutdown::Both);
        }
        link.ends.extend([client.try_clone()?, server.try_clone()?]);
    }
    (&server).write_all(&head)?;
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        to.set_nodelay(true)?;
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
