// SPDX-License-Identifier: MPL-2.0

//! One part of the system breaks, is not there, or is told something odd.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use droidrelay_wire::{StreamState, mqtt::session::Properties};

use super::{
    case::{Case, Found, Setup},
    system::{Line, Machine, Mark, System, pass},
};
use crate::subscriber::{children, kill};
use droidrelay_testkit::{
    clients::reader::Reader,
    journal::{DEADLINE, Journal},
    net::{
        netns::{FAR, Namespace},
        proxy::Proxy,
    },
    process::{poll, program_of},
    robot::{
        camera::Camera,
        stamps::{StampReader, StampedCamera},
    },
    servers::{
        bridge::Bridge,
        mosquitto::{Mosquitto, Options, TOPIC},
        relay::{self, Event},
    },
    usage::{family, zombies},
};

/// From the broker's return to a command that is obeyed.
const BROKER_BACK: Duration = Duration::from_secs(5);
/// From a silent end of the way to the broker to a command that is obeyed.
const SILENCE_NOTICED: Duration = Duration::from_secs(30);
/// How long nothing may happen for it to be said that nothing happens.
const NOTHING: Duration = Duration::from_secs(2);
/// Between two pictures at a viewer, on a machine that does much else.
const PAUSE: Duration = Duration::from_secs(1);
/// What GStreamer calls critical does not end the robot: shmsrc that cannot connect makes one.
const LENIENT: &[(&str, &str)] = &[("GST_DEBUG", "mqttvalve:4,rtmpauthsink:4")];
/// An encoder that makes no key frame by itself for eight seconds.
const NO_KEY_FRAMES: &str = "x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500";

pub const CASES: &[Case] = &[
    Case::new(
        "broker down at the robot's start, up after 5 s",
        "runs, is there for commands within 5 s of the broker",
        broker_down_at_start,
    ),
    Case::new(
        "broker restarted while streaming, then stop",
        "stops; no pause in the stream",
        broker_restarted_while_streaming,
    ),
    Case::new(
        "broker restarted while idle, then start",
        "a start works within 5 s",
        broker_restarted_while_idle,
    ),
    Case::new(
        "broker away for 40 s, then start",
        "a start works within 5 s",
        broker_away,
    ),
    Case::new(
        "stop sent while the robot is away",
        "stops on its return",
        stop_while_away,
    ),
    Case::new(
        "start sent while the robot is away for 2 s",
        "starts on its return",
        start_while_away,
    ),
    Case::new(
        "start that has expired while the robot was away",
        "does not start",
        expired_start,
    )
    .not_by_scripts(),
    Case::new(
        "relay killed while streaming, up after 3 s",
        "publishes again by itself",
        relay_killed,
    )
    .at_each_relay(),
    Case::new(
        "relay not there at start, up after 10 s",
        "publishes by itself",
        relay_absent,
    )
    .at_each_relay(),
    Case::new(
        "relay stands still for 8 s",
        "pictures are fresh again",
        relay_stalls,
    )
    .at_each_relay(),
    Case::new(
        "connection to the relay reset five times while it is written to",
        "publishes again each time, same process",
        connection_reset,
    )
    .at_each_relay(),
    Case::new(
        "publishing process killed (SIGKILL), viewers renew their leases",
        "publishes again; the service manager (here: the test) starts the process anew",
        publisher_killed,
    ),
    Case::new(
        "camera not there at start, plugged in after 5 s",
        "named in the state; pictures by itself",
        camera_missing,
    ),
    Case::new(
        "camera lost while streaming, back after 3 s",
        "pictures again by itself",
        camera_lost,
    ),
    Case::new(
        "wrong publisher password, then the right one",
        "named in state and log; publishes with the right one",
        wrong_password,
    )
    .at_each_relay(),
    Case::new(
        "payload of binary data",
        "refused and counted; the next start is obeyed",
        binary_payload,
    ),
    Case::new(
        "payload of 1 MB, of other JSON, none, `START `",
        "refused and counted, or not even delivered (1 MB); `START ` starts",
        odd_payloads,
    ),
    Case::new(
        "10 starts, then 10 pairs of stop and start without a pause",
        "streams, once",
        duplicates,
    ),
    Case::new(
        "viewer gone without a stop (lease of 3 s)",
        "stops when the lease ends; time from the start",
        viewer_gone,
    ),
    Case::new("two viewers, one stops", "the other sees on", two_viewers),
    Case::new(
        "retained start at the robot's boot",
        "refused",
        retained_start,
    ),
    Case::new(
        "start without a credential, by HTTP and by MQTT",
        "refused",
        no_credential,
    )
    .not_by_scripts(),
    Case::new("look for passwords in `ps`", "none", passwords_in_ps),
    Case::new(
        "GST_DEBUG=4 for 20 s",
        "streams; no password in the log",
        much_log,
    ),
    Case::new(
        "control process killed while streaming, restarted, then stop",
        "stops",
        control_killed,
    ),
    Case::new("after a stop", "no zombie process", no_zombies),
    Case::new(
        "start while the robot is off",
        "the answer says so",
        robot_off,
    )
    .not_by_scripts(),
    Case::new(
        "start while the broker is down",
        "503 with the reason within 5 s; time until the answer",
        broker_down,
    )
    .not_by_scripts(),
    Case::new(
        "way to the broker dies without a word, then stop",
        "stops within 30 s",
        silent_path,
    ),
    Case::new(
        "encoder without key frames; a viewer waits, another one joins",
        "both have a picture within 3 s; the later one's time",
        no_key_frames,
    )
    .at_each_relay(),
];

