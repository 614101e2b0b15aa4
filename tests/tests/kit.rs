// SPDX-License-Identifier: MPL-2.0

//! `mediamtx/` as it is: setup.sh makes a folder, the three servers run from it on their own
//! ports, in a network of the test's own, and the robot runs the line that it was given.

use std::{
    fs::{self, Permissions},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use droidrelay_testkit::{
    artifacts::artifact,
    clients::{
        browser::{Browser, Screen},
        reader::Reader,
    },
    journal::DEADLINE,
    net::{http, netns::isolated},
    process::{Process, Signal, poll, program_of},
    robot::{Robot, Runner},
    secrets::Login,
    servers::relay::{Kind, find_mediamtx},
    testbed::TEST_PICTURE,
};
use serde_json::Value;
use tempfile::TempDir;

/// Not loopback: what is for the servers among themselves must be closed there.
const HOST: &str = "192.0.2.1";

/// Gives the machine that address in the test's network.
fn connect() {
    for words in [
        "link add lan type veth peer name far",
        "address add 192.0.2.1/24 dev lan",
        "link set lan up",
        "link set far up",
        "route add default dev lan",
    ] {
        let ip = program_of("ip", "iproute2").unwrap();
        let done = Command::new(ip).args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    }
}

struct Kit {
    broker: Process,
    media: Process,
    bridge: Process,
    owner: Login,
    folder: TempDir,
}

impl Kit {
    /// The folder that setup.sh makes, with one robot; what it tells of that.
    fn set_up() -> (TempDir, String) {
        let folder = tempfile::Builder::new().prefix("kit-").tempdir().unwrap();
        // The servers give up root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mediamtx/setup.sh");
        let made = Command::new(script)
            .arg(folder.path())
            .args([HOST, "robot1"])
            .env("BRIDGE", artifact("droidrelay-bridge").unwrap())
            .output()
            .unwrap();
        let told = String::from_utf8(made.stdout).unwrap();
        assert!(
            made.status.success(),
            "{told}{}",
            String::from_utf8_lossy(&made.stderr)
        );
        (folder, told)
    }

    fn start() -> (Self, String) {
        let (folder, told) = Self::set_up();
        let file = |name: &str| folder.path().join(name);
        let spawn = |name: &str, program: PathBuf, arguments: &[&str], config: &str| {
            let mut command = Command::new(program);
            command.args(arguments).arg(file(config));
            Process::spawn(name, &mut command).unwrap()
        };
        let password = fs::read_to_string(file("secrets/owner.pass")).unwrap();
        let mosquitto = program_of("mosquitto", "mosquitto").unwrap();
        let kit = Kit {
            broker: spawn("mosquitto", mosquitto, &["-c"], "mosquitto.conf"),
            media: spawn("mediamtx", find_mediamtx().unwrap(), &[], "mediamtx.yml"),
            bridge: spawn(
                "droidrelay-bridge",
                artifact("droidrelay-bridge").unwrap(),
                &["--config"],
                "bridge.toml",
            ),
            owner: Login {
                user: "owner".into(),
                password: password.trim_end().into(),
            },
            folder,
        };
        let ready = poll(DEADLINE, || {
            let all = [8443, 8883, 1936, 8322, 8888, 8889];
            let open = all.into_iter().all(listens);
            (open && kit.request("GET", "/healthz").0 == 200).then_some(())
        });
        assert!(ready.is_some(), "{}", kit.text());
        (kit, told)
    }

    fn request(&self, method: &str, path: &str) -> (u16, Value) {
        let address = ([127, 0, 0, 1], 8080).into();
        match http::request(address, method, path, &self.owner.basic()) {
            Ok(answer) => (
                answer.status,
                serde_json::from_str(&answer.body).unwrap_or_default(),
            ),
            Err(_) => (0, Value::Null),
        }
    }

    /// Asks until the robot is as wanted.
    fn wait_robot(&self, name: &str, wanted: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let found = poll(DEADLINE, || {
            last = self.request("GET", &format!("/robots/{name}")).1;
            wanted(&last).then_some(())
        });
        assert!(found.is_some(), "{name}: {last}\n{}", self.text());
    }

    /// A client with this user's password, and an id that it gives itself.
    fn subscriber(&self, user: &str, pass: &str, id: &str) -> Process {
        let file = |name: &str| self.folder.path().join(name);
        let pass = fs::read_to_string(file("secrets").join(pass)).unwrap();
        let mut command = Command::new(program_of("mosquitto_sub", "mosquitto-clients").unwrap());
        command
            .args([
                "-h", HOST, "-p", "8883", "-V", "5", "-i", id, "-c", "-x", "60", "-q", "1",
            ])
            .args([
                "-u",
                user,
                "-P",
                pass.trim_end(),
                "-t",
                "robots/robot1/stream",
                "--cafile",
            ])
            .arg(file("tls/ca.crt"));
        Process::spawn("mosquitto_sub", &mut command).unwrap()
    }

    fn robot_command(&self, words: &[&str]) -> String {
        let done = Command::new(artifact("droidrelay-bridge").unwrap())
            .arg("--config")
            .arg(self.folder.path().join("bridge.toml"))
            .arg("robot")
            .args(words)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        self.broker.signal(Signal::HUP);
        self.bridge.signal(Signal::HUP);
        String::from_utf8(done.stdout).unwrap()
    }

    /// Starts the robot by the line in what `robot add` told, with a test picture for a camera.
    fn robot(&self, name: &str, told: &str) -> Robot {
        let (_, line) = told.split_once("gst-launch-1.0 ").unwrap();
        let (line, _) = line
            .split_once(&format!("robots/{name}/rtmp.pass"))
            .unwrap_or((line, ""));
        let line: Vec<&str> = line
            .lines()
            .take_while(|line| !line.contains(" is ready."))
            .collect();
        let line = line.join(" ").replace('\\', " ");
        let (_, behind_camera) = line.split_once("mqttvalve").unwrap();
        let here = |name: &str| self.folder.path().join(name).display().to_string();
        let line = format!("{TEST_PICTURE} ! mqttvalve{behind_camera}")
            .replace("/etc/droidrelay/ca.crt", &here("tls/ca.crt"))
            .replace(
                "/etc/droidrelay/",
                &here(&format!("secrets/robots/{name}/")),
            );
        let robot = Robot::start(Runner::GstLaunch, &line).unwrap();
        self.wait_robot(name, |robot| robot["online"] == true);
        robot
    }

    fn url(&self, name: &str) -> String {
        let Login { user, password } = &self.owner;
        format!("rtsps://{user}:{password}@{HOST}:8322/robots/{name}")
    }

    fn text(&self) -> String {
        [&self.broker, &self.media, &self.bridge]
            .map(Process::text)
            .join("\n")
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect((HOST, port)).is_ok()
}

fn is(state: &'static str) -> impl Fn(&Value) -> bool {
    move |robot| robot["state"]["state"] == state
}

/// Signs for another name with the authority's key, and asks whether that is believed.
const STRANGER: &str = r#"
cd "$1/ca"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=stranger -keyout stranger.key -out stranger.csr 2>/dev/null
printf 'subjectAltName=DNS:elsewhere.example\nbasicConstraints=CA:FALSE\n' >stranger.ext
openssl x509 -req -in stranger.csr -CA ../tls/ca.crt -CAkey ca.key -CAserial ca.srl -out stranger.crt -extfile stranger.ext 2>/dev/null
openssl verify -CAfile ../tls/ca.crt ../tls/server.crt
openssl verify -CAfile ../tls/ca.crt stranger.crt
"#;

#[test]
fn setup_keeps_what_is_there_and_shows_no_secret() {
    let (folder, told) = Kit::set_up();
    let file = |name: &str| folder.path().join(name);
    let keep = [
        "passwd",
        "acl",
        "bridge.toml",
        "tls/server.crt",
        "secrets/owner.pass",
        "secrets/robots/robot1/rtmp.pass",
    ];
    let texts = || keep.map(|name| fs::read_to_string(file(name)).unwrap());
    let before = texts();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mediamtx/setup.sh");
    let again = Command::new(script)
        .arg(folder.path())
        .args([HOST, "robot1"])
        .env("BRIDGE", artifact("droidrelay-bridge").unwrap())
        .output()
        .unwrap();
    assert!(
        again.status.success(),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    assert_eq!(texts(), before);
    // Who has the key of the authority can be this server to every robot.
    for (name, mode) in [("ca", 0o700), ("ca/ca.key", 0o600)] {
        let permissions = fs::metadata(file(name)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{name}");
    }
    assert!(!file("tls/ca.key").exists());
    let authority = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(file("tls/ca.crt"))
        .output()
        .unwrap();
    let authority = String::from_utf8(authority.stdout).unwrap();
    let (_, names) = authority.split_once("Name Constraints: critical").unwrap();
    assert!(
        names.contains(&format!("IP:{HOST}/255.255.255.255")),
        "{names}"
    );
    // And so whoever has its key is this server, and nobody else.
    let stranger = Command::new("bash")
        .args(["-ec", STRANGER, "bash"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(said.contains("permitted subtree violation"), "{said}");
    assert!(!stranger.status.success());
    for wrong in ["", "..", "a/b"] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mediamtx/setup.sh");
        let mut command = Command::new(script);
        let refused = command
            .arg(folder.path())
            .args([HOST, wrong])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(64), "{wrong:?}");
    }
    for name in [
        "owner",
        "bridge-mqtt",
        "mediamtx",
        "share",
        "robots/robot1/mqtt",
        "robots/robot1/rtmp",
    ] {
        let path = file(&format!("secrets/{name}.pass"));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o007,
            0,
            "{name}"
        );
        let secret = fs::read_to_string(&path).unwrap();
        assert!(!told.contains(secret.trim_end()), "{name}");
        let mut open = ["passwd", "acl", "bridge.toml", "mosquitto.conf"].to_vec();
        if name != "mediamtx" {
            open.push("mediamtx.yml");
        }
        for other in open {
            let text = fs::read_to_string(file(other)).unwrap();
            assert!(!text.contains(secret.trim_end()), "{name} in {other}");
        }
    }
}

#[test]
fn the_kit_runs_as_it_is() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    isolated(|_| {
        connect();
        let (mut kit, told) = Kit::start();
        // Nothing that is sent as it is, and nothing of the servers among themselves.
        for closed in [1883, 1935, 8080, 8554, 9997, 9998] {
            assert!(!listens(closed), "{closed}");
        }
        let robot = kit.robot("robot1", &told);
        kit.wait_robot("robot1", is("idle"));

        // Looking starts it, over TLS all the way.
        let reader = Reader::start(&kit.url("robot1"), None).unwrap();
        reader
            .wait_frames(30)
            .unwrap_or_else(|err| panic!("{err:#}\n{}", kit.text()));
        kit.wait_robot("robot1", is("live"));
        drop(reader);
        kit.wait_robot("robot1", is("idle"));

        // So does the page, from the same sign-in.
        let browser = Browser::start().unwrap();
        let page = browser
            .open(&format!("https://{HOST}:8443/"), Screen::DESKTOP)
            .unwrap();
        page.wait("!document.getElementById('sign-in').hidden")
            .unwrap();
        page.fill("#name", &kit.owner.user).unwrap();
        page.fill("#password", &kit.owner.password).unwrap();
        page.press("Enter").unwrap();
        page.wait("!document.getElementById('stage').hidden")
            .unwrap();
        page.click("#go").unwrap();
        page.wait("document.getElementById('screen').classList.contains('shows')")
            .unwrap_or_else(|err| panic!("{err:#}\n{}", kit.text()));
        page.click("#go").unwrap();
        kit.wait_robot("robot1", is("idle"));
        assert_eq!(page.complaints(), Vec::<String>::new());

        // Each robot has its own path and its own topics.
        let second = kit.robot_command(&["add", "robot2"]);
        let thief = second.replace(
            &format!("location=rtmps://{HOST}:1936/robots/robot2"),
            &format!("location=rtmps://{HOST}:1936/robots/robot1"),
        );
        let thief = kit.robot("robot2", &thief);
        assert_eq!(
            kit.request("POST", "/robots/robot2/stream/start?lease=20")
                .0,
            200
        );
        kit.wait_robot("robot2", is("refused"));
        drop(thief);
        kit.wait_robot("robot2", |robot| robot["online"] == false);
        let honest = kit.robot("robot2", &second);
        assert_eq!(
            kit.request("POST", "/robots/robot2/stream/start?lease=20")
                .0,
            200
        );
        kit.wait_robot("robot2", is("live"));

        // A client is known by its user, whatever id it gives itself: no robot takes another
        // one's session, and two valves of one robot are two users.
        let rear = kit.robot_command(&["add", "robot1", "--valve", "rear"]);
        assert!(rear.contains("username=robot1+rear "), "{rear}");
        let thief = kit.subscriber("robot2", "robots/robot2/mqtt.pass", "robot1");
        let rear = kit.subscriber("robot1+rear", "robots/robot1/mqtt-rear.pass", "robot1");
        for (client, user) in [(&thief, "robot2"), (&rear, "robot1+rear")] {
            let connected = format!(" as {user} (");
            let seen = poll(DEADLINE, || {
                kit.broker.text().contains(&connected).then_some(())
            });
            assert!(seen.is_some(), "{}\n{}", client.text(), kit.text());
        }
        let log = kit.broker.text();
        assert!(!log.contains("Client robot1 already connected"), "{log}");
        drop((thief, rear));
        kit.wait_robot("robot1", |robot| robot["online"] == true);

        // Taken away while it streams, it gets in nowhere any more, its stream ends, and nobody
        // sees it any more.
        kit.wait_robot("robot2", |robot| robot["online"] == true);
        let pass =
            fs::read_to_string(kit.folder.path().join("secrets/robots/robot2/mqtt.pass")).unwrap();
        kit.robot_command(&["remove", "robot2"]);
        let is_gone = poll(DEADLINE, || {
            let (_, all) = kit.request("GET", "/robots");
            let all = all["robots"].as_array()?;
            let is_there = all.iter().any(|robot| robot["robot"] == "robot2");
            (!is_there).then_some(())
        });
        assert!(is_gone.is_some(), "{}", kit.text());
        drop(honest);
        let refused = poll(DEADLINE, || {
            let client = Command::new(program_of("mosquitto_pub", "mosquitto-clients").unwrap())
                .args([
                    "-h",
                    HOST,
                    "-p",
                    "8883",
                    "-u",
                    "robot2",
                    "-P",
                    pass.trim_end(),
                ])
                .args([
                    "-t",
                    "robots/robot2/stream/state",
                    "-m",
                    "x",
                    "-q",
                    "1",
                    "--cafile",
                ])
                .arg(kit.folder.path().join("tls/ca.crt"))
                .output()
                .ok()?;
            (!client.status.success()).then_some(())
        });
        assert!(refused.is_some(), "{}", kit.text());

        // What the broker has acknowledged outlives a power cut, a second later.
        kit.wait_robot("robot1", is("idle"));
        drop(robot);
        kit.wait_robot("robot1", |robot| robot["online"] == false);
        let data = kit.folder.path().join("data/mosquitto.db");
        let saved = poll(DEADLINE, || {
            let data = fs::read(&data).ok()?;
            data.windows(7).any(|part| part == b"offline").then_some(())
        });
        assert!(saved.is_some(), "{}", kit.text());
        kit.broker.kill();
        let mut command = Command::new(program_of("mosquitto", "mosquitto").unwrap());
        command
            .arg("-c")
            .arg(kit.folder.path().join("mosquitto.conf"));
        kit.broker = Process::spawn("mosquitto", &mut command).unwrap();
        kit.wait_robot("robot1", |robot| {
            robot["online"] == false && robot["state"]["state"] == "idle"
        });
    });
}
