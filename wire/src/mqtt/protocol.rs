// SPDX-License-Identifier: MPL-2.0

//! MQTT 5 and MQTT 3.1.1 behind one face: what a session asks of a connection, and what comes.

use std::{fmt, time::Duration};

use rumqttc::{
    self as v311, Outgoing,
    v5::{self, mqttbytes::v5 as packet},
};
use tokio::sync::mpsc;

use super::reason::Reason;
use crate::secret::Secret;

/// Announced to the broker, which then withholds larger packets instead of cutting us off.
pub(super) const MAX_PACKET: u32 = 32 * 1024;
/// How long a broker waits before it says the last will: a link that comes back at once was not
/// away. Some brokers (Artemis) hold a will without a delay until the session expires.
const WILL_DELAY: u32 = 1;

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V5,
    V311,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V5 => "5",
            Version::V311 => "3.1.1",
        })
    }
}

/// What the broker of a connection can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub version: Version,
    /// It keeps retained messages.
    pub retain: bool,
    /// Bytes of the largest packet that it takes, where it says so.
    pub max_packet: Option<u32>,
    /// It takes filters with wildcards.
    pub wildcards: bool,
}

impl Capabilities {
    /// What MQTT 5 gives where the broker announces nothing else.
    pub const ALL: Capabilities = Capabilities {
        version: Version::V5,
        retain: true,
        max_packet: None,
        wildcards: true,
    };

    /// What is lost at this broker, and the remedy: a sentence for each.
    pub fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if self.version == Version::V311 {
            lacks.push("the broker speaks MQTT 3.1.1 only: a start that waited there is obeyed only where it says when it was sent, and refused messages are not told; use a broker with MQTT 5".to_owned());
        }
        if !self.retain {
            let reason = Reason::RETAIN_NOT_SUPPORTED;
            lacks.push(format!("the broker says: {reason}"));
        }
        if let Some(max) = self.max_packet.filter(|max| *max < SMALL_PACKET) {
            lacks.push(format!(
                "the broker takes packets of at most {max} bytes: states are shortened; raise its limit to 16384"
            ));
        }
        lacks
    }
}

/// What a state may need, with its topic.
const SMALL_PACKET: u32 = 10 * 1024;

/// How a session begins on a connection.
pub(super) struct Opening<'a> {
    pub version: Version,
    pub client_id: &'a str,
    pub username: Option<&'a str>,
    pub password: Option<&'a Secret>,
    pub keep_alive: Duration,
    /// How long the broker keeps the session.
    pub session_expiry: Duration,
    pub clean_start: bool,
    pub receive_maximum: u16,
    /// Topic, payload, retained.
    pub will: Option<(&'a str, &'a str, bool)>,
    /// Requests that can wait.
    pub channel: usize,
}

impl Opening<'_> {
    fn keep_alive_seconds(&self) -> u16 {
        u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX)
    }

    fn login(&self) -> Option<(&str, &str)> {
        (self.username.is_some() || self.password.is_some()).then(|| {
            let password = self.password.map_or("", Secret::expose);
            (self.username.unwrap_or_default(), password)
        })
    }

    pub fn connect_v5(&self) -> packet::Packet {
        let properties = packet::ConnectProperties {
            session_expiry_interval: Some(
                u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX),
            ),
            receive_maximum: Some(self.receive_maximum.max(1)),
            max_packet_size: Some(MAX_PACKET),
            ..packet::ConnectProperties::new()
        };
        let connect = packet::Connect {
            keep_alive: self.keep_alive_seconds(),
            client_id: self.client_id.to_owned(),
            clean_start: self.clean_start,
            properties: Some(properties),
        };
        let will = self.will.map(|(topic, payload, retain)| {
            let properties = packet::LastWillProperties {
                delay_interval: Some(WILL_DELAY),
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            };
            packet::LastWill::new(
                topic,
                payload.as_bytes(),
                v5::mqttbytes::QoS::AtLeastOnce,
                retain,
                Some(properties),
            )
        });
        let login = self.login().map(|(user, password)| packet::Login {
            username: user.to_owned(),
            password: password.to_owned(),
        });
        packet::Packet::Connect(connect, will, login)
    }

    pub fn connect_v311(&self) -> v311::Packet {
        let mut connect = v311::Connect::new(self.client_id);
        connect.keep_alive = self.keep_alive_seconds();
        connect.clean_session = self.clean_start || self.session_expiry.is_zero();
        connect.last_will = self.will.map(|(topic, payload, retain)| {
            v311::LastWill::new(topic, payload.as_bytes(), v311::QoS::AtLeastOnce, retain)
        });
        connect.login = self
            .login()
            .map(|(user, password)| v311::Login::new(user, password));
        v311::Packet::Connect(connect)
    }
}

