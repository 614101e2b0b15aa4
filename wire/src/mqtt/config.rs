// SPDX-License-Identifier: MPL-2.0

//! What a session needs to know, and what it tells.

use std::time::Duration;

use super::{broker::BrokerUrl, fault::Fault, protocol::Capabilities};
use crate::{net::tls, secret::Secret, words::command::check_id};

/// For [`Config::receive_maximum`]: all that Mosquitto queues (1000) and has in flight (20) by
/// default. Mosquitto before 2.0.15 fills this window with expired messages as with others, and
/// sends nothing where there is no other among them: the `stop` behind 20 expired `start` would
/// not come (its issue 2609).
pub const RECEIVE_MAXIMUM: u16 = 1024;
/// rumqttc's lower bound for MQTT 5.
pub const MIN_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// User name and password, asked for anew at each connect.
pub type Credentials =
    Box<dyn Fn() -> Result<(Option<String>, Option<Secret>), String> + Send + Sync>;

/// What a session needs to know; nothing is checked before it begins but what the types say.
pub struct Config {
    pub broker: BrokerUrl,
    pub client_id: String,
    pub credentials: Credentials,
    /// Needed for `mqtts` and `wss`.
    pub tls: Option<tls::Source>,
    /// At least [`MIN_KEEP_ALIVE`]; a shorter one is raised to it.
    pub keep_alive: Duration,
    /// How long the broker keeps queued commands for this client. Zero: not at all.
    pub session_expiry: Duration,
    /// It takes the place of a session with the same client id that has just ended: what the
    /// broker has kept since then is not forgotten.
    pub resumes: bool,
    /// Messages that the broker may send ahead of our acknowledgements; usually
    /// [`RECEIVE_MAXIMUM`]. Of more retained values than this and 1000 together, Mosquitto drops
    /// those beyond at a new subscription.
    pub receive_maximum: u16,
    /// Topic and payload of the retained last will. A value that the session keeps retained there
    /// is said again now and then, in case the will came all the same.
    pub will: Option<(String, String)>,
    /// Topic filters, QoS 1.
    pub subscriptions: Vec<String>,
    /// Further ones, of which only what is published from now on is given: [`Message::retained`]
    /// tells there that it was published to be retained. MQTT 3.1.1 cannot ask for that: there they
    /// are like the others.
    pub live: Vec<String>,
}

impl Config {
    /// Whether the broker keeps for the next connection what this one has not acknowledged.
    pub(super) fn is_kept(&self) -> bool {
        !self.session_expiry.is_zero()
    }
}

/// What happens to a session, in order.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed, at a broker that can do this.
    Up(Capabilities),
    /// Not connected: why. Comes for each failed try.
    Down(Fault),
    /// A message; it is acknowledged when the handler returns, in a session that the broker
    /// keeps, so that none is lost with the connection.
    Message(Message),
    /// The broker does not take a retained value, or a subscription beside those that the
    /// session needs: which, and the remedy. Comes once for each in a connection.
    Refused(Fault),
}

/// A message on a subscribed topic.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Sent by the broker because it was retained, not because somebody just published it.
    pub retained: bool,
    /// It may have waited at the broker, which does not know how long it is to be kept
    /// (MQTT 3.1.1).
    pub may_be_old: bool,
    /// How long the broker would still have kept it for a receiver (MQTT 5, 3.3.2.3.3); `None`
    /// without end.
    pub expiry: Option<Duration>,
    /// What the sender knows this message by (MQTT 5, 3.3.2.3.6).
    pub correlation: Option<Vec<u8>>,
}

impl Message {
    /// The correlation data, where it is fit for logs and states as a viewer's id is.
    pub fn correlation_text(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.correlation.as_deref()?).ok()?;
        check_id(text).ok()
    }
}

/// What a message carries beside its payload.
#[derive(Debug, Clone, Default)]
pub struct Properties {
    /// The broker forgets the message when it has waited this long for a receiver.
    pub expiry: Option<Duration>,
    /// Handed to the receivers, who name the message by it.
    pub correlation: Option<Vec<u8>>,
    /// The broker keeps the message as the topic's value.
    pub retain: bool,
}
