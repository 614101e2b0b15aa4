// SPDX-License-Identifier: MPL-2.0

//! What is written into /etc/droidrelay: each file whole or not at all, for root and the service's
//! group; nothing that somebody has changed is replaced without a word.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use droidrelay_wire::{
    exit::{self, Failure},
    words::enroll::{Bundle, Camera, Invitation},
};
use serde::{Deserialize, Serialize};

use crate::machine::Found;

const FOLDER: &str = "etc/droidrelay";
const GROUP: &str = "droidrelay";
const PENDING: &str = ".enroll-pending";
/// Of a robot that was set up, behind a dot and its name.
const KEPT: &str = ".enrolled";
const ENV_HEAD: &str =
    "# By `droidrelay enroll`, which renews these lines; others are yours and stay.";
/// Lines of the environment file that are renewed.
const OWN: [&str; 9] = [
    "BROKER",
    "TOPIC",
    "LOCATION",
    "MQTT_USER",
    "MQTT_PASSWORD_FILE",
    "RTMP_USER",
    "RTMP_PASSWORD_FILE",
    "CA_FILE",
    "CAMERA",
];

/// What was written for a robot, to tell later what somebody has changed.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    pub robot: String,
    /// By service, the launch file's text.
    launch: BTreeMap<String, String>,
}

impl Kept {
    pub fn new(bundle: &Bundle) -> Self {
        Kept {
            robot: bundle.robot.clone(),
            launch: BTreeMap::new(),
        }
    }

    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.launch.keys().map(String::as_str)
    }
}

/// A bundle that is fetched and not yet at work.
#[derive(Serialize, Deserialize)]
struct Pending {
    url: String,
    bundle: Bundle,
}

pub struct Folder {
    path: PathBuf,
    /// The service's group.
    group: u32,
}

