// SPDX-License-Identifier: MPL-2.0

//! How long a viewer who waits at the server looks at nothing: from `start` to the accepted
//! publisher and to the first decoded picture; and from `stop` until the server has seen the
//! publisher go.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use super::{
    common::{Common, Installed, print_table},
    plot::{figure, median},
};
use crate::subscriber::{self, Subscriber};
use droidrelay_testkit::{
    clients::reader::Reader,
    robot::Runner,
    servers::relay::{Event, Kind},
    testbed::{ENCODER, Testbed},
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

const WAYS: [(&str, Way); 8] = [
    ("Python scripts, as posted", Way::Subscriber(AS_POSTED)),
    (
        "Python scripts, key frame each second",
        Way::Subscriber(ENCODER),
    ),
    ("cold", ours("cold", "", false)),
    ("cold, key frame by hook", ours("cold", "", true)),
    (
        "cold, start-offset=false",
        ours("cold", "start-offset=false", false),
    ),
    ("warm", ours("warm", "", false)),
    ("warm, key frame by hook", ours("warm", "", true)),
    ("hot", ours("hot", "", false)),
];
/// Of [`WAYS`]: what the others are compared with.
const PEER: usize = 1;

const fn ours(standby: &'static str, sink: &'static str, hook: bool) -> Way {
    Way::Ours {
        standby,
        sink,
        hook,
    }
}

/// Milliseconds since the command.
#[derive(Clone, Copy)]
struct Times {
    accepted: f64,
    picture: f64,
    stopped: f64,
}

pub fn run(options: &Options, common: &Common) -> Result<()> {
    let camera = common.camera()?;
    for kind in [Kind::Nginx, Kind::MediaMtx] {
        if kind.notice_if_absent() {
            continue;
        }
        println!("## Start and stop latency at {kind}, ms");
        println!();
        println!(
            "{} starts and stops of each: median, fastest to slowest; in brackets the median's ratio \
             to the Python scripts with a key frame each second. A reader (ffmpeg) waits at the \
             server. Camera: {}; `{ENCODER}`, but as posted `{AS_POSTED}`.",
            options.rounds,
            camera.name()
        );
        let testbed = Testbed::start(kind)?;
        let installed = Installed::new()?;
        let mut rows = Vec::new();
        for (name, way) in &WAYS {
            let times = measure(options, &testbed, &installed, &camera.line(), way)
                .with_context(|| format!("{name}\n{}", testbed.relay.text()))?;
            rows.push((*name, times));
        }
        let head = ["", "publisher accepted", "first picture", "stop"];
        let mut table = vec![head.map(str::to_owned).to_vec()];
        let columns: [fn(&Times) -> f64; 3] = [
            |times| times.accepted,
            |times| times.picture,
            |times| times.stopped,
        ];
        let sorted = |times: &[Times], of: fn(&Times) -> f64| {
            let mut values: Vec<f64> = times.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        for (name, times) in &rows {
            let cells = columns.map(|of| {
                let values = sorted(times, of);
                let peer = median(&sorted(&rows[PEER].1, of));
                let (first, last) = (values[0], values[values.len() - 1]);
                format!(
                    "{}, {} to {} ({:.3})",
                    figure(median(&values)),
                    figure(first),
                    figure(last),
                    median(&values) / peer
                )
            });
            let mut row = vec![name.to_string()];
            row.extend(cells);
            table.push(row);
        }
        print_table(&table)?;
        let strips: Vec<_> = rows
            .iter()
            .map(|(name, times)| (name.to_string(), sorted(times, columns[1])))
            .collect();
        common.plot(
            &format!("start-{}", kind.to_string().to_lowercase()),
            &format!("From start to the first picture at {kind}"),
            "ms",
            &strips,
        )?;
    }
    Ok(())
}

fn measure(
    options: &Options,
    testbed: &Testbed,
    installed: &Installed,
    camera: &str,
    way: &Way,
) -> Result<Vec<Times>> {
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
            let line = ours_line(testbed, camera, standby, sink);
            let mut robot = testbed.robot_with(Runner::GstLaunch, &line, &environment)?;
            let times = (0..options.rounds)
                .map(|_| session(testbed, *hook))
                .collect();
            robot.end()?;
            times
        }
        Way::Subscriber(encoder) => {
            let line = subscriber::line(testbed, camera, encoder);
            let _subscriber = Subscriber::start(testbed, &line, &environment)?;
            (0..options.rounds)
                .map(|_| session(testbed, false))
                .collect()
        }
    }
}

/// The robot's line, with the valve where this standby wants it.
pub fn ours_line(testbed: &Testbed, camera: &str, standby: &str, sink: &str) -> String {
    let valve = format!("{} standby={standby}", testbed.valve());
    let middle = match standby {
        "hot" => format!("queue ! {ENCODER} ! {valve}"),
        _ => format!("{valve} ! queue ! {ENCODER}"),
    };
    format!("{camera} ! {middle} ! {} {sink}", testbed.sink())
}

fn session(testbed: &Testbed, hook: bool) -> Result<Times> {
    let events = testbed.relay.events();
    let mark = events.mark();
    let reader = Reader::start(&testbed.relay.viewer_url(), None)?;
    events.wait(mark, "a reader who waits", |event| *event == Event::Reader)?;
    let waiting = events.mark();
    let began = testbed.observer.send("start")?;
    if hook && testbed.relay.kind() == Kind::MediaMtx {
        events.wait(waiting, "the reader reads", |event| *event == Event::Reader)?;
        testbed.observer.send("keyframe")?;
    }
    let picture = reader.wait_frames(1)?;
    let accepted = testbed.relay_says(waiting, Event::Published)?;
    drop(reader);
    let mark = events.mark();
    let asked = testbed.observer.send("stop")?;
    let stopped = testbed.relay_says(mark, Event::Unpublished)?;
    thread::sleep(PAUSE);
    let millis = |later: std::time::Instant, earlier| {
        later.saturating_duration_since(earlier).as_secs_f64() * 1e3
    };
    Ok(Times {
        accepted: millis(accepted, began),
        picture: millis(picture, began),
        stopped: millis(stopped, asked),
    })
}
