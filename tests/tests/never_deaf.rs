// SPDX-License-Identifier: MPL-2.0

//! Whatever comes between a robot and its broker: the robot says what is wrong, its pipeline
//! does not notice, and it obeys again within five seconds of the fault's end.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::{Authority, Validity, write_private},
    clients::observer::Observer,
    journal::Journal,
    net::netns::{FAR, Loss, NameServer, isolated},
    robot::{Robot, Runner},
    servers::{
        mosquitto::{Mosquitto, Options, TOPIC},
        silent::SilentServer,
    },
};
use droidrelay_wire::{
    StreamState,
    words::{fault::Place, topics::ONLINE},
};
use tempfile::TempDir;

/// From a fault's end to a command that is obeyed.
const BACK: Duration = Duration::from_secs(5);
/// Between two frames past the valve: 33 ms, on a machine that does much else.
const PAUSE: Duration = Duration::from_secs(1);

/// A broker, somebody who gives commands there, and a robot that is to reach it.
struct Scene {
    // Dropped in this order: who depends on the broker goes before it.
    observer: Observer,
    broker: Mosquitto,
    folder: TempDir,
}

impl Scene {
    fn new(options: Options) -> Self {
        let broker = Mosquitto::start_with(options).unwrap();
        let scene = Scene {
            observer: Observer::start(&broker).unwrap(),
            broker,
            folder: tempfile::tempdir().unwrap(),
        };
        scene.write_password(&scene.broker.robot.password);
        scene
    }

    /// In a network of its own, with a robot that is to reach the broker at [`FAR`].
    fn far() -> Self {
        Scene::new(Options {
            everywhere: true,
            ..Options::default()
        })
    }

    /// What the robot takes for its password.
    fn write_password(&self, password: &str) -> PathBuf {
        write_private(self.folder.path(), "pass", password).unwrap()
    }

    /// A robot whose picture goes two ways, through the valve and past it.
    fn robot(&self, broker: &str, more: &str) -> Witness {
        let line = format!(
            "-v videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=30/1 \
             ! tee name=t ! queue \
             ! mqttvalve broker={broker} topic={TOPIC} username={} password-file={} keep-alive-interval=5 {more} \
             ! identity name=through silent=false ! fakesink async=false \
             t. ! queue ! identity name=beside silent=false ! fakesink",
            self.broker.robot.user,
            self.folder.path().join("pass").display(),
        );
        let environment = [
            ("G_DEBUG", "fatal-criticals"),
            ("GST_DEBUG", "mqttvalve:4"),
            ("GST_DEBUG_NO_COLOR", "1"),
        ];
        let robot = Robot::start_with(Runner::GstLaunch, &line, &environment).unwrap();
        robot
            .log()
            .wait(0, "a frame", |line| is_beside(line))
            .unwrap();
        Witness { robot }
    }

    fn robot_at(&self, host: &str) -> Witness {
        self.robot(&format!("mqtt://{host}:{}", self.broker.port()), "")
    }

    /// Waits until the robot is in touch.
    fn wait_online(&self) {
        self.observer.wait_available(0, ONLINE).unwrap();
    }

    /// Waits until the robot's state on the broker tells of the fault.
    fn wait_told(&self, reason: &str) {
        self.observer
            .wait_where(0, reason, |state| {
                let error = state.last_error.as_deref();
                error.is_some_and(|error| error.contains(reason))
            })
            .unwrap();
    }

    /// A robot that was in touch before the fault obeys a command sent right after it.
    fn obeys(&self, robot: &Witness, healed: Instant) {
        let mark = robot.log().mark();
        self.observer.send("start").unwrap();
        let back = robot.wait_through(mark) - healed;
        eprintln!("obeyed {back:?} after the fault's end");
        assert!(back < BACK, "{back:?}\n{}", robot.text());
    }

    /// As [`Scene::obeys`] with a robot that was never in touch before; what is sent to it before
    /// it is there goes nowhere. Its state still tells of the fault: `reason`.
    fn comes_and_obeys(&self, robot: &Witness, healed: Instant, reason: &str) {
        self.wait_online();
        self.wait_told(reason);
        self.obeys(robot, healed);
    }

    fn stop(&self) {
        let mark = self.observer.seen().mark();
        self.observer.send("stop").unwrap();
        self.observer.wait_state(mark, StreamState::Idle).unwrap();
    }
}

/// The robot, and what it wrote as `gst-launch-1.0 -v` with the valve's log.
struct Witness {
    robot: Robot,
}

/// A frame went through the valve.
fn is_through(line: &str) -> bool {
    line.contains("chain   ******* (through:sink)")
}

/// A frame went past the valve.
fn is_beside(line: &str) -> bool {
    line.contains("chain   ******* (beside:sink)")
}

impl Witness {
    fn log(&self) -> &Journal<String> {
        self.robot.log()
    }

