// SPDX-License-Identifier: MPL-2.0

//! A real Mosquitto, a scripted robot, the bridge as a process, and HTTP by hand.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rumqttc::v5::{
    Client, Event, MqttOptions,
    mqttbytes::{QoS, v5::Packet},
};
use serde_json::Value;

/// Ends a test that fails; a good one never gets near it.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const BROKER_PASSWORD: &str = "canary-broker-1f6e";
pub const VIEWER_PASSWORD: &str = "canary-viewer-93ab";
pub const HUMAN_PASSWORD: &str = "canary-human-77d0";
pub const TOKEN: &str = "canary-token-5c21";
pub const ROBOT_TOKEN: &str = "canary-robot-2b40";
pub const ROBOT_PASSWORD: &str = "canary-publish-9e11";
pub const SERVER_PASSWORD: &str = "canary-server-d07c";

/// A folder that is gone with its owner.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("droidrelay-bridge-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ACL: &str = "user robot\ntopic readwrite robots/#\nuser bridge\n\
    topic read robots/+/stream\ntopic readwrite robots/+/stream/state\n\
    topic readwrite robots/+/stream/availability\ntopic readwrite robots/+/stream/wanted\n\
    topic readwrite robots/+/stream/shares\n";

pub struct Mosquitto {
    child: Child,
    pub port: u16,
    folder: Folder,
}

impl Mosquitto {
    pub fn start() -> Self {
        let folder = Folder::new();
        let passwords = folder.write("passwd", &format!("bridge:{BROKER_PASSWORD}\nrobot:r\n"));
        let hashed = Command::new("mosquitto_passwd")
            .arg("-U")
            .arg(&passwords)
            .status();
        assert!(
            hashed
                .expect("mosquitto_passwd of the package mosquitto")
                .success()
        );
        folder.write(
            "acl",
            &format!("{ACL}user bridge\ntopic write robots/+/stream\n"),
        );
        // The port is free when it is asked for; another process may be faster to take it.
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = Self::launch(&folder, port) {
                return Mosquitto {
                    child,
                    port,
                    folder,
                };
            }
        }
        panic!("mosquitto does not start: {}", log_of(&folder));
    }

    fn launch(folder: &Folder, port: u16) -> Option<Child> {
        let path = |name: &str| folder.0.join(name).display().to_string();
        let text = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous false\npassword_file {}\nacl_file {}\n\
             persistence false\nset_tcp_nodelay true\nlog_dest stderr\n",
            path("passwd"),
            path("acl")
        );
        let config = folder.write("mosquitto.conf", &text);
        let log = fs::File::create(path("log")).unwrap();
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .find(|program| Path::new(program).exists())
            .unwrap_or("mosquitto");
        let mut child = Command::new(program)
            .arg("-c")
            .arg(config)
            .stderr(log)
            .spawn()
            .expect("mosquitto must be installed");
        let deadline = Instant::now() + DEADLINE;
        loop {
            if answers(port) {
                return Some(child);
            }
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "no CONNACK: {}", log_of(folder));
            thread::yield_now();
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Back on the same port.
    pub fn restart(&mut self) {
        self.child = Self::launch(&self.folder, self.port)
            .unwrap_or_else(|| panic!("mosquitto does not come back: {}", log_of(&self.folder)));
    }

    pub fn signal(&self, name: &str) {
        send_signal(&self.child, name);
    }

    /// Takes the bridge's right to the command topics.
    pub fn forbid_commands(&self) {
        self.folder.write("acl", ACL);
        self.signal("HUP");
        let deadline = Instant::now() + DEADLINE;
        while !log_of(&self.folder).contains("Reloading config") {
            assert!(Instant::now() < deadline, "{}", log_of(&self.folder));
            thread::yield_now();
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("mosquitto:\n{}", log_of(&self.folder));
        }
    }
}

fn log_of(folder: &Folder) -> String {
    fs::read_to_string(folder.0.join("log")).unwrap_or_default()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Any CONNACK will do, also a refusal.
fn answers(port: u16) -> bool {
    const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04test";
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answer = [0; 2];
    stream.write_all(CONNECT).is_ok() && stream.read_exact(&mut answer).is_ok() && answer[0] == 0x20
}

pub fn send_signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid])
        .status();
    assert!(sent.unwrap().success());
}

/// What arrived on the command topic.
#[derive(Debug, PartialEq)]
pub struct Heard {
    pub payload: String,
    pub expiry: Option<u32>,
}

/// Listens on its command topic, says what it is told to say.
pub struct Robot {
    client: Client,
    topic: String,
    heard: mpsc::Receiver<Heard>,
    subscribed: mpsc::Receiver<()>,
    acknowledged: mpsc::Receiver<()>,
}

