// SPDX-License-Identifier: MPL-2.0

//! A camera is closed while nobody watches, also where its element leaves it open.

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    process::Command,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    clients::observer::{Observer, Seen},
    process::poll,
    servers::mosquitto::Mosquitto,
};
use droidrelay_wire::{
    RobotState, StreamState,
    words::topics::{OFFLINE, ONLINE},
};
use rustix::process::Signal;

use crate::common::{
    Folder, PATIENCE, Running, Systemd, droidrelay_with_plugins, gst_launch_with_plugins,
};

/// A character device that anybody may open, in place of a camera's.
const DEVICE: &str = "/dev/full";
const SUCCESSOR: &str = "another process takes the place of this one";

/// A robot that shows its pictures to nobody, so that they are live at once.
struct Robot {
    observer: Observer,
    broker: Mosquitto,
    folder: Folder,
}

impl Robot {
    fn new() -> Self {
        let broker = Mosquitto::start().unwrap();
        Robot {
            observer: Observer::start(&broker).unwrap(),
            broker,
            folder: Folder::new(),
        }
    }

    /// A line whose camera closes its device as told.
    fn line(&self, closes: &str) -> String {
        format!(
            "scriptedsrc name=camera counter={} script=play device={DEVICE} closes={closes} ! {} ! queue ! fakesink async=false",
            self.folder.path("starts").display(),
            self.broker.valve(),
        )
    }

    /// How often the camera was opened.
    fn starts(&self) -> usize {
        fs::metadata(self.folder.path("starts")).map_or(0, |file| file.len() as usize)
    }

    fn droidrelay(&self, line: &str) -> Command {
        let mut command = droidrelay_with_plugins();
        command.arg("run").arg(self.folder.launch(line));
        command
    }

    fn start(&self, command: &mut Command) -> Running {
        let mark = self.observer.seen().mark();
        let running = Running::start(command);
        self.observer.wait_available(mark, ONLINE).unwrap();
        running
    }

    /// One session, from a start to a stop.
    fn session(&self, running: &Running) {
        let mark = self.observer.seen().mark();
        self.observer.send("start").unwrap();
        self.wait_live(mark);
        assert!(open(running) > 0);
        let mark = self.observer.seen().mark();
        self.observer.send("stop").unwrap();
        let idle = self.observer.wait_state(mark, StreamState::Idle);
        idle.unwrap();
    }

    fn wait_live(&self, mark: usize) {
        let live = self.observer.wait_state(mark, StreamState::Live);
        live.unwrap();
    }

    fn wait_still_open(&self, mark: usize) {
        let names = |state: &RobotState| state.still_open == [DEVICE];
        let told = self.observer.wait_where(mark, DEVICE, names);
        told.unwrap();
    }
}

/// How many descriptors the process has open on the device.
fn open(running: &Running) -> usize {
    let device = fs::metadata(DEVICE).unwrap().rdev();
    let all = fs::read_dir(format!("/proc/{}/fd", running.child.id())).unwrap();
    let number = |fd: fs::DirEntry| fs::metadata(fd.path()).map(|found| found.rdev());
    all.flatten()
        .filter_map(|fd| number(fd).ok())
        .filter(|number| *number == device)
        .count()
}

fn end(mut running: Running) -> String {
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
    running.log.clone()
}

#[test]
fn a_device_that_stays_open_is_closed_by_another_process_that_takes_the_place() {
    let robot = Robot::new();
    let systemd = Systemd::listen(&robot.folder.path("notify"));
    let mut command = robot.droidrelay(&robot.line("never"));
    let mut running = robot.start(command.env("NOTIFY_SOCKET", robot.folder.path("notify")));
    systemd.wait_for("READY=1");
    let seen = robot.observer.seen();
    let mark = seen.mark();
    robot.session(&running);

    // The state names it, and the remedy; then a moment's silence, in which somebody starts.
    robot.wait_still_open(mark);
    let told = running.wait_for(SUCCESSOR);
    assert!(told.contains(DEVICE), "{told}");
    let observer = &robot.observer;
    let away = observer.wait_available(mark, OFFLINE).unwrap();
    let (asked, starts) = (seen.mark(), robot.starts());
    observer.send("start").unwrap();
    let back = observer.wait_available(asked, ONLINE).unwrap();
    let _ = writeln!(
        std::io::stderr(),
        "MEASURED offline while another process takes the place: {} ms",
        (back - away).as_millis()
    );
    robot.wait_live(asked);
    assert_eq!(robot.starts(), starts + 1);
    assert_eq!(open(&running), 1, "this session's");
    let mark = seen.mark();
    observer.send("stop").unwrap();

    // What stays open now waits for the next minute.
    robot.wait_still_open(mark);
    assert_eq!(open(&running), 1);
    robot.session(&running);
    assert_eq!(open(&running), 2);
    let all = seen.since(mark);
    assert!(
        !all.iter().any(|seen| seen.is_available(OFFLINE)),
        "{all:#?}"
    );

    // For systemd it was one process, that never ended.
    running.signal(Signal::TERM);
    let told = systemd.wait_for("STOPPING=1").concat();
    assert_eq!(told.matches("STOPPING=1").count(), 1, "{told}");
    assert_eq!(running.wait(), Some(0), "{}", running.log);
    assert_eq!(running.log.matches(SUCCESSOR).count(), 1, "{}", running.log);
}

