// SPDX-License-Identifier: MPL-2.0

//! Every fault that the launcher knows an answer to, by a camera that fails as it is told, with a
//! real broker and a real server: docs/3-concepts/supervision.md is the table of these tests.

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    clients::observer::Seen,
    servers::relay::{Event, Kind},
    testbed::{ENCODER, Testbed},
};
use droidrelay_wire::{
    RobotState, StreamState,
    words::{
        fault::Place,
        topics::{OFFLINE, ONLINE},
    },
};
use rustix::process::Signal;

use crate::common::{Folder, Running, Systemd, droidrelay_with_plugins};

/// Measured on the way, for the table in the documentation: `cargo test … -- --nocapture`.
fn measured(fault: &str, since: Instant) {
    let millis = since.elapsed().as_millis();
    let _ = writeln!(std::io::stderr(), "MEASURED {fault}: {millis} ms");
}

struct Robot {
    testbed: Testbed,
    folder: Folder,
}

impl Robot {
    fn new() -> Self {
        Robot {
            testbed: Testbed::start(Kind::Nginx).unwrap(),
            folder: Folder::new(),
        }
    }

    /// A line whose camera does what `script` says.
    fn line(&self, script: &str, standby: &str) -> String {
        format!(
            "scriptedsrc counter={} script=\"{script}\" ! {} standby={standby} ! queue ! {ENCODER} ! {}\n",
            self.folder.path("starts").display(),
            self.testbed.valve(),
            self.testbed.sink(),
        )
    }

    fn command(&self, script: &str, standby: &str) -> Command {
        let launch = self.folder.launch(&self.line(script, standby));
        let mut command = droidrelay_with_plugins();
        command.arg("run").arg(launch);
        command
    }

    /// Runs; back when it is online.
    fn start(&self, command: &mut Command) -> Running {
        let mark = self.testbed.observer.seen().mark();
        let running = Running::start(command);
        self.testbed.observer.wait_available(mark, ONLINE).unwrap();
        running
    }

    /// Sends a command and waits for what it leads to at the server.
    fn ask(&self, command: &str, event: Event) {
        let mark = self.testbed.relay.events().mark();
        self.testbed.observer.send(command).unwrap();
        self.testbed.wait_relay(mark, event);
    }

    fn wait_live(&self, mark: usize) {
        self.testbed
            .observer
            .wait_state(mark, StreamState::Live)
            .unwrap();
    }

    fn starts(&self) -> u64 {
        fs::metadata(self.folder.path("starts")).map_or(0, |file| file.len())
    }
}

fn end(mut running: Running) {
    let asked = Instant::now();
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), Some(0), "{}", running.log);
    assert!(asked.elapsed() < Duration::from_secs(2), "{}", running.log);
}

/// The camera fails as `end_of_run` says after a second; the stream comes back without a new start.
fn comes_back(end_of_run: &str, standby: &str, options: &[&str], logged: &[&str]) {
    let robot = Robot::new();
    let script = format!("50 {end_of_run}|play");
    let mut command = robot.command(&script, standby);
    let mut running = robot.start(command.args(options));
    let seen = robot.testbed.observer.seen();
    let mark = seen.mark();
    robot.testbed.observer.send("start").unwrap();
    robot.wait_live(mark);
    let mark = seen.mark();
    let mut failed = None;
    for part in logged {
        running.wait_for(part);
        failed.get_or_insert_with(Instant::now);
    }
    let left = |seen: &Seen| seen.state().is_some() && !seen.is(StreamState::Live);
    seen.wait(mark, "a state other than live", left).unwrap();
    robot.wait_live(seen.position(mark, left).unwrap());
    measured(&format!("{end_of_run}, {standby}"), failed.unwrap());
    assert!(robot.starts() >= 2, "{:#?}", seen.since(mark));
    assert!(
        !running.log.contains("failure 2 in a row"),
        "{}",
        running.log
    );
    robot.ask("stop", Event::Unpublished);
    end(running);
}

