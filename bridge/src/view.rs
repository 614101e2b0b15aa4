// SPDX-License-Identifier: MPL-2.0

//! What a robot last said, and the presence of one that polls: nobody but a bridge can say for it
//! that it is online.
//!
//! Pure: `now` is an argument, on the caller's monotonic clock.

use std::{sync::Arc, time::Duration};

use droidrelay_wire::{
    RobotState, StreamState,
    words::{
        poll::GRACE,
        topics::{OFFLINE, ONLINE},
    },
};

/// Whether a robot is there, by its availability topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Availability {
    /// Nothing is retained there, or the broker is out of reach.
    #[default]
    Unknown,
    Online,
    Offline,
}

impl Availability {
    /// Reads the topic's payload; None: it is none of its words.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        match payload {
            b"" => Some(Availability::Unknown),
            payload if payload == ONLINE.as_bytes() => Some(Availability::Online),
            payload if payload == OFFLINE.as_bytes() => Some(Availability::Offline),
            _ => None,
        }
    }

    /// As JSON has it: true, false or null.
    pub fn known(self) -> Option<bool> {
        match self {
            Availability::Unknown => None,
            Availability::Online => Some(true),
            Availability::Offline => Some(false),
        }
    }

    pub fn is_online(self) -> bool {
        self == Availability::Online
    }
}

/// What a robot last said; empty where it said nothing or the broker is out of reach.
#[derive(Debug, Clone, Default)]
pub struct RobotView {
    pub availability: Availability,
    pub state: Option<Arc<RobotState>>,
}

impl RobotView {
    /// Frames reach the server, by the word of a robot that is there.
    pub fn is_live(&self) -> bool {
        let live = |state: &Arc<RobotState>| state.state == StreamState::Live;
        self.availability != Availability::Offline && self.state.as_ref().is_some_and(live)
    }

    /// The robot has opened its stream, whatever became of it.
    pub fn is_open(&self) -> bool {
        let open = |state: &Arc<RobotState>| state.state != StreamState::Idle;
        self.state.as_ref().is_some_and(open)
    }

    /// Nothing is known of the robot.
    pub fn is_empty(&self) -> bool {
        self.availability == Availability::Unknown && self.state.is_none()
    }
}

/// Correlation data of what a bridge says in place of a robot that polls: whoever reads it knows
/// that the robot has not said it by MQTT itself.
pub const ON_BEHALF: &[u8] = b"poll";
/// Presence that another bridge has announced is believed for so long: the longest poll and grace.
const ANNOUNCED: Duration = Duration::from_secs(60 + GRACE);
/// Presence is announced anew, for other bridges, after this long.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(10);

/// Who has said it on a robot's availability topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The robot, which speaks MQTT itself.
    Robot,
    /// A bridge, for a robot that polls.
    Bridge,
    /// One of them: MQTT 3.1.1 carries no correlation data.
    Either,
}

impl Speaker {
    /// By a message's correlation data.
    pub fn of(correlation: Option<&[u8]>) -> Self {
        match correlation {
            Some(ON_BEHALF) => Speaker::Bridge,
            _ => Speaker::Robot,
        }
    }
}

/// A robot that polls.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    /// It counts as offline from then on.
    pub until: Duration,
    /// It polls here: this bridge writes its note.
    pub here: bool,
    /// Its being online was last said to the broker, by whichever bridge.
    announced: Option<Duration>,
}

impl Presence {
    /// The robot polls here, and may be silent for `wait` from now on.
    pub fn polled(known: Option<Presence>, wait: Duration, now: Duration) -> Self {
        Presence {
            until: now + wait + Duration::from_secs(GRACE),
            here: true,
            announced: known.and_then(|presence| presence.announced),
        }
    }

    /// What is known by a word on the availability topic beside what was `known`; None: it does
    /// not poll, or not any more.
    pub fn told(
        known: Option<Presence>,
        availability: Availability,
        by: Speaker,
        now: Duration,
    ) -> Option<Self> {
        let here = known.filter(|presence| presence.here);
        let by = match by {
            // It polls here: this is what was said in its place.
            Speaker::Either if here.is_some() => Speaker::Bridge,
            Speaker::Either => Speaker::Robot,
            by => by,
        };
        match (availability, by) {
            (Availability::Online, Speaker::Bridge) => Some(Presence {
                // Of a robot that polls here the last poll says more.
                until: here.map_or(now + ANNOUNCED, |presence| presence.until),
                here: here.is_some(),
                announced: Some(now),
            }),
            // Another bridge has not heard of it, this one has.
            (_, Speaker::Bridge) => here,
            // It speaks MQTT itself.
            (_, Speaker::Robot | Speaker::Either) => None,
        }
    }

    /// Others are to be told that it is online.
    pub fn is_to_be_announced(&self, now: Duration) -> bool {
        self.announced.is_none_or(|at| at + ANNOUNCE_AGAIN <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_correlation_data_a_robot_that_polls_here_goes_on_polling() {
        let now = Duration::from_secs(100);
        let told = |known, word| Presence::told(known, word, Speaker::Either, now);
        let polls = Some(Presence::polled(None, Duration::ZERO, now));
        for word in [Availability::Online, Availability::Offline] {
            assert!(told(polls, word).is_some_and(|presence| presence.here));
            assert!(told(None, word).is_none(), "it speaks MQTT itself");
        }
        assert!(
            !told(polls, Availability::Online)
                .unwrap()
                .is_to_be_announced(now)
        );
    }
}
