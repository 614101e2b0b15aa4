// SPDX-License-Identifier: MPL-2.0

//! A robot, a server and a viewer of the robot's stream, with a [`ShapedLink`] between robot and server.

use std::time::{Duration, Instant};

use anyhow::Result;
use tempfile::TempDir;

use crate::{
    certs::write_private,
    journal::Journal,
    net::shaped_link::{Quality, SERVER, ShapedLink},
    robot::{
        Robot, Runner,
        stamps::{Arrival, StampReader, StampedCamera},
    },
    servers::relay::{Kind, Options, Relay},
};

/// What the encoder is set to, in kilobits per second.
pub const BITRATE: u32 = 1500;
/// Of rtmpauthsink.
pub const MAX_LATENCY: Duration = Duration::from_secs(1);

/// How the robot publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publisher {
    /// rtmpauthsink with adaptive-bitrate.
    Adaptive,
    /// rtmpauthsink as it is by default.
    Fixed,
    /// GStreamer's own.
    Rtmp2Sink,
}

pub struct UplinkTestbed {
    // Dropped in this order: who depends on something goes before it.
    pub robot: Robot,
    pub reader: StampReader,
    pub camera: StampedCamera,
    relay: Relay,
    _secrets: TempDir,
    pub line: ShapedLink,
    zero: Instant,
    pipeline: String,
}

impl UplinkTestbed {
    /// All times in it are milliseconds since `zero`. Fails where networks of one's own are not
    /// permitted ([`crate::net::netns::is_forbidden`]).
    pub fn start(publisher: Publisher, quality: Quality, zero: Instant) -> Result<Self> {
        let line = ShapedLink::new(quality)?;
        let relay = line.server.run(|_| {
            let options = Options {
                far: true,
                ..Options::default()
            };
            Relay::start_with(Kind::Nginx, options)
        })?;
        let reader = reader(&line, &relay, zero, Journal::default())?;
        let camera = StampedCamera::start(zero)?;
        let secrets = tempfile::tempdir()?;
        let password = write_private(secrets.path(), "pass", &relay.publisher.password)?;
        let location = relay.publish_url().replace("127.0.0.1", SERVER);
        let user = &relay.publisher.user;
        let sink = match publisher {
            Publisher::Rtmp2Sink => format!(
                "flvmux streamable=true ! rtmp2sink location={location}?user={user}&pass={}",
                relay.publisher.password
            ),
            _ => format!(
                "rtmpauthsink location={location} user={user} password-file={} max-latency={} adaptive-bitrate={}",
                password.display(),
                MAX_LATENCY.as_nanos(),
                publisher == Publisher::Adaptive
            ),
        };
        let pipeline = format!(
            "-v {} ! x264enc name=enc tune=zerolatency speed-preset=ultrafast bitrate={BITRATE} key-int-max=25 ! {sink}",
            camera.source()
        );
        let robot = robot(&line, &pipeline)?;
        Ok(UplinkTestbed {
            robot,
            reader,
            camera,
            relay,
            _secrets: secrets,
            line,
            zero,
            pipeline,
        })
    }

    /// The viewer begins anew where it was sent away.
    pub fn keep_reading(&mut self) -> Result<()> {
        if self.reader.has_ended() {
            let arrivals = self.reader.arrivals().clone();
            self.reader = reader(&self.line, &self.relay, self.zero, arrivals)?;
        }
        Ok(())
    }

    /// Starts the robot again where its pipeline has ended; true where it had.
    pub fn keep_running(&mut self) -> Result<bool> {
        let has_ended = !self.robot.is_running();
        if has_ended {
            self.robot = robot(&self.line, &self.pipeline)?;
        }
        Ok(has_ended)
    }
}

fn reader(
    line: &ShapedLink,
    relay: &Relay,
    zero: Instant,
    arrivals: Journal<Arrival>,
) -> Result<StampReader> {
    let url = relay.viewer_url();
    line.server
        .run(move |_| StampReader::start(&url, zero, arrivals))
}

fn robot(line: &ShapedLink, pipeline: &str) -> Result<Robot> {
    let pipeline = pipeline.to_owned();
    line.robot
        .run(move |_| Robot::start(Runner::GstLaunch, &pipeline))
}

/// What a robot's line of output tells of its encoder, in kilobits per second.
pub fn bitrate(line: &str) -> Option<u32> {
    line.split_once("GstX264Enc:enc: bitrate = ")?
        .1
        .parse()
        .ok()
}
