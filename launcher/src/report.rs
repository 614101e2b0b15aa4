// SPDX-License-Identifier: MPL-2.0

//! What valves and sinks say, in the words of systemd, Prometheus, the bridge and the log.

use std::time::Duration;

use droidrelay_wire::{RobotState, StreamState};

use crate::{
    elements::{Sink, Valve, count, gravest},
    health::Passage,
    metrics::Page,
};

/// Longest state that a bridge takes, in bytes.
const MAX_STATE: usize = 4096;
/// States of a sink, one sample each.
const SINK_STATES: [&str; 5] = ["idle", "connecting", "publishing", "backoff", "refused"];

/// Where media is due at this moment.
pub fn passages(valves: &[Valve], sinks: &[Sink]) -> Vec<Passage> {
    let open = valves
        .iter()
        // A camera that fails is known to its valve, which tries it again.
        .filter(|valve| valve.open && valve.state.state != StreamState::Error)
        .map(|valve| Passage {
            what: format!("no media has come through {}, which is open,", valve.name),
            count: count(&valve.stats, "passed"),
            last: false,
        });
    let publishing = sinks
        .iter()
        .filter(|sink| sink.state == "publishing")
        .map(|sink| Passage {
            what: format!("no frame has left {}, which is publishing,", sink.name),
            count: count(&sink.stats, "frames"),
            last: true,
        });
    open.chain(publishing).collect()
}

/// Whether there is anything to look at before the next message.
pub fn is_awake(valves: &[Valve], sinks: &[Sink]) -> bool {
    valves.iter().any(|valve| valve.open) || sinks.iter().any(|sink| sink.state != "idle")
}

