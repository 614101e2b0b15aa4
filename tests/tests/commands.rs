// SPDX-License-Identifier: MPL-2.0

//! What becomes of commands, whatever happens to the broker and to the robot's link: a robot of
//! gst-launch-1.0 and a real Mosquitto.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use StreamState::{Idle, Live};
use droidrelay_testkit::{
    clients::observer::Observer,
    journal::DEADLINE,
    net::proxy::Proxy,
    process::poll,
    robot::{Robot, Runner},
    servers::mosquitto::{self, Mosquitto, TOPIC},
    testbed::TINY_PICTURE,
};
use droidrelay_wire::{
    Command, RobotState, StreamState,
    mqtt::session::Properties,
    words::topics::{OFFLINE, ONLINE, availability_topic},
};

/// What GStreamer calls critical ends a robot under test; the valve tells what it does.
const ENVIRONMENT: &[(&str, &str)] =
    &[("G_DEBUG", "fatal-criticals"), ("GST_DEBUG", "mqttvalve:4")];

/// Broker, link and observer; robots come and go.
struct Scene {
    /// Commands sent by [`Scene::obeyed`].
    sent: Cell<u32>,
    observer: Observer,
    proxy: Proxy,
    broker: Mosquitto,
}

impl Scene {
    fn new() -> Self {
        Self::with(mosquitto::Options::default())
    }

    fn with(options: mosquitto::Options) -> Self {
        let broker = Mosquitto::start_with(options).unwrap();
        Scene {
            sent: Cell::new(0),
            observer: Observer::start(&broker).unwrap(),
            proxy: Proxy::start(broker.port()).unwrap(),
            broker,
        }
    }

    fn line(&self, properties: &str) -> String {
        let valve = self.broker.valve_by(self.proxy.port());
        format!("{TINY_PICTURE} ! {valve} {properties} ! fakesink")
    }

    /// Online by the link, and idle; `properties` are mqttvalve's.
    fn robot(&self, properties: &str) -> Robot {
        let line = self.line(properties);
        self.observer
            .robot(Runner::GstLaunch, &line, ENVIRONMENT)
            .unwrap()
    }

    fn send(&self, command: &str) {
        self.observer.send(command).unwrap();
    }

    /// Sends `command` with what the sender knows it by.
    fn send_as(&self, command: &str, correlation: &str) {
        self.observer
            .send_with(command, correlated(correlation))
            .unwrap();
    }

    /// Sends `command`; back when the robot has obeyed it.
    fn obeyed(&self, command: &str) -> RobotState {
        let mark = self.mark();
        self.sent.set(self.sent.get() + 1);
        let correlation = format!("command {}", self.sent.get());
        self.send_as(command, &correlation);
        self.wait_obeyed(mark, &correlation)
    }

    fn wait_obeyed(&self, mark: usize, correlation: &str) -> RobotState {
        self.wait(mark, correlation, |state| {
            state.last_command_id.as_deref() == Some(correlation)
        })
    }

    fn wait(&self, mark: usize, what: &str, wanted: impl Fn(&RobotState) -> bool) -> RobotState {
        *self.observer.wait_where(mark, what, wanted).unwrap().1
    }

    /// The mark of the moment, for waiting from here on.
    fn mark(&self) -> usize {
        self.observer.seen().mark()
    }

    /// Obeys `start`: frames flow.
    fn live(&self) -> RobotState {
        let mark = self.mark();
        self.send("start");
        self.wait(mark, "live", |state| state.state == Live)
    }

    /// Cuts the robot's link; back when the broker has noticed.
    fn cut(&self) {
        let mark = self.mark();
        self.proxy.cut();
        self.observer.wait_available(mark, OFFLINE).unwrap();
    }

    /// Mends the robot's link; back when the robot is online again.
    fn restore(&self) {
        let mark = self.mark();
        self.proxy.restore();
        self.observer.wait_available(mark, ONLINE).unwrap();
    }

    /// Ends the broker cleanly, or as by a power cut, and starts it again.
    fn restart(&mut self, clean: bool) {
        if clean {
            self.broker.stop().unwrap();
        } else {
            self.broker.kill();
        }
        self.broker.restart().unwrap();
    }

