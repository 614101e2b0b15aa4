// SPDX-License-Identifier: MPL-2.0

//! Servers beside nginx-rtmp and MediaMTX: each takes picture and sound, and hands them on.

use std::process::Command;

use droidrelay_testkit::{
    journal::DEADLINE,
    process::{Process, poll, program_of},
    robot::{Robot, Runner},
    servers::others::{Other, OtherServer},
};

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
