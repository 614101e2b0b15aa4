// SPDX-License-Identifier: MPL-2.0

//! Leases on the disk: a process that dies leaves them to the one that systemd starts in its
//! place. They lie in `$RUNTIME_DIRECTORY` (`RuntimeDirectory=`), in memory, and go with it when
//! the service is stopped; a clean end removes them.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use droidrelay_wire::boot;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde_json::json;

use super::elements::{Elements, Held, ValveLease};

const FILE: &str = "leases.json";
/// Ends that differ by less are the same: each reading takes its time.
const SAME: Duration = Duration::from_millis(500);

pub struct Keeper {
    path: PathBuf,
    boot: String,
    /// What the file says.
    kept: Held,
}

#[derive(Default, Deserialize)]
struct File {
    /// Id of the boot that the ends of leases count from.
    boot: String,
    /// On the clock that goes on while processes come and go.
    #[serde(flatten)]
    held: Held,
}

impl Keeper {
    /// None where systemd has given no folder.
    pub fn new() -> Option<Self> {
        // systemd lists several, separated by colons: the first is ours.
        let folders = env::var("RUNTIME_DIRECTORY").ok()?;
        let folder = folders.split(':').next().filter(|one| !one.is_empty())?;
        Some(Keeper {
            path: Path::new(folder).join(FILE),
            boot: boot::id(),
            kept: Held::default(),
        })
    }

    /// Gives the valves what an earlier process has left; how many leases.
    pub fn restore(&self, elements: &Elements) -> Result<usize, String> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(err) => return Err(format!("cannot read {}: {err}", self.path.display())),
        };
        let now = now();
        let mut held = parse(&text, &self.boot);
        held.leases
            .retain(|lease| lease.until.is_none_or(|until| until > now));
        elements.take_up(&held, now);
        Ok(held.leases.len())
    }

    /// Writes down who holds the valves open, where that has changed.
    pub fn keep(&mut self, elements: &Elements) -> Result<(), String> {
        let held = elements.held(now());
        if is_same(&held, &self.kept) {
            return Ok(());
        }
        // In one step: a process that dies meanwhile leaves the old or the new.
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, write(&held, &self.boot))
            .and_then(|()| fs::rename(&fresh, &self.path))
            .map_err(|err| format!("cannot write {}: {err}", self.path.display()))?;
        self.kept = held;
        Ok(())
    }

    /// A clean end: the next process begins closed.
    pub fn forget(&self) {
        // It may not be there.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same(held: &Held, kept: &Held) -> bool {
    let alike = |(a, b): (&ValveLease, &ValveLease)| {
        let same_end = match (a.until, b.until) {
            (Some(a), Some(b)) => a.abs_diff(b) < SAME,
            (a, b) => a == b,
        };
        same_end && (&a.valve, &a.id, &a.origin) == (&b.valve, &b.id, &b.origin)
    };
    let mut both = held.leases.iter().zip(&kept.leases);
    held.sessions == kept.sessions && held.leases.len() == kept.leases.len() && both.all(alike)
}

fn write(held: &Held, boot: &str) -> String {
    json!({"boot": boot, "leases": held.leases, "sessions": held.sessions}).to_string()
}

/// What is of another boot, or not written by [`write`], is nothing.
fn parse(text: &str, boot: &str) -> Held {
    let file: File = serde_json::from_str(text).unwrap_or_default();
    if file.boot == boot {
        file.held
    } else {
        Held::default()
    }
}

/// Since the machine was started, sleep included.
pub fn now() -> Duration {
    clock_gettime(ClockId::Boottime)
        .try_into()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: &str, until: Option<u64>) -> ValveLease {
        ValveLease {
            valve: "valve".into(),
            id: id.into(),
            origin: "mqtt".into(),
            until: until.map(Duration::from_secs),
        }
    }

    #[test]
    fn leases_read_back_in_the_same_boot_alone() {
        let held = Held {
            leases: vec![kept("phone-7", Some(30)), kept("*", None)],
            sessions: [("valve".to_owned(), "robot-2".to_owned())].into(),
        };
        let text = write(&held, "boot-1");
        assert_eq!(parse(&text, "boot-1"), held);
        assert_eq!(parse(&text, "boot-2"), Held::default());
        for text in [
            "",
            "[]",
            r#"{"boot":"boot-1"}"#,
            r#"{"boot":"boot-1","leases":[7]}"#,
        ] {
            assert_eq!(parse(text, "boot-1"), Held::default(), "{text}");
        }
    }

    #[test]
    fn what_differs_by_the_time_of_reading_is_no_change() {
        let held = |leases: &[&ValveLease]| Held {
            leases: leases.iter().map(|lease| (*lease).clone()).collect(),
            ..Held::default()
        };
        let (a, b) = (kept("a", Some(30)), kept("b", None));
        let mut later = a.clone();
        later.until = later.until.map(|until| until + SAME / 2);
        assert!(is_same(&held(&[&a, &b]), &held(&[&later, &b])));
        let renewed = kept("a", Some(31));
        assert!(!is_same(&held(&[&a]), &held(&[&renewed])));
        assert!(!is_same(&held(&[&a]), &held(&[&a, &b])));
        let mut other = held(&[&a]);
        other.sessions.insert("valve".into(), "robot-2".into());
        assert!(!is_same(&held(&[&a]), &other));
    }
}
