// SPDX-License-Identifier: MPL-2.0

//! Broker URLs: `mqtt://`, `mqtts://`, `ws://`, `wss://`.

use std::fmt;

use crate::net::url::{Authority, UserInfo, shown_scheme, split_port, split_userinfo};

/// How the MQTT connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP, default port 1883.
    Mqtt,
    /// TLS, default port 8883.
    Mqtts,
    /// WebSocket, default port 80.
    Ws,
    /// WebSocket over TLS, default port 443.
    Wss,
}

impl Scheme {
    fn name_and_port(self) -> (&'static str, u16) {
        match self {
            Scheme::Mqtt => ("mqtt", 1883),
            Scheme::Mqtts => ("mqtts", 8883),
            Scheme::Ws => ("ws", 80),
            Scheme::Wss => ("wss", 443),
        }
    }

    pub fn as_str(self) -> &'static str {
        self.name_and_port().0
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Mqtts | Scheme::Wss)
    }

    pub fn is_websocket(self) -> bool {
        matches!(self, Scheme::Ws | Scheme::Wss)
    }
}

/// A broker's address without credentials: what `Display` shows is safe to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    pub scheme: Scheme,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
    /// Path of a WebSocket URL, `/mqtt` where none is given (the usual one).
    pub path: String,
}

