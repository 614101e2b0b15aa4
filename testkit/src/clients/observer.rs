// SPDX-License-Identifier: MPL-2.0

//! An MQTT client that sees what the robot says and sends what a person would.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use droidrelay_wire::{
    BrokerUrl, RobotState, StreamState,
    mqtt::session::{Config, Event, Properties, RECEIVE_MAXIMUM, Session},
    secret::Secret,
    words::topics::{ONLINE, availability_topic, state_topic},
};
use tokio::runtime::Runtime;

use crate::{
    certs::{Login, random_word},
    journal::{DEADLINE, Journal},
    process::poll,
    robot::{Robot, Runner},
    servers::mosquitto::{DISCOVERY_PREFIX, Mosquitto, TOPIC},
};

/// What was seen on the broker.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Subscribed; retained values follow.
    Up,
    Down(String),
    /// The broker does not take what the observer sends or asks for.
    Refused(String),
    Command(String),
    /// The robot's state, and the text it came in.
    State(Box<RobotState>, String),
    Availability(String),
    /// Something below Home Assistant's prefix.
    HomeAssistant {
        topic: String,
        text: String,
        /// It had been there before the observer came.
        retained: bool,
    },
    /// On another topic that the observer was asked to watch.
    Other {
        topic: String,
        text: String,
    },
}

impl Seen {
    pub fn state(&self) -> Option<&RobotState> {
        match self {
            Seen::State(state, _) => Some(state),
            _ => None,
        }
    }

    pub fn is(&self, wanted: StreamState) -> bool {
        self.state().is_some_and(|state| state.state == wanted)
    }

    pub fn is_available(&self, wanted: &str) -> bool {
        matches!(self, Seen::Availability(text) if text == wanted)
    }
}

pub struct Observer {
    seen: Journal<Seen>,
    session: Option<Session>,
    runtime: Option<Runtime>,
}

impl Observer {
    /// Connected and subscribed.
    pub fn start(broker: &Mosquitto) -> Result<Self> {
        Self::start_with(broker, &[])
    }

    /// As [`Observer::start`], and to `more` filters.
    pub fn start_with(broker: &Mosquitto, more: &[&str]) -> Result<Self> {
        Self::start_at(&broker.url(), &broker.operator, more)
    }

    /// As [`Observer::start_with`], at any broker that knows `login`.
    pub fn start_at(broker: &str, login: &Login, more: &[&str]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (url, _) = BrokerUrl::parse(broker).map_err(|err| anyhow!(err))?;
        let login = login.clone();
        let config = Config {
            broker: url,
            client_id: format!("operator-{}", random_word()?),
            credentials: Box::new(move || {
                let password = Secret::new(login.password.as_str());
                Ok((Some(login.user.clone()), Some(password)))
            }),
            tls: None,
            keep_alive: Duration::from_secs(5),
            session_expiry: Duration::ZERO,
            resumes: false,
            receive_maximum: RECEIVE_MAXIMUM,
            will: None,
            live: Vec::new(),
            subscriptions: [
                TOPIC.into(),
                state_topic(TOPIC),
                availability_topic(TOPIC),
                format!("{DISCOVERY_PREFIX}/#"),
            ]
            .into_iter()
            .chain(more.iter().map(|filter| filter.to_string()))
            .collect(),
        };
        let seen = Journal::default();
        let journal: Journal<Seen> = seen.clone();
        let session = Session::spawn(runtime.handle(), config, move |event| {
            journal.push(match event {
                Event::Up(_) => Seen::Up,
                Event::Down(fault) => Seen::Down(fault.text),
                Event::Refused(fault) => Seen::Refused(fault.text),
                Event::Message(message) => {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    if message.topic == TOPIC {
                        Seen::Command(text)
                    } else if message.topic == availability_topic(TOPIC) {
                        Seen::Availability(text)
                    } else if message.topic.starts_with(DISCOVERY_PREFIX) {
                        Seen::HomeAssistant {
                            topic: message.topic,
                            text,
                            retained: message.retained,
                        }
                    } else if message.topic == state_topic(TOPIC) {
                        // What is no state at all shows as one that nobody waits for.
                        let state = serde_json::from_str(&text).unwrap_or_default();
                        Seen::State(Box::new(state), text)
                    } else {
                        let topic = message.topic;
                        Seen::Other { topic, text }
                    }
                }
            });
        });
        seen.wait(0, "the observer's session", |seen| matches!(seen, Seen::Up))?;
        Ok(Observer {
            seen,
            session: Some(session),
            runtime: Some(runtime),
        })
    }

