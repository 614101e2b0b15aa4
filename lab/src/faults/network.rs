// SPDX-License-Identifier: MPL-2.0

//! The network between the robot and everything else gets bad: a [`ShapedLink`] between two
//! network namespaces, over which MQTT and RTMP go at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{
    case::{Case, Found, Setup},
    system::{Line, Mark, System, pass},
};
use droidrelay_testkit::{
    journal::Journal,
    net::shaped_link::{Quality, SERVER, ShapedLink},
    robot::stamps::{Arrival, StampReader, StampedCamera},
    servers::{
        mosquitto::{Mosquitto, Options},
        relay::{self, Event},
    },
};

/// From a silent end of all connections to a stream.
const BACK: Duration = Duration::from_secs(30);

pub const CASES: &[Case] = &[
    Case::new(
        "5 % of all packets lost, both ways",
        "starts, streams, stops; time of the stop",
        loss,
    ),
    Case::new(
        "300 ms delay",
        "starts, streams, stops; time of the stop",
        delay,
    ),
    Case::new(
        "packets overtake each other (up to 30 ms)",
        "starts, streams, stops; time of the stop",
        reordering,
    ),
    Case::new(
        "400 kbit/s for an encoder of 1500 kbit/s",
        "starts, streams, stops; time of the stop",
        narrow,
    ),
    Case::new(
        "no way out at the robot's start, one after 10 s",
        "there for commands and streaming within 30 s",
        down_at_start,
    ),
    Case::new(
        "black hole of 10 s while streaming",
        "fresh pictures, obeys, within 30 s",
        black_hole,
    )
    .at_each_relay(),
    Case::new(
        "stop sent in a black hole of 10 s",
        "stops within 30 s",
        stop_in_black_hole,
    ),
    Case::new(
        "the robot gets another address while streaming",
        "fresh pictures, obeys, within 30 s",
        other_address,
    )
    .at_each_relay(),
];

struct Net {
    // Dropped in this order.
    system: System,
    reader: StampReader,
    _camera: StampedCamera,
    link: ShapedLink,
    zero: Instant,
}

impl Net {
    /// Servers and viewer on the one side of a link like this, a robot that is off on the other.
    fn new(setup: &Setup, quality: Quality, sink: &'static str) -> Result<Self> {
        let link = ShapedLink::new(quality)?;
        let zero = Instant::now();
        let camera = StampedCamera::start(zero)?;
        let source = camera.source();
        let setup = *setup;
        let (system, reader) = link.server.run(move |_| {
            let broker = Mosquitto::start_with(Options {
                everywhere: true,
                ..Options::default()
            })?;
            let port = broker.port();
            let options = relay::Options {
                far: true,
                ..relay::Options::default()
            };
            let line = Line {
                camera: source,
                valve: "standby=warm",
                sink,
                broker: Some((SERVER, port)),
                ..Line::default()
            };
            let mut system = System::on(broker, &setup, options, line)?;
            system.line.relay = Some((SERVER, system.testbed.relay.rtmp_port()));
            let url = system.testbed.relay.viewer_url();
            let reader = StampReader::start(&url, zero, Journal::default())?;
            Ok::<_, anyhow::Error>((system, reader))
        })?;
        Ok(Net {
            system,
            reader,
            _camera: camera,
            link,
            zero,
        })
    }

    fn start(setup: &Setup, quality: Quality, sink: &'static str) -> Result<Self> {
        let net = Net::new(setup, quality, sink)?.power_on()?;
        net.system.wait_listening(Mark::default())?;
        Ok(net)
    }

    fn power_on(self) -> Result<Self> {
        let Net {
            mut system,
            reader,
            _camera,
            link,
            zero,
        } = self;
        let system = link.robot.run(move |_| {
            system.power_on()?;
            Ok::<_, anyhow::Error>(system)
        })?;
        Ok(Net {
            system,
            reader,
            _camera,
            link,
            zero,
        })
    }

    /// Loses everything from now on, or nothing any more.
    fn black_hole(&self, is_on: bool) -> Result<()> {
        self.link.set_quality(Quality {
            loss: if is_on { 100 } else { 0 },
            ..Quality::rate(4000)
        })
    }

    /// Waits for a fresh picture taken after `since`.
    fn wait_fresh(&mut self, since: Instant) -> Result<()> {
        let Net {
            system,
            reader,
            link,
            zero,
            ..
        } = self;
        let zero = *zero;
        let since = since.duration_since(zero).as_millis() as u32;
        system.wait_fresh(reader, since, |url, arrivals| {
            link.server
                .run(move |_| StampReader::start(&url, zero, arrivals))
        })
    }
}