#[test]
fn an_unplugged_camera_restarts_the_pipeline_and_the_stream_goes_on() {
    comes_back(
        "error",
        "warm",
        &[],
        &[
            "the camera was unplugged",
            "failure 1 in a row",
            "starting again",
        ],
    );
}

#[test]
fn an_unplugged_camera_of_a_cold_valve_is_tried_again_without_a_restart() {
    comes_back("error", "cold", &[], &["error (mqtt)"]);
}

#[test]
fn the_end_of_the_stream_restarts_the_pipeline_and_the_stream_goes_on() {
    comes_back(
        "eos",
        "warm",
        &["--on-eos", "restart"],
        &["end of stream", "starting again"],
    );
}

#[test]
fn an_element_that_panics_brings_a_new_pipeline_and_the_stream_goes_on() {
    comes_back(
        "panic",
        "warm",
        &[],
        &["Panicked", "failure 1 in a row", "starting a new pipeline"],
    );
}

#[test]
fn a_camera_that_falls_silent_restarts_the_pipeline_and_the_stream_goes_on() {
    for standby in ["warm", "cold"] {
        comes_back(
            "freeze",
            standby,
            &["--stall-timeout", "1"],
            &["for 1 s", "failure 1 in a row", "starting again"],
        );
    }
}

#[test]
fn a_camera_that_is_not_there_yet_is_tried_until_it_is() {
    let robot = Robot::new();
    let mut running = Running::start(&mut robot.command("gone|gone|gone|play", "warm"));
    running.wait_for("failure 3 in a row");
    running.wait_for("starting a new pipeline");
    running.wait_for("playing");
    robot.testbed.observer.wait_available(0, ONLINE).unwrap();
    robot.ask("start", Event::Published);
    end(running);
}

#[test]
fn a_stop_sent_while_the_pipeline_is_down_is_obeyed() {
    let robot = Robot::new();
    let script = "50 error|gone|gone|gone|play";
    let mut running = robot.start(&mut robot.command(script, "warm"));
    robot.ask("start", Event::Published);
    running.wait_for("failure 3 in a row");
    robot.testbed.observer.send("stop").unwrap();
    running.wait_for("starting a new pipeline");
    running.wait_for("failure 4 in a row");
    running.wait_for("starting again");
    let mark = robot.testbed.observer.seen().mark();
    running.wait_for("playing");
    // By the old leases the new valve opens; the broker has kept the stop.
    robot.testbed.wait_now(StreamState::Idle);
    // It hears what comes next, too.
    robot.ask("start", Event::Published);
    robot.wait_live(mark);
    end(running);
}

#[test]
fn a_lease_that_runs_out_while_the_pipeline_is_down_opens_nothing() {
    let robot = Robot::new();
    let script = "50 error|gone|gone|gone|play";
    let mut running = robot.start(&mut robot.command(script, "warm"));
    robot.ask(
        r#"{"command":"start","id":"phone-7","lease":2}"#,
        Event::Published,
    );
    running.wait_for("failure 4 in a row");
    let events = robot.testbed.relay.events().mark();
    running.wait_for("playing");
    robot.testbed.wait_now(StreamState::Idle);
    let published = robot.testbed.relay.events().since(events);
    assert!(!published.contains(&Event::Published), "{published:?}");
    end(running);
}

#[test]
fn a_camera_that_hangs_on_its_way_down_ends_the_process() {
    let robot = Robot::new();
    let mut command = robot.command("50 hang|play", "warm");
    let mut running = robot.start(command.args(["--stall-timeout", "1"]));
    robot.ask("start", Event::Published);
    running.wait_for("for 1 s");
    let stalled = Instant::now();
    running.wait_for("SetState(Null) hangs");
    assert_eq!(running.wait(), Some(70), "{}", running.log);
    measured("hang on the way down", stalled);
}

