// SPDX-License-Identifier: MPL-2.0

//! MQTT 5 and MQTT 3.1.1 behind one face: what a session asks of a connection, and what comes.

use std::{fmt, time::Duration};

use rumqttc::{
    self as v311, NetworkOptions, Outgoing,
    v5::{self, mqttbytes::v5 as packet},
};

use super::{
    broker::BrokerUrl,
    fault::{Cause, Fault},
    reason::Reason,
    transport::transport,
};
use crate::{net::tls, secret::Secret};

/// Unacknowledged publishes; rumqttc reserves memory for this many.
const INFLIGHT: u16 = 20;
/// Announced to the broker, which then withholds larger packets instead of cutting us off.
const MAX_PACKET: u32 = 32 * 1024;
/// MQTT 3.1.1 cannot announce it: a larger packet in the broker's queue would end each connection.
const MAX_PACKET_311: usize = 16 * 1024 * 1024;
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

/// How one connection is opened.
pub(super) struct Opening<'a> {
    pub broker: &'a BrokerUrl,
    pub version: Version,
    pub client_id: &'a str,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub tls: Option<tls::Client>,
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
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
    /// The connection begins with the first [`Connection::next`].
    pub fn open(self) -> Result<(Client, Connection), String> {
        let broker = self.broker;
        let host = if broker.scheme.is_websocket() {
            broker.to_string()
        } else {
            broker.host.clone()
        };
        let transport = transport(broker.scheme, self.tls.as_ref())?;
        let login = (self.username.is_some() || self.password.is_some()).then(|| {
            let password = self.password.as_ref().map_or("", Secret::expose);
            (self.username.clone().unwrap_or_default(), password)
        });
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(self.connect_timeout.as_secs());
        // By itself rumqttc acknowledges many at once, ahead of the handler.
        let manual_acks = !self.session_expiry.is_zero();
        match self.version {
            Version::V5 => {
                let mut options = v5::MqttOptions::new(self.client_id, host, broker.port);
                options
                    .set_transport(transport)
                    .set_network_options(network)
                    .set_connection_timeout(self.connect_timeout.as_secs())
                    .set_keep_alive(self.keep_alive)
                    .set_outgoing_inflight_upper_limit(INFLIGHT)
                    .set_max_packet_size(Some(MAX_PACKET))
                    .set_session_expiry_interval(Some(
                        u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX),
                    ))
                    .set_clean_start(self.clean_start)
                    .set_receive_maximum(Some(self.receive_maximum.max(1)))
                    .set_manual_acks(manual_acks);
                if let Some((user, password)) = login {
                    options.set_credentials(user, password);
                }
                if let Some((topic, payload, retain)) = self.will {
                    let properties = packet::LastWillProperties {
                        delay_interval: Some(WILL_DELAY),
                        payload_format_indicator: None,
                        message_expiry_interval: None,
                        content_type: None,
                        response_topic: None,
                        correlation_data: None,
                        user_properties: Vec::new(),
                    };
                    options.set_last_will(packet::LastWill::new(
                        topic,
                        payload.as_bytes(),
                        v5::mqttbytes::QoS::AtLeastOnce,
                        retain,
                        Some(properties),
                    ));
                }
                let (client, events) = v5::AsyncClient::new(options, self.channel);
                Ok((Client::V5(client), Connection::V5(Box::new(events))))
            }
            Version::V311 => {
                let mut options = v311::MqttOptions::new(self.client_id, host, broker.port);
                options
                    .set_transport(transport)
                    .set_keep_alive(self.keep_alive)
                    .set_inflight(INFLIGHT)
                    .set_max_packet_size(MAX_PACKET_311, MAX_PACKET_311)
                    .set_clean_session(self.clean_start || self.session_expiry.is_zero())
                    .set_manual_acks(manual_acks);
                if let Some((user, password)) = login {
                    options.set_credentials(user, password);
                }
                if let Some((topic, payload, retain)) = self.will {
                    options.set_last_will(v311::LastWill::new(
                        topic,
                        payload.as_bytes(),
                        v311::QoS::AtLeastOnce,
                        retain,
                    ));
                }
                let (client, mut events) = v311::AsyncClient::new(options, self.channel);
                events.set_network_options(network);
                Ok((Client::V311(client), Connection::V311(Box::new(events))))
            }
        }
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

/// Hands requests to the connection; never waits.
#[derive(Clone)]
pub(super) enum Client {
    V5(v5::AsyncClient),
    V311(v311::AsyncClient),
}

