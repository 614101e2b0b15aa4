// SPDX-License-Identifier: MPL-2.0

//! What MediaMTX asks and tells: by its words, and by the real one where it is installed.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    Bridge, DEADLINE, Folder, Heard, Mosquitto, ROBOT_PASSWORD, Robot, SERVER_PASSWORD, TOKEN,
    VIEWER_PASSWORD, hash,
};
use serde_json::{Value, json};

const KEY: &str = "canary-key-0123456789-0123456789-0123456789";

/// A bridge that knows MediaMTX, signs links, and has these settings besides.
fn bridge(broker: &Mosquitto, settings: &str) -> Bridge {
    let folder = Folder::new();
    folder.write("share.key", KEY);
    folder.write("server.pass", SERVER_PASSWORD);
    let more = format!(
        "[watch]\nrtsp = \"rtsp://media.example/{{path}}\"\n[share]\nkey-file = \"share.key\"\n\
         [mediamtx]\n{settings}\n[[user]]\nname = \"mediamtx\"\nrole = \"mediamtx\"\npassword = \"{}\"\n\
         [[user]]\nname = \"r2\"\nrole = \"robot\"\nrobots = [\"r2\"]\npassword = \"{}\"\n",
        hash(SERVER_PASSWORD, &["--sha256"]),
        hash("canary-r2-5588", &["--sha256"]),
    );
    Bridge::start_in(folder, broker.port, &more, &[])
}

/// Asks as MediaMTX does.
fn ask(bridge: &Bridge, question: Value) -> u16 {
    let caller = crate::common::basic("mediamtx", SERVER_PASSWORD);
    let mut whole = json!({
        "ip": "192.0.2.9", "user": "", "password": "", "token": "", "action": "read",
        "path": "robots/r1", "protocol": "rtsp", "id": null, "query": "", "userAgent": "t",
    });
    for (key, value) in question.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let (status, _, _) = bridge.send_body("POST", "/mediamtx/auth", &caller, &whole.to_string());
    status
}

fn tell(bridge: &Bridge, event: &str, at: f64) {
    let caller = crate::common::basic("mediamtx", SERVER_PASSWORD);
    let body = json!({ "event": event, "path": "robots/r1", "at": at, "clock": "boot" });
    let (status, _, json) =
        bridge.send_body("POST", "/mediamtx/demand", &caller, &body.to_string());
    assert_eq!(status, 204, "{json}");
}

/// As [`tell`], by a hook that was started so many seconds ago.
fn tell_late(bridge: &Bridge, event: &str, at: f64, age: f64) {
    let caller = crate::common::basic("mediamtx", SERVER_PASSWORD);
    let body =
        json!({ "event": event, "path": "robots/r1", "at": at, "clock": "boot", "age": age });
    let (status, _, json) =
        bridge.send_body("POST", "/mediamtx/demand", &caller, &body.to_string());
    assert_eq!(status, 204, "{json}");
}

fn start(heard: &Heard) -> Option<Value> {
    let json: Value = serde_json::from_str(&heard.payload).ok()?;
    (json["command"] == "start").then_some(json)
}