    /// Waits until the robot says, after `mark`, that it has no session because of `reason`.
    fn wait_reason(&self, mark: usize, reason: &str) {
        let what = format!("{reason:?} in the log");
        let said = self.log().wait(mark, &what, |line| {
            line.contains("no MQTT session") && line.contains(reason)
        });
        said.unwrap_or_else(|err| panic!("{err}\n{}", self.text()));
    }

    fn wait_through(&self, mark: usize) -> Instant {
        let through = self
            .log()
            .wait(mark, "a frame behind the valve", |line| is_through(line));
        through
            .unwrap_or_else(|err| panic!("{err}\n{}", self.text()))
            .0
    }

    /// What the robot wrote, without the frames.
    fn text(&self) -> String {
        let lines = self.log().all();
        let lines = lines.iter().filter(|line| !line.contains("last-message"));
        lines.map(|line| line.to_owned() + "\n").collect()
    }

    /// Ends the robot, whose pipeline has noticed nothing of any fault.
    fn end(mut self) {
        let frames = self.log().times(0, |line| is_beside(line));
        let pauses = frames.windows(2).map(|pair| pair[1] - pair[0]);
        let longest = pauses.max().unwrap();
        eprintln!("{} frames, longest pause {longest:?}", frames.len());
        assert!(longest < PAUSE, "{longest:?}");
        self.robot.end().unwrap();
    }
}

#[test]
fn a_black_hole_is_noticed_and_left() {
    isolated(|network| {
        let scene = Scene::far();
        let robot = scene.robot_at(FAR);
        scene.wait_online();
        scene.observer.send("start").unwrap();
        robot.wait_through(0);
        let mark = robot.log().mark();
        network.lose(Loss::All).unwrap();
        robot.wait_reason(mark, "has not answered a ping");
        // The stream goes on meanwhile, and the next connection fails as well.
        robot.wait_through(robot.log().mark());
        robot.wait_reason(robot.log().mark(), "has not answered within");
        network.heal().unwrap();
        let healed = Instant::now();
        scene.wait_told("has not answered");
        scene.stop();
        scene.obeys(&robot, healed);
        robot.end();
    });
}

#[test]
fn a_link_that_was_away_for_seconds_is_not_left_to_the_pauses_of_tcp() {
    isolated(|network| {
        let scene = Scene::far();
        let url = format!("mqtt://{FAR}:{}", scene.broker.port());
        let robot = scene.robot(&url, "keep-alive-interval=10");
        scene.wait_online();
        network.lose(Loss::All).unwrap();
        // The broker repeats it at growing intervals, the last about 6.5 and 13 s after it.
        let sent = scene.observer.send("start").unwrap();
        let away = Duration::from_millis(7500);
        network.heal_at(sent + away).unwrap();
        let obeyed = robot.wait_through(0) - sent;
        eprintln!("obeyed {:?} after the fault's end", obeyed - away);
        assert!(obeyed - away < BACK, "{obeyed:?}\n{}", robot.text());
        robot.end();
    });
}

#[test]
fn a_connection_whose_syn_is_lost_is_tried_again() {
    isolated(|network| {
        let scene = Scene::far();
        network.lose(Loss::Syn).unwrap();
        let robot = scene.robot_at(FAR);
        robot.wait_reason(0, "has not answered within 4 s");
        network.heal().unwrap();
        scene.comes_and_obeys(&robot, Instant::now(), "has not answered within 4 s");
        robot.end();
    });
}

#[test]
fn a_broker_that_stands_still_while_connected_is_noticed_and_left() {
    let scene = Scene::new(Options::default());
    let robot = scene.robot_at("127.0.0.1");
    scene.wait_online();
    scene.broker.freeze();
    robot.wait_reason(0, "has not answered a ping");
    scene.broker.thaw();
    let thawed = Instant::now();
    scene.wait_told("has not answered");
    scene.obeys(&robot, thawed);
    robot.end();
}

#[test]
fn a_broker_that_stands_still_before_its_connack_is_tried_again() {
    let scene = Scene::new(Options::default());
    scene.broker.freeze();
    let robot = scene.robot_at("127.0.0.1");
    robot.wait_reason(0, "has not answered within 4 s");
    scene.broker.thaw();
    scene.comes_and_obeys(&robot, Instant::now(), "has not answered within 4 s");
    robot.end();
}

#[test]
fn connections_that_stay_silent_for_ever_are_replaced_by_new_ones() {
    let scene = Scene::new(Options::default());
    let silence = SilentServer::before(scene.broker.port()).unwrap();
    let robot = scene.robot(&format!("mqtt://127.0.0.1:{}", silence.port()), "");
    robot.wait_reason(0, "has not answered within 4 s");
    // The worst moment: the next connection has just been lost to silence.
    let connections = silence.connections();
    let mark = connections.mark();
    connections
        .wait(mark, "the next connection", |()| true)
        .unwrap();
    silence.end();
    scene.comes_and_obeys(&robot, Instant::now(), "has not answered within 4 s");
    robot.end();
}

