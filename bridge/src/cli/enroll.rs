// SPDX-License-Identifier: MPL-2.0

//! The command by which a robot gets all that it needs of this server.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use droidrelay_wire::{
    Secret,
    words::enroll::{Bundle, Camera, Invitation, PATH},
};

use crate::{auth::Role, config::Config, enroll::invite};

/// The robot's passwords, in its folder.
pub const MQTT_PASS: &str = "mqtt.pass";
pub const RTMP_PASS: &str = "rtmp.pass";

/// How the robot gets there.
#[derive(Debug, Clone, Default, Args)]
pub struct Way {
    /// Name or address at which the robot reaches the server. Default: the host of the watch
    /// URLs in the configuration.
    #[arg(long)]
    pub host: Option<String>,
    /// Where the robots' passwords are, each in a folder of its name. Default: `secrets/robots`
    /// beside the configuration.
    #[arg(long, value_name = "FOLDER")]
    pub secrets: Option<PathBuf>,
    /// Write the bundle itself, for `droidrelay enroll --bundle FILE` on a robot that does not
    /// reach the bridge. It holds the robot's passwords.
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
}

impl Way {
    pub fn secrets(&self, config: &Path, name: &str) -> PathBuf {
        let folder = config.parent().unwrap_or(Path::new(""));
        let secrets = self.secrets.clone();
        let secrets = secrets.unwrap_or_else(|| folder.join("secrets/robots"));
        secrets.join(name)
    }
}

/// The robots as which the user `name` may speak, where that is a robot's.
pub fn streams(config: &Config, name: &str) -> Vec<String> {
    let mut users = config.users.iter();
    let user = users.find(|user| user.name == name && user.role == Role::Robot);
    user.and_then(|user| user.robots.clone())
        .unwrap_or_default()
}

/// The broker's user for the robot's stream `stream`, and the file of its password.
pub fn broker_user(name: &str, stream: &str) -> (String, String) {
    let camera = stream
        .strip_prefix(name)
        .and_then(|it| it.strip_prefix('.'));
    match camera {
        Some(camera) => (format!("{name}+{camera}"), format!("mqtt-{camera}.pass")),
        None => (name.to_owned(), MQTT_PASS.to_owned()),
    }
}

/// What the robot `name` is told, for the terminal.
pub fn told(name: &str, host: &str, way: &Way, path: &Path) -> Result<String, String> {
    // As it is now, with the robot in it.
    let config = Config::load(path)?;
    let bundle = bundle(&config, name, host, &way.secrets(path, name))?;
    if let Some(file) = &way.bundle {
        let text = serde_json::to_string_pretty(&bundle).map_err(|err| err.to_string())?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let written = options
            .open(file)
            .and_then(|mut out| out.write_all(text.as_bytes()));
        written.map_err(|err| format!("cannot write {}: {err}", file.display()))?;
        let file = file.display();
        return Ok(format!(
            "Bring {file} to the robot (it holds passwords), and type there:\n\n  \
             sudo droidrelay enroll --bundle {file}\n\n"
        ));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(|_| "this machine's clock is before 1970")?;
    let invitation = Invitation {
        url: format!("{}{PATH}", url(&config, host)?),
        fingerprint: match (&config.enroll.url, &config.tls) {
            (None, Some(tls)) => Some(tls.fingerprint()?),
            _ => None,
        },
        token: invite(&config.enroll.folder, &bundle, now.as_secs())?,
    };
    let command = invitation.to_secret();
    Ok(format!(
        "Within 15 minutes, type this on the robot, once:\n\n  sudo droidrelay enroll '{}'\n\n",
        command.expose()
    ))
}

/// The bridge's URL, without a slash at its end.
fn url(config: &Config, host: &str) -> Result<String, String> {
    if let Some(url) = &config.enroll.url {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let port = match (config.tls_listen, &config.tls) {
        (Some(listen), _) => listen.port(),
        (None, Some(_)) => config.listen.port(),
        (None, None) => {
            return Err("a robot gets its passwords by HTTPS only: set [tls], or enroll.url to that of the proxy in front, or give --bundle FILE".into());
        }
    };
    Ok(match port {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    })
}

fn bundle(config: &Config, name: &str, host: &str, secrets: &Path) -> Result<Bundle, String> {
    let streams = streams(config, name);
    if streams.is_empty() {
        return Err(format!(
            "there is no robot {name:?}: first `droidrelay-bridge robot add {name}`"
        ));
    }
    let secret = |file: &str| Secret::from_file(secrets.join(file));
    let settings = &config.enroll;
    let ca = &settings.ca_file;
    let ca = match ca.exists() {
        true => Some(
            fs::read_to_string(ca).map_err(|err| format!("cannot read {}: {err}", ca.display()))?,
        ),
        false => None,
    };
    let location = settings.location.clone();
    let location = location.unwrap_or_else(|| format!("rtmps://{host}:1936/{{path}}"));
    let camera = |stream: &String| {
        let robot = config
            .directory
            .robot(stream)
            .ok_or_else(|| format!("there is no robot {stream:?}"))?;
        let (mqtt_user, file) = broker_user(name, stream);
        Ok::<_, String>(Camera {
            name: robot.name,
            topic: robot.topic,
            location: location.replace("{path}", &robot.path),
            mqtt_user,
            mqtt_password: secret(&file)?,
        })
    };
    let broker = settings.broker.clone();
    Ok(Bundle {
        robot: name.to_owned(),
        page: url(config, host).unwrap_or_default() + "/",
        broker: broker.unwrap_or_else(|| format!("mqtts://{host}:8883")),
        ca,
        rtmp_user: name.to_owned(),
        rtmp_password: secret(RTMP_PASS)?,
        cameras: streams.iter().map(camera).collect::<Result<_, _>>()?,
    })
}

/// Each robot of the configuration, with its topic and path.
pub fn list(path: &Path) -> Result<String, String> {
    let config = Config::load(path)?;
    let users = config.users.iter().filter(|user| user.role == Role::Robot);
    let mut lines: Vec<String> = users
        .flat_map(|user| {
            let robots = user.robots.iter().flatten();
            robots
                .filter_map(|name| config.directory.robot(name))
                .map(|robot| {
                    format!(
                        "{}\ttopic {}\tpath {}\tuser {}\n",
                        robot.name, robot.topic, robot.path, user.name
                    )
                })
        })
        .collect();
    lines.sort();
    lines.dedup();
    Ok(match lines.is_empty() {
        true => "there is no robot: droidrelay-bridge robot add NAME\n".into(),
        false => lines.concat(),
    })
}
