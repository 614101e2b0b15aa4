// SPDX-License-Identifier: MPL-2.0

//! What carries MQTT: from a broker's URL to a stream of bytes. The one place that knows which of it
//! is built in.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};

use super::{
    broker::{BrokerUrl, Scheme},
    fault::{Cause, Fault, FaultKind},
};
use crate::net::{
    connect::{ConnectError, connect, look_up},
    tls,
};

/// For the broker's name, before connecting. The name server keeps what it finds later.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection of any scheme.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Scheme {
    /// Says what this build lacks for the scheme.
    pub fn check_built_in(self) -> Result<(), String> {
        let lacks = |what, feature| {
            let scheme = self.as_str();
            Err(format!(
                "{scheme}:// cannot be used, built without {what}: build with the feature {feature}"
            ))
        };
        if self.is_tls() && !cfg!(feature = "tls") {
            return lacks("TLS", "tls");
        }
        if self.is_websocket() && !cfg!(feature = "websocket") {
            return lacks("WebSockets", "websocket");
        }
        Ok(())
    }
}

/// What nothing is sent without.
pub(super) fn check(scheme: Scheme, tls: Option<&tls::Client>) -> Result<(), Fault> {
    let setup = |text| Fault::new(FaultKind::Setup, text);
    scheme.check_built_in().map_err(setup)?;
    match scheme.is_tls() && tls.is_none() {
        true => Err(setup("TLS is not set up".into())),
        false => Ok(()),
    }
}

/// Connects to the broker within `patience`, and gives until when the rest may take. Of a name with
/// several addresses the first that answers is taken, beginning with the one that did so `last`; TLS
/// and WebSocket are given the name.
pub(super) async fn open(
    broker: &BrokerUrl,
    tls: Option<&tls::Client>,
    last: &mut Option<SocketAddr>,
    patience: Duration,
) -> Result<(Box<dyn Stream>, Instant), Fault> {
    check(broker.scheme, tls)?;
    let mut addresses = look_up(&broker.host, broker.port, LOOKUP_TIMEOUT)
        .await
        .map_err(|text| Fault::new(FaultKind::Unreachable, text))?;
    addresses.sort_by_key(|address| Some(*address) != *last);
    let deadline = Instant::now() + patience;
    let tcp = connect(&addresses, patience).await.map_err(|error| {
        let text = match error {
            ConnectError::Timeout { .. } => {
                let seconds = patience.as_secs();
                format!("{broker} has not answered within {seconds} s: {error}")
            }
            ConnectError::Failed(_) => format!("{broker}: {error}"),
        };
        Fault::new(FaultKind::Unreachable, text)
    })?;
    *last = tcp.peer_addr().ok();
    match timeout_at(deadline, carry(broker, tls, tcp)).await {
        Ok(carried) => Ok((carried?, deadline)),
        Err(_) => Err(Fault::of(Cause::NoAnswer, broker, patience)),
    }
}

async fn carry(
    broker: &BrokerUrl,
    tls: Option<&tls::Client>,
    tcp: impl Stream + 'static,
) -> Result<Box<dyn Stream>, Fault> {
    let stream: Box<dyn Stream> = match tls.filter(|_| broker.scheme.is_tls()) {
        None => Box::new(tcp),
        Some(tls) => {
            let secured = tls.connect(&broker.host, tcp).await;
            Box::new(
                secured.map_err(|text| Fault::new(FaultKind::Tls, format!("{broker}: {text}")))?,
            )
        }
    };
    #[cfg(feature = "websocket")]
    if broker.scheme.is_websocket() {
        return websocket(broker, stream)
            .await
            .map_err(|cause| Fault::of(cause, broker, Duration::ZERO));
    }
    Ok(stream)
}

#[cfg(feature = "websocket")]
async fn websocket(broker: &BrokerUrl, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, Cause> {
    use async_tungstenite::{
        tokio::client_async,
        tungstenite::{Error, client::IntoClientRequest, http::HeaderValue},
    };

    /// As the header field is called that names what a WebSocket carries.
    const PROTOCOL: &str = "Sec-WebSocket-Protocol";
    const MQTT: HeaderValue = HeaderValue::from_static("mqtt");

    let cause = |error| match error {
        Error::Io(error) => Cause::from(error),
        Error::ConnectionClosed | Error::AlreadyClosed => Cause::Closed,
        Error::Protocol(_) => Cause::Other(format!(
            "{error}: is that the port with WebSockets, and its path right?"
        )),
        error => Cause::Other(format!("WebSocket: {error}")),
    };
    let mut request = broker.to_string().into_client_request().map_err(cause)?;
    request.headers_mut().insert(PROTOCOL, MQTT);
    let (socket, answer) = client_async(request, stream).await.map_err(cause)?;
    if answer.headers().get(PROTOCOL) != Some(&MQTT) {
        let error = "the WebSocket there carries no MQTT: is the path right?";
        return Err(Cause::Other(error.to_owned()));
    }
    Ok(Box::new(ws_stream_tungstenite::WsStream::new(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_refused_by_name_where_it_is_not_built_in() {
        let (tls, websocket) = (cfg!(feature = "tls"), cfg!(feature = "websocket"));
        for (scheme, name, built_in) in [
            (Scheme::Mqtt, "mqtt://", true),
            (Scheme::Mqtts, "mqtts://", tls),
            (Scheme::Ws, "ws://", websocket),
            (Scheme::Wss, "wss://", tls && websocket),
        ] {
            match scheme.check_built_in() {
                Ok(()) => assert!(built_in, "{name}"),
                Err(error) => {
                    assert!(!built_in, "{error}");
                    assert!(error.starts_with(name), "{error}");
                    assert!(error.contains("build with the feature"), "{error}");
                }
            }
        }
    }

    #[test]
    fn nothing_that_asks_for_tls_goes_without() {
        assert!(check(Scheme::Mqtt, None).is_ok());
        for scheme in [Scheme::Mqtts, Scheme::Wss] {
            let fault = check(scheme, None).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Setup, "{}", scheme.as_str());
        }
    }
}
