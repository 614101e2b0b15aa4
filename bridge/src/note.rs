// SPDX-License-Identifier: MPL-2.0

//! The retained note of what is wanted of a robot that polls, and how it is read beside the
//! commands that were heard.

use std::{collections::HashSet, time::Duration};

use droidrelay_wire::{Command, words::gate::ANYBODY};
use serde::{Deserialize, Serialize};

use crate::clock::Now;

/// Ends of one lease by two bridges' clocks.
const SAME: Duration = Duration::from_secs(1);

/// The retained payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Who wrote it.
    pub by: String,
    pub version: u64,
    pub keyframe: u64,
    leases: Vec<NotedLease>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NotedLease {
    id: String,
    /// Milliseconds since 1970; null: until a stop.
    until: Option<u64>,
}

/// Whose lease, and until when; None: until a stop.
pub type HeldLease = (String, Option<Duration>);

impl Note {
    pub fn new(by: String, version: u64, keyframe: u64, leases: Vec<HeldLease>, now: Now) -> Self {
        let noted = |(id, until): HeldLease| NotedLease {
            id,
            until: until.map(|until| now.wall_millis(until)),
        };
        Note {
            by,
            version,
            keyframe,
            leases: leases.into_iter().map(noted).collect(),
        }
    }

    /// The retained payload, of at most `limit` bytes where that can be done: of more leases those
    /// that end first are not noted, which ends them should all bridges end.
    pub fn to_payload(&self, limit: usize) -> Vec<u8> {
        let write = |note: &Note| serde_json::to_vec(note).unwrap_or_default();
        let whole = write(self);
        let mut excess = whole.len().saturating_sub(limit);
        if excess == 0 {
            return whole;
        }
        let mut note = self.clone();
        note.leases
            .sort_by_key(|lease| std::cmp::Reverse(lease.until.unwrap_or(u64::MAX)));
        while excess > 0
            && let Some(lease) = note.leases.pop()
        {
            let bytes = serde_json::to_string(&lease).map_or(0, |text| text.len() + 1);
            excess = excess.saturating_sub(bytes);
        }
        write(&note)
    }

    /// What holds by this note and what is `known`: the note's leases, but for those that a
    /// command has decided.
    pub fn leases(&self, known: &[HeldLease], decided: &Decided, now: Now) -> Vec<HeldLease> {
        let told = self.leases.iter().map(|lease| {
            let until = lease.until.map(|until| now.monotonic_of(until));
            (lease.id.clone(), until)
        });
        let lives = |(id, until): &HeldLease| {
            until.is_none_or(|until| until > now.monotonic) && !decided.covers(id)
        };
        // Both have heard the same command, each at its own time.
        let same = |told: HeldLease| {
            let is_it = |known: &&HeldLease| {
                let apart = known.1.zip(told.1).map(|(one, other)| one.abs_diff(other));
                known.0 == told.0 && apart.is_some_and(|apart| apart < SAME)
            };
            known.iter().find(is_it).cloned().unwrap_or(told)
        };
        let kept = known.iter().filter(|(id, _)| decided.covers(id)).cloned();
        told.filter(lives).map(same).chain(kept).collect()
    }
}

/// Whose leases commands have decided: a note that comes later may have been written before.
#[derive(Debug, Clone, Default)]
pub struct Decided {
    everybody: bool,
    ids: HashSet<String>,
}

impl Decided {
    pub fn add(&mut self, command: &Command) {
        match command {
            Command::Start { id, .. } => {
                let id = id.as_deref().unwrap_or(ANYBODY);
                self.ids.insert(id.to_owned());
            }
            Command::Stop { id: Some(id) } => {
                self.ids.insert(id.clone());
            }
            Command::Stop { id: None } => self.everybody = true,
            Command::Keyframe => {}
        }
    }

    fn covers(&self, id: &str) -> bool {
        self.everybody || self.ids.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn of_more_leases_than_fit_those_that_hold_longest_are_noted() {
        let now = Clock::default().now();
        let lease = |n: u64| {
            let until = (n > 0).then(|| now.monotonic + Duration::from_secs(n));
            (format!("{n}{}", "\"".repeat(100)), until)
        };
        let note = Note::new("b".into(), 1, 0, (0..1000).map(lease).collect(), now);
        let payload = note.to_payload(8192);
        assert!(payload.len() <= 8192, "{} bytes", payload.len());
        let read: Note = serde_json::from_slice(&payload).unwrap();
        assert!(read.leases.len() > 20);
        assert_eq!(read.leases[0].until, None);
        assert!(read.leases[1].id.starts_with("999"));
        assert_eq!(
            note.to_payload(usize::MAX),
            serde_json::to_vec(&note).unwrap()
        );
    }
}
