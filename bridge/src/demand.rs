// SPDX-License-Identifier: MPL-2.0

//! Demand that the media server tells of: which of its hooks is news, and how long it holds.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use droidrelay_wire::{
    net::http::Client,
    words::hook::{Hook, HookEvent},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::auth::Credentials;

/// How long a demand holds where the configuration does not say.
pub const LEASE: Duration = Duration::from_secs(20);

/// What the configuration says of MediaMTX.
pub struct Settings {
    /// A viewer who is let in starts the robot.
    pub read_starts: bool,
    /// How long a demand holds.
    pub lease: Duration,
    /// Its API: who looks, and the end of those who may not any more.
    pub api: Option<Client>,
    /// Its WebRTC server, to which WHEP is handed on.
    pub webrtc: Option<Client>,
    /// Its HLS.
    pub hls: Option<Client>,
    /// By this the bridge itself is known at the API, where MediaMTX asks the bridge who may.
    pub own: Option<Credentials>,
}

/// Robots whose question whether they may publish waits for their state.
#[derive(Default)]
pub struct Questions(Mutex<HashSet<String>>);

impl Questions {
    /// None: one of this robot waits already.
    pub fn begin(&self, robot: &str) -> Option<Question<'_>> {
        let is_first = self.0.lock().insert(robot.to_owned());
        is_first.then(|| Question {
            all: self,
            robot: robot.to_owned(),
        })
    }
}

/// It waits until this is dropped.
pub struct Question<'a> {
    all: &'a Questions,
    robot: String,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.robot);
    }
}

/// Demands so far; by robot and by who told them.
#[derive(Default)]
pub struct Demands(Mutex<HashMap<(String, String), Demand>>);

#[derive(Default)]
struct Demand {
    /// The clock of the times below.
    clock: String,
    /// When the newest hook was started that told of demand, and of none.
    wanted_at: f64,
    unwanted_at: f64,
    /// A viewer asked, or was seen to look; while the media server's API is followed.
    seen: Option<Instant>,
}

impl Demands {
    fn of<T>(&self, robot: &str, by: &str, act: impl FnOnce(&mut Demand) -> T) -> T {
        let mut demands = self.0.lock();
        act(demands
            .entry((robot.to_owned(), by.to_owned()))
            .or_default())
    }

    /// Whether what a hook tells is news: hooks are processes that may overtake each other, and
    /// of two that were started at the same time the demand counts.
    pub fn is_news(&self, robot: &str, by: &str, hook: &Hook) -> bool {
        self.of(robot, by, |demand| {
            let Some(at) = hook.at else {
                return true;
            };
            if demand.clock != hook.clock {
                *demand = Demand {
                    clock: hook.clock.clone(),
                    seen: demand.seen,
                    ..Demand::default()
                };
            }
            match hook.event {
                HookEvent::Demand => {
                    demand.wanted_at = demand.wanted_at.max(at);
                    at >= demand.unwanted_at
                }
                HookEvent::Undemand => {
                    demand.unwanted_at = demand.unwanted_at.max(at);
                    at > demand.wanted_at
                }
                HookEvent::Read | HookEvent::Unread => true,
            }
        })
    }

    /// Notes that somebody looks or wants to; returns whether nobody follows this robot yet.
    pub fn seen(&self, robot: &str, by: &str) -> bool {
        self.of(robot, by, |demand| {
            demand.seen.replace(Instant::now()).is_none()
        })
    }

    /// Whether somebody was seen in the time that a lease lasts; if not, it is followed no more.
    pub fn is_seen(&self, robot: &str, by: &str, lease: Duration) -> bool {
        self.of(robot, by, |demand| {
            demand.seen = demand.seen.filter(|seen| seen.elapsed() < lease);
            demand.seen.is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_was_overtaken_changes_nothing() {
        use HookEvent::{Demand, Undemand};
        let demands = Demands::default();
        let told = |by, event, clock: &str, at| {
            let hook = Hook {
                event,
                path: "robots/r1".into(),
                at,
                clock: clock.into(),
                age: None,
                reader: None,
            };
            demands.is_news("r1", by, &hook)
        };
        let news = |event, at| told("m", event, "boot 1", Some(at));
        assert!(news(Demand, 10.0));
        assert!(news(Demand, 15.0));
        assert!(news(Undemand, 16.0));
        assert!(
            !news(Demand, 15.5),
            "a heartbeat that was on its way at the end"
        );
        assert!(news(Demand, 17.0));
        assert!(!news(Undemand, 16.5), "the end before this demand");
        assert!(!news(Undemand, 17.0), "at the same time: the demand counts");
        assert!(told("other", Undemand, "boot 1", Some(1.0)));
        assert!(told("m", Undemand, "boot 2", Some(1.0)));
        assert!(told("m", Undemand, "", None));
    }

    #[test]
    fn one_question_of_each_robot_waits() {
        let questions = Questions::default();
        let first = questions.begin("r1");
        assert!(first.is_some() && questions.begin("r1").is_none());
        assert!(questions.begin("r2").is_some());
        drop(first);
        assert!(questions.begin("r1").is_some());
    }
}
