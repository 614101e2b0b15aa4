// SPDX-License-Identifier: MPL-2.0

//! What Home Assistant is told, and what it tells the robot: a robot of gst-launch-1.0 and a
//! real Mosquitto.

use std::time::Instant;

use droidrelay_testkit::{
    clients::observer::{Observer, Seen},
    robot::{Robot, Runner},
    servers::{
        mosquitto::{DISCOVERY_PREFIX, Mosquitto},
        relay::Kind,
    },
    testbed::{TEST_PICTURE, TINY_PICTURE, Testbed},
};
use droidrelay_wire::{StreamState, mqtt::session::Properties};
use serde_json::Value;

const STRICT: &[(&str, &str)] = &[("G_DEBUG", "fatal-criticals")];
/// By `client-id=robot1`.
const CONFIG: &str = "homeassistant/device/droidrelay-robot1/config";
const STATUS: &str = "homeassistant/status";

struct Scene {
    observer: Observer,
    broker: Mosquitto,
}

impl Scene {
    fn new() -> Self {
        let broker = Mosquitto::start().unwrap();
        Scene {
            observer: Observer::start(&broker).unwrap(),
            broker,
        }
    }

    fn robot(&self, properties: &str) -> Robot {
        let valve = self.broker.valve();
        let line = format!("{TINY_PICTURE} ! {valve} client-id=robot1 {properties} ! fakesink");
        self.observer
            .robot(Runner::GstLaunch, &line, STRICT)
            .unwrap()
    }

    fn announced_robot(&self) -> Robot {
        self.robot(&format!("discovery-prefix={DISCOVERY_PREFIX}"))
    }

    fn mark(&self) -> usize {
        self.observer.seen().mark()
    }

    /// The announcement that comes after `mark`.
    fn wait_announced(&self, mark: usize) -> Value {
        let (_, seen) = self
            .observer
            .seen()
            .wait(mark, "the announcement", |seen| {
                announcement(seen).is_some()
            })
            .unwrap();
        let (text, _) = announcement(&seen).unwrap();
        serde_json::from_str(text).unwrap()
    }

    fn announcements(&self) -> usize {
        let all = self.observer.seen().all();
        all.iter().filter_map(announcement).count()
    }

    fn say(&self, topic: &str, payload: &str) -> Instant {
        self.observer
            .send_to(topic, payload, Properties::default())
            .unwrap()
    }

    fn wait_state(&self, mark: usize, state: StreamState) {
        self.observer.wait_state(mark, state).unwrap();
    }
}

/// Text of an announcement, and whether it was there before the observer.
fn announcement(seen: &Seen) -> Option<(&str, bool)> {
    match seen {
        Seen::HomeAssistant {
            topic,
            text,
            retained,
        } if topic == CONFIG => Some((text, *retained)),
        _ => None,
    }
}

#[test]
fn a_robot_is_announced_once_and_stays_announced() {
    let scene = Scene::new();
    let mut robot = scene.announced_robot();
    let announced = scene.wait_announced(0);
    let device = &announced["device"];
    assert_eq!(device["identifiers"][0], "droidrelay-robot1", "{announced}");
    for command in ["start", "stop"] {
        let mark = scene.mark();
        scene.observer.send(command).unwrap();
        let state = match command {
            "start" => StreamState::Live,
            _ => StreamState::Idle,
        };
        scene.wait_state(mark, state);
    }
    robot.end().unwrap();
    assert_eq!(scene.announcements(), 1);

    let later = Observer::start(&scene.broker).unwrap();
    let (_, seen) = later
        .seen()
        .wait(0, "what is retained", |seen| announcement(seen).is_some())
        .unwrap();
    let (text, retained) = announcement(&seen).unwrap();
    assert!(retained);
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), announced);
}

#[test]
fn a_robot_without_a_prefix_is_not_announced() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    let mark = scene.mark();
    scene.observer.send("start").unwrap();
    scene.wait_state(mark, StreamState::Live);
    robot.end().unwrap();
    assert_eq!(scene.announcements(), 0);
}