fn good() -> Quality {
    Quality::rate(4000)
}

/// Starts, has pictures for five seconds, stops.
fn session(setup: &Setup, quality: Quality, sink: &'static str) -> Result<Found> {
    let net = Net::start(setup, quality, sink)?;
    let (system, arrivals) = (&net.system, net.reader.arrivals());
    let asked = Instant::now();
    system.go_live()?;
    let (first, _) = arrivals
        .wait(0, "a picture", |_| true)
        .with_context(|| net.reader.text())?;
    pass(setup.lasts(5));
    // Of the last second: by then it streams as it will.
    let last = arrivals.all().split_off(arrivals.mark().saturating_sub(25));
    let mut latencies: Vec<Duration> = last.iter().map(Arrival::latency).collect();
    latencies.sort_unstable();
    let median = latencies[latencies.len() / 2];
    let asked_to_stop = Instant::now();
    let stopped = system.stop()?;
    Ok(Found {
        recovered: Some(stopped.saturating_duration_since(asked_to_stop)),
        more: format!(
            "first picture after {:.2} s, pictures {} ms old",
            first.saturating_duration_since(asked).as_secs_f64(),
            median.as_millis()
        ),
    })
}

fn loss(setup: &Setup) -> Result<Found> {
    session(setup, Quality { loss: 5, ..good() }, "")
}

fn delay(setup: &Setup) -> Result<Found> {
    let delay = Duration::from_millis(300);
    session(setup, Quality { delay, ..good() }, "")
}

fn reordering(setup: &Setup) -> Result<Found> {
    let jitter = Duration::from_millis(30);
    session(setup, Quality { jitter, ..good() }, "")
}

fn narrow(setup: &Setup) -> Result<Found> {
    session(setup, Quality::rate(400), "adaptive-bitrate=true")
}

fn down_at_start(setup: &Setup) -> Result<Found> {
    let net = Net::new(setup, good(), "")?;
    net.black_hole(true)?;
    let mut net = net.power_on()?;
    net.system.misses_broker(Mark::default())?;
    pass(setup.lasts(10));
    net.system.is_still_running()?;
    let mark = net.system.mark();
    net.black_hole(false)?;
    let back = Instant::now();
    net.system.wait_listening(mark)?;
    net.system.go_live()?;
    net.wait_fresh(back)?;
    Found::within(BACK, back.elapsed())
}

/// Streams, with fresh pictures.
fn streaming(setup: &Setup) -> Result<Net> {
    let mut net = Net::start(setup, good(), "")?;
    net.system.go_live()?;
    net.wait_fresh(Instant::now())?;
    Ok(net)
}

/// Waits for fresh pictures, then for a stop that is obeyed.
fn comes_back(mut net: Net, back: Instant) -> Result<Found> {
    net.wait_fresh(back)?;
    let fresh = back.elapsed();
    let stopped = net.system.stop()?;
    let obeyed = stopped.saturating_duration_since(back);
    let mut found = Found::within(BACK, fresh.max(obeyed))?;
    found.more = format!("pictures after {:.2} s", fresh.as_secs_f64());
    Ok(found)
}

fn black_hole(setup: &Setup) -> Result<Found> {
    let net = streaming(setup)?;
    net.black_hole(true)?;
    pass(setup.lasts(10));
    net.black_hole(false)?;
    comes_back(net, Instant::now())
}

fn stop_in_black_hole(setup: &Setup) -> Result<Found> {
    let net = streaming(setup)?;
    net.black_hole(true)?;
    net.system.send("stop")?;
    pass(setup.lasts(10));
    let mark = net.system.mark();
    // Also a server that has missed the publisher meanwhile is not published to again.
    let was_published = {
        let events = net.system.testbed.relay.events().all();
        events
            .iter()
            .rev()
            .find(|event| matches!(event, Event::Published | Event::Unpublished))
            == Some(&Event::Published)
    };
    net.black_hole(false)?;
    let back = Instant::now();
    if net.system.is_ours() {
        let idle =
            |state: &droidrelay_wire::RobotState| state.state == droidrelay_wire::StreamState::Idle;
        net.system.wait_where(mark, "idle", idle)?;
    } else if was_published {
        net.system.wait_relay(mark, Event::Unpublished)?;
    } else {
        net.system.never(mark, Event::Published, BACK)?;
        return Found::well("given up meanwhile");
    }
    Found::within(BACK, back.elapsed())
}

fn other_address(setup: &Setup) -> Result<Found> {
    let net = streaming(setup)?;
    net.link.change_address()?;
    comes_back(net, Instant::now())
}
