// SPDX-License-Identifier: MPL-2.0

//! What can be published: codecs, ready FLV, sound, and formats that change on the way.

use std::process::Command;

use droidrelay_testkit::{
    clients::reader::Reader,
    journal::DEADLINE,
    process::{Process, poll, program_of},
    robot::{Robot, Runner},
    servers::relay::{Event, Kind, Relay},
    testbed::{ENCODER, TEST_PICTURE},
};

struct Scene {
    relay: Relay,
    /// `rtmpauthsink` with all it needs.
    sink: String,
}

impl Scene {
    fn new(kind: Kind) -> Option<Self> {
        if kind.notice_if_absent() {
            return None;
        }
        let relay = Relay::start(kind).unwrap();
        let sink = format!(
            "rtmpauthsink name=out location={} user={} password={}",
            relay.publish_url(),
            relay.publisher.user,
            relay.publisher.password
        );
        Some(Scene { relay, sink })
    }

    fn robot(&self, line: &str) -> Robot {
        let mark = self.relay.events().mark();
        let robot = Robot::start(Runner::GstLaunch, line).unwrap();
        self.wait(mark, Event::Published, &robot);
        robot
    }

    fn wait(&self, mark: usize, event: Event, robot: &Robot) -> usize {
        let what = format!("{event:?}");
        let found = self.relay.events().wait(mark, &what, |seen| *seen == event);
        found.unwrap_or_else(|err| panic!("{err}\n{}", robot.text()));
        self.relay.events().mark()
    }

    /// The streams as ffprobe names them: `codec,width` or `codec` of each.
    fn streams(&self) -> Vec<String> {
        let mut command = Command::new(program_of("ffprobe", "ffmpeg").unwrap());
        command.args(
            "-v error -rtsp_transport tcp"
                .split(' ')
                .filter(|_| self.relay.kind() == Kind::MediaMtx),
        );
        command.args("-show_entries stream=codec_name,width -of csv=p=0".split(' '));
        command.arg(self.relay.viewer_url());
        let mut process = Process::spawn("ffprobe", &mut command).unwrap();
        process.wait(DEADLINE);
        let mut streams = process.log().all();
        // What ffprobe complains of stands there only where it found nothing.
        if streams.iter().any(|line| !line.contains(' ')) {
            streams.retain(|line| !line.contains(' '));
        }
        for stream in &mut streams {
            *stream = stream.trim_end_matches(',').to_owned();
        }
        streams.sort_unstable();
        streams
    }
}

fn ready_flv_is_published(kind: Kind) {
    let Some(scene) = Scene::new(kind) else {
        return;
    };
    let mut robot = scene.robot(&format!(
        "flvmux name=mux streamable=true ! {} {TEST_PICTURE} ! {ENCODER} ! mux. \
         audiotestsrc is-live=true ! audio/x-raw,rate=44100,channels=2 ! voaacenc ! mux.",
        scene.sink
    ));
    assert_eq!(scene.streams(), ["aac", "h264,320"]);
    let reader = Reader::start(&scene.relay.viewer_url(), None).unwrap();
    reader.wait_frames(60).unwrap();
    assert_eq!(reader.complaints(), [""; 0]);
    drop(reader);
    robot.end().unwrap();
}

fn mp3_goes_beside_the_picture(kind: Kind) {
    let Some(scene) = Scene::new(kind) else {
        return;
    };
    let (picture, sound) = (
        format!("{TEST_PICTURE} ! {ENCODER}"),
        "audiotestsrc is-live=true ! audio/x-raw,rate=44100,channels=2 ! lamemp3enc \
         ! mpegaudioparse",
    );
    let sink = &scene.sink;
    for line in [
        format!("{picture} ! {sink} {sound} ! out.audio"),
        format!("flvmux name=mux streamable=true ! {sink} {picture} ! mux. {sound} ! mux."),
    ] {
        let mut robot = scene.robot(&line);
        assert_eq!(scene.streams(), ["h264,320", "mp3"], "{line}");
        let mark = scene.relay.events().mark();
        robot.end().unwrap();
        scene.wait(mark, Event::Unpublished, &robot);
    }
}

/// A new resolution needs new headers: the server gets a new session with them, by itself.
fn another_resolution_is_another_session(kind: Kind) {
    let Some(scene) = Scene::new(kind) else {
        return;
    };
    let size = |width: u32, frames: i32| {
        let height = width * 9 / 16;
        format!(
            "videotestsrc is-live=true num-buffers={frames} \
             ! video/x-raw,format=I420,width={width},height={height},framerate=30/1 ! queue ! all."
        )
    };
    let mark = scene.relay.events().mark();
    let mut robot = scene.robot(&format!(
        "concat name=all ! {ENCODER} ! {} {} {}",
        scene.sink,
        size(320, 60),
        size(640, -1)
    ));
    let mark = scene.wait(mark, Event::Unpublished, &robot) - 1;
    scene.wait(mark, Event::Published, &robot);
    assert_eq!(scene.streams(), ["h264,640"]);
    let reader = Reader::start(&scene.relay.viewer_url(), None).unwrap();
    reader.wait_frames(60).unwrap();
    assert_eq!(reader.complaints(), [""; 0]);
    drop(reader);
    assert!(!robot.text().contains("ERROR"), "{}", robot.text());
    robot.end().unwrap();
}

macro_rules! by_each_relay {
    ($($test:ident)*) => {
        mod nginx {
            use super::*;
            $(#[test] fn $test() { super::$test(Kind::Nginx); })*
        }
        mod mediamtx {
            use super::*;
            $(#[test] fn $test() { super::$test(Kind::MediaMtx); })*
        }
    };
}

by_each_relay! {
    ready_flv_is_published
    mp3_goes_beside_the_picture
    another_resolution_is_another_session
}

/// nginx-rtmp knows no Enhanced RTMP.
#[test]
fn h265_reaches_a_server_that_knows_it() {
    let Some(scene) = Scene::new(Kind::MediaMtx) else {
        return;
    };
    for format in ["byte-stream", "hvc1"] {
        let mut robot = scene.robot(&format!(
            "{TEST_PICTURE} ! x265enc tune=zerolatency speed-preset=ultrafast key-int-max=30 \
             option-string=open-gop=0 ! h265parse ! video/x-h265,stream-format={format} ! {}",
            scene.sink
        ));
        assert_eq!(scene.streams(), ["hevc,320"], "{format}");
        let reader = Reader::start(&scene.relay.viewer_url(), None).unwrap();
        reader.wait_frames(60).unwrap();
        drop(reader);
        let mark = scene.relay.events().mark();
        robot.end().unwrap();
        scene.wait(mark, Event::Unpublished, &robot);
    }
}

/// A line with a codec that RTMP does not carry does not begin to play.
#[test]
fn what_rtmp_does_not_carry_is_refused_before_anything_flows() {
    let Some(scene) = Scene::new(Kind::Nginx) else {
        return;
    };
    let mut robot = Robot::start(
        Runner::GstLaunch,
        &format!("{TEST_PICTURE} ! vp8enc deadline=1 ! {}", scene.sink),
    )
    .unwrap();
    robot
        .log()
        .wait(0, "the refusal", |line| line.contains("could not link"))
        .unwrap();
    let ended = poll(DEADLINE, || (!robot.is_running()).then_some(()));
    assert!(ended.is_some(), "{}", robot.text());
    assert_eq!(scene.relay.events().mark(), 0);
}
