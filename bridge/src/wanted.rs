// SPDX-License-Identifier: MPL-2.0

//! What is wanted of each robot, derived on the broker: every bridge hears every command and
//! decides as a valve does. Robots that poll are told; a retained note beside the command topic
//! carries it over a bridge's restart.
//!
//! Pure but for the mutex: `now` is an argument, on this process's monotonic clock.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use droidrelay_wire::{
    Command,
    words::{
        gate::{Gate, Origin, Outcome},
        poll::{Answer, Lease, Wanted},
    },
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    clock::{Now, millis},
    note::{Decided, HeldLease, Note},
    presence::{Presence, Speaker},
    view::Availability,
    watcher::Watcher,
};

/// A robot that is offline for so long has closed, as a valve does by default: nobody could have
/// stopped it.
const OFFLINE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the connection to the broker has been up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionAge {
    /// Commands of the time before it may only be known from notes.
    Young,
    Settled,
}

/// How a note came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Kept by the broker: written at a time that nobody knows.
    Retained,
    /// Written just now.
    Live,
}

/// All robots of which something is wanted, and all that poll.
pub struct LeaseTable {
    /// This bridge, in notes.
    id: String,
    inner: Mutex<Inner>,
    /// Something is to be done sooner than was known.
    pub wake: Notify,
}

#[derive(Default)]
struct Inner {
    robots: HashMap<String, Entry>,
    deadlines: BTreeSet<(Duration, String)>,
    pending: Pending,
    /// Version of all robots that have no entry: not below any that an entry had.
    version: u64,
    /// What was commanded since the connection began, while it was young.
    decided: HashMap<String, Decided>,
}

/// What the broker is to be told of robots that poll here.
#[derive(Default)]
struct Pending {
    /// Robots whose note is to be written.
    notes: HashSet<String>,
    /// Robots that another bridge has said to be offline.
    online: HashSet<String>,
}

#[derive(Default)]
struct Entry {
    gate: Gate,
    keyframe: u64,
    version: watch::Sender<u64>,
    presence: Option<Presence>,
    /// Where it stands in the deadlines.
    scheduled: Option<Duration>,
}

impl Entry {
    fn new(version: u64) -> Self {
        Entry {
            version: watch::Sender::new(version),
            ..Entry::default()
        }
    }

    fn is_useless(&self) -> bool {
        !self.gate.is_open() && self.presence.is_none() && self.version.receiver_count() == 0
    }

    fn polls_here(&self) -> bool {
        self.presence.is_some_and(|presence| presence.here)
    }

    fn version(&self) -> u64 {
        *self.version.borrow()
    }

    fn leases(&self) -> Vec<HeldLease> {
        let leases = self.gate.leases();
        leases.map(|(id, until)| (id.to_owned(), until)).collect()
    }

    fn next_deadline(&self) -> Option<Duration> {
        let gate = self.gate.next_deadline(OFFLINE_TIMEOUT);
        let presence = self.presence.map(|presence| presence.until);
        gate.into_iter().chain(presence).min()
    }

    /// As long as a robot is not known to be offline, its viewers can stop it.
    fn set_link(&mut self, availability: Availability, now: Now) {
        let is_there = availability != Availability::Offline;
        self.gate.link(is_there, now.monotonic);
    }

    fn answer(&self, name: &str, now: Now) -> Answer {
        let left = |until: Duration| {
            (until.saturating_sub(now.monotonic).as_secs_f64() * 1e3).round() / 1e3
        };
        let leases = self.gate.leases();
        let leases = leases.map(|(holder, until)| Lease::of(holder, until.map(left)));
        Answer {
            robot: name.to_owned(),
            version: self.version(),
            keyframe: self.keyframe,
            wanted: Wanted {
                open: self.gate.is_open(),
                leases: leases.collect(),
            },
            online: false,
            state: None,
        }
    }
}