#[test]
fn a_camera_that_hangs_while_it_opens_ends_the_process() {
    let robot = Robot::new();
    let started = Instant::now();
    let mut running = Running::start(&mut robot.command("slow", "warm"));
    running.wait_for("SetState(Paused) hangs");
    assert_eq!(running.wait(), Some(70), "{}", running.log);
    measured("hang while it opens", started);
}

#[test]
fn a_camera_that_hangs_while_its_valve_opens_it_ends_the_process() {
    let robot = Robot::new();
    let mut command = robot.command("slow", "cold");
    let mut running = robot.start(command.args(["--stall-timeout", "1"]));
    robot.testbed.observer.send("start").unwrap();
    running.wait_for("for 1 s");
    let stalled = Instant::now();
    running.wait_for("SetState(Null) hangs");
    assert_eq!(running.wait(), Some(70), "{}", running.log);
    measured("hang while its valve opens it", stalled);
}

#[test]
fn a_crash_leaves_nothing_behind_and_the_next_process_obeys() {
    let robot = Robot::new();
    let mut command = robot.command("50 segv|play", "warm");
    let mark = robot.testbed.observer.seen().mark();
    let mut running = robot.start(&mut command);
    robot.ask("start", Event::Published);
    let events = robot.testbed.relay.events().mark();
    assert_eq!(running.wait(), None, "{}", running.log);
    let status = running.child.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()));
    let crashed = Instant::now();
    // The server and the broker notice by themselves.
    robot.testbed.wait_relay(events, Event::Unpublished);
    robot
        .testbed
        .observer
        .wait_available(mark, OFFLINE)
        .unwrap();
    // systemd's turn: Restart=always.
    let running = robot.start(&mut command);
    measured("crash, from its end to the next process online", crashed);
    robot.ask("start", Event::Published);
    end(running);
}

#[test]
fn the_process_after_a_crash_goes_on_with_the_leases_and_hears_a_stop_sent_meanwhile() {
    let robot = Robot::new();
    let kept = robot.folder.path("leases.json");
    let mut command = robot.command("50 segv|50 segv|play", "warm");
    command.env("RUNTIME_DIRECTORY", robot.folder.0.path());
    let mut running = robot.start(&mut command);
    robot.ask("start", Event::Published);
    assert_eq!(running.wait(), None, "{}", running.log);
    assert!(kept.exists());

    let crashed = Instant::now();
    let events = robot.testbed.relay.events().mark();
    let mut running = robot.start(&mut command);
    robot.testbed.wait_relay(events, Event::Published);
    measured("crash, to the next process publishing", crashed);
    assert_eq!(running.wait(), None, "{}", running.log);

    robot.testbed.observer.send("stop").unwrap();
    let mut running = robot.start(&mut command);
    running.wait_for("leases of the process before: 1");
    running.wait_for("idle (mqtt)");
    robot.testbed.wait_now(StreamState::Idle);

    // Who ends cleanly takes them along.
    robot.ask("start", Event::Published);
    end(running);
    assert!(!kept.exists());
}

