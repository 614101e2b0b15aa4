// SPDX-License-Identifier: MPL-2.0

//! From the server's command to a robot that is seen there: a real bridge with a private CA, a real
//! Mosquitto with its passwords and rights, `droidrelay enroll`, and the service's line run by
//! `droidrelay run`. A script stands for systemctl.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use droidrelay_testkit::{
    artifacts::artifact,
    certs::{Authority, Login, Validity},
    journal::DEADLINE,
    net::http,
    process::{Process, Signal, free_port, poll, program_of},
    robot::Plugins,
};
use tempfile::TempDir;

/// What `systemctl` does for a robot's service, without a systemd. It notes what everybody on the
/// machine can read of the processes.
const SYSTEMCTL: &str = r#"#!/bin/bash
ps -eo args >>"$STATE/ps"
tr '\0' '\n' </proc/self/environ | grep -c DROIDRELAY_ENROLL_URL >>"$STATE/leaked"
[ ! -e "$STATE/broken" ] || { echo "Failed to connect to bus" >&2; exit 1; }
name=${!#} name=${name#droidrelay@} name=${name%.service}
stop() {
    [ -e "$STATE/$name.pid" ] || return 0
    kill "$(cat "$STATE/$name.pid")"
    while kill -0 "$(cat "$STATE/$name.pid")" 2>/dev/null; do :; done
    rm "$STATE/$name.pid"
}
case $1 in
restart)
    stop
    (
        set -a
        . "$ROOT/etc/droidrelay/$name.env"
        exec setsid "$DROIDRELAY" run "$ROOT/etc/droidrelay/$name.launch"
    ) </dev/null >>"$STATE/$name.log" 2>&1 &
    echo $! >"$STATE/$name.pid"
    ;;
disable) stop ;;
is-active) kill -0 "$(cat "$STATE/$name.pid")" ;;
show) echo idle ;;
esac
"#;

