// SPDX-License-Identifier: MPL-2.0

//! What a robot last said.

use std::sync::Arc;

use droidrelay_wire::{
    RobotState, StreamState,
    words::topics::{OFFLINE, ONLINE},
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
