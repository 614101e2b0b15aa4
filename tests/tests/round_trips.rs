// SPDX-License-Identifier: MPL-2.0

//! How often a publisher waits for the server before the first picture is on its way.

use std::time::Duration;

use droidrelay_testkit::{
    journal::DEADLINE,
    net::proxy::{Proxy, Recording},
    process::{Process, poll, program_of},
    robot::{Robot, Runner},
    servers::relay::{Kind, Relay},
    testbed::{ENCODER, TEST_PICTURE},
};

/// Each way. Long beside what a busy machine adds.
const DELAY: Duration = Duration::from_millis(50);
/// FLV's codec header for H.264 (E.4.3.1; ISO/IEC 14496-15, 5.3.3), and a key frame after it.
const HEADER: &[u8] = &[0x17, 0, 0, 0, 0, 1];
const KEY_FRAME: &[u8] = &[0x17, 1, 0, 0];

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|it| it == pattern)
}

/// How often the client has waited for an answer before its first key frame: what it says
/// without hearing anything comes at once, an answer takes twice the delay.
fn answers_waited_for(words: &Recording) -> Option<usize> {
    let text: Vec<u8> = words.iter().flat_map(|(_, it)| it).copied().collect();
    let header = find(&text, HEADER)?;
    let frame = header + find(&text[header..], KEY_FRAME)?;
    let mut waits = 0;
    let mut said = 0;
    for pair in words.windows(2) {
        said += pair[0].1.len();
        if said > frame {
            break;
        }
        waits += usize::from(pair[1].0 - pair[0].0 > DELAY);
    }
    Some(waits)
}

/// The fewest in `sessions`: a busy machine only adds to them.
fn fewest(sessions: usize, port: u16, publish: impl Fn(u16) -> Box<dyn std::any::Any>) -> usize {
    let waits = (0..sessions).map(|_| {
        let link = Proxy::start_with_delay(port, DELAY).unwrap();
        link.record();
        let publisher = publish(link.port());
        let waits = poll(DEADLINE, || {
            link.words().iter().find_map(answers_waited_for)
        });
        drop(publisher);
        waits.expect("a key frame")
    });
    waits.min().unwrap()
}

fn two_round_trips_to_the_first_picture(kind: Kind) {
    if kind.notice_if_absent() {
        return;
    }
    let relay = Relay::start(kind).unwrap();
    let url = relay.publish_url();
    let (_, rest) = url.split_once("//127.0.0.1:").unwrap();
    let (port, path) = rest.split_once('/').unwrap();
    let (user, password) = (&relay.publisher.user, &relay.publisher.password);
    let stream = format!("{path}?user={user}&pass={password}");
    let ours = |port: u16| -> Box<dyn std::any::Any> {
        let line = format!(
            "{TEST_PICTURE} ! {ENCODER} ! rtmpauthsink location=rtmp://127.0.0.1:{port}/{path} \
             user={user} password={password}"
        );
        Box::new(Robot::start(Runner::GstLaunch, &line).unwrap())
    };
    let rtmp2sink = |port: u16| -> Box<dyn std::any::Any> {
        let line = format!(
            "{TEST_PICTURE} ! {ENCODER} ! flvmux streamable=true \
             ! rtmp2sink location=rtmp://127.0.0.1:{port}/{stream}"
        );
        Box::new(Robot::start(Runner::GstLaunch, &line).unwrap())
    };
    let ffmpeg = |port: u16| -> Box<dyn std::any::Any> {
        let program = program_of("ffmpeg", "ffmpeg").unwrap();
        let mut command = std::process::Command::new(program);
        command.args("-v error -nostdin -re -f lavfi -i testsrc=size=320x180:rate=30".split(' '));
        command.args("-c:v libx264 -preset ultrafast -tune zerolatency -g 30 -f flv".split(' '));
        command.arg(format!("rtmp://127.0.0.1:{port}/{stream}"));
        Box::new(Process::spawn("ffmpeg", &mut command).unwrap())
    };
    let port = port.parse().unwrap();
    // The connection's own round trip, which the link does not delay, comes first.
    let trips = [
        ("rtmpauthsink", 1 + fewest(3, port, ours)),
        ("rtmp2sink", 1 + fewest(1, port, rtmp2sink)),
        ("ffmpeg", 1 + fewest(1, port, ffmpeg)),
    ];
    println!("round trips from connect to the first picture, {kind}: {trips:?}");
    assert_eq!(trips[0].1, 2, "{trips:?}");
    assert!(trips[1..].iter().all(|(_, trips)| *trips > 2), "{trips:?}");
}

#[test]
fn two_round_trips_to_nginx() {
    two_round_trips_to_the_first_picture(Kind::Nginx);
}

#[test]
fn two_round_trips_to_mediamtx() {
    two_round_trips_to_the_first_picture(Kind::MediaMtx);
}
