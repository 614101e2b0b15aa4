// SPDX-License-Identifier: MPL-2.0

//! `droidrelay-bridge robot add` and `robot remove`: all that a new robot needs on the server, in one go.
//!
//! The broker's password file and access list and the bridge's own configuration lie in one
//! folder, as `mediamtx/setup.sh` makes it. Each gets its part; nothing that stands there is
//! touched, and nothing is written before all of it has been found good.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    net::Ipv6Addr,
    num::NonZeroU32,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use droidrelay_wire::{
    Secret,
    mqtt::session::{self, Event, Properties, Session},
    words::topics::{availability_topic, state_topic},
};
use ring::pbkdf2;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use super::enroll::{self, MQTT_PASS, RTMP_PASS, Way, broker_user};
use crate::{
    auth::Hash,
    config::Config,
    enroll::withdraw,
    random::{hex, random},
    robots::{Robot, all_topics, check_name, wanted_topic},
};

/// For the broker to take what is cleared.
const BROKER_PATIENCE: Duration = Duration::from_secs(4);
/// Rounds that Mosquitto's own tool takes; the passwords are random, so more would gain nothing.
const ROUNDS: NonZeroU32 = NonZeroU32::new(101).unwrap();

/// A robot's name, and where the server's files are.
#[derive(Debug, Args)]
pub struct Options {
    /// Name of the robot, and of its users at broker and media server.
    pub name: String,
    /// A camera with a stream of its own, which is NAME.CAMERA for viewers; can be given several
    /// times. Without it the robot has one stream, NAME.
    #[arg(long = "camera", value_name = "CAMERA", conflicts_with = "valve")]
    pub cameras: Vec<String>,
    /// Another valve of a robot that is there: it gets a broker user of its own, NAME+VALVE,
    /// because the broker knows each client by its user.
    #[arg(long)]
    pub valve: Option<String>,
    /// Mosquitto's password file. Default: `passwd` beside the configuration.
    #[arg(long, value_name = "FILE")]
    pub passwd: Option<PathBuf>,
    /// Mosquitto's access list. Default: `acl` beside the configuration.
    #[arg(long, value_name = "FILE")]
    pub acl: Option<PathBuf>,
    #[command(flatten)]
    pub way: Way,
}

/// The files, and what they hold.
struct Files {
    config: PathBuf,
    passwd: PathBuf,
    acl: PathBuf,
    secrets: PathBuf,
    /// Given to the robot where the server's certificate is one of its own making.
    ca: PathBuf,
}

impl Files {
    fn of(options: &Options, config: &Path) -> Self {
        let folder = config.parent().unwrap_or(Path::new(""));
        let beside = |given: &Option<PathBuf>, name: &str| {
            given.clone().unwrap_or_else(|| folder.join(name))
        };
        Files {
            config: config.to_owned(),
            passwd: beside(&options.passwd, "passwd"),
            acl: beside(&options.acl, "acl"),
            secrets: options.way.secrets(config, &options.name),
            ca: folder.join("tls/ca.crt"),
        }
    }
}

/// Adds the robot; what is to be done now, for the terminal.
pub fn add(options: &Options, config: &Path) -> Result<String, String> {
    let name = checked(&options.name)?;
    let files = Files::of(options, config);
    let before = Config::load(config)?;
    let robots = streams_of(name, &options.cameras, &before, config)?;
    let host = host_of(options.way.host.as_ref(), &before, config)?;
    let text = read(&files.config)?;
    let passwd = read(&files.passwd)?;
    let acl = read(&files.acl)?;
    if let Some(valve) = &options.valve {
        return add_valve(&robots[0], checked(valve)?, &host, &files, (&passwd, &acl));
    }
    if before.users.iter().any(|user| user.name == name)
        || passwd.lines().any(|line| is_password_of(line, name))
        || acl.lines().any(|line| is_user_line(line, name))
        || files.secrets.symlink_metadata().is_ok()
    {
        return Err(format!(
            "{name:?} is there already: `droidrelay-bridge robot enroll {name}` prints its command anew; else take another name, or first `droidrelay-bridge robot remove {name}`"
        ));
    }

    let rtmp = password()?;
    let text = joined(&text, &config_block(name, &robots, &Hash::sha256(&rtmp)));
    // What the bridge would refuse at its next start must not be written.
    Config::parse(&text, config, |name| std::env::var(name).ok())?;
    let (mut passwd, mut acl) = (passwd, acl);
    let mut secrets = vec![(RTMP_PASS.to_owned(), rtmp)];
    for robot in &robots {
        let (user, file) = broker_user(name, &robot.name);
        let mqtt = password()?;
        passwd = joined(&passwd, &format!("{user}:{}\n", mosquitto_hash(&mqtt)?));
        acl = joined(&acl, &acl_block(name, robot, &user));
        secrets.push((file, mqtt));
    }
    make_folder(&files.secrets).map_err(|err| cannot("make", &files.secrets, &err))?;
    for (file, secret) in secrets {
        let path = files.secrets.join(file);
        write_new(&path, secret.expose()).map_err(|err| cannot("write", &path, &err))?;
    }
    for (path, text) in [
        (&files.passwd, passwd),
        (&files.acl, acl),
        (&files.config, text),
    ] {
        replace(path, &text).map_err(|err| cannot("write", path, &err))?;
    }
    // It is added, whether a command can be made or not.
    let command = enroll::told(name, &host, &options.way, config)
        .unwrap_or_else(|reason| format!("There is no command for the robot: {reason}.\n"));
    let by_hand = robots.iter().map(|robot| {
        let (user, file) = broker_user(name, &robot.name);
        by_hand(name, robot, &user, &host, &files, &file)
    });
    let by_hand: String = by_hand.collect();
    Ok(format!("{name} is added.\n{RELOAD}{command}{by_hand}"))
}