/// A start that comes while the process still says goodbye is nobody's but the successor's.
#[test]
fn a_start_at_any_moment_of_the_change_is_obeyed() {
    let robot = Robot::new();
    let mut command = robot.droidrelay(&robot.line("never"));
    command.env("RUNTIME_DIRECTORY", robot.folder.0.path());
    let mut running = robot.start(&mut command);
    robot.session(&running);
    let mark = robot.observer.seen().mark();
    running.wait_for(SUCCESSOR);
    let start = r#"{"command":"start","id":"phone-7","lease":60}"#;
    robot.observer.send(start).unwrap();
    let found = robot.observer.wait_where(mark, "live again", |state| {
        state.state == StreamState::Live && state.viewers == ["phone-7"]
    });
    found.unwrap();
    end(running);
}

#[test]
fn a_recording_beside_the_stream_is_not_interrupted_for_a_device() {
    let robot = Robot::new();
    let line = format!(
        "{} videotestsrc is-live=true ! tee name=t ! queue ! fakesink name=recording",
        robot.line("never")
    );
    let running = robot.start(&mut robot.droidrelay(&line));
    for sessions in 1..=2 {
        let mark = robot.observer.seen().mark();
        robot.session(&running);
        robot.wait_still_open(mark);
        assert_eq!(open(&running), sessions);
    }
    let log = end(running);
    assert!(!log.contains(SUCCESSOR), "{log}");
}

/// What a launch file says by now would end the successor.
#[test]
fn a_launch_file_that_is_wrong_by_now_keeps_the_process_where_it_is() {
    let robot = Robot::new();
    let line = robot.line("never");
    let mut running = robot.start(&mut robot.droidrelay(&line));
    robot
        .folder
        .launch(&line.replace("queue", "queue nonsense=1"));
    robot.session(&running);
    let told = running.wait_for("stays open until the process ends");
    assert!(told.contains("nonsense"), "{told}");
    robot.session(&running);
    assert_eq!(open(&running), 2);
    end(running);
}

/// v4l2src of GStreamer 1.22 closes its device where it is told to drain its buffers.
#[test]
fn a_camera_of_gstreamer_1_22_is_closed_after_each_session() {
    let robot = Robot::new();
    let running = robot.start(&mut robot.droidrelay(&robot.line("drained")));
    for _ in 0..2 {
        robot.session(&running);
        let closed = poll(PATIENCE, || (open(&running) == 0).then_some(()));
        assert!(closed.is_some(), "{} descriptors", open(&running));
    }
    let log = end(running);
    let (major, minor, ..) = gst::version();
    if (major, minor) == (1, 22) {
        assert!(!log.contains(SUCCESSOR), "{log}");
    }

    // GStreamer's own launcher is told by the environment; where it is not, the log tells how.
    for (drains, left) in [("1", 0), ("", 1)] {
        let line = robot.line("drained");
        let line: Vec<&str> = line.split_whitespace().collect();
        let mut command = gst_launch_with_plugins();
        command.args(line);
        match drains {
            "" => command.env_remove("GST_V4L2_FORCE_DRAIN"),
            drains => command.env("GST_V4L2_FORCE_DRAIN", drains),
        };
        let mut running = robot.start(&mut command);
        let mark = robot.observer.seen().mark();
        robot.session(&running);
        if left > 0 {
            let told = running.wait_for("still open");
            assert!(told.contains(DEVICE), "{told}");
            assert!(told.contains("GST_V4L2_FORCE_DRAIN=1"), "{told}");
            robot.wait_still_open(mark);
        } else {
            let closed = poll(PATIENCE, || (open(&running) == 0).then_some(()));
            assert!(closed.is_some(), "{} descriptors", open(&running));
        }
        assert_eq!(open(&running), left);
        let asked = Instant::now();
        running.signal(Signal::INT);
        running.wait();
        assert!(asked.elapsed() < Duration::from_secs(10));
        let seen = robot.observer.seen().since(mark);
        let last = seen.iter().rev().find_map(Seen::state).unwrap();
        assert!(last.still_open.is_empty(), "{last:?}");
    }
}