#[test]
fn viewers_robots_and_operators_are_let_in_each_where_they_belong() {
    let broker = Mosquitto::start();
    let bridge = bridge(&broker, "");
    bridge.wait_ready();
    let viewer = json!({ "user": "viewer", "password": VIEWER_PASSWORD, "token": VIEWER_PASSWORD });
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    };
    let robot = json!({ "action": "publish", "protocol": "rtmp", "user": "r1",
        "password": ROBOT_PASSWORD, "query": format!("user=r1&pass={ROBOT_PASSWORD}") });
    for (expected, question) in [
        (401, json!({})),
        (204, viewer.clone()),
        (204, json!({ "token": TOKEN, "protocol": "webrtc" })),
        (204, json!({ "query": format!("token={TOKEN}") })),
        (401, json!({ "user": "viewer", "password": TOKEN })),
        (403, with(&viewer, json!({ "path": "elsewhere" }))),
        (403, with(&viewer, json!({ "action": "publish" }))),
        (403, with(&viewer, json!({ "action": "api" }))),
        (
            204,
            json!({ "token": TOKEN, "action": "metrics", "path": "" }),
        ),
        (403, with(&robot, json!({ "action": "read" }))),
        (403, robot.clone()),
        (400, json!({ "action": "dance" })),
    ] {
        assert_eq!(ask(&bridge, question.clone()), expected, "{question}");
    }
    // While somebody wants it, and only the robot itself.
    bridge.post("/robots/r1/stream/start?viewer=a&lease=60");
    let deadline = Instant::now() + DEADLINE;
    while ask(&bridge, robot.clone()) != 204 {
        assert!(Instant::now() < deadline, "not let in");
    }
    assert_eq!(
        ask(&bridge, with(&robot, json!({ "path": "robots/r2" }))),
        403
    );
    let other = json!({ "user": "r2", "password": "canary-r2-5588", "token": "canary-r2-5588" });
    assert_eq!(ask(&bridge, with(&robot, other)), 403);
    bridge.post("/robots/r1/stream/stop");
    while ask(&bridge, robot.clone()) != 403 {
        assert!(Instant::now() < deadline, "let in without a lease");
    }
    // One that has opened by itself says so.
    let opened = Robot::new(broker.port, "r1");
    opened.say("state", r#"{"state":"starting","cause":"local"}"#);
    while ask(&bridge, robot.clone()) != 204 {
        assert!(Instant::now() < deadline, "not let in");
    }

    let (status, _, _) = bridge.send_body(
        "POST",
        "/mediamtx/auth",
        &crate::common::basic("viewer", VIEWER_PASSWORD),
        "{\"action\":\"read\"}",
    );
    assert_eq!(status, 403, "who is not the media server may not ask");
    let output = bridge.all_output();
    for secret in [VIEWER_PASSWORD, ROBOT_PASSWORD, SERVER_PASSWORD, TOKEN] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
}

#[test]
fn wrong_passwords_by_way_of_mediamtx_are_counted_by_the_viewers_address() {
    let broker = Mosquitto::start();
    let bridge = bridge(&broker, "");
    let wrong = json!({ "ip": "192.0.2.66", "user": "viewer", "password": "x" });
    for _ in 0..5 {
        assert_eq!(ask(&bridge, wrong.clone()), 401);
    }
    let right = json!({ "ip": "192.0.2.66", "user": "viewer", "password": VIEWER_PASSWORD });
    assert_eq!(ask(&bridge, right), 429);
    let elsewhere = json!({ "user": "viewer", "password": VIEWER_PASSWORD });
    assert_eq!(ask(&bridge, elsewhere), 204);
    // An address with a zone is read, one that cannot be read is nobody else's: neither is the
    // media server's own.
    for (ip, expected) in [("fe80::1%eth0", 429), ("fe81::2%eth0", 204), ("", 429)] {
        if expected == 429 {
            for _ in 0..5 {
                let wrong = json!({ "ip": ip, "user": "viewer", "password": "x" });
                assert_eq!(ask(&bridge, wrong), 401, "{ip}");
            }
        }
        assert_eq!(
            ask(&bridge, json!({ "ip": ip, "token": TOKEN })),
            expected,
            "{ip}"
        );
    }
    let other = json!({ "ip": "192.0.2.67", "user": "viewer", "password": VIEWER_PASSWORD });
    assert_eq!(ask(&bridge, other), 204);
}

