// SPDX-License-Identifier: MPL-2.0

//! A line that gets narrow and wide again: the encoder follows, and the viewer is never far
//! behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    journal::DEADLINE,
    net::{
        netns::{is_forbidden, tell_skipped},
        shaped_link::Quality,
    },
    robot::stamps::Arrival,
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