impl LeaseTable {
    /// `id` names this bridge in notes. Versions are like times (`wall`, since 1970), so that
    /// those of another life of this bridge do not come again.
    pub fn new(id: String, wall: Duration) -> Self {
        let inner = Inner {
            version: millis(wall),
            ..Inner::default()
        };
        LeaseTable {
            id,
            inner: Mutex::new(inner),
            wake: Notify::new(),
        }
    }

    /// The one way to change a robot's entry. What follows from the change follows here: a new
    /// version, a note, the next deadline; and an entry that has become useless is dropped.
    fn update<T>(&self, name: &str, change: impl FnOnce(&mut Entry, &mut Pending) -> T) -> T {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let entry = inner
            .robots
            .entry(name.to_owned())
            .or_insert_with(|| Entry::new(inner.version));
        let pending = |pending: &Pending| (pending.notes.len(), pending.online.len());
        let first = inner.deadlines.first().cloned();
        let waiting = pending(&inner.pending);
        let (before, version) = ((entry.leases(), entry.keyframe), entry.version());
        let result = change(entry, &mut inner.pending);
        if before != (entry.leases(), entry.keyframe) {
            if entry.version() == version {
                entry.version.send_replace(version + 1);
            }
            if entry.polls_here() {
                inner.pending.notes.insert(name.to_owned());
            }
        }
        let deadline = entry.next_deadline();
        if deadline != entry.scheduled {
            if let Some(old) = entry.scheduled {
                inner.deadlines.remove(&(old, name.to_owned()));
            }
            if let Some(new) = deadline {
                inner.deadlines.insert((new, name.to_owned()));
            }
            entry.scheduled = deadline;
        }
        if entry.is_useless() {
            inner.version = inner.version.max(entry.version());
            inner.robots.remove(name);
        }
        let is_more =
            inner.deadlines.first() != first.as_ref() || pending(&inner.pending) != waiting;
        drop(guard);
        if is_more {
            self.wake.notify_one();
        }
        result
    }

    /// Looks at a robot's entry, where there is one.
    fn look<T>(&self, name: &str, ask: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.inner.lock().robots.get(name).map(ask)
    }

    /// A connection begins: commands may have been missed.
    pub fn connected(&self) {
        self.inner.lock().decided.clear();
    }

    /// Obeys a command that came on the robot's command topic. In a young connection, notes that
    /// follow do not change what it has decided.
    pub fn obey(
        &self,
        name: &str,
        command: &Command,
        availability: Availability,
        age: ConnectionAge,
        now: Now,
    ) {
        if age == ConnectionAge::Young {
            let decided = &mut self.inner.lock().decided;
            decided.entry(name.to_owned()).or_default().add(command);
        }
        self.update(name, |entry, _| {
            let outcome = entry
                .gate
                .apply(command, Origin::Mqtt, Duration::ZERO, now.monotonic);
            if outcome == Outcome::Keyframe {
                entry.keyframe += 1;
            }
            // A start is good for a while, should the robot come back.
            entry.gate.link(true, now.monotonic);
            entry.set_link(availability, now);
        });
    }

    /// The robot's availability topic says so.
    pub fn told(&self, name: &str, availability: Availability, by: Speaker, now: Now) {
        self.update(name, |entry, pending| {
            entry.set_link(availability, now);
            entry.presence = Presence::told(entry.presence, availability, by, now.monotonic);
            // Contradicted by a bridge that has not heard of it: to be said anew.
            if entry.polls_here() && availability != Availability::Online {
                pending.online.insert(name.to_owned());
            }
        });
    }

    /// The robot polls, or reports its state, and may be silent for `wait` from now on. Returns
    /// whether its being online is to be announced.
    pub fn polled(&self, name: &str, wait: Duration, now: Now) -> bool {
        self.update(name, |entry, pending| {
            if !entry.polls_here() {
                pending.notes.insert(name.to_owned());
            }
            let presence = Presence::polled(entry.presence, wait, now.monotonic);
            entry.presence = Some(presence);
            entry.set_link(Availability::Online, now);
            presence.is_to_be_announced(now.monotonic)
        })
    }

    /// It is known as a robot that polls.
    pub fn polls(&self, name: &str) -> bool {
        self.look(name, |entry| entry.presence.is_some()) == Some(true)
    }

