// SPDX-License-Identifier: MPL-2.0

//! What is wanted of each robot, derived on the broker: every bridge hears every command and
//! decides as a valve does. Robots that poll are told; a retained note beside the command topic
//! carries it over a bridge's restart.
//!
//! Pure but for the mutex: `now` is an argument, on this process's monotonic clock.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use droidrelay_wire::{
    Command,
    words::{
        gate::{ANYBODY, Gate, Origin, Outcome},
        poll::{GRACE, Lease, Wanted},
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

/// Correlation data of what a bridge says in place of a robot that polls: whoever reads it knows
/// that the robot has not said it by MQTT itself.
pub const ON_BEHALF: &[u8] = b"poll";
/// A robot that is offline for so long has closed, as a valve does by default: nobody could have
/// stopped it.
const OFFLINE_TIMEOUT: Duration = Duration::from_secs(120);
/// Presence that another bridge has announced is believed for so long: the longest poll and grace.
const ANNOUNCED: Duration = Duration::from_secs(60 + GRACE);
/// Ends of one lease by two bridges' clocks.
const SAME: Duration = Duration::from_secs(1);
/// Presence is announced anew, for other bridges, after this long.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(10);

/// The retained note.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Who wrote it.
    by: String,
    version: u64,
    keyframe: u64,
    leases: Vec<NotedLease>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NotedLease {
    id: String,
    /// Milliseconds since 1970; null: until a stop.
    until: Option<u64>,
}

/// The time, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub monotonic: Duration,
    /// Since 1970.
    pub wall: Duration,
}

impl Now {
    fn wall_millis(&self, at: Duration) -> u64 {
        let ahead = at.saturating_sub(self.monotonic);
        u64::try_from((self.wall + ahead).as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_of(&self, wall_millis: u64) -> Duration {
        let ahead = Duration::from_millis(wall_millis).saturating_sub(self.wall);
        self.monotonic + ahead
    }
}

/// What a poll is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub version: u64,
    pub keyframe: u64,
    pub wanted: Wanted,
}

/// All robots of which something is wanted, and all that poll.
pub struct Board {
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
    /// Robots whose note is to be written.
    unwritten: HashSet<String>,
    /// Robots that poll here while another bridge has said that they are offline.
    unannounced: HashSet<String>,
    /// Version of all robots that have no entry: not below any that an entry had.
    version: u64,
    /// What was commanded since the connection began, while it was young.
    commanded: HashMap<String, Commanded>,
}

/// Whose leases commands have decided: a note that comes later may have been written before.
#[derive(Debug, Clone, Default)]
struct Commanded {
    everybody: bool,
    ids: HashSet<String>,
}

impl Commanded {
    fn note(&mut self, command: &Command) {
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

    fn decides(&self, id: &str) -> bool {
        self.everybody || self.ids.contains(id)
    }
}

struct Entry {
    gate: Gate,
    keyframe: u64,
    version: watch::Sender<u64>,
    presence: Option<Presence>,
    scheduled: Option<Duration>,
}

/// A robot that polls.
#[derive(Debug, Clone, Copy)]
struct Presence {
    /// It counts as offline from then on.
    until: Duration,
    /// It polls here: this bridge writes its note.
    here: bool,
    /// Its being online was last said to the broker, by whichever bridge.
    announced: Option<Duration>,
}

impl Entry {
    fn new(version: u64) -> Self {
        Entry {
            gate: Gate::default(),
            keyframe: 0,
            version: watch::Sender::new(version),
            presence: None,
            scheduled: None,
        }
    }

    fn is_useless(&self) -> bool {
        !self.gate.is_open() && self.presence.is_none() && self.version.receiver_count() == 0
    }

    fn leases(&self) -> Vec<(String, Option<Duration>)> {
        let leases = self.gate.leases();
        leases.map(|(id, until)| (id.to_owned(), until)).collect()
    }

