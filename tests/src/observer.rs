use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use droidrelay_wire::{
    availability_topic,
    session::{Config, Event, Message, Session},
    state_topic, BrokerUrl, RobotState, Secret, DEFAULT_TOPIC,
};
use tokio::runtime::Runtime;

use crate::{random_secret, wait_for, Mosquitto, DEADLINE};

/// The MQTT user who sees what a robot says and what it is told.
pub struct Observer {
    session: Option<Session>,
    runtime: Runtime,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    messages: Mutex<Vec<(Message, Instant)>>,
    changed: Condvar,
}

impl Observer {
    /// Watches `robot/stream`.
    pub fn start(broker: &Mosquitto) -> Self {
        Self::of(broker, DEFAULT_TOPIC)
    }

    /// Watches the robot with this command topic; connected and subscribed on return.
    pub fn of(broker: &Mosquitto, topic: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let password = broker.password("observer").to_owned();
        let (url, _) = BrokerUrl::parse(&broker.url()).expect("a broker's URL");
        let config = Config {
            broker: url,
            client_id: format!("observer-{}", random_secret()),
            credentials: Box::new(move || {
                Ok((
                    Some("observer".into()),
                    Some(Secret::new(password.as_str())),
                ))
            }),
            tls: None,
            keep_alive: Duration::from_secs(5),
            session_expiry: Duration::ZERO,
            will: None,
            subscriptions: vec![
                topic.to_owned(),
                state_topic(topic),
                availability_topic(topic),
            ],
        };
        let seen = Arc::<Seen>::default();
        let kept = seen.clone();
        let session = Session::spawn(runtime.handle(), config, move |event| {
            if let Event::Message(message) = event {
                kept.messages
                    .lock()
                    .unwrap()
                    .push((message, Instant::now()));
                kept.changed.notify_all();
            }
        });
        wait_for("the observer is connected", DEADLINE, || {
            session.is_up().then_some(())
        });
        Observer {
            session: Some(session),
            runtime,
            seen,
        }
    }

    /// Every message so far.
    pub fn messages(&self) -> Vec<(Message, Instant)> {
        self.seen.messages.lock().unwrap().clone()
    }

    /// The newest state.
    pub fn state(&self) -> Option<RobotState> {
        newest_state(&self.seen.messages.lock().unwrap()).map(|(state, _)| state)
    }

    /// `online` or `offline`.
    pub fn availability(&self) -> Option<String> {
        newest(&self.seen.messages.lock().unwrap(), "/availability").map(|(text, _)| text)
    }

    /// Waits until the newest state is as `wanted`; that state and when it came.
    pub fn wait_state(
        &self,
        wanted: impl Fn(&RobotState) -> bool,
        deadline: Duration,
    ) -> (RobotState, Instant) {
        self.wait("a state as wanted", deadline, |messages| {
            newest_state(messages).filter(|(state, _)| wanted(state))
        })
    }

    /// Waits until the newest availability is `wanted`; when it came.
    pub fn wait_availability(&self, wanted: &str, deadline: Duration) -> Instant {
        self.wait(&format!("availability {wanted}"), deadline, |messages| {
            let (text, at) = newest(messages, "/availability")?;
            (text == wanted).then_some(at)
        })
    }

    /// Publishes with QoS 1, not retained; the broker has it on return.
    pub fn publish(&self, topic: &str, payload: &str) {
        let session = self.session.as_ref().expect("until drop");
        self.runtime
            .block_on(session.publish(topic, payload, None))
            .unwrap_or_else(|err| panic!("publish to {topic}: {err}"));
    }

    /// Whether the broker is connected.
    pub fn is_up(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_up)
    }

    fn wait<T>(
        &self,
        what: &str,
        deadline: Duration,
        look: impl Fn(&[(Message, Instant)]) -> Option<T>,
    ) -> T {
        let end = Instant::now() + deadline;
        let mut messages = self.seen.messages.lock().unwrap();
        loop {
            if let Some(found) = look(&messages) {
                return found;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                let last = newest(&messages, "/state").map(|(text, _)| text);
                drop(messages);
                panic!("{what}: not within {deadline:?}; the state is {last:?}");
            };
            messages = self.seen.changed.wait_timeout(messages, left).unwrap().0;
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.runtime.block_on(session.stop(Vec::new()));
        }
    }
}

fn newest(messages: &[(Message, Instant)], suffix: &str) -> Option<(String, Instant)> {
    let mut newest_first = messages.iter().rev();
    let (message, at) = newest_first.find(|(message, _)| message.topic.ends_with(suffix))?;
    let text = String::from_utf8_lossy(&message.payload).into_owned();
    Some((text, *at))
}

fn newest_state(messages: &[(Message, Instant)]) -> Option<(RobotState, Instant)> {
    let (text, at) = newest(messages, "/state")?;
    let state =
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("not a state: {err}: {text}"));
    Some((state, at))
}
