use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::mpsc,
};

use base64::{engine::general_purpose::STANDARD, Engine};
use serde_json::Value;

use crate::{binary, random_secret, wait_for, Folder, Mosquitto, Process, Relay, DEADLINE};

/// The bridge's HTTP user, role viewer.
const USER: &str = "viewer";

/// The bridge as a process, connected to the broker.
pub struct Bridge {
    process: Process,
    address: SocketAddr,
    password: String,
    _folder: Folder,
}

impl Bridge {
    pub fn start(broker: &Mosquitto, relay: &Relay) -> Self {
        let folder = Folder::new();
        let password = random_secret();
        let hash = hash_password(&password);
        let watch = match relay.name() {
            "MediaMTX" => format!("[watch]\nrtsp = {:?}\n", without_login(&relay.viewer_url())),
            _ => String::new(),
        };
        let config = format!(
            "listen = \"127.0.0.1:0\"\n\
             [mqtt]\n\
             broker = {:?}\n\
             username = \"bridge\"\n\
             password-file = {:?}\n\
             [[robot]]\n\
             name = \"robot\"\n\
             topic = \"robot/stream\"\n\
             path = \"live/stream\"\n\
             {watch}\
             [[user]]\n\
             name = \"{USER}\"\n\
             role = \"viewer\"\n\
             password = {hash:?}\n",
            broker.url(),
            broker.password_file("bridge"),
        );
        let mut command = program();
        command
            .arg("--config")
            .arg(folder.write("bridge.toml", &config));
        let (ready_in, ready) = mpsc::channel();
        let process = Process::spawn(command, move |line| {
            if let Some((_, address)) = line.split_once("listening on http://") {
                let _ = ready_in.send(address.trim().to_owned());
            }
        });
        let address = ready
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|_| panic!("the bridge does not listen: {}", process.log()));
        let bridge = Bridge {
            address: address.parse().expect("an address"),
            process,
            password,
            _folder: folder,
        };
        wait_for("the bridge has its broker", DEADLINE, || {
            (bridge.get("/healthz").0 == 200).then_some(())
        });
        bridge
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn user(&self) -> &'static str {
        USER
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// Status and JSON of a POST by the viewer.
    pub fn post(&self, path: &str) -> (u16, Value) {
        self.send("POST", path, Some((USER, &self.password)))
    }

    /// Status and JSON of a GET by the viewer.
    pub fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, Some((USER, &self.password)))
    }

    /// Status and JSON; Null for an answer that is none.
    pub fn send(&self, method: &str, path: &str, login: Option<(&str, &str)>) -> (u16, Value) {
        let (status, body) = self.send_raw(method, path, login);
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// Status and body.
    pub fn send_raw(&self, method: &str, path: &str, login: Option<(&str, &str)>) -> (u16, String) {
        let authorization = login.map_or_else(String::new, |(user, password)| {
            let basic = STANDARD.encode(format!("{user}:{password}"));
            format!("authorization: Basic {basic}\r\n")
        });
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{authorization}\
             content-length: 0\r\nconnection: close\r\n\r\n",
            self.address
        );
        let mut answer = String::new();
        let exchanged = TcpStream::connect(self.address).and_then(|mut stream| {
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_string(&mut answer)
        });
        if let Err(err) = exchanged {
            panic!("{method} {path}: {err}; the bridge: {}", self.process.log());
        }
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        match (status, body) {
            (Some(status), Some(body)) => (status, body.to_owned()),
            _ => panic!("{method} {path}: no HTTP answer: {answer:?}"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn program() -> Command {
    let mut command = Command::new(binary("droidrelay-bridge"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DROIDRELAY_") {
            command.env_remove(name);
        }
    }
    command
}

fn hash_password(password: &str) -> String {
    let mut child = program()
        .args(["hash-password", "--sha256"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("droidrelay-bridge");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(password.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("our child");
    assert!(output.status.success(), "hash-password: {}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The URL as all may see it.
fn without_login(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, address))) => format!("{scheme}://{address}"),
        _ => url.to_owned(),
    }
}
