// SPDX-License-Identifier: MPL-2.0

//! `mediamtx/` as it is: setup.sh makes a folder, the three servers run from it on their own
//! ports, in a network of the test's own, and the robot runs the line that it was given.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, Permissions},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use droidrelay_testkit::{
    artifacts::artifact,
    certs::Login,
    clients::{
        browser::{Browser, Screen},
        reader::Reader,
    },
    journal::DEADLINE,
    net::{http, netns::isolated},
    process::{Process, Signal, poll, program, program_of},
    robot::{Robot, Runner},
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
        "address add 192.0.2.77/24 dev lan",
        "address add 2001:db8::1/64 dev lan nodad",
        "link set lan up",
        "link set far up",
        "route add default dev lan",
    ] {
        let ip = program_of("ip", "iproute2").unwrap();
        let done = Command::new(ip).args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    }
}

/// Runs setup.sh for the folder: its exit code, and all that it says.
fn setup(folder: &TempDir, words: &[&str]) -> (Option<i32>, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mediamtx/setup.sh");
    let made = Command::new(script)
        .arg(folder.path())
        .args(words)
        .env("BRIDGE", artifact("droidrelay-bridge").unwrap())
        .output()
        .unwrap();
    let said = [made.stdout, made.stderr].concat();
    (made.status.code(), String::from_utf8(said).unwrap())
}

/// What setup.sh says when all goes well.
fn done(folder: &TempDir, words: &[&str]) -> String {
    let (code, said) = setup(folder, words);
    assert_eq!(code, Some(0), "{words:?}: {said}");
    said
}

/// All files of the folder, with what is in them and who may read it.
fn all_files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let data = path.symlink_metadata().unwrap();
        if data.is_dir() {
            files.extend(all_files(&path));
        } else {
            let text = fs::read(&path).unwrap();
            files.insert(path, (text, data.permissions().mode()));
        }
    }
    files
}

/// Takes `old` out of a file of the folder and puts `new` in its place.
fn edit(folder: &TempDir, name: &str, old: &str, new: &str) {
    let path = folder.path().join(name);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "{name}: {old}");
    fs::write(&path, text.replace(old, new)).unwrap();
}

/// Runs lines of a shell in the folder: whether they went well, and what they said.
fn shell(folder: &TempDir, lines: &str) -> (bool, String) {
    let ran = Command::new("bash")
        .args(["-ec", lines])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    (ran.status.success(), String::from_utf8(said).unwrap())
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
        let told = done(&folder, &[HOST, "robot1"]);
        (folder, told)
    }

    fn start() -> (Self, String) {
        let (folder, told) = Self::set_up();
        (Self::run(folder, HOST), told)
    }

    /// The three servers, from their folder, until they answer.
    fn run(folder: TempDir, host: &str) -> Self {
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
            let all = [8443, 8883, 1936, 8322];
            let open = all
                .into_iter()
                .all(|port| TcpStream::connect((host, port)).is_ok());
            (open && kit.request("GET", "/healthz").0 == 200).then_some(())
        });
        assert!(ready.is_some(), "{}", kit.text());
        kit
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
openssl x509 -req -in stranger.csr -CA ../tls/ca.crt -CAkey ca.key -set_serial 7 -out stranger.crt -extfile stranger.ext 2>/dev/null
openssl verify -CAfile ../tls/ca.crt ../tls/server.crt
openssl verify -CAfile ../tls/ca.crt stranger.crt
"#;

const APPLE: &str = r#"
set -x
cd tls
openssl verify -x509_strict -purpose sslserver -verify_ip 192.0.2.1 -CAfile ca.crt server.crt
text=$(openssl x509 -noout -text -in server.crt)
for part in 'Version: 3' 'Signature Algorithm: ecdsa-with-SHA256' 'NIST CURVE: P-256' 'IP Address:192.0.2.1' \
    'TLS Web Server Authentication' 'Digital Signature' 'CA:FALSE'; do
    grep -qF "$part" <<<"$text"
