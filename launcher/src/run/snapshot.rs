// SPDX-License-Identifier: MPL-2.0

//! What valves and sinks say at one moment, and what systemd and the bridge are told of it.

use droidrelay_wire::{
    PublishPhase, RobotState, Standby, StreamState,
    words::{
        fault::Place,
        state::{MAX_STATE, worst_state},
    },
};

use super::health::Passage;

pub struct Snapshot {
    pub valves: Vec<Valve>,
    pub sinks: Vec<Sink>,
}

/// What one valve says of itself.
pub struct Valve {
    pub name: String,
    pub open: bool,
    /// It takes commands by MQTT.
    pub broker: bool,
    pub connected: bool,
    pub state: RobotState,
    pub stats: gst::Structure,
}

/// What one sink says of itself.
pub struct Sink {
    pub name: String,
    pub state: PublishPhase,
    pub stats: gst::Structure,
}

impl Valve {
    /// It starts its camera anew, which has failed.
    fn tries_again(&self) -> bool {
        self.state.state == StreamState::Error && self.state.standby == Standby::Cold
    }

    /// Leases that hold it open.
    pub fn viewers(&self) -> u32 {
        self.stats.get("viewers").unwrap_or_default()
    }
}

/// A count in an element's statistics.
pub fn count(stats: &gst::Structure, field: &str) -> u64 {
    stats.get(field).unwrap_or_default()
}

impl Snapshot {
    /// Where media is due.
    pub fn passages(&self) -> Vec<Passage> {
        let open = self
            .valves
            .iter()
            // A camera that fails is known to its valve, which tries it again.
            .filter(|valve| valve.open && !valve.tries_again())
            .map(|valve| Passage {
                what: format!("no media has come through {}, which is open,", valve.name),
                count: count(&valve.stats, "passed"),
                last: false,
            });
        let publishing = self.publishing().map(|sink| Passage {
            what: format!("no frame has left {}, which is publishing,", sink.name),
            count: count(&sink.stats, "frames"),
            last: true,
        });
        open.chain(publishing).collect()
    }

    fn publishing(&self) -> impl Iterator<Item = &Sink> {
        self.sinks
            .iter()
            .filter(|sink| sink.state == PublishPhase::Publishing)
    }

    /// Whether there is anything to look at before the next message.
    pub fn is_awake(&self) -> bool {
        self.valves.iter().any(|valve| valve.open)
            || self
                .sinks
                .iter()
                .any(|sink| sink.state != PublishPhase::Idle)
    }

    /// Devices that stay open though nobody wants the stream.
    pub fn left_open(&self) -> Option<String> {
        let open = self.valves.iter().flat_map(|valve| &valve.state.still_open);
        let open: Vec<&str> = open.map(String::as_str).collect();
        (!open.is_empty() && !self.is_awake()).then(|| open.join(", "))
    }

    /// One line on a pipeline that plays.
    pub fn status(&self) -> String {
        let Some(state) = self.worst_state() else {
            return match self.bitrate() {
                0 => "playing".into(),
                bitrate => format!("playing, {}", kbit(bitrate)),
            };
        };
        let mut parts = vec![state.state.as_str().to_owned()];
        if state.state != StreamState::Idle {
            let viewers = self.valves.iter().map(Valve::viewers).max().unwrap_or(0);
            parts.push(match viewers {
                1 => "1 viewer".into(),
                viewers => format!("{viewers} viewers"),
            });
        }
        if state.state == StreamState::Live {
            parts.push(kbit(self.bitrate()));
        }
        if self
            .valves
            .iter()
            .any(|valve| valve.broker && !valve.connected)
        {
            parts.push("no MQTT session".into());
        }
        let text = parts.join(", ");
        // That there is no session with the broker is said.
        let at = |at| state.faults.at(at);
        let why = at(&Place::Source).or(at(&Place::Encoder));
        let why = why.or(at(&Place::Server)).map(|why| format!(": {why}"));
        let branch = at(&Place::Branch).map(|why| format!("; {why}"));
        text + &why.unwrap_or_default() + &branch.unwrap_or_default()
    }

    fn worst_state(&self) -> Option<RobotState> {
        worst_state(self.valves.iter().map(|valve| &valve.state))
    }

    /// What a bridge is told of the robot.
    pub fn robot_state(&self) -> Option<RobotState> {
        self.worst_state()
    }

    /// Bits per second that servers take at this moment.
    fn bitrate(&self) -> u64 {
        self.publishing()
            .map(|sink| count(&sink.stats, "bitrate"))
            .sum()
    }
}

/// The state as the bridge takes it, which is no longer than [`MAX_STATE`].
pub fn state_text(state: &RobotState) -> String {
    String::from_utf8(state.to_payload(MAX_STATE)).unwrap_or_default()
}