#[test]
fn a_shared_link_lets_anybody_look_at_one_robot_at_every_bridge_until_it_is_revoked() {
    let broker = Mosquitto::start();
    let (one, two) = (bridge(&broker, ""), bridge(&broker, ""));
    two.wait_ready();
    let admin = format!("Bearer {TOKEN}");
    let (status, _, json) = one.send("POST", "/robots/r1/share?for=60", &admin);
    assert_eq!(status, 200, "{json}");
    let token = json["token"].as_str().unwrap().to_owned();
    let url = format!("rtsp://media.example/robots/r1?share={token}");
    assert_eq!(json["watch"]["rtsp"], url);
    let look = |bridge: &Bridge, path: &str, action: &str| {
        let query = format!("x=1&share={token}");
        ask(
            bridge,
            json!({ "query": query, "path": path, "action": action }),
        )
    };
    for bridge in [&one, &two] {
        assert_eq!(look(bridge, "robots/r1", "read"), 204);
        assert_eq!(look(bridge, "robots/r2", "read"), 403);
        assert_eq!(look(bridge, "robots/r1", "publish"), 401);
    }
    let id = json["id"].as_str().unwrap();
    let (status, _, json) = one.send("DELETE", &format!("/robots/r1/share/{id}"), &admin);
    assert_eq!(status, 204, "{json}");
    assert_eq!(look(&one, "robots/r1", "read"), 401);
    let deadline = Instant::now() + DEADLINE;
    while look(&two, "robots/r1", "read") != 401 {
        assert!(Instant::now() < deadline, "not revoked at the other bridge");
    }
    // Also at one that was not there.
    let three = bridge(&broker, "");
    assert_eq!(look(&three, "robots/r1", "read"), 401);
    for (path, authorization, expected) in [
        (
            "/robots/r1/share",
            &crate::common::basic("viewer", VIEWER_PASSWORD),
            403,
        ),
        (
            "/robots/r1/share?for=60",
            &crate::common::basic("viewer", VIEWER_PASSWORD),
            200,
        ),
        ("/robots/r1/share?for=0", &admin, 400),
    ] {
        assert_eq!(one.send("POST", path, authorization).0, expected, "{path}");
    }
    assert!(
        !one.all_output()
            .lines()
            .any(|line| line.contains("INFO") && line.contains(&token))
    );
}

#[test]
fn hooks_start_stop_and_join_whatever_their_order() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = bridge(&broker, "lease = 25");
    tell(&bridge, "demand", 10.0);
    let first = start(&robot.next()).unwrap();
    assert_eq!(
        (&first["id"], &first["lease"]),
        (&json!("mediamtx"), &json!(25))
    );
    tell(&bridge, "demand", 15.0);
    assert_eq!(start(&robot.next()).unwrap(), first);
    tell(&bridge, "read", 15.5);
    assert_eq!(robot.next().payload, "keyframe");
    tell(&bridge, "undemand", 12.0);
    tell(&bridge, "undemand", 20.0);
    let stop = json!({ "command": "stop", "id": "mediamtx" });
    assert_eq!(
        serde_json::from_str::<Value>(&robot.next().payload).unwrap(),
        stop
    );
    tell(&bridge, "demand", 19.0);
    tell(&bridge, "demand", 21.0);
    assert_eq!(start(&robot.next()).unwrap(), first);
    tell(&bridge, "unread", 22.0);
    robot.say("state", "{}");
    robot.nothing_more();
}

#[test]
fn a_bridge_does_not_stop_by_a_hook_that_is_older_than_what_it_knows() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = bridge(&broker, "");
    bridge.wait_ready();
    // It was started before this bridge was; who has come since then is not known here.
    tell_late(&bridge, "undemand", 10.0, 3600.0);
    tell(&bridge, "read", 10.5);
    assert_eq!(robot.next().payload, "keyframe");
    // Another bridge has been told of a demand meanwhile, half a second after this hook began.
    let began = Instant::now();
    let (_, json) = bridge.get("/robots/r1/stream");
    bridge.get(&format!(
        "/robots/r1/stream?since={}&wait=0.5",
        json["version"]
    ));
    let by_other = json!({ "command": "start", "id": "mediamtx", "lease": 20 }).to_string();
    robot.command("r1", &by_other);
    assert_eq!(robot.next().payload, by_other);
    bridge.get_until("/robots/r1/stream", |_, json| {
        json["wanted"]["open"] == true
    });
    tell_late(&bridge, "undemand", 11.0, began.elapsed().as_secs_f64());
    tell(&bridge, "read", 11.5);
    assert_eq!(robot.next().payload, "keyframe");
    tell_late(&bridge, "undemand", 12.0, 0.0);
    let stop = json!({ "command": "stop", "id": "mediamtx" }).to_string();
    assert_eq!(robot.next().payload, stop);
}

