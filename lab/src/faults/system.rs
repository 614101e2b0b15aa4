// SPDX-License-Identifier: MPL-2.0

//! Broker, relay, bridge, a way to the broker that can be cut, and a robot of either kind.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use droidrelay_wire::{RobotState, StreamState, words::topics::ONLINE};

use super::case::{By, Setup};
use crate::subscriber::{self, Subscriber};
use droidrelay_testkit::{
    journal::{DEADLINE, Journal},
    net::proxy::Proxy,
    process::{Signal, poll},
    robot::{
        Robot,
        stamps::{Arrival, StampReader},
    },
    servers::{
        mosquitto::Mosquitto,
        relay::{self, Event},
    },
    testbed::{ENCODER, TEST_PICTURE, Testbed},
};

/// What a robot tells on its standard error.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("G_DEBUG", "fatal-criticals"),
    ("GST_DEBUG", "mqttvalve:4,rtmpauthsink:4"),
    ("GST_DEBUG_NO_COLOR", "1"),
];

/// A stream is as it should be when its pictures are no older than this.
const FRESH: Duration = Duration::from_millis(300);

pub enum Machine {
    Ours(Robot),
    Scripts(Subscriber),
}

impl Machine {
    pub fn log(&self) -> &Journal<String> {
        match self {
            Machine::Ours(robot) => robot.log(),
            Machine::Scripts(subscriber) => subscriber.process.log(),
        }
    }

    pub fn id(&self) -> u32 {
        match self {
            Machine::Ours(robot) => robot.id(),
            Machine::Scripts(subscriber) => subscriber.process.id(),
        }
    }

    pub fn is_running(&mut self) -> bool {
        match self {
            Machine::Ours(robot) => robot.is_running(),
            Machine::Scripts(subscriber) => subscriber.process.has_ended().is_none(),
        }
    }

    pub fn text(&self) -> String {
        match self {
            Machine::Ours(robot) => robot.text(),
            Machine::Scripts(subscriber) => subscriber.process.text(),
        }
    }

    /// Ends it as its service manager does.
    pub fn end(&mut self) -> Result<()> {
        match self {
            Machine::Ours(robot) => robot.end(),
            Machine::Scripts(subscriber) => subscriber.process.end(Signal::TERM).map(drop),
        }
    }
}

/// Where what comes next will stand.
#[derive(Clone, Copy, Default)]
pub struct Mark {
    seen: usize,
    pub events: usize,
    log: usize,
}

