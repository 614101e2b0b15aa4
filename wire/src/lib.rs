// SPDX-License-Identifier: MPL-2.0

//! The words that robot and bridge share, and the MQTT session that both keep.
//!
//! Everything but [`session`] and [`tls`] is pure: no I/O besides reading a named
//! secret file, no thread, no clock.

pub mod backoff;
pub mod broker;
pub mod command;
pub mod gate;
pub mod poll;
pub mod secret;
pub mod session;
pub mod state;
pub mod tls;
mod transport;

pub use backoff::Backoff;
pub use broker::BrokerUrl;
pub use command::{Command, Refusal};
pub use secret::Secret;
pub use state::{PublishState, RobotState, StreamState};

/// Payload of the availability topic while the robot's session is up (retained).
pub const ONLINE: &str = "online";
/// Payload of the availability topic after a clean end, and the last will (retained).
pub const OFFLINE: &str = "offline";

/// Default of the command topic.
pub const DEFAULT_TOPIC: &str = "robot/stream";

/// Topic of the retained state beside the command topic `topic`.
pub fn state_topic(topic: &str) -> String {
    format!("{topic}/state")
}

/// Topic of the retained availability beside the command topic `topic`.
pub fn availability_topic(topic: &str) -> String {
    format!("{topic}/availability")
}

/// Says what is wrong with `topic` as a topic to publish to or to receive commands on
/// (MQTT 5.0, section 4.7: no wildcard, no NUL, at most 65,535 bytes).
pub fn check_topic(topic: &str) -> Result<(), String> {
    if topic.is_empty() {
        return Err("the topic is empty: name one, for example \"robot/stream\"".into());
    }
    if topic.len() > 65_000 {
        return Err(format!(
            "the topic has {} bytes: MQTT allows 65,535 with its suffixes",
            topic.len()
        ));
    }
    if let Some(c) = topic.chars().find(|c| matches!(c, '+' | '#' | '\0')) {
        return Err(format!(
            "the topic {topic:?} contains {c:?}: wildcards and NUL are not allowed in the name of one topic"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_with_a_wildcard_is_refused_by_name() {
        assert!(check_topic("robot/stream").is_ok());
        assert!(check_topic("").unwrap_err().contains("empty"));
        assert!(check_topic("robot/+/x").unwrap_err().contains("robot/+/x"));
        assert!(check_topic("robot/#").is_err());
    }
}