impl Folder {
    pub fn open(root: &Path) -> Result<Self, Failure> {
        let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
        let group = groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(GROUP)).then(|| fields.nth(1)?.parse().ok())?
        });
        let path = root.join(FOLDER);
        match group {
            Some(group) if path.is_dir() => Ok(Folder { path, group }),
            _ => {
                let text = format!(
                    "there is no group {GROUP} or no folder {}: install the package droidrelay",
                    path.display()
                );
                Err(Failure::new(exit::UNAVAILABLE, text))
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Puts `text` in the place of the file, whole or not at all.
    fn put(&self, name: &str, text: &str, mode: u32) -> Result<(), Failure> {
        let path = self.file(name);
        let new = self.file(&format!(".{name}.new"));
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(text.as_bytes())?;
            let group = if mode & 0o040 == 0 { 0 } else { self.group };
            chown(&new, Some(0), Some(group))?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|err| {
            // The error that is told is the one before.
            let _ = fs::remove_file(&new);
            Failure::new(
                exit::UNAVAILABLE,
                format!("cannot write {}: {err}", path.display()),
            )
        })
    }

    fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        match fs::read_to_string(self.file(name)) {
            Ok(text) => Ok(Some(text)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => {
                let text = format!("cannot read {}: {err}", self.file(name).display());
                Err(Failure::new(exit::UNAVAILABLE, text))
            }
        }
    }

    /// The bundle that this very invitation gave when it was interrupted.
    pub fn pending(&self, invitation: &Invitation) -> Option<Bundle> {
        let text = self.text(PENDING).ok()??;
        let pending: Pending = serde_json::from_str(&text).ok()?;
        (pending.url == invitation.to_secret().expose()).then_some(pending.bundle)
    }

    pub fn keep_pending(&self, invitation: &Invitation, bundle: &Bundle) -> Result<(), Failure> {
        let pending = Pending {
            url: invitation.to_secret().expose().to_owned(),
            bundle: bundle.clone(),
        };
        let text = serde_json::to_string(&pending).unwrap_or_default();
        self.put(PENDING, &text, 0o600)
    }

    pub fn forget_pending(&self) {
        // What stays is of no use to anybody but root.
        let _ = fs::remove_file(self.file(PENDING));
    }

    /// Writes all files of one of the robot's services; what a person should know of it.
    pub fn write(
        &self,
        bundle: &Bundle,
        camera: &Camera,
        found: &Found,
        line: &str,
        is_chosen: bool,
        kept: &mut Kept,
    ) -> Result<Vec<String>, Failure> {
        let name = &camera.name;
        let mut notes = Vec::new();
        let secret = |end: &str| format!("{name}.{end}");
        self.put(
            &secret("mqtt.pass"),
            &format!("{}\n", camera.mqtt_password.expose()),
            0o640,
        )?;
        self.put(
            &secret("rtmp.pass"),
            &format!("{}\n", bundle.rtmp_password.expose()),
            0o640,
        )?;
        if let Some(ca) = &bundle.ca {
            self.put(&secret("ca.crt"), ca, 0o640)?;
        }
        let path = |end: &str| self.file(&secret(end)).display().to_string();
        let ca_file = bundle.ca.as_ref().map_or(String::new(), |_| path("ca.crt"));
        let values = [
            camera_value(found),
            Some(("BROKER", bundle.broker.clone())),
            Some(("TOPIC", camera.topic.clone())),
            Some(("LOCATION", camera.location.clone())),
            Some(("MQTT_USER", camera.mqtt_user.clone())),
            Some(("MQTT_PASSWORD_FILE", path("mqtt.pass"))),
            Some(("RTMP_USER", bundle.rtmp_user.clone())),
            Some(("RTMP_PASSWORD_FILE", path("rtmp.pass"))),
            Some(("CA_FILE", ca_file)),
        ];
        let values: Vec<_> = values.into_iter().flatten().collect();
        self.write_environment(name, &values, &mut notes)?;
        self.write_launch(name, line, is_chosen, kept, &mut notes)?;
        Ok(notes)
    }

    fn write_environment(
        &self,
        name: &str,
        values: &[(&str, String)],
        notes: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let file = format!("{name}.env");
        let old = self.text(&file)?.unwrap_or_default();
        let is_ours = old.lines().any(|line| line == ENV_HEAD);
        let mut lines = vec![ENV_HEAD.to_owned()];
        for (key, value) in values {
            let line = format!("{key}={value}");
            let before = old.lines().find(|line| key_of(line) == Some(key));
            match before {
                // Which camera it is, a person may know better.
                Some(before) if *key == "CAMERA" && before != line => {
                    notes.push(format!("{file}: kept {before}, not {line}"));
                    lines.push(before.to_owned());
                    continue;
                }
                Some(before) if before != line => {
                    notes.push(format!("{file}: {line}, was {before}"))
                }
                _ => {}
            }
            lines.push(line);
        }
        let is_renewed = |line: &&str| {
            **line == *ENV_HEAD
                || key_of(line).is_some_and(|key| values.iter().any(|(own, _)| *own == key))
        };
        let theirs: Vec<_> = old.lines().filter(|line| !is_renewed(line)).collect();
        if !theirs.is_empty() && !is_ours {
            notes.push(format!("{file} was there: its other lines stay"));
        }
        lines.extend(theirs.into_iter().map(Into::into));
        self.put(&file, &(lines.join("\n") + "\n"), 0o640)
    }

    fn write_launch(
        &self,
        name: &str,
        line: &str,
        is_chosen: bool,
        kept: &mut Kept,
        notes: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let file = format!("{name}.launch");
        let written = self
            .kept_of(&kept.robot)?
            .and_then(|it| it.launch.get(name).cloned());
        kept.launch.insert(name.to_owned(), line.to_owned());
        match self.text(&file)? {
            Some(old) if old == line => return Ok(()),
            // Theirs, changed or of another hand.
            Some(old) if written.as_deref() != Some(&old) => {
                if !is_chosen {
                    let new = format!("{name}.launch.new");
                    self.put(&new, line, 0o640)?;
                    notes.push(format!(
                        "{file} is yours and stays; what fits the camera is in {new}"
                    ));
                    return Ok(());
                }
                self.put(&format!("{name}.launch.old"), &old, 0o640)?;
                notes.push(format!(
                    "{file} was yours: it is {name}.launch.old now, as --line asks for another"
                ));
            }
            _ => {}
        }
        self.put(&file, line, 0o640)
    }

    /// For the next time.
    pub fn keep(&self, kept: &Kept) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(kept).unwrap_or_default();
        self.put(&format!(".{}{KEPT}", kept.robot), &text, 0o600)
    }

    fn kept_of(&self, robot: &str) -> Result<Option<Kept>, Failure> {
        let text = self.text(&format!(".{robot}{KEPT}"))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// What was written for `robot`, or for the only one that there is.
    pub fn kept(&self, robot: Option<&str>) -> Result<Kept, Failure> {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut robots: Vec<String> = files
            .filter_map(|file| {
                let name = file.file_name().into_string().ok()?;
                Some(name.strip_prefix('.')?.strip_suffix(KEPT)?.to_owned())
            })
            .collect();
        robots.sort();
        let wrong = |text: String| Failure::new(exit::USAGE, text);
        let all = robots.join(", ");
        let name = match (robot, robots.as_slice()) {
            (Some(robot), _) if robots.iter().any(|it| it == robot) => robot,
            (_, []) => return Err(wrong("no robot was enrolled here".into())),
            (Some(robot), _) => return Err(wrong(format!("{robot}: not enrolled here: {all}"))),
            (None, [only]) => only,
            (None, _) => return Err(wrong(format!("which one? {all}"))),
        };
        let kept = self.kept_of(name)?;
        kept.ok_or_else(|| {
            wrong(format!(
                "{}: not to be read",
                self.file(&format!(".{name}{KEPT}")).display()
            ))
        })
    }

    /// Removes what was written; what stays, and why.
    pub fn remove(&self, kept: &Kept) -> Result<Vec<String>, Failure> {
        let mut notes = Vec::new();
        let gone = |name: String| match fs::remove_file(self.file(&name)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                let text = format!("cannot remove {}: {err}", self.file(&name).display());
                Err(Failure::new(exit::UNAVAILABLE, text))
            }
            _ => Ok(()),
        };
        for (name, line) in &kept.launch {
            for end in ["mqtt.pass", "rtmp.pass", "ca.crt", "launch.new"] {
                gone(format!("{name}.{end}"))?;
            }
            let file = format!("{name}.launch");
            match self.text(&file)? {
                Some(text) if text != *line => notes.push(format!("{file} is yours and stays")),
                _ => gone(file)?,
            }
            let file = format!("{name}.env");
            let old = self.text(&file)?.unwrap_or_default();
            let is_ours = |line: &&str| {
                **line == *ENV_HEAD || key_of(line).is_some_and(|key| OWN.contains(&key))
            };
            let theirs: Vec<_> = old.lines().filter(|line| !is_ours(line)).collect();
            match theirs.is_empty() {
                true => gone(file)?,
                false => {
                    self.put(&file, &(theirs.join("\n") + "\n"), 0o640)?;
                    notes.push(format!("{file} has lines of yours and stays"));
                }
            }
        }
        gone(format!(".{}{KEPT}", kept.robot))?;
        self.forget_pending();
        Ok(notes)
    }
}

/// Quoted, for its blanks.
fn camera_value<'a>(found: &Found) -> Option<(&'a str, String)> {
    let source = found.source.as_ref()?;
    Some(("CAMERA", format!("\"{source}\"")))
}

/// The variable that a line of an environment file sets.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.starts_with(['#', ';'])).then_some(key)
}