fn since(begin: Instant, at: Instant) -> Duration {
    at.saturating_duration_since(begin)
}

fn broker_down_at_start(setup: &Setup) -> Result<Found> {
    let mut system = System::without_robot(setup, Line::default())?;
    // Past the link, which would take the connection.
    system.line.broker = Some(("127.0.0.1", system.testbed.broker.port()));
    system.testbed.broker.kill();
    system.power_on()?;
    system.misses_broker(Mark::default())?;
    pass(setup.lasts(5));
    system.is_still_running()?;
    let mark = system.mark();
    system.testbed.broker.restart()?;
    let back = Instant::now();
    let listening = system.wait_listening(mark)?;
    system.go_live()?;
    Found::within(BROKER_BACK, since(back, listening))
}

fn broker_restarted_while_streaming(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    let reader = Reader::start(&system.testbed.relay.viewer_url(), None)?;
    system.go_live()?;
    reader.wait_frames(30)?;
    let (before, mark) = (reader.frames().mark(), system.mark());
    system.testbed.broker.stop()?;
    system.testbed.broker.restart()?;
    let back = Instant::now();
    let listening = system.wait_listening(mark)?;
    reader.wait_frames(reader.frames().mark() + 30)?;
    let frames = reader.frames().times(before, |_| true);
    let pause = frames.windows(2).map(|pair| pair[1] - pair[0]).max();
    ensure!(pause < Some(PAUSE), "a pause of {pause:?} in the stream");
    system.stop()?;
    Found::within(BROKER_BACK, since(back, listening))
}

fn broker_restarted_while_idle(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    let mark = system.mark();
    system.testbed.broker.stop()?;
    system.testbed.broker.restart()?;
    let back = Instant::now();
    let live = system.renew_until("start", mark, Event::Published)?;
    Found::within(BROKER_BACK, since(back, live))
}

fn broker_away(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    let mark = system.mark();
    system.testbed.broker.stop()?;
    system.misses_broker(mark)?;
    pass(setup.lasts(40));
    system.is_still_running()?;
    system.testbed.broker.restart()?;
    let back = Instant::now();
    let live = system.renew_until("start", mark, Event::Published)?;
    Found::within(BROKER_BACK, since(back, live))
}

/// Cuts the robot off from the broker.
fn cut(system: &mut System) -> Result<()> {
    let mark = system.mark();
    system.proxy.cut();
    system.misses_broker(mark)
}

fn stop_while_away(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    system.go_live()?;
    cut(&mut system)?;
    let mark = system.mark();
    system.send("stop")?;
    pass(setup.lasts(2));
    system.proxy.restore();
    let back = Instant::now();
    let stopped = system.wait_relay(mark, Event::Unpublished)?;
    Found::within(BROKER_BACK, since(back, stopped))
}

fn start_while_away(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    cut(&mut system)?;
    let mark = system.mark();
    let expiring = Properties {
        expiry: Some(Duration::from_secs(30)),
        ..Properties::default()
    };
    system.testbed.observer.send_with("start", expiring)?;
    pass(setup.lasts(2));
    system.proxy.restore();
    let back = Instant::now();
    let live = system.wait_live(mark)?;
    Found::within(BROKER_BACK, since(back, live))
}

