// SPDX-License-Identifier: MPL-2.0

//! Who holds the stream open, and until when: one pure decision for every command.
//!
//! No I/O, no thread, no clock: `now` is an argument, on a monotonic clock of the caller's.

use std::{collections::BTreeMap, time::Duration};

use super::{command::Command, state::Cause};

/// Holders that are counted; a `start` beyond them is refused.
pub const MAX_HOLDERS: usize = 1000;
/// A session with the broker that lasts this long is one to rely on.
const HOLDS: Duration = Duration::from_secs(10);
/// Holder of a `start` without id that came by MQTT.
pub const ANYBODY: &str = "*";
/// Holder of a local `start` without id, and of `drop=false`.
const LOCAL: &str = "local";

/// Where a command came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Mqtt,
    /// Action signal or property on the robot itself.
    Local,
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

/// One holder's, as it goes from one gate to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub id: String,
    pub origin: Origin,
    /// None: until a stop.
    pub left: Option<Duration>,
}

/// All leases.
#[derive(Debug, Default)]
pub struct Gate {
    holders: BTreeMap<String, Holder>,
    offline_since: Option<Duration>,
    /// When the broker was last back, and since when it had been away.
    back: Option<(Duration, Duration)>,
}

impl Gate {
    pub fn is_open(&self) -> bool {
        !self.holders.is_empty()
    }

    /// Ids that hold the gate open.
    pub fn holders(&self) -> impl ExactSizeIterator<Item = &str> {
        self.holders.keys().map(String::as_str)
    }