    pub fn seen(&self) -> &Journal<Seen> {
        &self.seen
    }

    /// Starts the robot's line; back when it is online and idle.
    pub fn robot(&self, runner: Runner, line: &str, environment: &[(&str, &str)]) -> Result<Robot> {
        let mark = self.seen.mark();
        let robot = Robot::start_with(runner, line, environment)?;
        self.wait_available(mark, ONLINE)
            .and_then(|_| self.wait_state(mark, StreamState::Idle))
            .with_context(|| robot.text())?;
        Ok(robot)
    }

    /// Sends a command as `mosquitto_pub -q 1` does; back when the broker has it. Gives the
    /// time at which it was sent.
    pub fn send(&self, command: &str) -> Result<Instant> {
        self.send_with(command, Properties::default())
    }

    /// As [`Observer::send`], whatever the payload, with MQTT 5 properties.
    pub fn send_with(&self, payload: impl AsRef<[u8]>, properties: Properties) -> Result<Instant> {
        self.send_to(TOPIC, payload, properties)
    }

    /// As [`Observer::send_with`], on another topic.
    pub fn send_to(
        &self,
        topic: &str,
        payload: impl AsRef<[u8]>,
        properties: Properties,
    ) -> Result<Instant> {
        let payload = payload.as_ref();
        let (session, runtime) = self.parts()?;
        // The broker may have been away a moment ago.
        poll(DEADLINE, || session.is_up().then_some(())).context("no broker")?;
        let now = Instant::now();
        runtime
            .block_on(session.publish(topic, payload, properties))
            .with_context(|| format!("cannot send {:?}", String::from_utf8_lossy(payload)))?;
        Ok(now)
    }

    /// Retains `payload` on `topic`, soon.
    pub fn set_retained(&self, topic: &str, payload: &str) -> Result<()> {
        self.parts()?.0.set_retained(topic, payload);
        Ok(())
    }

    /// Takes back what is retained on `topic`.
    pub fn clear(&self, topic: &str) -> Result<()> {
        self.set_retained(topic, "")
    }

    /// Makes `command` the retained message of the command topic.
    pub fn retain(&self, command: &str) -> Result<()> {
        let mark = self.seen.mark();
        self.parts()?.0.set_retained(TOPIC, command);
        // Our own subscription brings it back: the broker has it.
        self.seen.wait(
            mark,
            "the retained command",
            |seen| matches!(seen, Seen::Command(text) if text == command),
        )?;
        Ok(())
    }

    fn parts(&self) -> Result<(&Session, &Runtime)> {
        self.session
            .as_ref()
            .zip(self.runtime.as_ref())
            .context("the observer has ended")
    }

    /// Waits for the robot to come to `wanted`.
    pub fn wait_state(
        &self,
        mark: usize,
        wanted: StreamState,
    ) -> Result<(Instant, Box<RobotState>)> {
        self.wait_where(mark, wanted.as_str(), |state| state.state == wanted)
    }

    /// Waits for a state of which `wanted` holds.
    pub fn wait_where(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&RobotState) -> bool,
    ) -> Result<(Instant, Box<RobotState>)> {
        let found = self
            .seen
            .wait(mark, &format!("the robot's state: {what}"), |seen| {
                seen.state().is_some_and(&wanted)
            })
            .with_context(|| format!("last seen: {:?}", self.seen.last()))?;
        match found {
            (at, Seen::State(state, _)) => Ok((at, state)),
            _ => Err(anyhow!("not a state")),
        }
    }

    pub fn wait_available(&self, mark: usize, wanted: &str) -> Result<Instant> {
        let what = format!("the robot's availability {wanted}");
        let found = self
            .seen
            .wait(mark, &what, |seen| seen.is_available(wanted))?;
        Ok(found.0)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let (Some(session), Some(runtime)) = (self.session.take(), self.runtime.take()) {
            runtime.block_on(session.stop(Vec::new()));
            runtime.shutdown_background();
        }
    }
}
