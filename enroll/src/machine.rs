// SPDX-License-Identifier: MPL-2.0

//! This machine: its cameras, the launch file that fits each, and its services, by systemctl.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use droidrelay_camera::node::{Node, formats};
use droidrelay_wire::{
    exit::{self, Failure},
    words::enroll::Bundle,
};

const LINES: &str = "usr/share/droidrelay/pipelines";
/// O_NONBLOCK: a camera that is busy elsewhere is not waited for.
const NONBLOCK: i32 = 0o4000;

/// A camera, and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<'a> {
    /// For a person.
    pub what: String,
    /// Launch file, without its ending.
    pub line: &'a str,
    /// Value of the file's variable CAMERA; None: its default.
    pub source: Option<String>,
}

/// The launch files of the package.
pub struct Lines(PathBuf);

impl Lines {
    pub fn of(root: &Path) -> Self {
        Lines(root.join(LINES))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.launch"))
    }

    /// Whether there is one of this name; the error lists all.
    pub fn check(&self, name: &str) -> Result<(), Failure> {
        if !name.contains('/') && self.path(name).is_file() {
            return Ok(());
        }
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            Some(name.strip_suffix(".launch")?.to_owned())
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        let text = match names.is_empty() {
            true => format!(
                "{}: there are no launch files: install the package droidrelay",
                self.0.display()
            ),
            false => format!(
                "--line {name}: there is none of this name: {}",
                names.join(", ")
            ),
        };
        Err(Failure::new(exit::USAGE, text))
    }

    pub fn read(&self, name: &str) -> Result<String, Failure> {
        let path = self.path(name);
        fs::read_to_string(&path).map_err(|err| {
            let text = format!("{}: {err}; install the package droidrelay", path.display());
            Failure::new(exit::UNAVAILABLE, text)
        })
    }
}

/// A node of V4L2 as the kernel describes it.
struct Device {
    number: u32,
    /// As its driver calls it.
    name: String,
    node: PathBuf,
}

fn devices(root: &Path) -> Vec<Device> {
    let class = root.join("sys/class/video4linux");
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let device = |entry: fs::DirEntry| {
        let number = entry
            .file_name()
            .to_str()?
            .strip_prefix("video")?
            .parse()
            .ok()?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        Some(Device {
            number,
            name: name.trim().to_owned(),
            node: root.join(format!("dev/video{number}")),
        })
    };
    let mut all: Vec<_> = entries.filter_map(device).collect();
    all.sort_by_key(|device| device.number);
    all
}

/// The launch file for a board's own camera, by its driver's name; empty: that is no camera.
fn line_by_driver(driver: &str, model: &str) -> Option<&'static str> {
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| driver.starts_with(prefix));
    match driver {
        _ if is(&["unicam", "rp1-cfe"]) => Some(match model.contains("Raspberry Pi 5") {
            true => "pi5",
            false => "pi4",
        }),
        _ if is(&["vi-output"]) => Some("jetson"),
        // What comes behind the camera on these boards.
        _ if is(&["bcm2835-", "pispbe", "rpi-hevc"]) => Some(""),
        _ => None,
    }
}

/// The launch file for a camera that gives these formats.
fn line_by_formats(formats: &[[u8; 4]]) -> Option<&'static str> {
    let has = |some: &[&[u8; 4]]| formats.iter().any(|format| some.contains(&format));
    match formats {
        _ if has(&[
            b"YUYV", b"UYVY", b"YVYU", b"NV12", b"YU12", b"RGB3", b"BGR3",
        ]) =>
        {
            Some("usb-camera")
        }
        _ if has(&[b"MJPG", b"JPEG"]) => Some("usb-mjpeg"),
        _ if has(&[b"H264"]) => Some("usb-h264"),
        _ => None,
    }
}

/// A name of the device that stays over a boot, where it has one that a launch file can hold.
fn lasting_name(root: &Path, device: &Device) -> String {
    let real = device.node.canonicalize().ok();
    let links = fs::read_dir(root.join("dev/v4l/by-id"))
        .into_iter()
        .flatten()
        .flatten();
    let is_plain = |path: &Path| {
        path.to_str().is_some_and(|path| {
            path.chars()
                .all(|c| c.is_ascii_alphanumeric() || "/._:-".contains(c))
        })
    };
    let mut names: Vec<PathBuf> = links
        .map(|link| link.path())
        .filter(|path| real.is_some() && path.canonicalize().ok() == real && is_plain(path))
        .collect();
    names.sort();
    let name = names.first().unwrap_or(&device.node);
    name.display().to_string()
}

fn model(root: &Path) -> String {
    fs::read_to_string(root.join("proc/device-tree/model")).unwrap_or_default()
}

/// All cameras of this machine.
pub fn cameras(root: &Path) -> Result<Vec<Found<'static>>, Failure> {
    let model = model(root);
    let mut found: Vec<Found> = Vec::new();
    for device in devices(root) {
        let line = match line_by_driver(&device.name, &model) {
            Some("") => continue,
            // One camera has many nodes there, of which none is opened by itself.
            Some(line) if found.iter().any(|it| it.line == line) => continue,
            Some(line) => {
                found.push(Found {
                    what: format!("camera at the board's own connector ({})", device.name),
                    line,
                    source: None,
                });
                continue;
            }
            None => usb_line(&device.node),
        };
        let Some(line) = line else { continue };
        let source = lasting_name(root, &device);
        found.push(Found {
            what: format!("{} at {source}", device.name),
            line,
            source: Some(format!("v4l2src device={source}")),
        });
    }
    if found.is_empty() {
        let remedy = "plug one in; for the camera of a Raspberry Pi look at its cable and at camera_auto_detect=1 in config.txt; or give --line NAME (--line test-picture needs none). `droidrelay doctor` shows more. The command is still good";
        return Err(Failure::new(
            exit::UNAVAILABLE,
            format!("no camera is found: {remedy}"),
        ));
    }
    Ok(found)
}

