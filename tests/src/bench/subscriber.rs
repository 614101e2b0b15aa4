//! The published system in small: a Python subscriber that runs gst-launch-1.0 as a child.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::Installed;
use crate::{
    mosquitto::TOPIC,
    process::{program, text_of, Process},
    rig::Rig,
    secrets::write_private,
};

pub struct Subscriber {
    pub process: Process,
    _folder: TempDir,
}

impl Subscriber {
    /// Back when it is subscribed.
    pub fn start(installed: &Installed, rig: &Rig, camera: &str, encoder: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let login = &rig.broker.robot;
        let password = write_private(folder.path(), "robot.pass", &login.password)?;
        let publisher = &rig.relay.publisher;
        let line = format!(
            "-q {camera} ! queue ! {encoder} ! flvmux streamable=true ! rtmp2sink location={}?user={}&pass={}",
            rig.relay.publish_url(),
            publisher.user,
            publisher.password
        );
        let script = include_str!("../../bench/subscriber.py");
        let script = write_private(folder.path(), "subscriber.py", script)?;
        let mut command = Command::new(python_with_paho()?);
        command
            .envs(installed.environment()?)
            .arg(script)
            .arg(rig.broker.port().to_string())
            .args([TOPIC, &login.user, text_of(&password)?, &line]);
        let process = Process::spawn("subscriber.py", &mut command)?;
        process
            .log()
            .wait(0, "the subscription", |line| line == "subscribed")
            .with_context(|| process.text())?;
        Ok(Subscriber {
            process,
            _folder: folder,
        })
    }
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
