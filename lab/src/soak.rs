// SPDX-License-Identifier: MPL-2.0

//! Long runs: a robot streams, faults are thrown in at random, and when they are over it streams
//! again; in the end it uses no more than it did, and has left nothing behind.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use droidrelay_wire::StreamState;
use fastrand::Rng;

use crate::faults::{
    By, Setup,
    system::{Line, Machine, Mark, System},
};
use droidrelay_testkit::{
    clients::reader::Reader,
    net::proxy::Proxy,
    process::poll,
    servers::relay::{Event, Kind},
    usage::{Trend, Usage},
};

/// What the robot's memory may be larger by in the last third, in KiB: this much comes and goes.
const SLACK: u64 = 1024;
/// From the end of all faults to pictures: the longest pause between two tries is 30 s.
const BACK: Duration = Duration::from_secs(60);
/// No fault lasts longer.
const LONGEST: u64 = 6000;

/// A robot that streams and stops while what it needs breaks at random; exits 1 where it does not
/// come back by itself, grows, or leaves something behind.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long it goes on
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    minutes: u64,
    /// The same faults as with this seed before; another one each time without it
    #[arg(long)]
    seed: Option<u64>,
    /// gst-launch-1.0 or droidrelay
    #[arg(long, value_name = "WHO", default_value = "gst-launch-1.0")]
    by: By,
    /// With GStreamer's leaks tracer, which counts what is left in the end (gst-launch-1.0)
    #[arg(long)]
    leaks: bool,
    /// Only faults of these kinds
    #[arg(long = "fault", value_name = "KIND")]
    faults: Vec<Fault>,
}

/// A camera that fails by itself after five seconds, and can be opened again.
const CAMERA: &str = "videotestsrc is-live=true \
     ! video/x-raw,format=I420,width=640,height=360,framerate=30/1 ! identity error-after=150";

const QUIET: &[(&str, &str)] = &[("GST_DEBUG", "2"), ("GST_DEBUG_NO_COLOR", "1")];
const TRACED: &[(&str, &str)] = &[
    ("GST_DEBUG", "2,GST_TRACER:7"),
    ("GST_DEBUG_NO_COLOR", "1"),
    ("GST_TRACERS", "leaks"),
];

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Fault {
    RelayKilled,
    RelayFrozen,
    RelayReset,
    BrokerKilled,
    BrokerFrozen,
    LinkCut,
    LinkDeaf,
    WrongPassword,
    RobotFrozen,
    OddPayloads,
    StopsAndStarts,
}

struct Life {
    // Dropped in this order.
    system: System,
    /// From the robot to the relay.
    uplink: Proxy,
    random: Rng,
    /// What may happen.
    faults: Vec<Fault>,
}

impl Life {
    fn begin(options: &Options, seed: u64) -> Result<Self> {
        let relay = match Kind::MediaMtx.notice_if_absent() {
            false if seed.is_multiple_of(2) => Kind::MediaMtx,
            _ => Kind::Nginx,
        };
        let setup = Setup {
            by: options.by,
            relay,
            short: false,
        };
        let line = Line {
            camera: CAMERA.into(),
            sink: "timeout=3",
            environment: if options.leaks { TRACED } else { QUIET },
            ..Line::default()
        };
        let mut system = System::without_robot(&setup, line)?;
        let uplink = Proxy::start(system.testbed.relay.rtmp_port())?;
        system.line.relay = Some(("127.0.0.1", uplink.port()));
        system.power_on()?;
        system.wait_listening(Mark::default())?;
        println!("seed {seed}, {}, {relay}", options.by);
        Ok(Life {
            system,
            uplink,
            random: Rng::with_seed(seed),
            faults: match options.faults.is_empty() {
                true => Fault::value_variants().to_vec(),
                false => options.faults.clone(),
            },
        })
    }

