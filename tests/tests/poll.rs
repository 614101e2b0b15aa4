// SPDX-License-Identifier: MPL-2.0

//! A robot without MQTT: its launcher polls the bridge, and everybody else sees it as any other.

use droidrelay_testkit::{
    journal::DEADLINE,
    process::poll,
    robot::Robot,
    servers::relay::{Event, Kind},
    testbed::{ENCODER, TEST_PICTURE, Testbed},
};
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

/// Nothing but the bridge's URL tells it who wants what.
fn line(testbed: &Testbed) -> String {
    format!(
        "{TEST_PICTURE} ! mqttvalve ! queue ! {ENCODER} ! {}",
        testbed.sink()
    )
}

#[test]
fn a_robot_that_polls_is_started_stopped_and_seen_as_any_other() {
    let mut testbed = Testbed::start(Kind::Nginx).unwrap();
    let seen = testbed.observer.seen().mark();
    let mut robot = Robot::supervised(&line(&testbed), &testbed.bridge.poll_options()).unwrap();
    testbed.observer.wait_available(seen, ONLINE).unwrap();
    testbed
        .observer
        .wait_state(seen, StreamState::Idle)
        .unwrap();

    // By the bridge.
    let events = testbed.relay.events().mark();
    testbed.bridge.post("/stream/start").unwrap();
    testbed.wait_relay(events, Event::Published);
    testbed
        .observer
        .wait_state(seen, StreamState::Live)
        .unwrap();
    let answer = testbed
        .bridge
        .request("GET", "/robots/robot", &testbed.bridge.user.basic())
        .unwrap();
    assert!(answer.body.contains(r#""live""#), "{}", answer.body);
    testbed.bridge.post("/stream/stop").unwrap();
    testbed.wait_relay(events, Event::Unpublished);
    testbed.wait_now(StreamState::Idle);

    // By MQTT, with a lease that ends by itself.
    let events = testbed.relay.events().mark();
    let lease = r#"{"command":"start","id":"phone-7","lease":2}"#;
    testbed.observer.send(lease).unwrap();
    testbed.wait_relay(events, Event::Published);
    testbed.wait_relay(events, Event::Unpublished);
    testbed.wait_now(StreamState::Idle);

    // A bridge that was killed disturbs no viewer, and is followed again.
    let events = testbed.relay.events().mark();
    testbed.bridge.post("/stream/start").unwrap();
    testbed.wait_relay(events, Event::Published);
    testbed.bridge.kill();
    let lost = robot.log().wait(0, "the lost bridge", |line| {
        line.contains("poll: ") && line.contains("next try in")
    });
    lost.unwrap();
    testbed.bridge.restart().unwrap();
    let mark = robot.log().mark();
    let again = poll(DEADLINE, || {
        let back = |line: &String| line.contains("poll: the bridge answers");
        let times = robot.log().all().iter().filter(|line| back(line)).count();
        (times >= 2).then_some(())
    });
    assert!(again.is_some(), "{mark}: {}", robot.text());
    let since = testbed.relay.events().since(events);
    assert_eq!(
        since
            .iter()
            .filter(|event| **event == Event::Published)
            .count(),
        1
    );
    assert!(!since.contains(&Event::Unpublished), "{since:?}");
    testbed.bridge.post("/stream/stop").unwrap();
    testbed.wait_relay(events, Event::Unpublished);

    // Its end is told; that it polls no more is noticed.
    let seen = testbed.observer.seen().mark();
    robot.end().unwrap();
    let gone = testbed
        .observer
        .seen()
        .try_wait(seen, 3 * DEADLINE, |seen| seen.is_available(OFFLINE));
    assert!(gone.is_some(), "still online");
    let text = robot.text();
    assert!(!text.contains(&testbed.bridge.robot.password), "{text}");
}
