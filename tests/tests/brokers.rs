// SPDX-License-Identifier: MPL-2.0

//! A robot at brokers by others: it is there, obeys, hears a stop that was sent while it was away,
//! and is known to be gone when it is killed. docs/4-reference/brokers.md says what was seen.
//! RTMP servers beside nginx-rtmp and MediaMTX: each takes picture and sound, and hands them on.

use std::{
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use droidrelay_testkit::{
    certs::Login,
    clients::observer::{Observer, Seen},
    journal::DEADLINE,
    net::proxy::Proxy,
    process::{Process, poll, program_of},
    robot::{Robot, Runner},
    servers::{
        mosquitto::{Mosquitto, TOPIC},
        other_broker::{Kind, OtherBroker},
        others::{Other, OtherServer},
    },
    testbed::TINY_PICTURE,
};
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

/// From the robot's end to its being shown as offline. The will is delayed by a second.
const GONE: Duration = Duration::from_secs(10);

/// What a broker does with the last will of a robot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Will {
    /// Tells it, and keeps it for those who come later.
    Kept,
    /// Tells it, and keeps what was there before.
    Told,
}

fn serves_a_robot(kind: Kind, version: &str, will: Will) {
    let Some(broker) = OtherBroker::start(kind).unwrap() else {
        return;
    };
    let somebody = Login::generate("somebody").unwrap();
    let place = Place {
        name: &format!("{kind:?}"),
        port: broker.port(),
        somebody: &somebody,
    };
    let valve = |port| format!("mqttvalve broker=mqtt://127.0.0.1:{port} topic={TOPIC}");
    place.serves(valve, version, will);
}

/// A broker where `somebody` may do anything.
struct Place<'a> {
    name: &'a str,
    port: u16,
    somebody: &'a Login,
}

impl Place<'_> {
    /// `valve` is one that connects by this port.
    fn serves(&self, valve: impl Fn(u16) -> String, version: &str, will: Will) {
        let Place {
            name,
            port,
            somebody,
        } = *self;
        let url = format!("mqtt://127.0.0.1:{port}");
        let observer = Observer::start_at(&url, somebody, &[]).unwrap();
        let seen = observer.seen();
        let link = Proxy::start(port).unwrap();
        let line = format!(
            "{TINY_PICTURE} ! {} ! fakesink async=false",
            valve(link.port())
        );
        let debug = [("GST_DEBUG", "mqttvalve:4"), ("GST_DEBUG_NO_COLOR", "1")];
        let mut robot = Robot::start_with(Runner::GstLaunch, &line, &debug).unwrap();
        observer.wait_available(0, ONLINE).unwrap();
        let connected = format!("with MQTT {version} and subscribed");
        let wait_session = |mark| {
            let wanted = |line: &String| line.contains(&connected);
            robot.log().wait(mark, &connected, wanted).unwrap();
        };
        wait_session(0);

        let mark = seen.mark();
        observer.send("start").unwrap();
        observer.wait_state(mark, StreamState::Live).unwrap();
        let mark = seen.mark();
        observer.send("stop").unwrap();
        observer.wait_state(mark, StreamState::Idle).unwrap();

        // What was sent while it was away arrives: a stop, and a start that says how young it is.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let start = format!("{{\"command\":\"start\",\"sent\":{}}}", now.as_secs());
        for (command, state) in [(&*start, StreamState::Live), ("stop", StreamState::Idle)] {
            let mark = seen.mark();
            link.cut();
            observer.wait_available(mark, OFFLINE).unwrap();
            observer.send(command).unwrap();
            let (mark, log) = (seen.mark(), robot.log().mark());
            link.restore();
            observer.wait_state(mark, state).unwrap();
            wait_session(log);
        }

        // Its last will, and who comes later sees it.
        let mark = seen.mark();
        let killed = Instant::now();
        robot.kill();
        let gone = observer.wait_available(mark, OFFLINE).unwrap() - killed;
        eprintln!("{name}: MQTT {version}; a killed robot is offline after {gone:?}");
        assert!(gone < GONE, "{gone:?}");
        let kept = match will {
            Will::Kept => OFFLINE,
            Will::Told => ONLINE,
        };
        // Artemis tells it to those who are there a moment before it keeps it.
        let told = poll(DEADLINE, || {
            let late = Observer::start_at(&url, somebody, &[]).ok()?;
            late.wait_state(0, StreamState::Idle).ok()?;
            let is_told = |seen: &Seen| seen.is_available(OFFLINE) || seen.is_available(ONLINE);
            late.seen().wait(0, "the availability", is_told).ok()?;
            late.seen().position(0, |seen| seen.is_available(kept))
        });
        assert!(told.is_some(), "who comes later is not told {kept}");
    }
}

