// SPDX-License-Identifier: MPL-2.0

//! Makes the valves follow a bridge that is polled. It decides as a valve would; here it is only
//! obeyed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use droidrelay_wire::{Command, RobotState, words::poll::Answer};
use tokio::sync::watch;

use super::{elements::Elements, snapshot::state_text, statistics::PollCounters};
use crate::{
    log::{Log, Repeats},
    remote::poll::PollEvent,
};

/// A bridge that is polled: what it said, and what it is told.
#[derive(Default)]
pub struct BridgeLink {
    log: Log,
    logged: Repeats,
    follower: Follower,
    pub counters: PollCounters,
    /// The robot's state on its way to the bridge.
    states: watch::Sender<Option<String>>,
}

impl BridgeLink {
    pub fn new(log: Log) -> Self {
        BridgeLink {
            log,
            ..BridgeLink::default()
        }
    }

    /// The robot's state, the newest one, for the bridge.
    pub fn states(&self) -> watch::Receiver<Option<String>> {
        self.states.subscribe()
    }

    pub fn report(&self, mut state: RobotState) {
        // What an element complains of may name what it was given.
        state.last_error = state.last_error.map(|text| self.log.clean(&text));
        state.faults.map_reasons(|text| self.log.clean(&text));
        let text = Some(state_text(&state));
        self.states.send_if_modified(|reported| {
            let is_new = *reported != text;
            *reported = text;
            is_new
        });
    }

    pub fn handle(&mut self, event: PollEvent, elements: &Elements) {
        let commands = match event {
            PollEvent::Answered(answer) => {
                self.counters.answered += 1;
                if !std::mem::replace(&mut self.counters.is_up, true) {
                    self.logged.forget("poll");
                    self.log.info("poll: the bridge answers");
                }
                self.follower.follow(&answer, Instant::now())
            }
            PollEvent::Failed { reason, pause } => {
                self.counters.failed += 1;
                self.counters.is_up = false;
                if self.logged.is_new("poll", &reason) {
                    let pause = pause.as_secs_f32();
                    self.log
                        .warning(&format!("poll: {reason}; next try in {pause:.1} s"));
                }
                return;
            }
            PollEvent::Silent => {
                let commands = self.follower.silent();
                if !commands.is_empty() {
                    self.log.warning(
                        "poll: no answer for 120 s: what was started without a lease ends",
                    );
                }
                commands
            }
            PollEvent::NotReported(reason) => {
                if self.logged.is_new("report", &reason) {
                    self.log
                        .warning(&format!("poll: the state is not reported: {reason}"));
                }
                return;
            }
        };
        commands.iter().for_each(|command| elements.apply(command));
    }
}

/// What the poll has started so far. Pure: `now` is an argument.
#[derive(Debug, Default)]
pub struct Follower {
    /// When each lease ends; None: with a stop.
    held: BTreeMap<String, Option<Instant>>,
    keyframe: Option<u64>,
}

impl Follower {
    /// What leads from what is held to what is wanted: only what is new, renewed or gone.
    pub fn follow(&mut self, answer: &Answer, now: Instant) -> Vec<Command> {
        let leases = &answer.wanted.leases;
        let mut commands = Vec::new();
        self.held.retain(|id, _| {
            let stays = leases.iter().any(|lease| lease.holder() == id);
            if !stays {
                commands.push(stop(id));
            }
            stays
        });
        let was_open = !self.held.is_empty();
        for lease in leases {
            let (id, left) = (lease.holder(), lease.lease);
            let left = left.map(|left| left.clamp(0.0, f64::from(u32::MAX)));
            let until = left.map(|left| now + Duration::from_secs_f64(left));
            let same = match (self.held.get(id), until) {
                (Some(None), None) => true,
                // The way of the answer takes time, and not always the same.
                (Some(Some(held)), Some(until)) => {
                    until.max(*held) - until.min(*held) < Duration::from_secs(1)
                }
                _ => false,
            };
            if !same {
                self.held.insert(id.to_owned(), until);
                commands.push(Command::Start {
                    id: Some(id.to_owned()),
                    lease: left.map(|left| Duration::from_secs(left.ceil().max(1.0) as u64)),
                });
            }
        }
        let before = self.keyframe.replace(answer.keyframe);
        if was_open && before.is_some_and(|before| before != answer.keyframe) {
            commands.push(Command::Keyframe);
        }
        commands
    }

    /// Nobody answers any more: what would never end ends.
    pub fn silent(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        self.held.retain(|id, until| {
            if until.is_none() {
                commands.push(stop(id));
            }
            until.is_some()
        });
        commands
    }
}

fn stop(id: &str) -> Command {
    Command::Stop {
        id: Some(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use droidrelay_wire::words::poll::{Lease, Wanted};

    fn answer(leases: &[(&str, Option<f64>)], keyframe: u64) -> Answer {
        let leases = leases.iter().map(|(id, left)| Lease::of(id, *left));
        Answer {
            robot: "r1".into(),
            version: 1,
            wanted: Wanted {
                open: leases.len() > 0,
                leases: leases.collect(),
            },
            keyframe,
            online: true,
            state: None,
        }
    }

    /// 0 seconds: without a lease of its own.
    fn start(id: &str, lease: u64) -> Command {
        Command::Start {
            id: Some(id.into()),
            lease: (lease > 0).then(|| Duration::from_secs(lease)),
        }
    }

    #[test]
    fn only_what_is_new_renewed_or_gone_is_done() {
        let (mut follower, begin) = (Follower::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs_f64(seconds);
        let first = answer(&[("*", None), ("a", Some(29.3))], 4);
        assert_eq!(
            follower.follow(&first, at(0.0)),
            [start("*", 0), start("a", 30)]
        );
        // The same leases, ten seconds on, a little late.
        let same = answer(&[("a", Some(19.4)), ("*", None)], 4);
        assert_eq!(follower.follow(&same, at(10.0)), []);
        let renewed = answer(&[("a", Some(30.0)), ("*", None)], 4);
        assert_eq!(follower.follow(&renewed, at(10.5)), [start("a", 30)]);
        let one = answer(&[("a", Some(0.2))], 5);
        assert_eq!(
            follower.follow(&one, at(20.0)),
            [stop("*"), start("a", 1), Command::Keyframe]
        );
        assert_eq!(follower.follow(&answer(&[], 6), at(30.0)), [stop("a")]);
        assert_eq!(follower.follow(&answer(&[], 7), at(31.0)), []);
    }

    #[test]
    fn silence_ends_what_has_no_lease_and_the_next_answer_starts_it_again() {
        let (mut follower, now) = (Follower::default(), Instant::now());
        let both = answer(&[("a", Some(30.0)), ("b", None)], 0);
        follower.follow(&both, now);
        assert_eq!(follower.silent(), [stop("b")]);
        assert_eq!(follower.silent(), []);
        assert_eq!(follower.follow(&both, now), [start("b", 0)]);
    }

    #[test]
    fn a_lease_of_any_length_is_followed() {
        let (mut follower, now) = (Follower::default(), Instant::now());
        let odd = answer(&[("a", Some(-5.0)), ("b", Some(1e300))], 0);
        assert_eq!(
            follower.follow(&odd, now),
            [start("a", 1), start("b", u32::MAX.into())]
        );
    }
}