    /// The robot's word after everything that was sent so far: a command that closed valves obey
    /// without any other effect comes after all that were queued.
    fn afterwards(&self) -> RobotState {
        self.obeyed("keyframe")
    }
}

fn correlated(id: &str) -> Properties {
    Properties {
        correlation: Some(id.into()),
        ..Properties::default()
    }
}

fn expiring(seconds: u64) -> Properties {
    Properties {
        expiry: Some(Duration::from_secs(seconds)),
        ..Properties::default()
    }
}

/// Openings since the robot was started, which no state leaves out.
fn opens(state: &RobotState) -> u64 {
    state.more["opens"].as_u64().unwrap()
}

fn is_idle_after(state: &RobotState, openings: u64) {
    assert_eq!(
        (state.state.clone(), opens(state)),
        (Idle, openings),
        "{state:?}"
    );
}

/// The only thing that tests wait for by the clock: what the broker or the robot counts.
fn wait_until(moment: Instant) {
    let reached = poll(DEADLINE, || (Instant::now() >= moment).then_some(()));
    reached.unwrap();
}

#[test]
fn a_sender_sees_by_its_own_id_that_its_command_was_executed() {
    let scene = Scene::new();
    let mut robot = scene.robot("");

    let state = scene.obeyed("start");
    assert_ne!(state.state, Idle);
    assert_eq!(scene.obeyed("stop").state, Idle);
    // Text that is not fit to be shown gives way to the id in the command.
    for correlation in [&b"\xff\xfe"[..], b"", b"a\nb", &[b'x'; 129]] {
        scene.obeyed("keyframe");
        let mark = scene.mark();
        let properties = Properties {
            correlation: Some(correlation.into()),
            ..Properties::default()
        };
        let command = r#"{"command":"stop","id":"phone-7"}"#;
        scene.observer.send_with(command, properties).unwrap();
        scene.wait_obeyed(mark, "phone-7");
    }
    let mark = scene.mark();
    scene.send("start");
    let state = scene.wait(mark, "no id", |state| state.last_command_id.is_none());
    assert_eq!(state.more["last_command"], "start");
    robot.end().unwrap();
}

#[test]
fn a_stop_sent_while_the_robot_is_offline_is_obeyed_at_reconnect() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    scene.live();
    scene.cut();
    let mark = scene.mark();
    scene.send_as("stop", "while offline");
    scene.proxy.restore();
    let state = scene.wait_obeyed(mark, "while offline");
    is_idle_after(&state, 1);
    assert_eq!(state.cause.as_str(), "mqtt");
    robot.end().unwrap();
}

#[test]
fn a_start_that_expired_while_the_robot_was_offline_is_not_obeyed() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    scene.cut();
    scene.observer.send_with("start", expiring(1)).unwrap();
    // The broker counts whole seconds.
    wait_until(Instant::now() + Duration::from_secs(3));
    scene.restore();
    is_idle_after(&scene.afterwards(), 0);

    // Nor does it hide a stop behind it, nor do hundreds (Mosquitto's issue 2609).
    scene.live();
    scene.cut();
    for _ in 0..500 {
        scene.observer.send_with("start", expiring(1)).unwrap();
    }
    scene.send("stop");
    wait_until(Instant::now() + Duration::from_secs(3));
    scene.restore();
    is_idle_after(&scene.afterwards(), 1);
    robot.end().unwrap();
}

#[test]
fn a_start_that_has_not_expired_while_the_robot_was_offline_is_obeyed() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    for openings in 1..=2 {
        scene.cut();
        let mark = scene.mark();
        scene.observer.send_with("start", expiring(60)).unwrap();
        scene.proxy.restore();
        let state = scene.wait(mark, "live", |state| state.state == Live);
        assert_eq!(opens(&state), openings);
        is_idle_after(&scene.obeyed("stop"), openings);
    }
    robot.end().unwrap();
}

#[test]
fn a_start_with_a_lease_ends_on_time_while_the_robot_is_offline() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    scene.obeyed(r#"{"command":"start","lease":1}"#);
    scene.cut();
    wait_until(Instant::now() + Duration::from_secs(1));
    scene.restore();
    let state = scene.afterwards();
    is_idle_after(&state, 1);
    assert_eq!(state.cause.as_str(), "lease");
    robot.end().unwrap();
}

