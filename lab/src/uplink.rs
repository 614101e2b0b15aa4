// SPDX-License-Identifier: MPL-2.0

//! A weak uplink, by three publishers at the same time: writes what a viewer has of it as CSV,
//! plot and table; `tests/bench.sh uplink` builds and runs it.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use droidrelay_testkit::{
    journal::DEADLINE,
    net::shaped_link::Quality,
    robot::stamps::{Arrival, FRAMES_PER_SECOND},
    uplink::{BITRATE, Publisher, UplinkTestbed, bitrate},
};

/// Shows what a weak uplink does to a stream, beside plain rtmp2sink.
#[derive(Args)]
pub struct Options {
    /// Folder for uplink.csv, uplink.svg and uplink.md
    #[arg(default_value = "docs/5-reports")]
    folder: PathBuf,
}

struct Phase {
    name: &'static str,
    seconds: u32,
    quality: Quality,
}

const BASE: Duration = Duration::from_millis(10);
const FAR: Duration = Duration::from_millis(300);

fn phases() -> [Phase; 8] {
    let phase = |name, seconds, rate, loss, delay| Phase {
        name,
        seconds,
        quality: Quality {
            loss,
            delay,
            ..Quality::rate(rate)
        },
    };
    [
        phase("2 Mbit/s", 10, 2000, 0, BASE),
        phase("400 kbit/s", 20, 400, 0, BASE),
        phase("2 Mbit/s again", 40, 2000, 0, BASE),
        phase("5 % loss", 15, 2000, 5, BASE),
        phase("no loss", 5, 2000, 0, BASE),
        phase("300 ms delay", 15, 2000, 0, FAR),
        phase("outage", 10, 2000, 100, BASE),
        phase("after it", 20, 2000, 0, BASE),
    ]
}

const PUBLISHERS: [(Publisher, &str, &str); 3] = [
    (
        Publisher::Adaptive,
        "rtmpauthsink adaptive-bitrate=true",
        "#0072b2",
    ),
    (Publisher::Fixed, "rtmpauthsink", "#009e73"),
    (Publisher::Rtmp2Sink, "rtmp2sink", "#d55e00"),
];

/// What one publisher's viewer had, in milliseconds since the beginning.
struct Seen {
    arrivals: Vec<Arrival>,
    /// Kilobits per second from then on.
    bitrates: Vec<(u32, u32)>,
    /// When the robot's pipeline ended by an error.
    ends: Vec<u32>,
}

pub fn run(options: &Options) -> Result<()> {
    let folder = &options.folder;
    let zero = Instant::now();
    let good = phases()[0].quality;
    let scenes = PUBLISHERS.map(|(publisher, ..)| UplinkTestbed::start(publisher, good, zero));
    let scenes: Vec<UplinkTestbed> = scenes.into_iter().collect::<Result<_>>()?;
    for (scene, (_, name, _)) in scenes.iter().zip(PUBLISHERS) {
        let picture = scene.reader.arrivals().wait(0, "a picture", |_| true);
        picture.with_context(|| format!("{name}\n{}", scene.robot.text()))?;
    }
    let begin = Instant::now();
    let since = (begin - zero).as_millis() as u32;
    let seconds: u32 = phases().iter().map(|phase| phase.seconds).sum();
    eprintln!("uplink: {seconds} s");
    let watching: Vec<_> = scenes
        .into_iter()
        .map(|scene| thread::spawn(move || watch(scene, begin, since)))
        .collect();
    let mut all = Vec::new();
    for thread in watching {
        all.push(thread.join().expect("a thread that does not panic")?);
    }
    fs::create_dir_all(folder)?;
    fs::write(folder.join("uplink.csv"), csv(&all))?;
    fs::write(folder.join("uplink.svg"), svg(&all))?;
    let page = page(&all);
    print!("{page}");
    fs::write(folder.join("uplink.md"), page)?;
    Ok(())
}

