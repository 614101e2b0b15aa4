//! A robot that is started and stopped again and again uses no more than after the first rounds.
//! `DROIDRELAY_ROUNDS` says how often; tests/rounds.sh sets it.

use std::{env, thread};

use droidrelay_tests::{
    bench::usage::{descriptors, threads, Memory},
    journal::DEADLINE,
    process::poll,
    relay::{Event, Kind},
    rig::{Rig, ENCODER, TEST_PICTURE},
    robot::{Robot, Runner},
    silence::Silence,
};
use droidrelay_wire::StreamState;

const ROUNDS: usize = 30;
/// What the process's memory may be larger by, in KiB: this much comes and goes.
const SLACK: u64 = 256;

fn rounds() -> usize {
    let Ok(rounds) = env::var("DROIDRELAY_ROUNDS") else {
        return ROUNDS;
    };
    let rounds = rounds.parse().ok().filter(|rounds| *rounds >= 3);
    rounds.expect("DROIDRELAY_ROUNDS is a number, 3 or more")
}

/// What a closed robot uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    threads: usize,
    descriptors: usize,
    memory: Memory,
}

impl Usage {
    fn of(robot: &Robot) -> Self {
        Usage {
            threads: threads(robot.id()).unwrap(),
            descriptors: descriptors(robot.id()).unwrap(),
            memory: Memory::of(robot.id()).unwrap(),
        }
    }
}

/// The middle one.
fn median(usages: &[Usage], of: impl Fn(&Usage) -> u64) -> u64 {
    let mut values: Vec<u64> = usages.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// A third of the rounds warms up; the last third uses no more than the one in between.
fn leave_nothing(robot: &mut Robot, round: impl Fn()) {
    let thread = thread::current();
    let test = thread.name().unwrap_or_default();
    let rounds = rounds();
    let usages: Vec<Usage> = (0..rounds)
        .map(|_| {
            round();
            Usage::of(robot)
        })
        .collect();
    let third = rounds / 3;
    let (before, after) = (&usages[third..rounds - third], &usages[rounds - third..]);
    let most = |of: fn(&Usage) -> usize| before.iter().map(of).max().unwrap();
    let (most_threads, most_descriptors) =
        (most(|usage| usage.threads), most(|usage| usage.descriptors));
    // What a round leaves behind is still on its way out when the state says idle.
    let settled = poll(DEADLINE, || {
        let now = Usage::of(robot);
        (now.threads <= most_threads && now.descriptors <= most_descriptors).then_some(now)
    });
    for (name, of) in [
        (
            "anonymous KiB",
            (|usage| usage.memory.anonymous) as fn(&Usage) -> u64,
        ),
        ("PSS KiB", |usage| usage.memory.pss),
        ("threads", |usage| usage.threads as u64),
        ("descriptors", |usage| usage.descriptors as u64),
    ] {
        let (warm, last) = (median(before, of), median(after, of));
        eprintln!(
            "{test}: {rounds} rounds: {name} {} after the first, then {warm}, {last}",
            of(&usages[0])
        );
    }
    assert!(
        settled.is_some(),
        "{:?}, then {:?}",
        before,
        Usage::of(robot)
    );
    // PSS depends on who else has mapped the libraries.
    let anonymous = |usage: &Usage| usage.memory.anonymous;
    let (warm, last) = (median(before, anonymous), median(after, anonymous));
    assert!(last < warm + SLACK, "from {warm} to {last} KiB");
    robot.end().unwrap();
}

fn sessions(kind: Kind) {
    if kind.notice_if_absent() {
        return;
    }
    let rig = Rig::start(kind).unwrap();
    let line = rig.line(TEST_PICTURE);
    let mut robot = rig.robot(Runner::GstLaunch, &line).unwrap();
    leave_nothing(&mut robot, || {
        let seen = rig.observer.seen().mark();
        let events = rig.relay.events().mark();
        rig.observer.send("start").unwrap();
        rig.wait_relay(events, Event::Published);
        rig.observer.wait_state(seen, StreamState::Live).unwrap();
        rig.observer.send("stop").unwrap();
        rig.wait_relay(events, Event::Unpublished);
        rig.wait_idle_again(seen);
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
    let rig = Rig::start(Kind::Nginx).unwrap();
    let silence = Silence::before(rig.relay.rtmp_port()).unwrap();
    let location = rig.relay.publish_url_at("127.0.0.1", silence.port());
    let sink = rig.sink().replace(&rig.relay.publish_url(), &location);
    let line = format!(
        "{TEST_PICTURE} ! {} ! queue ! {ENCODER} ! {sink}",
        rig.valve()
    );
    let mut robot = rig.robot(Runner::GstLaunch, &line).unwrap();
    leave_nothing(&mut robot, || {
        let seen = rig.observer.seen().mark();
        let connections = silence.connections();
        let mark = connections.mark();
        rig.observer.send("start").unwrap();
        connections.wait(mark, "a connection", |()| true).unwrap();
        rig.observer
            .wait_state(seen, StreamState::Starting)
            .unwrap();
        rig.observer.send("stop").unwrap();
        rig.wait_idle_again(seen);
    });
}