#[test]
fn aedes_which_speaks_mqtt_3_1_1_only() {
    serves_a_robot(Kind::Aedes, "3.1.1", Will::Kept);
}

#[test]
fn mochi_which_speaks_mqtt_5() {
    serves_a_robot(Kind::Mochi, "5", Will::Kept);
}

#[test]
fn hivemq_which_speaks_mqtt_5() {
    serves_a_robot(Kind::HiveMq, "5", Will::Kept);
}

#[test]
fn artemis_which_holds_wills_back() {
    serves_a_robot(Kind::Artemis, "5", Will::Kept);
}

#[test]
fn moquette_which_speaks_mqtt_3_1_1_only() {
    serves_a_robot(Kind::Moquette, "3.1.1", Will::Told);
}

#[test]
fn mosquitto_as_the_kit_has_it() {
    let broker = Mosquitto::start().unwrap();
    let place = Place {
        name: "Mosquitto",
        port: broker.port(),
        somebody: &broker.operator,
    };
    place.serves(|port| broker.valve_by(port), "5", Will::Kept);
}

const SOUND: &str = "audiotestsrc is-live=true ! audioconvert ! avenc_aac ! aacparse ! out.audio";
const PICTURE: &str = "videotestsrc is-live=true ! video/x-raw,width=160,height=90,framerate=30/1";

/// Codecs of what a reader gets, in alphabetical order; None until there is a stream.
fn codecs(url: &str) -> Option<Vec<String>> {
    let mut command = Command::new(program_of("ffprobe", "ffmpeg").unwrap());
    command.args(
        "-v error -rw_timeout 5000000 -show_entries stream=codec_name -of csv=p=0".split(' '),
    );
    command.arg(url);
    let mut process = Process::spawn("ffprobe", &mut command).unwrap();
    process.wait(DEADLINE);
    let lines = process.log().all();
    let words = lines.iter().map(|line| line.trim_end_matches(','));
    let mut codecs: Vec<_> = words
        .filter(|line| !line.contains(' ') && !line.is_empty())
        .map(str::to_owned)
        .collect();
    codecs.sort_unstable();
    (!codecs.is_empty()).then_some(codecs)
}

/// A stream of `encoder` comes as `codec`, with sound, at first and after a restart of the robot.
fn is_published(kind: Other, encoder: &str, codec: &str) {
    let server = OtherServer::start(kind).unwrap();
    for name in ["one", "two"] {
        let url = server.url(name);
        let line = format!(
            "{PICTURE} ! {encoder} ! rtmpauthsink name=out location={url} user=u password=p {SOUND}"
        );
        let mut robot = Robot::start(Runner::GstLaunch, &line).unwrap();
        let wanted = ["aac", codec];
        let seen = poll(DEADLINE, || codecs(&url).filter(|codecs| *codecs == wanted));
        assert!(
            seen.is_some(),
            "{kind}: {:?}\n{}\n{}",
            codecs(&url),
            robot.text(),
            server.text()
        );
        robot.end().unwrap();
    }
}

#[test]
fn h264_and_aac_are_taken_by_other_servers() {
    for kind in Other::ALL {
        if !kind.notice_if_absent() {
            let encoder = "x264enc tune=zerolatency key-int-max=30";
            is_published(kind, encoder, "h264");
        }
    }
}
