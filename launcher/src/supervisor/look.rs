// SPDX-License-Identifier: MPL-2.0

//! What the supervisor hears of the elements and the bridge, and what it tells of them: to
//! systemd, to Prometheus, to the bridge, to the log.

use std::time::{Duration, Instant};

use droidrelay_wire::RobotState;

use super::{Phase, Supervisor, Timer};
use crate::{
    poll::{Act, News},
    report,
};

/// How often the elements are looked at while somebody looks at the stream.
const LOOK: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn element_message(&mut self, source: &str, structure: &gst::StructureRef) {
        for (id, lease, first) in self.triggers.fired(structure, Instant::now()) {
            if first {
                self.log
                    .info(&format!("{source}: {id}: opens for {lease} s"));
            }
            self.elements.start(&id, lease);
        }
        let field = |name| structure.get::<Option<String>>(name).ok().flatten();
        let (reason, bad) = match structure.name().as_str() {
            "mqttvalve-state" => (field("last-error"), false),
            "rtmpauthsink-state" => (
                field("reason"),
                matches!(field("state").as_deref(), Some("backoff" | "refused")),
            ),
            _ => return,
        };
        let mut text = format!("{source}: {}", field("state").unwrap_or_default());
        if let Some(cause) = field("cause") {
            text.push_str(&format!(" ({cause})"));
        }
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        if self.is_news(source, &text) {
            if bad {
                self.log.warning(&text);
            } else {
                self.log.info(&text);
            }
        }
        self.look();
    }

    /// Whether this has not been told of `whom` last.
    fn is_news(&mut self, whom: &str, text: &str) -> bool {
        let last = self.told.insert(whom.to_owned(), text.to_owned());
        last.as_deref() != Some(text)
    }

    /// Looks at the elements: what they say goes to systemd and the bridge, and where media
    /// stands still the pipeline has failed.
    pub(super) fn look(&mut self) {
        let (valves, sinks) = (self.elements.valves(), self.elements.sinks());
        let state = report::robot_state(&valves, self.fault.as_deref());
        if let Some(state) = state.filter(|_| !self.ending()) {
            self.tell_state(state);
        }
        if let Some(Err(text)) = self
            .keeper
            .as_mut()
            .map(|keeper| keeper.keep(&self.elements))
            && self.is_news("keeper", &text)
        {
            self.log.warning(&text);
        }
        if self.phase != Phase::Playing {
            self.health.forget();
            return;
        }
        let now = Instant::now();
        self.health.look(report::passages(&valves, &sinks), now);
        let limit = self.policy.stall_timeout;
        if let Some(what) = self.health.stalled(limit, now) {
            let text = format!("{what} for {} s", limit.as_secs());
            self.log.error(&text);
            self.fail(&text);
            return;
        }
        self.notify.status(&report::status(&valves, &sinks));
        if report::is_awake(&valves, &sinks) {
            self.arm(Timer::Look, LOOK);
        }
    }

    pub(super) fn tell_state(&self, mut state: RobotState) {
        // What an element complains of may name what it was given.
        state.last_error = state.last_error.map(|text| self.log.clean(&text));
        let text = Some(report::state_text(state));
        self.states.send_if_modified(|told| {
            let news = *told != text;
            *told = text;
            news
        });
    }

    pub(super) fn metrics(&self) -> String {
        let (valves, sinks) = (self.elements.valves(), self.elements.sinks());
        let playing = self.phase == Phase::Playing;
        let triggers = self.triggers.counts();
        report::page(playing, &self.counters, &valves, &sinks, triggers).text()
    }

    pub(super) fn poll(&mut self, news: News) {
        let acts = match news {
            News::Wanted(wanted) => {
                self.counters.polls += 1;
                if self.counters.bridge.replace(true) != Some(true) {
                    self.told.remove("poll");
                    self.log.info("poll: the bridge answers");
                }
                self.follower.follow(&wanted, Instant::now())
            }
            News::Failed(reason, pause) => {
                self.counters.failed_polls += 1;
                self.counters.bridge = Some(false);
                if self.is_news("poll", &reason) {
                    let pause = pause.as_secs_f32();
                    self.log
                        .warning(&format!("poll: {reason}; next try in {pause:.1} s"));
                }
                return;
            }
            News::Silent => {
                let acts = self.follower.silent();
                if !acts.is_empty() {
                    self.log.warning(
                        "poll: no answer for 120 s: what was started without a lease ends",
                    );
                }
                acts
            }
            News::NotReported(reason) => {
                if self.is_news("report", &reason) {
                    self.log
                        .warning(&format!("poll: the state is not reported: {reason}"));
                }
                return;
            }
        };
        for act in acts {
            match act {
                Act::Start(id, lease) => self.elements.start(&id, lease),
                Act::Stop(id) => self.elements.stop(&id),
                Act::Keyframe => self.elements.keyframe(),
            }
        }
    }

    /// Tells systemd's watchdog that all is well, if it is: we got here, and wherever frames
    /// should have left they did.
    pub(super) fn feed(&mut self) {
        let Some(limit) = self.notify.watchdog() else {
            return;
        };
        let pause = limit / 2;
        if self.health.leaves(pause, Instant::now()) {
            self.told.remove("watchdog");
            self.notify.alive();
        } else if self.is_news("watchdog", "") {
            self.log.error("the watchdog is not fed: no frame leaves");
        }
        self.arm(Timer::Feed, pause);
    }
}
