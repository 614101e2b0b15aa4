// SPDX-License-Identifier: MPL-2.0

//! A robot that is started and stopped again and again uses no more than after the first rounds.
//! `DROIDRELAY_ROUNDS` says how often; tests/soak.sh sets it.

use std::{env, thread};

use droidrelay_testkit::{
    robot::{Robot, Runner},
    servers::{
        relay::{Event, Kind},
        silent::SilentServer,
    },
    testbed::{ENCODER, TEST_PICTURE, Testbed},
    usage::{Trend, Usage},
};
use droidrelay_wire::StreamState;

const ROUNDS: usize = 30;
/// What the process's memory may be larger by, in KiB: this much comes and goes.
const SLACK: u64 = 256;
/// Threads come and go, and each has one of glibc's arenas, sixteen on two processors: these fill
/// one after the other for a thousand rounds and more, and then no more. One arena holds what is
/// in use and nothing else.
const ENVIRONMENT: &[(&str, &str)] = &[("MALLOC_ARENA_MAX", "1")];

fn rounds() -> usize {
    let Ok(rounds) = env::var("DROIDRELAY_ROUNDS") else {
        return ROUNDS;
    };
    let rounds = rounds.parse().ok().filter(|rounds| *rounds >= 3);
    rounds.expect("DROIDRELAY_ROUNDS is a number, 3 or more")
}

fn robot(testbed: &Testbed, line: &str) -> Robot {
    testbed
        .robot_with(Runner::GstLaunch, line, ENVIRONMENT)
        .unwrap()
}

/// A third of the rounds warms up; the last third uses no more than the one in between.
fn leave_nothing(robot: &mut Robot, round: impl Fn()) {
    let thread = thread::current();
    let test = thread.name().unwrap_or_default();
    let rounds = rounds();
    let usages: Vec<Usage> = (0..rounds)
        .map(|_| {
            round();
            Usage::of(robot.id()).unwrap()
        })
        .collect();
    let course = Trend::of(&usages).unwrap();
    for line in course.text().lines() {
        eprintln!("{test}: {line}");
    }
    course.is_flat(robot.id(), SLACK).unwrap();
    robot.end().unwrap();
}

fn sessions(kind: Kind) {
    if kind.notice_if_absent() {
        return;
    }
    let testbed = Testbed::start(kind).unwrap();
    let line = testbed.line(TEST_PICTURE);
    let mut robot = robot(&testbed, &line);
    leave_nothing(&mut robot, || {
        let seen = testbed.observer.seen().mark();
        let events = testbed.relay.events().mark();
        testbed.observer.send("start").unwrap();
        testbed.wait_relay(events, Event::Published);
        testbed
            .observer
            .wait_state(seen, StreamState::Live)
            .unwrap();
        testbed.observer.send("stop").unwrap();
        testbed.wait_relay(events, Event::Unpublished);
        testbed.wait_idle_again(seen);
    });
}

#[test]
fn sessions_leave_nothing_behind_at_nginx() {
    sessions(Kind::Nginx);
}

#[test]
fn sessions_leave_nothing_behind_at_mediamtx() {
    sessions(Kind::MediaMtx);
}

#[test]
fn connections_without_an_answer_leave_nothing_behind() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let silence = SilentServer::before(testbed.relay.rtmp_port()).unwrap();
    let location = testbed.relay.publish_url_at("127.0.0.1", silence.port());
    let sink = testbed
        .sink()
        .replace(&testbed.relay.publish_url(), &location);
    let line = format!(
        "{TEST_PICTURE} ! {} ! queue ! {ENCODER} ! {sink}",
        testbed.valve()
    );
    let mut robot = robot(&testbed, &line);
    leave_nothing(&mut robot, || {
        let seen = testbed.observer.seen().mark();
        let connections = silence.connections();
        let mark = connections.mark();
        testbed.observer.send("start").unwrap();
        connections.wait(mark, "a connection", |()| true).unwrap();
        testbed
            .observer
            .wait_state(seen, StreamState::Starting)
            .unwrap();
        testbed.observer.send("stop").unwrap();
        testbed.wait_idle_again(seen);
    });
}

/// A camera that fails after half a second each time, and begins anew in another thread.
#[test]
fn a_camera_that_fails_again_and_again_leaves_nothing_behind() {
    let testbed = Testbed::start(Kind::Nginx).unwrap();
    let line = testbed.line(&format!("{TEST_PICTURE} ! identity error-after=15"));
    let mut robot = robot(&testbed, &line);
    leave_nothing(&mut robot, || {
        let observer = &testbed.observer;
        let seen = observer.seen().mark();
        observer.send("start").unwrap();
        let failed = observer.wait_state(seen, StreamState::Error).unwrap();
        assert!(failed.1.last_error.is_some());
        let mark = observer.seen().mark();
        observer.wait_state(mark, StreamState::Live).unwrap();
        observer.send("stop").unwrap();
        testbed.wait_idle_again(seen);
    });
}
