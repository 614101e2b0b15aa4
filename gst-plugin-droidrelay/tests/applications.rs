// SPDX-License-Identifier: MPL-2.0

//! The examples of an application, as their users run them, with real servers.

use std::{
    io::Write,
    process::{ChildStdin, Command},
};

use droidrelay_testkit::{
    artifacts::artifact,
    clients::reader::Reader,
    journal::DEADLINE,
    process::{Process, Signal},
    robot::Plugins,
    servers::relay::{Event, Kind},
    testbed::{ENCODER, TEST_PICTURE, Testbed},
};
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

struct Application {
    process: Process,
    stdin: ChildStdin,
    /// Lines of its log that have been looked at.
    read: usize,
    _plugins: Plugins,
}

impl Application {
    fn start(command: fn(&Plugins) -> Command, line: &str) -> Self {
        let plugins = Plugins::new().unwrap();
        let mut command = command(&plugins);
        command.arg(line);
        let (process, stdin) = Process::spawn_with_input("application", &mut command).unwrap();
        Application {
            process,
            stdin,
            read: 0,
            _plugins: plugins,
        }
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Waits until it has printed these lines, in whatever order and with others between them:
    /// they come from several threads.
    fn prints(&mut self, lines: &[&str]) {
        let log = self.process.log();
        let mut read = self.read;
        for wanted in lines {
            let is_wanted = |line: &String| line == wanted;
            let found = log.wait(self.read, wanted, is_wanted);
            found.unwrap_or_else(|err| panic!("{err}\n{}", self.process.text()));
            read = read.max(1 + log.position(self.read, is_wanted).unwrap());
        }
        self.read = read;
    }
}

fn is_opened_from_afar_and_by_itself_and_tells(command: fn(&Plugins) -> Command) {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let seen = testbed.observer.seen().mark();
    let line = format!(
        "{TEST_PICTURE} ! {} name=valve ! queue ! {ENCODER} ! {}",
        testbed.valve(),
        testbed.sink()
    );
    let mut application = Application::start(command, &line);
    testbed.observer.wait_available(seen, ONLINE).unwrap();
    application.prints(&["mqttvalve-state: idle, viewers: 0"]);

    testbed.observer.send("start").unwrap();
    application.prints(&[
        "valve: open",
        "mqttvalve-state: starting, viewers: 1",
        "rtmpauthsink-state: connecting",
        "rtmpauthsink-state: publishing",
        "mqttvalve-state: live, viewers: 1",
    ]);
    application.type_in("keyframe");
    application.prints(&["keyframe: asked for"]);
    testbed.observer.send("stop").unwrap();
    application.prints(&[
        "valve: closed",
        "rtmpauthsink-state: idle",
        "mqttvalve-state: idle, viewers: 0",
    ]);

    // Both at once: what is typed comes in pieces as the system likes.
    application.type_in("keyframe\nstart door");
    application.prints(&[
        "keyframe: the valve is closed",
        "valve: open",
        "start: open",
        "mqttvalve-state: live, viewers: 1",
    ]);
    let reader = Reader::start(&testbed.relay.viewer_url(), None).unwrap();
    reader.wait_frames(20).unwrap();
    let events = testbed.relay.events().mark();
    application.type_in("start motion 1");
    application.prints(&["start: open"]);
    application.type_in("stop door");
    application.prints(&["stop: still open for others"]);
    // The lease ends.
    application.prints(&["valve: closed"]);
    testbed.wait_relay(events, Event::Unpublished);
    testbed.wait_now(StreamState::Idle);

    application.type_in("start a b c");
    application.prints(&["type: start [ID [SECONDS]], stop [ID], keyframe, quit"]);
    let seen = testbed.observer.seen().mark();
    application.process.signal(Signal::INT);
    let status = application.process.wait(DEADLINE).expect("an end");
    assert!(status.success(), "{status}\n{}", application.process.text());
    testbed.observer.wait_available(seen, OFFLINE).unwrap();
}

fn names_what_is_wrong(command: fn(&Plugins) -> Command) {
    for (line, told) in [
        ("videotestsrc ! nosuchthing", "nosuchthing"),
        ("videotestsrc ! fakesink", "mqttvalve name=valve"),
        (
            "videotestsrc ! mqttvalve name=valve broker=http://x ! fakesink",
            "http",
        ),
    ] {
        let mut application = Application::start(command, line);
        let status = application.process.wait(DEADLINE).expect("an end");
        let log = application.process.log();
        assert_eq!(status.code(), Some(1), "{line}");
        log.wait(0, told, |line| line.contains(told)).unwrap();
    }
}

fn in_rust(plugins: &Plugins) -> Command {
    plugins.command(artifact("examples/application").unwrap())
}

fn in_python(plugins: &Plugins) -> Command {
    // The one that has Debian's packages, whichever comes first in PATH.
    let mut command = plugins.command("/usr/bin/python3");
    command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/application.py"
    ));
    command
}

#[test]
fn the_one_in_rust_is_opened_from_afar_and_by_itself_and_tells() {
    is_opened_from_afar_and_by_itself_and_tells(in_rust);
}

#[test]
fn the_one_in_python_is_opened_from_afar_and_by_itself_and_tells() {
    is_opened_from_afar_and_by_itself_and_tells(in_python);
}

#[test]
fn the_one_in_rust_names_what_is_wrong() {
    names_what_is_wrong(in_rust);
}

#[test]
fn the_one_in_python_names_what_is_wrong() {
    names_what_is_wrong(in_python);
}
