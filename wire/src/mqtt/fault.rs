// SPDX-License-Identifier: MPL-2.0

//! What goes wrong with an MQTT session: a kind to decide by, a text to read.

use std::{error::Error, fmt, io, time::Duration};

use rumqttc::{self as v311, v5};

use super::{broker::BrokerUrl, reason::Reason};
use crate::net::tls;

/// What kind of fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Before connecting: a credential cannot be read, or the build lacks the scheme.
    Setup,
    /// The name has no address, or none takes a connection; or the connection broke.
    Unreachable,
    /// There is no TLS session.
    Tls,
    /// The broker answers, and refuses the login, the connection, a subscription or a message.
    Refused,
    /// The broker has not answered in time.
    Timeout,
    /// The broker ended the connection.
    Closed,
    /// Another client with the same id has connected.
    TakenOver,
    /// A message is larger than the broker takes.
    TooLarge,
    /// The broker does not speak this version of MQTT.
    Version,
    /// What came is not what MQTT allows.
    Protocol,
    /// There is no connection, so that nothing can be sent.
    Offline,
    /// Too much waits for the broker already.
    Overload,
}

/// A fault of the session. Its text is fit for logs: it holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub text: String,
    /// The broker's own reason, where it has given one.
    pub reason: Option<Reason>,
}

impl Fault {
    pub fn new(kind: FaultKind, text: impl Into<String>) -> Self {
        Fault {
            kind,
            text: text.into(),
            reason: None,
        }
    }

    /// The broker does not do `what`, for this `reason`.
    pub(super) fn refusal(what: &str, reason: Reason) -> Self {
        Fault {
            kind: match kind_of(reason) {
                FaultKind::Closed => FaultKind::Refused,
                kind => kind,
            },
            text: format!("the broker refuses {what}: {reason}"),
            reason: Some(reason),
        }
    }

    /// The error in a user's words. rumqttc's errors hold no credentials.
    pub(super) fn of(cause: Cause, broker: &BrokerUrl, connect_timeout: Duration) -> Self {
        let reason = match cause {
            Cause::Refused(reason) | Cause::Disconnected(reason) | Cause::Answered(reason) => {
                Some(reason)
            }
            _ => None,
        };
        let (kind, text) = match cause {
            Cause::Refused(Reason::NOT_AUTHORIZED | Reason::BAD_USER_NAME_OR_PASSWORD) => (
                FaultKind::Refused,
                format!(
                    "{broker} refuses the login: check username and password (or password-file) and the broker's access rights"
                ),
            ),
            Cause::Refused(reason) => (
                match kind_of(reason) {
                    FaultKind::Closed => FaultKind::Refused,
                    kind => kind,
                },
                format!("{broker} refuses the connection: {reason}"),
            ),
            Cause::Disconnected(reason) => {
                (kind_of(reason), format!("{broker} disconnected: {reason}"))
            }
            // In an answer to something that was asked.
            Cause::Answered(reason) => (
                kind_of(reason),
                format!("{broker} refuses what was sent: {reason}"),
            ),
            Cause::Tls(fault) => (FaultKind::Tls, format!("{broker}: {fault}")),
            Cause::NoAnswer => (
                FaultKind::Timeout,
                format!(
                    "{broker} has not answered within {} s: the link is dead, a firewall is in the way, or the broker hangs",
                    connect_timeout.as_secs()
                ),
            ),
            Cause::NoPong => (
                FaultKind::Timeout,
                format!("{broker} has not answered a ping: the link is dead, or the broker hangs"),
            ),
            Cause::Closed => (FaultKind::Closed, format!("{broker} closed the connection")),
            Cause::Io(error) => (
                match error.kind() {
                    io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof => FaultKind::Closed,
                    _ => FaultKind::Unreachable,
                },
                format!("{broker}: {error}"),
            ),
            Cause::Other(error) => (FaultKind::Protocol, format!("{broker}: {error}")),
        };
        Fault { kind, text, reason }
    }
}

fn kind_of(reason: Reason) -> FaultKind {
    match reason {
        Reason::SESSION_TAKEN_OVER => FaultKind::TakenOver,
        Reason::PACKET_TOO_LARGE => FaultKind::TooLarge,
        Reason::UNSUPPORTED_PROTOCOL_VERSION => FaultKind::Version,
        reason if reason.is_refusal() => FaultKind::Refused,
        _ => FaultKind::Closed,
    }
}