impl Client {
    /// Publishes with QoS 1.
    pub fn publish(
        &self,
        topic: &str,
        retain: bool,
        payload: Vec<u8>,
        expiry: Option<Duration>,
        correlation: Option<Vec<u8>>,
    ) -> Result<(), Full> {
        match self {
            Client::V5(client) => {
                let properties = packet::PublishProperties {
                    message_expiry_interval: expiry
                        .map(|expiry| u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX)),
                    correlation_data: correlation.map(Into::into),
                    ..packet::PublishProperties::default()
                };
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                client
                    .try_publish_with_properties(topic, qos, retain, payload, properties)
                    .map_err(|_| Full)
            }
            Client::V311(client) => client
                .try_publish(topic, v311::QoS::AtLeastOnce, retain, payload)
                .map_err(|_| Full),
        }
    }

    /// Subscribes with QoS 1. MQTT 3.1.1 gives what is retained at each subscription.
    pub fn subscribe<'a>(
        &self,
        filters: impl IntoIterator<Item = &'a str>,
        retained: RetainedAt,
    ) -> Result<(), Full> {
        match self {
            Client::V5(client) => {
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
                client.try_subscribe_many(filters).map_err(|_| Full)
            }
            Client::V311(client) => {
                let filters = filters.into_iter().map(|path| {
                    v311::SubscribeFilter::new(path.to_owned(), v311::QoS::AtLeastOnce)
                });
                client.try_subscribe_many(filters).map_err(|_| Full)
            }
        }
    }

    pub fn unsubscribe(&self, filter: &str) {
        // What still comes goes nowhere, and the next connection does without.
        match self {
            Client::V5(client) => drop(client.try_unsubscribe(filter)),
            Client::V311(client) => drop(client.try_unsubscribe(filter)),
        }
    }

    pub fn disconnect(&self) -> Result<(), Full> {
        match self {
            Client::V5(client) => client.try_disconnect().map_err(|_| Full),
            Client::V311(client) => client.try_disconnect().map_err(|_| Full),
        }
    }

    pub fn acknowledge(&self, publish: &Publish) {
        // There is room for all of them.
        match (self, &publish.packet) {
            (Client::V5(client), PublishPacket::V5(packet)) => drop(client.try_ack(packet)),
            (Client::V311(client), PublishPacket::V311(packet)) => drop(client.try_ack(packet)),
            _ => {}
        }
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
    packet: PublishPacket,
}

enum PublishPacket {
    V5(packet::Publish),
    V311(v311::Publish),
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
            packet: PublishPacket::V5(publish),
        }
    }
}

impl From<v311::Publish> for Publish {
    fn from(publish: v311::Publish) -> Self {
        Publish {
            topic: publish.topic.clone(),
            payload: publish.payload.to_vec(),
            packet_id: publish.pkid,
            duplicate: publish.dup,
            retained: publish.retain,
            expiry: None,
            correlation: None,
            packet: PublishPacket::V311(publish),
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

    fn sent(outgoing: &Outgoing) -> Self {
        match outgoing {
            Outgoing::PingReq => Step::Pinged,
            Outgoing::Publish(id) => Step::Numbered(*id),
            _ => Step::Sent,
        }
    }
}

/// One connection to the broker: gone at the first fault.
pub(super) enum Connection {
    V5(Box<v5::EventLoop>),
    V311(Box<v311::EventLoop>),
}

impl Connection {
    pub fn version(&self) -> Version {
        match self {
            Connection::V5(_) => Version::V5,
            Connection::V311(_) => Version::V311,
        }
    }

    /// The next step. Once connected, dropping this loses nothing.
    pub async fn next(
        &mut self,
        broker: &BrokerUrl,
        connect_timeout: Duration,
    ) -> Result<Step, Fault> {
        match self {
            Connection::V5(events) => match events.poll().await {
                Ok(v5::Event::Incoming(packet)) => Ok(step_of(packet)),
                Ok(v5::Event::Outgoing(outgoing)) => Ok(Step::sent(&outgoing)),
                Err(error) => Err(Fault::of(Cause::of_v5(&error), broker, connect_timeout)),
            },
            Connection::V311(events) => match events.poll().await {
                Ok(v311::Event::Incoming(packet)) => Ok(step_of_311(packet)),
                Ok(v311::Event::Outgoing(outgoing)) => Ok(Step::sent(&outgoing)),
                Err(error) => Err(Fault::of(Cause::of_v311(&error), broker, connect_timeout)),
            },
        }
    }

    pub fn ping(&mut self) {
        match self {
            Connection::V5(events) => events.pending.push_back(v5::Request::PingReq),
            Connection::V311(events) => {
                events
                    .pending
                    .push_back(v311::Request::PingReq(v311::PingReq));
            }
        }
    }

    /// The keep-alive that holds for this connection, which may be the broker's. From now on
    /// rumqttc sends no ping by itself, but for its first one.
    pub fn take_keep_alive(&mut self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(u16::MAX as u64);
        match self {
            Connection::V5(events) => {
                let keep_alive = events.options.keep_alive();
                events.options.set_keep_alive(LONGEST);
                keep_alive
            }
            Connection::V311(events) => {
                let keep_alive = events.mqtt_options.keep_alive();
                events.mqtt_options.set_keep_alive(LONGEST);
                keep_alive
            }
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