done
openssl x509 -noout -checkend $((396 * 86400)) -in server.crt
! openssl x509 -noout -checkend $((397 * 86400 + 1)) -in server.crt
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
    done(&folder, &[HOST, "robot1"]);
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
    // What Apple and browsers demand of a server's certificate: names in subjectAltName, for servers,
    // valid for 825 days at most (397 here), by SHA-256, in a chain without a fault.
    let (went_well, said) = shell(&folder, APPLE);
    assert!(went_well, "{said}");
    for wrong in ["", "..", "a/b"] {
        let (code, _) = setup(&folder, &[HOST, wrong]);
        assert_eq!(code, Some(64), "{wrong:?}");
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
fn another_name_is_given_everywhere_and_what_was_changed_by_hand_stays() {
    let (folder, _) = Kit::set_up();
    edit(
        &folder,
        "mediamtx.yml",
        "#   record: true",
        "    record: true",
    );
    edit(&folder, "mosquitto.conf", "7d", "1d");
    edit(
        &folder,
        "bridge.toml",
        "name = \"owner\"",
        "name = \"boss\"",
    );
    let edited = |name: &str, part: &str| {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.contains(part), "{name}: {text}");
    };
    let keeps = || {
        edited("mediamtx.yml", "\n    record: true");
        edited("mosquitto.conf", "persistent_client_expiration 1d");
        edited("bridge.toml", "name = \"boss\"");
        edited("bridge.toml", "# Robot robot1, by");
    };
    for _ in 0..3 {
        done(&folder, &[HOST]);
        keeps();
    }
    let said = done(&folder, &["--rename", "192.0.2.7"]);
    keeps();
    assert!(said.contains("robot1"), "{said}");
    for (path, (text, _)) in all_files(folder.path()) {
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains(HOST), "{}: {text}", path.display());
    }
    let (_, names) = shell(
        &folder,
        "openssl x509 -noout -ext subjectAltName -in tls/server.crt",
    );
    assert!(names.contains("IP Address:192.0.2.7"), "{names}");
    done(&folder, &["--check"]);
}

#[test]
fn a_mistyped_name_and_lines_that_two_have_changed_change_nothing() {
    let (folder, _) = Kit::set_up();
    let secret = fs::read_to_string(folder.path().join("secrets/mediamtx.pass")).unwrap();
    let before = all_files(folder.path());
    let refused = |words: &[&str], code: i32, why: &str| {
        let before = all_files(folder.path());
        let (found, said) = setup(&folder, words);
        assert_eq!(found, Some(code), "{words:?}: {said}");
        assert!(said.contains(why), "{words:?}: {said}");
        assert!(!said.contains(secret.trim_end()), "{said}");
        assert!(all_files(folder.path()) == before, "{words:?}");
    };
    // A second run with another name is no renaming.
    refused(&["192.0.2.11"], 65, "--rename 192.0.2.11");
    refused(
        &["--rename", "no-such-host.invalid"],
        68,
        "does not resolve",
    );
    refused(&["--rename", "-x"], 64, "not a host's name");
    assert!(all_files(folder.path()) == before);

    edit(
        &folder,
        "mediamtx.yml",
        &format!("webrtcAdditionalHosts: [\"{HOST}\"]"),
        "webrtcAdditionalHosts: [\"192.0.2.200\"]",
    );
    refused(&["--rename", "192.0.2.7"], 65, "<<<<<<< yours");
    // What the servers would not take is found before it is theirs.
    edit(&folder, "mediamtx.yml", "192.0.2.200", HOST);
    edit(
        &folder,
        "bridge.toml",
        "role = \"admin\"",
        "role = \"king\"",
    );
    refused(&["--rename", "192.0.2.7"], 65, "king");
    edit(
        &folder,
        "bridge.toml",
        "role = \"king\"",
        "role = \"admin\"",
    );
    edit(&folder, "server.conf", "PLAIN=no", "PLAIN=perhaps");
    refused(&[], 78, "PLAIN=perhaps");
    edit(&folder, "server.conf", "PLAIN=perhaps", "COLOUR=red");
    refused(&[], 78, "COLOUR=red");
}

