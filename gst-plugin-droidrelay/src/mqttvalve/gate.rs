//! Who holds the stream open, and until when: one pure decision for every command.
//!
//! No I/O, no thread, no clock: `now` is an argument, on a monotonic clock of the caller's.

use std::{collections::BTreeMap, time::Duration};

use droidrelay_wire::Command;

/// Holders that are counted; a `start` beyond them is refused.
pub const MAX_HOLDERS: usize = 1000;
/// Holder of a `start` without id that came by MQTT.
const ANYBODY: &str = "*";
/// Holder of a local `start` without id, and of `drop=false`.
const LOCAL: &str = "local";

/// Where a command came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Mqtt,
    /// Action signal or property on the robot itself.
    Local,
}

/// Why the gate is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Boot,
    Mqtt,
    Local,
    Lease,
    Offline,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Boot => "boot",
            Cause::Mqtt => "mqtt",
            Cause::Local => "local",
            Cause::Lease => "lease",
            Cause::Offline => "offline",
        }
    }
}

impl From<Origin> for Cause {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Mqtt => Cause::Mqtt,
            Origin::Local => Cause::Local,
        }
    }
}

/// The gate opened or closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub open: bool,
    pub cause: Cause,
    /// Who asked, where somebody did.
    pub who: Option<String>,
}

/// What a command led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Open or closed as before; leases may have changed.
    Same,
    Changed(Change),
    /// A key frame is wanted now.
    Keyframe,
    /// Not obeyed: why.
    Refused(&'static str),
}

#[derive(Debug)]
struct Holder {
    origin: Origin,
    /// None: until a stop.
    until: Option<Duration>,
}

/// All leases.
#[derive(Debug, Default)]
pub struct Gate {
    holders: BTreeMap<String, Holder>,
    offline_since: Option<Duration>,
}

impl Gate {
    pub fn is_open(&self) -> bool {
        !self.holders.is_empty()
    }

    /// Ids that hold the gate open.
    pub fn holders(&self) -> impl ExactSizeIterator<Item = &str> {
        self.holders.keys().map(String::as_str)
    }

    /// When the last lease ends; None where the gate is closed or held until a stop.
    pub fn open_until(&self) -> Option<Duration> {
        self.holders
            .values()
            .map(|holder| holder.until)
            .try_fold(None, |latest: Option<Duration>, until| {
                until.map(|until| Some(latest.map_or(until, |latest| latest.max(until))))
            })
            .flatten()
    }

    /// Obeys one command. A `start` without a lease takes `default_lease`; zero holds until a stop.
    pub fn apply(
        &mut self,
        command: &Command,
        origin: Origin,
        default_lease: Duration,
        now: Duration,
    ) -> Outcome {
        match command {
            Command::Start { id, lease } => {
                let id = id.as_deref().unwrap_or(match origin {
                    Origin::Mqtt => ANYBODY,
                    Origin::Local => LOCAL,
                });
                if self.holders.len() >= MAX_HOLDERS && !self.holders.contains_key(id) {
                    return Outcome::Refused(
                        "too many viewers hold a lease: a start is refused until one ends",
                    );
                }
                let lease = lease.unwrap_or(default_lease);
                let until = (!lease.is_zero()).then(|| now + lease);
                let was_open = self.is_open();
                self.holders.insert(id.to_owned(), Holder { origin, until });
                self.outcome(was_open, origin.into(), Some(id))
            }
            Command::Stop { id: None } => {
                let was_open = self.is_open();
                self.holders.clear();
                self.outcome(was_open, origin.into(), None)
            }
            Command::Stop { id: Some(id) } => {
                let was_open = self.is_open();
                self.holders.remove(id);
                self.outcome(was_open, origin.into(), Some(id))
            }
            Command::Keyframe if self.is_open() => Outcome::Keyframe,
            Command::Keyframe => Outcome::Same,
        }
    }

    /// Tells whether the broker is in reach.
    pub fn link(&mut self, up: bool, now: Duration) {
        if up {
            self.offline_since = None;
        } else {
            self.offline_since.get_or_insert(now);
        }
    }

    /// Ends what has run out at `now`: leases, and remote holders after `offline_timeout` (zero:
    /// never) without a broker, since nobody could stop them any more.
    pub fn expire(&mut self, offline_timeout: Duration, now: Duration) -> Outcome {
        let was_open = self.is_open();
        self.holders
            .retain(|_, holder| holder.until.is_none_or(|until| until > now));
        if was_open && !self.is_open() {
            return self.outcome(was_open, Cause::Lease, None);
        }
        if self
            .offline_deadline(offline_timeout)
            .is_some_and(|deadline| deadline <= now)
        {
            self.holders
                .retain(|_, holder| holder.origin == Origin::Local);
        }
        self.outcome(was_open, Cause::Offline, None)
    }

    /// When [`Gate::expire`] has something to do next.
    pub fn next_deadline(&self, offline_timeout: Duration) -> Option<Duration> {
        self.holders
            .values()
            .filter_map(|holder| holder.until)
            .chain(self.offline_deadline(offline_timeout))
            .min()
    }