/// Prints a command for a robot that is there.
pub fn enroll(name: &str, way: &Way, config: &Path) -> Result<String, String> {
    let name = checked(name)?;
    let host = host_of(way.host.as_ref(), &Config::load(config)?, config)?;
    enroll::told(name, &host, way, config)
}

/// The robot's streams: one, or one of each camera.
fn streams_of(
    name: &str,
    cameras: &[String],
    config: &Config,
    path: &Path,
) -> Result<Vec<Robot>, String> {
    let mut names: Vec<String> = Vec::new();
    for camera in cameras {
        let stream = format!("{name}.{}", checked(camera)?);
        checked(&stream)?;
        if names.contains(&stream) {
            return Err(format!(
                "--camera {camera} is given twice: take another name"
            ));
        }
        names.push(stream);
    }
    if names.is_empty() {
        names.push(name.to_owned());
    }
    let robot = |name: String| {
        config.directory.robot(&name).ok_or_else(|| {
            format!(
                "{}: there is no robot {name:?}: add a [robots] template, or a [[robot]] with this name",
                path.display()
            )
        })
    };
    names.into_iter().map(robot).collect()
}

/// Where robots find the server.
fn host_of(given: Option<&String>, config: &Config, path: &Path) -> Result<String, String> {
    let host = given.cloned().or_else(|| config.watch.host());
    let host = host.ok_or_else(|| {
        format!(
            "where does the robot find the server? Give --host NAME, or a [watch] URL in {}",
            path.display()
        )
    })?;
    check_host(&host)?;
    Ok(host)
}

/// A broker user for another valve of the robot.
fn add_valve(
    robot: &Robot,
    valve: &str,
    host: &str,
    files: &Files,
    (passwd, acl): (&str, &str),
) -> Result<String, String> {
    let name = &robot.name;
    let user = format!("{name}+{valve}");
    if !acl.lines().any(|line| line == header(name)) {
        return Err(format!(
            "there is no robot {name:?} that `robot add` made: first `droidrelay-bridge robot add {name}`"
        ));
    }
    if passwd.lines().any(|line| is_password_of(line, &user)) {
        return Err(format!("{user:?} is there already: take another name"));
    }
    let secret = password()?;
    let passwd = joined(passwd, &format!("{user}:{}\n", mosquitto_hash(&secret)?));
    let acl = joined(acl, &acl_block(name, robot, &user));
    let file = format!("mqtt-{valve}.pass");
    let path = files.secrets.join(&file);
    write_new(&path, secret.expose()).map_err(|err| cannot("write", &path, &err))?;
    for (path, text) in [(&files.passwd, passwd), (&files.acl, acl)] {
        replace(path, &text).map_err(|err| cannot("write", path, &err))?;
    }
    let by_hand = by_hand(name, robot, &user, host, files, &file);
    Ok(format!("{user} is added.\n{RELOAD}{by_hand}"))
}

