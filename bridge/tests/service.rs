// SPDX-License-Identifier: MPL-2.0

//! The bridge as a service: what it tells systemd, events, metrics, TLS, reloading, an orderly end.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{
    Bridge, DEADLINE, Folder, Mosquitto, ROBOT_TOKEN, Robot, TOKEN, VIEWER_PASSWORD, basic, hash,
};
use droidrelay_testkit::certs::{Authority, Validity};
use serde_json::Value;

/// A listener to events.
struct Events(BufReader<TcpStream>);

impl Events {
    fn listen(bridge: &Bridge, authorization: &str) -> Self {
        let mut stream = TcpStream::connect(bridge.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            stream,
            "GET /events HTTP/1.1\r\nhost: bridge\r\nauthorization: {authorization}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut events = Events(BufReader::new(stream));
        assert!(events.line().starts_with("HTTP/1.1 200 "));
        let mut is_of_events = false;
        loop {
            let line = events.line();
            is_of_events |= line == "content-type: text/event-stream";
            if line.is_empty() {
                break;
            }
        }
        assert!(is_of_events);
        events
    }

    /// Empty at the end of a paragraph, and of all.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next event's name and data that are as wanted.
    fn until(&mut self, wanted: impl Fn(&str, &Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut name = String::new();
        loop {
            assert!(Instant::now() < deadline, "no such event");
            let line = self.line();
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).unwrap();
                if wanted(&name, &data) {
                    return data;
                }
            }
        }
    }

    fn robot(&mut self, name: &str, state: &str) -> Value {
        self.until(|event, data| {
            event == "robot" && data["robot"] == name && data["state"]["state"] == state
        })
    }
}

