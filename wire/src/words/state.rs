// SPDX-License-Identifier: MPL-2.0

//! The retained JSON of the state topic.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{fault::Faults, word::words};

words! {
    /// What a viewer needs to know of the robot's stream, in one word.
    pub enum StreamState default "idle" {
        /// Closed: nothing flows.
        Idle = "idle",
        /// Open, but the server has not accepted the publisher yet or no frame has passed.
        Starting = "starting",
        /// The server has accepted the publisher and frames flow.
        Live = "live",
        /// Open, but the publishing session is lost: waiting for the next try.
        Backoff = "backoff",
        /// Open, but the server refuses the publisher (wrong credentials, path taken).
        Refused = "refused",
        /// Open, but the robot cannot deliver, for example because the camera does not open.
        Error = "error",
    }
}

impl StreamState {
    /// How far from well.
    fn severity(&self) -> u8 {
        match self {
            StreamState::Idle => 0,
            StreamState::Live => 1,
            // Not known to be well.
            StreamState::Starting | StreamState::Other(_) => 2,
            StreamState::Backoff => 3,
            StreamState::Refused => 4,
            StreamState::Error => 5,
        }
    }
}

words! {
    /// State of the sink's publishing session.
    pub enum PublishPhase default "" {
        /// No session is wanted.
        Idle = "idle",
        /// The server has not accepted the publisher yet.
        Connecting = "connecting",
        /// The server has accepted the publisher.
        Publishing = "publishing",
        /// The session failed, the next try waits.
        Backoff = "backoff",
        /// The server refuses the publisher, the next try waits longer.
        Refused = "refused",
    }
}

words! {
    /// Why the valve is as it is.
    pub enum Cause default "" {
        /// The robot has just started.
        Boot = "boot",
        /// A command by MQTT.
        Mqtt = "mqtt",
        /// An action signal or property on the robot itself.
        Local = "local",
        /// The last lease has run out.
        Lease = "lease",
        /// The broker was out of reach for too long.
        Offline = "offline",
    }
}

words! {
    /// What keeps running while the valve is closed.
    pub enum Standby default "" {
        /// Nothing: everything upstream is stopped, the device is released.
        Cold = "cold",
        /// Upstream runs, frames are dropped before the encoder.
        Warm = "warm",
        /// The encoder runs too.
        Hot = "hot",
    }
}

/// What the sink says of its publishing session; part of the state as `publish`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PublishState {
    pub state: PublishPhase,
    /// Why the state is what it is; absent while all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Tries since the last session that the server accepted.
    pub attempt: u32,
    /// Seconds until the next try, where one is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try: Option<f64>,
    /// Bits per second that the server took over the last seconds, while publishing; told
    /// anew when it has changed by a tenth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitrate: Option<u64>,
    /// Bits per second that the encoder was told to make when `bitrate` was told, where
    /// `adaptive-bitrate` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_bitrate: Option<u64>,
}

/// The retained payload of the state topic.
///
/// Fields that a newer robot adds are kept in `more`, so that a bridge hands them on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RobotState {
    pub state: StreamState,
    /// RFC 3339 UTC time at which `state` was entered, by the robot's clock.
    pub since: String,
    /// What led to it.
    pub cause: Cause,
    /// Ids that hold the stream open; a plain `start` counts as `*`, the local switch as `local`.
    pub viewers: Vec<String>,
    /// RFC 3339 time at which the last lease ends; null while one holds until `stop`, or none lives.
    pub lease_until: Option<String>,
    /// The sink's publishing session; absent where no `rtmpauthsink` is downstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<PublishState>,
    /// What is wrong now, without any secret: the reason of the first of `faults`.
    pub last_error: Option<String>,
    /// All that is wrong now, the nearest to the source first.
    #[serde(skip_serializing_if = "Faults::is_empty")]
    pub faults: Faults,
    /// What the sender of the last command that was obeyed knows it by: its MQTT 5 correlation
    /// data, where that is printable UTF-8 of at most 128 bytes, or else the id in it.
    pub last_command_id: Option<String>,
    pub standby: Standby,
    /// Commands refused since the element started.
    pub refused_commands: u64,
    /// Milliseconds from the last opening to the first buffer that passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_latency_ms: Option<f64>,
    /// Devices that the robot's process has open though what has opened them is stopped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub still_open: Vec<String>,
    /// Version of the robot's software.
    pub version: String,
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

