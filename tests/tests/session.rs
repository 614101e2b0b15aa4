// SPDX-License-Identifier: MPL-2.0

//! The robot's line with real servers: by `gst-launch-1.0` and by `droidrelay run`, published
//! to nginx-rtmp and, where it is found, to MediaMTX.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    clients::reader::{Reader, first_packet},
    journal::DEADLINE,
    process::poll,
    robot::{Robot, Runner, camera::Camera},
    servers::relay::{self, Event, Kind},
    testbed::{ENCODER, TEST_PICTURE, Testbed},
};
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

#[derive(Clone, Copy)]
struct Setup {
    runner: Runner,
    relay: Kind,
}

impl Setup {
    fn testbed(self) -> Testbed {
        Testbed::start(self.relay).unwrap()
    }

    /// Online and idle.
    fn robot(self, testbed: &Testbed, line: &str) -> Robot {
        testbed.robot_with(self.runner, line, STRICT).unwrap()
    }
}

/// What GStreamer calls critical ends a robot under test.
const STRICT: &[(&str, &str)] = &[("G_DEBUG", "fatal-criticals")];

macro_rules! in_each_setup {
    ($($test:ident)*) => {
        in_each_setup! { @ gst_launch_to_nginx GstLaunch Nginx $($test)* }
        in_each_setup! { @ gst_launch_to_mediamtx GstLaunch MediaMtx $($test)* }
        in_each_setup! { @ droidrelay_to_nginx Droidrelay Nginx $($test)* }
        in_each_setup! { @ droidrelay_to_mediamtx Droidrelay MediaMtx $($test)* }
    };
    (@ $setup:ident $runner:ident $relay:ident $($test:ident)*) => {
        mod $setup {
            use super::*;
            $(
                #[test]
                fn $test() {
                    let setup = Setup { runner: Runner::$runner, relay: Kind::$relay };
                    if !setup.relay.notice_if_absent() {
                        super::$test(setup);
                    }
                }
            )*
        }
    };
}

in_each_setup! {
    a_viewer_starts_and_stops_the_robot_by_http
    a_wrong_publisher_password_is_named_and_mended_without_a_restart
    a_relay_that_was_killed_is_published_to_again_without_a_new_start
    a_broker_that_was_killed_disturbs_no_viewer_and_is_obeyed_again
    a_stop_sent_after_a_power_cut_of_the_broker_waits_for_the_robot
    a_stop_unpublishes_within_100_ms
    no_secret_shows_anywhere
    a_retained_start_opens_nothing
    a_broker_that_comes_later_is_found
}

fn a_viewer_starts_and_stops_the_robot_by_http(setup: Setup) {
    let camera = Camera::test_picture().unwrap();
    let testbed = setup.testbed();
    let mut robot = setup.robot(&testbed, &testbed.line(&camera.line()));
    let is_open = || camera.probe().is_open_in(robot.id()).unwrap();
    assert!(!is_open(), "the camera is open before anybody looks");

    for _ in 0..2 {
        let seen = testbed.observer.seen().mark();
        let events = testbed.relay.events().mark();
        let reader = Reader::start(&testbed.relay.viewer_url(), None).unwrap();
        testbed.wait_relay(events, Event::Reader);

        let started = Instant::now();
        testbed.bridge.post("/stream/start").unwrap();
        testbed.wait_relay(events, Event::Published);
        // The Python scripts take longer, with a key frame each second (`tests/bench.sh start`).
        let first = reader.wait_frames(1).unwrap();
        assert!(
            first - started < Duration::from_secs(1),
            "{:?}",
            first - started
        );
        reader.wait_frames(60).unwrap();
        assert!(is_open());
        assert_eq!(reader.complaints(), [""; 0]);
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
        testbed.wait_idle_again(seen);
        let released = poll(DEADLINE, || (!is_open()).then_some(()));
        assert!(released.is_some(), "the camera stays open");
    }
    let seen = testbed.observer.seen().mark();
    robot.end().unwrap();
    testbed.observer.wait_available(seen, OFFLINE).unwrap();
}

