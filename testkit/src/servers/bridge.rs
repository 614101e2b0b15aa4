// SPDX-License-Identifier: MPL-2.0

//! The bridge as a process.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    artifacts::artifact,
    certs::{Login, write_private},
    journal::{DEADLINE, Journal},
    net::http::{self, Answer},
    process::{Process, poll},
    servers::{
        mosquitto::{Mosquitto, TOPIC},
        relay::{PATH, Relay},
    },
};

/// A robot that a bridge knows.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub name: &'a str,
    pub topic: &'a str,
    pub path: &'a str,
}

pub struct Bridge {
    process: Process,
    address: SocketAddr,
    /// Every answer as it came, head and body.
    answers: Journal<String>,
    pub user: Login,
    /// A robot without MQTT, which polls.
    pub robot: Login,
    folder: TempDir,
}

impl Bridge {
    /// Listening, and connected to the broker.
    pub fn start(broker: &Mosquitto, relay: &Relay) -> Result<Self> {
        let robots = [Known {
            name: "robot",
            topic: TOPIC,
            path: PATH,
        }];
        Self::start_at(
            &broker.url(),
            &broker.bridge,
            &robots,
            &relay.watch_url(),
            &Login::generate("app")?,
        )
    }

    /// As [`Bridge::start`], at any broker that knows `login`, for `robots`, the first of which may
    /// poll too; `user` may ask it.
    pub fn start_at(
        broker: &str,
        login: &Login,
        robots: &[Known],
        watch: &str,
        user: &Login,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bridge-").tempdir()?;
        let robot = Login::generate("poller")?;
        let password = format!("{}\n", login.password);
        write_private(folder.path(), "mqtt.pass", &password)?;
        let known: String = robots
            .iter()
            .map(|Known { name, topic, path }| {
                format!("[[robot]]\nname = \"{name}\"\ntopic = \"{topic}\"\npath = \"{path}\"\n")
            })
            .collect();
        let config = format!(
            r#"listen = "127.0.0.1:0"
[mqtt]
broker = "{broker}"
username = "{bridge}"
password-file = "mqtt.pass"
{known}[watch]
rtsp = "{watch}"
[[user]]
name = "{user}"
role = "viewer"
password = "{hash}"
[[user]]
name = "{robot}"
role = "robot"
robots = ["{first}"]
password = "{robot_hash}"
"#,
            bridge = login.user,
            user = user.user,
            hash = user.hash(),
            robot = robot.user,
            first = robots[0].name,
            robot_hash = robot.hash(),
        );
        write_private(folder.path(), "robot.pass", &robot.password)?;
        let config = write_private(folder.path(), "bridge.toml", &config)?;
        let (process, address) = launch(&config)?;
        Ok(Bridge {
            process,
            address,
            answers: Journal::default(),
            user: user.clone(),
            robot,
            folder,
        })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How the robot's launcher reaches it: `droidrelay run FILE …`.
    pub fn poll_options(&self) -> [String; 6] {
        [
            "--poll".into(),
            format!("{}/robots/robot/stream", self.url()),
            "--poll-user".into(),
            self.robot.user.clone(),
            "--poll-password-file".into(),
            self.folder.path().join("robot.pass").display().to_string(),
        ]
    }

    /// Ends as by a power cut.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Back on the same port, and connected to the broker.
    pub fn restart(&mut self) -> Result<()> {
        let config = self.folder.path().join("bridge.toml");
        let text = std::fs::read_to_string(&config)?;
        let listen = format!("listen = \"{}\"", self.address);
        std::fs::write(&config, text.replace("listen = \"127.0.0.1:0\"", &listen))?;
        (self.process, _) = launch(&config)?;
        Ok(())
    }

    pub fn request(&self, method: &str, path: &str, authorization: &str) -> Result<Answer> {
        let answer = http::request(self.address, method, path, authorization)?;
        self.answers
            .push(format!("{}\n{}", answer.head, answer.body));
        Ok(answer)
    }

    /// Posts as the app does; the answer must be 200.
    pub fn post(&self, path: &str) -> Result<Value> {
        let answer = self.request("POST", path, &self.user.basic())?;
        ensure!(answer.status == 200, "{path}: {}", answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    pub fn answers(&self) -> Vec<String> {
        self.answers.all()
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

/// Listening, and connected to the broker.
fn launch(config: &Path) -> Result<(Process, SocketAddr)> {
    let mut command = Command::new(artifact("droidrelay-bridge")?);
    command.arg("--config").arg(config);
    let process = Process::spawn("droidrelay-bridge", &mut command)?;
    let (_, line) = process
        .log()
        .wait(0, "the bridge's address", |line| {
            line.contains("listening on http://")
        })
        .with_context(|| process.text())?;
    let address = line
        .rsplit("http://")
        .next()
        .and_then(|address| address.trim().parse().ok())
        .with_context(|| format!("no address in {line:?}"))?;
    poll(DEADLINE, || {
        let answer = http::request(address, "GET", "/healthz", "").ok()?;
        (answer.status == 200).then_some(())
    })
    .with_context(|| format!("no broker\n{}", process.text()))?;
    Ok((process, address))
}