/// Bytes of the longest state that is published, or handed to a bridge: a quarter of what the
/// kit's broker takes, and less than any broker takes by default.
pub const MAX_STATE: usize = 4096;

/// Viewers that there are, also where not all are listed.
pub const VIEWER_COUNT: &str = "viewer_count";

/// Lengths to which texts are cut, one after the other.
const CUTS: [usize; 3] = [256, 64, 0];
const LONGEST_TEXT: usize = 1024;

impl RobotState {
    /// Tells of these faults, and of no others.
    pub fn set_faults(&mut self, faults: Faults) {
        self.last_error = faults.first().map(|fault| fault.reason.clone());
        self.faults = faults;
    }

    /// The pipeline of this robot does not play, whatever it says of its stream.
    pub fn set_down(&mut self) {
        if self.state != StreamState::Idle {
            self.state = StreamState::Error;
        }
    }

    /// Why the stream is as it is.
    pub fn reason(&self) -> Option<&str> {
        let publish = self.publish.as_ref();
        let publish = publish.and_then(|publish| publish.reason.as_deref());
        match self.faults.first() {
            Some(fault) => Some(&fault.reason),
            // A robot of version 0.1 keeps an error that is over.
            None => publish.or(self.last_error.as_deref()),
        }
    }

    /// Whether all who hold the stream open are listed.
    pub fn lists_all_viewers(&self) -> bool {
        let count = self.more.get(VIEWER_COUNT).and_then(Value::as_u64);
        count.is_none_or(|count| count <= self.viewers.len() as u64)
    }

    /// The payload of the state topic, within `limit` bytes where that can be done. Of a longer
    /// state fewer viewers are listed ([`VIEWER_COUNT`] stays), then texts are cut, and in the end
    /// all but the state itself is left out.
    pub fn to_payload(&self, limit: usize) -> Vec<u8> {
        let write = |state: &RobotState| serde_json::to_vec(state).unwrap_or_default();
        let whole = write(self);
        if whole.len() <= limit {
            return whole;
        }
        let mut state = self.clone();
        state.cut_texts(LONGEST_TEXT);
        let mut excess = write(&state).len().saturating_sub(limit);
        while excess > 0
            && let Some(viewer) = state.viewers.pop()
        {
            // With the comma.
            let bytes = serde_json::to_string(&viewer).map_or(0, |text| text.len() + 1);
            excess = excess.saturating_sub(bytes);
        }
        for cut in CUTS {
            if write(&state).len() <= limit {
                break;
            }
            state.cut_texts(cut);
        }
        if write(&state).len() > limit {
            state.more.retain(|name, _| name == VIEWER_COUNT);
            state.still_open.clear();
            state.faults = Faults::default();
            state.publish = None;
        }
        write(&state)
    }

    /// Cuts what is said by others to `length` bytes each.
    fn cut_texts(&mut self, length: usize) {
        let reason = self.publish.as_mut().map(|publish| &mut publish.reason);
        let texts = [&mut self.last_error, &mut self.last_command_id];
        for text in texts.into_iter().chain(reason) {
            if text.as_ref().is_some_and(|text| text.len() > length) {
                *text = text
                    .take()
                    .map(|text| cut(text, length))
                    .filter(|text| !text.is_empty());
            }
        }
        self.faults.map_reasons(|reason| cut(reason, length));
        for value in self.more.values_mut() {
            if let Value::String(text) = value {
                *text = cut(std::mem::take(text), length);
            }
        }
    }

    /// The state that stays on the broker after a clean end.
    pub fn into_ended(mut self) -> Self {
        if let Some(count) = self.more.get_mut(VIEWER_COUNT) {
            *count = 0.into();
        }
        RobotState {
            state: StreamState::Idle,
            viewers: Vec::new(),
            lease_until: None,
            publish: None,
            still_open: Vec::new(),
            ..self
        }
    }
}

