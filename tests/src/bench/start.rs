//! How long a viewer who waits at the server looks at nothing: from `start` to the first decoded
//! picture.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use super::{
    print_table,
    subscriber::{self, Subscriber},
    Installed,
};
use crate::{
    reader::Reader,
    relay::{Event, Kind},
    rig::{Rig, ENCODER, TEST_PICTURE},
    robot::Runner,
};

/// The encoder as the published line has it: a key frame every 250 frames.
const AS_POSTED: &str = "x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500";
/// A robot has been idle for some time, not just closed.
const PAUSE: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Starts of each kind
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { rounds: 10 }
    }
}

/// One way to be started.
enum Way {
    /// `rtmpauthsink` with more properties, behind a valve in this standby.
    Ours {
        standby: &'static str,
        sink: &'static str,
        /// A key frame is asked for when the reader has come, as a hook of the server does.
        hook: bool,
    },
    /// A subscriber that runs gst-launch-1.0 with this encoder.
    Subscriber(&'static str),
}

const WAYS: [(&str, Way); 7] = [
    ("cold", ours("cold", "", false)),
    ("cold, key frame by hook", ours("cold", "", true)),
    (
        "cold, start-offset=false",
        ours("cold", "start-offset=false", false),
    ),
    ("warm", ours("warm", "", false)),
    ("warm, key frame by hook", ours("warm", "", true)),
    (
        "subscriber, rtmp2sink, key frame each second",
        Way::Subscriber(ENCODER),
    ),
    (
        "subscriber, rtmp2sink, as posted",
        Way::Subscriber(AS_POSTED),
    ),
];

const fn ours(standby: &'static str, sink: &'static str, hook: bool) -> Way {
    Way::Ours {
        standby,
        sink,
        hook,
    }
}

pub fn run(options: &Options) -> Result<()> {
    for kind in [Kind::Nginx, Kind::MediaMtx] {
        if kind.notice_if_absent() {
            continue;
        }
        println!(
            "### From `start` to the first decoded picture at a reader who waits at {kind}, ms"
        );
        println!();
        println!(
            "{} starts of each; ffmpeg reads, `{TEST_PICTURE}` and `{ENCODER}` where nothing else \
             is said. In brackets the ratio to the subscriber with a key frame each second.",
            options.rounds
        );
        let rig = Rig::start(kind)?;
        let installed = Installed::new()?;
        let mut rows = Vec::new();
        for (name, way) in &WAYS {
            let mut times = measure(options, &rig, &installed, way)
                .with_context(|| format!("{name}\n{}", rig.relay.text()))?;
            times.sort_unstable();
            rows.push((*name, times));
        }
        let median = |times: &[Duration]| times[times.len() / 2].as_secs_f64() * 1e3;
        let peer = median(&rows[5].1);
        let head = ["", "median", "fastest", "slowest"];
        let mut table = vec![head.map(str::to_owned).to_vec()];
        for (name, times) in &rows {
            let millis = |time: &Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
            table.push(vec![
                name.to_string(),
                format!("{:.0} ({:.3})", median(times), median(times) / peer),
                millis(&times[0]),
                millis(&times[times.len() - 1]),
            ]);
        }
        print_table(&table)?;
    }
    Ok(())
}

fn measure(
    options: &Options,
    rig: &Rig,
    installed: &Installed,
    way: &Way,
) -> Result<Vec<Duration>> {
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    match way {
        Way::Ours {
            standby,
            sink,
            hook,
        } => {
            let line = format!(
                "{TEST_PICTURE} ! {} standby={standby} ! queue ! {ENCODER} ! {} {sink}",
                rig.valve(),
                rig.sink()
            );
            let mut robot = rig.robot_with(Runner::GstLaunch, &line, &environment)?;
            let times = (0..options.rounds)
                .map(|_| first_picture(rig, *hook))
                .collect();
            robot.end()?;
            times
        }
        Way::Subscriber(encoder) => {
            let line = subscriber::line(rig, TEST_PICTURE, encoder);
            let _subscriber = Subscriber::start(rig, &line, &environment)?;
            (0..options.rounds)
                .map(|_| first_picture(rig, false))
                .collect()
        }
    }
}

fn first_picture(rig: &Rig, hook: bool) -> Result<Duration> {
    let events = rig.relay.events();
    let mark = events.mark();
    let reader = Reader::start(&rig.relay.viewer_url(), None)?;
    events.wait(mark, "a reader who waits", |event| *event == Event::Reader)?;
    let waiting = events.mark();
    let began = rig.observer.send("start")?;
    if hook && rig.relay.kind() == Kind::MediaMtx {
        events.wait(waiting, "the reader reads", |event| *event == Event::Reader)?;
        rig.observer.send("keyframe")?;
    }
    let time = reader.wait_frames(1)?.duration_since(began);
    drop(reader);
    let mark = events.mark();
    rig.observer.send("stop")?;
    events.wait(mark, "unpublished", |event| *event == Event::Unpublished)?;
    thread::sleep(PAUSE);
    Ok(time)
}
