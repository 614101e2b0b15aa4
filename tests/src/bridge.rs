//! The bridge as a process.

use std::{net::SocketAddr, process::Command};

use anyhow::{ensure, Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    http::{self, Answer},
    journal::{Journal, DEADLINE},
    mosquitto::{Mosquitto, TOPIC},
    process::{artifact, poll, Process},
    relay::{Relay, PATH},
    secrets::{write_private, Login},
};

pub struct Bridge {
    process: Process,
    address: SocketAddr,
    /// Every answer as it came, head and body.
    answers: Journal<String>,
    pub user: Login,
    _folder: TempDir,
}

impl Bridge {
    /// Listening, and connected to the broker.
    pub fn start(broker: &Mosquitto, relay: &Relay) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bridge-").tempdir()?;
        let user = Login::generate("app")?;
        let password = format!("{}\n", broker.bridge.password);
        write_private(folder.path(), "mqtt.pass", &password)?;
        let config = format!(
            r#"listen = "127.0.0.1:0"
[mqtt]
broker = "{broker}"
username = "{bridge}"
password-file = "mqtt.pass"
[[robot]]
name = "robot"
topic = "{TOPIC}"
path = "{PATH}"
[watch]
rtsp = "{watch}"
[[user]]
name = "{user}"
role = "viewer"
password = "{hash}"
"#,
            broker = broker.url(),
            bridge = broker.bridge.user,
            watch = relay.watch_url(),
            user = user.user,
            hash = user.hash(),
        );
        let config = write_private(folder.path(), "bridge.toml", &config)?;
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
        let bridge = Bridge {
            process,
            address,
            answers: Journal::default(),
            user,
            _folder: folder,
        };
        poll(DEADLINE, || {
            let answer = http::request(address, "GET", "/healthz", "").ok()?;
            (answer.status == 200).then_some(())
        })
        .with_context(|| format!("no broker\n{}", bridge.process.text()))?;
        Ok(bridge)
    }

    /// Ends as by a power cut.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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