#[test]
fn a_home_assistant_that_comes_up_is_told_again_and_commands_nothing() {
    let scene = Scene::new();
    let mut robot = scene.announced_robot();
    let first = scene.wait_announced(0);
    scene.broker.wait_subscribed(STATUS).unwrap();
    // Each of them is behind the one before: the last answer tells of all.
    for payload in ["start", "offline", "keyframe", "\u{1F916}", "online"] {
        let mark = scene.mark();
        scene.say(STATUS, payload);
        if payload == "online" {
            assert_eq!(scene.wait_announced(mark), first);
        }
    }
    assert_eq!(scene.announcements(), 2);
    let mark = scene.mark();
    scene.observer.send("nonsense").unwrap();
    let (_, state) = scene
        .observer
        .wait_where(mark, "a refused command", |state| {
            state.refused_commands > 0
        })
        .unwrap();
    assert_eq!(state.refused_commands, 1);
    assert_eq!(state.state, StreamState::Idle);
    assert_eq!(state.cause.as_str(), "boot");
    robot.end().unwrap();
}

#[test]
fn a_broker_that_comes_back_is_told_again_and_still_listens_for_home_assistant() {
    let mut scene = Scene::new();
    let mut robot = scene.announced_robot();
    scene.wait_announced(0);
    let mark = scene.mark();
    scene.observer.clear(CONFIG).unwrap();
    scene
        .observer
        .seen()
        .wait(mark, "nothing announced", |seen| {
            announcement(seen).is_some_and(|(text, _)| text.is_empty())
        })
        .unwrap();
    let mark = scene.mark();
    scene.broker.kill();
    scene.broker.restart().unwrap();
    let told = |seen: &Seen| announcement(seen).is_some_and(|(text, _)| !text.is_empty());
    scene
        .observer
        .seen()
        .wait(mark, "the announcement", told)
        .unwrap();
    scene.broker.wait_subscribed(STATUS).unwrap();
    let mark = scene.mark();
    scene.say(STATUS, "online");
    scene
        .observer
        .seen()
        .wait(mark, "the announcement for Home Assistant", told)
        .unwrap();
    robot.end().unwrap();
}

#[test]
fn the_switch_of_home_assistant_opens_and_closes() {
    let scene = Scene::new();
    let mut robot = scene.announced_robot();
    let announced = scene.wait_announced(0);
    let switch = &announced["components"]["stream"];
    let text = |key: &str| switch[key].as_str().unwrap();
    for _ in 0..2 {
        for (payload, state) in [
            ("payload_on", StreamState::Live),
            ("payload_off", StreamState::Idle),
        ] {
            let mark = scene.mark();
            scene.say(text("command_topic"), text(payload));
            scene.wait_state(mark, state);
        }
    }
    robot.end().unwrap();
}

#[test]
fn a_missing_right_is_named_and_hinders_nothing() {
    let scene = Scene::new();
    let mut robot = scene.robot("discovery-prefix=elsewhere");
    let (_, state) = scene
        .observer
        .wait_where(0, "an error", |state| state.last_error.is_some())
        .unwrap();
    let error = state.last_error.unwrap();
    assert!(
        error.contains("elsewhere/device/droidrelay-robot1/config"),
        "{error}"
    );
    let mark = scene.mark();
    scene.observer.send("start").unwrap();
    scene.wait_state(mark, StreamState::Live);
    robot.end().unwrap();
}

#[test]
fn the_bitrate_is_told_while_the_server_takes_it_and_no_longer() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let mut robot = testbed
        .robot_with(Runner::GstLaunch, &testbed.line(TEST_PICTURE), STRICT)
        .unwrap();
    testbed.observer.send("start").unwrap();
    let bitrate = |state: &droidrelay_wire::RobotState| {
        state.publish.as_ref().and_then(|publish| publish.bitrate)
    };
    let (_, state) = testbed
        .observer
        .wait_where(0, "a bitrate", |state| bitrate(state).is_some())
        .unwrap();
    assert_eq!(state.state, StreamState::Live);
    let told = bitrate(&state).unwrap();
    // The encoder is told to make 1500 kbit/s, and the test picture needs less.
    assert!((10_000..3_000_000).contains(&told), "{told} bit/s");

    let mark = testbed.observer.seen().mark();
    testbed.observer.send("stop").unwrap();
    testbed
        .observer
        .wait_where(mark, "idle without a bitrate", |state| {
            state.state == StreamState::Idle && bitrate(state).is_none()
        })
        .unwrap();
    robot.end().unwrap();
}