/// Takes one scene through all phases.
fn watch(mut scene: UplinkTestbed, begin: Instant, since: u32) -> Result<Seen> {
    let mut ends = Vec::new();
    let mut bitrates = vec![(0, BITRATE)];
    let mut line = 0;
    let mut until = begin;
    for phase in phases() {
        scene.line.set_quality(phase.quality)?;
        until += Duration::from_secs(phase.seconds.into());
        while Instant::now() < until {
            thread::sleep(Duration::from_millis(100));
            let now = begin.elapsed().as_millis() as u32;
            for said in scene.robot.log().since(line) {
                line += 1;
                bitrates.extend(bitrate(&said).map(|bitrate| (now, bitrate)));
            }
            scene.keep_reading()?;
            if scene.keep_running()? {
                ends.push(now);
                bitrates.push((now, BITRATE));
                line = 0;
            }
        }
    }
    // What was taken in the last moment is still on its way.
    let last = begin.elapsed().as_millis() as u32 + since;
    scene
        .reader
        .arrivals()
        .try_wait(0, DEADLINE / 3, |frame| frame.taken >= last);
    let mut arrivals = scene.reader.arrivals().all();
    arrivals.retain(|frame| frame.taken >= since && frame.taken < last);
    for frame in &mut arrivals {
        frame.taken -= since;
        frame.decoded -= since;
    }
    Ok(Seen {
        arrivals,
        bitrates,
        ends,
    })
}

/// Begin and end of each phase in milliseconds.
fn spans() -> Vec<(Phase, u32, u32)> {
    let mut end = 0;
    let span = |phase: Phase| {
        let begin = end;
        end += phase.seconds * 1000;
        (phase, begin, end)
    };
    phases().into_iter().map(span).collect()
}

impl Seen {
    /// Milliseconds of latency of what was taken in this time, sorted.
    fn latencies(&self, begin: u32, end: u32) -> Vec<u128> {
        let taken = self.arrivals.iter();
        let taken = taken.filter(|frame| (begin..end).contains(&frame.taken));
        let mut latencies: Vec<_> = taken.map(|frame| frame.latency().as_millis()).collect();
        latencies.sort_unstable();
        latencies
    }

    fn bitrate(&self, at: u32) -> u32 {
        let told = self.bitrates.iter().rev().find(|(since, _)| *since <= at);
        told.map_or(BITRATE, |(_, bitrate)| *bitrate)
    }
}

fn csv(all: &[Seen]) -> String {
    let mut csv = String::from("second,rate_kbit,loss_percent,delay_ms");
    // Writing to a string does not fail, here and below.
    for name in ["adaptive", "fixed", "rtmp2sink"] {
        let _ = write!(
            csv,
            ",{name}_latency_median_ms,{name}_latency_max_ms,{name}_frames,{name}_bitrate_kbit"
        );
    }
    for (phase, begin, end) in spans() {
        for at in (begin..end).step_by(1000) {
            let Quality {
                rate, loss, delay, ..
            } = phase.quality;
            let _ = write!(csv, "\n{},{rate},{loss},{}", at / 1000, delay.as_millis());
            for seen in all {
                let latencies = seen.latencies(at, at + 1000);
                let text = |latency: Option<&u128>| latency.map_or(String::new(), u128::to_string);
                let _ = write!(
                    csv,
                    ",{},{},{},{}",
                    text(latencies.get(latencies.len() / 2)),
                    text(latencies.last()),
                    latencies.len(),
                    seen.bitrate(at + 999)
                );
            }
        }
    }
    csv + "\n"
}

const HEAD: &str = "# Weak uplink

Generated by `tests/bench.sh uplink`; do not edit.