fn expired_start(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    cut(&mut system)?;
    let mark = system.mark();
    let expiring = Properties {
        expiry: Some(Duration::from_secs(1)),
        ..Properties::default()
    };
    system.testbed.observer.send_with("start", expiring)?;
    pass(Duration::from_secs(3));
    system.proxy.restore();
    system.wait_listening(mark)?;
    // What was sent before it has been obeyed by then.
    let last = Properties {
        correlation: Some(b"the last one".to_vec()),
        ..Properties::default()
    };
    system.testbed.observer.send_with("stop", last)?;
    system.wait_where(mark, "the stop obeyed", |state| {
        state.last_command_id.as_deref() == Some("the last one")
    })?;
    system.never(mark, Event::Published, Duration::ZERO)?;
    Found::well("")
}

fn relay_killed(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    system.go_live()?;
    system.testbed.relay.kill();
    pass(setup.lasts(3));
    let mark = system.mark();
    system.testbed.relay.restart()?;
    let back = Instant::now();
    let live = system.wait_live(mark)?;
    system.is_still_running()?;
    system.stop()?;
    Found::after(since(back, live))
}

fn relay_absent(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    system.testbed.relay.kill();
    let mark = system.mark();
    system.send("start")?;
    pass(setup.lasts(10));
    system.testbed.relay.restart()?;
    let back = Instant::now();
    let live = system.wait_live(mark)?;
    system.stop()?;
    Found::after(since(back, live))
}

/// A system whose pictures tell their age, and a viewer who looks at them.
struct Stamped {
    system: System,
    reader: StampReader,
    _camera: StampedCamera,
    zero: Instant,
}

impl Stamped {
    /// Streaming, with fresh pictures.
    fn start(setup: &Setup) -> Result<Self> {
        let zero = Instant::now();
        let camera = StampedCamera::start(zero)?;
        let line = Line {
            camera: camera.source(),
            valve: "standby=warm",
            ..Line::default()
        };
        let system = System::start_with(setup, line)?;
        let url = system.testbed.relay.viewer_url();
        let reader = StampReader::start(&url, zero, Journal::default())?;
        system.go_live()?;
        let mut stamped = Stamped {
            system,
            reader,
            _camera: camera,
            zero,
        };
        stamped.wait_fresh(Instant::now())?;
        Ok(stamped)
    }

    fn wait_fresh(&mut self, since: Instant) -> Result<()> {
        let since = since.duration_since(self.zero).as_millis() as u32;
        let zero = self.zero;
        self.system
            .wait_fresh(&mut self.reader, since, |url, arrivals| {
                StampReader::start(&url, zero, arrivals)
            })
    }
}

fn relay_stalls(setup: &Setup) -> Result<Found> {
    let mut stamped = Stamped::start(setup)?;
    stamped.system.testbed.relay.freeze();
    pass(setup.lasts(8));
    stamped.system.testbed.relay.thaw();
    let back = Instant::now();
    stamped.wait_fresh(back)?;
    Found::after(back.elapsed())
}

fn connection_reset(setup: &Setup) -> Result<Found> {
    let mut system = System::without_robot(setup, Line::default())?;
    let link = Proxy::start(system.testbed.relay.rtmp_port())?;
    system.line.relay = Some(("127.0.0.1", link.port()));
    system.power_on()?;
    system.wait_listening(Mark::default())?;
    system.go_live()?;
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let mark = system.mark();
        link.cut();
        link.restore();
        let cut = Instant::now();
        let live = system.wait_live(mark)?;
        longest = longest.max(since(cut, live));
    }
    system.is_still_running()?;
    system.stop()?;
    Found::after(longest)
}

fn publisher_killed(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    // The scripts know of no leases.
    let renewal = match system.is_ours() {
        true => r#"{"command":"start","id":"viewer","lease":30}"#,
        false => "start",
    };
    system.go_live()?;
    let mark = system.mark();
    let killed = match system.robot()? {
        Machine::Ours(robot) => {
            robot.kill();
            let killed = Instant::now();
            system.power_on()?;
            killed
        }
        // Their service manager sees the one that lives.
        Machine::Scripts(subscriber) => {
            for id in children(subscriber.process.id())? {
                kill(id);
            }
            Instant::now()
        }
    };
    let live = system.renew_until(renewal, mark, Event::Published)?;
    Found::after(since(killed, live))
}

