// SPDX-License-Identifier: MPL-2.0

//! Valves at brokers that take little, speak an old MQTT, or know somebody else by the same name.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::common::{end, launch, start, until};
use droidrelay_testkit::{
    clients::observer::{Observer, Seen},
    servers::{
        mosquitto::{Mosquitto, Options, TOPIC},
        other_broker::{Answer, OldBroker},
    },
};
use droidrelay_wire::{RobotState, StreamState, mqtt::session::Properties, words::topics::ONLINE};
use gst::prelude::*;

fn with(lines: &'static str) -> Mosquitto {
    Mosquitto::start_with(Options {
        lines,
        ..Options::default()
    })
    .unwrap()
}

fn pipeline(valve: &str) -> gst::Pipeline {
    launch(&format!(
        "videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=30/1 ! \
         {valve} name=valve ! fakesink async=false"
    ))
}

fn stat(pipeline: &gst::Pipeline, name: &str) -> u64 {
    let stats = pipeline
        .by_name("valve")
        .unwrap()
        .property::<gst::Structure>("stats");
    stats.get(name).unwrap()
}

fn state(pipeline: &gst::Pipeline) -> RobotState {
    let text = pipeline
        .by_name("valve")
        .unwrap()
        .property::<Option<String>>("state");
    serde_json::from_str(&text.unwrap()).unwrap()
}

fn is_connected(pipeline: &gst::Pipeline) -> bool {
    pipeline
        .by_name("valve")
        .unwrap()
        .property::<bool>("connected")
}

fn is_open(pipeline: &gst::Pipeline) -> bool {
    !pipeline.by_name("valve").unwrap().property::<bool>("drop")
}

/// Any viewer can ask for that: quote marks take two bytes each in JSON.
fn many_viewers(observer: &Observer) {
    for n in 0..64 {
        let id = format!("{n:02}{}", "\\\"".repeat(120));
        let start = format!("{{\"command\":\"start\",\"id\":\"{id}\"}}");
        observer.send(&start).unwrap();
    }
}

fn takes_short_states(lines: &'static str, reconnects: u64) {
    let broker = with(lines);
    let observer = Observer::start(&broker).unwrap();
    let pipeline = pipeline(&broker.valve());
    let seen = observer.seen();
    start(&pipeline);
    observer.wait_available(0, ONLINE).unwrap();
    let mark = seen.mark();
    many_viewers(&observer);
    let all = |state: &RobotState| state.more["viewer_count"] == 64;
    let (_, told) = observer.wait_where(mark, "64 viewers", all).unwrap();
    assert!(told.viewers.len() < 64, "{} are listed", told.viewers.len());
    // It goes on obeying, and says so.
    let mark = seen.mark();
    observer.send("stop").unwrap();
    observer.wait_state(mark, StreamState::Idle).unwrap();
    let happened = stat(&pipeline, "reconnects");
    assert!(happened <= reconnects, "{happened} reconnects");
    end(pipeline);
}

#[test]
fn a_broker_that_announces_how_little_it_takes_gets_no_more() {
    takes_short_states("max_packet_size 600\n", 0);
}

#[test]
fn a_broker_that_refuses_what_is_too_large_gets_less_after_that() {
    // Each time half of it: 4096, 2048, 1024, 512.
    takes_short_states("message_size_limit 700\n", 4);
}

#[test]
fn the_kits_broker_takes_the_longest_state() {
    takes_short_states("message_size_limit 16384\n", 0);
}

#[test]
fn two_pipelines_of_one_process_with_the_same_names_have_a_session_each() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let pipelines = [(); 2].map(|()| pipeline(&broker.valve()));
    for pipeline in &pipelines {
        start(pipeline);
        until("the connection", || is_connected(pipeline));
    }
    observer.send("start").unwrap();
    until("both opened", || pipelines.iter().all(is_open));
    observer.send("stop").unwrap();
    until("both closed", || !pipelines.iter().any(is_open));
    for pipeline in pipelines {
        assert_eq!(stat(&pipeline, "reconnects"), 0);
        end(pipeline);
    }
}

#[test]
fn of_two_valves_with_one_client_id_the_second_names_it_and_waits_for_the_first() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let valve = format!("{} client-id=twin", broker.valve());
    let [first, second] = [(); 2].map(|()| pipeline(&valve));
    start(&first);
    until("the connection", || is_connected(&first));
    start(&second);
    until("the client id is told as taken", || {
        let error = state(&second).last_error.unwrap_or_default();
        error.contains("the client id \"twin\"") && error.contains("set client-id")
    });
    for command in ["start", "stop", "start"] {
        observer.send(command).unwrap();
        until("the first obeys", || {
            is_open(&first) == (command == "start")
        });
    }
    assert!(is_connected(&first) && !is_connected(&second));
    assert_eq!(stat(&first, "reconnects"), 0);
    end(first);
    until("the second goes on", || is_connected(&second));
    observer.send("start").unwrap();
    until("the second obeys", || is_open(&second));
    end(second);
}