/// When a subscription is given what is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetainedAt {
    EachSubscription,
    NewSubscription,
    Never,
}

/// The queue has no room, or the connection is gone.
pub(super) struct Full;

/// What a connection is asked to send.
pub(super) enum Request {
    V5(v5::Request),
    V311(v311::Request),
}

/// Hands requests to the connection; never waits.
#[derive(Clone)]
pub(super) struct Client {
    version: Version,
    requests: mpsc::Sender<Request>,
}

impl Client {
    pub fn new(version: Version, room: usize) -> (Self, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(room);
        (Client { version, requests }, asked)
    }

    fn ask(&self, request: Request) -> Result<(), Full> {
        self.requests.try_send(request).map_err(|_| Full)
    }

    /// Publishes with QoS 1.
    pub fn publish(
        &self,
        topic: &str,
        retain: bool,
        payload: Vec<u8>,
        expiry: Option<Duration>,
        correlation: Option<Vec<u8>>,
    ) -> Result<(), Full> {
        self.ask(match self.version {
            Version::V5 => {
                let properties = packet::PublishProperties {
                    message_expiry_interval: expiry
                        .map(|expiry| u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX)),
                    correlation_data: correlation.map(Into::into),
                    ..packet::PublishProperties::default()
                };
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                let mut publish = packet::Publish::new(topic, qos, payload, Some(properties));
                publish.retain = retain;
                Request::V5(v5::Request::Publish(publish))
            }
            Version::V311 => {
                let mut publish = v311::Publish::new(topic, v311::QoS::AtLeastOnce, payload);
                publish.retain = retain;
                Request::V311(v311::Request::Publish(publish))
            }
        })
    }

    /// Subscribes with QoS 1. MQTT 3.1.1 gives what is retained at each subscription.
    pub fn subscribe<'a>(
        &self,
        filters: impl IntoIterator<Item = &'a str>,
        retained: RetainedAt,
    ) -> Result<(), Full> {
        self.ask(match self.version {
            Version::V5 => {
                let retain_forward_rule = match retained {
                    RetainedAt::EachSubscription => packet::RetainForwardRule::OnEverySubscribe,
                    RetainedAt::NewSubscription => packet::RetainForwardRule::OnNewSubscribe,
                    RetainedAt::Never => packet::RetainForwardRule::Never,
                };
                let filters = filters.into_iter().map(|path| packet::Filter {
                    path: path.to_owned(),
                    qos: v5::mqttbytes::QoS::AtLeastOnce,
                    nolocal: false,
                    preserve_retain: false,
                    retain_forward_rule: retain_forward_rule.clone(),
                });
                Request::V5(packet::Subscribe::new_many(filters, None).into())
            }
            Version::V311 => {
                let filters = filters.into_iter().map(|path| {
                    v311::SubscribeFilter::new(path.to_owned(), v311::QoS::AtLeastOnce)
                });
                Request::V311(v311::Subscribe::new_many(filters).into())
            }
        })
    }

    pub fn unsubscribe(&self, filter: &str) {
        // What still comes goes nowhere, and the next connection does without.
        let _ = self.ask(match self.version {
            Version::V5 => Request::V5(v5::Request::Unsubscribe(packet::Unsubscribe::new(
                filter, None,
            ))),
            Version::V311 => {
                Request::V311(v311::Request::Unsubscribe(v311::Unsubscribe::new(filter)))
            }
        });
    }

    pub fn disconnect(&self) -> Result<(), Full> {
        self.ask(match self.version {
            Version::V5 => Request::V5(v5::Request::Disconnect),
            Version::V311 => Request::V311(v311::Request::Disconnect(v311::Disconnect)),
        })
    }

    pub fn acknowledge(&self, publish: &Publish) {
        if publish.packet_id == 0 {
            return;
        }
        let id = publish.packet_id;
        // There is room for all of them.
        let _ = self.ask(match self.version {
            Version::V5 => Request::V5(v5::Request::PubAck(packet::PubAck::new(id, None))),
            Version::V311 => Request::V311(v311::Request::PubAck(v311::PubAck::new(id))),
        });
    }
}

