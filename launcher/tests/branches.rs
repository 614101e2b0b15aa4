// SPDX-License-Identifier: MPL-2.0

//! Side branches that fail: a recording on a full disk, in a folder that is not there.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    clients::observer::Seen,
    process::poll,
    servers::relay::{Event, Kind},
    testbed::{ENCODER, TEST_PICTURE, Testbed},
};
use droidrelay_wire::{
    RobotState, StreamState,
    words::{fault::Place, topics::ONLINE},
};
use rustix::process::Signal;

use crate::common::{Folder, PATIENCE, Running, Systemd, droidrelay_with_plugins};

/// A hot robot that also records, unbuffered.
fn line(testbed: &Testbed, recording: &Path) -> String {
    format!(
        "{TEST_PICTURE} ! {ENCODER} ! h264parse ! tee name=t \
         t. ! queue ! mpegtsmux ! filesink name=recording buffer-mode=2 location={} \
         t. ! queue ! {} standby=hot ! {}",
        recording.display(),
        testbed.valve(),
        testbed.sink(),
    )
}

fn end(mut running: Running) {
    let asked = Instant::now();
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
    assert!(asked.elapsed() < Duration::from_secs(2), "{}", running.log);
    assert!(!running.log.contains("in a row"), "{}", running.log);
}

fn grows(path: &Path) {
    let size = || fs::metadata(path).map_or(0, |file| file.len());
    let before = size();
    let grown = poll(PATIENCE, || (size() > before + 20_000).then_some(()));
    assert!(grown.is_some(), "{} does not grow", path.display());
}

#[test]
fn a_full_disk_stops_the_recording_and_not_the_stream_and_the_recording_comes_back() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let folder = Folder::new();
    let systemd = Systemd::listen(&folder.path("notify"));
    let recording = folder.path("recording.ts");
    symlink("/dev/full", &recording).unwrap();
    let mark = testbed.observer.seen().mark();
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(folder.launch(&line(&testbed, &recording)))
            .env("NOTIFY_SOCKET", folder.path("notify")),
    );
    testbed.observer.wait_available(mark, ONLINE).unwrap();
    let told = running.wait_for("the stream goes on: recording: ");
    assert!(told.starts_with("WARNING"), "{told}");
    systemd.wait_for("STATUS=idle; recording does not run: recording: ");
    // Whoever looks at the robot is told, whether it streams or not.
    let full = |state: &RobotState| {
        let branch = state.faults.at(&Place::Branch);
        branch.is_some_and(|why| why.starts_with("recording does not run: recording: "))
    };
    let observer = &testbed.observer;
    observer
        .wait_where(mark, "the full disk, idle", |state| {
            full(state) && state.state == StreamState::Idle
        })
        .unwrap();
    observer.send("start").unwrap();
    let (_, told) = observer
        .wait_where(mark, "the full disk, live", |state| {
            full(state) && state.state == StreamState::Live
        })
        .unwrap();
    assert_eq!(told.last_error.as_deref(), told.faults.at(&Place::Branch));
    let live = testbed.observer.seen().mark();
    let events = testbed.relay.events().mark();

    fs::remove_file(&recording).unwrap();
    running.wait_for("the branch of recording runs again");
    grows(&recording);
    observer
        .wait_where(live, "no fault", |state| {
            state.faults.is_empty() && state.last_error.is_none()
        })
        .unwrap();
    let said = testbed.observer.seen().since(live);
    let left = said.iter().filter_map(Seen::state);
    assert!(
        left.clone().all(|state| state.state == StreamState::Live),
        "{said:#?}"
    );
    let happened = testbed.relay.events().since(events);
    assert!(!happened.contains(&Event::Unpublished), "{happened:?}");
    end(running);
}

#[test]
fn a_recording_that_cannot_begin_keeps_no_stream_from_beginning() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let folder = Folder::new();
    let recording = folder.path("gone/recording.ts");
    let mark = testbed.observer.seen().mark();
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(folder.launch(&line(&testbed, &recording))),
    );
    running.wait_for("the stream goes on: recording: ");
    testbed.observer.wait_available(mark, ONLINE).unwrap();
    testbed.observer.send("start").unwrap();
    testbed
        .observer
        .wait_state(mark, StreamState::Live)
        .unwrap();
    fs::create_dir(folder.path("gone")).unwrap();
    running.wait_for("the branch of recording runs again");
    grows(&recording);
    end(running);
}

#[test]
fn an_error_of_the_stream_itself_is_one_of_the_pipeline() {
    let folder = Folder::new();
    let line = "scriptedsrc counter=${COUNTER} script=\"10 error|play\" ! tee name=t t. ! queue ! fakesink \
                t. ! queue ! mqttvalve standby=warm ! fakesink";
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(folder.launch(line))
            .env("COUNTER", folder.path("starts")),
    );
    running.wait_for("failure 1 in a row");
    running.wait_for("starting again");
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}

#[test]
fn old_recordings_make_room() {
    let folder = Folder::new();
    for name in ["a.ts", "b.ts", "notes.txt"] {
        fs::write(folder.path(name), "").unwrap();
    }
    let pattern = folder.path("*.ts");
    let mut running = Running::start(
        droidrelay_with_plugins()
            .arg("run")
            .arg(folder.launch("videotestsrc is-live=true ! fakesink"))
            .arg("--keep-free")
            // More than any disk has: what may be deleted is.
            .arg(format!("99%={}", pattern.display())),
    );
    let deleted = running.wait_for("deleted to make room: ");
    running.wait_for("no older file to delete");
    if !running.log.contains("playing") {
        running.wait_for("playing");
    }
    let left = ["a.ts", "b.ts"].map(|name| folder.path(name).exists());
    assert_eq!(left.iter().filter(|left| **left).count(), 1, "{deleted}");
    assert!(folder.path("notes.txt").exists());
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}
