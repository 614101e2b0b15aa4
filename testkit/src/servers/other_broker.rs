// SPDX-License-Identifier: MPL-2.0

//! Brokers other than Mosquitto, where `tests/brokers.sh` has installed them.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Process, program};

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
            let installed = folder.join("aedes/node_modules/aedes").is_dir();
            program("node").filter(|_| installed).map(|node| {
                let mut command = Command::new(node);
                command.arg(folder.join("aedes/aedes.mjs"));
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
    let java = program("java").filter(|_| libraries.is_dir())?;
    let mut command = Command::new(java);
    command
        .arg(format!("-Djava.io.tmpdir={}", scratch.display()))
        .arg("-cp")
        .arg(libraries.join("*"))
        .arg(folder.join(broker).with_extension("java"))
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