/// Takes away all that [`add`] gave, and nothing else: the robot gets in nowhere any more.
pub fn remove(options: &Options, config: &Path) -> Result<String, String> {
    let name = checked(&options.name)?;
    let files = Files::of(options, config);
    // A configuration that is wrong elsewhere keeps nobody in.
    let enroll_folder = Config::load(config).ok().map(|it| it.enroll.folder);
    let marked = [&files.acl, &files.config];
    let texts = marked.map(|path| Ok::<_, String>((path, read(path)?)));
    let is_mine = |line: &str| line.trim_end() == header(name);
    let mut found = false;
    for text in texts {
        let (path, old) = text?;
        if !old.lines().any(is_mine) {
            continue;
        }
        found = true;
        let new = without(&old, is_mine, str::is_empty);
        replace(path, &new).map_err(|err| cannot("write", path, &err))?;
    }
    // Its password has no mark of its own: without those above it is somebody else's.
    if !found {
        return Err(format!(
            "{}: there is no robot {name:?} that `robot add` made",
            config.display()
        ));
    }
    let old = read(&files.passwd)?;
    let is_its = |line: &str| {
        let user = line.split(':').next().unwrap_or_default();
        user == name || user.split_once('+').is_some_and(|(robot, _)| robot == name)
    };
    let new = without(&old, is_its, |_| true);
    if new != old {
        replace(&files.passwd, &new).map_err(|err| cannot("write", &files.passwd, &err))?;
    }
    remove_secrets(&files.secrets).map_err(|err| cannot("remove", &files.secrets, &err))?;
    if let Some(folder) = enroll_folder {
        let is_camera = |robot: &str| {
            let rest = robot.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        withdraw(&folder, is_camera);
    }
    Ok(format!("{name} is removed.\n{RELOAD}"))
}

/// Removes the passwords that [`add`] wrote, and the folder where nothing else is in it.
fn remove_secrets(folder: &Path) -> io::Result<()> {
    // Never through a link.
    match folder.symlink_metadata() {
        Ok(data) if data.is_dir() => {}
        _ => return Ok(()),
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_valves = name.starts_with("mqtt-") && name.ends_with(".pass");
        if (name == MQTT_PASS || name == RTMP_PASS || is_valves) && !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        done => done,
    }
}

/// The streams of the robot `name`, as viewers know them; itself where the configuration says
/// nothing.
pub fn streams(name: &str, config: &Path) -> Vec<String> {
    let streams = Config::load(config).map(|config| enroll::streams(&config, name));
    let streams = streams.unwrap_or_default();
    match streams.is_empty() {
        true => vec![name.to_owned()],
        false => streams,
    }
}

/// Clears what the broker keeps of robots, so that nobody sees them any more; what came of it, for
/// the terminal.
pub async fn clear(names: &[String], config: &Path) -> Result<String, String> {
    let config = Config::load(config)?;
    let robots = names.iter().filter_map(|name| config.directory.robot(name));
    let topics: Vec<String> = robots.map(|robot| robot.topic).collect();
    let Some(first) = topics.first() else {
        return Ok(String::new());
    };
    let (told, mut news) = mpsc::unbounded_channel();
    let mqtt = session::Config {
        // The bridge's own, which runs, has that one.
        client_id: format!("droidrelay-bridge-{}", hex(&random::<8>()?)),
        subscriptions: vec![wanted_topic(first)],
        live: Vec::new(),
        ..config.mqtt
    };
    let session = Session::spawn(&Handle::current(), mqtt, move |event| {
        let news = match event {
            Event::Up(_) => Ok(()),
            Event::Down(fault) => Err(fault.text),
            Event::Message(_) | Event::Refused(_) => return,
        };
        // Nobody listens any more: it is over.
        let _ = told.send(news);
    });
    let cleared = async {
        match news.recv().await {
            Some(Ok(())) => {}
            Some(Err(reason)) => return Err(reason),
            None => return Err("the session has ended".into()),
        }
        for topic in topics.iter().flat_map(|topic| all_topics(topic)) {
            let retained = Properties {
                retain: true,
                ..Properties::default()
            };
            let sent = session.publish(&topic, Vec::new(), retained).await;
            sent.map_err(|err| err.to_string())?;
        }
        Ok(())
    };
    let cleared = timeout(BROKER_PATIENCE, cleared).await;
    let cleared = cleared.unwrap_or_else(|_| Err("it does not answer".into()));
    session.stop(Vec::new()).await;
    Ok(match cleared {
        Ok(()) => "What the broker kept of it is cleared.\n".into(),
        Err(reason) => format!(
            "What the broker keeps of it is not cleared ({reason}): the bridge does that when it gets SIGHUP.\n"
        ),
    })
}

/// A name that becomes part of file names, users and topics.
fn checked(name: &str) -> Result<&str, String> {
    check_name(name)
        .map(|()| name)
        .map_err(|err| format!("{name:?}: {err}"))
}

/// It stands in the robot's line, which a shell reads.
fn check_host(host: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let is_name = host.len() <= 253 && host.split('.').all(is_label) && !host.starts_with('-');
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_ipv6 = inner.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok());
    if is_name || is_ipv6 {
        return Ok(());
    }
    Err(format!(
        "--host {host:?} is neither a name nor an address: write for example cloud.example, 192.0.2.1 or [2001:db8::1]"
    ))
}

