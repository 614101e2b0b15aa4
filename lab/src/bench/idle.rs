// SPDX-License-Identifier: MPL-2.0

//! A robot that nobody watches: the CPU time it uses while closed, and its memory before the
//! first session and after the last one.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use droidrelay_wire::StreamState;

use super::common::{Installed, print_table};
use crate::subscriber::{self, Subscriber};
use droidrelay_testkit::usage::{Cpu, Memory, family, threads};
use droidrelay_testkit::{
    journal::DEADLINE,
    process::poll,
    robot::{Robot, Runner},
    servers::relay::{Event, Kind},
    testbed::{ENCODER, TEST_PICTURE, Testbed},
};

/// How long each session streams.
const SESSION: Duration = Duration::from_secs(1);
/// What starting or ending has to do comes to its end in this time.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long each one is watched while closed, twice
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Sessions between the two
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seconds: 60,
            rounds: 10,
        }
    }
}

/// What was used while closed.
struct Idle {
    cpu: Cpu,
    memory: Memory,
    threads: usize,
}

struct Row {
    name: &'static str,
    before: Idle,
    after: Option<Idle>,
}

pub fn run(options: &Options) -> Result<()> {
    let installed = Installed::new()?;
    let testbed = Testbed::start(Kind::Nginx)?;
    // One after the other: what runs at the same time would share pages.
    let rows = [
        valve(options, &installed, &testbed, "mqttvalve, cold", "cold")?,
        valve(options, &installed, &testbed, "mqttvalve, warm", "warm")?,
        gstreamer(options, &installed)?,
        python(options, &installed, &testbed)?,
    ];
    report(options, &rows)
}

fn valve(
    options: &Options,
    installed: &Installed,
    testbed: &Testbed,
    name: &'static str,
    standby: &str,
) -> Result<Row> {
    let line = format!(
        "{TEST_PICTURE} ! {} standby={standby} ! queue ! {ENCODER} ! {}",
        testbed.valve(),
        testbed.sink()
    );
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut robot = testbed.robot_with(Runner::GstLaunch, &line, &environment)?;
    let observer = &testbed.observer;
    let row = measure(options, name, robot.id(), || {
        let mark = observer.seen().mark();
        observer.send("start")?;
        observer.wait_state(mark, StreamState::Live)?;
        thread::sleep(SESSION);
        let (mark, end) = (observer.seen().mark(), testbed.relay.events().mark());
        observer.send("stop")?;
        observer.wait_state(mark, StreamState::Idle)?;
        wait(testbed, end, Event::Unpublished)
    });
    let row = row.with_context(|| robot.text())?;
    robot.end()?;
    Ok(row)
}

/// GStreamer's own part of the line: camera, closed valve, encoder.
fn gstreamer(options: &Options, installed: &Installed) -> Result<Row> {
    let line =
        format!("{TEST_PICTURE} ! valve drop=true ! queue ! {ENCODER} ! fakesink async=false");
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut robot = Robot::start_with(Runner::GstLaunch, &line, &environment)?;
    robot
        .log()
        .wait(0, "the line plays", |line| line.contains("New clock"))
        .with_context(|| robot.text())?;
    let before = idle(options, robot.id())?;
    robot.end()?;
    Ok(Row {
        name: "valve of GStreamer, no MQTT, no sink",
        before,
        after: None,
    })
}

fn python(options: &Options, installed: &Installed, testbed: &Testbed) -> Result<Row> {
    let environment = installed.environment()?;
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let line = subscriber::line(testbed, TEST_PICTURE, ENCODER);
    let subscriber = Subscriber::start(testbed, &line, &environment)?;
    let process = &subscriber.process;
    let mut sessions = 0;
    let events = testbed.relay.events();
    let row = measure(options, "Python, paho-mqtt", process.id(), || {
        let mark = events.mark();
        testbed.observer.send("start")?;
        wait(testbed, mark, Event::Published)?;
        thread::sleep(SESSION);
        let mark = events.mark();
        testbed.observer.send("stop")?;
        wait(testbed, mark, Event::Unpublished)?;
        let alone = || family(process.id()).is_ok_and(|family| family.len() == 1);
        poll(DEADLINE, || alone().then_some(())).context("gst-launch-1.0 does not end")?;
        sessions += 1;
        Ok(())
    });
    let row = row.with_context(|| format!("after {sessions} sessions\n{}", process.text()))?;
    Ok(row)
}

fn wait(testbed: &Testbed, mark: usize, event: Event) -> Result<()> {
    let what = format!("{event:?} at the relay");
    testbed
        .relay
        .events()
        .wait(mark, &what, |seen| *seen == event)?;
    Ok(())
}

fn measure(
    options: &Options,
    name: &'static str,
    id: u32,
    mut session: impl FnMut() -> Result<()>,
) -> Result<Row> {
    let before = idle(options, id)?;
    for _ in 0..options.rounds {
        session()?;
    }
    let after = Some(idle(options, id)?);
    Ok(Row {
        name,
        before,
        after,
    })
}

fn idle(options: &Options, id: u32) -> Result<Idle> {
    thread::sleep(SETTLE);
    let earlier = Cpu::of(id)?;
    thread::sleep(Duration::from_secs(options.seconds));
    Ok(Idle {
        cpu: Cpu::of(id)?.since(earlier),
        memory: Memory::alone(id)?,
        threads: threads(id)?,
    })
}

fn report(options: &Options, rows: &[Row]) -> Result<()> {
    let Options { seconds, rounds } = options;
    let python = rows.last().context("nothing measured")?;
    println!(
        "## CPU and memory while idle: {seconds} s closed, before the first session and after session {rounds}"
    );
    println!();
    println!(
        "`{TEST_PICTURE} ! mqttvalve ! queue ! {ENCODER} ! rtmpauthsink`, CPU time in ms (clock \
         ticks), memory in KiB, \
         children included. In brackets the ratio to Python. Anonymous is the part of PSS that is \
         in no file; pages of files count less where other processes of the machine map them too."
    );
    let head = [
        "",
        "CPU before",
        "CPU after",
        "PSS before",
        "PSS after",
        "anonymous before",
        "anonymous after",
        "RSS before",
        "RSS after",
        "threads",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let of = |get: &dyn Fn(&Idle) -> f64, shown: &dyn Fn(&Idle) -> String| {
            let cell = |idle: Option<&Idle>, base: Option<&Idle>| {
                let (Some(idle), Some(base)) = (idle, base) else {
                    return String::from("-");
                };
                format!("{} ({:.2})", shown(idle), get(idle) / get(base))
            };
            [
                cell(Some(&row.before), Some(&python.before)),
                cell(row.after.as_ref(), python.after.as_ref()),
            ]
        };
        let millis = |idle: &Idle| idle.cpu.time.as_secs_f64() * 1e3;
        let cpu = |idle: &Idle| format!("{:.2} ms, {} t", millis(idle), idle.cpu.ticks);
        let memory = |get: fn(&Memory) -> u64| {
            of(&|idle| get(&idle.memory) as f64, &|idle| {
                get(&idle.memory).to_string()
            })
        };
        let mut cells = vec![row.name.to_owned()];
        cells.extend(of(&millis, &cpu));
        cells.extend(memory(|memory| memory.pss));
        cells.extend(memory(|memory| memory.anonymous));
        cells.extend(memory(|memory| memory.rss));
        let last = row.after.as_ref().unwrap_or(&row.before);
        cells.push(last.threads.to_string());
        table.push(cells);
    }
    print_table(&table)
}
