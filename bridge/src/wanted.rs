// SPDX-License-Identifier: MPL-2.0

//! What is wanted of each robot, derived on the broker: every bridge hears every command and
//! decides as a valve does. Robots that poll are told; a retained note beside the command topic
//! carries it over a bridge's restart.
//!
//! Pure but for the mutex: `now` is an argument, on this process's monotonic clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use droidrelay_wire::{
    Command,
    words::{
        gate::{ANYBODY, Gate, Origin, Outcome},
        poll::{Answer, Lease, Wanted},
    },
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    clock::{Now, millis},
    note::{Decided, HeldLease, Note},
    view::{Availability, Presence, Speaker},
    watcher::Watcher,
};

/// A robot that is offline for so long has closed, as a valve does by default: nobody could have
/// stopped it.
const OFFLINE_TIMEOUT: Duration = Duration::from_secs(120);

/// A robot that goes is noticed so late: what was sent before may not have reached it either.
const NOTICED_LATE: Duration = Duration::from_secs(60);
/// Ids of one robot that are remembered.
const MAX_MISSED: usize = 64;

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
    /// What robots may have missed.
    missed: HashMap<String, Missed>,
    /// Who holds a robot by a start that the broker keeps.
    kept: HashMap<String, BTreeSet<String>>,
}

/// A command on a robot's command topic.
pub struct Heard<'a> {
    pub command: &'a Command,
    /// How long the broker keeps it for a robot that is away; `None` without end.
    pub expiry: Option<Duration>,
    /// The broker keeps it for all who come, as the topic's value. A robot that comes gets it from
    /// there, and refuses it; from here it would be a new command.
    pub is_kept: bool,
}

/// Commands that a robot may not have got: it was away, or about to be.
#[derive(Default)]
struct Missed {
    /// A stop for everybody, and those for some, and when the last of them was sent.
    all: bool,
    ids: BTreeSet<String>,
    at: Duration,
    /// Starts that it has not been seen to obey.
    starts: BTreeMap<String, UnseenStart>,
}

/// A start that the robot may still get, or never.
struct UnseenStart {
    sent: Duration,
    /// When the broker forgets it; without end where its sender has not said.
    expires: Option<Duration>,
    /// It found the robot away.
    was_away: bool,
}

impl UnseenStart {
    /// Whether nobody wants it any more: one that found the robot away is good for `longest`.
    fn is_over(&self, longest: Duration, now: Duration) -> bool {
        let longest = self.was_away.then(|| self.sent + longest);
        (self.expires.into_iter().chain(longest)).any(|end| end < now)
    }
}

impl Missed {
    fn is_empty(&self) -> bool {
        !self.all && self.ids.is_empty() && self.starts.is_empty()
    }

