// SPDX-License-Identifier: MPL-2.0

//! What the valve knows of itself: the gate, what became of the last opening, and what is
//! still to be announced. Pure but for the wall clock in the state's time stamps.

use std::{collections::VecDeque, time::Duration};

use droidrelay_wire::{
    PublishPhase, PublishState, RobotState, StreamState,
    words::{
        fault::{Faults, Place},
        gate::{Change, Gate, Outcome},
        state::{Cause, VIEWER_COUNT},
    },
};

use serde_json::Value;

use crate::element::link;

/// What is lost at the broker, sentence by sentence; absent where nothing is.
const BROKER_LIMITS: &str = "broker_limits";
/// Viewers whose ids are listed in the state; all are counted.
const LISTED_VIEWERS: usize = 64;
/// Openings and closings that wait for the announcer; older pairs cancel out.
const WAITING_CHANGES: usize = 64;

/// A session that has lasted this long makes forgotten why there was none: before, nobody at the
/// broker could be told.
const SESSION_LASTS: Duration = Duration::from_secs(30);

/// Key frames that `keyframe` commands can cause: one in this time.
const KEYFRAME_INTERVAL: Duration = Duration::from_millis(500);

/// What is to be announced, as it was at one moment.
#[derive(Debug)]
pub struct Report {
    /// Openings and closings, oldest first, each with the number of its opening.
    pub changes: VecDeque<(u64, Change)>,
    pub state: RobotState,
    pub connected: bool,
    /// A key frame is to be asked for.
    pub keyframe: bool,
    /// A sink that waits for its next try is to try now, for this opening.
    pub hurry: Option<u64>,
    /// The valve has just closed because leases have ended.
    pub expired: bool,
    /// When something changes by itself.
    pub due: Option<Duration>,
}

/// Guarded by the element's `control` mutex.
#[derive(Debug, Default)]
pub struct Control {
    pub gate: Gate,
    /// The session with the broker is up.
    pub connected: bool,
    /// The element has been started before.
    pub started: bool,
    /// As in [`Report`].
    changes: VecDeque<(u64, Change)>,
    /// As it was told last; [`Control::robot_state`] brings the rest up to date.
    pub state: RobotState,
    /// What is wrong now, by what the valve sees. Each entry goes when its place is well again:
    /// the source's with a frame, the encoder's with one of its own, the server's with what the sink
    /// says next, the broker's when a session has lasted, a refused command's with one that is
    /// obeyed. What concerns an opening ends with it; a setting's is told until the next one.
    faults: Faults,
    /// And by what the application says, until it takes it back.
    reported: Faults,
    /// The broker's fault is over, and told until then.
    broker_well_at: Option<Duration>,
    last_command: Option<String>,
    pub opens: u64,
    /// Number of the last opening.
    opening: u64,
    /// No sink is told of openings.
    released: bool,
    /// Since the last opening: has a buffer passed, and how long did that take.
    opened_at: Option<Duration>,
    flowing: bool,
    pub start_latency: Option<Duration>,
    /// A sink that waits for its next try is to try now.
    pub hurry: bool,
    /// When the sink's state came.
    published_at: Duration,
    /// A key frame is wanted: now, or as soon as the last one is old enough.
    pub keyframe_wanted: bool,
    last_keyframe: Option<Duration>,
}

impl Control {
    pub fn new() -> Self {
        Control {
            state: RobotState {
                since: utc_after(Duration::ZERO),
                cause: Cause::Boot,
                version: env!("CARGO_PKG_VERSION").into(),
                ..RobotState::default()
            },
            ..Control::default()
        }
    }

    /// Takes note of what the gate decided; returns true where it opened or closed.
    pub fn decided(&mut self, outcome: Outcome, now: Duration) -> bool {
        match outcome {
            Outcome::Changed(change) => {
                self.state.cause = change.cause.clone();
                self.flowing = false;
                self.forget(&[Place::Source, Place::Encoder, Place::Server]);
                if change.open {
                    self.opens += 1;
                    self.opening = link::next_opening();
                    self.opened_at = Some(now);
                    self.start_latency = None;
                    self.forget(&[Place::Setting, Place::Command]);
                }
                if self.changes.len() >= WAITING_CHANGES {
                    self.changes.drain(..2);
                }
                self.changes.push_back((self.opening, change));
                true
            }
            Outcome::Refused(reason) => {
                self.refuse(reason.into());
                false
            }
            Outcome::Keyframe => {
                self.keyframe_wanted = true;
                false
            }
            Outcome::Same => false,
        }
    }