fn a_wrong_publisher_password_is_named_and_mended_without_a_restart(setup: Setup) {
    let testbed = setup.testbed();
    testbed.write_publisher_password("a-wrong-one").unwrap();
    let mut robot = setup.robot(&testbed, &testbed.line(TEST_PICTURE));
    let seen = testbed.observer.seen().mark();
    testbed.observer.send("start").unwrap();
    testbed.wait_relay(0, Event::PublishRefused);
    let (_, state) = testbed
        .observer
        .wait_state(seen, StreamState::Refused)
        .unwrap();
    let reason = state.publish.unwrap().reason.unwrap();
    assert!(reason.contains("password"), "{reason:?}");
    assert!(robot.is_running());

    testbed
        .write_publisher_password(&testbed.relay.publisher.password)
        .unwrap();
    testbed.wait_relay(0, Event::Published);
    testbed
        .observer
        .wait_state(seen, StreamState::Live)
        .unwrap();
    testbed.observer.send("stop").unwrap();
    testbed.wait_relay(0, Event::Unpublished);
    robot.end().unwrap();
}

fn a_relay_that_was_killed_is_published_to_again_without_a_new_start(setup: Setup) {
    let mut testbed = setup.testbed();
    let mut robot = setup.robot(&testbed, &testbed.line(TEST_PICTURE));
    testbed.observer.send("start").unwrap();
    testbed.observer.wait_state(0, StreamState::Live).unwrap();
    for _ in 0..2 {
        let seen = testbed.observer.seen().mark();
        let events = testbed.relay.events().mark();
        testbed.relay.kill();
        testbed
            .observer
            .wait_state(seen, StreamState::Backoff)
            .unwrap();
        testbed.relay.restart().unwrap();
        testbed.wait_relay(events, Event::Published);
        let reader = Reader::start(&testbed.relay.viewer_url(), None).unwrap();
        reader.wait_frames(20).unwrap();
        testbed.wait_now(StreamState::Live);
    }
    robot.end().unwrap();
}

fn a_broker_that_was_killed_disturbs_no_viewer_and_is_obeyed_again(setup: Setup) {
    let mut testbed = setup.testbed();
    let mut robot = setup.robot(&testbed, &testbed.line(TEST_PICTURE));
    testbed.observer.send("start").unwrap();
    let reader = Reader::start(&testbed.relay.viewer_url(), None).unwrap();
    reader.wait_frames(10).unwrap();

    testbed.broker.kill();
    let frames = reader.frames().mark();
    reader.wait_frames(frames + 60).unwrap();
    testbed.broker.restart().unwrap();
    testbed.broker.wait_robot().unwrap();
    testbed.observer.send("stop").unwrap();
    testbed.wait_relay(0, Event::Unpublished);
    testbed.wait_now(StreamState::Idle);

    testbed.broker.kill();
    testbed.broker.restart().unwrap();
    testbed.broker.wait_robot().unwrap();
    let events = testbed.relay.events().mark();
    testbed.observer.send("start").unwrap();
    testbed.wait_relay(events, Event::Published);
    robot.end().unwrap();
}

fn a_stop_sent_after_a_power_cut_of_the_broker_waits_for_the_robot(setup: Setup) {
    let mut testbed = setup.testbed();
    let mut robot = setup.robot(&testbed, &testbed.line(TEST_PICTURE));
    testbed.observer.send("start").unwrap();
    testbed.wait_relay(0, Event::Published);
    robot.freeze();
    testbed.broker.kill();
    testbed.broker.restart().unwrap();
    testbed.observer.send("stop").unwrap();
    robot.thaw();
    testbed.wait_relay(0, Event::Unpublished);
    testbed.wait_now(StreamState::Idle);
    robot.end().unwrap();
}

fn a_stop_unpublishes_within_100_ms(setup: Setup) {
    let testbed = setup.testbed();
    let mut robot = setup.robot(&testbed, &testbed.line(TEST_PICTURE));
    let mut took: Vec<Duration> = (0..5)
        .map(|_| {
            let seen = testbed.observer.seen().mark();
            let events = testbed.relay.events().mark();
            testbed.observer.send("start").unwrap();
            testbed.wait_relay(events, Event::Published);
            testbed
                .observer
                .wait_state(seen, StreamState::Live)
                .unwrap();
            let stopped = testbed.observer.send("stop").unwrap();
            let unpublished = testbed.wait_relay(events, Event::Unpublished);
            testbed.wait_idle_again(seen);
            unpublished - stopped
        })
        .collect();
    took.sort();
    // Others test at the same time: the middle one tells of us, the slowest of them.
    assert!(took[2] < Duration::from_millis(100), "{took:?}");
    robot.end().unwrap();
}

