// SPDX-License-Identifier: MPL-2.0

//! Many valves in one process.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use droidrelay_wire::{
    RobotState, StreamState, mqtt::session::Properties, words::topics::state_topic,
};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{
    Installed, print_table,
    usage::{Memory, Peak, threads},
};
use crate::{
    journal::DEADLINE,
    mosquitto::{self, Mosquitto, TOPIC},
    observer::{Observer, Seen},
    process::poll,
    robot::{Robot, Runner},
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

/// On which topics the valves of a process listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topics {
    Own,
    Same,
}

/// One process with many valves behind one camera, and their broker. The valves listen.
pub struct Fleet {
    // Dropped in this order.
    pub robot: Robot,
    /// The threads it has meanwhile.
    pub peak: Peak,
    observer: Observer,
    _broker: Mosquitto,
    count: usize,
    topics: Topics,
    /// How long it took from the start of the process until all of them listened.
    pub listening_after: Duration,
}

impl Fleet {
    pub fn start(count: usize, topics: Topics, environment: &[(&str, &str)]) -> Result<Self> {
        allow_files()?;
        // Where a robot may read and write what it likes. With persistence it would write all
        // that it knows to the disk after each message.
        let broker = Mosquitto::start_with(mosquitto::Options {
            dynamic: true,
            persistence: false,
            ..Default::default()
        })?;
        let observer = Observer::start_with(&broker, &["robot/+/stream/state"])?;
        let branches = (0..count).map(|number| {
            let valve = broker.valve_on(&topic(topics, number));
            format!("{valve} standby=warm")
        });
        let began = Instant::now();
        let robot = Robot::start_with(Runner::GstLaunch, &line(branches), environment)?;
        let filters: HashSet<_> = (0..count).map(|number| topic(topics, number)).collect();
        let peak = Peak::watch(robot.id());
        broker
            .wait_subscribers(count, |filter| filters.contains(filter))
            .with_context(|| robot.text())?;
        let listening_after = began.elapsed();
        Ok(Fleet {
            listening_after,
            peak,
            robot,
            observer,
            _broker: broker,
            count,
            topics,
        })
    }

    /// Sends `start` to all; back when each one is live. Tells how long that took.
    pub fn open(&self) -> Result<Duration> {
        let (mut read, began) = (self.observer.seen().mark(), Instant::now());
        let commands = match self.topics {
            Topics::Own => self.count,
            Topics::Same => 1,
        };
        let mut closed = HashSet::new();
        for number in 0..commands {
            let topic = topic(self.topics, number);
            closed.insert(state_topic(&topic));
            let properties = Properties::default();
            self.observer.send_to(&topic, "start", properties)?;
        }
        let seen = self.observer.seen();
        let all = poll(DEADLINE, || {
            for seen in seen.since(read) {
                read += 1;
                let (topic, state) = match seen {
                    Seen::State(state, _) => (state_topic(TOPIC), state.state),
                    Seen::Other { topic, text } => {
                        let state: RobotState = serde_json::from_str(&text).unwrap_or_default();
                        (topic, state.state)
                    }
                    _ => continue,
                };
                if state == StreamState::Live {
                    closed.remove(&topic);
                }
            }
            closed.is_empty().then_some(())
        });
        all.with_context(|| format!("{} of {commands} are not live", closed.len()))?;
        Ok(began.elapsed())
    }
}

fn topic(topics: Topics, number: usize) -> String {
    match topics {
        Topics::Own => format!("robot/{number}/stream"),
        Topics::Same => TOPIC.into(),
    }
}

/// One camera, whose thread serves all branches, and one sink: gst-launch-1.0 works out the
/// latency anew for each one.
fn line(valves: impl Iterator<Item = String>) -> String {
    let branches = valves.map(|valve| format!(" t. ! {valve} ! f."));
    let branches: String = branches.collect();
    format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=10/1 ! tee name=t \
         funnel name=f forward-sticky-events=false ! fakesink async=false{branches}"
    )
}

/// Each valve has a connection; what this process may open, those that it starts may too.
fn allow_files() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
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
    let mut fleet = Fleet::start(count, topics, environment)?;
    let id = fleet.robot.id();
    let closed = Taken::by(id)?;
    let live_after = fleet.open().with_context(|| fleet.robot.text())?;
    let live = Some(Taken::by(id)?);
    fleet.robot.end()?;
    Ok(Row {
        name,
        times: Some([fleet.listening_after, live_after]),
        closed,
        live,
        peak: Some(fleet.peak.end()),
    })
}

fn report(count: usize, rows: &[Row; 4]) -> Result<()> {
    println!("### {count} valves in one process, one broker");
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
