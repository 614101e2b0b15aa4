// SPDX-License-Identifier: MPL-2.0

//! Brokers other than Mosquitto: one that is old, and those of others, where `tests/brokers.sh` has
//! installed them.

use std::{
    env,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    journal::DEADLINE,
    process::{Process, program},
};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// MQTT 3.1.1 only, from npm.
    Aedes,
    /// MQTT 5, a Go module.
    Mochi,
    /// HiveMQ CE: MQTT 5, from Maven.
    HiveMq,
    /// MQTT 5, from Maven. It holds a last will without a delay until the session expires.
    Artemis,
    /// MQTT 3.1.1 only, from Maven.
    Moquette,
}

/// A broker at which anybody may do anything.
pub struct OtherBroker {
    _process: Process,
    /// What it keeps, which some leave behind when they are ended.
    _scratch: TempDir,
    port: u16,
}

impl OtherBroker {
    /// None where it is not installed, which is said past the test harness's capture.
    pub fn start(kind: Kind) -> Result<Option<Self>> {
        let scratch = TempDir::new()?;
        let Some(mut command) = command(kind, scratch.path())? else {
            let test = thread::current();
            let test = test.name().unwrap_or_default();
            let _ = writeln!(
                io::stderr(),
                "SKIPPED {test}: {kind:?} is not installed; `tests/brokers.sh --install` does it"
            );
            return Ok(None);
        };
        let process = Process::spawn("broker", &mut command)?;
        let (_, line) = process
            .log()
            .wait(0, "the broker's port", |line| line.starts_with("port "))?;
        let port = line.trim_start_matches("port ").trim().parse();
        Ok(Some(OtherBroker {
            _process: process,
            _scratch: scratch,
            port: port.with_context(|| line)?,
        }))
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

fn command(kind: Kind, scratch: &Path) -> Result<Option<Command>> {
    let folder = installed()?;
    Ok(match kind {
        Kind::Aedes => {
            let script = folder.join("aedes/aedes.mjs");
            let installed = folder.join("aedes/node_modules/aedes").is_dir() && script.is_file();
            program("node").filter(|_| installed).map(|node| {
                let mut command = Command::new(node);
                command.arg(script);
                command
            })
        }
        Kind::Mochi => {
            let program = folder.join("mochi/mochi");
            program.is_file().then(|| Command::new(program))
        }
        Kind::HiveMq => java(&folder, "hivemq", scratch),
        Kind::Artemis => java(&folder, "artemis", scratch),
        Kind::Moquette => java(&folder, "moquette", scratch),
    })
}

fn java(folder: &Path, broker: &str, scratch: &Path) -> Option<Command> {
    let folder = folder.join(broker);
    let libraries = folder.join("lib");
    let source = folder.join(broker).with_extension("java");
    let java = program("java").filter(|_| libraries.is_dir() && source.is_file())?;
    let mut command = Command::new(java);
    command
        .arg(format!("-Djava.io.tmpdir={}", scratch.display()))
        .arg("-cp")
        .arg(libraries.join("*"))
        .arg(source)
        .current_dir(scratch);
    Some(command)
}

/// `target/brokers`: beside the folder of the profile that this program stands in.
fn installed() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "deps"));
    let target = target.and_then(|deps| deps.parent()?.parent());
    Ok(target
        .context("a test runs in target/PROFILE/deps")?
        .join("brokers"))
}

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
