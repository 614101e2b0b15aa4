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
    journal::{DEADLINE, Journal},
    net::shaped_link::{Quality, SERVER, ShapedLink},
    robot::stamps::{Arrival, StampReader, StampedCamera},
    servers::{
        mosquitto::{Mosquitto, Options},
        relay::{self, Event},
    },
};

/// From a silent end of all connections to a stream.
const BACK: Duration = Duration::from_secs(30);
/// From a link that is there again to pictures: a try that has just begun, and the next one.
const SOON: Duration = Duration::from_secs(5);

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
    Case::new(
        "the robot's link down for 55 s while streaming",
        "fresh pictures within 5 s, obeys",
        link_down,
    )
    .at_each_relay(),
    Case::new(
        "black hole of 55 s while streaming",
        "fresh pictures within 5 s, obeys",
        long_black_hole,
    )
    .at_each_relay(),
    Case::new(
        "the robot's link 5 s down, 5 s up, six times while streaming",
        "fresh pictures each time before it is down again, obeys",
        flapping,
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

    /// Waits for a fresh picture taken after `since`; how long after that it was there.
    fn wait_fresh(&mut self, since: Instant) -> Result<Duration> {
        let seen = self.sees_fresh(since, Instant::now() + DEADLINE)?;
        seen.with_context(|| {
            let (reader, system) = (self.reader.text(), self.system.text());
            format!("no fresh picture within {DEADLINE:?}\n{reader}\n{system}")
        })
    }

    /// How long after `since` there is a fresh picture, if that is before `deadline`.
    fn sees_fresh(&mut self, since: Instant, deadline: Instant) -> Result<Option<Duration>> {
        let Net {
            system,
            reader,
            link,
            zero,
            ..
        } = self;
        let zero = *zero;
        let taken = since.duration_since(zero).as_millis() as u32;
        let seen = system.sees_fresh(reader, taken, deadline, |url, arrivals| {
            link.server
                .run(move |_| StampReader::start(&url, zero, arrivals))
        })?;
        Ok(seen.map(|at| at.saturating_duration_since(since)))
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
fn comes_back(net: Net, back: Instant) -> Result<Found> {
    comes_back_within(net, back, BACK)
}

/// As [`comes_back`], with fresh pictures no later than `limit`.
fn comes_back_within(mut net: Net, back: Instant, limit: Duration) -> Result<Found> {
    let fresh = net.wait_fresh(back)?;
    Found::within(limit, fresh)?;
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

fn long_black_hole(setup: &Setup) -> Result<Found> {
    let net = streaming(setup)?;
    net.black_hole(true)?;
    pass(setup.lasts(55));
    net.black_hole(false)?;
    comes_back_within(net, Instant::now(), SOON)
}

fn link_down(setup: &Setup) -> Result<Found> {
    let net = streaming(setup)?;
    net.link.set_up(false)?;
    pass(setup.lasts(55));
    net.link.set_up(true)?;
    comes_back_within(net, Instant::now(), SOON)
}

fn flapping(setup: &Setup) -> Result<Found> {
    let mut net = streaming(setup)?;
    let rounds = if setup.short { 2 } else { 6 };
    let mut seen = Vec::new();
    for round in 1..=rounds {
        net.link.set_up(false)?;
        pass(setup.lasts(5));
        net.link.set_up(true)?;
        let back = Instant::now();
        let fresh = net.sees_fresh(back, back + SOON)?;
        let text = net.system.text();
        seen.push(fresh.with_context(|| {
            format!("no fresh picture while the link was up for the {round}. time\n{text}")
        })?);
        pass((back + setup.lasts(5)).saturating_duration_since(Instant::now()));
    }
    let asked = Instant::now();
    let stopped = net.system.stop()?;
    let texts = seen
        .iter()
        .map(|fresh| format!("{:.2}", fresh.as_secs_f64()));
    Ok(Found {
        recovered: seen.iter().max().copied(),
        more: format!(
            "pictures after {} s, obeys after {:.2} s",
            texts.collect::<Vec<_>>().join(", "),
            stopped.saturating_duration_since(asked).as_secs_f64()
        ),
    })
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
