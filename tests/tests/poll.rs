// SPDX-License-Identifier: MPL-2.0

//! A robot without MQTT: its launcher polls the bridge, and everybody else sees it as any other.

use droidrelay_tests::{
    journal::DEADLINE,
    process::poll,
    relay::{Event, Kind},
    rig::{ENCODER, Rig, TEST_PICTURE},
    robot::Robot,
};
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

/// Nothing but the bridge's URL tells it who wants what.
fn line(rig: &Rig) -> String {
    format!(
        "{TEST_PICTURE} ! mqttvalve ! queue ! {ENCODER} ! {}",
        rig.sink()
    )
}

#[test]
fn a_robot_that_polls_is_started_stopped_and_seen_as_any_other() {
    let mut rig = Rig::start(Kind::Nginx).unwrap();
    let seen = rig.observer.seen().mark();
    let mut robot = Robot::supervised(&line(&rig), &rig.bridge.poll_options()).unwrap();
    rig.observer.wait_available(seen, ONLINE).unwrap();
    rig.observer.wait_state(seen, StreamState::Idle).unwrap();

    // By the bridge.
    let events = rig.relay.events().mark();
    rig.bridge.post("/stream/start").unwrap();
    rig.wait_relay(events, Event::Published);
    rig.observer.wait_state(seen, StreamState::Live).unwrap();
    let answer = rig
        .bridge
        .request("GET", "/robots/robot", &rig.bridge.user.basic())
        .unwrap();
    assert!(answer.body.contains(r#""live""#), "{}", answer.body);
    rig.bridge.post("/stream/stop").unwrap();
    rig.wait_relay(events, Event::Unpublished);
    rig.wait_now(StreamState::Idle);

    // By MQTT, with a lease that ends by itself.
    let events = rig.relay.events().mark();
    let lease = r#"{"command":"start","id":"phone-7","lease":2}"#;
    rig.observer.send(lease).unwrap();
    rig.wait_relay(events, Event::Published);
    rig.wait_relay(events, Event::Unpublished);
    rig.wait_now(StreamState::Idle);

    // A bridge that was killed disturbs no viewer, and is followed again.
    let events = rig.relay.events().mark();
    rig.bridge.post("/stream/start").unwrap();
    rig.wait_relay(events, Event::Published);
    rig.bridge.kill();
    let lost = robot.log().wait(0, "the lost bridge", |line| {
        line.contains("poll: ") && line.contains("next try in")
    });
    lost.unwrap();
    rig.bridge.restart().unwrap();
    let mark = robot.log().mark();
    let again = poll(DEADLINE, || {
        let back = |line: &String| line.contains("poll: the bridge answers");
        let times = robot.log().all().iter().filter(|line| back(line)).count();
        (times >= 2).then_some(())
    });
    assert!(again.is_some(), "{mark}: {}", robot.text());
    let since = rig.relay.events().since(events);
    assert_eq!(
        since
            .iter()
            .filter(|event| **event == Event::Published)
            .count(),
        1
    );
    assert!(!since.contains(&Event::Unpublished), "{since:?}");
    rig.bridge.post("/stream/stop").unwrap();
    rig.wait_relay(events, Event::Unpublished);

    // Its end is told; that it polls no more is noticed.
    let seen = rig.observer.seen().mark();
    robot.end().unwrap();
    let gone = rig
        .observer
        .seen()
        .try_wait(seen, 3 * DEADLINE, |seen| seen.is_available(OFFLINE));
    assert!(gone.is_some(), "still online");
    let text = robot.text();
    assert!(!text.contains(&rig.bridge.robot.password), "{text}");
}
