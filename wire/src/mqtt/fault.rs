// SPDX-License-Identifier: MPL-2.0

//! What goes wrong with an MQTT session: a kind to decide by, a text to read.

use std::{error::Error, fmt, time::Duration};

use rumqttc::v5::{
    ConnectionError, StateError,
    mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode},
};

use super::broker::BrokerUrl;
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
}

impl Fault {
    pub fn new(kind: FaultKind, text: impl Into<String>) -> Self {
        let text = text.into();
        Fault { kind, text }
    }

    /// The error in a user's words. rumqttc's errors hold no credentials; its options do and are
    /// never printed.
    pub(super) fn of_connection(
        error: &ConnectionError,
        broker: &BrokerUrl,
        connect_timeout: Duration,
    ) -> Self {
        let cause: &(dyn Error + 'static) = match error {
            // Its source, which it does not name.
            ConnectionError::MqttState(StateError::Deserialization(cause)) => cause,
            error => error,
        };
        if let Some(fault) = tls::fault(cause) {
            return Fault::new(Tls, format!("{broker}: {fault}"));
        }
        use FaultKind::{Closed, Protocol, Refused, Timeout, Tls, Unreachable};
        let plain = |kind| (kind, format!("{broker}: {error}"));
        let (kind, text) = match error {
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword,
            ) => (
                Refused,
                format!(
                    "{broker} refuses the login: check username and password (or password-file) and the broker's access rights"
                ),
            ),
            ConnectionError::ConnectionRefused(code) => (
                Refused,
                format!("{broker} refuses the connection: {code:?}"),
            ),
            ConnectionError::Timeout(_) => (
                Timeout,
                format!(
                    "{broker} has not answered within {} s: the link is dead, a firewall is in the way, or the broker hangs",
                    connect_timeout.as_secs()
                ),
            ),
            ConnectionError::MqttState(StateError::AwaitPingResp) => (
                Timeout,
                format!("{broker} has not answered a ping: the link is dead, or the broker hangs"),
            ),
            ConnectionError::MqttState(StateError::ConnectionAborted) => {
                (Closed, format!("{broker} closed the connection"))
            }
            ConnectionError::MqttState(StateError::ConnFail { .. }) => plain(Refused),
            ConnectionError::MqttState(StateError::CollisionTimeout) => plain(Timeout),
            ConnectionError::Io(_) | ConnectionError::MqttState(StateError::Io(_)) => {
                plain(Unreachable)
            }
            ConnectionError::RequestsDone => plain(Closed),
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
                plain(kind_of_disconnect(*reason_code))
            }
            #[cfg(feature = "tls")]
            ConnectionError::Tls(rumqttc::TlsError::Io(_)) => plain(Unreachable),
            #[cfg(feature = "tls")]
            ConnectionError::Tls(_) => plain(Tls),
            _ => plain(Protocol),
        };
        Fault::new(kind, text)
    }

    pub(super) fn of_disconnect(code: DisconnectReasonCode) -> Self {
        Fault::new(
            kind_of_disconnect(code),
            format!("the broker disconnected: {code:?}"),
        )
    }
}

fn kind_of_disconnect(code: DisconnectReasonCode) -> FaultKind {
    match code {
        DisconnectReasonCode::SessionTakenOver => FaultKind::TakenOver,
        DisconnectReasonCode::NotAuthorized => FaultKind::Refused,
        _ => FaultKind::Closed,
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
    use std::io;

    fn fault(error: ConnectionError) -> Fault {
        let (broker, _) = BrokerUrl::parse("mqtt://u:hunter2@h").unwrap();
        Fault::of_connection(&error, &broker, Duration::from_secs(4))
    }

    #[test]
    fn the_kind_comes_from_what_happened() {
        use ConnectReturnCode::{BadUserNamePassword, ServerBusy};
        let refused = |code| ConnectionError::ConnectionRefused(code);
        let lost = || io::Error::from(io::ErrorKind::ConnectionRefused);
        for (error, kind, part) in [
            (
                refused(BadUserNamePassword),
                FaultKind::Refused,
                "the login",
            ),
            (refused(ServerBusy), FaultKind::Refused, "ServerBusy"),
            (lost().into(), FaultKind::Unreachable, "mqtt://h:1883: I/O"),
            (StateError::Io(lost()).into(), FaultKind::Unreachable, "Io"),
            (StateError::AwaitPingResp.into(), FaultKind::Timeout, "ping"),
            (
                StateError::ConnectionAborted.into(),
                FaultKind::Closed,
                "closed",
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
        let kind = |code| Fault::of_disconnect(code).kind;
        assert_eq!(
            kind(DisconnectReasonCode::SessionTakenOver),
            FaultKind::TakenOver
        );
        assert_eq!(
            kind(DisconnectReasonCode::ServerShuttingDown),
            FaultKind::Closed
        );
    }
}