#[test]
fn servers_that_do_not_run_with_a_new_name_get_the_old_one_back() {
    isolated(|_| {
        let (folder, _) = Kit::set_up();
        let before = all_files(folder.path());
        let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mediamtx");
        // An installation, with a systemd whose servers never answer; nobody waits for them.
        let lines = format!(
            r#"
            mkdir lib run bin
            mount --bind lib /usr/local/lib
            mount --bind run /run
            mkdir -p /run/systemd/system /usr/local/lib/droidrelay
            cp -r {kit}/. /usr/local/lib/droidrelay/
            ln -s {bridge} /usr/local/lib/droidrelay/droidrelay-bridge
            echo {folder} >/usr/local/lib/droidrelay/folder
            cat >bin/systemctl <<TEXT
            #!/bin/sh
            [ "\$1" != restart ] || grep ^HOST= {folder}/server.conf >>$PWD/restarts
            [ "\$1" != is-active ]
TEXT
            sed -i 's/^ *//' bin/systemctl
            printf '#!/bin/sh\n' >bin/sleep
            chmod 755 bin/*
            status=0
            PATH=$PWD/bin:$PATH /usr/local/lib/droidrelay/install.sh --rename 192.0.2.7 2>&1 || status=$?
            echo "status $status"
            cat restarts
            "#,
            kit = kit.display(),
            bridge = artifact("droidrelay-bridge").unwrap().display(),
            folder = folder.path().display(),
        );
        let scratch = tempfile::tempdir().unwrap();
        let (ran, said) = shell(&scratch, &lines);
        assert!(ran, "{said}");
        // What is wrong is said first.
        assert!(
            said.contains("broker       wrong  droidrelay-broker is"),
            "{said}"
        );
        assert!(
            said.contains("do not run as 192.0.2.7: all is as it was\nstatus 70\n"),
            "{said}"
        );
        // They were tried with the new name, and run again with the old one.
        let restarts = format!("HOST=192.0.2.7\nHOST={HOST}\n");
        assert!(said.ends_with(&restarts), "{said}");
        assert!(all_files(folder.path()) == before, "{said}");
    });
}

#[test]
fn a_certificate_that_the_servers_could_not_use_is_refused_before_they_see_it() {
    let (folder, _) = Kit::set_up();
    let other = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=x -addext "subjectAltName=$1" -keyout "$2.key" -out "$2.crt" 2>/dev/null
    "#;
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str| scratch.path().join(name).display().to_string();
    for (names, name) in [
        (&*format!("IP:{HOST}"), "good"),
        ("DNS:elsewhere.example", "foreign"),
        (&format!("IP:{HOST}"), "second"),
    ] {
        let made = Command::new("bash")
            .args(["-ec", other, "bash", names, name])
            .current_dir(scratch.path())
            .status()
            .unwrap();
        assert!(made.success());
    }
    // Of yesterday.
    let expired =
        "openssl x509 -in good.crt -signkey good.key -days -1 -out expired.crt 2>/dev/null";
    assert!(shell(&scratch, expired).0);
    let before = all_files(folder.path());
    for (certificate, key, why) in [
        ("foreign.crt", "foreign.key", format!("is not for {HOST}")),
        ("good.crt", "second.key", "is not the key of".into()),
        ("expired.crt", "good.key", "has expired".into()),
        ("good.key", "good.key", "no certificate in PEM".into()),
        ("good.crt", "good.crt", "no private key in PEM".into()),
    ] {
        let words = ["--certificate", &file(certificate), &file(key)];
        let (code, said) = setup(&folder, &words);
        assert_eq!(code, Some(65), "{certificate} {key}: {said}");
        assert!(said.contains(&why), "{certificate} {key}: {said}");
        assert!(all_files(folder.path()) == before, "{certificate} {key}");
    }
    done(
        &folder,
        &["--certificate", &file("good.crt"), &file("good.key")],
    );
    let own = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_eq!(own("tls/server.crt"), fs::read(file("good.crt")).unwrap());
    // Robots trust it as they trust the system's.
    assert!(!folder.path().join("tls/ca.crt").exists());
    done(&folder, &["--check"]);
    // It stays: it is not the kit's to renew.
    done(&folder, &["--renew"]);
    done(&folder, &[]);
    assert_eq!(own("tls/server.crt"), fs::read(file("good.crt")).unwrap());

    // Put there by hand, as files that no server can use.
    let mut by_hand = vec![
        ("cp \"$0/second.key\" tls/server.key", "is not the key of"),
        ("chmod 644 tls/server.key", "everybody may read it"),
    ];
    if shell(&folder, "id mosquitto && test $(id -u) = 0").0 {
        let lines = "chmod 600 tls/server.key; chown root: tls/server.key";
        by_hand.push((lines, "mosquitto cannot read"));
    }
    for (lines, why) in by_hand {
        let before = all_files(folder.path());
        let lines = lines.replace("$0", &scratch.path().display().to_string());
        let (went_well, said) = shell(&folder, &lines);
        assert!(went_well, "{said}");
        let (code, said) = setup(&folder, &["--check"]);
        assert_eq!(code, Some(78), "{lines}: {said}");
        assert!(said.contains(why), "{lines}: {said}");
        for (path, (text, mode)) in before {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// The serial number of the certificate that a server shows at this port.
fn shown(host: &str, port: u16) -> Option<String> {
    let lines = format!(
        "openssl s_client -connect {host}:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial 2>/dev/null"
    );
    let asked = Command::new("bash").args(["-c", &lines]).output().unwrap();
    let serial = String::from_utf8(asked.stdout).unwrap().trim().to_owned();
    (!serial.is_empty()).then_some(serial)
}

const TLS_PORTS: [u16; 4] = [8883, 1936, 8322, 8443];

#[test]
fn a_renewed_certificate_is_taken_by_all_three_servers_without_a_restart() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    isolated(|_| {
        connect();
        let (kit, told) = Kit::start();
        let robot = kit.robot("robot1", &told);
        let folder = &kit.folder;
        let all_show = |serial: &str| {
            kit.broker.signal(Signal::HUP);
            let taken = poll(DEADLINE, || {
                let mut shown = TLS_PORTS.into_iter().map(|port| shown(HOST, port));
                shown
                    .all(|shown| shown.as_deref() == Some(serial))
                    .then_some(())
            });
            assert!(taken.is_some(), "{serial}\n{}", kit.text());
        };
        let first = shown(HOST, 8443).unwrap();
        // It is young: nothing happens.
        done(folder, &["--renew"]);
        assert_eq!(shown(HOST, 8443).unwrap(), first);
        // Of another age: with a third of its life left, or made for longer than browsers take.
        let key = fs::read(folder.path().join("tls/server.key")).unwrap();
        for (days, of, serial) in [(1000, "older version", "07"), (1, "few days", "08")] {
            let lines = format!(
                "openssl req -new -key tls/server.key -subj /CN=x | openssl x509 -req -CA tls/ca.crt -CAkey ca/ca.key \
                 -set_serial 0x{serial} -days {days} -extfile <(echo subjectAltName=IP:{HOST}) 2>/dev/null >new.crt
                 mv new.crt tls/server.crt"
            );
            let (went_well, said) = shell(folder, &lines);
            assert!(went_well, "{of}: {said}");
            if days == 1 {
                // Young, though it will not live long.
                done(folder, &["--renew"]);
                all_show(&format!("serial={serial}"));
                continue;
            }
            all_show(&format!("serial={serial}"));
            let said = done(folder, &["--renew"]);
            assert!(said.contains("renewed"), "{of}: {said}");
            let (_, renewed) = shell(folder, "openssl x509 -noout -serial -in tls/server.crt");
            all_show(renewed.trim());
        }
        assert_eq!(fs::read(folder.path().join("tls/server.key")).unwrap(), key);
        // The robot trusts the CA, and has noticed nothing; who comes now gets in.
        kit.wait_robot("robot1", is("idle"));
        let reader = Reader::start(&kit.url("robot1"), None).unwrap();
        reader
            .wait_frames(10)
            .unwrap_or_else(|err| panic!("{err:#}\n{}", kit.text()));
        drop((reader, robot));
    });
}

/// Asks a real ACME server (pebble) for a certificate, and renews it: its hook hands it to setup.sh.
#[test]
fn a_public_certificate_comes_by_acme_and_is_renewed() {
    const HOST: &str = "cloud.example";
    let (Some(certbot), Some(pebble)) = (program("certbot"), env::var_os("PEBBLE")) else {
        eprintln!(
            "NOTE: no certbot, or $PEBBLE is not set (scripts/install-servers.sh): the test against them does not run"
        );
        return;
    };
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    isolated(move |_| {
        let scratch = tempfile::tempdir().unwrap();
        let (made, said) = shell(
            &scratch,
            r#"
            echo '127.0.0.1 localhost cloud.example' >hosts
            mount --bind hosts /etc/hosts
            openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pebble -addext subjectAltName=IP:127.0.0.1 -keyout key -out crt 2>/dev/null
            cat >config <<JSON
            {"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "certificate": "crt",
              "privateKey": "key", "httpPort": 80, "tlsPort": 443, "ocspResponderURL": ""}}
JSON
            "#,
        );
        assert!(made, "{said}");
        let mut command = Command::new(&pebble);
        command
            .args(["-config", "config"])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .current_dir(scratch.path());
        let mut authority = Process::spawn("pebble", &mut command).unwrap();
        authority
            .wait_ready(|| TcpStream::connect("127.0.0.1:14000").is_ok())
            .unwrap();
        let folder = tempfile::Builder::new().prefix("kit-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        done(&folder, &[HOST]);
        let kit = Kit::run(folder, HOST);
        let file = |name: &str| scratch.path().join(name).display().to_string();
        let options = format!(
            "--config-dir {0} --work-dir {0} --logs-dir {0}",
            file("certbot")
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mediamtx/setup.sh");
        let acme = |mut command: Command| {
            let asked = command
                .env("BRIDGE", artifact("droidrelay-bridge").unwrap())
                .env("REQUESTS_CA_BUNDLE", file("crt"))
                .output()
                .unwrap();
            let said = [asked.stdout, asked.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(asked.status.success(), "{said}\n{}", authority.text());
            kit.broker.signal(Signal::HUP);
            let (_, issuer) = shell(
                &kit.folder,
                "openssl x509 -noout -issuer -in tls/server.crt",
            );
            assert!(issuer.contains("Pebble"), "{issuer}\n{said}");
            let (_, serial) = shell(
                &kit.folder,
                "openssl x509 -noout -serial -in tls/server.crt",
            );
            let taken = poll(DEADLINE, || {
                let mut shown = TLS_PORTS.into_iter().map(|port| shown(HOST, port));
                shown
                    .all(|shown| shown.as_deref() == Some(serial.trim()))
                    .then_some(())
            });
            assert!(taken.is_some(), "{serial}\n{}", kit.text());
            serial
        };
        let mut first = Command::new(script);
        first
            .arg(kit.folder.path())
            .args(["--acme", "owner@cloud.example"])
            .env(
                "CERTBOT_OPTIONS",
                format!("{options} --server https://127.0.0.1:14000/dir"),
            );
        let first = acme(first);
        // Robots trust it as they trust the system's.
        assert!(!kit.folder.path().join("tls/ca.crt").exists());
        let mut renewal = Command::new(&certbot);
        renewal
            .args([
                "renew",
                "--force-renewal",
                "--non-interactive",
                "--no-random-sleep-on-renew",
            ])
            .args(options.split(' '));
        let second = acme(renewal);
        assert_ne!(first, second);
        done(&kit.folder, &["--check"]);
    });
}

/// A robot of the published scripts, with its passwords in its URL, as the guide's table has it.
const OLD_ROBOT: &str = r#"
import os, subprocess, sys
import paho.mqtt.client as mqtt
host, password, location = sys.argv[1:]
line = None
def message(client, data, message):
    global line
    if message.payload == b"start" and line is None:
        line = subprocess.Popen(["gst-launch-1.0", "-q"] + ("videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=15/1 ! "
            "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! flvmux streamable=true ! rtmp2sink location=" + location).split(" "))
    if message.payload == b"stop" and line is not None:
        line.kill()
        line.wait()
        line = None
client = mqtt.Client()
client.username_pw_set("robot", password)
client.on_message = message
client.on_connect = lambda client, *_: client.subscribe("robot/stream", 1)
client.on_subscribe = lambda *_: print("subscribed", flush=True)
client.connect(host, 1883)
client.loop_forever()
"#;

/// docs/2-guides/replace-python-scripts.md, step by step.
#[test]
fn python_scripts_are_replaced_as_the_guide_says() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    isolated(|_| {
        connect();
        let folder = tempfile::Builder::new().prefix("kit-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let told = done(&folder, &[HOST, "--plain"]);
        let kit = Kit::run(folder, HOST);
        let secret = |name: &str| {
            let path = kit.folder.path().join("secrets").join(name);
            fs::read_to_string(path).unwrap().trim().to_owned()
        };
        for open in [1883, 1935, 8080] {
            assert!(listens(open), "{open}");
        }
        let app = Login {
            user: "app".into(),
            password: secret("app.pass"),
        };
        let post = |path: &str, login: &Login| {
            let address = ([192, 0, 2, 1], 8080).into();
            let answer = http::request(address, "POST", path, &login.basic()).unwrap();
            (answer.status, answer.body)
        };
        let watch = || {
            let url = format!("rtsps://app:{}@{HOST}:8322/live/stream", app.password);
            let reader = Reader::start(&url, None).unwrap();
            reader
                .wait_frames(10)
                .unwrap_or_else(|err| panic!("{err:#}\n{}", kit.text()));
        };

        // Step 1: the server in place of the old one; the robot still runs the scripts.
        let location = format!(
            "rtmp://{HOST}/live/stream?user=robot&pass={}",
            secret("robots/robot/rtmp.pass")
        );
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", OLD_ROBOT, HOST])
            .args([secret("robots/robot/mqtt.pass"), location]);
        let mut scripts = Process::spawn("scripts", &mut command).unwrap();
        let subscribed = poll(DEADLINE, || {
            scripts.text().contains("subscribed").then_some(())
        });
        assert!(subscribed.is_some(), "{}\n{}", scripts.text(), kit.text());
        let (status, body) = post("/stream/start", &app);
        let published =
            |body: &str, word: &str| body.starts_with(&format!("{{\"msg\":\"Published {word}\""));
        assert!(status == 200 && published(&body, "start"), "{body}");
        watch();
        let (status, body) = post("/stream/stop", &app);
        assert!(status == 200 && published(&body, "stop"), "{body}");
        let nobody = Login {
            user: "app".into(),
            password: "guess".into(),
        };
        assert_eq!(post("/stream/start", &nobody).0, 401);
        scripts.kill();

        // Step 2: the robot's line, by what setup.sh has printed; then everything encrypted.
        let robot = kit.robot("robot", &told);
        kit.wait_robot("robot", is("idle"));
        assert_eq!(post("/stream/start", &app).0, 200);
        kit.wait_robot("robot", is("live"));
        watch();
        assert_eq!(post("/stream/stop", &app).0, 200);
        kit.wait_robot("robot", is("idle"));
        drop(robot);

        // The same line without encryption, at the topic and path of the scripts.
        let plain = told
            .replace(&format!("mqtts://{HOST}:8883"), &format!("mqtt://{HOST}"))
            .replace(&format!("rtmps://{HOST}:1936"), &format!("rtmp://{HOST}"))
            .replace(" ca-file=/etc/droidrelay/ca.crt", "");
        let robot = kit.robot("robot", &plain);
        kit.wait_robot("robot", is("idle"));
        assert_eq!(post("/stream/start", &app).0, 200);
        kit.wait_robot("robot", is("live"));
        drop(robot);

        // Step 5: when the last one is replaced, what is not encrypted is closed again.
        edit(&kit.folder, "server.conf", "PLAIN=yes", "PLAIN=no");
        let Kit {
            broker,
            media,
            bridge,
            folder,
            ..
        } = kit;
        drop((broker, media, bridge));
        done(&folder, &[]);
        let _kit = Kit::run(folder, HOST);
        for closed in [1883, 1935, 8080] {
            assert!(!listens(closed), "{closed}");
        }
    });
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
        for closed in [1883, 1935, 8080, 8554, 8888, 8889, 9997, 9998] {
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

        // So does a player of HLS, at the bridge.
        let Login { user, password } = &kit.owner;
        let url = format!("https://{user}:{password}@{HOST}:8443/robots/robot1/hls/index.m3u8");
        let reader = Reader::start(&url, None).unwrap();
        reader
            .wait_frames(30)
            .unwrap_or_else(|err| panic!("{err:#}\n{}", kit.text()));
        drop(reader);

        // So does the page, from the same sign-in, under whatever address it is opened.
        let browser = Browser::start().unwrap();
        for host in [HOST, "127.0.0.1", "[::1]", "192.0.2.77", "[2001:db8::1]"] {
            let page = browser
                .open(&format!("https://{host}:8443/"), Screen::DESKTOP)
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
                .unwrap_or_else(|err| panic!("{host}: {err:#}\n{}", kit.text()));
            page.click("#go").unwrap();
            assert_eq!(page.complaints(), Vec::<String>::new(), "{host}");
        }
        kit.wait_robot("robot1", is("idle"));

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