    /// When a wanted key frame may be asked for.
    fn keyframe_due(&self, interval: Duration) -> Option<Duration> {
        let last = self.last_keyframe;
        let due = last.map_or(Duration::ZERO, |at| at + interval);
        self.keyframe_wanted.then_some(due)
    }

    /// Whether to ask for a key frame at `now`.
    fn take_keyframe(&mut self, now: Duration, interval: Duration) -> bool {
        self.keyframe_wanted &= self.gate.is_open();
        let take = self.keyframe_due(interval).is_some_and(|due| due <= now);
        if take {
            self.keyframe_wanted = false;
            self.last_keyframe = Some(now);
        }
        take
    }

    /// What the valve says of itself to sinks that several valves lead to.
    pub fn claim(&self) -> link::Claim {
        link::Claim {
            open: self.gate.is_open() && !self.released,
            opening: self.opening,
        }
    }

    /// What is downstream is on its own until the next announcement; gives the last opening.
    pub fn release(&mut self) -> u64 {
        self.released = true;
        self.state.publish = None;
        self.forget(&[Place::Server]);
        self.opening
    }

    /// The property `stats`.
    pub fn stats(&self, passed: u64, dropped: u64, reconnects: u64) -> gst::Structure {
        let latency = self.start_latency.unwrap_or_default();
        gst::Structure::builder("application/x-mqttvalve-stats")
            .field("passed", passed)
            .field("dropped", dropped)
            .field("opens", self.opens)
            .field("refused-commands", self.state.refused_commands)
            .field("reconnects", reconnects)
            .field("viewers", self.gate.holders().len() as u32)
            .field("start-latency", latency.as_nanos() as u64)
            .build()
    }

    /// Puts the gate as it is on the list of what is to be announced once more.
    pub fn announce_again(&mut self) {
        self.released = false;
        if self.changes.is_empty() {
            let change = Change {
                open: self.gate.is_open(),
                cause: self.state.cause.clone(),
                who: None,
            };
            self.changes.push_back((self.opening, change));
        }
    }

    /// Ends leases that have run out, and gives all that is to be announced.
    pub fn report(&mut self, offline_timeout: Duration, standby: &str, now: Duration) -> Report {
        if self.connected && self.broker_well_at.is_some_and(|at| at <= now) {
            self.broker_well_at = None;
            self.forget(&[Place::Broker]);
        }
        let outcome = self.gate.expire(offline_timeout, now);
        let expired = self.decided(outcome, now);
        let keyframe = self.take_keyframe(now, KEYFRAME_INTERVAL);
        let hurry = std::mem::take(&mut self.hurry) && self.gate.is_open();
        Report {
            expired,
            changes: std::mem::take(&mut self.changes),
            state: self.robot_state(standby, now),
            connected: self.connected,
            keyframe,
            hurry: hurry.then_some(self.opening),
            due: self
                .gate
                .next_deadline(offline_timeout)
                .into_iter()
                .chain(self.keyframe_due(KEYFRAME_INTERVAL))
                .chain(self.broker_well_at.filter(|_| self.connected))
                .min(),
        }
    }

    /// The session with the broker is up or down.
    pub fn link(&mut self, up: bool, now: Duration) {
        self.connected = up;
        // The way to the server may be there again, too.
        self.hurry |= up;
        self.gate.link(up, now);
        let was_away = up && self.faults.at(&Place::Broker).is_some();
        self.broker_well_at = was_away.then(|| now + SESSION_LASTS);
    }

    /// What the broker cannot do; true where that is new.
    pub fn limits(&mut self, limits: Vec<String>) -> bool {
        let limits = Value::from(limits);
        let before = match limits.as_array().is_some_and(Vec::is_empty) {
            true => self.state.more.remove(BROKER_LIMITS),
            false => self.state.more.insert(BROKER_LIMITS.into(), limits.clone()),
        };
        before.is_none_or(|before| before != limits)
    }

    /// Counts a command that is not obeyed.
    pub fn refuse(&mut self, reason: String) {
        self.state.refused_commands += 1;
        self.note(Place::Command, format!("command refused: {reason}"));
    }

    /// Keeps the last command that was obeyed, so that a sender sees that it was.
    pub fn obeyed(&mut self, command: String, id: Option<&str>) {
        self.last_command = Some(command);
        self.state.last_command_id = id.map(str::to_owned);
        self.forget(&[Place::Command]);
    }

    /// The first buffer since the opening passes, or the first one after a fault; returns the
    /// opening's number.
    pub fn flowing(&mut self, now: Duration) -> u64 {
        self.forget(&[Place::Source]);
        if !std::mem::replace(&mut self.flowing, true) {
            self.start_latency = self.opened_at.map(|at| now.saturating_sub(at));
        }
        self.opening
    }