/// The server.
struct Server {
    // Dropped in this order.
    bridge: Process,
    broker: Process,
    page: String,
    plain: u16,
    owner: Login,
    folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("enroll-")
            .tempdir()
            .unwrap();
        // The broker gives up root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let authority = Authority::new().unwrap();
        let identity = authority.server(&["127.0.0.1"], Validity::Now).unwrap();
        write("tls/ca.crt", &authority.pem());
        write("tls/server.crt", &identity.certificate);
        write("tls/server.key", &identity.key);
        fs::create_dir(folder.path().join("enroll")).unwrap();
        let [plain, tls, mqtt, mqtts] = [(); 4].map(|()| free_port().unwrap());
        let owner = Login::generate("owner").unwrap();
        let bridge_login = Login::generate("bridge").unwrap();
        write("bridge.pass", &bridge_login.password);
        let config = format!(
            "listen = \"127.0.0.1:{plain}\"\n\
             [tls]\nlisten = \"127.0.0.1:{tls}\"\ncert-file = \"tls/server.crt\"\nkey-file = \"tls/server.key\"\n\
             [mqtt]\nbroker = \"mqtt://127.0.0.1:{mqtt}\"\nusername = \"bridge\"\npassword-file = \"bridge.pass\"\n\
             [robots]\ntopic = \"robots/{{robot}}/stream\"\npath = \"robots/{{robot}}\"\n\
             [watch]\nrtsp = \"rtsps://127.0.0.1:8322/{{path}}\"\n\
             [enroll]\nbroker = \"mqtts://127.0.0.1:{mqtts}\"\nlocation = \"rtmps://127.0.0.1:1/{{path}}\"\n\
             [[user]]\nname = \"owner\"\nrole = \"admin\"\npassword = \"{}\"\n",
            hash(&owner)
        );
        let config = write("bridge.toml", &config);
        write("acl", "user bridge\ntopic readwrite robots/#\n");
        let passwd = write("passwd", &format!("bridge:{}\n", bridge_login.password));
        let tool = program_of("mosquitto_passwd", "mosquitto").unwrap();
        assert!(
            Command::new(tool)
                .arg("-U")
                .arg(&passwd)
                .status()
                .unwrap()
                .success()
        );
        let shown = folder.path().display();
        let broker = write(
            "mosquitto.conf",
            &format!(
                "user root\nallow_anonymous false\npassword_file {shown}/passwd\nacl_file {shown}/acl\n\
                 listener {mqtt} 127.0.0.1\nlistener {mqtts} 127.0.0.1\nuse_username_as_clientid true\n\
                 certfile {shown}/tls/server.crt\nkeyfile {shown}/tls/server.key\nlog_dest stderr\n"
            ),
        );
        let mosquitto = program_of("mosquitto", "mosquitto").unwrap();
        let broker =
            Process::spawn("mosquitto", Command::new(mosquitto).arg("-c").arg(broker)).unwrap();
        let bridge = artifact("droidrelay-bridge").unwrap();
        let bridge =
            Process::spawn("bridge", Command::new(bridge).arg("--config").arg(config)).unwrap();
        let server = Server {
            bridge,
            broker,
            page: format!("https://127.0.0.1:{tls}/"),
            plain,
            owner,
            folder,
        };
        let up = poll(DEADLINE, || (server.ask("/healthz").0 == 200).then_some(()));
        assert!(
            up.is_some(),
            "{}{}",
            server.bridge.text(),
            server.broker.text()
        );
        server
    }

    fn ask(&self, path: &str) -> (u16, String) {
        let address = ([127, 0, 0, 1], self.plain).into();
        let answer = http::request(address, "GET", path, &self.owner.basic());
        answer.map_or((0, String::new()), |answer| (answer.status, answer.body))
    }

    /// What `droidrelay-bridge robot` says; both servers are told.
    fn robot(&self, words: &[&str]) -> String {
        let mut command = Command::new(artifact("droidrelay-bridge").unwrap());
        let config = self.folder.path().join("bridge.toml");
        command.arg("--config").arg(config).arg("robot").args(words);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", text(&done));
        self.broker.signal(Signal::HUP);
        self.bridge.signal(Signal::HUP);
        String::from_utf8(done.stdout).unwrap()
    }

    /// The URL in the command that stands there.
    fn invite(&self, words: &[&str]) -> String {
        let told = self.robot(words);
        let (_, rest) = told.split_once("sudo droidrelay enroll '").expect(&told);
        rest.split('\'').next().unwrap().to_owned()
    }

    /// The passwords of a robot.
    fn secrets(&self, name: &str) -> Vec<String> {
        let folder = self.folder.path().join("secrets/robots").join(name);
        let files = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
        files
            .map(|it| fs::read_to_string(it).unwrap().trim().to_owned())
            .collect()
    }
}

