// SPDX-License-Identifier: MPL-2.0

//! The process that takes this one's place, by execve(2): with the same number, arguments and
//! environment, so that systemd sees no end. What an element has left open, a camera for example, is
//! closed by the kernel then.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::{
        fd::RawFd,
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::PathBuf,
    process::{self, Command},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{elements::Held, statistics::Counters};

/// Successors are no closer than this.
const INTERVAL: Duration = Duration::from_secs(60);
const VARIABLE: &str = "DROIDRELAY_HANDED_OVER";
/// As the kernel marks a program whose file was replaced.
const DELETED: &[u8] = b" (deleted)";

/// What the successor goes on with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    /// A program that one of our elements runs finds it in its environment, too.
    process: u32,
    /// On the clock that goes on while processes come and go.
    pub at: Duration,
    pub held: Held,
    pub counters: Counters,
}

impl Handover {
    pub fn new(at: Duration, held: Held, counters: Counters) -> Self {
        Handover {
            process: process::id(),
            at,
            held,
            counters,
        }
    }

    /// What the process before this one has left, if there was one.
    pub fn take() -> Option<Self> {
        parse(&env::var(VARIABLE).ok()?, process::id())
    }

    /// How long the next successor has to wait at `now`.
    pub fn wait(before: Option<&Handover>, now: Duration) -> Duration {
        let earliest = before.map_or(Duration::ZERO, |before| before.at + INTERVAL);
        earliest.saturating_sub(now)
    }
}

fn parse(text: &str, process: u32) -> Option<Handover> {
    let handover: Handover = serde_json::from_str(text).ok()?;
    (handover.process == process).then_some(handover)
}

/// Descriptors that were there before anything was opened: they are the successor's, too.
#[derive(Debug, Clone, Default)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// To be called before anything is opened.
    pub fn look() -> Self {
        Inherited(descriptors())
    }

    /// Runs this program anew in place of this process; comes back with an error alone.
    pub fn succeed(&self, handover: &Handover) -> io::Error {
        for descriptor in descriptors() {
            if !self.0.contains(&descriptor) {
                // SAFETY: sets a flag; one that was closed meanwhile is an error that says so.
                unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
        }
        let text = match serde_json::to_string(handover) {
            Ok(text) => text,
            Err(error) => return error.into(),
        };
        let mut arguments = env::args_os();
        let mut command = match env::current_exe() {
            Ok(path) => Command::new(in_place(path)),
            Err(error) => return error,
        };
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).env(VARIABLE, text).exec()
    }
}

/// Where the program is, also after an upgrade.
fn in_place(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(DELETED) {
        Some(path) => OsStr::from_bytes(path).into(),
        None => path,
    }
}

/// Those of this process beyond stdin, stdout and stderr.
fn descriptors() -> Vec<RawFd> {
    let all = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let number = |entry: io::Result<fs::DirEntry>| {
        let number: RawFd = entry.ok()?.file_name().to_str()?.parse().ok()?;
        (number > libc::STDERR_FILENO).then_some(number)
    };
    let found: Vec<RawFd> = all.filter_map(number).collect();
    // The one by which they were read is closed by now.
    // SAFETY: asks for a flag.
    let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    found.into_iter().filter(is_open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::elements::ValveLease;

    #[test]
    fn what_is_handed_over_is_for_the_successor_alone() {
        let lease = ValveLease {
            valve: "valve".into(),
            id: "phone-7".into(),
            origin: "mqtt".into(),
            until: Some(Duration::from_secs(30)),
        };
        let held = Held {
            leases: vec![lease],
            sessions: [("valve".to_owned(), "robot-2".to_owned())].into(),
        };
        let counters = Counters {
            starts: 7,
            ..Counters::default()
        };
        let handover = Handover::new(Duration::from_secs(9), held, counters);
        let text = serde_json::to_string(&handover).unwrap();
        let ours = process::id();
        assert_eq!(parse(&text, ours), Some(handover));
        assert_eq!(parse(&text, ours + 1), None, "a program that we run");
        assert_eq!(parse("", ours), None);
    }

    #[test]
    fn successors_are_a_minute_apart() {
        let at = Duration::from_secs;
        assert_eq!(Handover::wait(None, at(1000)), Duration::ZERO);
        let before = Handover::new(at(1000), Held::default(), Counters::default());
        assert_eq!(Handover::wait(Some(&before), at(1001)), at(59));
        assert_eq!(Handover::wait(Some(&before), at(1060)), Duration::ZERO);
        assert_eq!(Handover::wait(Some(&before), at(9000)), Duration::ZERO);
    }

    #[test]
    fn a_program_that_was_upgraded_is_where_it_was() {
        let path = |text: &str| in_place(text.into());
        assert_eq!(path("/usr/bin/x (deleted)"), PathBuf::from("/usr/bin/x"));
        assert_eq!(path("/usr/bin/x"), PathBuf::from("/usr/bin/x"));
    }

    #[test]
    fn descriptors_are_those_that_are_open() {
        use std::os::fd::AsRawFd;
        let file = fs::File::open("/dev/null").unwrap();
        assert!(descriptors().contains(&file.as_raw_fd()));
        assert!(descriptors().iter().all(|number| *number > 2));
    }
}