impl Robot {
    /// Connected, subscribed and announced as online and idle.
    pub fn new(port: u16, name: &str) -> Self {
        // One that was dropped may not have gone yet.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("robot-{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options
            .set_credentials("robot", "r")
            .set_outgoing_inflight_upper_limit(20);
        let (client, mut connection) = Client::new(options, 20);
        let topic = format!("robots/{name}/stream");
        let (heard_in, heard) = mpsc::channel();
        let (subscribed_in, subscribed) = mpsc::channel();
        let (acknowledged_in, acknowledged) = mpsc::channel();
        let (subscriber, filter) = (client.clone(), topic.clone());
        thread::spawn(move || {
            for event in connection.iter() {
                let sent = match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let _ = subscriber.try_subscribe(&filter, QoS::AtLeastOnce);
                        Ok(())
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => subscribed_in.send(()).map_err(drop),
                    Ok(Event::Incoming(Packet::PubAck(_))) => {
                        acknowledged_in.send(()).map_err(drop)
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => heard_in
                        .send(Heard {
                            payload: String::from_utf8(publish.payload.to_vec()).unwrap(),
                            expiry: publish
                                .properties
                                .and_then(|properties| properties.message_expiry_interval),
                        })
                        .map_err(drop),
                    Ok(_) => Ok(()),
                    // The broker is away: not so fast.
                    Err(_) => {
                        thread::sleep(Duration::from_millis(20));
                        Ok(())
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        let robot = Robot {
            client,
            topic,
            heard,
            subscribed,
            acknowledged,
        };
        robot.wait_subscribed();
        robot.say("availability", "online");
        robot.say("state", r#"{"state":"idle"}"#);
        robot
    }

    pub fn wait_subscribed(&self) {
        self.subscribed.recv_timeout(DEADLINE).expect("SUBACK");
    }

    /// Retains `payload` on the topic beside the command topic; the broker has it on return.
    pub fn say(&self, word: &str, payload: &str) {
        let topic = format!("{}/{word}", self.topic);
        self.client
            .publish(topic, QoS::AtLeastOnce, true, payload.to_owned())
            .unwrap();
        self.acknowledged.recv_timeout(DEADLINE).expect("PUBACK");
    }

    /// Sends a command to another robot.
    pub fn command(&self, name: &str, payload: &str) {
        let topic = format!("robots/{name}/stream");
        self.client
            .publish(topic, QoS::AtLeastOnce, false, payload.to_owned())
            .unwrap();
        self.acknowledged.recv_timeout(DEADLINE).expect("PUBACK");
    }

    /// Leaves a command with the broker for all who come.
    pub fn keep_command(&self, name: &str, payload: &str) {
        let topic = format!("robots/{name}/stream");
        self.client
            .publish(topic, QoS::AtLeastOnce, true, payload.to_owned())
            .unwrap();
        self.acknowledged.recv_timeout(DEADLINE).expect("PUBACK");
    }

    pub fn next(&self) -> Heard {
        self.heard.recv_timeout(DEADLINE).expect("a command")
    }

    pub fn nothing_more(&self) {
        assert_eq!(self.heard.try_recv().ok(), None);
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        let _ = self.client.try_disconnect();
    }
}

/// Starts the program; what it writes goes to `log`.
fn launch(
    folder: &Folder,
    environment: &[(&str, &str)],
    log: &Arc<Mutex<String>>,
) -> (Child, SocketAddr) {
    let mut child = program()
        .args(["--log-level", "debug", "--config"])
        .arg(folder.0.join("bridge.toml"))
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (ready_in, ready) = mpsc::channel();
    let (kept, stderr) = (log.clone(), child.stderr.take().unwrap());
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some((_, url)) = line.split_once("listening on http") {
                let address = url.trim_start_matches(['s', ':', '/']);
                let _ = ready_in.send(address.parse().unwrap());
            }
            let mut kept = kept.lock().unwrap();
            kept.push_str(&line);
            kept.push('\n');
        }
    });
    match ready.recv_timeout(DEADLINE) {
        Ok(address) => (child, address),
        Err(err) => {
            let _ = child.kill();
            panic!("{err}: {}", log.lock().unwrap());
        }
    }
}

/// The program itself; all that it ever writes is kept.
pub struct Bridge {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    answers: Mutex<String>,
    pub folder: Folder,
}

impl Bridge {
    pub fn start(broker_port: u16) -> Self {
        Self::start_with(broker_port, &[])
    }

    pub fn start_with(broker_port: u16, environment: &[(&str, &str)]) -> Self {
        Self::start_in(Folder::new(), broker_port, "", environment)
    }

    /// With more tables in its configuration, whose files are in `folder`.
    pub fn start_in(
        folder: Folder,
        broker_port: u16,
        more: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        folder.write("mqtt.pass", &format!("{BROKER_PASSWORD}\n"));
        let text = format!(
            r#"
            listen = "127.0.0.1:0"
            [mqtt]
            broker = "mqtt://127.0.0.1:{broker_port}"
            username = "bridge"
            password-file = "mqtt.pass"
            keep-alive = 5
            start-expiry = 25
            ack-timeout = 3
            [robots]
            topic = "robots/{{robot}}/stream"
            default = "r1"
            [failures]
            burst = 5
            window = 3600
            [[user]]
            name = "viewer"
            role = "viewer"
            password = "{}"
            [[user]]
            name = "human"
            role = "admin"
            password = "{}"
            token = "{}"
            [[user]]
            name = "r1"
            role = "robot"
            robots = ["r1"]
            token = "{}"
            password = "{}"
            {more}
            "#,
            hash(VIEWER_PASSWORD, &["--sha256"]),
            hash(HUMAN_PASSWORD, &[]),
            hash(TOKEN, &["--sha256"]),
            hash(ROBOT_TOKEN, &["--sha256"]),
            hash(ROBOT_PASSWORD, &["--sha256"]),
        );
        folder.write("bridge.toml", &text);
        let log = Arc::new(Mutex::new(String::new()));
        let (child, address) = launch(&folder, environment, &log);
        Bridge {
            child,
            address,
            log,
            answers: Mutex::default(),
            folder,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and starts it again, at the same address.
    pub fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let text = fs::read_to_string(self.folder.0.join("bridge.toml")).unwrap();
        let listen = format!("listen = \"{}\"", self.address);
        let text = text.replace("listen = \"127.0.0.1:0\"", &listen);
        self.folder.write("bridge.toml", &text);
        let (child, address) = launch(&self.folder, &[], &self.log);
        assert_eq!(address, self.address);
        self.child = child;
    }

    /// Sends one request; the answer's status, head and JSON.
    pub fn send(&self, method: &str, path: &str, authorization: &str) -> (u16, String, Value) {
        self.send_body(method, path, authorization, "")
    }

    /// As [`Bridge::send`], with a body.
    pub fn send_body(
        &self,
        method: &str,
        path: &str,
        authorization: &str,
        body: &str,
    ) -> (u16, String, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: bridge\r\nauthorization: {authorization}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        self.answers.lock().unwrap().push_str(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let json = match body {
            "" => Value::Null,
            body => serde_json::from_str(body).unwrap(),
        };
        (status, head.to_owned(), json)
    }

    /// Asks as the robot r1 what is wanted of it.
    pub fn poll(&self, query: &str) -> (u16, Value) {
        let path = format!("/robots/r1/stream{query}");
        let (status, _, json) = self.send("GET", &path, &format!("Bearer {ROBOT_TOKEN}"));
        (status, json)
    }

    /// Tells the state of the robot r1.
    pub fn report(&self, state: &str) -> (u16, Value) {
        let authorization = format!("Bearer {ROBOT_TOKEN}");
        let (status, _, json) =
            self.send_body("PUT", "/robots/r1/stream/state", &authorization, state);
        (status, json)
    }

    pub fn post(&self, path: &str) -> (u16, Value) {
        let (status, _, json) = self.send("POST", path, &basic("viewer", VIEWER_PASSWORD));
        (status, json)
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, json) = self.send("GET", path, &basic("viewer", VIEWER_PASSWORD));
        (status, json)
    }

    /// Asks until the answer is as wanted.
    pub fn get_until(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (status, json) = self.get(path);
            if wanted(status, &json) {
                return json;
            }
            assert!(Instant::now() < deadline, "last answer: {status} {json}");
            thread::yield_now();
        }
    }

    /// Connected to the broker.
    pub fn wait_ready(&self) {
        self.get_until("/healthz", |status, _| status == 200);
    }

    pub fn signal(&self, name: &str) {
        send_signal(&self.child, name);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the bridge does not end");
            thread::yield_now();
        }
    }

    /// Waits for something in the log; gives the line.
    pub fn wait_log(&self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = {
                let log = self.log.lock().unwrap();
                log.lines().find(|line| wanted(line)).map(str::to_owned)
            };
            if let Some(line) = found {
                return line;
            }
            assert!(Instant::now() < deadline, "not in the log");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let authorization = basic("viewer", VIEWER_PASSWORD);
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nhost: b\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        body.to_owned()
    }

    /// Waits until this metric, with its labels, has the value.
    pub fn wait_metric(&self, name: &str, value: f64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = self.metrics();
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            if line.and_then(|line| line.trim().parse().ok()) == Some(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is not {value}: {text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Log and answers so far.
    pub fn all_output(&self) -> String {
        self.log.lock().unwrap().clone() + &self.answers.lock().unwrap()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("bridge:\n{}", self.all_output());
        }
    }
}

pub fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_droidrelay-bridge"));
    program
        .env_remove("DROIDRELAY_MQTT_PASSWORD")
        .env_remove("DROIDRELAY_MQTT_PASSWORD_FILE")
        .env_remove("DROIDRELAY_BRIDGE_CONFIG");
    program
}

/// The hash that the program makes of `secret`.
pub fn hash(secret: &str, flags: &[&str]) -> String {
    let mut child = program()
        .arg("hash-password")
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{secret}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

pub fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}