#[test]
fn a_robot_that_is_idle_does_not_keep_the_media_server_waiting() {
    let broker = Mosquitto::start();
    let _robot = Robot::new(broker.port, "r1");
    let bridge = bridge(&broker, "");
    bridge.wait_ready();
    bridge.get_until("/robots/r1", |_, json| json["state"]["state"] == "idle");
    let publish = json!({ "action": "publish", "protocol": "rtmp", "user": "r1",
        "password": ROBOT_PASSWORD });
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(ask(&bridge, publish.clone()), 403);
    }
    // Waiting for its state each time would take six seconds.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_hook_that_cannot_tell_says_why_and_shows_no_secret() {
    let folder = Folder::new();
    let password = folder.write("pass", SERVER_PASSWORD);
    let hook = |bridge: &str, path: &str| {
        crate::common::program()
            .args(["hook", "demand", "--bridge", bridge, "--password-file"])
            .arg(&password)
            .env("MTX_PATH", path)
            .output()
            .unwrap()
    };
    let broker = Mosquitto::start();
    let bridge = bridge(&broker, "");
    let url = format!("http://{}", bridge.address);
    assert!(hook(&url, "robots/r1").status.success());
    for (bridge, path, reason) in [
        (url.as_str(), "elsewhere", "no robot has the path"),
        (url.as_str(), "", "MTX_PATH"),
        (
            "http://u:hunter2@127.0.0.1:1",
            "robots/r1",
            "cannot connect",
        ),
        ("hunter2", "robots/r1", "--bridge"),
    ] {
        let output = hook(bridge, path);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
        assert!(
            !stderr.contains("hunter2") && !stderr.contains(SERVER_PASSWORD),
            "{stderr}"
        );
    }
}

/// The real one, ended with its owner.
struct MediaMtx {
    child: Child,
    rtsp: u16,
    rtmp: u16,
    api: u16,
    folder: Folder,
}

/// Tells past the capture of the test harness that a test does without MediaMTX.
fn mediamtx() -> Option<PathBuf> {
    let named = env::var_os("MEDIAMTX").filter(|path| !path.is_empty());
    let found = named.map(PathBuf::from).or_else(|| {
        let path = env::var_os("PATH")?;
        let mut places = env::split_paths(&path).map(|folder| folder.join("mediamtx"));
        places.find(|path| path.is_file())
    });
    if found.is_none() {
        let test = thread::current();
        let name = test.name().unwrap_or_default();
        let _ = writeln!(
            io::stderr(),
            "SKIPPED {name}: neither $MEDIAMTX nor mediamtx in PATH"
        );
    }
    found
}

fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