#[test]
fn a_broker_that_dies_while_it_is_answered_ends_nothing() {
    let mut scene = Scene::new();
    let mut robot = scene.robot("");
    // More often than a robot supposes that another client takes its session.
    for openings in 1..=8 {
        // Its acknowledgements go to a socket that is closed already.
        robot.freeze();
        for _ in 0..50 {
            scene.send("start");
        }
        scene.broker.kill();
        robot.thaw();
        scene.broker.restart().unwrap();
        scene.broker.wait_robot().unwrap();
        let state = scene.afterwards();
        assert_eq!(
            (state.state.clone(), opens(&state)),
            (Live, openings),
            "{state:?}"
        );
        is_idle_after(&scene.obeyed("stop"), openings);
    }
    robot.end().unwrap();
}

#[test]
fn a_broker_that_stays_away_closes_what_it_opened() {
    let scene = Scene::new();
    let mut robot = scene.robot("offline-timeout=1");
    scene.live();
    scene.cut();
    let closed = poll(DEADLINE, || {
        robot.text().contains("closes (offline").then_some(())
    });
    assert!(closed.is_some());
    scene.restore();
    let state = scene.afterwards();
    is_idle_after(&state, 1);
    assert_eq!(state.cause.as_str(), "offline");
    robot.end().unwrap();
}

mod a_broker_restarted_while_the_robot_is_open_is_obeyed_and_opens_nothing {
    #[test]
    fn persistent_by_sigterm() {
        super::restart(true, true)
    }

    #[test]
    fn persistent_by_sigkill() {
        super::restart(true, false)
    }

    #[test]
    fn forgetful_by_sigterm() {
        super::restart(false, true)
    }

    #[test]
    fn forgetful_by_sigkill() {
        super::restart(false, false)
    }
}

fn restart(persistence: bool, clean: bool) {
    let mut scene = Scene::with(mosquitto::Options {
        persistence,
        ..mosquitto::Options::default()
    });
    let mut robot = scene.robot("");
    let since = scene.live().since;

    // Open through it, and obeyed as soon as the robot is back.
    scene.restart(clean);
    scene.broker.wait_robot().unwrap();
    let state = scene.afterwards();
    assert_eq!((state.state.clone(), opens(&state)), (Live, 1), "{state:?}");
    assert_eq!(state.since, since);
    is_idle_after(&scene.obeyed("stop"), 1);

    // Closed through it.
    scene.restart(clean);
    scene.broker.wait_robot().unwrap();
    is_idle_after(&scene.afterwards(), 1);

    // A stop sent before the robot is back: what the broker has forgotten nobody can obey, but
    // its sender sees so, and sends it again.
    scene.live();
    scene.proxy.cut();
    scene.restart(clean);
    let mark = scene.mark();
    scene.send_as("stop", "before the robot is back");
    scene.proxy.restore();
    if persistence {
        is_idle_after(&scene.wait_obeyed(mark, "before the robot is back"), 2);
    } else {
        scene.broker.wait_robot().unwrap();
        let state = scene.afterwards();
        assert_eq!((state.state.clone(), opens(&state)), (Live, 2), "{state:?}");
        is_idle_after(&scene.obeyed("stop"), 2);
    }
    assert!(robot.is_running());
    robot.end().unwrap();
}

#[test]
fn a_thousand_queued_commands_are_obeyed_in_order() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    // Openings and closings of the whole valve, and the leases of many: whichever two commands
    // for one of them change places, another set of viewers is left.
    let started = |id: &str| Command::Start {
        id: Some(id.into()),
        lease: Some(Duration::from_secs(3600)),
    };
    let stopped = |id: &str| Command::Stop {
        id: Some(id.into()),
    };
    let mut commands = Vec::new();
    for _ in 0..150 {
        commands.extend([Command::start(), Command::stop()]);
    }
    for pair in 0..175 {
        let (stays, goes) = (format!("stays-{pair}"), format!("goes-{pair}"));
        commands.extend([
            stopped(&stays),
            started(&goes),
            started(&stays),
            stopped(&goes),
        ]);
    }
    assert_eq!(commands.len(), 1000);
    scene.cut();
    let mark = scene.mark();
    for (number, command) in commands.iter().enumerate() {
        scene.send_as(&command.to_payload(), &format!("number {number}"));
    }
    scene.proxy.restore();
    let state = scene.wait_obeyed(mark, "number 999");
    assert_eq!(state.more["viewer_count"], 175, "{state:?}");
    assert!(state.viewers.iter().all(|id| id.starts_with("stays-")));
    assert_eq!(state.refused_commands, 0);

    // It took no harm: frames flow, and it closes.
    let mark = scene.mark();
    scene.send("keyframe");
    scene.wait(mark, "live", |state| state.state == Live);
    assert_eq!(scene.obeyed("stop").state, Idle);
    scene.live();
    assert_eq!(scene.obeyed("stop").state, Idle);
    robot.end().unwrap();
}

