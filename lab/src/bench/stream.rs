// SPDX-License-Identifier: MPL-2.0

//! What a robot uses while it streams.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use super::{
    common::{Common, Installed, print_table},
    plot::{Strip, figure, median},
    start,
};
use crate::subscriber::{self, Subscriber};
use droidrelay_testkit::usage::{Cpu, Memory, threads};
use droidrelay_testkit::{
    robot::{Robot, Runner},
    servers::relay::{Event, Kind},
    testbed::{ENCODER, Testbed},
};

/// What starting has to do comes to its end in this time.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Sessions of each kind
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How long each session is watched
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            rounds: 10,
            seconds: 10,
        }
    }
}

#[derive(Clone, Copy)]
enum Way {
    /// The encoder's line, shown to nobody.
    Encoder,
    Scripts,
    Ours(&'static str),
}

const WAYS: [(&str, Way); 5] = [
    ("camera and encoder alone", Way::Encoder),
    ("Python scripts", Way::Scripts),
    ("cold", Way::Ours("cold")),
    ("warm", Way::Ours("warm")),
    ("hot", Way::Ours("hot")),
];
/// Of [`WAYS`]: what the others are compared with.
const PEER: usize = 1;

/// Of one session.
struct Used {
    /// Milliseconds of CPU time for each second of video.
    cpu: f64,
    memory: Memory,
    threads: usize,
}

pub fn run(options: &Options, common: &Common) -> Result<()> {
    let camera = common.camera()?;
    let installed = Installed::new()?;
    let testbed = Testbed::start(Kind::Nginx)?;
    println!("## CPU and memory while streaming");
    println!();
    println!(
        "CPU time in ms for each second of video, memory in KiB, threads; children included. {} \
         sessions of {} s each, the ways in turn: median, least to most; in brackets the median's \
         ratio to the Python scripts. Camera: {}, in a process of its own that does not count; \
         `{ENCODER}`; nginx-rtmp. The first line is `CAMERA ! queue ! ENCODER ! fakesink`.",
        options.rounds,
        options.seconds,
        camera.name()
    );
    let mut all: Vec<Vec<Used>> = WAYS.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for ((name, way), sessions) in WAYS.iter().zip(&mut all) {
            let used = session(options, &testbed, &installed, &camera.line(), *way);
            sessions.push(used.with_context(|| format!("{name}\n{}", testbed.relay.text()))?);
        }
    }
    let columns: [fn(&Used) -> f64; 4] = [
        |used| used.cpu,
        |used| used.memory.pss as f64,
        |used| used.memory.anonymous as f64,
        |used| used.threads as f64,
    ];
    let sorted = |sessions: &[Used], of: fn(&Used) -> f64| {
        let mut values: Vec<f64> = sessions.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let head = ["", "CPU", "PSS", "anonymous", "threads"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for ((name, _), sessions) in WAYS.iter().zip(&all) {
        let mut row = vec![name.to_string()];
        row.extend(columns.map(|of| {
            let (mine, peer) = (sorted(sessions, of), sorted(&all[PEER], of));
            format!(
                "{}, {} to {} ({:.2})",
                figure(median(&mine)),
                figure(mine[0]),
                figure(mine[mine.len() - 1]),
                median(&mine) / median(&peer)
            )
        }));
        table.push(row);
    }
    print_table(&table)?;
    let strips = WAYS.iter().zip(&all);
    let strips: Vec<Strip> = strips
        .map(|((name, _), sessions)| (name.to_string(), sorted(sessions, columns[0])))
        .collect();
    common.plot("cpu", "CPU time for a second of video", "ms", &strips)
}

fn session(
    options: &Options,
    testbed: &Testbed,
    installed: &Installed,
    camera: &str,
    way: Way,
) -> Result<Used> {
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let streaming = |id: u32| {
        let mark = testbed.relay.events().mark();
        testbed.observer.send("start")?;
        testbed.relay_says(mark, Event::Published)?;
        let used = watch(options, id)?;
        testbed.observer.send("stop")?;
        testbed.relay_says(mark, Event::Unpublished)?;
        Ok::<_, anyhow::Error>(used)
    };
    match way {
        Way::Encoder => {
            let line = format!("{camera} ! queue ! {ENCODER} ! fakesink async=false");
            let mut robot = Robot::start_with(Runner::GstLaunch, &line, &environment)?;
            robot
                .log()
                .wait(0, "the line plays", |line| line.contains("New clock"))
                .with_context(|| robot.text())?;
            let used = watch(options, robot.id());
            robot.end()?;
            used
        }
        Way::Scripts => {
            let line = subscriber::line(testbed, camera, ENCODER);
            let subscriber = Subscriber::start(testbed, &line, &environment)?;
            streaming(subscriber.process.id()).with_context(|| subscriber.process.text())
        }
        Way::Ours(standby) => {
            let line = start::ours_line(testbed, camera, standby, "");
            let mut robot = testbed.robot_with(Runner::GstLaunch, &line, &environment)?;
            let used = streaming(robot.id()).with_context(|| robot.text());
            robot.end()?;
            used
        }
    }
}

fn watch(options: &Options, id: u32) -> Result<Used> {
    thread::sleep(SETTLE);
    let earlier = Cpu::of(id)?;
    let began = std::time::Instant::now();
    thread::sleep(Duration::from_secs(options.seconds));
    let time = Cpu::of(id)?.since(earlier).time;
    let family = droidrelay_testkit::usage::family(id)?;
    let threads = family
        .iter()
        .map(|id| threads(*id))
        .sum::<Result<usize>>()?;
    Ok(Used {
        cpu: time.as_secs_f64() * 1e3 / began.elapsed().as_secs_f64(),
        memory: Memory::alone(id)?,
        threads,
    })
}