fn camera_missing(setup: &Setup) -> Result<Found> {
    let mut camera = Camera::test_picture()?;
    camera.lose()?;
    let system = System::start_with(
        setup,
        Line {
            camera: camera.line(),
            environment: LENIENT,
            ..Line::default()
        },
    )?;
    let mark = system.mark();
    let reader = Reader::start(&system.testbed.relay.viewer_url(), None)?;
    system.wait_relay(mark, Event::Reader)?;
    system.send("start")?;
    if system.is_ours() {
        system.wait_where(mark, "the camera named", |state| state.last_error.is_some())?;
    }
    pass(setup.lasts(5));
    camera.bring_back()?;
    let back = Instant::now();
    let picture = reader.wait_frames(1)?;
    Found::after(since(back, picture))
}

fn camera_lost(setup: &Setup) -> Result<Found> {
    let mut camera = Camera::test_picture()?;
    let system = System::start_with(
        setup,
        Line {
            camera: camera.line(),
            environment: LENIENT,
            ..Line::default()
        },
    )?;
    let reader = Reader::start(&system.testbed.relay.viewer_url(), None)?;
    system.go_live()?;
    reader.wait_frames(30)?;
    camera.lose()?;
    pass(setup.lasts(3));
    let before = reader.frames().mark();
    camera.bring_back()?;
    let back = Instant::now();
    // More than what may have been on its way.
    let picture = reader.wait_frames(before + 10)?;
    Found::after(since(back, picture))
}

fn wrong_password(setup: &Setup) -> Result<Found> {
    let mut system = System::without_robot(setup, Line::default())?;
    system.testbed.write_publisher_password("not-the-one")?;
    let right = system.testbed.relay.publisher.password.clone();
    if !system.is_ours() {
        system.testbed.relay.publisher.password = "not-the-one".into();
    }
    system.power_on()?;
    system.wait_listening(Mark::default())?;
    let mark = system.mark();
    system.send("start")?;
    let state = system.wait_where(mark, "refused", |state| state.state == StreamState::Refused)?;
    let reason = state.publish.and_then(|publish| publish.reason);
    let reason = reason.context("refused without a reason")?;
    system.wait_log(mark, "the reason in the log", |line| line.contains(&reason))?;
    system.testbed.write_publisher_password(&right)?;
    let mended = Instant::now();
    let live = system.wait_live(mark)?;
    Found::after(since(mended, live))
}

fn binary_payload(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    let mark = system.mark();
    let binary = [0xff, 0xfe, 0, 0x80, b'\n'];
    system
        .testbed
        .observer
        .send_with(binary, Properties::default())?;
    if system.is_ours() {
        system.wait_where(mark, "one refused command", |state| {
            state.refused_commands == 1
        })?;
    }
    system.go_live()?;
    system.is_still_running()?;
    Found::well("")
}

fn odd_payloads(setup: &Setup) -> Result<Found> {
    let broker = Mosquitto::start_with(Options {
        any_size: true,
        ..Options::default()
    })?;
    let mut system = System::on(broker, setup, relay::Options::default(), Line::default())?;
    system.power_on()?;
    system.wait_listening(Mark::default())?;
    let mark = system.mark();
    let huge = "start ".repeat(1_000_000 / 6);
    for payload in [huge.as_str(), r#"{"light":"on"}"#, ""] {
        system.send(payload)?;
    }
    if system.is_ours() {
        // The first one the broker keeps: the robot has told it what it takes. The last one is no
        // command: it clears what was retained.
        system.wait_where(mark, "one refused command", |state| {
            state.refused_commands == 1
        })?;
        system.never(mark, Event::Published, Duration::ZERO)?;
        system.send("START ")?;
        system.wait_live(mark)?;
    } else {
        system.never(mark, Event::Published, NOTHING)?;
        system.go_live()?;
    }
    Found::well("")
}

fn duplicates(setup: &Setup) -> Result<Found> {
    let system = System::start(setup)?;
    let mark = system.mark();
    for _ in 0..10 {
        system.send("start")?;
    }
    system.wait_live(mark)?;
    for _ in 0..10 {
        system.send("stop")?;
        system.send("start")?;
    }
    system.wait_published_now(mark)?;
    if system.is_ours() {
        system.testbed.wait_now(StreamState::Live);
    }
    let reader = Reader::start(&system.testbed.relay.viewer_url(), None)?;
    reader.wait_frames(30)?;
    system.stop()?;
    let events = system.testbed.relay.events().since(mark.events);
    let count = |wanted| events.iter().filter(|event| **event == wanted).count();
    let (came, went) = (count(Event::Published), count(Event::Unpublished));
    ensure!(came == went, "published {came} times, unpublished {went}");
    Found::well("")
}