The same pipeline runs three times at once, each over its own link between two network namespaces
(`tbf` limits the rate, with a queue of 40 kB; nftables drops packets in both directions; a delay
line over TUN). Camera 640x360 at 25 frames a second,
`x264enc tune=zerolatency bitrate=1500 key-int-max=25`, `max-latency` 1 s, nginx-rtmp. Each frame
shows its capture time; a viewer beside the server (ffmpeg) decodes it. A pipeline that ends is
started again at once.

![Latency, bitrate and pictures over time](uplink.svg)

Latency of the frames captured in each phase (median, maximum), and the share of 25 frames a second
that arrived. The maximum of the 300 ms phase belongs to frames still in transit when the outage
began.

| phase |";

fn page(all: &[Seen]) -> String {
    let mut page = String::from(HEAD);
    let mut rule = String::from("\n|---|");
    for (_, name, _) in PUBLISHERS {
        let _ = write!(page, " {name} |");
        rule += "---|";
    }
    page += &rule;
    for (phase, begin, end) in spans() {
        let _ = write!(page, "\n| {}, {} s |", phase.name, phase.seconds);
        for seen in all {
            let latencies = seen.latencies(begin, end);
            let came = latencies.len() as u32 * 100 / (phase.seconds * FRAMES_PER_SECOND);
            let came = came.min(100);
            let _ = match (latencies.get(latencies.len() / 2), latencies.last()) {
                (Some(median), Some(last)) => write!(page, " {median} ms, {last} ms, {came} % |"),
                _ => write!(page, " nothing |"),
            };
        }
    }
    page += "\n";
    for (seen, (_, name, _)) in all.iter().zip(PUBLISHERS) {
        let ends = seen.ends.iter().map(|at| format!("{} s", at / 1000));
        let ends: Vec<String> = ends.collect();
        if !ends.is_empty() {
            let ends = ends.join(", ");
            let _ = write!(page, "\nThe pipeline with {name} ended after {ends}.\n");
        }
    }
    page
}

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 60.0;
const HEIGHT: f64 = 240.0;
/// From one panel's top to the next one's.
const PANEL: f64 = HEIGHT + 40.0;
/// The last panel is half as high.
const BOTTOM: f64 = TOP + 2.0 * PANEL + HEIGHT / 2.0;
/// Of the latency's axis, in milliseconds; it is logarithmic.
const LATENCIES: (f64, f64) = (30.0, 40_000.0);
/// Of the bitrate's axis.
const MOST: f64 = 2200.0;
/// One point of the plot.
const STEP: u32 = 250;

struct Plot {
    svg: String,
    /// Of the last phase, in milliseconds.
    end: u32,
}

impl Plot {
    fn x(&self, at: u32) -> f64 {
        LEFT + (RIGHT - LEFT) * f64::from(at) / f64::from(self.end)
    }

    fn text(&mut self, x: f64, y: f64, more: &str, words: &str) {
        let _ = writeln!(
            self.svg,
            "<text x=\"{x:.0}\" y=\"{y:.0}\" {more}>{words}</text>"
        );
    }

    fn phase(&mut self, begin: u32, end: u32, fill: &str) {
        let (x, width) = (self.x(begin), self.x(end) - self.x(begin));
        let height = BOTTOM - TOP;
        let _ = writeln!(
            self.svg,
            "<rect x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{fill}\"/>"
        );
    }

    /// A line across, and what it means.
    fn grid(&mut self, y: f64, name: &str) {
        let _ = writeln!(
            self.svg,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#bbb\" stroke-width=\"0.5\"/>"
        );
        let more = "text-anchor=\"end\" font-size=\"10\"";
        self.text(LEFT - 6.0, y + 4.0, more, name);
    }