impl MediaMtx {
    fn start(program: &PathBuf, bridge: &Bridge, ports: [u16; 3], path: &str) -> Self {
        let [rtsp, rtmp, api] = ports;
        let folder = Folder::new();
        let config = folder.write(
            "mediamtx.yml",
            &format!(
                "logDestinations: [stdout]\nauthMethod: http\n\
                 authHTTPAddress: http://mediamtx:{SERVER_PASSWORD}@{}/mediamtx/auth\n\
                 api: true\napiAddress: \"127.0.0.1:{api}\"\n\
                 rtspAddress: \"127.0.0.1:{rtsp}\"\nrtspTransports: [tcp]\n\
                 rtmpAddress: \"127.0.0.1:{rtmp}\"\nhls: false\nwebrtc: false\nsrt: false\nmoq: false\n\
                 paths:\n  \"~^robots/([A-Za-z0-9_.-]+)$\":\n    runOnDemandStartTimeout: 30s\n    \
                 runOnDemandCloseAfter: 1s\n{path}",
                bridge.address
            ),
        );
        let log = fs::File::create(folder.0.join("log")).unwrap();
        let mut child = Command::new(program)
            .arg(config)
            .env(
                "DROIDRELAY_BRIDGE_URL",
                format!("http://{}", bridge.address),
            )
            .env(
                "DROIDRELAY_BRIDGE_PASSWORD_FILE",
                bridge.folder.0.join("server.pass"),
            )
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + DEADLINE;
        while [rtsp, rtmp, api]
            .iter()
            .any(|port| TcpStream::connect(("127.0.0.1", *port)).is_err())
        {
            assert!(child.try_wait().unwrap().is_none(), "{}", text(&folder));
            assert!(Instant::now() < deadline, "{}", text(&folder));
            thread::sleep(Duration::from_millis(10));
        }
        MediaMtx {
            child,
            rtsp,
            rtmp,
            api,
            folder,
        }
    }

    /// Waits until so many sessions read by RTSP.
    fn wait_sessions(&self, bridge: &Bridge, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut stream = TcpStream::connect(("127.0.0.1", self.api)).unwrap();
            let authorization = crate::common::basic("mediamtx", SERVER_PASSWORD);
            write!(
                stream,
                "GET /v3/rtspsessions/list HTTP/1.0\r\nauthorization: {authorization}\r\n\r\n"
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let reading = answer.matches("\"state\":\"read\"").count();
            if reading == count {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{answer}\n{}",
                bridge.all_output()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn publish(&self, robot: &str, password: &str) -> Media {
        let url = format!(
            "rtmp://127.0.0.1:{}/robots/{robot}?user={robot}&pass={password}",
            self.rtmp
        );
        Media::start(
            "-re -f lavfi -i testsrc=size=160x120:rate=10 -c:v libx264 -preset ultrafast \
             -tune zerolatency -g 10 -f flv",
            &[&url],
        )
    }

    /// Reads, for ever or until so many frames are decoded.
    fn read(&self, login: &str, query: &str, frames: Option<u32>) -> Media {
        let url = format!("rtsp://{login}127.0.0.1:{}/robots/r1{query}", self.rtsp);
        let frames = frames.map(|count| count.to_string());
        let mut rest = vec!["-i", &url];
        if let Some(count) = &frames {
            rest.extend(["-frames:v", count]);
        }
        rest.extend(["-f", "null", "-"]);
        Media::start("-rtsp_transport tcp", &rest)
    }
}

fn text(folder: &Folder) -> String {
    fs::read_to_string(folder.0.join("log")).unwrap_or_default()
}

impl Drop for MediaMtx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("mediamtx:\n{}", text(&self.folder));
        }
    }
}

/// ffmpeg, as publisher or reader.
struct Media(Child);

