// SPDX-License-Identifier: MPL-2.0

//! Reason codes of a broker, each with its remedy (MQTT 5.0, section 2.4; MQTT 3.1.1, table 3.1).

use std::fmt;

/// A reason code as MQTT 5 numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u8);

impl Reason {
    pub const SUCCESS: Reason = Reason(0x00);
    pub const NO_MATCHING_SUBSCRIBERS: Reason = Reason(0x10);
    pub const UNSPECIFIED: Reason = Reason(0x80);
    pub const MALFORMED_PACKET: Reason = Reason(0x81);
    pub const PROTOCOL_ERROR: Reason = Reason(0x82);
    pub const IMPLEMENTATION_SPECIFIC: Reason = Reason(0x83);
    pub const UNSUPPORTED_PROTOCOL_VERSION: Reason = Reason(0x84);
    pub const CLIENT_ID_NOT_VALID: Reason = Reason(0x85);
    pub const BAD_USER_NAME_OR_PASSWORD: Reason = Reason(0x86);
    pub const NOT_AUTHORIZED: Reason = Reason(0x87);
    pub const SERVER_UNAVAILABLE: Reason = Reason(0x88);
    pub const SERVER_BUSY: Reason = Reason(0x89);
    pub const BANNED: Reason = Reason(0x8A);
    pub const BAD_AUTHENTICATION_METHOD: Reason = Reason(0x8C);
    pub const SESSION_TAKEN_OVER: Reason = Reason(0x8E);
    pub const TOPIC_FILTER_INVALID: Reason = Reason(0x8F);
    pub const TOPIC_NAME_INVALID: Reason = Reason(0x90);
    pub const PACKET_ID_IN_USE: Reason = Reason(0x91);
    pub const PACKET_TOO_LARGE: Reason = Reason(0x95);
    pub const QUOTA_EXCEEDED: Reason = Reason(0x97);
    pub const PAYLOAD_FORMAT_INVALID: Reason = Reason(0x99);
    pub const RETAIN_NOT_SUPPORTED: Reason = Reason(0x9A);
    pub const QOS_NOT_SUPPORTED: Reason = Reason(0x9B);
    pub const USE_ANOTHER_SERVER: Reason = Reason(0x9C);
    pub const SERVER_MOVED: Reason = Reason(0x9D);
    pub const SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: Reason = Reason(0x9E);
    pub const CONNECTION_RATE_EXCEEDED: Reason = Reason(0x9F);
    pub const SUBSCRIPTION_IDS_NOT_SUPPORTED: Reason = Reason(0xA1);
    pub const WILDCARDS_NOT_SUPPORTED: Reason = Reason(0xA2);

    /// Whether the broker has done what it was asked for.
    pub fn is_success(self) -> bool {
        self.0 < 0x80
    }

    /// Whether another login, other rights or another configuration of the broker is the remedy,
    /// rather than time.
    pub fn is_refusal(self) -> bool {
        !matches!(
            self.0,
            0x00..0x80 | 0x80 | 0x83 | 0x88 | 0x89 | 0x8B | 0x8D | 0x8E | 0x96 | 0x98 | 0xA0
        )
    }