#[test]
fn a_name_server_that_does_not_answer_is_named_and_asked_again() {
    isolated(|network| {
        let scene = Scene::far();
        let names = NameServer::start(network).unwrap();
        let robot = scene.robot_at("broker.example");
        robot.wait_reason(0, "no name server");
        // The worst moment: the next question has just been lost.
        let mark = names.queries().mark();
        names
            .queries()
            .wait(mark, "the next question", |()| true)
            .unwrap();
        names.answer();
        scene.comes_and_obeys(&robot, Instant::now(), "no name server");
        robot.end();
    });
}

#[test]
fn a_refused_login_is_named_and_mended_by_the_password_file() {
    let scene = Scene::new(Options::default());
    scene.write_password("a-wrong-one");
    let robot = scene.robot_at("127.0.0.1");
    // Again and again, so that the pauses are long ones.
    for _ in 0..5 {
        robot.wait_reason(robot.log().mark(), "refuses the login");
    }
    scene.write_password(&scene.broker.robot.password);
    scene.comes_and_obeys(&robot, Instant::now(), "password-file");
    robot.end();
}

#[test]
fn messages_of_ten_megabytes_cost_no_connection() {
    let mut scene = Scene::new(Options {
        any_size: true,
        ..Options::default()
    });
    let huge = "start ".repeat(10_000_000 / 6);
    let long = "start ".repeat(20_000 / 6);
    scene.observer.retain(&long).unwrap();
    let mut robot = scene.robot_at("127.0.0.1");
    scene.wait_online();
    let refused = |state: &droidrelay_wire::RobotState| state.refused_commands == 1;
    let (_, state) = scene
        .observer
        .wait_where(0, "one refused command", refused)
        .unwrap();
    let refused = state.faults.at(&Place::Command);
    assert!(refused.is_some_and(|why| why.contains("4096")), "{state:?}");
    scene.observer.send(&huge).unwrap();
    scene.obeys(&robot, Instant::now());
    scene.stop();
    assert!(
        !robot.text().contains("no MQTT session"),
        "{}",
        robot.text()
    );

    // One that waits for the robot at the broker, too.
    robot.robot.freeze();
    scene.broker.kill();
    scene.broker.restart().unwrap();
    scene.observer.send(&huge).unwrap();
    scene.observer.send("start").unwrap();
    let mark = robot.log().mark();
    robot.robot.thaw();
    let thawed = Instant::now();
    let back = robot.wait_through(mark) - thawed;
    assert!(back < BACK, "{back:?}\n{}", robot.text());
    robot.robot.end().unwrap();
}

#[test]
fn a_refused_subscription_is_named_and_tried_again() {
    let scene = Scene::new(Options {
        dynamic: true,
        ..Options::default()
    });
    let broker = &scene.broker;
    let user = broker.robot.user.as_str();
    broker.set_rights(&["createRole", "deaf"]).unwrap();
    let deny = ["addRoleACL", "deaf", "subscribeLiteral", TOPIC, "deny", "1"];
    broker.set_rights(&deny).unwrap();
    broker
        .set_rights(&["addClientRole", user, "deaf", "1"])
        .unwrap();
    let robot = scene.robot_at("127.0.0.1");
    for _ in 0..5 {
        robot.wait_reason(robot.log().mark(), "refuses the subscription");
    }
    broker
        .set_rights(&["removeClientRole", user, "deaf"])
        .unwrap();
    scene.comes_and_obeys(&robot, Instant::now(), "refuses the subscription");
    robot.end();
}

/// A certificate that the robot's clock does not accept, and then one that it does.
fn a_certificate_is_refused_and_then_replaced(validity: Validity, reason: &str) {
    let authority = Authority::new().unwrap();
    let names = ["127.0.0.1"];
    let scene = Scene::new(Options {
        tls: Some(authority.server(&names, validity).unwrap()),
        ..Options::default()
    });
    let ca = authority.write(scene.folder.path()).unwrap();
    let url = format!("mqtts://127.0.0.1:{}", scene.broker.tls_port());
    let robot = scene.robot(&url, &format!("ca-file={}", ca.display()));
    for _ in 0..3 {
        robot.wait_reason(robot.log().mark(), reason);
    }
    scene
        .broker
        .set_identity(&authority.server(&names, Validity::Now).unwrap())
        .unwrap();
    scene.comes_and_obeys(&robot, Instant::now(), "clock");
    robot.end();
}

#[test]
fn a_certificate_from_the_future_is_named() {
    a_certificate_is_refused_and_then_replaced(Validity::NotYet, "not valid yet");
}

#[test]
fn a_certificate_that_has_expired_is_named() {
    a_certificate_is_refused_and_then_replaced(Validity::Expired, "expired");
}