#[test]
fn a_retained_start_at_boot_is_refused_and_named_once() {
    let scene = Scene::new();
    scene.observer.retain("start").unwrap();
    let mut robot = scene.robot("");
    for _ in 0..2 {
        let state = scene.afterwards();
        is_idle_after(&state, 0);
        assert_eq!(state.refused_commands, 1);
        // Not again at each reconnect.
        scene.cut();
        scene.restore();
    }
    let mark = scene.mark();
    scene.observer.retain("start").unwrap();
    // Just published it is no older than any other, whatever the broker keeps of it.
    scene.wait(mark, "live", |state| state.state == Live);
    robot.end().unwrap();
}

#[test]
fn a_retained_start_at_boot_is_obeyed_once_where_that_is_wanted() {
    let scene = Scene::new();
    scene.observer.retain("start").unwrap();
    let line = scene.line("accept-retained=true");
    let mark = scene.mark();
    let mut robot = Robot::start_with(Runner::GstLaunch, &line, ENVIRONMENT).unwrap();
    let state = scene.wait(mark, "live", |state| state.state == Live);
    assert_eq!(state.refused_commands, 0);
    scene.send("stop");
    // It does not undo the stop at the next reconnect.
    scene.cut();
    scene.restore();
    is_idle_after(&scene.afterwards(), 1);
    robot.end().unwrap();
}

#[test]
fn a_duplicate_start_changes_nothing() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    let first = scene.live();
    for command in ["start", "ON", r#"{"command":"start"}"#, " Start\n"] {
        scene.send(command);
    }
    let state = scene.afterwards();
    assert_eq!((state.state.clone(), opens(&state)), (Live, 1));
    assert_eq!(state.since, first.since);
    assert_eq!(state.start_latency_ms, first.start_latency_ms);
    assert_eq!(state.viewers, ["*"]);
    is_idle_after(&scene.obeyed("stop"), 1);
    let since = scene.obeyed("stop").since;
    assert_eq!(scene.afterwards().since, since);
    robot.end().unwrap();
}

#[test]
fn a_start_that_is_delivered_twice_is_obeyed_once() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    let says = |word: &str| poll(DEADLINE, || robot.text().contains(word).then_some(())).unwrap();
    // The robot's acknowledgement is lost, and with it all that it says.
    scene.proxy.discard_upstream();
    scene.send(r#"{"command":"start","lease":1}"#);
    says(" opens (mqtt");
    says(" closes (lease");
    scene.cut();
    scene.restore();
    is_idle_after(&scene.afterwards(), 1);
    robot.end().unwrap();
}