#[test]
fn sighup_brings_a_new_line_with_the_leases_or_keeps_the_old_one_and_says_why() {
    let robot = Robot::new();
    let systemd = Systemd::listen(&robot.folder.path("notify"));
    let mut command = robot.command("play", "warm");
    let mut running = robot.start(command.env("NOTIFY_SOCKET", robot.folder.path("notify")));
    systemd.wait_for("READY=1");
    robot.ask("start", Event::Published);

    let line = robot.line("play", "warm");
    robot
        .folder
        .launch(&line.replace("queue", "queue nonsense=1"));
    running.signal(Signal::HUP);
    let told = systemd.wait_for("RELOADING=1");
    assert!(told.last().unwrap().contains("MONOTONIC_USEC="), "{told:?}");
    let told = systemd.wait_for("STATUS=not reloaded").join("\n");
    assert!(told.contains("line.launch:1:"), "{told}");
    assert!(told.contains("nonsense"), "{told}");
    systemd.wait_for("READY=1");
    running.wait_for("the old line goes on");

    let events = robot.testbed.relay.events().mark();
    robot
        .folder
        .launch(&line.replace("queue", "queue max-size-buffers=3"));
    running.signal(Signal::HUP);
    let asked = Instant::now();
    systemd.wait_for("RELOADING=1");
    robot.testbed.wait_relay(events, Event::Unpublished);
    robot.testbed.wait_relay(events, Event::Published);
    measured("reload, to the new publisher", asked);
    systemd.wait_for("READY=1");
    systemd.wait_for("STATUS=live, 1 viewer, ");
    assert_eq!(robot.starts(), 2, "the wrong line has touched the camera");
    robot.ask("stop", Event::Unpublished);
    systemd.wait_for("STATUS=idle");
    end(running);
    systemd.wait_for("STOPPING=1");
}

#[test]
fn the_watchdog_is_fed_while_nobody_looks_and_while_frames_leave_and_not_otherwise() {
    let robot = Robot::new();
    let systemd = Systemd::listen(&robot.folder.path("notify"));
    let mut command = robot.command("150 freeze", "cold");
    let mut running = robot.start(
        command
            .args(["--stall-timeout", "0"])
            .env("NOTIFY_SOCKET", robot.folder.path("notify"))
            .env("WATCHDOG_USEC", "4000000"),
    );
    systemd.wait_for("WATCHDOG=1");
    robot.ask("start", Event::Published);
    systemd.wait_for("STATUS=live");
    systemd.wait_for("WATCHDOG=1");
    let silent = Instant::now();
    running.wait_for("the watchdog is not fed: no frame leaves");
    measured("no frame leaves, until the watchdog is not fed", silent);
    running.signal(Signal::TERM);
    let told = systemd.wait_for("STOPPING=1");
    let last = told
        .iter()
        .rposition(|text| text.contains("WATCHDOG=1"))
        .map_or(0, |at| at + 1);
    // What was on its way before; then nothing but the end.
    let after = told[last..].join("\n");
    assert!(!after.contains("WATCHDOG=1"), "{after}");
    assert_eq!(running.wait(), Some(0), "{}", running.log);
}

#[test]
fn the_robot_is_told_as_what_it_is_on_each_step() {
    let robot = Robot::new();
    let mark = robot.testbed.observer.seen().mark();
    let mut running = robot.start(&mut robot.command("50 error|gone|play", "warm"));
    robot.ask("start", Event::Published);
    running.wait_for("failure 2 in a row");
    robot
        .testbed
        .observer
        .wait_available(mark, OFFLINE)
        .unwrap();
    running.wait_for("playing");
    let seen = robot.testbed.observer.seen();
    let offline = seen
        .position(mark, |seen| seen.is_available(OFFLINE))
        .unwrap();
    robot
        .testbed
        .observer
        .wait_available(offline, ONLINE)
        .unwrap();
    robot.wait_live(offline);
    let all = seen.since(mark);
    let viewers = all.iter().rev().find_map(Seen::state).unwrap();
    assert_eq!(viewers.viewers, ["*"], "{all:#?}");
    // Why it is away stays with the broker, and goes when it plays again.
    let away = seen.since(mark);
    let last = away
        .iter()
        .take_while(|seen| !seen.is_available(OFFLINE))
        .filter_map(Seen::state)
        .last()
        .unwrap();
    let why = last.faults.at(&Place::Source).unwrap_or_default();
    assert!(why.starts_with("scriptedsrc0: "), "{last:?}");
    robot
        .testbed
        .observer
        .wait_where(offline, "live without a fault", |state| {
            state.state == StreamState::Live && state.last_error.is_none()
        })
        .unwrap();
    assert!(Path::new(&robot.folder.path("starts")).exists());
    end(running);
}

