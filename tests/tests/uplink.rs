// SPDX-License-Identifier: MPL-2.0

//! The way to the server: how often a publisher waits for it before the first picture is on its way; a
//! line that gets narrow and wide again, which the encoder follows, and the viewer is never far behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    journal::DEADLINE,
    net::{
        netns::{is_forbidden, tell_skipped},
        proxy::{Proxy, Recording},
        shaped_link::Quality,
    },
    process::{Process, poll, program_of},
    robot::{Robot, Runner, stamps::Arrival},
    servers::relay::{Kind, Relay},
    testbed::{ENCODER, TEST_PICTURE},
    uplink::{BITRATE, MAX_LATENCY, Publisher, UplinkTestbed, bitrate},
};

/// None where this machine does not permit it.
fn scene(publisher: Publisher) -> Option<UplinkTestbed> {
    match UplinkTestbed::start(publisher, Quality::rate(2000), Instant::now()) {
        Ok(scene) => Some(scene),
        Err(err) if is_forbidden(&err) => {
            tell_skipped(thread::current().name().unwrap_or_default());
            None
        }
        Err(err) => panic!("{err:#}"),
    }
}

fn wait_frame(scene: &UplinkTestbed, mark: usize, what: &str, wanted: impl Fn(&Arrival) -> bool) {
    if let Err(err) = scene.reader.arrivals().wait(mark, what, wanted) {
        panic!("{err}\n{}\n{}", scene.robot.text(), scene.reader.text());
    }
}

/// Waits until the encoder is told a bitrate like this.
fn wait_bitrate(
    scene: &UplinkTestbed,
    mark: usize,
    patience: Duration,
    wanted: impl Fn(u32) -> bool,
) {
    let told = |line: &String| bitrate(line).is_some_and(&wanted);
    if scene.robot.log().try_wait(mark, patience, told).is_none() {
        panic!("not such a bitrate\n{}", scene.robot.text());
    }
}

/// The most that a frame from `mark` on was behind.
fn behind(scene: &UplinkTestbed, mark: usize) -> Duration {
    let arrivals = scene.reader.arrivals().since(mark);
    arrivals.iter().map(Arrival::latency).max().unwrap()
}

#[test]
fn the_encoder_follows_the_line_and_the_viewer_is_never_far_behind() {
    let Some(scene) = scene(Publisher::Adaptive) else {
        return;
    };
    let arrivals = scene.reader.arrivals();
    wait_frame(&scene, 0, "a picture", |_| true);
    wait_frame(&scene, 100, "a steady stream", |frame| {
        frame.latency() < Duration::from_millis(300)
    });

    let (frames, lines) = (arrivals.mark(), scene.robot.log().mark());
    let narrow = Instant::now();
    scene.line.set_quality(Quality::rate(400)).unwrap();
    wait_bitrate(&scene, lines, DEADLINE, |bitrate| bitrate < 400);
    println!("below the line's rate after {:?}", narrow.elapsed());
    // Those that were sent before are through when a frame is as early as ever.
    let mark = arrivals.mark();
    wait_frame(&scene, mark, "a frame in time", |frame| {
        frame.latency() < Duration::from_millis(300)
    });
    let settled = arrivals.mark();
    wait_frame(&scene, settled + 100, "more frames", |_| true);
    // What waits at the narrow place itself comes on top of what waits in the robot.
    let latest = behind(&scene, frames);
    println!(
        "at most {latest:?} behind, {:?} later on",
        behind(&scene, settled)
    );
    assert!(
        latest < MAX_LATENCY + Duration::from_millis(1500),
        "{latest:?}"
    );
    assert!(behind(&scene, settled) < MAX_LATENCY);

    let lines = scene.robot.log().mark();
    scene.line.set_quality(Quality::rate(2000)).unwrap();
    wait_bitrate(&scene, lines, 3 * DEADLINE, |bitrate| bitrate == BITRATE);
    let taken = scene.camera.taken().mark();
    println!("{} of {taken} pictures came", arrivals.mark());
}

#[test]
fn without_adaptive_bitrate_the_viewer_is_not_far_behind_either() {
    let Some(scene) = scene(Publisher::Fixed) else {
        return;
    };
    let arrivals = scene.reader.arrivals();
    wait_frame(&scene, 0, "a picture", |_| true);
    let narrow = arrivals.mark();
    scene.line.set_quality(Quality::rate(400)).unwrap();
    wait_frame(&scene, narrow + 50, "50 pictures", |_| true);
    let latest = behind(&scene, narrow);
    println!("at most {latest:?} behind");
    assert!(
        latest < MAX_LATENCY + Duration::from_millis(1500),
        "{latest:?}"
    );
    let wide = arrivals.mark();
    scene.line.set_quality(Quality::rate(2000)).unwrap();
    wait_frame(&scene, wide, "a frame in time", |frame| {
        frame.latency() < Duration::from_millis(300)
    });
    let told = |line: &String| bitrate(line).is_some();
    let lines = scene.robot.log().all();
    assert_eq!(lines.iter().find(|line| told(line)), None);
}

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
