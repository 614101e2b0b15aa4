// SPDX-License-Identifier: MPL-2.0

//! The launch files as they stand in `pipelines/`: each is checked, and each is run in the way in
//! which its own comments say that it can be tried without its hardware.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use droidrelay_testkit::{
    clients::{
        observer::Seen,
        reader::{Reader, packets},
    },
    journal::DEADLINE,
    process::{Process, poll, program_of, text_of},
    robot::{Plugins, Robot},
    servers::{
        mosquitto::TOPIC,
        relay::{Event, Kind, PATH},
    },
    testbed::Testbed,
};
use droidrelay_wire::{StreamState, words::topics::ONLINE};

/// A launch file.
struct Line {
    path: PathBuf,
    text: String,
}

/// Name and value for `--set`.
type Setting = (String, String);

impl Line {
    fn all() -> Vec<Self> {
        let mut paths: Vec<_> = fs::read_dir(folder())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "launch"))
            .collect();
        paths.sort_unstable();
        paths.into_iter().map(Line::read).collect()
    }

    fn named(name: &str) -> Self {
        Line::read(folder().join(name).with_extension("launch"))
    }

    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        Line { path, text }
    }

    fn name(&self) -> &str {
        self.path.file_name().unwrap().to_str().unwrap()
    }

    fn comments(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| line.starts_with('#'))
    }

    /// What the comments say to set where the hardware is not there.
    fn substitutes(&self) -> Vec<Setting> {
        self.comments()
            .filter_map(|line| line.strip_prefix("#   --set "))
            .map(|setting| {
                let (name, value) = setting.split_once('=').expect("--set NAME=VALUE");
                (name.to_owned(), value.trim_matches('\'').to_owned())
            })
            .collect()
    }

    /// What `droidrelay check` holds against it.
    fn faults(&self, plugins: &Plugins, settings: &[Setting]) -> Option<String> {
        let mut command = plugins.droidrelay().unwrap();
        command.arg("check").arg(&self.path);
        for (name, value) in settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        let output = command.output().unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines"))
}

/// What is not here is said past the test harness's capture.
#[test]
fn each_line_is_right_or_lacks_only_an_element_that_its_comments_name() {
    let plugins = Plugins::new().unwrap();
    for line in Line::all() {
        let (name, all) = (line.name(), line.substitutes());
        assert_eq!(line.faults(&plugins, &all), None, "{name} with {all:?}");
        // As it stands, and with all substitutes but one: that shows the next missing element.
        let one_less = (0..all.len()).map(|without| {
            let mut settings = all.clone();
            settings.remove(without);
            settings
        });
        let mut missing = Vec::new();
        for settings in [Vec::new()].into_iter().chain(one_less) {
            let Some(fault) = line.faults(&plugins, &settings) else {
                continue;
            };
            let element = fault
                .split_once("no element \"")
                .and_then(|(_, rest)| rest.split('"').next())
                .unwrap_or_else(|| panic!("{fault}"));
            let named = line.comments().any(|comment| comment.contains(element));
            assert!(named, "{name} does not say that it needs {element}");
            if !missing.contains(&element.to_owned()) {
                missing.push(element.to_owned());
            }
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let note = format!("NOTE {name}: needs {missing}, not here; run with its substitutes");
            let _ = writeln!(io::stderr(), "{note}");
        }
    }
}

#[test]
fn each_element_that_speaks_tls_takes_the_ca_file_and_without_one_the_systems_store() {
    for line in Line::all() {
        let code: Vec<&str> = line
            .text
            .lines()
            .filter(|it| !it.starts_with('#'))
            .collect();
        let is_element =
            |it: &&&str| matches!(it.split(' ').next(), Some("mqttvalve" | "rtmpauthsink"));
        let trusts = |it: &&&str| it.trim() == r#"ca-file=\"${CA_FILE:-}\""#;
        let (elements, trusting) = (
            code.iter().filter(is_element).count(),
            code.iter().filter(trusts).count(),
        );
        assert!(elements > 1, "{}", line.name());
        assert_eq!(trusting, elements, "{}", line.name());
    }
}

/// Where the second camera is published.
const SECOND: &str = "live/second";

struct Scene {
    // Goes before what it depends on.
    robot: Robot,
    line: Line,
    testbed: Testbed,
}