/// Two digits: no new line for each change of a bit.
fn kbit(bits: u64) -> String {
    let kbit = bits / 1000;
    let step = match kbit {
        0..100 => 1,
        100..1000 => 10,
        _ => 100,
    };
    format!("{} kbit/s", (kbit + step / 2) / step * step)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn valve(state: StreamState, viewers: u32) -> Valve {
        Valve {
            name: "valve".into(),
            open: state != StreamState::Idle,
            broker: true,
            connected: true,
            state: told(state),
            stats: gst::Structure::builder("stats")
                .field("viewers", viewers)
                .field("passed", 7u64)
                .build(),
        }
    }

    /// A state whose camera has failed.
    fn told(state: StreamState) -> RobotState {
        let mut told = RobotState {
            standby: Standby::Cold,
            ..RobotState::default()
        };
        if state == StreamState::Error {
            told.faults.set(Place::Source, Some("no camera".into()));
        }
        told.state = state;
        told
    }

    pub fn sink(state: PublishPhase, bitrate: u64) -> Sink {
        Sink {
            name: "sink".into(),
            state,
            stats: gst::Structure::builder("stats")
                .field("bitrate", bitrate)
                .field("frames", 70u64)
                .build(),
        }
    }

    fn seen(valves: Vec<Valve>, sinks: Vec<Sink>) -> Snapshot {
        Snapshot { valves, sinks }
    }

    #[test]
    fn the_status_is_one_line_with_state_viewers_and_bitrate() {
        gst::init().unwrap();
        let publishing = || vec![sink(PublishPhase::Publishing, 1_483_000)];
        let live = seen(vec![valve(StreamState::Live, 2)], publishing());
        assert_eq!(live.status(), "live, 2 viewers, 1500 kbit/s");
        let mut idle = seen(
            vec![valve(StreamState::Idle, 0)],
            vec![sink(PublishPhase::Idle, 0)],
        );
        assert_eq!(idle.status(), "idle");
        idle.valves[0].connected = false;
        idle.sinks.clear();
        assert_eq!(idle.status(), "idle, no MQTT session");
        let failed = vec![valve(StreamState::Error, 1), valve(StreamState::Live, 1)];
        let failed = seen(failed, publishing());
        assert_eq!(failed.status(), "error, 1 viewer: no camera");
        let mut faulty = seen(vec![valve(StreamState::Error, 1)], vec![]);
        let faults = &mut faulty.valves[0].state.faults;
        faults.set(Place::Server, Some("closed the connection".into()));
        faults.set(Place::Branch, Some("disk full".into()));
        assert_eq!(faulty.status(), "error, 1 viewer: no camera; disk full");
        faulty.valves[0].state.faults.set(Place::Source, None);
        assert_eq!(
            faulty.status(),
            "error, 1 viewer: closed the connection; disk full"
        );
        assert_eq!(seen(vec![], publishing()).status(), "playing, 1500 kbit/s");
        assert_eq!(seen(vec![], vec![]).status(), "playing");
    }

    #[test]
    fn media_is_due_where_a_valve_is_open_or_a_sink_publishes() {
        gst::init().unwrap();
        let due = |state, sink_state: PublishPhase| {
            seen(vec![valve(state, 1)], vec![sink(sink_state, 0)])
                .passages()
                .iter()
                .map(|passage| (passage.count, passage.last))
                .collect::<Vec<_>>()
        };
        assert_eq!(due(StreamState::Idle, PublishPhase::Idle), []);
        assert_eq!(
            due(StreamState::Live, PublishPhase::Publishing),
            [(7, false), (70, true)]
        );
        assert_eq!(
            due(StreamState::Backoff, PublishPhase::Backoff),
            [(7, false)]
        );
        assert_eq!(due(StreamState::Error, PublishPhase::Connecting), []);
        // Nobody but the launcher starts the camera of a warm valve anew.
        let mut warm = seen(vec![valve(StreamState::Error, 1)], vec![]);
        warm.valves[0].state.standby = Standby::Warm;
        assert_eq!(warm.passages().len(), 1);
    }

    #[test]
    fn a_state_that_is_too_long_for_the_bridge_lists_fewer_viewers() {
        let long = |n: usize| format!("{n:0>100}");
        let state = RobotState {
            state: StreamState::Live,
            viewers: (0..64).map(long).collect(),
            last_error: Some("e".repeat(1000)),
            ..RobotState::default()
        };
        let text = state_text(&state);
        assert!(text.len() <= MAX_STATE, "{}", text.len());
        let read: RobotState = serde_json::from_str(&text).unwrap();
        assert!(read.viewers.len() > 20);
        assert_eq!(read.last_error, state.last_error);
        let endless = RobotState {
            last_error: Some("e".repeat(10_000)),
            ..state
        };
        assert!(state_text(&endless).len() <= MAX_STATE);
    }
}
