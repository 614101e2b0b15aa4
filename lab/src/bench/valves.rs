// SPDX-License-Identifier: MPL-2.0

//! Many valves in one process.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use super::common::{Installed, print_table};
use droidrelay_testkit::{
    robot::{
        Robot, Runner,
        many_valves::{ManyValves, Topics, line},
    },
    usage::{Memory, threads},
};

/// What starting or opening has to do comes to its end in this time.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Valves in the process
    #[arg(long, default_value_t = 1_000)]
    count: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { count: 1_000 }
    }
}

/// What one process takes.
struct Row {
    name: String,
    /// Until all listened, and from the command until all were live.
    times: Option<[Duration; 2]>,
    closed: Taken,
    live: Option<Taken>,
    peak: Option<usize>,
}

struct Taken {
    threads: usize,
    memory: u64,
}

impl Taken {
    fn by(id: u32) -> Result<Self> {
        thread::sleep(SETTLE);
        Ok(Taken {
            threads: threads(id)?,
            memory: Memory::alone(id)?.pss,
        })
    }
}

pub fn run(options: &Options) -> Result<()> {
    let count = options.count;
    let installed = Installed::new()?;
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let own = format!("{count} `mqttvalve`, topics of their own");
    let same = format!("{count} `mqttvalve`, one topic");
    let rows = [
        plain(count, &environment)?,
        measure("1 `mqttvalve`".into(), 1, Topics::Same, &environment)?,
        measure(own, count, Topics::Own, &environment)?,
        measure(same, count, Topics::Same, &environment)?,
    ];
    report(count, &rows)
}

/// The same process with GStreamer's own valves.
fn plain(count: usize, environment: &[(&str, &str)]) -> Result<Row> {
    let branches = (0..count).map(|_| "valve drop=true".to_owned());
    let mut robot = Robot::start_with(Runner::GstLaunch, &line(branches), environment)?;
    let plays = |line: &String| line.contains("New clock");
    robot
        .log()
        .wait(0, "the line plays", plays)
        .with_context(|| robot.text())?;
    let closed = Taken::by(robot.id())?;
    robot.end()?;
    Ok(Row {
        name: format!("{count} `valve`"),
        times: None,
        closed,
        live: None,
        peak: None,
    })
}

fn measure(
    name: String,
    count: usize,
    topics: Topics,
    environment: &[(&str, &str)],
) -> Result<Row> {
    let mut valves = ManyValves::start(count, topics, environment)?;
    let id = valves.robot.id();
    let closed = Taken::by(id)?;
    let live_after = valves.open().with_context(|| valves.robot.text())?;
    let live = Some(Taken::by(id)?);
    valves.robot.end()?;
    Ok(Row {
        name,
        times: Some([valves.listening_after, live_after]),
        closed,
        live,
        peak: Some(valves.peak.end()),
    })
}

fn report(count: usize, rows: &[Row; 4]) -> Result<()> {
    println!("## {count} valves in one process");
    println!();
    println!(
        "One live camera, a tee, and behind it so many times X, a funnel, a fakesink; PSS in KiB. Per valve: \
         what the process takes, closed, more than that with GStreamer's `valve`. In brackets the \
         ratio to that process."
    );
    let head = [
        "X",
        "all listen after",
        "all live after",
        "threads, closed",
        "live",
        "at most",
        "PSS, closed",
        "live",
        "per valve",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let plain = &rows[0].closed;
    for row in rows {
        let dash = || String::from("-");
        let time = |index: usize| {
            row.times
                .map_or_else(dash, |times| format!("{} ms", times[index].as_millis()))
        };
        let ratio = |value: u64, base: u64| format!("{value} ({:.2})", value as f64 / base as f64);
        let of_threads = |taken: &Taken| ratio(taken.threads as u64, plain.threads as u64);
        let of_memory = |taken: &Taken| ratio(taken.memory, plain.memory);
        let more = row.closed.memory as f64 - plain.memory as f64;
        table.push(vec![
            row.name.clone(),
            time(0),
            time(1),
            of_threads(&row.closed),
            row.live.as_ref().map_or_else(dash, of_threads),
            row.peak.map_or_else(dash, |peak| peak.to_string()),
            of_memory(&row.closed),
            row.live.as_ref().map_or_else(dash, of_memory),
            match row.times {
                Some(_) if more > 0.0 => format!("{:.1}", more / count as f64),
                _ => dash(),
            },
        ]);
    }
    print_table(&table)
}