/// Why a connection ended, whichever version it spoke.
#[derive(Debug)]
pub(super) enum Cause {
    /// By CONNACK.
    Refused(Reason),
    /// By DISCONNECT.
    Disconnected(Reason),
    /// By a reason in another packet, which rumqttc does not know.
    Answered(Reason),
    Tls(String),
    NoAnswer,
    NoPong,
    Closed,
    Io(io::Error),
    Other(String),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        match tls::fault(&error) {
            Some(fault) => Cause::Tls(fault),
            None => Cause::Io(error),
        }
    }
}

impl From<v5::StateError> for Cause {
    fn from(error: v5::StateError) -> Self {
        use v5::{StateError, mqttbytes::Error as Bytes};
        match error {
            StateError::ConnFail { reason } => Cause::Refused(reason_of(reason)),
            StateError::ServerDisconnect { reason_code, .. } => {
                Cause::Disconnected(Reason(reason_code as u8))
            }
            StateError::AwaitPingResp | StateError::CollisionTimeout => Cause::NoPong,
            StateError::ConnectionAborted => Cause::Closed,
            StateError::Deserialization(
                Bytes::InvalidConnectReturnCode(code)
                | Bytes::InvalidReason(code)
                | Bytes::InvalidSubscribeReasonCode(code),
            ) => Cause::Answered(Reason(code)),
            StateError::OutgoingPacketTooLarge { .. } => Cause::Answered(Reason::PACKET_TOO_LARGE),
            StateError::Io(error) | StateError::Deserialization(Bytes::Io(error)) => error.into(),
            error => Cause::Other(error.to_string()),
        }
    }
}

impl From<v311::StateError> for Cause {
    fn from(error: v311::StateError) -> Self {
        use v311::{StateError, mqttbytes::Error as Bytes};
        match error {
            StateError::AwaitPingResp | StateError::CollisionTimeout => Cause::NoPong,
            StateError::ConnectionAborted => Cause::Closed,
            StateError::Deserialization(
                Bytes::InvalidConnectReturnCode(code) | Bytes::InvalidSubscribeReasonCode(code),
            ) => Cause::Answered(Reason(code)),
            StateError::Io(error) | StateError::Deserialization(Bytes::Io(error)) => error.into(),
            error => Cause::Other(error.to_string()),
        }
    }
}

impl From<v311::ConnectReturnCode> for Cause {
    fn from(code: v311::ConnectReturnCode) -> Self {
        use v311::ConnectReturnCode;
        Cause::Refused(match code {
            ConnectReturnCode::Success => Reason::SUCCESS,
            ConnectReturnCode::RefusedProtocolVersion => Reason::UNSUPPORTED_PROTOCOL_VERSION,
            ConnectReturnCode::BadClientId => Reason::CLIENT_ID_NOT_VALID,
            ConnectReturnCode::ServiceUnavailable => Reason::SERVER_UNAVAILABLE,
            ConnectReturnCode::BadUserNamePassword => Reason::BAD_USER_NAME_OR_PASSWORD,
            ConnectReturnCode::NotAuthorized => Reason::NOT_AUTHORIZED,
        })
    }
}