fn viewer_gone(setup: &Setup) -> Result<Found> {
    let system = System::start(setup)?;
    let mark = system.mark();
    match system.is_ours() {
        true => drop(
            system
                .testbed
                .bridge
                .post("/stream/start?viewer=phone&lease=3")?,
        ),
        false => drop(system.send("start")?),
    }
    let live = system.wait_live(mark)?;
    let gone = system.wait_relay(mark, Event::Unpublished)?;
    Found::within(BROKER_BACK, since(live, gone))
}

fn two_viewers(setup: &Setup) -> Result<Found> {
    let system = System::start(setup)?;
    let reader = Reader::start(&system.testbed.relay.viewer_url(), None)?;
    let mark = system.mark();
    if system.is_ours() {
        let bridge = &system.testbed.bridge;
        bridge.post("/stream/start?viewer=one&lease=60")?;
        bridge.post("/stream/start?viewer=two&lease=60")?;
        system.wait_live(mark)?;
        bridge.post("/stream/stop?viewer=one")?;
        let left = |state: &droidrelay_wire::RobotState| state.viewers == ["two"];
        system.wait_where(mark, "one viewer left", left)?;
    } else {
        system.send("start")?;
        system.send("start")?;
        system.wait_live(mark)?;
        system.send("stop")?;
    }
    reader.wait_frames(reader.frames().mark() + 60)?;
    system.never(mark, Event::Unpublished, Duration::ZERO)?;
    Found::well("")
}

fn retained_start(setup: &Setup) -> Result<Found> {
    let mut system = System::without_robot(setup, Line::default())?;
    system.testbed.observer.retain("start")?;
    let mark = system.mark();
    system.power_on()?;
    system.wait_listening(mark)?;
    if system.is_ours() {
        let refused = |state: &droidrelay_wire::RobotState| state.refused_commands > 0;
        system.wait_where(mark, "a refused command", refused)?;
    }
    system.never(mark, Event::Published, NOTHING)?;
    system.testbed.observer.clear(TOPIC)?;
    Found::well("")
}

fn no_credential(setup: &Setup) -> Result<Found> {
    let system = System::start(setup)?;
    let mark = system.mark();
    for authorization in ["", "Basic eDp5"] {
        let bridge = &system.testbed.bridge;
        let answer = bridge.request("POST", "/stream/start", authorization)?;
        ensure!(answer.status == 401, "status {}", answer.status);
    }
    let port = system.testbed.broker.port().to_string();
    let sent = Command::new(program_of("mosquitto_pub", "mosquitto-clients")?)
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-q",
            "1",
            "-t",
            TOPIC,
            "-m",
            "start",
        ])
        .output()?;
    ensure!(!sent.status.success(), "the broker takes it");
    system.never(mark, Event::Published, NOTHING)?;
    Found::well("")
}

fn passwords_in_ps(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    system.go_live()?;
    let robot = system.robot()?.id();
    let testbed = &system.testbed;
    let mut shown = Vec::new();
    for id in family(robot)?.into_iter().chain([testbed.bridge.id()]) {
        let line = fs::read(format!("/proc/{id}/cmdline"))?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let secrets = [
            &testbed.relay.publisher.password,
            &testbed.relay.viewer.password,
            &testbed.broker.robot.password,
            &testbed.broker.bridge.password,
            &testbed.bridge.user.password,
        ];
        if secrets.iter().any(|secret| line.contains(secret.as_str())) {
            let name = line.split_whitespace().next().unwrap_or_default();
            shown.push(name.to_owned());
        }
    }
    ensure!(shown.is_empty(), "in {}", shown.join(" and "));
    Found::well("")
}

fn much_log(setup: &Setup) -> Result<Found> {
    let system = System::start_with(
        setup,
        Line {
            environment: &[("GST_DEBUG", "4")],
            ..Line::default()
        },
    )?;
    let reader = Reader::start(&system.testbed.relay.viewer_url(), None)?;
    let live = system.go_live()?;
    let end = live + setup.lasts(20);
    while Instant::now() < end {
        reader.wait_frames(reader.frames().mark() + 30)?;
    }
    system.stop()?;
    let mut system = system;
    let secret = system.testbed.relay.publisher.password.clone();
    let told = system.robot()?.text();
    let lines = told.lines().filter(|line| line.contains(&secret)).count();
    ensure!(lines == 0, "the password in {lines} lines of the log");
    Found::well("")
}