impl Scene {
    /// The line runs and is idle. `settings` win over what its comments say to set.
    fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let testbed = Testbed::start(Kind::Nginx).unwrap();
        let line = Line::named(name);
        let robot = run(&testbed, &line, settings);
        Scene {
            robot,
            line,
            testbed,
        }
    }

    /// Opens it, calls `look`, closes it.
    fn session(&self, look: impl FnOnce(&Testbed)) {
        let Scene { testbed, robot, .. } = self;
        let (seen, events) = (
            testbed.observer.seen().mark(),
            testbed.relay.events().mark(),
        );
        testbed.observer.send("start").unwrap();
        let live = testbed.observer.wait_state(seen, StreamState::Live);
        live.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        look(testbed);
        testbed.observer.send("stop").unwrap();
        testbed.wait_relay(events, Event::Unpublished);
        testbed.wait_now(StreamState::Idle);
    }

    /// The standby that the file asks for is the one that there is, and nothing had to be begun
    /// anew.
    fn end(mut self) {
        let (_, asked) = self.line.text.split_once("${STANDBY:-").unwrap();
        let (asked, _) = asked.split_once('}').unwrap();
        let seen = self.testbed.observer.seen().all();
        let state = seen.iter().rev().find_map(Seen::state).unwrap();
        assert_eq!(state.standby.as_str(), asked, "{}", self.robot.text());
        assert_eq!(state.last_error, None, "{}", self.robot.text());
        self.robot.end().unwrap();
        let text = self.robot.text();
        assert!(!text.contains("failure"), "{text}");
    }
}

/// `droidrelay run` with the line, small; back when it is idle.
fn run(testbed: &Testbed, line: &Line, settings: &[(&str, &str)]) -> Robot {
    let mark = testbed.observer.seen().mark();
    let robot = launch(testbed, line, settings, "");
    testbed
        .observer
        .wait_available(mark, ONLINE)
        .and_then(|_| testbed.observer.wait_state(mark, StreamState::Idle))
        .unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
    // That it is online and idle is said by the first valve that is.
    let valves = line.text.lines().filter(|line| *line == "mqttvalve");
    testbed
        .broker
        .wait_subscribers(valves.count(), |filter| filter == TOPIC)
        .unwrap();
    robot
}

/// As [`run`], with further options; at once.
fn launch(testbed: &Testbed, line: &Line, settings: &[(&str, &str)], options: &str) -> Robot {
    launch_in(testbed, line, settings, options, &[])
}

/// As [`launch`], with more of an environment; a setting that is empty is not made.
fn launch_in(
    testbed: &Testbed,
    line: &Line,
    settings: &[(&str, &str)],
    options: &str,
    more: &[(&str, &str)],
) -> Robot {
    let is_set = |name: &str| settings.iter().any(|&(other, _)| other == name);
    let others = line.substitutes().into_iter();
    let others = others.filter(|(name, _)| !is_set(name));
    let settings = settings
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|&(name, value)| (name.into(), value.into()));
    let mut arguments = vec![line.path.clone().into_os_string()];
    for (name, value) in settings.chain(others) {
        arguments.extend(["--set".into(), format!("{name}={value}").into()]);
    }
    let location = testbed.relay.publish_url();
    let environment = [
        ("BROKER", testbed.broker.url()),
        ("MQTT_USER", testbed.broker.robot.user.clone()),
        (
            "MQTT_PASSWORD_FILE",
            text_of(&testbed.broker.robot_password_file())
                .unwrap()
                .into(),
        ),
        ("LOCATION_2", location.replace(PATH, SECOND)),
        ("LOCATION", location),
        ("RTMP_USER", testbed.relay.publisher.user.clone()),
        (
            "RTMP_PASSWORD_FILE",
            text_of(&testbed.publisher_password_file()).unwrap().into(),
        ),
        ("WIDTH", "320".into()),
        ("HEIGHT", "180".into()),
    ];
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(more.iter().copied())
        .collect();
    arguments.extend(options.split_whitespace().map(OsString::from));
    Robot::run(arguments, &environment).unwrap()
}

/// Somebody sees it, and what they see is what browsers play.
fn assert_seen(testbed: &Testbed, url: &str) {
    let reader = Reader::start(url, None).unwrap();
    if let Err(err) = reader.wait_frames(20) {
        let events = testbed.relay.events().all();
        panic!("{err:#}; {:?}; {events:?}", testbed.observer.seen().last());
    }
    assert_eq!(reader.complaints(), [""; 0]);
    drop(reader);
    let mut command = Command::new(program_of("ffprobe", "ffmpeg").unwrap());
    command.args("-v error -probesize 32 -analyzeduration 0 -select_streams v".split(' '));
    command.args(["-show_entries", "stream=codec_name,pix_fmt"]);
    command.args(["-of", "csv=p=0", url]);
    let process = Process::spawn("ffprobe", &mut command).unwrap();
    // With the j, JPEG's full range of brightness.
    let is_played = |line: &String| ["h264,yuv420p", "h264,yuvj420p"].contains(&line.trim());
    process.log().wait(0, "H.264 4:2:0", is_played).unwrap();
}