    /// What has happened, and what helps.
    fn texts(self) -> (&'static str, &'static str) {
        match self.0 {
            0x00 => ("success", "nothing is to be done"),
            0x10 => ("nobody is subscribed", "nothing is to be done"),
            0x80 => ("it gives no reason", "look into the broker's log"),
            0x81 => (
                "malformed packet",
                "something between here and the broker changes what passes, or the broker has a fault: look into its log",
            ),
            0x82 => ("protocol error", "look into the broker's log"),
            0x83 => (
                "it does not take this, for reasons of its own",
                "look into the broker's log",
            ),
            0x84 => (
                "it does not speak this version of MQTT",
                "use a broker that speaks MQTT 5 or 3.1.1",
            ),
            0x85 => (
                "it does not take this client id",
                "set client-id to one that the broker's configuration allows",
            ),
            0x86 => (
                "wrong user name or password",
                "check username and password (or password-file)",
            ),
            0x87 => (
                "not authorized",
                "check username and password (or password-file) and the broker's access rights",
            ),
            0x88 => ("it is not available", "wait, or start the broker's service"),
            0x89 => ("it is busy", "wait, or give the broker more resources"),
            0x8A => (
                "this client is banned",
                "lift the ban at the broker, or use another client-id",
            ),
            0x8B => ("it is shutting down", "it is tried again"),
            0x8C => (
                "it wants another authentication method",
                "let the broker accept user name and password",
            ),
            0x8D => (
                "it has heard nothing for too long",
                "the link was dead; it is tried again",
            ),
            0x8E => (
                "another client has connected with the same client id",
                "are there two robots from one image, or two services with one client-id? set client-id to one of its own in each, and where the broker takes the user name as client id, as the server kit's does, give each a user of its own",
            ),
            0x8F => (
                "it does not take this topic filter",
                "choose a topic that the broker's configuration allows",
            ),
            0x90 => (
                "it does not take this topic",
                "choose a topic that the broker's configuration allows",
            ),
            0x91 => ("packet identifier in use", "look into the broker's log"),
            0x93 => (
                "more messages are on their way than it takes",
                "raise the broker's receive maximum",
            ),
            0x94 => ("topic alias not valid", "look into the broker's log"),
            0x95 => (
                "the message is larger than it takes",
                "raise the broker's largest message (message_size_limit, max_packet_size) to 16384 bytes",
            ),
            0x96 => (
                "messages come faster than it takes them",
                "raise the broker's rate limit",
            ),
            0x97 => (
                "a quota is exceeded",
                "raise the broker's quota for this user, or the space on its disk",
            ),
            0x98 => (
                "an administrator has ended the session",
                "it is tried again",
            ),
            0x99 => (
                "it does not take this payload",
                "let the broker accept JSON and plain text on this topic",
            ),
            0x9A => (
                "it keeps no retained messages",
                "allow retained messages at the broker: states and last wills need them",
            ),
            0x9B => (
                "it does not take QoS 1",
                "allow QoS 1 at the broker: commands need it",
            ),
            0x9C => (
                "another server is to be used for now",
                "set the broker's URL to that server",
            ),
            0x9D => (
                "the server has moved",
                "set the broker's URL to the new server",
            ),
            0x9E => (
                "shared subscriptions are not supported",
                "choose a topic that does not begin with $share",
            ),
            0x9F => (
                "connections come faster than it takes them",
                "wait, or raise the broker's connection rate",
            ),
            0xA0 => (
                "the longest time for a connection is over",
                "it is tried again",
            ),
            0xA1 => (
                "subscription identifiers are not supported",
                "look into the broker's log",
            ),
            0xA2 => (
                "subscriptions with wildcards are not supported",
                "list each robot in the configuration, or allow wildcards at the broker",
            ),
            _ => (
                "a reason that MQTT 5 does not name",
                "look into the broker's log",
            ),
        }
    }
}

impl fmt::Display for Reason {
    /// Reason, number and remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, remedy) = self.texts();
        write!(f, "{text} (reason code {:#04x}): {remedy}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_that_mqtt_5_names_has_a_sentence_and_a_remedy_of_its_own() {
        let unknown = Reason(0xFF).texts();
        let named = (0x80..=0xA2).filter(|code| !matches!(code, 0x92 | 0xA0..=0xA0));
        for code in named {
            // 0x92 belongs to QoS 2, which is not used here.
            assert_ne!(Reason(code).texts(), unknown, "{code:#04x}");
        }
        let text = Reason::PACKET_TOO_LARGE.to_string();
        assert!(text.contains("0x95") && text.contains("16384"), "{text}");
        assert!(Reason(0xFF).to_string().contains("0xff"));
    }

    #[test]
    fn what_time_mends_is_told_from_a_refusal() {
        for code in [0x84, 0x85, 0x87, 0x8A, 0x95, 0x9A, 0x9B] {
            assert!(Reason(code).is_refusal(), "{code:#04x}");
        }
        for code in [0x00, 0x89, 0x8B, 0x8E] {
            assert!(!Reason(code).is_refusal(), "{code:#04x}");
        }
    }
}