fn control_killed(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    if system.is_ours() {
        let mark = system.mark();
        system.testbed.bridge.post("/stream/start")?;
        system.wait_live(mark)?;
        system.testbed.bridge.kill();
        system.testbed.bridge = Bridge::start(&system.testbed.broker, &system.testbed.relay)?;
    } else {
        system.go_live()?;
        let Machine::Scripts(subscriber) = system.robot()? else {
            bail!("no script");
        };
        subscriber.kill()?;
        // Not dropped: what it has started must not go with it.
        let orphan = system.replace_robot()?;
        system.wait_listening(Mark::default())?;
        let mark = system.mark();
        system.send("stop")?;
        let stopped = system.wait_relay(mark, Event::Unpublished);
        drop(orphan);
        stopped?;
        return Found::well("");
    }
    let mark = system.mark();
    let asked = Instant::now();
    system.testbed.bridge.post("/stream/stop")?;
    let stopped = system.wait_relay(mark, Event::Unpublished)?;
    Found::after(since(asked, stopped))
}

fn no_zombies(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    for _ in 0..3 {
        system.go_live()?;
        system.stop()?;
    }
    let id = system.robot()?.id();
    // By then all that was ended has come to its end.
    pass(NOTHING);
    let zombies = zombies(id)?;
    ensure!(zombies == 0, "{zombies}");
    Found::well("")
}

fn robot_off(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    let mark = system.testbed.observer.seen().mark();
    system.robot()?.end()?;
    let observer = &system.testbed.observer;
    observer.wait_available(mark, droidrelay_wire::words::topics::OFFLINE)?;
    // The bridge hears it at the same time, by a connection of its own.
    let says_so = || {
        let answer = system.testbed.bridge.post("/stream/start").ok()?;
        let note = answer["note"].as_str()?.to_owned();
        note.contains("offline").then_some(note)
    };
    let note = poll(DEADLINE, says_so).context("the answer does not say so")?;
    let (note, _) = note.split_once(';').unwrap_or((&note, ""));
    Found::well(format!("\"{note}\""))
}

fn broker_down(setup: &Setup) -> Result<Found> {
    let mut system = System::start(setup)?;
    system.testbed.broker.kill();
    let asked = Instant::now();
    let bridge = &system.testbed.bridge;
    let answer = bridge.request("POST", "/stream/start", &bridge.user.basic())?;
    let took = asked.elapsed();
    ensure!(
        answer.status == 503 && answer.body.contains("broker"),
        "{}: {}",
        answer.status,
        answer.body
    );
    Found::within(BROKER_BACK, took)
}

fn silent_path(setup: &Setup) -> Result<Found> {
    let place = Namespace::new("faults")?;
    let setup = *setup;
    place.run(move |network| {
        let broker = Mosquitto::start_with(Options {
            everywhere: true,
            ..Options::default()
        })?;
        let port = broker.port();
        let line = Line {
            broker: Some((FAR, port)),
            ..Line::default()
        };
        let mut system = System::on(broker, &setup, relay::Options::default(), line)?;
        system.power_on()?;
        system.wait_listening(Mark::default())?;
        system.go_live()?;
        let mark = system.mark();
        network.forget_connections(port)?;
        let lost = Instant::now();
        system.send("stop")?;
        let patience = SILENCE_NOTICED + DEADLINE;
        let events = system.testbed.relay.events();
        let stopped = events.try_wait(mark.events, patience, |event| *event == Event::Unpublished);
        let (stopped, _) = stopped.context("deaf for 60 s")?;
        Found::within(SILENCE_NOTICED, since(lost, stopped))
    })
}

fn no_key_frames(setup: &Setup) -> Result<Found> {
    const SOON: Duration = Duration::from_secs(3);
    let system = System::start_with(
        setup,
        Line {
            encoder: NO_KEY_FRAMES,
            ..Line::default()
        },
    )?;
    let url = system.testbed.relay.viewer_url();
    let mut mark = system.mark();
    let first = Reader::start(&url, None)?;
    system.wait_relay(mark, Event::Reader)?;
    mark = system.mark();
    let began = system.send("start")?;
    let waited = since(began, first.wait_frames(1)?);
    system.wait_live(mark)?;
    // Past the time in which a session asks for key frames by itself.
    first.wait_frames(90)?;
    mark = system.mark();
    let second = Reader::start(&url, None)?;
    system.wait_relay(mark, Event::Reader)?;
    if system.is_ours() {
        // As the hook of the server does for each viewer that joins.
        system.send("keyframe")?;
    }
    let joined = Instant::now();
    let joined = since(joined, second.wait_frames(1)?);
    Found::within(SOON, waited.max(joined))
}