#[test]
fn each_viewer_holds_a_lease_of_his_own() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    let start =
        |id: &str, lease: u32| format!(r#"{{"command":"start","id":"{id}","lease":{lease}}}"#);
    let stop = |id: &str| format!(r#"{{"command":"stop","id":"{id}"}}"#);

    // Ended one by one.
    scene.obeyed(&start("anna", 60));
    let state = scene.obeyed(&start("bert", 60));
    assert_eq!(state.viewers, ["anna", "bert"]);
    assert!(state.lease_until.is_some());
    let state = scene.obeyed(&stop("anna"));
    assert_eq!(state.viewers, ["bert"]);
    assert_eq!(scene.obeyed(&stop("nobody")).viewers, ["bert"]);
    let state = scene.obeyed(&stop("bert"));
    is_idle_after(&state, 1);
    assert_eq!((state.cause.as_str(), state.lease_until), ("mqtt", None));

    // Run out one by one, and not before their time.
    let mark = scene.mark();
    scene.obeyed(&start("anna", 1));
    scene.obeyed(&start("bert", 60));
    scene.wait(mark, "the end of one lease", |state| {
        state.viewers == ["bert"]
    });
    let mut renewed = Instant::now();
    for _ in 0..3 {
        wait_until(renewed + Duration::from_millis(500));
        renewed = Instant::now();
        scene.obeyed(&start("bert", 1));
    }
    let (ended, state) = scene
        .observer
        .wait_where(mark, "the end", |state| state.state == Idle)
        .unwrap();
    assert!(ended - renewed >= Duration::from_secs(1));
    is_idle_after(&state, 2);
    assert_eq!(state.cause.as_str(), "lease");

    // All at once.
    scene.obeyed(&start("anna", 60));
    scene.obeyed(&start("bert", 60));
    is_idle_after(&scene.obeyed("stop"), 3);
    robot.end().unwrap();
}

#[test]
fn a_start_without_a_lease_holds_as_long_as_the_property_says() {
    let scene = Scene::new();
    let mut robot = scene.robot("lease=1");
    let mark = scene.mark();
    let started = Instant::now();
    let state = scene.obeyed("start");
    assert!(state.lease_until.is_some());
    let (ended, state) = scene
        .observer
        .wait_where(mark, "the end", |state| state.cause.as_str() == "lease")
        .unwrap();
    assert!(ended - started >= Duration::from_secs(1));
    is_idle_after(&state, 1);
    robot.end().unwrap();
}

#[test]
fn what_was_queued_before_the_robot_started_is_not_obeyed() {
    let scene = Scene::new();
    scene.robot("").end().unwrap();
    for queue in [
        &["start"][..],
        &["stop"],
        &["start", "stop"],
        &["stop", "start"],
    ] {
        for command in queue {
            scene.send(command);
        }
        let mut robot = scene.robot("");
        let state = scene.afterwards();
        is_idle_after(&state, 0);
        assert_eq!((state.cause.as_str(), state.refused_commands), ("boot", 0));
        // It is not deaf for it; the next one begins after a power cut while open.
        scene.live();
        let mark = scene.mark();
        robot.kill();
        scene.observer.wait_available(mark, OFFLINE).unwrap();
    }
}

#[test]
fn what_is_no_command_is_counted_and_named_and_moves_nothing() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    let long = vec![b'x'; 5000];
    let refusals: [(&[u8], &str); 5] = [
        (b"\x00\xff\xfe", "UTF-8"),
        (&long, "5000 bytes"),
        (br#"{"command":"start""#, "JSON"),
        (br#"{"command":"open"}"#, "open"),
        (br#"{"command":"start","lease":-1}"#, "-1"),
    ];
    let mut count = 0;
    for openings in 0..2 {
        let before = scene.afterwards();
        for (payload, reason) in refusals {
            count += 1;
            let mark = scene.mark();
            scene
                .observer
                .send_with(payload, correlated("refused"))
                .unwrap();
            let what = format!("the refusal of {reason}");
            let state = scene.wait(mark, &what, |state| state.refused_commands == count);
            let error = state.last_error.as_deref().unwrap_or_default();
            assert!(error.contains(reason), "{error:?} names {reason:?}");
            assert_eq!(
                (state.state.clone(), opens(&state)),
                (before.state.clone(), openings)
            );
            assert_eq!(
                (state.since.as_str(), state.viewers.len()),
                (before.since.as_str(), before.viewers.len())
            );
            assert_eq!(state.last_command_id, before.last_command_id);
        }
        scene.live();
    }
    is_idle_after(&scene.obeyed("stop"), 1);
    assert!(robot.is_running());
    robot.end().unwrap();
}

/// As it comes where the nodes of a cluster wait for each other, and then nobody else says
/// otherwise.
#[test]
fn a_last_will_that_comes_late_is_contradicted() {
    let scene = Scene::new();
    let _robot = scene.robot("");
    let mark = scene.mark();
    let will = Properties {
        retain: true,
        ..Properties::default()
    };
    let topic = availability_topic(TOPIC);
    scene.observer.send_to(&topic, OFFLINE, will).unwrap();
    scene.observer.wait_available(mark, OFFLINE).unwrap();
    scene.observer.wait_available(mark, ONLINE).unwrap();
}
