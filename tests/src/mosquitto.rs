//! A real Mosquitto with passwords, access rights and persistence.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use anyhow::{ensure, Result};
use tempfile::TempDir;

use crate::{
    journal::DEADLINE,
    process::{free_port, on_free_ports, program_of, text_of, Process, Signal},
    secrets::{write_private, Login},
};

/// The command topic of the one robot.
pub const TOPIC: &str = "robot/stream";

pub struct Mosquitto {
    process: Process,
    folder: TempDir,
    port: u16,
    /// Reads commands, writes state and availability.
    pub robot: Login,
    /// Writes commands, reads state and availability.
    pub bridge: Login,
    /// Does what a person at the keyboard does: everything below `robot/`.
    pub operator: Login,
}

impl Mosquitto {
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mosquitto-").tempdir()?;
        let robot = Login::generate("robot1")?;
        let bridge = Login::generate("bridge")?;
        let operator = Login::generate("operator")?;
        let passwords: String = [&robot, &bridge, &operator]
            .iter()
            .map(|login| format!("{}:{}\n", login.user, login.password))
            .collect();
        let passwords = write_private(folder.path(), "passwd", &passwords)?;
        let hashed = Command::new(program_of("mosquitto_passwd", "mosquitto")?)
            .arg("-U")
            .arg(&passwords)
            .status()?;
        ensure!(hashed.success(), "mosquitto_passwd fails: {hashed}");
        let acl = format!(
            "user {robot}\ntopic read {TOPIC}\ntopic write {TOPIC}/state\ntopic write {TOPIC}/availability\n\
             user {bridge}\ntopic write {TOPIC}\ntopic read {TOPIC}/state\ntopic read {TOPIC}/availability\n\
             user {operator}\ntopic readwrite robot/#\n",
            robot = robot.user,
            bridge = bridge.user,
            operator = operator.user,
        );
        write_private(folder.path(), "acl", &acl)?;
        let (process, port) = on_free_ports(|| {
            let port = free_port()?;
            Ok((launch(folder.path(), port)?, port))
        })?;
        Ok(Mosquitto {
            process,
            folder,
            port,
            robot,
            bridge,
            operator,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Ends as by a power cut.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Clean end: the database is written.
    pub fn stop(&mut self) -> Result<()> {
        self.process.end(Signal::TERM)?;
        Ok(())
    }

    /// Back on the same port, with the same database.
    pub fn restart(&mut self) -> Result<()> {
        self.process = on_free_ports(|| launch(self.folder.path(), self.port))?;
        Ok(())
    }

    /// Waits until the robot listens for commands, since the broker was last started.
    pub fn wait_robot(&self) -> Result<()> {
        let filter = format!(" {TOPIC}");
        self.process
            .log()
            .wait(0, "the robot's subscription", |line| {
                line.ends_with(&filter) && !line.contains("operator")
            })?;
        Ok(())
    }

    pub fn text(&self) -> String {
        self.process.text()
    }
}

fn launch(folder: &Path, port: u16) -> Result<Process> {
    let here = text_of(folder)?;
    // Without `user`, mosquitto started as root becomes another user, who cannot read the folder.
    let config = format!(
        "user root\nlistener {port} 127.0.0.1\n\
         allow_anonymous false\npassword_file {here}/passwd\nacl_file {here}/acl\n\
         persistence true\npersistence_location {here}/\n\
         autosave_interval 1\nautosave_on_changes true\n\
         set_tcp_nodelay true\nmessage_size_limit 16384\nlog_dest stderr\n\
         log_type error\nlog_type warning\nlog_type notice\nlog_type subscribe\n"
    );
    let config = write_private(folder, "mosquitto.conf", &config)?;
    let mut command = Command::new(program_of("mosquitto", "mosquitto")?);
    command.arg("-c").arg(config);
    let mut process = Process::spawn("mosquitto", &mut command)?;
    process.wait_ready(|| answers(port))?;
    Ok(process)
}

/// Any CONNACK will do, also a refusal.
fn answers(port: u16) -> bool {
    const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04test";
    let Ok(mut stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))) else {
        return false;
    };
    let mut answer = [0; 2];
    stream.set_read_timeout(Some(DEADLINE)).is_ok()
        && stream.write_all(CONNECT).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer[0] == 0x20
}
