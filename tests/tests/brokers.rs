// SPDX-License-Identifier: MPL-2.0

//! A robot at brokers by others: it is there, obeys, hears a stop that was sent while it was away,
//! and is known to be gone when it is killed.

use std::time::{SystemTime, UNIX_EPOCH};

use droidrelay_testkit::{
    clients::observer::Observer,
    net::proxy::Proxy,
    robot::{Robot, Runner},
    secrets::Login,
    servers::{
        mosquitto::TOPIC,
        other_broker::{Kind, OtherBroker},
    },
    testbed::TINY_PICTURE,
};
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

fn serves_a_robot(kind: Kind, version: &str) {
    let Some(broker) = OtherBroker::start(kind).unwrap() else {
        return;
    };
    let url = format!("mqtt://127.0.0.1:{}", broker.port());
    let somebody = Login::generate("somebody").unwrap();
    let observer = Observer::start_at(&url, &somebody, &[]).unwrap();
    let seen = observer.seen();
    let link = Proxy::start(broker.port()).unwrap();
    let line = format!(
        "{TINY_PICTURE} ! mqttvalve broker=mqtt://127.0.0.1:{} topic={TOPIC} ! fakesink async=false",
        link.port()
    );
    let debug = [("GST_DEBUG", "mqttvalve:4"), ("GST_DEBUG_NO_COLOR", "1")];
    let mut robot = Robot::start_with(Runner::GstLaunch, &line, &debug).unwrap();
    observer.wait_available(0, ONLINE).unwrap();
    let connected = format!("with MQTT {version} and subscribed");
    let wait_session = |mark| {
        let wanted = |line: &String| line.contains(&connected);
        robot.log().wait(mark, &connected, wanted).unwrap();
    };
    wait_session(0);

    let mark = seen.mark();
    observer.send("start").unwrap();
    observer.wait_state(mark, StreamState::Live).unwrap();
    let mark = seen.mark();
    observer.send("stop").unwrap();
    observer.wait_state(mark, StreamState::Idle).unwrap();

    // What was sent while it was away arrives: a stop, and a start that says how young it is.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let start = format!("{{\"command\":\"start\",\"sent\":{}}}", now.as_secs());
    for (command, state) in [(&*start, StreamState::Live), ("stop", StreamState::Idle)] {
        let mark = seen.mark();
        link.cut();
        observer.wait_available(mark, OFFLINE).unwrap();
        observer.send(command).unwrap();
        let (mark, log) = (seen.mark(), robot.log().mark());
        link.restore();
        observer.wait_state(mark, state).unwrap();
        wait_session(log);
    }

    // Its last will, and who comes later sees it.
    let mark = seen.mark();
    robot.kill();
    observer.wait_available(mark, OFFLINE).unwrap();
    let late = Observer::start_at(&url, &somebody, &[]).unwrap();
    late.wait_available(0, OFFLINE).unwrap();
    late.wait_state(0, StreamState::Idle).unwrap();
}

#[test]
fn aedes_which_speaks_mqtt_3_1_1_only() {
    serves_a_robot(Kind::Aedes, "3.1.1");
}

#[test]
fn mochi_which_speaks_mqtt_5() {
    serves_a_robot(Kind::Mochi, "5");
}