    /// A line through points, times in milliseconds, with gaps where there is none.
    fn line(&mut self, points: impl Iterator<Item = (u32, Option<f64>)>, colour: &str, width: f64) {
        let mut d = String::new();
        let mut is_drawing = false;
        for (at, y) in points {
            if let Some(y) = y {
                let x = self.x(at);
                let _ = match is_drawing {
                    true => write!(d, "L{x:.1} {y:.1}"),
                    // A point by itself shows as one.
                    false => write!(d, "M{x:.1} {y:.1}h0.5"),
                };
            }
            is_drawing = y.is_some();
        }
        let _ = writeln!(
            self.svg,
            "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        );
    }
}

fn latency_y(milliseconds: f64) -> f64 {
    let (least, most) = LATENCIES;
    let part = (milliseconds.max(least) / least).ln() / (most / least).ln();
    TOP + HEIGHT * (1.0 - part)
}

fn rate_y(kilobits: u32) -> f64 {
    TOP + PANEL + HEIGHT * (1.0 - f64::from(kilobits) / MOST)
}

/// For a part of all pictures.
fn came_y(part: f64) -> f64 {
    BOTTOM - HEIGHT / 2.0 * 0.8 * part.min(1.0)
}

fn svg(all: &[Seen]) -> String {
    let height = BOTTOM + 30.0;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let end = spans().last().map_or(1, |(_, _, end)| *end);
    let mut plot = Plot { svg, end };
    for (n, (phase, begin, end)) in spans().iter().enumerate() {
        plot.phase(*begin, *end, ["#f6f6f6", "#e6e6e6"][n % 2]);
        // Neighbours' names in turn: they are wider than short phases.
        let y = TOP - 8.0 - 14.0 * (n % 2) as f64;
        plot.text(plot.x(*begin) + 2.0, y, "", phase.name);
    }
    for (ms, name) in [(100.0, "0.1 s"), (1000.0, "1 s"), (10_000.0, "10 s")] {
        plot.grid(latency_y(ms), name);
    }
    for kilobits in [0, 500, 1000, 1500, 2000] {
        plot.grid(rate_y(kilobits), &format!("{kilobits} kbit/s"));
    }
    for (part, name) in [(0.0, "0"), (1.0, "25 a second")] {
        plot.grid(came_y(part), name);
    }
    let titles = [
        "Latency at the viewer: the latest picture of each quarter second",
        "Bitrate that the encoder is set to, and the line's rate (grey)",
        "Pictures that came",
    ];
    let bold = "font-weight=\"bold\"";
    for (n, title) in titles.iter().enumerate() {
        plot.text(LEFT + 4.0, TOP + PANEL * n as f64 + 14.0, bold, title);
    }
    let line = spans().into_iter().flat_map(|(phase, begin, end)| {
        let Quality { rate, loss, .. } = phase.quality;
        let y = rate_y(if loss == 100 { 0 } else { rate });
        [(begin, Some(y)), (end, Some(y))]
    });
    plot.line(line, "#888", 2.5);
    for (n, (seen, (_, name, colour))) in all.iter().zip(PUBLISHERS).enumerate() {
        let times = || (0..end).step_by(STEP as usize);
        let latencies = times().map(|at| {
            let latencies = seen.latencies(at, at + STEP);
            (at, latencies.last().map(|ms| latency_y(*ms as f64)))
        });
        plot.line(latencies, colour, 1.5);
        let bitrates = times().map(|at| (at, Some(rate_y(seen.bitrate(at)))));
        plot.line(bitrates, colour, 1.5);
        let pictures = (0..end).step_by(1000).map(|at| {
            let came = seen.latencies(at, at + 1000).len();
            let part = came as f64 / f64::from(FRAMES_PER_SECOND);
            (at + 500, Some(came_y(part)))
        });
        plot.line(pictures, colour, 1.5);
        let more = format!("fill=\"{colour}\" {bold}");
        plot.text(LEFT + 300.0 * n as f64, 18.0, &more, name);
    }
    for at in (0..=end).step_by(10_000) {
        let name = format!("{} s", at / 1000);
        plot.text(plot.x(at), BOTTOM + 16.0, "text-anchor=\"middle\"", &name);
    }
    plot.svg + "</svg>\n"
}