/// What the robot's line is made of.
#[derive(Clone)]
pub struct Line {
    pub camera: String,
    pub encoder: &'static str,
    /// Properties of mqttvalve.
    pub valve: &'static str,
    /// Properties of rtmpauthsink.
    pub sink: &'static str,
    /// Host and port by which the robot reaches the broker, else by the link.
    pub broker: Option<(&'static str, u16)>,
    /// The same for the relay, else where it is.
    pub relay: Option<(&'static str, u16)>,
    pub environment: &'static [(&'static str, &'static str)],
}

impl Default for Line {
    fn default() -> Self {
        Line {
            camera: TEST_PICTURE.into(),
            encoder: ENCODER,
            valve: "",
            sink: "",
            broker: None,
            relay: None,
            environment: ENVIRONMENT,
        }
    }
}

pub struct System {
    // Dropped in this order.
    robot: Option<Machine>,
    pub testbed: Testbed,
    /// From the robot to the broker.
    pub proxy: Proxy,
    pub line: Line,
    by: By,
}

impl System {
    /// With a robot that listens.
    pub fn start(setup: &Setup) -> Result<Self> {
        Self::start_with(setup, Line::default())
    }

    pub fn start_with(setup: &Setup, line: Line) -> Result<Self> {
        let mut system = Self::without_robot(setup, line)?;
        system.power_on()?;
        system.wait_listening(Mark::default())?;
        Ok(system)
    }

    pub fn without_robot(setup: &Setup, line: Line) -> Result<Self> {
        Self::on(Mosquitto::start()?, setup, relay::Options::default(), line)
    }

    pub fn on(
        broker: Mosquitto,
        setup: &Setup,
        options: relay::Options,
        line: Line,
    ) -> Result<Self> {
        let testbed = Testbed::start_on(broker, setup.relay, options)?;
        Ok(System {
            robot: None,
            proxy: Proxy::start(testbed.broker.port())?,
            testbed,
            line,
            by: setup.by,
        })
    }

    /// Starts the robot, or starts it anew; nothing is waited for.
    pub fn power_on(&mut self) -> Result<()> {
        self.robot = None;
        let Line {
            camera,
            encoder,
            environment,
            ..
        } = &self.line;
        let (broker, broker_port) = self.line.broker.unwrap_or(("127.0.0.1", self.proxy.port()));
        let (relay, relay_port) =
            (self.line.relay).unwrap_or(("127.0.0.1", self.testbed.relay.rtmp_port()));
        let here = self.testbed.relay.publish_url();
        let there = self.testbed.relay.publish_url_at(relay, relay_port);
        self.robot = Some(match self.by.runner() {
            Some(runner) => {
                let valve = self.testbed.broker.valve_by(broker_port);
                let valve = valve.replace("//127.0.0.1:", &format!("//{broker}:"));
                let sink = self.testbed.sink().replace(&here, &there);
                let line = format!(
                    "{camera} ! {valve} {} ! queue ! {encoder} ! {sink} {}",
                    self.line.valve, self.line.sink
                );
                Machine::Ours(Robot::start_with(runner, &line, environment)?)
            }
            None => {
                let line = subscriber::line(&self.testbed, camera, encoder).replace(&here, &there);
                Machine::Scripts(Subscriber::start_at(
                    &self.testbed,
                    broker,
                    broker_port,
                    &line,
                    environment,
                )?)
            }
        });
        Ok(())
    }

    /// As [`System::power_on`]; the robot that was is the caller's.
    pub fn replace_robot(&mut self) -> Result<Option<Machine>> {
        let before = self.robot.take();
        self.power_on()?;
        Ok(before)
    }

    pub fn robot(&mut self) -> Result<&mut Machine> {
        self.robot.as_mut().context("there is no robot")
    }

    pub fn is_ours(&self) -> bool {
        self.by != By::Scripts
    }

    pub fn mark(&self) -> Mark {
        Mark {
            seen: self.testbed.observer.seen().mark(),
            events: self.testbed.relay.events().mark(),
            log: self.robot.as_ref().map_or(0, |robot| robot.log().mark()),
        }
    }

    /// What the robot wrote, for an error.
    pub fn text(&self) -> String {
        self.robot.as_ref().map_or(String::new(), Machine::text)
    }

    /// Waits until the robot says after `mark` that it is subscribed.
    pub fn wait_listening(&self, mark: Mark) -> Result<Instant> {
        match &self.robot {
            Some(Machine::Scripts(subscriber)) => {
                subscriber.wait_subscribed(mark.log)?;
                Ok(Instant::now())
            }
            _ => (self.testbed.observer.wait_available(mark.seen, ONLINE))
                .with_context(|| self.text()),
        }
    }

    /// Waits for a state of the robot after `mark`.
    pub fn wait_where(
        &self,
        mark: Mark,
        what: &str,
        wanted: impl Fn(&RobotState) -> bool,
    ) -> Result<Box<RobotState>> {
        let found = self.testbed.observer.wait_where(mark.seen, what, wanted);
        Ok(found.with_context(|| self.text())?.1)
    }

    pub fn wait_log(&self, mark: Mark, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let robot = self.robot.as_ref().context("there is no robot")?;
        let found = robot.log().wait(mark.log, what, |line| wanted(line));
        found.with_context(|| self.text())?;
        Ok(())
    }

    pub fn send(&self, command: &str) -> Result<Instant> {
        self.testbed.observer.send(command)
    }

    /// Sends `start`; back when the server has accepted the publisher, and the robot says so.
    pub fn go_live(&self) -> Result<Instant> {
        let mark = self.mark();
        self.send("start")?;
        self.wait_live(mark)
    }

    /// Waits until the server has accepted the publisher after `mark`, and the robot says so.
    pub fn wait_live(&self, mark: Mark) -> Result<Instant> {
        let at = self.wait_relay(mark, Event::Published)?;
        if self.is_ours() {
            self.wait_where(mark, "live", |state| state.state == StreamState::Live)?;
        }
        Ok(at)
    }

    pub fn wait_relay(&self, mark: Mark, event: Event) -> Result<Instant> {
        (self.testbed.relay_says(mark.events, event)).with_context(|| self.text())
    }

    /// Sends `stop`; back when the server has seen the publisher go.
    pub fn stop(&self) -> Result<Instant> {
        let mark = self.mark();
        self.send("stop")?;
        self.wait_relay(mark, Event::Unpublished)
    }

    /// Looks for `patience` and fails where the server says `event`.
    pub fn never(&self, mark: Mark, event: Event, patience: Duration) -> Result<()> {
        let seen = self.testbed.relay.events();
        let seen = seen.try_wait(mark.events, patience, |seen| *seen == event);
        ensure!(
            seen.is_none(),
            "{event:?}, which must not be\n{}",
            self.text()
        );
        Ok(())
    }

    /// Waits until the robot's broker is out of its reach, and it goes on; the scripts have no
    /// sign for it.
    pub fn misses_broker(&mut self, mark: Mark) -> Result<()> {
        if self.is_ours() {
            return self.wait_log(mark, "no session in the log", |line| {
                line.contains("no MQTT session")
            });
        }
        Ok(())
    }

    pub fn is_still_running(&mut self) -> Result<()> {
        let robot = self.robot()?;
        if !robot.is_running() {
            bail!("the robot's process has ended\n{}", robot.text());
        }
        Ok(())
    }

    /// Waits for a picture that was taken after `since`, in the reader's milliseconds, and is as
    /// fresh as in a good stream; the viewer begins anew by `read` where they are sent away.
    pub fn wait_fresh(
        &self,
        reader: &mut StampReader,
        since: u32,
        read: impl Fn(String, Journal<Arrival>) -> Result<StampReader>,
    ) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let seen = self.sees_fresh(reader, since, deadline, read)?;
        ensure!(
            seen.is_some(),
            "no picture younger than {FRESH:?} within {} s\n{}\n{}",
            DEADLINE.as_secs(),
            reader.text(),
            self.text()
        );
        Ok(())
    }

    /// When there is a fresh picture that was taken after `since`, if that is before `deadline`.
    pub fn sees_fresh(
        &self,
        reader: &mut StampReader,
        since: u32,
        deadline: Instant,
        read: impl Fn(String, Journal<Arrival>) -> Result<StampReader>,
    ) -> Result<Option<Instant>> {
        let arrivals: Journal<Arrival> = reader.arrivals().clone();
        let fresh = |frame: &Arrival| frame.taken >= since && frame.latency() < FRESH;
        let mut mark = arrivals.mark();
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let patience = patience.min(Duration::from_millis(200));
            if let Some((at, _)) = arrivals.try_wait(mark, patience, fresh) {
                return Ok(Some(at));
            }
            mark = arrivals.mark();
            if Instant::now() >= deadline {
                return Ok(None);
            }
            if reader.has_ended() {
                *reader = read(self.testbed.relay.viewer_url(), arrivals.clone())?;
            }
        }
    }

    /// Sends `command` again each second until the server says `event`, as viewers do who renew
    /// their leases.
    pub fn renew_until(&self, command: &str, mark: Mark, event: Event) -> Result<Instant> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.send(command)?;
            let patience = Duration::from_secs(1);
            let events = self.testbed.relay.events();
            if let Some((at, _)) = events.try_wait(mark.events, patience, |seen| *seen == event) {
                return Ok(at);
            }
            ensure!(
                Instant::now() < deadline,
                "not {event:?} within {} s\n{}",
                DEADLINE.as_secs(),
                self.text()
            );
        }
    }

    /// Waits until the server's last word of the publisher is that it publishes.
    pub fn wait_published_now(&self, mark: Mark) -> Result<()> {
        let last = || {
            let events = self.testbed.relay.events().since(mark.events);
            let mut events = events.iter().rev();
            let last = events.find(|event| {
                matches!(
                    event,
                    Event::Published | Event::Unpublished | Event::PublishRefused
                )
            });
            (last == Some(&Event::Published)).then_some(())
        };
        poll(DEADLINE, last).with_context(|| format!("not published in the end\n{}", self.text()))
    }
}

/// The fault goes on for so long.
pub fn pass(time: Duration) {
    thread::sleep(time);
}