/// The beginning of `text`, of at most `length` bytes.
fn cut(mut text: String, length: usize) -> String {
    const MARK: &str = "…";
    if text.len() > length {
        let mut end = length.saturating_sub(MARK.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        if length >= MARK.len() {
            text.push_str(MARK);
        }
    }
    text
}

/// Several streams that are told as one: the state that is furthest from well, of equals the first,
/// with what is wrong with any of them.
pub fn worst_state<'a>(
    states: impl IntoIterator<Item = &'a RobotState> + Clone,
) -> Option<RobotState> {
    let worst = states.clone().into_iter().reduce(|worst, state| {
        if state.state.severity() > worst.state.severity() {
            state
        } else {
            worst
        }
    });
    let mut worst = worst?.clone();
    let mut faults = std::mem::take(&mut worst.faults);
    for state in states {
        faults.add(state.faults.clone());
        for device in &state.still_open {
            if !worst.still_open.contains(device) {
                worst.still_open.push(device.clone());
            }
        }
    }
    if !faults.is_empty() {
        worst.set_faults(faults);
    }
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::fault::Place;

    #[test]
    fn unknown_fields_survive_and_missing_ones_default() {
        let state: RobotState =
            serde_json::from_str(r#"{"state":"live","from_the_future":7}"#).unwrap();
        assert_eq!(state.state, StreamState::Live);
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains(r#""from_the_future":7"#), "{text}");
    }

    #[test]
    fn a_word_of_a_newer_robot_is_handed_on_as_it_came() {
        let text = r#"{"state":"dreaming","cause":"moon","standby":"lukewarm","publish":{"state":"queueing"}}"#;
        let state: RobotState = serde_json::from_str(text).unwrap();
        assert_eq!(state.state, StreamState::Other("dreaming".into()));
        let written = serde_json::to_value(&state).unwrap();
        for (at, word) in [
            ("/state", "dreaming"),
            ("/cause", "moon"),
            ("/standby", "lukewarm"),
            ("/publish/state", "queueing"),
        ] {
            assert_eq!(written.pointer(at).unwrap(), word);
        }
    }

    #[test]
    fn the_worst_state_speaks_and_of_equals_the_first() {
        let state = |state, version: &str| RobotState {
            state,
            version: version.into(),
            ..RobotState::default()
        };
        let states = [
            state(StreamState::Live, "1"),
            state(StreamState::Backoff, "2"),
            state(StreamState::Backoff, "3"),
            state(StreamState::Idle, "4"),
        ];
        assert_eq!(worst_state(&states).as_ref(), Some(&states[1]));
        assert_eq!(worst_state(&[]), None);
    }

    #[test]
    fn what_is_wrong_with_one_of_several_streams_is_told_with_the_others_state() {
        let told = |state, at, reason: &str, device: &str| {
            let mut told = RobotState {
                state,
                still_open: vec![device.to_owned()],
                ..RobotState::default()
            };
            let mut faults = Faults::default();
            faults.set(at, Some(reason.to_owned()));
            told.set_faults(faults);
            told
        };
        let states = [
            told(StreamState::Live, Place::Branch, "disk full", "/dev/video0"),
            told(StreamState::Backoff, Place::Server, "away", "/dev/video2"),
        ];
        let worst = worst_state(&states).unwrap();
        assert_eq!(worst.state, StreamState::Backoff);
        assert_eq!(worst.last_error.as_deref(), Some("disk full"));
        assert_eq!(worst.faults.at(&Place::Server), Some("away"));
        assert_eq!(worst.still_open, ["/dev/video2", "/dev/video0"]);
    }

    #[test]
    fn at_the_end_nothing_flows_and_the_last_error_stays() {
        let ended = RobotState {
            state: StreamState::Live,
            viewers: vec!["phone".into()],
            lease_until: Some("2026-11-27T12:00:00Z".into()),
            publish: Some(PublishState::default()),
            still_open: vec!["/dev/video0".into()],
            last_error: Some("no camera".into()),
            more: [(VIEWER_COUNT.to_owned(), 7.into())].into_iter().collect(),
            ..RobotState::default()
        }
        .into_ended();
        let expected = RobotState {
            last_error: Some("no camera".into()),
            more: [(VIEWER_COUNT.to_owned(), 0.into())].into_iter().collect(),
            ..RobotState::default()
        };
        assert_eq!(ended, expected);
    }

    #[test]
    fn a_state_is_as_short_as_the_broker_wants_it_and_counts_who_is_not_listed() {
        let viewers: Vec<String> = (0..64)
            .map(|n| format!("{n}{}", "\"".repeat(120)))
            .collect();
        let mut state = RobotState {
            state: StreamState::Live,
            since: "2026-11-27T12:00:00Z".into(),
            viewers,
            last_error: Some("ä".repeat(5000)),
            last_command_id: Some("id".repeat(64)),
            publish: Some(PublishState {
                reason: Some("x".repeat(5000)),
                ..PublishState::default()
            }),
            ..RobotState::default()
        };
        state.more.insert(VIEWER_COUNT.into(), 64.into());
        state
            .more
            .insert("last_command".into(), "y".repeat(4096).into());
        for limit in [MAX_STATE, 3000, 1000, 500, 300] {
            let payload = state.to_payload(limit);
            assert!(payload.len() <= limit, "{} of {limit}", payload.len());
            let read: RobotState = serde_json::from_slice(&payload).unwrap();
            assert_eq!(read.state, StreamState::Live);
            assert_eq!(read.more[VIEWER_COUNT], 64);
            assert!(read.viewers.iter().zip(&state.viewers).all(|(a, b)| a == b));
            assert_eq!(read.viewers.is_empty(), limit < MAX_STATE, "{limit}");
        }
        let short = RobotState::default();
        assert_eq!(
            short.to_payload(MAX_STATE),
            serde_json::to_vec(&short).unwrap()
        );
    }

    #[test]
    fn states_are_written_in_lower_case() {
        for state in StreamState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(StreamState::from(state.as_str()), *state);
        }
        let text = serde_json::to_string(&RobotState::default()).unwrap();
        assert!(text.starts_with(r#"{"state":"idle""#), "{text}");
        assert!(text.contains(r#""lease_until":null"#), "{text}");
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use crate::words::fault::{Fault, Place};
    use proptest::{collection::vec, option, prelude::*, sample::select};

    /// Milliseconds, as times are told.
    fn seconds() -> impl Strategy<Value = f64> {
        (0..1_000_000_000u32).prop_map(|millis| f64::from(millis) / 1000.0)
    }

    /// What a newer robot may add.
    fn unknown() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec(("[a-z]{1,3}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// A known word, or one of a newer robot.
    fn word<T>(known: &'static [T]) -> impl Strategy<Value = T>
    where
        T: Clone + std::fmt::Debug + From<String>,
    {
        prop_oneof![select(known), any::<String>().prop_map(T::from)]
    }

    prop_compose! {
        fn publish()(
            state in word(PublishPhase::ALL),
            reason in any::<Option<String>>(),
            attempt in any::<u32>(),
            next_try in option::of(seconds()),
            [bitrate, target_bitrate] in any::<[Option<u64>; 2]>(),
        ) -> PublishState {
            PublishState { state, reason, attempt, next_try, bitrate, target_bitrate }
        }
    }

    prop_compose! {
        fn robot_state()(
            state in word(StreamState::ALL),
            (cause, standby) in (word(Cause::ALL), word(Standby::ALL)),
            [since, version] in any::<[String; 2]>(),
            [lease_until, last_error, last_command_id] in any::<[Option<String>; 3]>(),
            [viewers, still_open] in [vec(any::<String>(), 0..4), vec(any::<String>(), 0..4)],
            publish in option::of(publish()),
            refused_commands in any::<u64>(),
            start_latency_ms in option::of(seconds()),
            faults in vec((word(Place::ALL), "[a-z]{0,5}"), 0..3),
            more in vec(("x_[a-z]{1,5}", unknown()), 0..3),
        ) -> RobotState {
            let faults = faults.into_iter().map(|(at, reason)| Fault { at, reason });
            let faults = Faults::from(faults.collect::<Vec<_>>());
            RobotState {
                state,
                since,
                cause,
                viewers,
                lease_until,
                publish,
                last_error,
                faults,
                last_command_id,
                standby,
                refused_commands,
                start_latency_ms,
                still_open,
                version,
                more: more.into_iter().collect(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_state_that_is_shortened_is_still_one(state in robot_state(), limit in 0..2000usize) {
            let written = state.to_payload(limit);
            let read = serde_json::from_slice::<RobotState>(&written).unwrap();
            prop_assert_eq!(&read.state, &state.state);
            prop_assert!(written.len() <= serde_json::to_vec(&state).unwrap().len());
        }

        #[test]
        fn a_state_is_read_as_it_was_written(state in robot_state()) {
            let written = serde_json::to_vec(&state).unwrap();
            prop_assert_eq!(serde_json::from_slice::<RobotState>(&written).unwrap(), state);
        }
    }
}