    fn answer(&self, now: Now) -> Answer {
        let left = |until: Duration| {
            (until.saturating_sub(now.monotonic).as_secs_f64() * 1e3).round() / 1e3
        };
        let leases = self.gate.leases().map(|(id, until)| Lease {
            id: (id != ANYBODY).then(|| id.to_owned()),
            lease: until.map(left),
        });
        Answer {
            version: *self.version.borrow(),
            keyframe: self.keyframe,
            wanted: Wanted {
                open: self.gate.is_open(),
                leases: leases.collect(),
            },
        }
    }
}

impl Inner {
    /// Does something to a robot's entry, and what follows from it.
    fn with<T>(&mut self, name: &str, act: impl FnOnce(&mut Entry) -> T) -> T {
        let version = self.version;
        let entry = self
            .robots
            .entry(name.to_owned())
            .or_insert_with(|| Entry::new(version));
        let before = (entry.leases(), entry.keyframe);
        let result = act(entry);
        if before != (entry.leases(), entry.keyframe) {
            entry.version.send_modify(|version| *version += 1);
            if entry.presence.is_some_and(|presence| presence.here) {
                self.unwritten.insert(name.to_owned());
            }
        }
        let gate = entry.gate.next_deadline(OFFLINE_TIMEOUT);
        let presence = entry.presence.map(|presence| presence.until);
        let deadline = gate.into_iter().chain(presence).min();
        if deadline != entry.scheduled {
            if let Some(old) = entry.scheduled {
                self.deadlines.remove(&(old, name.to_owned()));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, name.to_owned()));
            }
            entry.scheduled = deadline;
        }
        if entry.is_useless() {
            self.version = version.max(*entry.version.borrow());
            self.robots.remove(name);
        }
        result
    }
}