fn hash(login: &Login) -> String {
    use std::io::Write;
    let mut command = Command::new(artifact("droidrelay-bridge").unwrap());
    command.args(["hash-password", "--sha256"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", login.password).unwrap();
    let done = child.wait_with_output().unwrap();
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr];
    both.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

/// A robot's machine, in a folder.
struct Machine {
    folder: TempDir,
    plugins: Plugins,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("machine-")
            .tempdir()
            .unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [
            "root/etc/droidrelay",
            "root/usr/share/droidrelay",
            "bin",
            "state",
        ] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("root/etc/group"), "root:x:0:\ndroidrelay:x:990:\n").unwrap();
        let lines = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines");
        symlink(lines, at("root/usr/share/droidrelay/pipelines")).unwrap();
        fs::write(at("bin/systemctl"), SYSTEMCTL).unwrap();
        fs::set_permissions(at("bin/systemctl"), Permissions::from_mode(0o755)).unwrap();
        let plugins = Plugins::new().unwrap();
        Machine { folder, plugins }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.at("root/etc/droidrelay").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// `droidrelay`, and how it ends.
    fn run(&self, words: &[&str]) -> (i32, String) {
        let path = std::env::var("PATH").unwrap();
        let mut command = self.plugins.droidrelay().unwrap();
        command
            .args(words)
            .arg("--root")
            .arg(self.at("root"))
            .env("PATH", format!("{}:{path}", self.at("bin").display()))
            .env("STATE", self.at("state"))
            .env("ROOT", self.at("root"))
            .env("DROIDRELAY", artifact("droidrelay").unwrap());
        artifact("droidrelay-enroll").unwrap();
        let done = command.output().unwrap();
        (done.status.code().unwrap_or(-1), text(&done))
    }

    fn is_running(&self, name: &str) -> bool {
        self.at("state").join(format!("{name}.pid")).exists()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.at("state"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.path().extension().is_some_and(|end| end == "pid") {
                let pid = fs::read_to_string(entry.path()).unwrap_or_default();
                let _ = Command::new("kill").arg("-KILL").arg(pid.trim()).status();
            }
        }
    }
}

#[test]
fn one_command_sets_a_robot_up_and_another_one_takes_it_away() {
    let (server, machine) = (Server::start(), Machine::new());
    let url = server.invite(&["add", "r1"]);
    let secrets = server.secrets("r1");
    let token = url.rsplit('-').next().unwrap().to_owned();
    assert!(
        server
            .robot(&["list"])
            .contains("r1\ttopic robots/r1/stream\tpath robots/r1")
    );
    let picture = ["--line", "test-picture"];
    let enroll = |url: &str, words: &[&str]| machine.run(&[&["enroll", url], words].concat());

    // What is wrong on this side is said before the command is used up.
    let (code, said) = enroll(&url, &[]);
    assert_eq!(code, 69, "{said}");
    assert!(
        said.contains("no camera is found") && said.contains("still good"),
        "{said}"
    );
    let (code, said) = enroll(&url, &["--line", "test-pictur"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("test-picture"), "{said}");
    // Another server in its place gets nothing.
    let digit = if url.contains("#0") { "#1" } else { "#0" };
    let (base, fragment) = url.split_once('#').unwrap();
    let (code, said) = enroll(&format!("{base}{digit}{}", &fragment[1..]), &picture);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("fingerprint"), "{said}");

    // Interrupted behind the fetch, the same command goes on.
    fs::write(machine.at("state/broken"), "").unwrap();
    let (code, said) = enroll(&url, &picture);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("Failed to connect to bus"), "{said}");
    fs::remove_file(machine.at("state/broken")).unwrap();
    let (code, told) = enroll(&url, &picture);
    let log = || fs::read_to_string(machine.at("state/r1.log")).unwrap_or_default();
    assert_eq!(code, 0, "{told}\n{}\n{}", log(), server.bridge.text());
    assert!(told.contains("going on"), "{told}");
    assert!(told.contains("r1: idle, camera off\n"), "{told}");
    assert!(told.contains(&format!("open {}\n", server.page)), "{told}");
    let (status, seen) = server.ask("/robots/r1");
    assert!(status == 200 && seen.contains("\"online\":true"), "{seen}");
    for (file, mode) in [
        ("r1.mqtt.pass", 0o640),
        ("r1.rtmp.pass", 0o640),
        ("r1.ca.crt", 0o640),
        ("r1.env", 0o640),
        ("r1.launch", 0o640),
        (".r1.enrolled", 0o600),
    ] {
        let data = fs::metadata(machine.file(file)).unwrap();
        assert_eq!(data.mode() & 0o7777, mode, "{file}");
        let group = if mode == 0o600 { 0 } else { 990 };
        assert_eq!((data.uid(), data.gid()), (0, group), "{file}");
    }
    assert!(!machine.file(".enroll-pending").exists());

    // Once, and then no more.
    let (code, said) = enroll(&url, &picture);
    assert_eq!(code, 77, "{said}");
    assert!(
        said.contains("used already") && said.contains("robot enroll"),
        "{said}"
    );

    // It renews, and what somebody has changed stays.
    let mut line = machine.read("r1.launch");
    line += "# mine\n";
    fs::write(machine.file("r1.launch"), &line).unwrap();
    let environment = machine.read("r1.env") + "WIDTH=320\n";
    fs::write(machine.file("r1.env"), environment).unwrap();
    fs::write(machine.file("r1.mqtt.pass"), "old\n").unwrap();
    let bundle = machine.at("bundle.json");
    server.robot(&["enroll", "r1", "--bundle", bundle.to_str().unwrap()]);
    let by_bundle = ["enroll", "--bundle", bundle.to_str().unwrap()];
    let (code, said) = machine.run(&[&by_bundle[..], &["--line", "usb-camera"]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("r1.launch was yours: it is r1.launch.old now"),
        "{said}"
    );
    assert_eq!(machine.read("r1.launch.old"), line);
    let new = server.invite(&["enroll", "r1"]);
    let (code, told) = enroll(&new, &picture);
    assert_eq!(code, 0, "{told}\n{}", log());
    assert!(secrets.contains(&machine.read("r1.mqtt.pass").trim().to_owned()));
    assert!(machine.read("r1.env").contains("\nWIDTH=320\n"));

    // Nobody else on this machine, and no log, has seen a secret.
    let processes = fs::read_to_string(machine.at("state/ps")).unwrap();
    assert!(processes.contains("droidrelay-enroll"), "{processes}");
    for secret in secrets.iter().chain([&token]) {
        for text in [
            &processes,
            &told,
            &log(),
            &server.bridge.text(),
            &server.broker.text(),
        ] {
            assert!(!text.contains(secret.as_str()), "{secret} in {text}");
        }
    }
    let leaked = fs::read_to_string(machine.at("state/leaked")).unwrap();
    assert!(leaked.lines().all(|count| count == "0"), "{leaked}");

    fs::write(machine.file("r1.launch"), &line).unwrap();
    let (code, said) = machine.run(&["leave"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("r1.launch is yours and stays"), "{said}");
    assert!(
        said.contains("r1.env has lines of yours and stays"),
        "{said}"
    );
    assert!(!machine.is_running("r1"));
    let left = fs::read_dir(machine.file("")).unwrap();
    let mut left: Vec<_> = left.map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["r1.env", "r1.launch", "r1.launch.old"]);
    let (code, said) = machine.run(&["leave"]);
    assert_eq!(code, 64, "{said}");

    // What waits for a robot that is removed goes with it.
    let waiting = server.invite(&["enroll", "r1"]);
    server.robot(&["remove", "r1"]);
    let (code, said) = enroll(&waiting, &picture);
    assert_eq!(code, 77, "{said}");
    assert!(said.contains("not known"), "{said}");
}

#[test]
fn each_camera_of_a_robot_is_a_stream_and_a_service_of_its_own() {
    let (server, machine) = (Server::start(), Machine::new());
    let url = server.invite(&["add", "r2", "--camera", "front", "--camera", "rear"]);
    let (code, told) = machine.run(&["enroll", &url, "--line", "test-picture"]);
    assert_eq!(code, 0, "{told}\n{}", server.bridge.text());
    for camera in ["r2.front", "r2.rear"] {
        assert!(
            told.contains(&format!("{camera}: idle, camera off")),
            "{told}"
        );
        assert!(machine.is_running(camera));
        let (_, seen) = server.ask(&format!("/robots/{camera}"));
        assert!(seen.contains("\"online\":true"), "{seen}");
    }
    assert!(
        machine
            .read("r2.front.env")
            .contains("TOPIC=robots/r2.front/stream\n")
    );
    assert!(
        machine
            .read("r2.rear.env")
            .contains("MQTT_USER=r2+rear\nMQTT_PASSWORD_FILE=")
    );
    assert!(machine.read("r2.rear.env").contains("RTMP_USER=r2\n"));
    let (code, said) = machine.run(&["leave", "r2"]);
    assert_eq!(code, 0, "{said}");
    assert!(!machine.is_running("r2.front") && !machine.is_running("r2.rear"));
    assert_eq!(fs::read_dir(machine.file("")).unwrap().count(), 0);
    server.robot(&["remove", "r2"]);
    assert!(!server.robot(&["list"]).contains("r2"));
}