/// One line on a pipeline that plays.
pub fn status(valves: &[Valve], sinks: &[Sink]) -> String {
    let Some(state) = gravest(valves) else {
        return match bitrate(sinks) {
            0 => "playing".into(),
            bitrate => format!("playing, {}", kbit(bitrate)),
        };
    };
    let mut parts = vec![state.state.as_str().to_owned()];
    if state.state != StreamState::Idle {
        let viewers = valves.iter().map(viewers).max().unwrap_or(0);
        parts.push(match viewers {
            1 => "1 viewer".into(),
            viewers => format!("{viewers} viewers"),
        });
    }
    if state.state == StreamState::Live {
        parts.push(kbit(bitrate(sinks)));
    }
    if valves.iter().any(|valve| valve.broker && !valve.connected) {
        parts.push("no MQTT session".into());
    }
    let mut text = parts.join(", ");
    let reason = match state.state {
        StreamState::Backoff | StreamState::Refused => state
            .publish
            .as_ref()
            .and_then(|publish| publish.reason.as_ref()),
        StreamState::Error => state.last_error.as_ref(),
        _ => None,
    };
    if let Some(reason) = reason {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

/// What a bridge is told of the robot; `fault`: why its pipeline does not play.
pub fn robot_state(valves: &[Valve], fault: Option<&str>) -> Option<RobotState> {
    let mut state = gravest(valves)?.clone();
    if let Some(fault) = fault {
        state.last_error = Some(fault.to_owned());
        if state.state != StreamState::Idle {
            state.state = StreamState::Error;
        }
    }
    Some(state)
}

/// The state as the bridge takes it, which is no longer than [`MAX_STATE`]: viewers that do not fit
/// are not listed, but counted.
pub fn state_text(mut state: RobotState) -> String {
    loop {
        let text = serde_json::to_string(&state).unwrap_or_default();
        if text.len() <= MAX_STATE {
            return text;
        }
        if state.viewers.pop().is_none() {
            state.last_error = None;
            state.publish = None;
            state.more.clear();
            return serde_json::to_string(&state).unwrap_or_default();
        }
    }
}

fn viewers(valve: &Valve) -> u32 {
    valve.stats.get("viewers").unwrap_or_default()
}

/// Bits per second that servers take at this moment.
fn bitrate(sinks: &[Sink]) -> u64 {
    sinks
        .iter()
        .filter(|sink| sink.state == "publishing")
        .map(|sink| count(&sink.stats, "bitrate"))
        .sum()
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

/// What the launcher itself counts.
#[derive(Debug, Default)]
pub struct Counters {
    pub starts: u64,
    pub failures: u64,
    pub rebuilds: u64,
    pub reloads: u64,
    pub polls: u64,
    pub failed_polls: u64,
    /// With `--poll`: whether the last question was answered.
    pub bridge: Option<bool>,
}

pub fn page<'a>(
    playing: bool,
    counters: &Counters,
    valves: &[Valve],
    sinks: &[Sink],
    triggers: impl Iterator<Item = (&'a str, u64)>,
) -> Page {
    let flag = |set: bool| if set { 1.0 } else { 0.0 };
    let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
    let mut page = Page::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("droidrelay_info", "The launcher's version.", &version, 1.0);
    page.gauge(
        "droidrelay_playing",
        "Whether the pipeline plays.",
        &[],
        flag(playing),
    );
    page.counter(
        "droidrelay_starts_total",
        "Starts of the pipeline.",
        &[],
        counters.starts,
    );
    page.counter(
        "droidrelay_failures_total",
        "Failures of the pipeline.",
        &[],
        counters.failures,
    );
    page.counter(
        "droidrelay_rebuilds_total",
        "Pipelines built anew after failures.",
        &[],
        counters.rebuilds,
    );
    page.counter(
        "droidrelay_reloads_total",
        "Launch files read again by SIGHUP.",
        &[],
        counters.reloads,
    );
    if let Some(bridge) = counters.bridge {
        page.gauge(
            "droidrelay_poll_up",
            "Whether the bridge answered the last question.",
            &[],
            flag(bridge),
        );
        page.counter(
            "droidrelay_polls_total",
            "Questions that the bridge answered.",
            &[],
            counters.polls,
        );
        page.counter(
            "droidrelay_poll_failures_total",
            "Questions that the bridge did not answer.",
            &[],
            counters.failed_polls,
        );
    }
    for (name, fired) in triggers {
        page.counter(
            "droidrelay_trigger_messages_total",
            "Messages that opened the valves or renewed their lease.",
            &[("trigger", name)],
            fired,
        );
    }
    for valve in valves {
        let labels = [("valve", valve.name.as_str())];
        let counted = |field| count(&valve.stats, field);
        page.gauge(
            "droidrelay_valve_open",
            "Whether the valve is open.",
            &labels,
            flag(valve.open),
        );
        if valve.broker {
            page.gauge(
                "droidrelay_valve_connected",
                "Whether the MQTT session is up.",
                &labels,
                flag(valve.connected),
            );
        }
        for state in StreamState::ALL {
            let labels = [labels[0], ("state", state.as_str())];
            page.gauge(
                "droidrelay_stream_state",
                "1 for the state that the stream is in.",
                &labels,
                flag(valve.state.state == *state),
            );
        }
        page.gauge(
            "droidrelay_valve_viewers",
            "Leases that hold the valve open.",
            &labels,
            viewers(valve).into(),
        );
        page.counter(
            "droidrelay_valve_passed_buffers_total",
            "Buffers that passed.",
            &labels,
            counted("passed"),
        );
        page.counter(
            "droidrelay_valve_dropped_buffers_total",
            "Buffers dropped while closed.",
            &labels,
            counted("dropped"),
        );
        page.counter(
            "droidrelay_valve_opens_total",
            "Openings.",
            &labels,
            counted("opens"),
        );
        page.counter(
            "droidrelay_valve_refused_commands_total",
            "Commands that were not obeyed.",
            &labels,
            counted("refused-commands"),
        );
        page.counter(
            "droidrelay_valve_reconnects_total",
            "MQTT sessions after the first.",
            &labels,
            counted("reconnects"),
        );
        page.gauge(
            "droidrelay_valve_start_latency_seconds",
            "From the last opening to its first buffer.",
            &labels,
            seconds(counted("start-latency")),
        );
    }
    for sink in sinks {
        let labels = [("sink", sink.name.as_str())];
        let counted = |field| count(&sink.stats, field);
        for state in SINK_STATES {
            let labels = [labels[0], ("state", state)];
            page.gauge(
                "droidrelay_sink_state",
                "1 for the state that the publishing session is in.",
                &labels,
                flag(sink.state == state),
            );
        }
        page.counter(
            "droidrelay_sink_sessions_total",
            "Publishing sessions that the server accepted.",
            &labels,
            counted("sessions"),
        );
        page.counter(
            "droidrelay_sink_reconnects_total",
            "Sessions that were lost and tried again.",
            &labels,
            counted("reconnects"),
        );
        page.counter(
            "droidrelay_sink_frames_total",
            "Frames sent.",
            &labels,
            counted("frames"),
        );
        page.counter(
            "droidrelay_sink_bytes_total",
            "Bytes sent.",
            &labels,
            counted("bytes"),
        );
        page.counter(
            "droidrelay_sink_dropped_frames_total",
            "Frames dropped because the uplink was too slow.",
            &labels,
            counted("dropped"),
        );
        page.gauge(
            "droidrelay_sink_queue_seconds",
            "Media that waits for the uplink.",
            &labels,
            counted("queue-ms") as f64 / 1e3,
        );
        page.gauge(
            "droidrelay_sink_bitrate_bits_per_second",
            "What the server took over the last seconds.",
            &labels,
            counted("bitrate") as f64,
        );
        page.gauge(
            "droidrelay_sink_target_bitrate_bits_per_second",
            "What the encoder is told to make, where adaptive-bitrate is set.",
            &labels,
            counted("target-bitrate") as f64,
        );
    }
    page.process();
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valve(state: StreamState, viewers: u32) -> Valve {
        Valve {
            name: "valve".into(),
            open: state != StreamState::Idle,
            broker: true,
            connected: true,
            state: RobotState {
                state,
                last_error: Some("no camera".into()),
                ..RobotState::default()
            },
            stats: gst::Structure::builder("stats")
                .field("viewers", viewers)
                .field("passed", 7u64)
                .build(),
        }
    }

    fn sink(state: &str, bitrate: u64) -> Sink {
        Sink {
            name: "sink".into(),
            state: state.into(),
            stats: gst::Structure::builder("stats")
                .field("bitrate", bitrate)
                .field("frames", 70u64)
                .build(),
        }
    }

    #[test]
    fn the_status_is_one_line_with_state_viewers_and_bitrate() {
        gst::init().unwrap();
        let live = [valve(StreamState::Live, 2)];
        let publishing = [sink("publishing", 1_483_000)];
        assert_eq!(status(&live, &publishing), "live, 2 viewers, 1500 kbit/s");
        let mut idle = [valve(StreamState::Idle, 0)];
        assert_eq!(status(&idle, &[sink("idle", 0)]), "idle");
        idle[0].connected = false;
        assert_eq!(status(&idle, &[]), "idle, no MQTT session");
        let failed = [valve(StreamState::Error, 1), valve(StreamState::Live, 1)];
        assert_eq!(status(&failed, &publishing), "error, 1 viewer: no camera");
        assert_eq!(status(&[], &publishing), "playing, 1500 kbit/s");
        assert_eq!(status(&[], &[]), "playing");
    }

    #[test]
    fn media_is_due_where_a_valve_is_open_or_a_sink_publishes() {
        gst::init().unwrap();
        let due = |state, sink_state: &str| {
            passages(&[valve(state, 1)], &[sink(sink_state, 0)])
                .iter()
                .map(|passage| (passage.count, passage.last))
                .collect::<Vec<_>>()
        };
        assert_eq!(due(StreamState::Idle, "idle"), []);
        assert_eq!(
            due(StreamState::Live, "publishing"),
            [(7, false), (70, true)]
        );
        assert_eq!(due(StreamState::Backoff, "backoff"), [(7, false)]);
        assert_eq!(due(StreamState::Error, "connecting"), []);
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
        let text = state_text(state.clone());
        assert!(text.len() <= MAX_STATE, "{}", text.len());
        let read: RobotState = serde_json::from_str(&text).unwrap();
        assert!(read.viewers.len() > 20);
        assert_eq!(read.last_error, state.last_error);
        let endless = RobotState {
            last_error: Some("e".repeat(10_000)),
            ..state
        };
        assert!(state_text(endless).len() <= MAX_STATE);
    }

    #[test]
    fn every_metric_has_help_type_and_samples() {
        gst::init().unwrap();
        let counters = Counters {
            bridge: Some(true),
            ..Counters::default()
        };
        let valves = [valve(StreamState::Live, 2)];
        let triggers = [("motion", 3)].into_iter();
        let text = page(true, &counters, &valves, &[sink("publishing", 1)], triggers).text();
        for line in [
            "droidrelay_playing 1",
            "droidrelay_valve_viewers{valve=\"valve\"} 2",
            "droidrelay_stream_state{valve=\"valve\",state=\"live\"} 1",
            "droidrelay_stream_state{valve=\"valve\",state=\"idle\"} 0",
            "droidrelay_sink_state{sink=\"sink\",state=\"publishing\"} 1",
            "droidrelay_trigger_messages_total{trigger=\"motion\"} 3",
            "droidrelay_poll_up 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for name in text.lines().filter(|line| !line.starts_with('#')) {
            let name = name.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert_eq!(
                text.matches(&format!("# TYPE {name} ")).count(),
                1,
                "{name}"
            );
        }
    }
}