#[test]
fn listeners_hear_of_each_change_that_they_may_see() {
    let mut broker = Mosquitto::start();
    let (one, two) = (Robot::new(broker.port, "r1"), Robot::new(broker.port, "r2"));
    let more = format!(
        "[[user]]\nname = \"one\"\nrole = \"viewer\"\nrobots = [\"r1\"]\ntoken = \"{}\"",
        hash("canary-one-3e5d", &["--sha256"])
    );
    let bridge = Bridge::start_in(Folder::new(), broker.port, &more, &[]);
    bridge.get_until("/robots", |_, json| {
        json["robots"].as_array().unwrap().len() == 2
    });
    let mut all = Events::listen(&bridge, &basic("viewer", VIEWER_PASSWORD));
    let mut some = Events::listen(&bridge, "Bearer canary-one-3e5d");
    all.until(|event, data| event == "broker" && data["connected"] == true);
    for name in ["r1", "r2"] {
        assert_eq!(all.robot(name, "idle")["online"], true);
    }
    some.robot("r1", "idle");

    two.say("state", r#"{"state":"live"}"#);
    one.say("state", r#"{"state":"starting"}"#);
    all.robot("r2", "live");
    all.robot("r1", "starting");
    let first = some.until(|event, _| event == "robot");
    assert_eq!(first["robot"], "r1", "nothing of the other robot: {first}");

    broker.kill();
    all.until(|event, data| event == "broker" && data["connected"] == false);
    broker.restart();
    one.wait_subscribed();
    all.until(|event, data| event == "broker" && data["connected"] == true);
    one.say("state", r#"{"state":"error"}"#);
    all.robot("r1", "error");
    let (status, _, _) = bridge.send("GET", "/events", &format!("Bearer {ROBOT_TOKEN}"));
    assert_eq!(status, 403);
}

#[test]
fn the_end_comes_at_once_for_listeners_and_for_who_waits() {
    let broker = Mosquitto::start();
    let mut bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    let mut events = Events::listen(&bridge, &basic("viewer", VIEWER_PASSWORD));
    let mut poll = TcpStream::connect(bridge.address).unwrap();
    let (_, known) = bridge.poll("");
    write!(
        poll,
        "GET /robots/r1/stream?wait=60&since={} HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {ROBOT_TOKEN}\r\n\r\n",
        known["version"]
    )
    .unwrap();
    bridge.wait_metric("droidrelay_bridge_waiting_requests", 1.0);
    bridge.wait_metric("droidrelay_bridge_event_listeners", 1.0);
    let asked = Instant::now();
    bridge.signal("TERM");
    assert!(bridge.wait().success());
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut rest = String::new();
    events.0.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "an orderly end: {rest:?}");
    let mut answer = String::new();
    poll.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn metrics_are_sums_that_prometheus_reads_and_name_nobody() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "robot-7c1e");
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    robot.say("state", r#"{"state":"live"}"#);
    bridge.post("/robots/robot-7c1e/stream/start");
    for (metric, value) in [
        ("droidrelay_bridge_broker_connected", 1.0),
        ("droidrelay_bridge_robots_online", 1.0),
        ("droidrelay_bridge_robots{state=\"live\"}", 1.0),
        (
            "droidrelay_bridge_commands_total{what=\"start\",result=\"ok\"}",
            1.0,
        ),
    ] {
        bridge.wait_metric(metric, value);
    }
    let text = bridge.metrics();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(
        text.contains("route=\"/robots/{robot}/stream/start\",method=\"POST\",status=\"200\""),
        "{text}"
    );
    assert!(
        !text.contains("robot-7c1e") && !text.contains("viewer"),
        "{text}"
    );
    let (status, _, _) = bridge.send("GET", "/metrics", &format!("Bearer {ROBOT_TOKEN}"));
    assert_eq!(status, 403);
    assert_eq!(bridge.send("GET", "/metrics", "none").0, 401);
}

#[test]
fn https_shows_the_certificate_that_is_in_the_file_now() {
    let broker = Mosquitto::start();
    let folder = Folder::new();
    let authority = Authority::new().unwrap();
    let ca = authority.write(&folder.0).unwrap();
    let serve = |validity| {
        let identity = authority.server(&["127.0.0.1"], validity).unwrap();
        identity.write(&folder.0, "server").unwrap();
    };
    serve(Validity::Now);
    let more = "[tls]\ncert-file = \"server.pem\"\nkey-file = \"server.key\"";
    let path = folder.0.clone();
    let bridge = Bridge::start_in(folder, broker.port, more, &[]);
    let url = format!("https://{}/", bridge.address);
    let curl = || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert"]).arg(&ca);
        curl.arg(&url).output().unwrap()
    };
    let answer = curl();
    assert!(answer.status.success(), "{answer:?}");
    assert_eq!(answer.stdout, br#"{"msg":"Media bridge service running!"}"#);

    let expired = authority.server(&["127.0.0.1"], Validity::Expired).unwrap();
    expired.write(&path, "server").unwrap();
    // It would be noticed, some seconds later.
    bridge.signal("HUP");
    bridge.wait_log(|line| line.contains("the certificate is read anew"));
    let answer = curl();
    assert_eq!(answer.status.code(), Some(60), "not verified: {answer:?}");

    let fresh = authority.server(&["127.0.0.1"], Validity::Now).unwrap();
    fs::write(path.join("server.pem"), "nothing").unwrap();
    bridge.wait_log(|line| line.contains("stays as it was") && line.contains("server.pem"));
    fresh.write(&path, "server").unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !curl().status.success() {
        assert!(
            Instant::now() < deadline,
            "the new certificate is not taken"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn sighup_takes_the_users_that_are_in_the_file_now() {
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    let viewer = basic("viewer", VIEWER_PASSWORD);
    let mut events = Events::listen(&bridge, &viewer);
    let file = bridge.folder.0.join("bridge.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"viewer\"", "\"boss\"")).unwrap();
    bridge.signal("HUP");
    bridge.wait_log(|line| line.contains("not reloaded") && line.contains("bridge.toml:"));
    assert_eq!(bridge.send("GET", "/robots", &viewer).0, 200);

    let name = "name = \"viewer\"";
    fs::write(&file, text.replace(name, "name = \"other\"")).unwrap();
    bridge.signal("HUP");
    bridge.wait_log(|line| line.contains("reloaded: 3 users"));
    assert_eq!(bridge.send("GET", "/robots", &viewer).0, 401);
    let other = basic("other", VIEWER_PASSWORD);
    assert_eq!(bridge.send("GET", "/robots", &other).0, 200);
    assert_eq!(
        bridge.send("GET", "/robots", &format!("Bearer {TOKEN}")).0,
        200
    );
    let mut rest = String::new();
    events.0.read_to_string(&mut rest).unwrap();
    assert!(
        rest.ends_with("0\r\n\r\n"),
        "who listens must come in again: {rest:?}"
    );
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_is_told_ready_alive_and_stopping_whether_or_not_there_is_a_broker() {
    let folder = std::env::temp_dir().join(format!("droidrelay-notify-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = folder.join("bridge.toml");
    fs::write(
        &config,
        "listen = \"127.0.0.1:0\"\n[mqtt]\nbroker = \"mqtt://127.0.0.1:1\"\n",
    )
    .unwrap();
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bridge = Ended(
        Command::new(env!("CARGO_BIN_EXE_droidrelay-bridge"))
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .env_remove("WATCHDOG_PID")
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let next = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    let id = bridge.0.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(sent.success());
    while next() != "STOPPING=1" {}
    assert!(bridge.0.wait().unwrap().success());
    fs::remove_dir_all(folder).unwrap();
}