    fn offline_deadline(&self, offline_timeout: Duration) -> Option<Duration> {
        let remote = self
            .holders
            .values()
            .any(|holder| holder.origin == Origin::Mqtt);
        let since = self.offline_since.filter(|_| remote)?;
        (!offline_timeout.is_zero()).then(|| since + offline_timeout)
    }

    fn outcome(&self, was_open: bool, cause: Cause, who: Option<&str>) -> Outcome {
        if was_open == self.is_open() {
            return Outcome::Same;
        }
        Outcome::Changed(Change {
            open: !was_open,
            cause,
            who: who.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::ZERO;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn start(id: &str, lease: u64) -> Command {
        Command::Start {
            id: (!id.is_empty()).then(|| id.into()),
            lease: Some(at(lease)),
        }
    }

    fn stop(id: &str) -> Command {
        Command::Stop {
            id: (!id.is_empty()).then(|| id.into()),
        }
    }

    fn apply(gate: &mut Gate, command: &Command, now: u64) -> Outcome {
        gate.apply(command, Origin::Mqtt, Duration::ZERO, at(now))
    }

    fn changed(open: bool, cause: Cause, who: Option<&str>) -> Outcome {
        Outcome::Changed(Change {
            open,
            cause,
            who: who.map(Into::into),
        })
    }

    #[test]
    fn gate_stays_closed_until_the_first_start() {
        let mut gate = Gate::default();
        assert!(!gate.is_open());
        assert_eq!(apply(&mut gate, &stop(""), 0), Outcome::Same);
        assert_eq!(apply(&mut gate, &Command::Keyframe, 0), Outcome::Same);
        assert_eq!(gate.expire(at(1), at(100)), Outcome::Same);
        assert_eq!(
            apply(&mut gate, &start("", 0), 0),
            changed(true, Cause::Mqtt, Some("*"))
        );
        assert_eq!(apply(&mut gate, &Command::Keyframe, 0), Outcome::Keyframe);
        assert_eq!(gate.next_deadline(NEVER), None);
    }

    #[test]
    fn a_duplicate_changes_nothing() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("", 0), 0);
        assert_eq!(apply(&mut gate, &start("", 0), 1), Outcome::Same);
        apply(&mut gate, &stop(""), 2);
        assert_eq!(apply(&mut gate, &stop(""), 3), Outcome::Same);
    }

    #[test]
    fn each_viewer_holds_his_own_lease() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 30), 0);
        apply(&mut gate, &start("b", 30), 10);
        assert_eq!(apply(&mut gate, &stop("a"), 15), Outcome::Same);
        assert_eq!(gate.open_until(), Some(at(40)));
        apply(&mut gate, &start("b", 30), 20);
        assert_eq!(gate.expire(NEVER, at(49)), Outcome::Same);
        assert_eq!(gate.next_deadline(NEVER), Some(at(50)));
        assert_eq!(
            gate.expire(NEVER, at(50)),
            changed(false, Cause::Lease, None)
        );
    }

    #[test]
    fn stop_without_id_ends_all_leases() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 0), 0);
        apply(&mut gate, &start("b", 30), 0);
        assert_eq!(gate.open_until(), None);
        assert_eq!(
            apply(&mut gate, &stop(""), 1),
            changed(false, Cause::Mqtt, None)
        );
        assert_eq!(gate.holders().len(), 0);
    }

    #[test]
    fn a_lost_broker_ends_what_came_from_it_and_nothing_else() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 0), 0);
        gate.link(false, at(10));
        gate.link(false, at(20));
        assert_eq!(gate.next_deadline(at(120)), Some(at(130)));
        assert_eq!(gate.next_deadline(NEVER), None);
        let mut local = Gate::default();
        local.apply(&start("", 0), Origin::Local, NEVER, at(0));
        local.link(false, at(10));
        assert_eq!(local.expire(at(120), at(200)), Outcome::Same);
        assert_eq!(
            gate.expire(at(120), at(130)),
            changed(false, Cause::Offline, None)
        );
    }

    #[test]
    fn a_broker_that_comes_back_in_time_ends_nothing() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 0), 0);
        gate.link(false, at(10));
        gate.link(true, at(100));
        assert_eq!(gate.expire(at(120), at(1000)), Outcome::Same);
    }

    #[test]
    fn the_default_lease_holds_for_a_start_without_one() {
        let mut gate = Gate::default();
        gate.apply(&Command::start(), Origin::Mqtt, at(20), at(5));
        assert_eq!(gate.open_until(), Some(at(25)));
    }

    #[test]
    fn more_viewers_than_can_be_counted_are_refused_but_renewals_are_not() {
        let mut gate = Gate::default();
        for n in 0..MAX_HOLDERS {
            apply(&mut gate, &start(&n.to_string(), 5), 0);
        }
        assert!(matches!(
            apply(&mut gate, &start("one more", 5), 0),
            Outcome::Refused(_)
        ));
        assert_eq!(apply(&mut gate, &start("7", 50), 0), Outcome::Same);
        assert_eq!(gate.holders().len(), MAX_HOLDERS);
    }
}