fn reason_of(code: v5::mqttbytes::v5::ConnectReturnCode) -> Reason {
    use v5::mqttbytes::v5::ConnectReturnCode as Code;
    match code {
        Code::Success => Reason::SUCCESS,
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
            Reason::UNSUPPORTED_PROTOCOL_VERSION
        }
        Code::BadClientId | Code::ClientIdentifierNotValid => Reason::CLIENT_ID_NOT_VALID,
        Code::ServiceUnavailable | Code::ServerUnavailable => Reason::SERVER_UNAVAILABLE,
        Code::UnspecifiedError => Reason::UNSPECIFIED,
        Code::MalformedPacket => Reason::MALFORMED_PACKET,
        Code::ProtocolError => Reason::PROTOCOL_ERROR,
        Code::ImplementationSpecificError => Reason::IMPLEMENTATION_SPECIFIC,
        Code::BadUserNamePassword => Reason::BAD_USER_NAME_OR_PASSWORD,
        Code::NotAuthorized => Reason::NOT_AUTHORIZED,
        Code::ServerBusy => Reason::SERVER_BUSY,
        Code::Banned => Reason::BANNED,
        Code::BadAuthenticationMethod => Reason::BAD_AUTHENTICATION_METHOD,
        Code::TopicNameInvalid => Reason::TOPIC_NAME_INVALID,
        Code::PacketTooLarge => Reason::PACKET_TOO_LARGE,
        Code::QuotaExceeded => Reason::QUOTA_EXCEEDED,
        Code::PayloadFormatInvalid => Reason::PAYLOAD_FORMAT_INVALID,
        Code::RetainNotSupported => Reason::RETAIN_NOT_SUPPORTED,
        Code::QoSNotSupported => Reason::QOS_NOT_SUPPORTED,
        Code::UseAnotherServer => Reason::USE_ANOTHER_SERVER,
        Code::ServerMoved => Reason::SERVER_MOVED,
        Code::ConnectionRateExceeded => Reason::CONNECTION_RATE_EXCEEDED,
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;
    use v5::{
        StateError,
        mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode},
    };

    fn fault(cause: impl Into<Cause>) -> Fault {
        let (broker, _) = BrokerUrl::parse("mqtt://u:hunter2@h").unwrap();
        Fault::of(cause.into(), &broker, Duration::from_secs(4))
    }

    fn disconnected(reason_code: DisconnectReasonCode) -> StateError {
        StateError::ServerDisconnect {
            reason_code,
            reason_string: None,
        }
    }

    #[test]
    fn the_kind_comes_from_what_happened() {
        use ConnectReturnCode::{
            BadUserNamePassword, QoSNotSupported, RetainNotSupported, ServerBusy,
            UnsupportedProtocolVersion,
        };
        use v5::mqttbytes::Error::InvalidConnectReturnCode;
        let refused = |reason| Cause::from(StateError::ConnFail { reason });
        let lost = || io::Error::from(io::ErrorKind::ConnectionRefused);
        for (error, kind, part) in [
            (
                refused(BadUserNamePassword),
                FaultKind::Refused,
                "the login",
            ),
            (refused(ServerBusy), FaultKind::Refused, "busy"),
            (
                refused(RetainNotSupported),
                FaultKind::Refused,
                "allow retained messages",
            ),
            (refused(QoSNotSupported), FaultKind::Refused, "QoS 1"),
            (
                refused(UnsupportedProtocolVersion),
                FaultKind::Version,
                "version of MQTT",
            ),
            (lost().into(), FaultKind::Unreachable, "mqtt://h:1883: "),
            (
                StateError::Io(lost()).into(),
                FaultKind::Unreachable,
                "refused",
            ),
            (
                io::Error::from(io::ErrorKind::ConnectionReset).into(),
                FaultKind::Closed,
                "reset",
            ),
            (StateError::AwaitPingResp.into(), FaultKind::Timeout, "ping"),
            (
                StateError::ConnectionAborted.into(),
                FaultKind::Closed,
                "closed",
            ),
            (
                StateError::Deserialization(InvalidConnectReturnCode(149)).into(),
                FaultKind::TooLarge,
                "message_size_limit",
            ),
            (
                StateError::Deserialization(InvalidConnectReturnCode(0xEE)).into(),
                FaultKind::Refused,
                "0xee",
            ),
            (
                StateError::WrongPacket.into(),
                FaultKind::Protocol,
                "wrong packet",
            ),
        ] {
            let fault = fault(error);
            assert_eq!(fault.kind, kind, "{fault}");
            assert!(fault.text.contains(part), "{fault}");
            assert!(!fault.text.contains("hunter2"), "{fault}");
        }
    }

    #[test]
    fn a_login_from_elsewhere_is_told_from_an_end() {
        let taken = fault(disconnected(DisconnectReasonCode::SessionTakenOver));
        assert_eq!(taken.kind, FaultKind::TakenOver);
        assert!(taken.text.contains("set client-id"), "{taken}");
        let ended = fault(disconnected(DisconnectReasonCode::ServerShuttingDown));
        assert_eq!(ended.kind, FaultKind::Closed);
        assert!(ended.text.contains("shutting down"), "{ended}");
    }

    #[test]
    fn both_versions_are_told_in_the_same_words() {
        let old = fault(v311::ConnectReturnCode::NotAuthorized);
        let new = fault(StateError::ConnFail {
            reason: ConnectReturnCode::NotAuthorized,
        });
        assert_eq!(old, new);
    }
}