/// As the server kit's does.
#[test]
fn where_the_broker_takes_the_user_as_client_id_one_of_two_valves_of_a_user_goes_on() {
    let broker = with("use_username_as_clientid true");
    let observer = Observer::start(&broker).unwrap();
    let pipelines = [(); 2].map(|()| pipeline(&broker.valve()));
    start(&pipelines[0]);
    until("the connection", || is_connected(&pipelines[0]));
    start(&pipelines[1]);
    until("who waits says why", || {
        let error = state(&pipelines[1]).last_error.unwrap_or_default();
        error.contains("a user of its own")
    });
    until("the first is back", || is_connected(&pipelines[0]));
    for command in ["start", "stop", "start"] {
        observer.send(command).unwrap();
        until("it obeys", || {
            is_open(&pipelines[0]) == (command == "start")
        });
    }
    assert!(!is_connected(&pipelines[1]));
    pipelines.into_iter().for_each(end);
}

/// What the valve does by MQTT 3.1.1, at a broker that answers MQTT 5 in this way.
fn obeys_by_the_old_mqtt(answer: Answer) {
    let broker = Mosquitto::start().unwrap();
    let old = OldBroker::before(broker.port(), answer).unwrap();
    let observer = Observer::start(&broker).unwrap();
    let seen = observer.seen();
    let pipeline = pipeline(&broker.valve_by(old.port()));
    start(&pipeline);
    observer.wait_available(0, ONLINE).unwrap();
    let (_, told) = observer
        .wait_where(0, "what is lost", |state| {
            state.more.contains_key("broker_limits")
        })
        .unwrap();
    let limits = told.more["broker_limits"].to_string();
    assert!(limits.contains("3.1.1"), "{limits}");

    let mark = seen.mark();
    observer.send("start").unwrap();
    observer.wait_state(mark, StreamState::Live).unwrap();
    // A stop that waited is obeyed.
    let away = || {
        old.cut();
        until("the session is lost", || !is_connected(&pipeline));
    };
    away();
    observer.send("stop").unwrap();
    old.heal();
    until("it closed", || !is_open(&pipeline));

    // A start that waited is not, unless it says that it is young.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let sent = |at: u64| format!("{{\"command\":\"start\",\"sent\":{at}}}");
    for (start, is_obeyed) in [
        ("start".to_owned(), false),
        (sent(now - 3600), false),
        (sent(now), true),
    ] {
        until("the session", || is_connected(&pipeline));
        let refused = stat(&pipeline, "refused-commands");
        away();
        observer.send(&start).unwrap();
        old.heal();
        until("the command is decided", || {
            is_open(&pipeline) || stat(&pipeline, "refused-commands") > refused
        });
        assert_eq!(is_open(&pipeline), is_obeyed, "{start}");
    }
    // The last will comes by the old MQTT too; and the end is clean.
    let mark = seen.mark();
    end(pipeline);
    let is_away = |seen: &Seen| seen.is_available("offline");
    seen.wait(mark, "offline", is_away).unwrap();
}

#[test]
fn a_broker_that_refuses_mqtt_5_is_spoken_to_in_3_1_1() {
    obeys_by_the_old_mqtt(Answer::Refuses);
}

#[test]
fn a_broker_that_hangs_up_on_mqtt_5_is_spoken_to_in_3_1_1() {
    obeys_by_the_old_mqtt(Answer::HangsUp);
}

#[test]
fn a_broker_that_does_not_answer_mqtt_5_is_spoken_to_in_3_1_1() {
    for answer in [Answer::IsSilent, Answer::RefusesAndStays] {
        obeys_by_the_old_mqtt(answer);
    }
}

#[test]
fn a_message_that_takes_back_a_retained_one_is_no_command() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let pipeline = pipeline(&broker.valve());
    start(&pipeline);
    until("the connection", || is_connected(&pipeline));
    observer.send_with("", Properties::default()).unwrap();
    // The next one is behind it.
    observer.send("start").unwrap();
    until("it opened", || is_open(&pipeline));
    assert_eq!(stat(&pipeline, "refused-commands"), 0);
    assert_eq!(state(&pipeline).last_error, None);
    end(pipeline);
}

#[test]
fn a_broker_that_retains_nothing_is_used_as_far_as_it_goes() {
    let broker = with("retain_available false\n");
    let observer = Observer::start_with(&broker, &[]).unwrap();
    let pipeline = pipeline(&broker.valve());
    start(&pipeline);
    until("the connection", || is_connected(&pipeline));
    observer.send("start").unwrap();
    let limited = |state: &RobotState| {
        state.state == StreamState::Live
            && state
                .more
                .get("broker_limits")
                .is_some_and(|limits| limits.to_string().contains("allow retained messages"))
    };
    observer
        .wait_where(0, "live, and what is lost", limited)
        .unwrap();
    end(pipeline);
}

#[test]
fn a_password_file_that_is_none_is_named_while_others_go_on() {
    let broker = Mosquitto::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pass");
    fs::write(&file, format!("\u{feff}{}", broker.robot.password)).unwrap();
    let pipeline = pipeline(&format!(
        "mqttvalve broker={} topic={TOPIC} username={} password-file={}",
        broker.url(),
        broker.robot.user,
        file.display()
    ));
    assert!(pipeline.set_state(gst::State::Ready).is_err());
    let bus = pipeline.bus().unwrap();
    let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = message.view() else {
        unreachable!()
    };
    let text = error.error().to_string();
    assert!(text.contains("(BOM)"), "{text}");
    end(pipeline);
}