/// A message as it came.
pub(super) struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub packet_id: u16,
    pub duplicate: bool,
    pub retained: bool,
    pub expiry: Option<Duration>,
    pub correlation: Option<Vec<u8>>,
}

impl From<packet::Publish> for Publish {
    fn from(publish: packet::Publish) -> Self {
        let properties = publish.properties.as_ref();
        Publish {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.to_vec(),
            packet_id: publish.pkid,
            duplicate: publish.dup,
            retained: publish.retain,
            expiry: properties
                .and_then(|properties| properties.message_expiry_interval)
                .map(|seconds| Duration::from_secs(seconds.into())),
            correlation: properties
                .and_then(|properties| properties.correlation_data.as_ref())
                .map(|data| data.to_vec()),
        }
    }
}

impl From<v311::Publish> for Publish {
    fn from(publish: v311::Publish) -> Self {
        Publish {
            topic: publish.topic,
            payload: publish.payload.to_vec(),
            packet_id: publish.pkid,
            duplicate: publish.dup,
            retained: publish.retain,
            expiry: None,
            correlation: None,
        }
    }
}

/// What happens on a connection.
pub(super) enum Step {
    /// The broker has accepted us, and may know us from before.
    Greeted {
        session_present: bool,
        capabilities: Capabilities,
        /// QoS 1 is not to be had.
        at_most_once: bool,
    },
    Subscribed(Vec<Reason>),
    Message(Box<Publish>),
    Acknowledged(u16, Reason),
    Pong,
    /// Something else that came.
    Heard,
    /// A publish has got its packet identifier, in the order of the requests.
    Numbered(u16),
    Pinged,
    /// Something else that went.
    Sent,
}

impl Step {
    pub fn came(&self) -> bool {
        !matches!(self, Step::Numbered(_) | Step::Pinged | Step::Sent)
    }

    pub fn of_v5(event: v5::Event) -> Self {
        match event {
            v5::Event::Incoming(packet) => step_of(packet),
            v5::Event::Outgoing(outgoing) => Step::sent(&outgoing),
        }
    }

    pub fn of_v311(event: v311::Event) -> Self {
        match event {
            v311::Event::Incoming(packet) => step_of_311(packet),
            v311::Event::Outgoing(outgoing) => Step::sent(&outgoing),
        }
    }

    fn sent(outgoing: &Outgoing) -> Self {
        match outgoing {
            Outgoing::PingReq => Step::Pinged,
            Outgoing::Publish(id) => Step::Numbered(*id),
            _ => Step::Sent,
        }
    }
}