    fn chance(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.random.u64(..most))
    }

    /// Breaks something for a while.
    fn suffer(&mut self, fault: Fault) -> Result<()> {
        let lasts = self.chance(LONGEST);
        let system = &mut self.system;
        match fault {
            Fault::RelayKilled => {
                system.testbed.relay.kill();
                thread::sleep(lasts);
                system.testbed.relay.restart()?;
            }
            Fault::RelayFrozen => {
                system.testbed.relay.freeze();
                thread::sleep(lasts);
                system.testbed.relay.thaw();
            }
            Fault::RelayReset => {
                self.uplink.cut();
                thread::sleep(lasts / 4);
                self.uplink.restore();
            }
            Fault::BrokerKilled => {
                system.testbed.broker.kill();
                thread::sleep(lasts);
                system.testbed.broker.restart()?;
            }
            Fault::BrokerFrozen => {
                system.testbed.broker.freeze();
                thread::sleep(lasts);
                system.testbed.broker.thaw();
            }
            Fault::LinkCut => {
                system.proxy.cut();
                thread::sleep(lasts);
                system.proxy.restore();
            }
            Fault::LinkDeaf => {
                system.proxy.discard_upstream();
                thread::sleep(lasts);
                // What was lost on the way is never said again: TCP would have.
                system.proxy.cut();
                system.proxy.restore();
            }
            Fault::WrongPassword => {
                system.testbed.write_publisher_password("not-the-one")?;
                self.uplink.cut();
                self.uplink.restore();
                thread::sleep(lasts);
                let right = system.testbed.relay.publisher.password.clone();
                system.testbed.write_publisher_password(&right)?;
            }
            Fault::RobotFrozen => {
                let Machine::Ours(robot) = system.robot()? else {
                    bail!("not a robot of ours");
                };
                robot.freeze();
                thread::sleep(lasts);
                robot.thaw();
            }
            Fault::OddPayloads => {
                for payload in ["go", "{\"command\":7}", "", "start start", "\u{7f}"] {
                    system.send(payload)?;
                }
            }
            Fault::StopsAndStarts => {
                for _ in 0..self.random.u32(..10) {
                    system.send("stop")?;
                    system.send("start")?;
                }
            }
        }
        Ok(())
    }

    /// Waits for pictures at a viewer who comes now, and again where they are sent away; gives how
    /// long it took.
    fn wait_pictures(&mut self) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let mut reader = Reader::start(&self.system.testbed.relay.viewer_url(), None)?;
            let seen = poll(BACK, || {
                let has_ended = reader.has_ended();
                (has_ended || reader.frames().mark() >= 10 || began.elapsed() > BACK).then_some(())
            });
            if seen.is_some() && reader.frames().mark() >= 10 {
                return Ok(began.elapsed());
            }
            ensure!(
                began.elapsed() < BACK,
                "no pictures within {BACK:?}\n{}\n{}",
                reader.text(),
                self.system.robot()?.text()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts, suffers, streams, stops.
    fn turn(&mut self, number: usize, begin: Instant) -> Result<Usage> {
        self.system.send("start")?;
        self.wait_pictures()?;
        let count = self.random.u32(1..=3);
        let mut faults = Vec::new();
        for _ in 0..count {
            let pause = self.chance(2000);
            thread::sleep(pause);
            let fault = self.faults[self.random.usize(..self.faults.len())];
            self.suffer(fault).with_context(|| format!("{fault:?}"))?;
            faults.push(fault);
        }
        let back = self
            .wait_pictures()
            .with_context(|| format!("turn {number}, after {faults:?}"))?;
        let seen = self.system.testbed.observer.seen();
        let mark = seen.mark();
        self.system.send("stop")?;
        // The observer may have missed what came before the stop.
        let state = self
            .system
            .testbed
            .observer
            .wait_state(mark, StreamState::Idle);
        state.with_context(|| format!("turn {number}, after {faults:?}: idle"))?;
        let events = self.system.testbed.relay.events();
        poll(BACK, || {
            let last = events.all().into_iter().rev();
            let mut last =
                last.filter(|event| matches!(event, Event::Published | Event::Unpublished));
            (last.next() != Some(Event::Published)).then_some(())
        })
        .with_context(|| format!("turn {number}, after {faults:?}: still published"))?;
        // One second after a session the elements give back what they needed.
        thread::sleep(Duration::from_millis(1500));
        self.system.is_still_running()?;
        let usage = Usage::of(self.system.robot()?.id())?;
        println!(
            "{:>5.0} s, turn {number}: pictures {:.2} s after {faults:?}; {} threads, {} descriptors, {} KiB",
            begin.elapsed().as_secs_f64(),
            back.as_secs_f64(),
            usage.threads,
            usage.descriptors,
            usage.memory.anonymous
        );
        Ok(usage)
    }
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(
        options.by != By::Scripts,
        "the scripts do not live that long"
    );
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = options.seed.unwrap_or(clock.as_secs());
    let mut life = Life::begin(options, seed)?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs(60 * options.minutes);
    let mut usages = Vec::new();
    while Instant::now() < end || usages.len() < 3 {
        let usage = life.turn(usages.len(), begin);
        usages.push(usage.with_context(|| format!("seed {seed}"))?);
    }
    let course = Trend::of(&usages)?;
    print!("{}", course.text());
    let robot = life.system.robot()?;
    // With the tracer, the robot keeps notes of what there was.
    if !options.leaks {
        course
            .is_flat(robot.id(), SLACK)
            .with_context(|| format!("seed {seed}"))?;
    }
    robot.end()?;
    if options.leaks {
        let text = robot.text();
        ensure!(text.contains("GST_TRACER"), "the tracer has not run");
        let alive = text
            .lines()
            .filter(|line| line.contains("object-alive,") && !line.contains("new format string"));
        let alive: Vec<&str> = alive.collect();
        ensure!(
            alive.is_empty(),
            "left behind, seed {seed}:\n{}",
            alive.join("\n")
        );
        println!("leaks tracer: nothing is left");
    }
    Ok(())
}