    /// The element starts: nothing flows yet, and what a sink has said was of another session.
    pub fn start(&mut self, now: Duration) {
        // Leases that ran out while the element was stopped do not open it again.
        let outcome = self.gate.expire(Duration::ZERO, now);
        self.decided(outcome, now);
        self.started = true;
        self.flowing = false;
        self.faults = Faults::default();
        self.broker_well_at = None;
        self.state.publish = None;
        self.opened_at = self.gate.is_open().then_some(now);
        self.start_latency = None;
    }

    pub fn publish(&mut self, publish: PublishState, now: Duration) {
        self.published_at = now;
        self.faults.set(Place::Server, publish.reason.clone());
        self.state.publish = Some(publish);
    }

    /// The camera cannot deliver, until it can again.
    pub fn fault(&mut self, fault: String) {
        self.note(Place::Source, fault);
    }

    /// What is wrong there from now on.
    pub fn note(&mut self, at: Place, error: String) {
        if at == Place::Broker {
            self.broker_well_at = None;
        }
        self.faults.set(at, Some(error));
    }

    pub fn is_noted(&self, at: &Place) -> bool {
        self.faults.at(at).is_some()
    }

    pub fn forget(&mut self, places: &[Place]) {
        for place in places {
            self.faults.set(place.clone(), None);
        }
    }

    /// What the application knows to be wrong; true where that is new.
    pub fn report_fault(&mut self, at: Place, reason: Option<String>) -> bool {
        let is_new = self.reported.at(&at) != reason.as_deref();
        self.reported.set(at, reason);
        is_new
    }

    fn stream_state(&self) -> StreamState {
        if !self.gate.is_open() {
            return StreamState::Idle;
        }
        if self.faults.at(&Place::Source).is_some() {
            return StreamState::Error;
        }
        match self.state.publish.as_ref().map(|publish| &publish.state) {
            Some(PublishPhase::Backoff) => StreamState::Backoff,
            Some(PublishPhase::Refused) => StreamState::Refused,
            Some(PublishPhase::Publishing) | None if self.flowing => StreamState::Live,
            _ => StreamState::Starting,
        }
    }

    /// The state as it is to be published at `now`; notes the time at which its word changed.
    pub fn robot_state(&mut self, standby: &str, now: Duration) -> RobotState {
        let (state, holders) = (self.stream_state(), self.gate.holders());
        let told = &mut self.state;
        if told.state != state {
            told.state = state;
            told.since = utc_after(Duration::ZERO);
        }
        let (opens, last_command) = (self.opens, self.last_command.clone());
        for (name, value) in [
            (VIEWER_COUNT, holders.len().into()),
            ("opens", opens.into()),
            ("last_command", last_command.into()),
        ] {
            told.more.insert(name.into(), value);
        }
        let mut faults = self.faults.clone();
        faults.add(self.reported.clone());
        told.set_faults(faults);
        told.viewers = holders.take(LISTED_VIEWERS).map(str::to_owned).collect();
        let until = self.gate.open_until();
        told.lease_until = until.map(|until| utc_after(until.saturating_sub(now)));
        told.standby = standby.into();
        let latency = self.start_latency.map(|latency| latency.as_secs_f64());
        told.start_latency_ms = latency.map(|seconds| (seconds * 1e6).round() / 1e3);
        let mut told = told.clone();
        if let Some(publish) = &mut told.publish {
            link::pass(publish, now.saturating_sub(self.published_at));
        }
        told
    }
}