fn no_secret_shows_anywhere(setup: Setup) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("gstreamer.log");
    let dots = folder.path().join("dots");
    fs::create_dir(&dots).unwrap();
    let testbed = setup.testbed();
    // Few and small pictures: this log is long.
    let camera =
        "videotestsrc is-live=true ! video/x-raw,format=I420,width=160,height=90,framerate=10/1";
    let wrong = "a-wrong-password-that-is-a-secret-too";
    testbed.write_publisher_password(wrong).unwrap();
    let environment = [
        ("GST_DEBUG", "*:9"),
        ("GST_DEBUG_NO_COLOR", "1"),
        ("GST_DEBUG_FILE", log.to_str().unwrap()),
        ("GST_DEBUG_DUMP_DOT_DIR", dots.to_str().unwrap()),
    ];
    let line = match setup.runner {
        // All that it can tell.
        Runner::GstLaunch => format!("-m -v {}", testbed.line(camera)),
        Runner::Droidrelay => testbed.line(camera),
    };
    let mut robot = testbed
        .robot_with(setup.runner, &line, &environment)
        .unwrap();
    let seen = testbed.observer.seen().mark();
    testbed.bridge.post("/stream/start").unwrap();
    testbed
        .observer
        .wait_state(seen, StreamState::Refused)
        .unwrap();
    testbed
        .write_publisher_password(&testbed.relay.publisher.password)
        .unwrap();
    testbed.wait_relay(0, Event::Published);
    testbed
        .observer
        .wait_state(seen, StreamState::Live)
        .unwrap();
    let mut shown = String::new();
    for id in [robot.id(), testbed.bridge.id()]
        .into_iter()
        .flat_map(family)
    {
        for file in ["cmdline", "environ"] {
            // A child may have ended.
            let bytes = fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
            shown += &String::from_utf8_lossy(&bytes);
        }
    }
    assert!(shown.contains("rtmp.pass") || setup.runner == Runner::Droidrelay);
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/healthz"),
        ("GET", "/robots"),
        ("GET", "/robots/robot"),
        ("GET", "/nowhere"),
        ("POST", "/stream/stop"),
    ] {
        for authorization in [testbed.bridge.user.basic(), "Basic eDp5".into()] {
            testbed
                .bridge
                .request(method, path, &authorization)
                .unwrap();
        }
    }
    testbed.wait_relay(0, Event::Unpublished);
    robot.end().unwrap();

    let log = fs::read(&log).unwrap();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("rtmpauthsink") && log.contains("TRACE"));
    let dots = texts_in(&dots);
    assert!(dots.contains("rtmpauthsink") || setup.runner == Runner::Droidrelay);
    let states = format!("{:?}", testbed.observer.seen().all());
    assert!(states.contains("refused"));
    let answers = testbed.bridge.answers().join("\n");
    assert!(answers.contains("Published stop"));
    for (where_, text) in [
        ("ps", shown.as_str()),
        ("GStreamer's log", &log),
        ("dot files", &dots),
        ("MQTT", &states),
        ("HTTP answers", &answers),
        ("the robot's output and the bus's messages", &robot.text()),
        ("the bridge's output", &testbed.bridge.text()),
    ] {
        for (whose, secret) in [
            ("publisher", testbed.relay.publisher.password.as_str()),
            ("refused publisher", wrong),
            ("viewer", &testbed.relay.viewer.password),
            ("robot", &testbed.broker.robot.password),
            ("bridge", &testbed.broker.bridge.password),
            ("app", &testbed.bridge.user.password),
        ] {
            if let Some(at) = text.find(secret) {
                let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
                panic!("the {whose}'s password in {where_}: {}", &text[line..at]);
            }
        }
    }
}

/// The process, its children and theirs.
fn family(id: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{id}/task"))
        .into_iter()
        .flatten();
    let children = tasks.flatten().flat_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let children = children.split_whitespace();
        children
            .filter_map(|id| id.parse().ok())
            .collect::<Vec<u32>>()
    });
    [id].into_iter().chain(children.flat_map(family)).collect()
}

fn texts_in(folder: &Path) -> String {
    fs::read_dir(folder)
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect()
}

