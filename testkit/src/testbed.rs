// SPDX-License-Identifier: MPL-2.0

//! Broker, relay, bridge and observer together, and the robot's line that fits them.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use droidrelay_wire::StreamState;
use tempfile::TempDir;

use crate::{
    certs::write_private,
    clients::observer::{Observer, Seen},
    journal::DEADLINE,
    process::poll,
    robot::{Robot, Runner},
    servers::{
        bridge::Bridge,
        mosquitto::Mosquitto,
        relay::{self, Kind, Relay},
    },
};

/// A live test picture, small enough for many tests at once.
pub const TEST_PICTURE: &str =
    "videotestsrc is-live=true ! video/x-raw,format=I420,width=320,height=180,framerate=30/1";
/// A live picture that costs next to nothing, for lines that show it to nobody.
pub const TINY_PICTURE: &str = "videotestsrc is-live=true ! video/x-raw,width=64,height=48";
/// The encoder of the robot's line.
pub const ENCODER: &str =
    "x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500 key-int-max=30";

pub struct Testbed {
    // Dropped in this order: who depends on a server goes before it.
    pub observer: Observer,
    pub bridge: Bridge,
    pub relay: Relay,
    pub broker: Mosquitto,
    folder: TempDir,
}

impl Testbed {
    pub fn start(kind: Kind) -> Result<Self> {
        Self::start_with(kind, relay::Options::default())
    }

    pub fn start_with(kind: Kind, options: relay::Options) -> Result<Self> {
        Self::start_on(Mosquitto::start()?, kind, options)
    }

    /// As [`Testbed::start_with`], with a broker that runs already.
    pub fn start_on(broker: Mosquitto, kind: Kind, options: relay::Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("secrets-").tempdir()?;
        let relay = Relay::start_with(kind, options)?;
        let bridge = Bridge::start(&broker, &relay)?;
        let observer = Observer::start(&broker)?;
        let testbed = Testbed {
            observer,
            bridge,
            relay,
            broker,
            folder,
        };
        testbed.write_publisher_password(&testbed.relay.publisher.password)?;
        Ok(testbed)
    }

    pub fn publisher_password_file(&self) -> PathBuf {
        self.folder.path().join("rtmp.pass")
    }

    /// Gives the robot this password for the relay, right or wrong.
    pub fn write_publisher_password(&self, password: &str) -> Result<()> {
        write_private(self.folder.path(), "rtmp.pass", password)?;
        Ok(())
    }

    /// mqttvalve with its broker and credentials.
    pub fn valve(&self) -> String {
        self.broker.valve()
    }

    /// rtmpauthsink with its location and credentials.
    pub fn sink(&self) -> String {
        format!(
            "rtmpauthsink location={} user={} password-file={}",
            self.relay.publish_url(),
            self.relay.publisher.user,
            self.publisher_password_file().display()
        )
    }

    /// The robot's line behind `camera`.
    pub fn line(&self, camera: &str) -> String {
        format!(
            "{camera} ! {} ! queue ! {ENCODER} ! {}",
            self.valve(),
            self.sink()
        )
    }

    /// Starts the robot's line; back when it is online and idle.
    pub fn robot(&self, runner: Runner, line: &str) -> Result<Robot> {
        self.robot_with(runner, line, &[])
    }

    pub fn robot_with(
        &self,
        runner: Runner,
        line: &str,
        environment: &[(&str, &str)],
    ) -> Result<Robot> {
        self.observer.robot(runner, line, environment)
    }

    /// Waits for `event` at the relay.
    pub fn relay_says(&self, mark: usize, event: relay::Event) -> Result<Instant> {
        let events = self.relay.events();
        let what = format!("{event:?} at {}", self.relay.kind());
        let said = events.wait(mark, &what, |seen| *seen == event);
        Ok(said
            .with_context(|| format!("seen: {:?}", events.since(mark)))?
            .0)
    }

    /// Waits for `event` at the relay; panics with the relay's log.
    pub fn wait_relay(&self, mark: usize, event: relay::Event) -> Instant {
        let what = format!("{event:?} at {}", self.relay.kind());
        match self.relay.events().wait(mark, &what, |seen| *seen == event) {
            Ok((at, _)) => at,
            Err(err) => panic!("{err}; seen: {:?}", self.relay.events().since(mark)),
        }
    }

    /// Waits until the robot that left idle after `mark` is idle again.
    pub fn wait_idle_again(&self, mark: usize) {
        let away = |seen: &Seen| seen.state().is_some() && !seen.is(StreamState::Idle);
        let seen = self.observer.seen();
        let left = seen.position(mark, away).expect("the robot was not idle");
        self.observer
            .wait_state(left, StreamState::Idle)
            .expect("idle again");
    }

    /// Waits until the last word of the robot is `wanted`.
    pub fn wait_now(&self, wanted: StreamState) {
        let last = || {
            let all = self.observer.seen().all();
            let last = all.iter().rev().find_map(Seen::state)?;
            (last.state == wanted).then_some(())
        };
        assert!(
            poll(DEADLINE, last).is_some(),
            "not {}: {:?}",
            wanted.as_str(),
            self.observer.seen().last()
        );
    }
}