/// Twice, because a second session is not the first.
fn is_seen_in_two_sessions(name: &str) {
    let scene = Scene::start(name, &[]);
    for _ in 0..2 {
        scene.session(|testbed| assert_seen(testbed, &testbed.relay.viewer_url()));
    }
    scene.end();
}

#[test]
fn pi4_is_seen() {
    is_seen_in_two_sessions("pi4");
}

#[test]
fn pi5_is_seen() {
    is_seen_in_two_sessions("pi5");
}

#[test]
fn a_usb_camera_is_seen() {
    is_seen_in_two_sessions("usb-camera");
}

#[test]
fn a_usb_camera_with_jpeg_is_seen() {
    is_seen_in_two_sessions("usb-mjpeg");
}

#[test]
fn a_usb_camera_with_h264_is_seen() {
    is_seen_in_two_sessions("usb-h264");
}

#[test]
fn a_jetson_is_seen() {
    is_seen_in_two_sessions("jetson");
}

#[test]
fn a_laptop_is_seen() {
    is_seen_in_two_sessions("vaapi");
}

#[test]
fn the_test_picture_is_seen() {
    is_seen_in_two_sessions("test-picture");
}

#[test]
fn motion_is_seen() {
    is_seen_in_two_sessions("motion");
}

#[test]
fn a_file_is_seen_over_and_over() {
    let folder = tempfile::tempdir().unwrap();
    let clip = folder.path().join("clip.ts");
    let clip = text_of(&clip).unwrap();
    let made = Command::new(program_of("ffmpeg", "ffmpeg").unwrap())
        .args("-v error -f lavfi -i testsrc=size=320x180:rate=30:duration=1".split(' '))
        .args("-c:v libx264 -preset ultrafast -pix_fmt yuv420p".split(' '))
        .arg(clip)
        .status()
        .unwrap();
    assert!(made.success());
    let scene = Scene::start("file", &[("FILE", clip)]);
    scene.session(|testbed| {
        assert_seen(testbed, &testbed.relay.viewer_url());
        let reader = Reader::start(&testbed.relay.viewer_url(), None).unwrap();
        reader.wait_frames(45).unwrap();
    });
    scene.end();
}

#[test]
fn two_cameras_open_together_each_at_its_place() {
    let scene = Scene::start("two-cameras", &[]);
    scene.session(|testbed| {
        let url = testbed.relay.viewer_url();
        assert_seen(testbed, &url);
        assert_seen(testbed, &url.replace(PATH, SECOND));
    });
    scene.end();
}

#[test]
fn the_microphone_is_heard_beside_the_camera() {
    let scene = Scene::start("microphone", &[]);
    for _ in 0..2 {
        scene.session(|testbed| {
            let url = testbed.relay.viewer_url();
            assert_seen(testbed, &url);
            let packets = packets(&url, 1).unwrap();
            let sound = packets.iter().filter(|(kind, _)| kind == "audio").count();
            // Of 1024 samples each.
            assert!(sound > 20, "{sound} packets of sound");
        });
    }
    scene.end();
}

/// In place of a Raspberry Pi's rpicam-vid: it takes the same options, writes H.264 as a byte stream
/// to its standard output in real time, and notes its process.
const RPICAM_VID: &str = r#"#!/bin/bash
rate=30 size=320x180
while [ $# -gt 0 ]; do
    case $1 in
    --width) width=$2 ;;
    --height) size=${width}x$2 ;;
    --framerate) rate=$2 ;;
    --output) [ "$2" = - ] || exit 3 ;;
    esac
    shift
done
echo $$ >>"$RPICAM_LOG"
exec ffmpeg -v error -nostdin -re -f lavfi -i "testsrc=size=$size:rate=$rate" -c:v libx264 \
    -preset ultrafast -tune zerolatency -pix_fmt yuv420p -g "$rate" -bf 0 -f h264 -
"#;

