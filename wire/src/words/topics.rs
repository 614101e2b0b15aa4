// SPDX-License-Identifier: MPL-2.0

//! Topics beside the command topic, and what is a topic at all.

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
