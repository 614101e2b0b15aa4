// SPDX-License-Identifier: MPL-2.0

//! A device: what it is, who may open it, who has it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use droidrelay_camera::node::Node;

use super::report::{Report, forbidden, missing};
use droidrelay_wire::exit::Failure;

/// A process that has a device open.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    pub id: u32,
    pub name: String,
}

/// Who has `device` open, as far as we may see it, without ourselves.
pub fn holders(device: &Path) -> Vec<Holder> {
    let Ok(device) = device.canonicalize() else {
        return Vec::new();
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = numbered.filter(|id| *id != std::process::id());
    let has_it = |id: &u32| {
        let open = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten();
        open.flatten()
            .any(|link| fs::read_link(link.path()).is_ok_and(|to| to == device))
    };
    let named = |id| Holder {
        id,
        name: fs::read_to_string(format!("/proc/{id}/comm"))
            .map_or_else(|_| "?".into(), |name| name.trim().to_owned()),
    };
    others.filter(has_it).map(named).collect()
}

/// Names of those who have it.
pub fn named(holders: &[Holder]) -> String {
    let named = holders
        .iter()
        .map(|Holder { id, name }| format!("{name} (process {id})"));
    named.collect::<Vec<_>>().join(", ")
}

/// Whether `device` is there, what it is, and whether we may open it. Opening alone starts nothing.
pub fn look(device: &Path, name: &str, report: &Report) -> Result<Option<Node>, Failure> {
    let what = match name {
        "" => device.display().to_string(),
        name => format!("{} ({name})", device.display()),
    };
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device);
    let node = match opened {
        Ok(file) => Node::ask(&file),
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            return Err(no_right(device, what));
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let remedy = "plug the camera in, or name another device (ls /dev/video*); /dev/v4l/by-id/ has names that stay";
            return Err(missing(what, "not there", remedy));
        }
        Err(err) if err.raw_os_error() == Some(libc::EBUSY) => {
            let holders = holders(device);
            let saw = match holders.is_empty() {
                true => "busy".to_owned(),
                false => format!("busy: {} has it", named(&holders)),
            };
            let remedy = "a camera serves one program at a time: end the other, or look for it as root (fuser -v)";
            return Err(missing(what, saw, remedy));
        }
        Err(err) => return Err(missing(what, err, "look at dmesg")),
    };
    match node {
        None | Some(Node::Camera) => report.ok(&what, "may be opened"),
        Some(other) => report.ok(&what, format_args!("may be opened: {}", other.name())),
    }
    let holders = holders(device);
    if !holders.is_empty() {
        let saw = format!("{} has it open", named(&holders));
        let remedy = "a camera serves one program at a time; of a robot that is idle it is closed";
        report.note(what, saw, remedy);
    }
    Ok(node)
}

fn no_right(device: &Path, what: String) -> Failure {
    let group = fs::metadata(device)
        .ok()
        .and_then(|file| name_in("/etc/group", file.gid()))
        .unwrap_or_else(|| "video".into());
    let user =
        name_in("/etc/passwd", rustix::process::getuid().as_raw()).unwrap_or_else(|| "USER".into());
    let remedy = format!(
        "it belongs to the group {group}: usermod -aG {group} {user}, then log in again; for a service SupplementaryGroups={group}"
    );
    let saw = format!("no right to open it as {user}");
    forbidden(what, saw, &remedy)
}

/// The name that `file`, /etc/passwd or /etc/group, gives to a number.
fn name_in(file: &str, number: u32) -> Option<String> {
    let number = number.to_string();
    fs::read_to_string(file).ok()?.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    })
}

/// What libcamera takes the memory of its frames from, in `folder`: where it may open none it gives
/// no frame and no error.
pub fn heaps(folder: &Path, report: &Report) -> Result<(), Failure> {
    let what = folder.display();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let heaps: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    if heaps.is_empty() {
        return Ok(());
    }
    match heaps.iter().any(|heap| fs::File::open(heap).is_ok()) {
        true => report.ok(what, "may be opened"),
        false => {
            let remedy = "install the package droidrelay, whose udev rule gives it to the group video, then udevadm control --reload and udevadm trigger --subsystem-match=dma_heap";
            let saw = "no right to open any: libcamera will give no frames, and no error";
            return Err(forbidden(what, saw, remedy));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;
    use std::{
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    #[test]
    fn users_and_groups_are_known_by_their_numbers() {
        assert_eq!(name_in("/etc/passwd", 0).as_deref(), Some("root"));
        assert_eq!(name_in("/etc/group", 0).as_deref(), Some("root"));
        assert_eq!(name_in("/etc/group", u32::MAX - 7), None);
    }

    /// Who has it, once no more than `count` do: a child that another test has just forked has our
    /// descriptors until it executes its program.
    fn settled(device: &Path, count: usize) -> Vec<Holder> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut found = holders(device);
        while found.len() > count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            found = holders(device);
        }
        found
    }

    #[test]
    fn who_has_a_device_open_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(settled(file.path(), 0), []);
        let mut other = Command::new("sleep")
            .arg("600")
            .stdin(file.reopen().unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sleep = Holder {
            id: other.id(),
            name: "sleep".into(),
        };
        let found = settled(file.path(), 1);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(found, [sleep]);
    }

    #[test]
    fn heaps_that_nobody_may_open_are_named_and_none_are_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::default();
        let report = Report::new(&log);
        assert!(heaps(folder.path(), &report).is_ok());
        // Nobody may open a socket, root included.
        let heap = folder.path().join("linux,cma");
        let socket = std::os::unix::net::UnixListener::bind(heap).unwrap();
        let failure = heaps(folder.path(), &report).err().unwrap();
        assert!(failure.text.contains("udevadm trigger"), "{}", failure.text);
        drop(socket);
        fs::write(folder.path().join("system"), "").unwrap();
        assert!(heaps(folder.path(), &report).is_ok());
    }
}