impl Media {
    fn start(words: &str, rest: &[&str]) -> Self {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin"]);
        ffmpeg.args(words.split_whitespace()).args(rest);
        Media(ffmpeg.stderr(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "ffmpeg does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Media {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn looking_starts_the_robot_and_leaving_stops_it_by_hooks() {
    let Some(program) = mediamtx() else { return };
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = bridge(&broker, "");
    bridge.wait_ready();
    let hook = |key: &str, event: &str| {
        let program = env!("CARGO_BIN_EXE_droidrelay-bridge");
        format!("    {key}: {program} hook {event}\n")
    };
    let path = hook("runOnDemand", "demand")
        + "    runOnDemandRestart: true\n"
        + &hook("runOnUnDemand", "undemand")
        + &hook("runOnRead", "read")
        + &hook("runOnUnread", "unread");
    let server = MediaMtx::start(&program, &bridge, free_ports(), &path);

    assert!(
        !server.publish("r1", ROBOT_PASSWORD).end().success(),
        "nobody wants it"
    );
    assert!(!server.read("viewer:wrong@", "", Some(1)).end().success());
    let reader = server.read(&format!("viewer:{VIEWER_PASSWORD}@"), "", None);
    let first = start(&robot.next()).unwrap();
    assert_eq!(
        (&first["id"], &first["lease"]),
        (&json!("mediamtx"), &json!(20))
    );
    let publisher = server.publish("r1", ROBOT_PASSWORD);
    robot.say("state", r#"{"state":"live"}"#);
    // Heartbeats go on, and the viewer who has come gets a key frame.
    let mut heard = Vec::new();
    while !(heard.iter().any(|one: &Heard| one.payload == "keyframe")
        && heard.iter().filter(|one| start(one).is_some()).count() >= 2)
    {
        heard.push(robot.next());
    }
    // One more, by a link, on the running stream.
    let (_, _, json) = bridge.send("POST", "/robots/r1/share", &format!("Bearer {TOKEN}"));
    let query = format!("?share={}", json["token"].as_str().unwrap());
    assert!(server.read("", &query, Some(3)).end().success());
    assert!(!server.read("", "?share=x", Some(1)).end().success());

    drop(reader);
    let stop = json!({ "command": "stop", "id": "mediamtx" }).to_string();
    while robot.next().payload != stop {}
    drop(publisher);
    let line = bridge.wait_log(|line| line.contains("view ") && line.contains("by=\"viewer\""));
    for part in [
        "robot=\"r1\"",
        "protocol=\"rtsp\"",
        "address=\"127.0.0.1\"",
        "from=\"20",
        "to=\"20",
    ] {
        assert!(line.contains(part), "{line}");
    }
    bridge.wait_log(|line| line.contains("view ") && line.contains("by=\"share "));
    let output = bridge.all_output() + &text(&server.folder);
    for secret in [VIEWER_PASSWORD, ROBOT_PASSWORD, SERVER_PASSWORD] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
}

/// Changes the bridge's configuration and has it read anew.
fn reconfigure(bridge: &Bridge, from: &str, to: &str) {
    let text = fs::read_to_string(bridge.folder.0.join("bridge.toml")).unwrap();
    assert!(text.contains(from), "{text}");
    bridge.folder.write("bridge.toml", &text.replace(from, to));
    bridge.signal("HUP");
}

#[test]
fn what_has_lost_its_right_ends_within_five_seconds() {
    const SOON: Duration = Duration::from_secs(5);
    let Some(program) = mediamtx() else { return };
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let ports = free_ports();
    let settings = format!("api = \"http://127.0.0.1:{}\"", ports[2]);
    let mut bridge = bridge(&broker, &settings);
    bridge.wait_ready();
    let server = MediaMtx::start(&program, &bridge, ports, "");
    bridge.post("/robots/r1/stream/start");
    robot.say("state", r#"{"state":"live"}"#);
    bridge.get_until("/robots/r1", |_, json| json["state"]["state"] == "live");
    let mut publisher = server.publish("r1", ROBOT_PASSWORD);
    let link = || {
        let (_, _, json) = bridge.send("POST", "/robots/r1/share", &format!("Bearer {TOKEN}"));
        let token = json["token"].as_str().unwrap();
        (
            json["id"].as_str().unwrap().to_owned(),
            format!("?share={token}"),
        )
    };
    let (revoked, other) = (link(), link());
    let viewer = format!("viewer:{VIEWER_PASSWORD}@");
    // All of them have begun when the server lists them as readers.
    let deadline = Instant::now() + DEADLINE;
    while !server.read(&viewer, "", Some(2)).end().success() {
        assert!(Instant::now() < deadline, "no stream");
    }
    let mut by_revoked = server.read("", &revoked.1, None);
    let mut by_other = server.read("", &other.1, None);
    let mut by_viewer = server.read(&viewer, "", None);
    bridge.wait_log(|line| line.contains("let in") && line.contains(&revoked.0));
    bridge.wait_log(|line| line.contains("let in") && line.contains(&other.0));
    server.wait_sessions(&bridge, 3);
    let goes_on = |media: &mut Media| media.0.try_wait().unwrap().is_none();
    let ends = |media: &mut Media, what: &str| {
        let began = Instant::now();
        media.end();
        let took = began.elapsed();
        println!("{what}: over after {took:?}");
        assert!(took < SOON, "{what}: {took:?}");
    };
    assert!(
        [&mut by_revoked, &mut by_other, &mut by_viewer]
            .into_iter()
            .all(goes_on)
    );
    let path = format!("/robots/r1/share/{}", revoked.0);
    assert_eq!(
        bridge.send("DELETE", &path, &format!("Bearer {TOKEN}")).0,
        204
    );
    ends(&mut by_revoked, "the link that was revoked");
    assert!(goes_on(&mut by_other) && goes_on(&mut by_viewer) && goes_on(&mut publisher));
    reconfigure(&bridge, "name = \"viewer\"", "name = \"nobody\"");
    ends(&mut by_viewer, "the viewer who was taken away");
    assert!(goes_on(&mut by_other) && goes_on(&mut publisher));
    // A bridge that was not there when they came knows by their own words.
    reconfigure(&bridge, "name = \"nobody\"", "name = \"viewer\"");
    let mut by_viewer = loop {
        // Until the bridge has read its configuration anew.
        let mut reader = server.read(&viewer, "", Some(2));
        if reader.end().success() {
            break server.read(&viewer, "", None);
        }
        assert!(Instant::now() < deadline, "the viewer is not back");
    };
    server.wait_sessions(&bridge, 2);
    bridge.restart();
    bridge.wait_ready();
    assert!(goes_on(&mut by_viewer) && goes_on(&mut by_other) && goes_on(&mut publisher));
    reconfigure(&bridge, "name = \"viewer\"", "name = \"nobody\"");
    ends(&mut by_viewer, "the viewer, by another bridge");
    assert!(goes_on(&mut by_other) && goes_on(&mut publisher));
    // The robot's right.
    reconfigure(&bridge, "robots = [\"r1\"]", "robots = [\"r3\"]");
    ends(&mut publisher, "the robot that was taken away");
    let output = bridge.all_output() + &text(&server.folder);
    for secret in [VIEWER_PASSWORD, ROBOT_PASSWORD, SERVER_PASSWORD] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
}

#[test]
fn where_no_hook_can_run_the_question_itself_starts_the_robot_and_its_lease_stops_it() {
    let Some(program) = mediamtx() else { return };
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let ports = free_ports();
    let settings = format!(
        "read-starts = true\nlease = 10\napi-user = \"mediamtx\"\n\
         api-password-file = \"server.pass\"\napi = \"http://127.0.0.1:{}\"",
        ports[2]
    );
    let bridge = bridge(&broker, &settings);
    bridge.wait_ready();
    let path = "    runOnDemand: there-is-no-such-program\n";
    let server = MediaMtx::start(&program, &bridge, ports, path);
    assert_eq!(server.api, ports[2]);
    let reader = server.read(&format!("viewer:{VIEWER_PASSWORD}@"), "", None);
    assert_eq!(start(&robot.next()).unwrap()["lease"], 10);
    let _publisher = server.publish("r1", ROBOT_PASSWORD);
    robot.say("state", r#"{"state":"live"}"#);
    // For as long as they look: well beyond the first lease.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(14) {
        let heard = robot.next();
        let is_keyframe = heard.payload == "keyframe";
        assert!(is_keyframe || start(&heard).is_some(), "{heard:?}");
    }
    drop(reader);
    // The last lease ends, and nobody renews it.
    bridge.get_until("/robots/r1/stream", |_, json| {
        json["wanted"]["open"] == false
    });
}