fn a_retained_start_opens_nothing(setup: Setup) {
    let testbed = setup.testbed();
    testbed.observer.retain("start").unwrap();
    let mut robot = setup.robot(&testbed, &testbed.line(TEST_PICTURE));
    let refused = |state: &droidrelay_wire::RobotState| state.refused_commands == 1;
    let (_, state) = testbed
        .observer
        .wait_where(0, "one refused command", refused)
        .unwrap();
    assert_eq!(state.state, StreamState::Idle);
    assert!(state.last_error.unwrap().contains("retained"));
    // The answer to this comes after whatever the retained start had done.
    let seen = testbed.observer.seen().mark();
    testbed.observer.send(r#"{"command":"nonsense"}"#).unwrap();
    testbed
        .observer
        .wait_where(seen, "two refused commands", |state| {
            state.refused_commands == 2 && state.state == StreamState::Idle
        })
        .unwrap();
    assert!(!testbed.relay.events().all().contains(&Event::Published));

    testbed.observer.send("start").unwrap();
    testbed.wait_relay(0, Event::Published);
    robot.end().unwrap();
}

fn a_broker_that_comes_later_is_found(setup: Setup) {
    let mut testbed = setup.testbed();
    let seen = testbed.observer.seen().mark();
    testbed.broker.kill();
    let absent = poll(DEADLINE, || {
        TcpListener::bind(("127.0.0.1", testbed.broker.port())).ok()
    });
    let absent = absent.expect("the broker's port");
    let mut robot = Robot::start_with(setup.runner, &testbed.line(TEST_PICTURE), STRICT).unwrap();
    // Bridge and observer knock here too.
    let is_robot = || {
        let (mut stream, _) = absent.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut connect = [0; 512];
        let length = stream.read(&mut connect).unwrap_or(0);
        let name = testbed.broker.robot.user.as_bytes();
        let is_robot = connect[..length]
            .windows(name.len())
            .any(|part| part == name);
        is_robot.then_some(())
    };
    assert!(poll(DEADLINE, is_robot).is_some(), "the robot never tried");
    drop(absent);
    testbed.broker.restart().unwrap();
    testbed.observer.wait_available(seen, ONLINE).unwrap();
    testbed.observer.send("start").unwrap();
    testbed.wait_relay(0, Event::Published);
    testbed
        .observer
        .wait_state(seen, StreamState::Live)
        .unwrap();
    robot.end().unwrap();
}

/// Twenty openings, read by somebody who waits, at a relay that hands out every frame.
fn each_opening_begins_with_a_key_frame(runner: Runner, line: impl Fn(&Testbed) -> String) {
    let options = relay::Options {
        raw: true,
        ..relay::Options::default()
    };
    let testbed = Testbed::start_with(Kind::Nginx, options).unwrap();
    let mut robot = testbed.robot_with(runner, &line(&testbed), STRICT).unwrap();
    let wait_clients = |count| {
        let waited = poll(DEADLINE, || {
            (testbed.relay.clients().ok()? == count).then_some(())
        });
        assert!(
            waited.is_some(),
            "{:?}, not {count}",
            testbed.relay.clients()
        );
    };
    for opening in 1..=20 {
        let seen = testbed.observer.seen().mark();
        let events = testbed.relay.events().mark();
        wait_clients(0);
        let packet = first_packet(&testbed.relay.viewer_url(), || {
            wait_clients(1);
            testbed.observer.send("start").unwrap();
        });
        let packet = packet.unwrap();
        assert!(packet.starts_with('K'), "opening {opening}: {packet:?}");
        testbed
            .observer
            .wait_state(seen, StreamState::Live)
            .unwrap();
        testbed.observer.send("stop").unwrap();
        testbed.wait_relay(events, Event::Unpublished);
        testbed.wait_idle_again(seen);
    }
    robot.end().unwrap();
}

#[test]
fn each_of_20_openings_begins_with_a_key_frame_valve_before_encoder() {
    each_opening_begins_with_a_key_frame(Runner::GstLaunch, |testbed| testbed.line(TEST_PICTURE));
}

#[test]
fn each_of_20_openings_begins_with_a_key_frame_valve_after_encoder() {
    each_opening_begins_with_a_key_frame(Runner::GstLaunch, |testbed| {
        let encoder = ENCODER.replace("key-int-max=30", "key-int-max=300");
        let (valve, sink) = (testbed.valve(), testbed.sink());
        format!("{TEST_PICTURE} ! {encoder} ! {valve} standby=warm ! queue ! {sink}")
    });
}

#[test]
fn each_of_20_openings_begins_with_a_key_frame_by_droidrelay_run() {
    each_opening_begins_with_a_key_frame(Runner::Droidrelay, |testbed| testbed.line(TEST_PICTURE));
}
