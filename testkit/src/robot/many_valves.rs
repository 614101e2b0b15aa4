// SPDX-License-Identifier: MPL-2.0

//! One process with many valves behind one camera.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use droidrelay_wire::{
    RobotState, StreamState, mqtt::session::Properties, words::topics::state_topic,
};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{Robot, Runner};
use crate::{
    clients::observer::{Observer, Seen},
    journal::DEADLINE,
    process::poll,
    servers::mosquitto::{self, Mosquitto, TOPIC},
    usage::Peak,
};

/// On which topics the valves of a process listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topics {
    Own,
    Same,
}

/// The process and its broker. The valves listen.
pub struct ManyValves {
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

impl ManyValves {
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
        Ok(ManyValves {
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
pub fn line(valves: impl Iterator<Item = String>) -> String {
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
