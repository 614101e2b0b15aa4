// SPDX-License-Identifier: MPL-2.0

//! From the camera to the viewer: how old a picture is when it has been decoded.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{
    common::{Common, Installed, print_table},
    plot::{Strip, figure, median},
    start,
};
use crate::subscriber::{self, Subscriber};
use droidrelay_testkit::{
    journal::Journal,
    robot::{
        Runner,
        stamps::{StampReader, StampedCamera},
    },
    servers::relay::{Event, Kind},
    testbed::{ENCODER, Testbed},
};

/// A session's first pictures, which a reader gets late.
const WARM_UP: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Sessions of each kind
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How long each session is watched
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            rounds: 10,
            seconds: 5,
        }
    }
}

/// None: the Python scripts.
const WAYS: [(&str, Option<&str>); 3] = [
    ("Python scripts", None),
    ("warm", Some("warm")),
    ("hot", Some("hot")),
];

pub fn run(options: &Options, common: &Common) -> Result<()> {
    for kind in [Kind::Nginx, Kind::MediaMtx] {
        if kind.notice_if_absent() {
            continue;
        }
        println!("## Camera-to-screen latency at {kind}, ms");
        println!();
        println!(
            "The time at which it was taken is drawn into each picture (640x360, 25 a second) and \
             read after decoding (ffmpeg). {} sessions of {} s each, the ways in turn; of each \
             session the median and the picture that one of a hundred is older than; of these the \
             median, least to most. In brackets the ratio to the Python scripts.",
            options.rounds, options.seconds
        );
        let testbed = Testbed::start(kind)?;
        let installed = Installed::new()?;
        let mut strips: Vec<[Vec<f64>; 2]> = vec![Default::default(); WAYS.len()];
        for _ in 0..options.rounds {
            for ((name, way), values) in WAYS.iter().zip(&mut strips) {
                let ages = session(options, &testbed, &installed, *way)
                    .with_context(|| format!("{name}\n{}", testbed.relay.text()))?;
                values[0].push(median(&ages));
                values[1].push(ages[ages.len() * 99 / 100]);
            }
        }
        for values in strips.iter_mut().flatten() {
            values.sort_by(f64::total_cmp);
        }
        let head = ["", "median picture", "one of a hundred"];
        let mut table = vec![head.map(str::to_owned).to_vec()];
        for ((name, _), values) in WAYS.iter().zip(&strips) {
            let cell = |n: usize| {
                let (mine, peer) = (&values[n], &strips[0][n]);
                format!(
                    "{}, {} to {} ({:.2})",
                    figure(median(mine)),
                    figure(mine[0]),
                    figure(mine[mine.len() - 1]),
                    median(mine) / median(peer)
                )
            };
            table.push(vec![name.to_string(), cell(0), cell(1)]);
        }
        print_table(&table)?;
        let strips = WAYS.iter().zip(strips);
        let strips: Vec<Strip> = strips
            .map(|((name, _), [medians, _])| (name.to_string(), medians))
            .collect();
        common.plot(
            &format!("latency-{}", kind.to_string().to_lowercase()),
            &format!("From the camera to the decoded picture at {kind}, median of each session"),
            "ms",
            &strips,
        )?;
    }
    Ok(())
}

/// Milliseconds of each picture, sorted.
fn session(
    options: &Options,
    testbed: &Testbed,
    installed: &Installed,
    way: Option<&str>,
) -> Result<Vec<f64>> {
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let zero = Instant::now();
    let camera = StampedCamera::start(zero)?;
    let reader = StampReader::start(&testbed.relay.viewer_url(), zero, Journal::default())?;
    let mark = testbed.relay.events().mark();
    let publish = || {
        testbed.observer.send("start")?;
        testbed.relay_says(mark, Event::Published)?;
        let arrivals = reader.arrivals();
        let first = arrivals.wait(0, "a picture", |_| true);
        first.with_context(|| reader.text())?;
        thread::sleep(WARM_UP);
        let warm = arrivals.mark();
        thread::sleep(Duration::from_secs(options.seconds));
        let frames = arrivals.since(warm);
        let ages = frames
            .iter()
            .map(|frame| frame.latency().as_secs_f64() * 1e3);
        let mut ages: Vec<f64> = ages.collect();
        ensure!(!ages.is_empty(), "no pictures\n{}", reader.text());
        ages.sort_by(f64::total_cmp);
        testbed.observer.send("stop")?;
        testbed.relay_says(mark, Event::Unpublished)?;
        Ok::<_, anyhow::Error>(ages)
    };
    match way {
        Some(standby) => {
            let line = start::ours_line(testbed, &camera.source(), standby, "");
            let mut robot = testbed.robot_with(Runner::GstLaunch, &line, &environment)?;
            let ages = publish().with_context(|| robot.text());
            robot.end()?;
            ages
        }
        None => {
            let line = subscriber::line(testbed, &camera.source(), ENCODER);
            let subscriber = Subscriber::start(testbed, &line, &environment)?;
            publish().with_context(|| subscriber.process.text())
        }
    }
}