/// The tool runs while somebody looks, and at no other time.
#[test]
fn rpicam_is_seen_and_its_program_runs_only_meanwhile() {
    program_of("ffmpeg", "ffmpeg").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (tool, log) = (folder.path().join("rpicam-vid"), folder.path().join("log"));
    fs::write(&tool, RPICAM_VID).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let started = || -> Vec<u32> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().map(|id| id.parse().unwrap()).collect()
    };
    let runs = |id: &u32| Path::new(&format!("/proc/{id}")).exists();
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", text_of(folder.path()).unwrap());
    let environment = [
        ("PATH", path.as_str()),
        ("RPICAM_LOG", text_of(&log).unwrap()),
    ];
    // Its own line, nothing in place of the camera.
    let line = Line::named("rpicam");
    let seen = testbed.observer.seen().mark();
    let mut robot = launch_in(&testbed, &line, &[("CAMERA", "")], "", &environment);
    let idle = testbed.observer.wait_state(seen, StreamState::Idle);
    idle.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
    testbed.broker.wait_robot().unwrap();
    assert_eq!(started(), [0; 0], "cold, it does not run");
    for session in 1..=2 {
        let (seen, events) = (
            testbed.observer.seen().mark(),
            testbed.relay.events().mark(),
        );
        testbed.observer.send("start").unwrap();
        let live = testbed.observer.wait_state(seen, StreamState::Live);
        live.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        assert_seen(&testbed, &testbed.relay.viewer_url());
        let programs = started();
        assert_eq!(programs.len(), session);
        assert!(programs.last().is_some_and(runs));
        testbed.observer.send("stop").unwrap();
        testbed.wait_relay(events, Event::Unpublished);
        testbed.wait_now(StreamState::Idle);
        let ended = poll(DEADLINE, || (!programs.iter().any(runs)).then_some(()));
        assert!(ended.is_some(), "it runs while nobody looks");
    }
    // A tool that ends is a camera that fails: it is tried again.
    let seen = testbed.observer.seen().mark();
    testbed.observer.send("start").unwrap();
    testbed
        .observer
        .wait_state(seen, StreamState::Live)
        .unwrap();
    let last = started().last().unwrap().to_string();
    let killed = Command::new("kill").args(["-KILL", &last]).status();
    assert!(killed.unwrap().success());
    let failed = testbed
        .observer
        .wait_where(seen, "ended by signal 9", |state| {
            let error = state.last_error.as_deref();
            error.is_some_and(|error| error.contains("was ended by signal 9"))
        });
    failed.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
    let again = poll(DEADLINE, || (started().len() > 3).then_some(()));
    assert!(again.is_some(), "{}", robot.text());
    robot.end().unwrap();
    let programs = started();
    let ended = poll(DEADLINE, || (!programs.iter().any(runs)).then_some(()));
    assert!(ended.is_some(), "it outlives the robot");
}

/// The line as its comments say to run it: nobody asks for the stream, something moves.
#[test]
fn motion_opens_the_stream() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let line = Line::named("motion");
    let command = "droidrelay run motion.launch ";
    let told = line.comments().find_map(|line| line.split_once(command));
    let (_, options) = told.expect("how to run it");
    let mut robot = launch(&testbed, &line, &[], options);
    let live = testbed.observer.wait_where(0, "live by motion", |state| {
        state.state == StreamState::Live && state.viewers == ["motion"]
    });
    live.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
    assert_seen(&testbed, &testbed.relay.viewer_url());
    robot.end().unwrap();
}

/// Seconds of video in the files of `folder`, in the order of their names.
fn recorded(folder: &Path) -> Vec<f64> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    paths.sort_unstable();
    let duration = |path: &PathBuf| {
        let output = Command::new(program_of("ffprobe", "ffmpeg").unwrap())
            .args("-v error -count_packets -select_streams v".split(' '))
            .args("-show_entries stream=nb_read_packets -of csv=p=0".split(' '))
            .arg(path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let packets = text.lines().next().and_then(|line| line.parse().ok());
        packets.unwrap_or(0.0) / 30.0
    };
    paths.iter().map(duration).collect()
}

/// The recording goes on through sessions, and what is there outlives a run that begins again.
#[test]
fn the_recording_is_whole_whoever_looks() {
    let folder = tempfile::tempdir().unwrap();
    let recordings = text_of(folder.path()).unwrap();
    let mut before = 0.0;
    // With the same NOW, as in a run whose pipeline begins anew.
    let settings = [("RECORDINGS", recordings), ("NOW", "run")];
    for run in 1..=2 {
        let mut scene = Scene::start("recording", &settings);
        let began = Instant::now();
        scene.session(|testbed| assert_seen(testbed, &testbed.relay.viewer_url()));
        scene.session(|testbed| assert_seen(testbed, &testbed.relay.viewer_url()));
        let took = began.elapsed().as_secs_f64();
        if run == 1 {
            // A power cut.
            scene.robot.kill();
        } else {
            scene.end();
        }
        let recorded = recorded(folder.path());
        let [whole] = recorded[..] else {
            panic!("{recorded:?}");
        };
        // The two seconds or so of a start count too.
        assert!(
            whole - before > 0.5 * took,
            "run {run}: {whole} s, {before} before, in {took} s"
        );
        before = whole;
    }
}