    /// `is_held`: the robot has been seen to obey an earlier start of the same id, which lasts.
    fn add(&mut self, command: &Heard, is_held: bool, availability: Availability, now: Duration) {
        match command.command {
            Command::Stop { id: None } => {
                *self = Missed {
                    all: true,
                    at: now,
                    ..Missed::default()
                };
            }
            Command::Stop { id: Some(id) } => {
                self.starts.remove(id);
                self.at = now;
                // Beyond that many, one for everybody who holds nothing is as good.
                if self.ids.len() < MAX_MISSED {
                    self.ids.insert(id.clone());
                }
            }
            Command::Start { id, .. } => {
                let id = id.as_deref().unwrap_or(ANYBODY);
                self.ids.remove(id);
                let was_away = availability != Availability::Online;
                let is_unseen = was_away || !is_held || self.starts.contains_key(id);
                if is_unseen && self.starts.len() < MAX_MISSED {
                    let expires = command.expiry.map(|expiry| now + expiry);
                    let start = UnseenStart {
                        sent: now,
                        expires,
                        was_away,
                    };
                    self.starts.insert(id.to_owned(), start);
                }
            }
            Command::Keyframe => {}
        }
    }
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
    /// The version of the note that the broker keeps.
    noted: watch::Sender<u64>,
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

impl Inner {
    /// Notes who holds the robot by a start that the broker keeps, and who does not any more.
    fn note_kept(&mut self, name: &str, heard: &Heard) {
        let kept = self.kept.entry(name.to_owned()).or_default();
        match heard.command {
            Command::Start { id, .. } => {
                let id = id.as_deref().unwrap_or(ANYBODY);
                if !heard.is_kept {
                    kept.remove(id);
                } else if kept.len() < MAX_MISSED {
                    kept.insert(id.to_owned());
                }
            }
            Command::Stop { id: None } => kept.clear(),
            Command::Stop { id: Some(id) } => {
                kept.remove(id);
            }
            Command::Keyframe => {}
        }
        if kept.is_empty() {
            self.kept.remove(name);
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
        heard: &Heard,
        availability: Availability,
        age: ConnectionAge,
        now: Now,
    ) {
        let command = heard.command;
        let mut inner = self.inner.lock();
        if age == ConnectionAge::Young {
            let decided = &mut inner.decided;
            decided.entry(name.to_owned()).or_default().add(command);
        }
        let is_held = match command {
            Command::Start { id, .. } => {
                let id = id.as_deref().unwrap_or(ANYBODY);
                let entry = inner.robots.get(name);
                entry.is_some_and(|entry| entry.gate.leases().any(|(held, _)| held == id))
            }
            _ => false,
        };
        let missed = inner.missed.entry(name.to_owned()).or_default();
        missed.add(heard, is_held, availability, now.monotonic);
        if missed.is_empty() {
            inner.missed.remove(name);
        }
        inner.note_kept(name, heard);
        drop(inner);
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

    /// The robot says that these hold its stream open, and `more` who are not listed.
    pub fn seen_obeyed(&self, name: &str, viewers: &[String], more: bool) {
        let mut inner = self.inner.lock();
        if let Some(missed) = inner.missed.get_mut(name) {
            missed.starts.retain(|id, _| !more && !viewers.contains(id));
            if missed.is_empty() {
                inner.missed.remove(name);
            }
        }
    }

    /// The robot is back, having been seen last at `seen`: what is to be said to it anew. A stop
    /// that it may have missed counts until then; a start while its lease lasts, but not one that
    /// it has not been seen to obey and that the broker has forgotten by now, or that has found it
    /// away and is older than `start_expiry`; nor one that the broker keeps.
    pub fn repeat(
        &self,
        name: &str,
        seen: Option<Duration>,
        start_expiry: Duration,
        now: Now,
    ) -> Vec<Command> {
        let mut inner = self.inner.lock();
        let missed = inner.missed.remove(name).unwrap_or_default();
        let kept = inner.kept.get(name).cloned().unwrap_or_default();
        drop(inner);
        let mut commands = Vec::new();
        if seen.is_none_or(|seen| missed.at + NOTICED_LATE >= seen) {
            let id = |id: &String| (id != ANYBODY).then(|| id.clone());
            commands.extend(missed.all.then_some(Command::Stop { id: None }));
            commands.extend(missed.ids.iter().map(|it| Command::Stop { id: id(it) }));
        }
        let leases = self.look(name, Entry::leases).unwrap_or_default();
        for (id, until) in leases.into_iter().filter(|(id, _)| !kept.contains(id)) {
            let unseen = missed.starts.get(&id);
            if unseen.is_some_and(|start| start.is_over(start_expiry, now.monotonic)) {
                continue;
            }
            let lease = until.map(|until| until.saturating_sub(now.monotonic));
            if lease.is_none_or(|lease| !lease.is_zero()) {
                let id = (id != ANYBODY).then_some(id);
                commands.push(Command::Start { id, lease });
            }
        }
        commands
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

    /// It polls here, so that its note is written here.
    pub fn polls_here(&self, name: &str) -> bool {
        self.look(name, Entry::polls_here) == Some(true)
    }

    /// Somebody holds a lease, as far as is known here.
    pub fn is_open(&self, name: &str) -> bool {
        self.look(name, |entry| entry.gate.is_open()) == Some(true)
    }

    /// Until when this holder's lease lasts, where it has one that ends.
    pub fn lease_of(&self, name: &str, holder: &str) -> Option<Duration> {
        let until = |entry: &Entry| {
            let mut leases = entry.gate.leases();
            leases.find(|(id, _)| *id == holder)?.1
        };
        self.look(name, until).flatten()
    }

    /// The broker keeps the note of this version.
    pub fn noted(&self, name: &str, version: u64) {
        self.look(name, |entry| {
            entry.noted.send_if_modified(|noted| {
                let is_newer = version > *noted;
                *noted = version.max(*noted);
                is_newer
            })
        });
    }

    /// Waits until the broker keeps what is wanted of the robot now: what a robot is told must
    /// outlive the bridge that tells it.
    pub async fn is_noted(&self, name: &str) {
        let look = |entry: &Entry| (entry.version(), entry.noted.subscribe());
        if let Some((version, mut noted)) = self.look(name, look) {
            // The entry may go: then nothing is wanted of the robot.
            let _ = noted.wait_for(|noted| *noted >= version).await;
        }
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
            entry.noted.send_if_modified(|noted| {
                let is_newer = note.version > *noted;
                *noted = note.version.max(*noted);
                is_newer
            });
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