#[test]
fn a_broker_that_goes_and_comes_back_shows_in_the_status_and_in_the_log_while_idle() {
    let mut robot = Robot::new();
    let systemd = Systemd::listen(&robot.folder.path("notify"));
    let mut command = robot.command("play", "cold");
    let mut running = robot.start(command.env("NOTIFY_SOCKET", robot.folder.path("notify")));
    running.wait_for("connected to the broker");
    systemd.wait_for("STATUS=idle");

    robot.testbed.broker.kill();
    running.wait_for("no MQTT session: ");
    systemd.wait_for("STATUS=idle, no MQTT session");
    robot.testbed.broker.restart().unwrap();
    running.wait_for("connected again");
    let told = systemd.wait_for("STATUS=idle");
    assert_eq!(told.last().map(|text| text.trim()), Some("STATUS=idle"));
    end(running);
}

/// A cold valve's camera and a warm one's: by the state, and by the log.
#[test]
fn a_size_that_the_camera_lacks_is_named_in_state_and_log() {
    const TOLD: &str =
        " 1280x720; the camera has, the nearest first: video/x-raw I420 64x48 at 50/s";
    let robot = Robot::new();
    let line = |standby: &str| {
        let line = robot.line("play", standby);
        line.replacen(" ! ", " ! video/x-raw,width=1280,height=720 ! ", 1)
    };
    let run = |line: &str| {
        let mut command = droidrelay_with_plugins();
        command.arg("run").arg(robot.folder.launch(line));
        command
    };
    let running = robot.start(&mut run(&line("cold")));
    let mark = robot.testbed.observer.seen().mark();
    robot.testbed.observer.send("start").unwrap();
    let lacks = |state: &RobotState| {
        let error = state.last_error.as_deref();
        state.state == StreamState::Error && error.is_some_and(|error| error.contains(TOLD))
    };
    let told = robot.testbed.observer.wait_where(mark, TOLD, lacks);
    told.unwrap();
    robot.testbed.observer.send("stop").unwrap();
    robot.testbed.wait_now(StreamState::Idle);
    end(running);

    let mut running = Running::start(&mut run(&line("warm")));
    let text = running.wait_for("failure 1 in a row");
    assert!(text.contains(TOLD), "{text}");
}

/// The server ends a session without media, and is told of beside the camera, not in place of it.
#[test]
fn a_camera_that_is_frozen_is_named_whatever_the_server_says_of_it() {
    for standby in ["warm", "cold"] {
        let mut robot = Robot::new();
        let line = robot.line("50 freeze|gone", standby);
        let line = line.replacen("standby=", "source-timeout=1 standby=", 1);
        let mut command = droidrelay_with_plugins();
        command.arg("run").arg(robot.folder.launch(&line));
        let mut running = robot.start(command.args(["--stall-timeout", "0"]));
        let observer = &robot.testbed.observer;
        let mark = observer.seen().mark();
        observer.send("start").unwrap();
        robot.wait_live(mark);
        let frozen = |state: &RobotState| {
            let why = state.faults.at(&Place::Source);
            state.state == StreamState::Error && why.is_some() && why == state.last_error.as_deref()
        };
        let told = observer.wait_where(mark, "the camera named", frozen);
        assert!(
            told.unwrap()
                .1
                .last_error
                .unwrap()
                .contains("no frame for 1 s")
        );
        let logged = running.wait_for("no frame for 1 s");
        assert!(logged.starts_with("WARNING"), "{logged}");

        let mark = observer.seen().mark();
        robot.testbed.relay.kill();
        let both = |state: &RobotState| frozen(state) && state.faults.at(&Place::Server).is_some();
        let told = observer.wait_where(mark, "camera and server named", both);
        told.unwrap();
        let said = observer.seen().since(mark);
        let mut told = said.iter().filter_map(Seen::state);
        assert!(
            told.all(|state| state.state == StreamState::Error),
            "{said:#?}"
        );
        end(running);
    }
}