fn usb_line(node: &Path) -> Option<&'static str> {
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .custom_flags(NONBLOCK)
        .open(node)
        .ok()?;
    match Node::ask(&file)? {
        Node::Camera => line_by_formats(&formats(&file)),
        _ => None,
    }
}

/// Cameras for a launch file that somebody has chosen: those that it can run, or its own default.
pub fn cameras_for<'a>(root: &Path, line: &'a str) -> Vec<Found<'a>> {
    let of_v4l2 = matches!(
        line,
        "usb-camera" | "usb-mjpeg" | "usb-h264" | "vaapi" | "microphone"
    );
    let found = cameras(root).unwrap_or_default();
    let fitting = found
        .into_iter()
        .filter(|it| of_v4l2 && it.source.is_some());
    fitting.map(|it| Found { line, ..it }).collect()
}

/// A camera of this machine for each of the robot's.
pub fn assign<'a>(
    bundle: &Bundle,
    mut found: Vec<Found<'a>>,
    line: Option<&'a str>,
) -> Result<Vec<Found<'a>>, Failure> {
    let wanted = bundle.cameras.len();
    if let Some(line) = line {
        let by_default = || Found {
            what: "as the launch file says".into(),
            line,
            source: None,
        };
        while found.len() < wanted {
            found.push(by_default());
        }
    }
    if found.len() < wanted {
        let text = format!(
            "{} has {wanted} cameras at its server, and here are {}: plug the others in, and type the same command again",
            bundle.robot,
            found.len()
        );
        return Err(Failure::new(exit::UNAVAILABLE, text));
    }
    found.truncate(wanted);
    Ok(found)
}

/// The command's URL, once it is out of the arguments, which everybody on the machine can read; no
/// program that is started here gets it.
pub const URL: &str = "DROIDRELAY_ENROLL_URL";
/// For a pipeline to play.
const ACTIVE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);

fn systemctl(words: &[&str]) -> Result<String, Failure> {
    let said = |text: &str| {
        let text = format!("systemctl {}: {text}", words.join(" "));
        Failure::new(exit::UNAVAILABLE, text)
    };
    let done = Command::new("systemctl")
        .args(words)
        .env_remove(URL)
        .output();
    let done = done.map_err(|err| said(&err.to_string()))?;
    if !done.status.success() {
        return Err(said(String::from_utf8_lossy(&done.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn unit(name: &str) -> String {
    format!("droidrelay@{name}.service")
}

/// Now and after each boot, with the files as they are.
pub fn start(name: &str) -> Result<(), Failure> {
    let unit = unit(name);
    systemctl(&["enable", "--quiet", &unit])?;
    // Whether it plays is seen afterwards.
    systemctl(&["restart", "--no-block", &unit]).map(|_| ())
}

pub fn stop(name: &str) -> Result<(), Failure> {
    systemctl(&["disable", "--quiet", "--now", &unit(name)]).map(|_| ())
}

/// Waits until all of the robot's services run, and says what they say.
pub fn wait_active(bundle: &Bundle) -> Result<(), Failure> {
    let deadline = Instant::now() + ACTIVE;
    for camera in &bundle.cameras {
        let unit = unit(&camera.name);
        while systemctl(&["is-active", "--quiet", &unit]).is_err() {
            if Instant::now() >= deadline {
                let text = format!(
                    "{unit} does not run yet: `droidrelay doctor {}` says what is missing, journalctl -u {unit} what it says",
                    camera.name
                );
                return Err(Failure::new(exit::UNAVAILABLE, text));
            }
            sleep(AGAIN);
        }
        let status = systemctl(&["show", "--property=StatusText", "--value", &unit])?;
        println!("{}: runs, and says: {status}", camera.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fitting_line_follows_from_driver_board_and_formats() {
        for (driver, model, line) in [
            ("unicam-image", "Raspberry Pi 4 Model B", Some("pi4")),
            ("rp1-cfe-csi2_ch0", "Raspberry Pi 5 Model B", Some("pi5")),
            ("vi-output, imx219", "NVIDIA Jetson Nano", Some("jetson")),
            ("bcm2835-isp-capture0", "Raspberry Pi 4", Some("")),
            ("HD Webcam", "", None),
        ] {
            assert_eq!(line_by_driver(driver, model), line, "{driver}");
        }
        for (formats, line) in [
            (&[*b"MJPG", *b"YUYV"][..], Some("usb-camera")),
            (&[*b"MJPG"], Some("usb-mjpeg")),
            (&[*b"H264"], Some("usb-h264")),
            (&[*b"GREY"], None),
            (&[], None),
        ] {
            assert_eq!(line_by_formats(formats), line);
        }
    }

    #[test]
    fn a_boards_camera_is_one_however_many_nodes_it_has_and_what_is_none_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(
            cameras(root)
                .unwrap_err()
                .text
                .contains("--line test-picture")
        );
        let class = root.join("sys/class/video4linux");
        for (number, name) in [
            (0, "rp1-cfe-csi2_ch0"),
            (1, "rp1-cfe-embedded"),
            (19, "rpi-hevc-dec"),
            (20, "pispbe-input"),
            (21, "Gone"),
        ] {
            let folder = class.join(format!("video{number}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        }
        fs::create_dir_all(root.join("proc/device-tree")).unwrap();
        fs::write(
            root.join("proc/device-tree/model"),
            "Raspberry Pi 5 Model B\0",
        )
        .unwrap();
        let found = cameras(root).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, &found[0].source), ("pi5", &None));
    }
}
