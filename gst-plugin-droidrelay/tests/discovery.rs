// SPDX-License-Identifier: MPL-2.0

//! `state-topic`, `availability-topic`, and `discovery-prefix` changed in PLAYING, with a real
//! Mosquitto.

use crate::common::{end, launch, no_error, start};
use droidrelay_testkit::{
    clients::observer::{Observer, Seen},
    servers::mosquitto::Mosquitto,
};
use gst::prelude::*;

const CONFIG: &str = "homeassistant/device/droidrelay-robot1/config";

/// Waits for an announcement below `homeassistant` that is there, or is taken back.
fn wait(observer: &Observer, mark: usize, there: bool) {
    let what = format!("an announcement that is there: {there}");
    let wanted = |seen: &Seen| {
        matches!(seen, Seen::HomeAssistant { topic, text, .. }
            if topic == CONFIG && text.is_empty() != there)
    };
    observer.seen().wait(mark, &what, wanted).unwrap();
}

#[test]
fn the_announcement_follows_the_prefix_while_playing() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let pipeline = launch(&format!(
        "videotestsrc is-live=true ! {} name=valve client-id=robot1 ! fakesink",
        broker.valve()
    ));
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    for _ in 0..3 {
        let mark = observer.seen().mark();
        valve.set_property("discovery-prefix", "homeassistant");
        wait(&observer, mark, true);
        let mark = observer.seen().mark();
        valve.set_property("discovery-prefix", None::<&str>);
        wait(&observer, mark, false);
    }

    // Somebody who comes now finds nothing: the broker has forgotten it.
    let later = Observer::start(&broker).unwrap();
    later.send("ON").unwrap();
    later
        .seen()
        .wait(0, "the command", |seen| matches!(seen, Seen::Command(_)))
        .unwrap();
    let retained = later
        .seen()
        .position(0, |seen| matches!(seen, Seen::HomeAssistant { .. }));
    assert_eq!(retained, None, "{:?}", later.seen().all());

    // At the element's end the device stays known: it is away, not gone.
    let mark = observer.seen().mark();
    valve.set_property("discovery-prefix", "homeassistant");
    wait(&observer, mark, true);
    let mark = observer.seen().mark();
    no_error(&pipeline);
    drop(valve);
    end(pipeline);
    observer.wait_available(mark, "offline").unwrap();
    let after = observer.seen().since(mark);
    assert!(
        !after
            .iter()
            .any(|seen| matches!(seen, Seen::HomeAssistant { .. })),
        "{after:?}"
    );
}

#[test]
fn a_prefix_that_cannot_be_one_is_a_warning_while_playing_and_the_session_goes_on() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let pipeline = launch(&format!(
        "videotestsrc is-live=true ! {} name=valve client-id=robot1 discovery-prefix=homeassistant ! fakesink",
        broker.valve()
    ));
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    wait(&observer, 0, true);
    let mark = observer.seen().mark();
    valve.set_property("discovery-prefix", "home/#");
    wait(&observer, mark, false);
    let message = pipeline.bus().unwrap().timed_pop_filtered(
        gst::ClockTime::from_seconds(crate::common::DEADLINE.as_secs()),
        &[gst::MessageType::Warning],
    );
    let message = message.expect("a warning");
    let gst::MessageView::Warning(warning) = message.view() else {
        panic!("{message:?}");
    };
    let text = warning.error().to_string();
    assert!(text.contains("home/#"), "{text}");
    valve.set_property("discovery-prefix", "homeassistant");
    wait(&observer, mark, true);
    let stats = valve.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("reconnects"), Ok(0));
    drop(valve);
    end(pipeline);
}

const STATE: &str = "robot/elsewhere/state";
const AVAILABILITY: &str = "robot/elsewhere/there";

#[test]
fn state_and_availability_are_published_where_the_properties_say() {
    let broker = Mosquitto::start().unwrap();
    let watched = [STATE, AVAILABILITY];
    let observer = Observer::start_with(&broker, &watched).unwrap();
    let login = &broker.operator;
    let pipeline = launch(&format!(
        "videotestsrc is-live=true ! mqttvalve broker=mqtt://127.0.0.1:{} topic=robot/elsewhere \
         username={} password={} state-topic={STATE} availability-topic={AVAILABILITY} ! fakesink",
        broker.port(),
        login.user,
        login.password
    ));
    let wait = |mark, on: &str, part: &str| {
        let wanted = |seen: &Seen| matches!(seen, Seen::Other { topic, text } if topic == on && text.contains(part));
        observer.seen().wait(mark, part, wanted).unwrap();
    };
    start(&pipeline);
    wait(0, AVAILABILITY, "online");
    wait(0, STATE, "\"state\":\"idle\"");
    let mark = observer.seen().mark();
    end(pipeline);
    wait(mark, AVAILABILITY, "offline");
}
