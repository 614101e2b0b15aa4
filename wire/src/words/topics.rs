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

/// Levels that Mosquitto takes; others take more, or no fewer.
const MAX_LEVELS: usize = 200;

/// Says what is wrong with `topic` as a topic to publish to or to receive commands on
/// (MQTT 5.0, section 4.7): what no broker takes, or what some end the connection for.
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
    if let Some(c) = topic.chars().find(|c| c.is_control()) {
        return Err(format!(
            "the topic {topic:?} contains the control character {c:?}, for which brokers end the connection: take it out"
        ));
    }
    if topic.starts_with('$') {
        return Err(format!(
            "the topic {topic:?} begins with $, which brokers keep for themselves ($SYS, $share): begin it with another character"
        ));
    }
    let levels = topic.split('/').count();
    if levels > MAX_LEVELS {
        return Err(format!(
            "the topic has {levels} levels: brokers take {MAX_LEVELS}, with its suffixes"
        ));
    }
    Ok(())
}

/// Says which two of these topics are one: whoever speaks on one of them would hear itself on the
/// other, and answer without end. Each comes with what it is called.
pub fn check_distinct(topics: &[(&str, &str)]) -> Result<(), String> {
    for (n, (name, topic)) in topics.iter().enumerate() {
        if let Some((twin, _)) = topics[..n].iter().find(|(_, other)| other == topic) {
            return Err(format!(
                "{name} is {topic:?}, and so is {twin}: what is said on one would be heard on the other; make them differ"
            ));
        }
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

    #[test]
    fn what_no_broker_takes_is_refused_with_the_reason() {
        for (topic, reason) in [
            ("$SYS/broker/uptime", "$SYS/broker"),
            ("$share/group/robot", "begins with $"),
            ("robot/str\u{7}eam", "\\u{7}"),
            ("robot\nstream", "\\n"),
        ] {
            let error = check_topic(topic).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
        let levels = |count: usize| vec!["a"; count].join("/");
        assert!(check_topic(&levels(200)).is_ok());
        assert!(check_topic(&levels(201)).unwrap_err().contains("201"));
        assert!(check_topic("robot/$share").is_ok(), "not the first level");
    }

    #[test]
    fn two_topics_that_are_one_are_both_named() {
        let topics = [("topic", "a"), ("state-topic", "b"), ("other", "a")];
        let error = check_distinct(&topics).unwrap_err();
        assert!(error.contains("other is \"a\""), "{error}");
        assert!(error.contains("so is topic"), "{error}");
        assert_eq!(check_distinct(&topics[..2]), Ok(()));
    }
}
