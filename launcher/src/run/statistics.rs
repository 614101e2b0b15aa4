// SPDX-License-Identifier: MPL-2.0

//! What `--metrics` shows: what the launcher and its elements count.

use droidrelay_wire::{PublishPhase, StreamState};
use serde::{Deserialize, Serialize};

use super::snapshot::{Sink, Snapshot, Valve, count};
use crate::remote::metrics::Page;

/// Metric, its help, the field of the element's statistics, how many of it make the metric's unit.
type Field = (&'static str, &'static str, &'static str, f64);

#[rustfmt::skip]
const VALVE_FIELDS: [Field; 6] = [
    ("droidrelay_valve_passed_buffers_total", "Buffers that passed.", "passed", 1.0),
    ("droidrelay_valve_dropped_buffers_total", "Buffers dropped while closed.", "dropped", 1.0),
    ("droidrelay_valve_opens_total", "Openings.", "opens", 1.0),
    ("droidrelay_valve_refused_commands_total", "Commands that were not obeyed.", "refused-commands", 1.0),
    ("droidrelay_valve_reconnects_total", "MQTT sessions after the first.", "reconnects", 1.0),
    ("droidrelay_valve_start_latency_seconds", "From the last opening to its first buffer.", "start-latency", 1e9),
];

#[rustfmt::skip]
const SINK_FIELDS: [Field; 8] = [
    ("droidrelay_sink_sessions_total", "Publishing sessions that the server accepted.", "sessions", 1.0),
    ("droidrelay_sink_reconnects_total", "Sessions that were lost and tried again.", "reconnects", 1.0),
    ("droidrelay_sink_frames_total", "Frames sent.", "frames", 1.0),
    ("droidrelay_sink_bytes_total", "Bytes sent.", "bytes", 1.0),
    ("droidrelay_sink_dropped_frames_total", "Frames dropped because the uplink was too slow.", "dropped", 1.0),
    ("droidrelay_sink_queue_seconds", "Media that waits for the uplink.", "queue-ms", 1e3),
    ("droidrelay_sink_bitrate_bits_per_second", "What the server took over the last seconds.", "bitrate", 1.0),
    ("droidrelay_sink_target_bitrate_bits_per_second", "What the encoder is told to make, where adaptive-bitrate is set.", "target-bitrate", 1.0),
];

/// What the launcher itself counts, from process to process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    pub starts: u64,
    pub failures: u64,
    pub rebuilds: u64,
    pub reloads: u64,
    /// Processes that took the place of this one.
    pub successors: u64,
}

/// What is counted of the questions to a bridge.
#[derive(Debug, Default)]
pub struct PollCounters {
    /// The last question was answered.
    pub is_up: bool,
    pub answered: u64,
    pub failed: u64,
}

#[rustfmt::skip]
pub fn launcher(page: &mut Page, playing: bool, counters: &Counters) {
    page.add("droidrelay_info", "The launcher's version.", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    for (name, help, value) in [
        ("droidrelay_playing", "Whether the pipeline plays.", playing.into()),
        ("droidrelay_starts_total", "Starts of the pipeline.", counters.starts),
        ("droidrelay_failures_total", "Failures of the pipeline.", counters.failures),
        ("droidrelay_rebuilds_total", "Pipelines built anew after failures.", counters.rebuilds),
        ("droidrelay_reloads_total", "Launch files read again by SIGHUP.", counters.reloads),
        ("droidrelay_successors_total", "Processes that took the place of one with a device that stayed open.", counters.successors),
    ] {
        page.add(name, help, &[], value as f64);
    }
}

#[rustfmt::skip]
pub fn poll(page: &mut Page, counters: &PollCounters) {
    for (name, help, value) in [
        ("droidrelay_poll_up", "Whether the bridge answered the last question.", counters.is_up.into()),
        ("droidrelay_polls_total", "Questions that the bridge answered.", counters.answered),
        ("droidrelay_poll_failures_total", "Questions that the bridge did not answer.", counters.failed),
    ] {
        page.add(name, help, &[], value as f64);
    }
}

/// Name of each trigger, and how many messages it was for.
pub fn triggers<'a>(page: &mut Page, counts: impl Iterator<Item = (&'a str, u64)>) {
    let help = "Messages that opened the valves or renewed their lease.";
    for (name, fired) in counts {
        let labels = [("trigger", name)];
        page.add(
            "droidrelay_trigger_messages_total",
            help,
            &labels,
            fired as f64,
        );
    }
}

/// Name of each side branch, and whether it runs.
pub fn branches<'a>(page: &mut Page, branches: impl Iterator<Item = (&'a str, bool)>) {
    let help = "Whether this side branch runs, such as a recording.";
    for (name, runs) in branches {
        page.add(
            "droidrelay_branch_up",
            help,
            &[("branch", name)],
            flag(runs),
        );
    }
}

pub fn elements(page: &mut Page, seen: &Snapshot) {
    seen.valves.iter().for_each(|one| valve(page, one));
    seen.sinks.iter().for_each(|one| sink(page, one));
}

#[rustfmt::skip]
fn valve(page: &mut Page, valve: &Valve) {
    let label = ("valve", valve.name.as_str());
    page.add("droidrelay_valve_open", "Whether the valve is open.", &[label], flag(valve.open));
    if valve.broker {
        page.add("droidrelay_valve_connected", "Whether the MQTT session is up.", &[label], flag(valve.connected));
    }
    page.add("droidrelay_valve_viewers", "Leases that hold the valve open.", &[label], valve.viewers().into());
    for state in StreamState::ALL {
        let labels = [label, ("state", state.as_str())];
        page.add("droidrelay_stream_state", "1 for the state that the stream is in.", &labels, flag(valve.state.state == *state));
    }
    fields(page, &VALVE_FIELDS, label, &valve.stats);
}

#[rustfmt::skip]
fn sink(page: &mut Page, sink: &Sink) {
    let label = ("sink", sink.name.as_str());
    for state in PublishPhase::ALL {
        let labels = [label, ("state", state.as_str())];
        page.add("droidrelay_sink_state", "1 for the state that the publishing session is in.", &labels, flag(sink.state == *state));
    }
    fields(page, &SINK_FIELDS, label, &sink.stats);
}

fn fields(page: &mut Page, fields: &[Field], label: (&str, &str), stats: &gst::Structure) {
    for (name, help, field, unit) in fields {
        page.add(name, help, &[label], count(stats, field) as f64 / unit);
    }
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::snapshot::tests::{sink, valve};

    #[test]
    fn every_metric_has_help_type_and_samples() {
        gst::init().unwrap();
        let seen = Snapshot {
            valves: vec![valve(StreamState::Live, 2)],
            sinks: vec![sink(PublishPhase::Publishing, 1)],
        };
        let mut page = Page::default();
        launcher(&mut page, true, &Counters::default());
        let counters = PollCounters {
            is_up: true,
            ..PollCounters::default()
        };
        poll(&mut page, &counters);
        triggers(&mut page, [("motion", 3)].into_iter());
        elements(&mut page, &seen);
        let text = page.text();
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