impl Board {
    /// `id` names this bridge in notes. Versions are like times (`wall`, since 1970), so that
    /// those of another life of this bridge do not come again.
    pub fn new(id: String, wall: Duration) -> Self {
        let inner = Inner {
            version: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            ..Inner::default()
        };
        Board {
            id,
            inner: Mutex::new(inner),
            wake: Notify::new(),
        }
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Entry) -> T) -> T {
        let mut inner = self.lock();
        let (deadline, unwritten) = (inner.deadlines.first().cloned(), inner.unwritten.len());
        let result = inner.with(name, act);
        let sooner = inner.deadlines.first() != deadline.as_ref();
        if sooner || inner.unwritten.len() != unwritten {
            drop(inner);
            self.wake.notify_one();
        }
        result
    }

    /// Obeys a command that came on the robot's command topic; `is_online` as it said itself.
    /// Where the connection `is_young`, notes that follow do not change what it has decided.
    pub fn obey(
        &self,
        name: &str,
        command: &Command,
        is_online: Option<bool>,
        is_young: bool,
        now: Now,
    ) {
        if is_young {
            let commanded = &mut self.lock().commanded;
            commanded.entry(name.to_owned()).or_default().note(command);
        }
        self.with(name, |entry| {
            let outcome = entry
                .gate
                .apply(command, Origin::Mqtt, Duration::ZERO, now.monotonic);
            if outcome == Outcome::Keyframe {
                entry.keyframe += 1;
            }
            // A start is good for a while, should the robot come back.
            entry.gate.link(true, now.monotonic);
            entry.gate.link(is_online != Some(false), now.monotonic);
        });
    }

    /// A connection begins: commands may have been missed.
    pub fn forget_commanded(&self) {
        self.lock().commanded.clear();
    }

    /// The robot's availability topic says so, in the robot's own words or (`on_behalf`) a bridge's.
    pub fn available(&self, name: &str, is_online: Option<bool>, on_behalf: bool, now: Now) {
        let mut inner = self.lock();
        if !(inner.robots.contains_key(name) || on_behalf && is_online == Some(true)) {
            return;
        }
        let mut contradicted = false;
        inner.with(name, |entry| {
            entry.gate.link(is_online != Some(false), now.monotonic);
            entry.presence = match (is_online, on_behalf, entry.presence) {
                (Some(true), true, presence) => {
                    let until = now.monotonic + ANNOUNCED;
                    let here = presence.is_some_and(|presence| presence.here);
                    Some(Presence {
                        // Of a robot that polls here the last poll says more.
                        until: presence
                            .filter(|_| here)
                            .map_or(until, |presence| presence.until),
                        here,
                        announced: Some(now.monotonic),
                    })
                }
                // Another bridge has not heard of it, this one has: say it anew.
                (_, true, Some(presence)) if presence.here => {
                    contradicted = true;
                    Some(presence)
                }
                // It is gone, or it speaks MQTT now.
                _ => None,
            };
        });
        if contradicted {
            inner.unannounced.insert(name.to_owned());
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// The robot polls, or reports its state, and may be silent for `wait` from now on. Returns
    /// whether its being online is to be announced.
    pub fn heard(&self, name: &str, wait: Duration, now: Now) -> bool {
        let mut inner = self.lock();
        let mut is_new = false;
        let announce = inner.with(name, |entry| {
            is_new = !entry.presence.is_some_and(|presence| presence.here);
            let announced = entry.presence.and_then(|presence| presence.announced);
            let until = now.monotonic + wait + Duration::from_secs(GRACE);
            entry.presence = Some(Presence {
                until,
                here: true,
                announced,
            });
            entry.gate.link(true, now.monotonic);
            announced.is_none_or(|at| at + ANNOUNCE_AGAIN <= now.monotonic)
        });
        if is_new {
            inner.unwritten.insert(name.to_owned());
        }
        drop(inner);
        self.wake.notify_one();
        announce
    }

    /// It is known as a robot that polls.
    pub fn polls(&self, name: &str) -> bool {
        let inner = self.lock();
        let entry = inner.robots.get(name);
        entry.is_some_and(|entry| entry.presence.is_some())
    }

    /// Somebody holds a lease, as far as is known here.
    pub fn is_open(&self, name: &str) -> bool {
        let inner = self.lock();
        let entry = inner.robots.get(name);
        entry.is_some_and(|entry| entry.gate.is_open())
    }

    /// Takes a note. Where it was `retained`, or the connection `is_young` and commands may have
    /// been missed, its leases are what holds, but for those that a command decided which was not
    /// missed; else only the numbers count, so that bridges side by side give the same answers.
    pub fn read(&self, name: &str, note: Note, retained: bool, is_young: bool, now: Now) {
        if !retained && note.by == self.id {
            return;
        }
        let decisive = retained || is_young;
        let mut inner = self.lock();
        let leases = note.leases.into_iter().map(|lease| {
            let until = lease.until.map(|until| now.monotonic_of(until));
            (lease.id, until)
        });
        let lives = |until: &Option<Duration>| until.is_none_or(|until| until > now.monotonic);
        let leases: Vec<_> = leases.filter(|(_, until)| lives(until)).collect();
        if !inner.robots.contains_key(name) && (leases.is_empty() || !decisive) {
            inner.version = inner.version.max(note.version);
            return;
        }
        let (mut own, mut is_behind) = (0, false);
        let commanded = inner.commanded.get(name).cloned().unwrap_or_default();
        inner.with(name, |entry| {
            own = *entry.version.borrow();
            if decisive {
                let known = entry.leases();
                // Both have heard the same command, each at its own time.
                let same = |(id, until): (String, Option<Duration>)| {
                    let is_it = |known: &&(String, Option<Duration>)| {
                        let apart = |(one, other): (Duration, Duration)| one.abs_diff(other);
                        known.0 == id && known.1.zip(until).map(apart).is_some_and(|by| by < SAME)
                    };
                    known.iter().find(is_it).cloned().unwrap_or((id, until))
                };
                let kept = known
                    .iter()
                    .filter(|(id, _)| commanded.decides(id))
                    .cloned();
                let told = leases.into_iter().filter(|(id, _)| !commanded.decides(id));
                entry.gate = Gate::with_leases(told.map(same).chain(kept), Origin::Mqtt);
            }
            entry.keyframe = entry.keyframe.max(note.keyframe);
            let here = entry.presence.is_some_and(|presence| presence.here);
            is_behind = here && note.version < own;
        });
        if let Some(entry) = inner.robots.get(name) {
            // That of the note where that is the newer one: both bridges then give the same answer.
            if note.version > own {
                entry.version.send_replace(note.version);
            }
        }
        if is_behind {
            inner.unwritten.insert(name.to_owned());
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Follows what is wanted of a robot.
    pub fn watch(&self, name: &str) -> Watcher<'_> {
        Watcher {
            version: self.with(name, |entry| entry.version.subscribe()),
            board: self,
            name: name.to_owned(),
        }
    }

    /// What is wanted of the robot now.
    pub fn answer(&self, name: &str, now: Now) -> Answer {
        self.with(name, |entry| {
            entry.gate.expire(OFFLINE_TIMEOUT, now.monotonic);
        });
        let inner = self.lock();
        let entry = inner.robots.get(name);
        entry.map_or_else(
            || Entry::new(inner.version).answer(now),
            |entry| entry.answer(now),
        )
    }

    /// Ends what has run out; gives the robots that polled and do not any more.
    pub fn expire(&self, now: Now) -> Vec<String> {
        let mut silent = Vec::new();
        let mut inner = self.lock();
        while let Some((_, name)) = inner
            .deadlines
            .first()
            .filter(|(deadline, _)| *deadline <= now.monotonic)
            .cloned()
        {
            inner.with(&name, |entry| {
                entry.gate.expire(OFFLINE_TIMEOUT, now.monotonic);
                if entry
                    .presence
                    .is_some_and(|presence| presence.until <= now.monotonic)
                {
                    entry.presence = None;
                    entry.gate.link(false, now.monotonic);
                    silent.push(name.clone());
                }
            });
        }
        silent
    }

    /// When [`Board::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.lock().deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Robots whose note is to be written, each with it.
    pub fn unwritten(&self, now: Now) -> Vec<(String, Note)> {
        let mut inner = self.lock();
        let names = std::mem::take(&mut inner.unwritten);
        let note = |name: String| {
            let entry = inner.robots.get(&name)?;
            let leases = entry.gate.leases().map(|(id, until)| NotedLease {
                id: id.to_owned(),
                until: until.map(|until| now.wall_millis(until)),
            });
            let note = Note {
                by: self.id.clone(),
                version: *entry.version.borrow(),
                keyframe: entry.keyframe,
                leases: leases.collect(),
            };
            Some((name, note))
        };
        names.into_iter().filter_map(note).collect()
    }

    /// The note of this robot was not written.
    pub fn write_again(&self, name: String) {
        self.lock().unwritten.insert(name);
    }

    /// Robots whose being online is to be said anew.
    pub fn unannounced(&self) -> Vec<String> {
        self.lock().unannounced.drain().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a robot of which nothing is wanted when the last one who asked goes.
pub struct Watcher<'a> {
    pub version: watch::Receiver<u64>,
    board: &'a Board,
    name: String,
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut inner = self.board.lock();
        // Our own receiver is still counted.
        let useless = |entry: &Entry| {
            entry.version.receiver_count() <= 1 && !entry.gate.is_open() && entry.presence.is_none()
        };
        if let Some(entry) = inner.robots.get(&self.name).filter(|entry| useless(entry)) {
            let version = *entry.version.borrow();
            inner.version = inner.version.max(version);
            inner.robots.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Duration = Duration::from_secs(1_700_000_000);

    fn at(seconds: u64) -> Now {
        let monotonic = Duration::from_secs(seconds);
        Now {
            monotonic,
            wall: WALL + monotonic,
        }
    }

    fn board(id: &str) -> Board {
        Board::new(id.into(), WALL)
    }

    fn start(id: &str, lease: u64) -> Command {
        Command::Start {
            id: Some(id.into()),
            lease: Some(Duration::from_secs(lease)),
        }
    }

    fn obey(board: &Board, command: &Command, now: u64) {
        board.obey("r1", command, Some(true), false, at(now));
    }

    fn ids(answer: &Answer) -> Vec<Option<&str>> {
        let leases = answer.wanted.leases.iter();
        leases.map(|lease| lease.id.as_deref()).collect()
    }

    #[test]
    fn each_change_of_what_is_wanted_has_a_version_and_a_duplicate_has_none() {
        let board = board("a");
        board.heard("r1", Duration::ZERO, at(0));
        let mut last = board.answer("r1", at(0));
        assert_eq!((last.wanted.open, last.keyframe), (false, 0));
        for (command, now, changes) in [
            (Command::start(), 0, true),
            (Command::start(), 1, false),
            (start("a", 30), 1, true),
            (start("a", 30), 2, true),
            (Command::Keyframe, 2, true),
            (Command::Stop { id: None }, 3, true),
            (Command::stop(), 3, false),
            (Command::Keyframe, 3, false),
        ] {
            obey(&board, &command, now);
            let answer = board.answer("r1", at(now));
            assert_eq!(answer.version != last.version, changes, "{command:?}");
            last = answer;
        }
        assert_eq!((last.wanted.open, last.keyframe), (false, 1));
    }

    #[test]
    fn a_lease_is_told_by_what_is_left_of_it_and_ends_at_its_time() {
        let board = board("a");
        obey(&board, &Command::start(), 0);
        obey(&board, &start("phone", 30), 0);
        let answer = board.answer("r1", at(10));
        assert_eq!(ids(&answer), [None, Some("phone")]);
        assert_eq!(answer.wanted.leases[0].lease, None);
        assert_eq!(answer.wanted.leases[1].lease, Some(20.0));
        assert_eq!(board.next_deadline(), Some(at(30).monotonic));
        let watcher = board.watch("r1");
        board.expire(at(30));
        assert!(watcher.version.has_changed().unwrap());
        assert_eq!(ids(&board.answer("r1", at(30))), [None]);
    }

    #[test]
    fn a_robot_of_which_nothing_is_wanted_keeps_its_version_and_costs_nothing() {
        let board = board("a");
        let first = board.answer("r1", at(0));
        assert_eq!(board.answer("r1", at(5)), first);
        obey(&board, &Command::start(), 6);
        obey(&board, &Command::stop(), 7);
        assert!(board.answer("r1", at(7)).version > first.version);
        drop(board.watch("r1"));
        assert!(board.lock().robots.is_empty() && board.lock().deadlines.is_empty());
    }

    #[test]
    fn a_robot_that_polls_is_silent_after_its_wait_and_the_grace() {
        let board = board("a");
        assert!(board.heard("r1", Duration::from_secs(30), at(0)));
        board.available("r1", Some(true), true, at(0));
        assert!(!board.heard("r1", Duration::from_secs(30), at(5)));
        assert!(board.heard("r1", Duration::from_secs(30), at(10)));
        assert!(board.expire(at(54)).is_empty());
        assert_eq!(board.expire(at(55)), ["r1"]);
        assert!(!board.polls("r1"));
    }

    #[test]
    fn what_another_bridge_says_of_a_robot_that_polls_there_is_believed_for_a_while() {
        let board = board("b");
        board.available("r1", Some(true), true, at(0));
        assert!(board.polls("r1"));
        assert!(board.expire(at(74)).is_empty());
        assert_eq!(board.expire(at(75)), ["r1"]);
        // Where it polls here, the other one is contradicted.
        board.heard("r1", Duration::ZERO, at(80));
        board.available("r1", Some(false), true, at(81));
        assert!(board.polls("r1"));
        assert_eq!(board.unannounced(), ["r1"]);
        // By its own words it is a robot with MQTT.
        board.available("r1", Some(true), false, at(82));
        assert!(!board.polls("r1"));
        assert!(board.expire(at(500)).is_empty());
    }

    #[test]
    fn a_start_for_a_robot_that_stays_offline_is_over_after_two_minutes() {
        let board = board("a");
        board.obey("r1", &Command::start(), Some(false), false, at(1000));
        assert!(board.expire(at(1119)).is_empty());
        assert!(board.is_open("r1"));
        board.expire(at(1120));
        assert!(!board.is_open("r1"));
        // One that comes back in time still finds it.
        board.obey("r1", &Command::start(), Some(false), false, at(2000));
        board.heard("r1", Duration::ZERO, at(2100));
        board.expire(at(2114));
        assert!(board.is_open("r1"));
    }

    #[test]
    fn the_note_carries_everything_over_to_another_bridge() {
        let one = board("a");
        one.heard("r1", Duration::ZERO, at(0));
        obey(&one, &Command::start(), 0);
        obey(&one, &start("phone", 30), 0);
        obey(&one, &Command::Keyframe, 0);
        let [(name, note)] = one.unwritten(at(0)).try_into().unwrap();
        assert!(one.unwritten(at(0)).is_empty());
        let text = serde_json::to_string(&note).unwrap();
        let two = board("b");
        // Another machine was started at another time.
        let later = Now {
            monotonic: Duration::from_secs(7),
            wall: WALL + Duration::from_secs(10),
        };
        two.read(
            &name,
            serde_json::from_str(&text).unwrap(),
            true,
            false,
            later,
        );
        let expected = one.answer("r1", at(10));
        assert_eq!(two.answer("r1", later), expected);
        assert_eq!(expected.wanted.leases[1].lease, Some(20.0));
    }

    #[test]
    fn a_note_that_was_written_before_a_command_changes_nothing_of_it() {
        let (one, two) = (board("a"), board("b"));
        one.heard("r1", Duration::ZERO, at(0));
        obey(&one, &start("missed", 30), 0);
        obey(&one, &start("stopped", 30), 0);
        let [(name, note)] = one.unwritten(at(0)).try_into().unwrap();
        let stop = Command::Stop {
            id: Some("stopped".into()),
        };
        for command in [start("phone", 30), stop] {
            two.obey("r1", &command, Some(true), true, at(1));
        }
        let ids = || {
            let leases = two.answer("r1", at(1)).wanted.leases.into_iter();
            let mut ids: Vec<_> = leases.filter_map(|lease| lease.id).collect();
            ids.sort_unstable();
            ids
        };
        two.read(&name, note.clone(), false, true, at(1));
        assert_eq!(ids(), ["missed", "phone"]);
        two.obey("r1", &Command::stop(), Some(true), true, at(1));
        two.read(&name, note.clone(), false, true, at(1));
        assert!(ids().is_empty());
        two.forget_commanded();
        two.read(&name, note, true, true, at(1));
        assert_eq!(ids(), ["missed", "stopped"]);
    }

    #[test]
    fn notes_of_a_bridge_beside_this_one_count_by_their_numbers_only() {
        let (one, two) = (board("a"), board("b"));
        for board in [&one, &two] {
            board.heard("r1", Duration::ZERO, at(0));
            obey(board, &start("phone", 30), 0);
        }
        obey(&one, &Command::Keyframe, 1);
        let [(name, note)] = one.unwritten(at(1)).try_into().unwrap();
        obey(&two, &Command::stop(), 1);
        obey(&two, &Command::stop(), 1);
        two.read(&name, note.clone(), false, false, at(1));
        let answer = two.answer("r1", at(1));
        assert!(!answer.wanted.open, "its own commands decide");
        assert_eq!(answer.keyframe, 1);
        let [(name, answered)] = two.unwritten(at(1)).try_into().unwrap();
        one.read(&name, answered, false, false, at(1));
        assert_eq!(one.answer("r1", at(1)).version, answer.version);
        let old = Note { version: 0, ..note };
        one.read(&name, old, false, true, at(1));
        assert!(one.is_open("r1"), "its own note tells it nothing");
    }
}
