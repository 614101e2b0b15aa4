// SPDX-License-Identifier: MPL-2.0

//! The fixtures themselves, with a publisher and a camera that are not ours.

use std::{
    fs::{self, File},
    process::Command,
    time::{Duration, SystemTime},
};

use droidrelay_testkit::{
    artifacts::{artifact, ensure_current},
    clients::{
        observer::{Observer, Seen},
        reader::Reader,
    },
    journal::DEADLINE,
    process::{Process, Signal, poll, program_of},
    robot::camera::Camera,
    servers::{
        mosquitto::Mosquitto,
        relay::{Event, Kind, Relay},
    },
};

fn publisher(relay: &Relay, password: &str) -> Process {
    let line = format!(
        "-q videotestsrc is-live=true ! video/x-raw,width=320,height=180,framerate=30/1 ! \
         x264enc tune=zerolatency key-int-max=15 ! h264parse ! flvmux streamable=true ! \
         rtmp2sink async=false location={}?user={}&pass={password}",
        relay.publish_url(),
        relay.publisher.user
    );
    let mut command = Command::new(program_of("gst-launch-1.0", "gstreamer1.0-tools").unwrap());
    Process::spawn("publisher", command.args(line.split_whitespace())).unwrap()
}

fn relay_lets_in_who_may_and_tells_who_comes_and_goes(kind: Kind) {
    if kind.notice_if_absent() {
        return;
    }
    let mut relay = Relay::start(kind).unwrap();
    let events = relay.events().clone();
    let mut refused = publisher(&relay, "wrong");
    events
        .wait(0, "a refusal", |event| *event == Event::PublishRefused)
        .unwrap();
    assert!(refused.wait(DEADLINE).is_some());

    let wrong = relay.viewer_url().replace(&relay.viewer.password, "wrong");
    let mut stranger = Reader::start(&wrong, None).unwrap();
    events
        .wait(0, "a refusal", |event| *event == Event::ReaderRefused)
        .unwrap();
    assert!(stranger.wait_end(DEADLINE));
    assert_eq!(stranger.frames().mark(), 0);

    for _ in 0..2 {
        let mark = events.mark();
        let reader = Reader::start(&relay.viewer_url(), None).unwrap();
        events
            .wait(mark, "a waiting reader", |event| *event == Event::Reader)
            .unwrap();
        let mut publisher = publisher(&relay, &relay.publisher.password);
        events
            .wait(mark, "a publisher", |event| *event == Event::Published)
            .unwrap();
        reader.wait_frames(20).unwrap();
        publisher.end(Signal::INT).unwrap();
        events
            .wait(mark, "its end", |event| *event == Event::Unpublished)
            .unwrap();
        relay.kill();
        relay.restart().unwrap();
    }
}

#[test]
fn nginx_lets_in_who_may_and_tells_who_comes_and_goes() {
    relay_lets_in_who_may_and_tells_who_comes_and_goes(Kind::Nginx)
}

#[test]
fn mediamtx_lets_in_who_may_and_tells_who_comes_and_goes() {
    relay_lets_in_who_may_and_tells_who_comes_and_goes(Kind::MediaMtx)
}

#[test]
fn the_broker_keeps_what_it_was_given_through_a_power_cut() {
    let mut broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    observer.retain("stop").unwrap();
    let mark = observer.seen().mark();
    broker.kill();
    broker.restart().unwrap();
    observer
        .seen()
        .wait(
            mark,
            "the retained message",
            |seen| matches!(seen, Seen::Command(text) if text == "stop"),
        )
        .unwrap();
}

#[test]
fn a_camera_is_open_while_somebody_looks() {
    let camera = Camera::test_picture().unwrap();
    let line = format!("-q {} ! fakesink", camera.line());
    for _ in 0..2 {
        let mut command = Command::new(program_of("gst-launch-1.0", "gstreamer1.0-tools").unwrap());
        let mut viewer = Process::spawn("viewer", command.args(line.split_whitespace())).unwrap();
        let open = || camera.probe().is_open_in(viewer.id()).ok()?.then_some(());
        assert!(poll(DEADLINE, open).is_some());
        viewer.end(Signal::INT).unwrap();
    }
    assert!(!camera.probe().is_open_in(std::process::id()).unwrap());
}

#[test]
fn a_plugin_that_is_older_than_one_of_its_sources_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let built = artifact("libgstdroidrelay.so").unwrap();
    let list = fs::read_to_string(built.with_extension("d")).unwrap();
    // The last file of the list is read from here, the others from where they are.
    let (others, last) = list.trim_end().rsplit_once(' ').unwrap();
    assert!(last.ends_with(".rs"), "{last}");
    let copy = folder.path().join("libgstdroidrelay.so");
    let source = folder.path().join("source.rs");
    fs::copy(&built, &copy).unwrap();
    fs::copy(last, &source).unwrap();
    let list = format!("{others} {}\n", source.display());
    fs::write(copy.with_extension("d"), list).unwrap();
    let touch = |path, time| File::open(path).unwrap().set_modified(time).unwrap();
    let now = SystemTime::now();
    touch(&source, now - Duration::from_secs(1));
    touch(&copy, now);
    ensure_current(&copy).unwrap();
    touch(&source, now + Duration::from_secs(1));
    let refused = ensure_current(&copy).unwrap_err().to_string();
    let is_named = refused.contains(&format!("is older than {}", source.display()));
    assert!(is_named, "{refused}");
}
