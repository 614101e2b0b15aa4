// SPDX-License-Identifier: MPL-2.0

//! Several valves in one process.

use droidrelay_testkit::{
    clients::{
        observer::{Observer, Seen},
        reader::packets,
    },
    journal::DEADLINE,
    process::poll,
    robot::{
        Robot, Runner,
        many_valves::{ManyValves, Topics},
    },
    servers::{
        mosquitto::{self, Mosquitto, TOPIC},
        relay::{Event, Kind},
    },
    testbed::{ENCODER, TEST_PICTURE, TINY_PICTURE, Testbed},
    usage::threads,
};
use droidrelay_wire::{RobotState, StreamState, mqtt::session::Properties};

/// gst-launch-1.0, GLib's worker, the camera, the one for the network, and those that GLib's pool
/// keeps; what more comes up for the work of a moment ends with it.
const THREADS: usize = 4 + 2;

#[test]
fn a_hundred_valves_need_no_more_threads_than_one_and_each_obeys() {
    for (count, topics) in [(1, Topics::Own), (100, Topics::Own), (100, Topics::Same)] {
        let mut valves = ManyValves::start(count, topics, &[]).unwrap();
        valves.open().unwrap();
        let now = || threads(valves.robot.id()).unwrap();
        let few = poll(DEADLINE, || (now() <= THREADS).then_some(()));
        assert!(few.is_some(), "{count}, {topics:?}: {} threads", now());
        valves.robot.end().unwrap();
    }
}

/// Sound and picture go through valves of their own into one sink.
fn sound_and_picture_open_together_and_stay_in_step(relay: Kind) {
    const SECONDS: u32 = 3;
    /// A frame of one and a frame of the other, and what encoders hold.
    const STEP: f64 = 0.25;
    if relay.notice_if_absent() {
        return;
    }
    let testbed = Testbed::start(relay).unwrap();
    let (valve, sink) = (testbed.valve(), testbed.sink());
    let line = format!(
        "{TEST_PICTURE} ! {valve} name=picture ! queue ! {ENCODER} ! {sink} name=out \
         audiotestsrc is-live=true ! audio/x-raw,rate=44100,channels=2 \
         ! {valve} name=sound ! queue ! voaacenc ! aacparse ! out.audio"
    );
    let mut robot = testbed.robot(Runner::GstLaunch, &line).unwrap();
    // That it is online and idle is said by the first valve that is.
    testbed
        .broker
        .wait_subscribers(2, |filter| filter == TOPIC)
        .unwrap();
    for session in 1..=3 {
        let (seen, events) = (
            testbed.observer.seen().mark(),
            testbed.relay.events().mark(),
        );
        testbed.observer.send("start").unwrap();
        testbed
            .observer
            .wait_state(seen, StreamState::Live)
            .unwrap();
        let packets = packets(&testbed.relay.viewer_url(), SECONDS).unwrap();
        let times = |kind: &str| -> Vec<f64> {
            let all = packets.iter().filter(|(other, _)| other == kind);
            all.map(|(_, time)| *time).collect()
        };
        let (picture, sound) = (times("video"), times("audio"));
        assert!(
            picture.len() > 20 * SECONDS as usize && sound.len() > 30 * SECONDS as usize,
            "session {session}: {} pictures, {} packets of sound",
            picture.len(),
            sound.len()
        );
        for (at, picture, sound) in [
            ("first", picture.first(), sound.first()),
            ("last", picture.last(), sound.last()),
        ] {
            let apart = (picture.unwrap() - sound.unwrap()).abs();
            assert!(
                apart < STEP,
                "session {session}: the {at} are {apart} s apart"
            );
        }
        testbed.observer.send("stop").unwrap();
        testbed.wait_relay(events, Event::Unpublished);
        testbed.wait_idle_again(seen);
    }
    robot.end().unwrap();
}

#[test]
fn sound_and_picture_by_nginx() {
    sound_and_picture_open_together_and_stay_in_step(Kind::Nginx);
}

#[test]
fn sound_and_picture_by_mediamtx() {
    sound_and_picture_open_together_and_stay_in_step(Kind::MediaMtx);
}

#[test]
fn valves_on_topics_of_their_own_know_nothing_of_each_other() {
    let broker = Mosquitto::start_with(mosquitto::Options {
        dynamic: true,
        ..Default::default()
    })
    .unwrap();
    let observer = Observer::start_with(&broker, &["robot/+/stream/state"]).unwrap();
    let topics = ["robot/1/stream", "robot/2/stream"];
    let line = topics.map(|topic| {
        let valve = broker.valve_on(topic);
        format!("{TINY_PICTURE} ! {valve} ! fakesink ")
    });
    let mut robot = Robot::start(Runner::GstLaunch, &line.concat()).unwrap();
    let state_after = |mark, number: usize, what: &str, wanted: &dyn Fn(&RobotState) -> bool| {
        let state_topic = droidrelay_wire::words::topics::state_topic(topics[number]);
        let state = |seen: &Seen| match seen {
            Seen::Other { topic, text } if *topic == state_topic => {
                serde_json::from_str::<RobotState>(text).ok()
            }
            _ => None,
        };
        let found = observer
            .seen()
            .wait(mark, what, |seen| state(seen).is_some_and(|it| wanted(&it)));
        let (_, seen) = found.unwrap_or_else(|err| panic!("{err}\n{}", robot.text()));
        state(&seen).unwrap()
    };
    let send = |number: usize, command| {
        let mark = observer.seen().mark();
        let properties = Properties::default();
        observer
            .send_to(topics[number], command, properties)
            .unwrap();
        mark
    };
    for number in [0, 1] {
        state_after(0, number, "idle", &|state| state.state == StreamState::Idle);
    }
    for (one, other, refused) in [(0, 1, 1), (1, 0, 1)] {
        let mark = send(one, "start");
        state_after(mark, one, "live", &|state| state.state == StreamState::Live);
        // What the other one says next tells what it has heard so far.
        let mark = send(other, "nonsense");
        let said = state_after(mark, other, "refused", &|state| {
            state.refused_commands == refused
        });
        assert_eq!(
            (said.state, said.more["opens"].as_u64()),
            (StreamState::Idle, Some(one as u64))
        );
        let mark = send(one, "stop");
        state_after(mark, one, "idle", &|state| state.state == StreamState::Idle);
    }
    robot.end().unwrap();
}