    /// Each id that holds the gate open, and until when; None: until a stop.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = (&str, Option<Duration>)> {
        self.holders
            .iter()
            .map(|(id, holder)| (id.as_str(), holder.until))
    }

    /// When the last lease ends; None where the gate is closed or held until a stop.
    pub fn open_until(&self) -> Option<Duration> {
        let ends: Option<Vec<_>> = self.holders.values().map(|holder| holder.until).collect();
        ends?.into_iter().max()
    }

    /// A gate that holds these leases, as [`Gate::leases`] told them; what is beyond
    /// [`MAX_HOLDERS`] is left out.
    pub fn with_leases(
        leases: impl IntoIterator<Item = (String, Option<Duration>)>,
        origin: Origin,
    ) -> Self {
        let holder = |(id, until)| (id, Holder { origin, until });
        Gate {
            holders: leases.into_iter().take(MAX_HOLDERS).map(holder).collect(),
            ..Gate::default()
        }
    }

    /// Obeys one command. A `start` without a lease takes `default_lease`; zero holds until a stop.
    pub fn apply(
        &mut self,
        command: &Command,
        origin: Origin,
        default_lease: Duration,
        now: Duration,
    ) -> Outcome {
        let was_open = self.is_open();
        let who = match command {
            Command::Start { id, lease } => {
                if origin == Origin::Mqtt {
                    // So it was there for long enough.
                    self.back = None;
                }
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
                self.holders.insert(id.to_owned(), Holder { origin, until });
                Some(id)
            }
            Command::Stop { id: None } => {
                self.holders.clear();
                None
            }
            Command::Stop { id: Some(id) } => {
                self.holders.remove(id);
                Some(id.as_str())
            }
            Command::Keyframe if was_open => return Outcome::Keyframe,
            Command::Keyframe => return Outcome::Same,
        };
        self.outcome(was_open, origin.into(), who)
    }

    /// What is held at `now`, to be taken up by another gate, whose clock may be another one.
    pub fn hand_over(&self, now: Duration) -> Vec<Lease> {
        self.holders
            .iter()
            .map(|(id, holder)| Lease {
                id: id.clone(),
                origin: holder.origin,
                left: holder.until.map(|until| until.saturating_sub(now)),
            })
            .collect()
    }

    /// Holds what [`Gate::hand_over`] gave, in place of all that it held.
    pub fn take_up(&mut self, leases: Vec<Lease>, now: Duration) -> Outcome {
        let was_open = self.is_open();
        let cause = leases
            .first()
            .map_or(Cause::Local, |lease| lease.origin.into());
        self.holders = leases
            .into_iter()
            .filter(|lease| lease.left.is_none_or(|left| !left.is_zero()))
            .take(MAX_HOLDERS)
            .map(|lease| {
                let until = lease.left.map(|left| now + left);
                let origin = lease.origin;
                (lease.id, Holder { origin, until })
            })
            .collect();
        self.outcome(was_open, cause, None)
    }

    /// Tells whether the broker is in reach. One that is back only to go again at once has been
    /// away all the time: nobody can rely on a stop that way, least of all where another client
    /// takes the session each time.
    pub fn link(&mut self, up: bool, now: Duration) {
        if up {
            if let Some(since) = self.offline_since.take() {
                self.back = Some((now, since));
            }
        } else if self.offline_since.is_none() {
            let since = match self.back {
                Some((at, since)) if now.saturating_sub(at) < HOLDS => since,
                _ => now,
            };
            self.offline_since = Some(since);
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
    fn leases_go_on_in_another_gate_with_their_origin_and_what_is_left() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 30), 10);
        apply(&mut gate, &start("over", 5), 10);
        gate.apply(&start("", 0), Origin::Local, NEVER, at(10));
        let leases = gate.hand_over(at(20));
        let mut heir = Gate::default();
        assert_eq!(
            heir.take_up(leases, at(1000)),
            changed(true, Cause::Mqtt, None)
        );
        assert_eq!(heir.holders().collect::<Vec<_>>(), ["a", "local"]);
        heir.link(false, at(1000));
        assert_eq!(heir.next_deadline(at(120)), Some(at(1020)));
        assert_eq!(heir.expire(at(120), at(1020)), Outcome::Same);
        assert_eq!(
            heir.take_up(Vec::new(), at(1021)).clone(),
            changed(false, Cause::Local, None)
        );
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
    fn a_broker_that_is_back_only_to_go_again_has_been_away_all_the_time() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 0), 0);
        for second in [10, 12, 14] {
            gate.link(false, at(second));
            gate.link(true, at(second + 1));
        }
        assert_eq!(gate.next_deadline(at(120)), None, "it is there");
        gate.link(false, at(20));
        assert_eq!(gate.next_deadline(at(120)), Some(at(130)));
        gate.link(true, at(30));
        gate.link(false, at(40));
        assert_eq!(gate.next_deadline(at(120)), Some(at(160)), "it was there");
        gate.link(true, at(41));
        apply(&mut gate, &start("a", 0), 42);
        gate.link(false, at(43));
        assert_eq!(gate.next_deadline(at(120)), Some(at(163)), "and heard");
    }

    #[test]
    fn the_default_lease_holds_for_a_start_without_one() {
        let mut gate = Gate::default();
        gate.apply(&Command::start(), Origin::Mqtt, at(20), at(5));
        assert_eq!(gate.open_until(), Some(at(25)));
    }

    #[test]
    fn a_gate_that_is_made_of_its_leases_goes_on_as_before() {
        let mut gate = Gate::default();
        apply(&mut gate, &start("a", 30), 0);
        apply(&mut gate, &start("", 0), 0);
        let leases = gate.leases().map(|(id, until)| (id.to_owned(), until));
        let mut again = Gate::with_leases(leases, Origin::Mqtt);
        assert!(again.leases().eq(gate.leases()));
        assert_eq!(again.expire(NEVER, at(30)), Outcome::Same);
        assert_eq!(again.holders().collect::<Vec<_>>(), ["*"]);
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

/// Any sequence of what can happen, beside a model that keeps all it is told and thinks anew.
#[cfg(test)]
mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Command(Command, Origin),
        Link(bool),
        /// The clock goes on by so many seconds, and what has run out ends.
        Pass(u64),
    }

    fn origin() -> impl Strategy<Value = Origin> {
        prop_oneof![Just(Origin::Mqtt), Just(Origin::Local)]
    }

    fn id() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(prop_oneof!["[a-c]", Just("*".into()), Just("local".into())])
    }

    fn command() -> impl Strategy<Value = Command> {
        let lease = proptest::option::of((0..30u64).prop_map(Duration::from_secs));
        prop_oneof![
            4 => (id(), lease).prop_map(|(id, lease)| Command::Start { id, lease }),
            2 => id().prop_map(|id| Command::Stop { id }),
            1 => Just(Command::Keyframe),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (command(), origin()).prop_map(|(command, origin)| Step::Command(command, origin)),
            1 => any::<bool>().prop_map(Step::Link),
            3 => (0..20u64).prop_map(Step::Pass),
        ]
    }

    /// The leases as a list of what was asked for, newest last.
    #[derive(Default)]
    struct Model {
        asked: Vec<(String, Origin, Option<u64>)>,
        offline_since: Option<u64>,
        back: Option<(u64, u64)>,
    }

    impl Model {
        fn link(&mut self, up: bool, now: u64) {
            match (up, self.offline_since) {
                (true, Some(since)) => {
                    self.back = Some((now, since));
                    self.offline_since = None;
                }
                (false, None) => {
                    let as_before = self.back.filter(|(at, _)| now < at + 10);
                    self.offline_since = Some(as_before.map_or(now, |(_, since)| since));
                }
                _ => {}
            }
        }

        fn obey(&mut self, command: &Command, origin: Origin, default_lease: u64, now: u64) {
            match command {
                Command::Start { id, lease } => {
                    let nobody = if origin == Origin::Local {
                        "local"
                    } else {
                        "*"
                    };
                    if origin == Origin::Mqtt {
                        self.back = None;
                    }
                    let id = id.clone().unwrap_or_else(|| nobody.to_owned());
                    let lease = lease.map_or(default_lease, |lease| lease.as_secs());
                    self.asked.retain(|(other, ..)| *other != id);
                    self.asked
                        .push((id, origin, (lease > 0).then_some(now + lease)));
                }
                Command::Stop { id: Some(id) } => self.asked.retain(|(other, ..)| other != id),
                Command::Stop { id: None } => self.asked.clear(),
                Command::Keyframe => {}
            }
        }

        fn is_cut_off(&self, offline_timeout: u64, now: u64) -> bool {
            offline_timeout > 0
                && self
                    .offline_since
                    .is_some_and(|since| now >= since + offline_timeout)
        }

        fn pass(&mut self, offline_timeout: u64, now: u64) {
            let cut_off = self.is_cut_off(offline_timeout, now);
            self.asked.retain(|(_, origin, until)| {
                until.is_none_or(|until| now < until) && !(cut_off && *origin == Origin::Mqtt)
            });
        }

        fn holders(&self) -> Vec<&str> {
            let mut holders: Vec<_> = self.asked.iter().map(|(id, ..)| id.as_str()).collect();
            holders.sort_unstable();
            holders
        }

        fn open_until(&self) -> Option<u64> {
            let ends: Option<Vec<u64>> = self.asked.iter().map(|(.., until)| *until).collect();
            ends?.into_iter().max()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_sequence_ends_as_the_model_says(
            steps in proptest::collection::vec(step(), 1..60),
            default_lease in 0..10u64,
            offline_timeout in 0..25u64,
        ) {
            let mut gate = Gate::default();
            let mut model = Model::default();
            let mut now = 1000;
            let seconds = Duration::from_secs;
            for step in steps {
                let was_open = gate.is_open();
                let outcome = match &step {
                    Step::Command(command, origin) => {
                        model.obey(command, *origin, default_lease, now);
                        let outcome =
                            gate.apply(command, *origin, seconds(default_lease), seconds(now));
                        if *command == Command::Keyframe {
                            let wanted = if was_open { Outcome::Keyframe } else { Outcome::Same };
                            prop_assert_eq!(&outcome, &wanted);
                        }
                        if *command == Command::stop() {
                            prop_assert!(!gate.is_open());
                        }
                        outcome
                    }
                    Step::Link(up) => {
                        model.link(*up, now);
                        gate.link(*up, seconds(now));
                        Outcome::Same
                    }
                    Step::Pass(time) => {
                        let then = now + time;
                        // Nothing ends before the deadline, something does at it.
                        if let Some(due) = gate.next_deadline(seconds(offline_timeout)) {
                            let before = gate.holders().len();
                            let early = due.saturating_sub(Duration::from_nanos(1));
                            if early >= seconds(now) && early <= seconds(then) {
                                let outcome = gate.expire(seconds(offline_timeout), early);
                                prop_assert_eq!(outcome, Outcome::Same);
                                prop_assert_eq!(gate.holders().len(), before);
                            }
                        }
                        now = then;
                        model.pass(offline_timeout, now);
                        let due = gate
                            .next_deadline(seconds(offline_timeout))
                            .is_some_and(|due| due <= seconds(now));
                        let before = gate.holders().len();
                        let outcome = gate.expire(seconds(offline_timeout), seconds(now));
                        prop_assert_eq!(due, gate.holders().len() < before);
                        if let Some(next) = gate.next_deadline(seconds(offline_timeout)) {
                            prop_assert!(next > seconds(now));
                        }
                        outcome
                    }
                };
                prop_assert_eq!(gate.holders().collect::<Vec<_>>(), model.holders(), "{:?}", step);
                prop_assert_eq!(gate.open_until(), model.open_until().map(seconds));
                let changed = match outcome {
                    Outcome::Changed(change) => {
                        prop_assert_eq!(change.open, gate.is_open());
                        true
                    }
                    _ => false,
                };
                prop_assert_eq!(changed, was_open != gate.is_open());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn holders_are_bounded_whoever_asks(ids in proptest::collection::vec("[a-z]{3}", 1500..2000)) {
            let mut gate = Gate::default();
            for id in ids {
                let known = gate.holders().any(|holder| holder == id);
                let full = gate.holders().len() == MAX_HOLDERS;
                let start = Command::Start { id: Some(id), lease: None };
                let outcome = gate.apply(&start, Origin::Mqtt, Duration::ZERO, Duration::ZERO);
                prop_assert_eq!(matches!(outcome, Outcome::Refused(_)), full && !known);
                prop_assert!(gate.holders().len() <= MAX_HOLDERS);
            }
        }
    }
}