fn step_of(packet: packet::Packet) -> Step {
    use packet::{Packet, PubAckReason, SubscribeReasonCode};
    match packet {
        Packet::ConnAck(answer) => {
            let properties = answer.properties.as_ref();
            let is_off = |flag: Option<u8>| flag == Some(0);
            Step::Greeted {
                session_present: answer.session_present,
                capabilities: Capabilities {
                    version: Version::V5,
                    retain: !properties.is_some_and(|has| is_off(has.retain_available)),
                    max_packet: properties.and_then(|has| has.max_packet_size),
                    wildcards: !properties
                        .is_some_and(|has| is_off(has.wildcard_subscription_available)),
                },
                at_most_once: properties.is_some_and(|has| is_off(has.max_qos)),
            }
        }
        Packet::SubAck(answer) => {
            let reason = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(_) => Reason::SUCCESS,
                SubscribeReasonCode::Failure | SubscribeReasonCode::Unspecified => {
                    Reason::UNSPECIFIED
                }
                SubscribeReasonCode::ImplementationSpecific => Reason::IMPLEMENTATION_SPECIFIC,
                SubscribeReasonCode::NotAuthorized => Reason::NOT_AUTHORIZED,
                SubscribeReasonCode::TopicFilterInvalid => Reason::TOPIC_FILTER_INVALID,
                SubscribeReasonCode::PkidInUse => Reason::PACKET_ID_IN_USE,
                SubscribeReasonCode::QuotaExceeded => Reason::QUOTA_EXCEEDED,
                SubscribeReasonCode::SharedSubscriptionsNotSupported => {
                    Reason::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
                }
                SubscribeReasonCode::SubscriptionIdNotSupported => {
                    Reason::SUBSCRIPTION_IDS_NOT_SUPPORTED
                }
                SubscribeReasonCode::WildcardSubscriptionsNotSupported => {
                    Reason::WILDCARDS_NOT_SUPPORTED
                }
            };
            Step::Subscribed(answer.return_codes.iter().map(reason).collect())
        }
        Packet::Publish(publish) => Step::Message(Box::new(publish.into())),
        Packet::PubAck(answer) => {
            let reason = match answer.reason {
                PubAckReason::Success => Reason::SUCCESS,
                PubAckReason::NoMatchingSubscribers => Reason::NO_MATCHING_SUBSCRIBERS,
                PubAckReason::UnspecifiedError => Reason::UNSPECIFIED,
                PubAckReason::ImplementationSpecificError => Reason::IMPLEMENTATION_SPECIFIC,
                PubAckReason::NotAuthorized => Reason::NOT_AUTHORIZED,
                PubAckReason::TopicNameInvalid => Reason::TOPIC_NAME_INVALID,
                PubAckReason::PacketIdentifierInUse => Reason::PACKET_ID_IN_USE,
                PubAckReason::QuotaExceeded => Reason::QUOTA_EXCEEDED,
                PubAckReason::PayloadFormatInvalid => Reason::PAYLOAD_FORMAT_INVALID,
            };
            Step::Acknowledged(answer.pkid, reason)
        }
        Packet::PingResp(_) => Step::Pong,
        _ => Step::Heard,
    }
}

fn step_of_311(packet: v311::Packet) -> Step {
    use v311::{Packet, SubscribeReasonCode};
    match packet {
        Packet::ConnAck(answer) => Step::Greeted {
            session_present: answer.session_present,
            capabilities: Capabilities {
                version: Version::V311,
                ..Capabilities::ALL
            },
            at_most_once: false,
        },
        Packet::SubAck(answer) => {
            let reason = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(_) => Reason::SUCCESS,
                SubscribeReasonCode::Failure => Reason::UNSPECIFIED,
            };
            Step::Subscribed(answer.return_codes.iter().map(reason).collect())
        }
        Packet::Publish(publish) => Step::Message(Box::new(publish.into())),
        Packet::PubAck(answer) => Step::Acknowledged(answer.pkid, Reason::SUCCESS),
        Packet::PingResp => Step::Pong,
        _ => Step::Heard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_lacks_is_said_with_what_is_lost() {
        assert_eq!(Capabilities::ALL.lacks(), Vec::<String>::new());
        let poor = Capabilities {
            version: Version::V311,
            retain: false,
            max_packet: Some(600),
            wildcards: true,
        };
        let lacks = poor.lacks();
        for (said, part) in lacks.iter().zip(["3.1.1", "retained", "600"]) {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(lacks.len(), 3);
    }
}
