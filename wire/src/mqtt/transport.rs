// SPDX-License-Identifier: MPL-2.0

//! What carries MQTT: the one place that knows which of it is built in.

use rumqttc::Transport;

use crate::{mqtt::broker::Scheme, net::tls};

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

/// The error is one that [`Scheme::check_built_in`] or [`tls::TlsFiles::client`] had given.
pub(crate) fn transport(scheme: Scheme, tls: Option<&tls::Client>) -> Result<Transport, String> {
    match (scheme, tls) {
        (Scheme::Mqtt, _) => Ok(Transport::Tcp),
        #[cfg(feature = "websocket")]
        (Scheme::Ws, _) => Ok(Transport::Ws),
        #[cfg(feature = "tls")]
        (Scheme::Mqtts, Some(tls)) => Ok(Transport::Tls(tls.to_mqtt())),
        #[cfg(all(feature = "tls", feature = "websocket"))]
        (Scheme::Wss, Some(tls)) => Ok(Transport::Wss(tls.to_mqtt())),
        _ => {
            scheme.check_built_in()?;
            Err("TLS is not set up".into())
        }
    }
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
        assert!(matches!(transport(Scheme::Mqtt, None), Ok(Transport::Tcp)));
        for scheme in [Scheme::Mqtts, Scheme::Wss] {
            assert!(transport(scheme, None).is_err(), "{}", scheme.as_str());
        }
    }
}