    /// Somebody holds a lease, as far as is known here.
    pub fn is_open(&self, name: &str) -> bool {
        self.look(name, |entry| entry.gate.is_open()) == Some(true)
    }

    /// Takes a note. Where it was retained, or the connection is young and commands may have been
    /// missed, its leases are what holds, but for those that a command decided which was not
    /// missed; else only the numbers count, so that bridges side by side give the same answers.
    pub fn read(&self, name: &str, note: &Note, delivery: Delivery, age: ConnectionAge, now: Now) {
        if delivery == Delivery::Live && note.by == self.id {
            return;
        }
        let is_decisive = delivery == Delivery::Retained || age == ConnectionAge::Young;
        let decided = self.inner.lock().decided.get(name).cloned();
        self.update(name, |entry, pending| {
            if is_decisive {
                let leases = note.leases(&entry.leases(), &decided.unwrap_or_default(), now);
                entry.gate = Gate::with_leases(leases, Origin::Mqtt);
            }
            // Nothing is kept of a robot that nobody wants or asks for, so nothing changes.
            if !entry.is_useless() {
                entry.keyframe = entry.keyframe.max(note.keyframe);
            }
            // The newer version counts: both bridges then give the same answer.
            if note.version > entry.version() {
                entry.version.send_replace(note.version);
            } else if note.version < entry.version() && entry.polls_here() {
                pending.notes.insert(name.to_owned());
            }
        });
    }

    /// Follows what is wanted of a robot.
    pub fn watch(&self, name: &str) -> Watcher<'_, u64> {
        let version = self.update(name, |entry, _| entry.version.subscribe());
        let name = name.to_owned();
        Watcher::new(version, move || self.update(&name, |_, _| ()))
    }

    /// What is wanted of the robot now; of itself the robot tells elsewhere.
    pub fn answer(&self, name: &str, now: Now) -> Answer {
        self.update(name, |entry, _| {
            entry.gate.expire(OFFLINE_TIMEOUT, now.monotonic);
        });
        let inner = self.inner.lock();
        match inner.robots.get(name) {
            Some(entry) => entry.answer(name, now),
            None => Entry::new(inner.version).answer(name, now),
        }
    }

    /// Ends what has run out; gives the robots that polled and do not any more.
    pub fn expire(&self, now: Now) -> Vec<String> {
        let mut silent = Vec::new();
        while let Some(name) = self.due(now) {
            self.update(&name, |entry, _| {
                entry.gate.expire(OFFLINE_TIMEOUT, now.monotonic);
                let is_over = |presence: &Presence| presence.until <= now.monotonic;
                if entry
                    .presence
                    .take_if(|presence| is_over(presence))
                    .is_some()
                {
                    entry.set_link(Availability::Offline, now);
                    silent.push(name.clone());
                }
            });
        }
        silent
    }

    fn due(&self, now: Now) -> Option<String> {
        let inner = self.inner.lock();
        let (deadline, name) = inner.deadlines.first()?;
        (*deadline <= now.monotonic).then(|| name.clone())
    }

    /// When [`LeaseTable::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Duration> {
        let inner = self.inner.lock();
        inner.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Robots whose note is to be written, each with it.
    pub fn unwritten(&self, now: Now) -> Vec<(String, Note)> {
        let mut inner = self.inner.lock();
        let names = std::mem::take(&mut inner.pending.notes);
        let note = |name: String| {
            let entry = inner.robots.get(&name)?;
            let (by, version) = (self.id.clone(), entry.version());
            let note = Note::new(by, version, entry.keyframe, entry.leases(), now);
            Some((name, note))
        };
        names.into_iter().filter_map(note).collect()
    }

    /// The note of this robot was not written.
    pub fn write_again(&self, name: String) {
        self.inner.lock().pending.notes.insert(name);
    }

    /// Robots whose being online is to be said anew.
    pub fn unannounced(&self) -> Vec<String> {
        self.inner.lock().pending.online.drain().collect()
    }
}

#[cfg(test)]
mod tests;