impl BrokerUrl {
    /// Parses `url`; credentials in it come back beside it, percent-decoded.
    ///
    /// The error names the part that is wrong and shows nothing of the userinfo.
    pub fn parse(url: &str) -> Result<(Self, UserInfo), String> {
        let (scheme, rest) = url.split_once("://").ok_or(
            "the broker URL has no scheme: write mqtt://, mqtts://, ws:// or wss:// before the host",
        )?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => Scheme::Mqtt,
            "mqtts" | "ssl" => Scheme::Mqtts,
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
            other => {
                return Err(format!(
                    "the broker URL's scheme {} is not known: use mqtt, mqtts, ws or wss",
                    shown_scheme(other)
                ));
            }
        };
        // A password may contain slashes that nobody escaped.
        let (userinfo, rest) = split_userinfo(rest);
        let userinfo = UserInfo::parse(userinfo).map_err(
            |_| "the credentials in the broker URL are not UTF-8 after percent-decoding",
        )?;
        let (address, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (host, port) = split_port(address)?;
        if host.is_empty() {
            return Err("the broker URL has no host".into());
        }
        if !path.is_empty() && path != "/" && !scheme.is_websocket() {
            return Err(format!(
                "the broker URL has a path, which only ws:// and wss:// know: remove {path:?} (the topic is a property of its own)"
            ));
        }
        let path = match path {
            "" | "/" => "/mqtt".to_owned(),
            path => path.to_owned(),
        };
        Ok((
            BrokerUrl {
                scheme,
                host: host.to_owned(),
                port: port.unwrap_or(scheme.name_and_port().1),
                path,
            },
            userinfo,
        ))
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = Authority(&self.host, self.port);
        write!(f, "{}://{authority}", self.scheme.as_str())?;
        if self.scheme.is_websocket() {
            f.write_str(&self.path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> String {
        BrokerUrl::parse(url).unwrap().0.to_string()
    }

    #[test]
    fn each_scheme_has_its_default_port() {
        assert_eq!(parsed("mqtt://h"), "mqtt://h:1883");
        assert_eq!(parsed("MQTTS://h"), "mqtts://h:8883");
        assert_eq!(parsed("ws://h"), "ws://h:80/mqtt");
        assert_eq!(parsed("wss://h:9001/x"), "wss://h:9001/x");
        assert_eq!(parsed("mqtt://[::1]:1884/"), "mqtt://[::1]:1884");
    }

    #[test]
    fn credentials_are_taken_out_and_decoded() {
        let (url, userinfo) = BrokerUrl::parse("mqtts://rob%40t:p%2Fa:b@h").unwrap();
        assert_eq!(url.to_string(), "mqtts://h:8883");
        assert_eq!(userinfo.username.as_deref(), Some("rob@t"));
        assert!(!format!("{url:?} {userinfo:?}").contains("a:b"));
        assert_eq!(userinfo.password.unwrap().expose(), "p/a:b");
        let (url, userinfo) = BrokerUrl::parse("ws://u:p/@?#@h/x").unwrap();
        assert_eq!(url.to_string(), "ws://h:80/x");
        assert_eq!(userinfo.password.unwrap().expose(), "p/@?#");
    }

    #[test]
    fn a_bad_url_is_refused_with_the_remedy_and_without_the_password() {
        for (url, reason) in [
            ("h:1883", "scheme"),
            ("http://u:hunter2@h", "http"),
            ("mqtt://u:hunter2@", "no host"),
            ("mqtt://u:hunter2@h:99999", "99999"),
            ("mqtt://u:hunter2@h:0", "65535"),
            ("mqtt://::1", "brackets"),
            ("mqtt://[::1", "bracket"),
            ("mqtt://[::1]1884", "behind its bracket"),
            ("mqtt://[[::1]]", "behind its bracket"),
            ("mqtt://h]:1883", "too many"),
            ("mqtt://::1\n", "white space"),
            ("mqtt://u:hunter2@h/robot/stream", "robot/stream"),
            ("mqtt://u:%ff@h", "UTF-8"),
            ("mqtt://u:hunter2/x@h:x", "port"),
            ("u:hunter2@mqtt://h", "in front of"),
        ] {
            let error = BrokerUrl::parse(url).unwrap_err();
            assert!(error.contains(reason), "{error:?} names {reason:?}");
            assert!(!error.contains("hunter2"), "{error:?}");
        }
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use crate::{net::url::percent_encode, secret::Secret};
    use proptest::{option, prelude::*, sample::select};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_part_of_a_url_is_read_as_it_was_written(
            (scheme, usual) in select(&[("mqtt", 1883), ("mqtts", 8883), ("ws", 80), ("wss", 443)][..]),
            login in option::of(("\\PC{1,12}", option::of("\\PC{0,12}"))),
            host in prop_oneof!["[a-z0-9.-]{1,20}", "[0-9a-f]{1,4}:(:[0-9a-f]{1,4}){1,4}"],
            port in option::of(1..=u16::MAX),
        ) {
            let userinfo = match &login {
                None => String::new(),
                Some((user, None)) => format!("{}@", percent_encode(user)),
                Some((user, Some(password))) => {
                    format!("{}:{}@", percent_encode(user), percent_encode(password))
                }
            };
            let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let suffix = port.map_or(String::new(), |port| format!(":{port}"));
            let url = format!("{scheme}://{userinfo}{bracketed}{suffix}");
            let (broker, read) = BrokerUrl::parse(&url).unwrap();
            prop_assert_eq!(broker.scheme.as_str(), scheme);
            prop_assert_eq!(&broker.host, &host);
            prop_assert_eq!(broker.port, port.unwrap_or(usual));
            let (user, password) = login.map_or((None, None), |(user, password)| (Some(user), password));
            prop_assert_eq!(read.username, user);
            prop_assert_eq!(read.password, password.map(Secret::new));
            // What is shown leads to the same broker, without the login.
            let shown = BrokerUrl::parse(&broker.to_string()).unwrap();
            prop_assert_eq!(shown, (broker, UserInfo::default()));
        }

        #[test]
        fn any_text_is_a_url_or_refused_on_one_line(
            url in prop_oneof![
                any::<String>(),
                "(mqtt|ws|x)://[a@:/%\\[\\]\n ?1]{0,12}",
                "(mqtt|ws)://\\[?[a:\\[\\]\n]{0,5}\\]?(:1)?",
            ],
        ) {
            match BrokerUrl::parse(&url) {
                Ok((broker, _)) => {
                    let shown = BrokerUrl::parse(&broker.to_string()).map(|(again, _)| again);
                    prop_assert_eq!(shown, Ok(broker));
                }
                Err(error) => {
                    prop_assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
                }
            }
        }
    }
}