/// RFC 3339 time in UTC, `after` from now.
fn utc_after(after: Duration) -> String {
    glib::DateTime::now_utc()
        .and_then(|now| {
            now.add(glib::TimeSpan(
                i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            ))
        })
        .and_then(|time| time.format("%Y-%m-%dT%H:%M:%SZ"))
        .map(String::from)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use droidrelay_wire::{Command, words::gate::Origin};

    fn apply(control: &mut Control, command: Command) {
        let outcome = control
            .gate
            .apply(&command, Origin::Mqtt, Duration::ZERO, Duration::ZERO);
        control.decided(outcome, Duration::ZERO);
    }

    fn state(control: &mut Control) -> StreamState {
        control.robot_state("cold", Duration::ZERO).state
    }

    fn publish(state: &str) -> PublishState {
        PublishState {
            state: state.into(),
            ..PublishState::default()
        }
    }

    #[test]
    fn the_next_try_comes_nearer_and_is_asked_for_by_a_link_that_is_back() {
        let mut control = Control::new();
        apply(&mut control, Command::start());
        let mut backoff = publish("backoff");
        backoff.next_try = Some(12.5);
        control.publish(backoff, Duration::from_secs(10));
        let next_try = |control: &mut Control, now| {
            let state = control.robot_state("cold", Duration::from_secs(now));
            state.publish.and_then(|publish| publish.next_try)
        };
        assert_eq!(next_try(&mut control, 10), Some(12.5));
        assert_eq!(next_try(&mut control, 15), Some(7.5));
        assert_eq!(next_try(&mut control, 60), Some(0.0));
        let hurry = |control: &mut Control| {
            let report = control.report(Duration::ZERO, "cold", Duration::ZERO);
            report.hurry.is_some()
        };
        assert!(!hurry(&mut control));
        control.link(true, Duration::ZERO);
        assert!(hurry(&mut control));
        assert!(!hurry(&mut control), "once");
    }

    #[test]
    fn live_needs_frames_and_an_accepted_publisher() {
        let mut control = Control::new();
        assert_eq!(state(&mut control), StreamState::Idle);
        apply(&mut control, Command::start());
        assert_eq!(state(&mut control), StreamState::Starting);
        control.publish(publish("connecting"), Duration::ZERO);
        control.flowing(Duration::from_millis(7));
        assert_eq!(state(&mut control), StreamState::Starting);
        control.publish(publish("publishing"), Duration::ZERO);
        assert_eq!(state(&mut control), StreamState::Live);
        assert_eq!(
            control.robot_state("cold", Duration::ZERO).start_latency_ms,
            Some(7.0)
        );
        control.publish(publish("refused"), Duration::ZERO);
        assert_eq!(state(&mut control), StreamState::Refused);
        apply(&mut control, Command::stop());
        assert_eq!(state(&mut control), StreamState::Idle);
    }

    #[test]
    fn a_valve_that_starts_open_is_not_live_because_it_was_before() {
        let mut control = Control::new();
        apply(&mut control, Command::start());
        control.publish(publish("publishing"), Duration::ZERO);
        control.flowing(Duration::ZERO);
        assert_eq!(state(&mut control), StreamState::Live);
        control.start(Duration::from_millis(500));
        assert_eq!(state(&mut control), StreamState::Starting);
        control.flowing(Duration::from_millis(520));
        assert_eq!(control.start_latency, Some(Duration::from_millis(20)));
    }

    #[test]
    fn without_a_sink_that_reports_frames_are_enough() {
        let mut control = Control::new();
        apply(&mut control, Command::start());
        control.flowing(Duration::ZERO);
        assert_eq!(state(&mut control), StreamState::Live);
    }

    #[test]
    fn a_camera_fault_is_named_until_frames_flow() {
        let mut control = Control::new();
        apply(&mut control, Command::start());
        control.fault("cannot open /dev/video0".into());
        let said = control.robot_state("cold", Duration::ZERO);
        assert_eq!(said.state, StreamState::Error);
        assert_eq!(said.last_error.as_deref(), Some("cannot open /dev/video0"));
        control.flowing(Duration::ZERO);
        assert_eq!(state(&mut control), StreamState::Live);
        let said = control.robot_state("cold", Duration::ZERO);
        assert_eq!(said.last_error, None, "no error that is over beside live");
    }

    fn lost(reason: &str) -> PublishState {
        PublishState {
            reason: Some(reason.into()),
            ..publish("backoff")
        }
    }

    fn last_error(control: &mut Control) -> Option<String> {
        control.robot_state("cold", Duration::ZERO).last_error
    }

    #[test]
    fn the_nearest_to_the_camera_is_told_whatever_comes_of_it() {
        let mut control = Control::new();
        apply(&mut control, Command::start());
        control.publish(lost("the server closed the connection"), Duration::ZERO);
        control.fault("the camera gives no frame".into());
        control.publish(lost("the server closed the connection"), Duration::ZERO);
        control.note(Place::Broker, "no session".into());
        let said = control.robot_state("cold", Duration::ZERO);
        assert_eq!(said.state, StreamState::Error);
        assert_eq!(
            said.last_error.as_deref(),
            Some("the camera gives no frame")
        );
        let places: Vec<_> = said.faults.iter().map(|fault| fault.at.as_str()).collect();
        assert_eq!(places, ["source", "server", "broker"]);

        // Each goes with its own.
        control.flowing(Duration::ZERO);
        let error = last_error(&mut control);
        assert_eq!(error.as_deref(), Some("the server closed the connection"));
        control.publish(publish("publishing"), Duration::ZERO);
        assert_eq!(last_error(&mut control).as_deref(), Some("no session"));
    }

    #[test]
    fn what_concerns_an_opening_ends_with_it() {
        let mut control = Control::new();
        apply(&mut control, Command::start());
        control.fault("the camera gives no frame".into());
        control.note(Place::Encoder, "the encoder gives nothing".into());
        control.publish(lost("the server closed the connection"), Duration::ZERO);
        apply(&mut control, Command::stop());
        assert_eq!(last_error(&mut control), None);
    }

    #[test]
    fn what_the_application_reports_stays_until_it_takes_it_back() {
        let mut control = Control::new();
        let disk = || Some("the disk is full".to_owned());
        assert!(control.report_fault(Place::Branch, disk()));
        assert!(!control.report_fault(Place::Branch, disk()), "no news");
        apply(&mut control, Command::start());
        control.flowing(Duration::ZERO);
        control.publish(publish("publishing"), Duration::ZERO);
        assert_eq!(state(&mut control), StreamState::Live);
        assert_eq!(last_error(&mut control), disk());
        control.fault("the camera gives no frame".into());
        let said = control.robot_state("cold", Duration::ZERO);
        assert_eq!(said.faults.at(&Place::Branch), disk().as_deref());
        assert_ne!(said.last_error, disk(), "the camera is nearer");
        control.start(Duration::ZERO);
        assert_eq!(last_error(&mut control), disk());
        assert!(control.report_fault(Place::Branch, None));
        assert_eq!(last_error(&mut control), None);
    }

    #[test]
    fn why_there_was_no_session_is_told_until_one_has_lasted() {
        let at = Duration::from_secs;
        let mut control = Control::new();
        let told = |control: &mut Control, now| {
            let report = control.report(Duration::ZERO, "cold", now);
            (report.state.last_error.is_some(), report.due)
        };
        control.link(true, at(0));
        control.note(Place::Broker, "another client took the session".into());
        control.link(false, at(5));
        assert_eq!(told(&mut control, at(100)), (true, None));
        control.link(true, at(100));
        assert_eq!(told(&mut control, at(101)), (true, Some(at(130))));
        control.note(Place::Broker, "another client took the session".into());
        control.link(false, at(110));
        assert!(told(&mut control, at(131)).0);
        control.link(true, at(140));
        assert!(told(&mut control, at(169)).0);
        assert_eq!(told(&mut control, at(170)), (false, None));
        // What the broker refuses in a session is not over because that lasts.
        control.note(Place::Broker, "the broker refuses a message".into());
        assert_eq!(told(&mut control, at(1000)), (true, None));
    }

    #[test]
    fn a_refused_command_is_told_until_another_is_obeyed() {
        let mut control = Control::new();
        control.refuse("nonsense".into());
        assert!(last_error(&mut control).is_some_and(|error| error.contains("nonsense")));
        control.obeyed("stop".into(), None);
        assert_eq!(last_error(&mut control), None);
    }

    #[test]
    fn waiting_changes_are_bounded_and_end_as_the_gate_is() {
        let mut control = Control::new();
        for _ in 0..100 {
            apply(&mut control, Command::start());
            apply(&mut control, Command::stop());
        }
        apply(&mut control, Command::start());
        assert!(control.changes.len() <= WAITING_CHANGES + 1);
        assert!(control.changes.front().unwrap().1.open);
        assert!(control.changes.back().unwrap().1.open);
    }

    #[test]
    fn key_frames_are_asked_for_at_most_once_an_interval_and_none_is_forgotten() {
        let interval = Duration::from_millis(500);
        let at = Duration::from_millis;
        let mut control = Control::new();
        apply(&mut control, Command::start());
        assert!(!control.take_keyframe(at(0), interval));
        control.keyframe_wanted = true;
        assert!(control.take_keyframe(at(1000), interval));
        control.keyframe_wanted = true;
        control.keyframe_wanted = true;
        assert!(!control.take_keyframe(at(1100), interval));
        assert_eq!(control.keyframe_due(interval), Some(at(1500)));
        assert!(control.take_keyframe(at(1500), interval));
        assert!(!control.take_keyframe(at(2500), interval));
    }

    #[test]
    fn a_lease_end_is_told_as_wall_clock_time() {
        let mut control = Control::new();
        apply(
            &mut control,
            Command::Start {
                id: Some("a".into()),
                lease: Some(Duration::from_secs(30)),
            },
        );
        let until = control
            .robot_state("cold", Duration::ZERO)
            .lease_until
            .unwrap();
        assert_eq!(until.len(), "2026-01-01T00:00:00Z".len());
        assert!(until > utc_after(Duration::from_secs(20)), "{until}");
    }
}
