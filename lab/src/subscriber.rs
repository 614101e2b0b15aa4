// SPDX-License-Identifier: MPL-2.0

//! The Python scripts that Droidrelay replaces: a subscriber that runs gst-launch-1.0 as a child.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

use droidrelay_testkit::usage::family;
use droidrelay_testkit::{
    certs::write_private,
    process::{Process, Signal, program, text_of},
    servers::mosquitto::TOPIC,
    testbed::Testbed,
};

pub struct Subscriber {
    pub process: Process,
    /// What it had started when it was killed.
    orphans: Vec<u32>,
    _folder: TempDir,
}

impl Subscriber {
    /// Back when it is subscribed. `line` is for `gst-launch-1.0`.
    pub fn start(testbed: &Testbed, line: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let subscriber = Self::start_at(
            testbed,
            "127.0.0.1",
            testbed.broker.port(),
            line,
            environment,
        )?;
        subscriber.wait_subscribed(0)?;
        Ok(subscriber)
    }

    /// As [`Subscriber::start`], with a broker that it finds there or does not find.
    pub fn start_at(
        testbed: &Testbed,
        host: &str,
        port: u16,
        line: &str,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let folder = TempDir::new()?;
        let login = &testbed.broker.robot;
        let password = write_private(folder.path(), "robot.pass", &login.password)?;
        let line = write_private(folder.path(), "line", line)?;
        let script = include_str!("../baseline/subscriber.py");
        let script = write_private(folder.path(), "subscriber.py", script)?;
        let mut command = Command::new(python_with_paho()?);
        command
            .envs(environment.iter().copied())
            .arg(script)
            .arg(host)
            .arg(port.to_string())
            .args([TOPIC, &login.user, text_of(&password)?, text_of(&line)?]);
        let process = Process::spawn("subscriber.py", &mut command)?;
        Ok(Subscriber {
            process,
            orphans: Vec::new(),
            _folder: folder,
        })
    }

    /// Ends the script as by a power cut; what it has started goes on.
    pub fn kill(&mut self) -> Result<()> {
        self.orphans = children(self.process.id())?;
        self.process.kill();
        Ok(())
    }

    /// Waits for a subscription after `mark` in its log.
    pub fn wait_subscribed(&self, mark: usize) -> Result<()> {
        let log = self.process.log();
        log.wait(mark, "the subscription", |line| line == "subscribed")
            .with_context(|| self.process.text())?;
        Ok(())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // What it has started outlives it: here it must not.
        let children = children(self.process.id()).unwrap_or_default();
        for id in children.iter().chain(&self.orphans) {
            kill(*id);
        }
    }
}

/// All that `id` has started and that runs.
pub fn children(id: u32) -> Result<Vec<u32>> {
    Ok(family(id)?.split_off(1))
}

/// Ends a process that is not ours to wait for as by a power cut.
pub fn kill(id: u32) {
    if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile.
        let _ = kill_process(id, Signal::KILL);
    }
}

/// What is published by `rtmp2sink` as the Python scripts' lines do, with the password in the
/// location, quoted for the shell.
pub fn line(testbed: &Testbed, camera: &str, encoder: &str) -> String {
    let publisher = &testbed.relay.publisher;
    format!(
        "-q {camera} ! queue ! {encoder} ! flvmux streamable=true ! rtmp2sink 'location={}?user={}&pass={}'",
        testbed.relay.publish_url(),
        publisher.user,
        publisher.password
    )
}

/// The first Python here that has paho-mqtt; Debian's package is for Debian's Python.
fn python_with_paho() -> Result<PathBuf> {
    let has_paho = |python: &Path| {
        let tried = Command::new(python)
            .args(["-c", "import paho.mqtt.client"])
            .output();
        tried.is_ok_and(|output| output.status.success())
    };
    [program("python3"), Some("/usr/bin/python3".into())]
        .into_iter()
        .flatten()
        .find(|python| has_paho(python))
        .context("no Python with paho-mqtt found: apt-get install python3-paho-mqtt")
}