const RELOAD: &str = "\
The kit's servers take that by themselves; any others need SIGHUP each, mosquitto and droidrelay-bridge.
";

/// What the command does otherwise.
fn by_hand(name: &str, robot: &Robot, user: &str, host: &str, files: &Files, mqtt: &str) -> String {
    let Robot { topic, path, .. } = robot;
    let ca = Some(&files.ca).filter(|ca| ca.exists()).cloned();
    let trust = ca
        .as_ref()
        .map_or("", |_| " ca-file=/etc/droidrelay/ca.crt");
    let secrets = [mqtt, RTMP_PASS].map(|file| files.secrets.join(file));
    let files = secrets.into_iter().chain(ca);
    let files: String = files
        .map(|file| format!("  {}\n", file.display()))
        .collect();
    format!(
        "By hand: give the robot, in /etc/droidrelay:\n{files}\
         The robot's line, with the camera and encoder that it has (pipelines/ has more):\n\
         gst-launch-1.0 libcamerasrc ! video/x-raw,format=NV12,width=1280,height=720,framerate=30/1 ! \\\n  \
         mqttvalve broker=mqtts://{host}:8883{trust} topic={topic} username={user} \
         password-file=/etc/droidrelay/{mqtt} ! \\\n  \
         queue ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500 key-int-max=60 ! \\\n  \
         rtmpauthsink location=rtmps://{host}:1936/{path}{trust} user={name} \
         password-file=/etc/droidrelay/rtmp.pass\n"
    )
}

/// Marks what belongs to a robot, up to the next empty line.
fn header(name: &str) -> String {
    format!("# Robot {name}, by `droidrelay-bridge robot add`.")
}

fn config_block(name: &str, robots: &[Robot], hash: &Hash) -> String {
    let robots: Vec<String> = robots.iter().map(|it| format!("\"{}\"", it.name)).collect();
    format!(
        "{}\n[[user]]\nname = \"{name}\"\nrole = \"robot\"\nrobots = [{}]\npassword = \"{hash}\"\n\n",
        header(name),
        robots.join(", ")
    )
}

/// For a user of the robot `name`, at the valve of one of its streams.
fn acl_block(name: &str, robot: &Robot, user: &str) -> String {
    let topic = &robot.topic;
    format!(
        "{}\nuser {user}\ntopic read {topic}\ntopic write {}\ntopic write {}\n\n",
        header(name),
        state_topic(topic),
        availability_topic(topic)
    )
}

fn is_password_of(line: &str, name: &str) -> bool {
    line.split(':').next() == Some(name)
}

fn is_user_line(line: &str, name: &str) -> bool {
    line.trim().strip_prefix("user ").map(str::trim) == Some(name)
}

/// `block` after `text`, an empty line between them where `block` is one of several lines.
fn joined(text: &str, block: &str) -> String {
    let mut all = text.to_owned();
    if !all.is_empty() && !all.ends_with('\n') {
        all.push('\n');
    }
    if block.starts_with('#') && !all.is_empty() && !all.ends_with("\n\n") {
        all.push('\n');
    }
    all + block
}

/// `text` without the lines from each `begin` to the next `end`, both included.
fn without(text: &str, begin: impl Fn(&str) -> bool, end: impl Fn(&str) -> bool) -> String {
    let mut inside = false;
    text.split_inclusive('\n')
        .filter(|line| {
            let line = line.trim_end();
            let began = !inside && begin(line);
            let mine = inside || began;
            inside = mine && !end(line);
            !mine
        })
        .collect()
}

/// 48 hexadecimal digits: RTMP clients disagree about everything but letters and digits.
fn password() -> Result<Secret, String> {
    Ok(Secret::new(hex(&random::<24>()?)))
}

/// As `mosquitto_passwd` of Mosquitto 2 writes it: PBKDF2 with SHA-512.
fn mosquitto_hash(secret: &Secret) -> Result<String, String> {
    let (salt, mut hash) = (random::<12>()?, [0; 64]);
    let secret = secret.expose().as_bytes();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, ROUNDS, &salt, secret, &mut hash);
    let (salt, hash) = (STANDARD.encode(salt), STANDARD.encode(hash));
    Ok(format!("$7${ROUNDS}${salt}${hash}"))
}

fn cannot(what: &str, path: &Path, err: &io::Error) -> String {
    format!("cannot {what} {}: {err}", path.display())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path)
        .map_err(|err| format!("{}; mediamtx/setup.sh makes it", cannot("read", path, &err)))
}

/// A folder that only its owner enters, and those above it that are missing.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_new(path: &Path, line: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}

/// Puts `text` in the place of the file, whole or not at all, for the same owner and readers.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let old = fs::metadata(path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (old.uid(), old.gid()) {
            chown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    if written.is_err() {
        // The error that is told is the one before.
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[mqtt]\nbroker = \"mqtt://127.0.0.1:1883\"\n[robots]\n\
        topic = \"robots/{robot}/stream\"\npath = \"robots/{robot}\"\n[watch]\n\
        rtsp = \"rtsps://cloud.example:8322/{path}\"";

    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("droidrelay-{test}-{}", std::process::id());
            let folder = Folder(std::env::temp_dir().join(name));
            fs::create_dir_all(&folder.0).unwrap();
            for (name, text) in [
                ("bridge.toml", CONFIG),
                ("passwd", "bridge:$7$x\n"),
                ("acl", "user bridge\ntopic write robots/+/stream"),
            ] {
                fs::write(folder.0.join(name), text).unwrap();
            }
            folder
        }

        fn run(
            &self,
            what: fn(&Options, &Path) -> Result<String, String>,
            name: &str,
        ) -> Result<String, String> {
            self.run_with(what, name, None, None)
        }

        fn run_with(
            &self,
            what: fn(&Options, &Path) -> Result<String, String>,
            name: &str,
            valve: Option<&str>,
            host: Option<&str>,
        ) -> Result<String, String> {
            let options = Options {
                name: name.into(),
                valve: valve.map(Into::into),
                cameras: Vec::new(),
                passwd: None,
                acl: None,
                way: Way {
                    host: host.map(Into::into),
                    ..Way::default()
                },
            };
            what(&options, &self.0.join("bridge.toml"))
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }

        fn all(&self) -> [String; 3] {
            ["bridge.toml", "passwd", "acl"].map(|name| self.text(name))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_robot_gets_its_users_its_rights_and_its_line() {
        let folder = Folder::new("adds");
        fs::set_permissions(folder.0.join("acl"), Permissions::from_mode(0o640)).unwrap();
        let told = folder.run(add, "r7").unwrap();
        for part in [
            "mqtts://cloud.example:8883",
            "rtmps://cloud.example:1936/robots/r7",
            "topic=robots/r7/stream",
            "secrets/robots/r7/mqtt.pass",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        let config = Config::load(&folder.0.join("bridge.toml")).unwrap();
        let user = config.users.iter().find(|user| user.name == "r7").unwrap();
        assert_eq!(user.robots.as_deref(), Some(&["r7".to_owned()][..]));
        assert!(folder.text("passwd").starts_with("bridge:$7$x\nr7:$7$101$"));
        let acl = folder.text("acl");
        assert!(acl.contains(
            "user r7\ntopic read robots/r7/stream\ntopic write robots/r7/stream/state\n"
        ));
        let mode = |name| fs::metadata(folder.0.join(name)).unwrap().mode() & 0o777;
        assert_eq!(
            (mode("acl"), mode("secrets/robots/r7/rtmp.pass")),
            (0o640, 0o600)
        );
        for secret in ["mqtt.pass", "rtmp.pass"] {
            let secret = folder.text(&format!("secrets/robots/r7/{secret}"));
            assert_eq!(secret.trim_end().len(), 48);
            let everywhere = folder.all().concat() + &told;
            assert!(!everywhere.contains(secret.trim_end()));
        }
    }

    #[test]
    fn a_robot_that_is_removed_leaves_the_others_and_nothing_of_itself() {
        let folder = Folder::new("removes");
        folder.run(add, "r1").unwrap();
        let before = folder.all();
        folder.run(add, "r10").unwrap();
        folder.run(remove, "r10").unwrap();
        assert_eq!(folder.all(), before);
        assert!(!folder.0.join("secrets/robots/r10").exists());
        assert!(folder.run(remove, "r10").unwrap_err().contains("r10"));
    }

    #[test]
    fn whoever_is_there_already_keeps_its_place() {
        let folder = Folder::new("keeps");
        folder.run(add, "r1").unwrap();
        let before = folder.all();
        for (name, reason) in [
            ("r1", "robot remove r1"),
            ("bridge", "already"),
            ("a/b", "letters"),
            ("", "letters"),
        ] {
            let error = folder.run(add, name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
        assert_eq!(folder.all(), before);
    }

    #[test]
    fn only_what_add_has_marked_is_removed() {
        let folder = Folder::new("marks");
        let victim = folder.0.join("victim");
        fs::create_dir_all(&victim).unwrap();
        fs::write(victim.join("mqtt.pass"), "x").unwrap();
        folder.run(add, "r1").unwrap();
        let all = folder.all();
        for name in [
            "",
            ".",
            "..",
            "../..",
            "../../victim",
            "/tmp",
            "r1/..",
            "a b",
            "r1\n",
        ] {
            assert!(
                folder.run(remove, name).unwrap_err().contains("letters"),
                "{name:?}"
            );
        }
        // Other users of the broker, and folders that nobody has marked.
        fs::create_dir_all(folder.0.join("secrets/robots/r9")).unwrap();
        for name in ["bridge", "r9", "r"] {
            let error = folder.run(remove, name).unwrap_err();
            assert!(error.contains("robot add"), "{error}");
        }
        assert_eq!(folder.all(), all);
        assert!(folder.0.join("secrets/robots/r9").exists());
        // What somebody else has put into the robot's folder stays, and no link is followed.
        let secrets = folder.0.join("secrets/robots/r1");
        fs::write(secrets.join("notes.txt"), "mine").unwrap();
        std::os::unix::fs::symlink(&victim, secrets.join("mqtt-link.pass")).unwrap();
        folder.run(remove, "r1").unwrap();
        assert!(victim.join("mqtt.pass").exists());
        let left: Vec<_> = fs::read_dir(&secrets).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn another_valve_has_a_user_of_its_own_and_goes_with_its_robot() {
        let folder = Folder::new("valves");
        let before = folder.all();
        let missing = folder.run_with(add, "r1", Some("rear"), None).unwrap_err();
        assert!(missing.contains("robot add r1"), "{missing}");
        folder.run(add, "r1").unwrap();
        let told = folder.run_with(add, "r1", Some("rear"), None).unwrap();
        for part in [
            "topic=robots/r1/stream",
            "username=r1+rear",
            "user=r1 ",
            "r1/mqtt-rear.pass",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(folder.text("passwd").contains("\nr1+rear:$7$101$"));
        assert!(
            folder
                .text("acl")
                .contains("user r1+rear\ntopic read robots/r1/stream\n")
        );
        for wrong in ["rear", "", "../x"] {
            assert!(
                folder.run_with(add, "r1", Some(wrong), None).is_err(),
                "{wrong}"
            );
        }
        folder.run(add, "r10").unwrap();
        folder.run(remove, "r1").unwrap();
        assert!(folder.text("passwd").contains("r10:"));
        folder.run(remove, "r10").unwrap();
        assert_eq!(
            folder.all().map(|text| text.trim_end().to_owned()),
            before.map(|text| text.trim_end().to_owned())
        );
        assert!(!folder.0.join("secrets/robots/r1").exists());
    }

    #[test]
    fn a_host_that_a_shell_would_read_otherwise_is_refused_and_new_folders_are_closed() {
        let folder = Folder::new("hosts");
        for wrong in [
            "", "a b", "x;reboot", "$(id)", "a..b", "-x", "[::1", "::1", "a/b", "a:1",
        ] {
            let error = folder.run_with(add, "r1", None, Some(wrong)).unwrap_err();
            assert!(error.contains("--host"), "{wrong}: {error}");
        }
        for good in ["cloud.example", "192.0.2.1", "[2001:db8::1]", "my_server"] {
            let told = folder.run_with(add, "r1", None, Some(good)).unwrap();
            assert!(told.contains(&format!("mqtts://{good}:8883")), "{told}");
            for path in ["secrets", "secrets/robots", "secrets/robots/r1"] {
                let mode = fs::metadata(folder.0.join(path)).unwrap().mode() & 0o777;
                assert_eq!(mode, 0o700, "{path}");
            }
            folder.run(remove, "r1").unwrap();
        }
    }
}
