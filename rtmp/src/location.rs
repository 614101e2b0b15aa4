// SPDX-License-Identifier: MPL-2.0

//! Where to publish, with its credentials apart from the first moment.

use std::fmt;

use droidrelay_wire::{
    Secret,
    net::url::{
        Authority, UserInfo, percent_decode, percent_encode, shown_scheme, split_port,
        split_userinfo,
    },
};

/// Default port of `rtmp://`.
pub const RTMP_PORT: u16 = 1935;
/// Default port of `rtmps://`; it has no registered one, and MediaMTX listens there.
pub const RTMPS_PORT: u16 = 1936;

/// How the publisher's credentials reach the server; with the words of the sink's property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstRtmpAuthSinkCredentialMode")]
pub enum CredentialMode {
    #[default]
    #[enum_value(
        name = "Query: ?user=USER&pass=PASSWORD behind the stream name, as MediaMTX takes them",
        nick = "query"
    )]
    Query,
    #[enum_value(name = "Token: ?token=PASSWORD behind the stream name", nick = "token")]
    Token,
    /// See [`crate::auth`].
    #[enum_value(
        name = "RTMP: the server's challenge at connect is answered (Adobe's and Limelight's login)",
        nick = "rtmp"
    )]
    Rtmp,
    #[enum_value(name = "None: no credentials are sent", nick = "none")]
    None,
}

const NOT_UTF8: &str = "the credentials in the location are not UTF-8 after percent-decoding";

/// `rtmp(s)://host[:port]/app/stream[?query]` without credentials: what `Display` shows is
/// safe to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub app: String,
    pub stream: String,
    /// Query parameters other than credentials, as they were written.
    pub query: String,
}

impl Location {
    /// Parses `url`; credentials in its userinfo or in `user=`, `pass=` come back beside it,
    /// percent-decoded. The error shows nothing of them.
    pub fn parse(url: &str) -> Result<(Self, UserInfo), String> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("the location has no scheme: write rtmp:// or rtmps://host/app/stream")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "rtmp" => false,
            "rtmps" => true,
            other => {
                return Err(format!(
                    "the location's scheme {} is not known: use rtmp or rtmps",
                    shown_scheme(other)
                ));
            }
        };
        let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may contain slashes that nobody escaped.
        let (userinfo, place) = split_userinfo(head);
        match Self::parse_parts(tls, userinfo, place, query) {
            // And a question mark, so that this was no query.
            Err(_) if query.contains('@') => {
                let (userinfo, rest) = split_userinfo(rest);
                let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
                // Nobody knows what is a password here.
                Self::parse_parts(tls, userinfo, place, query).map_err(|_| {
                    "the location is not understood: write rtmp://host/app/stream, and credentials into user and password-file".to_owned()
                })
            }
            parsed => parsed,
        }
    }

    fn parse_parts(
        tls: bool,
        userinfo: Option<&str>,
        place: &str,
        query: &str,
    ) -> Result<(Self, UserInfo), String> {
        let (address, path) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = split_port(address)?;
        if host.is_empty() {
            return Err("the location has no host".into());
        }
        let path = path.trim_matches('/');
        let (app, stream) = path.rsplit_once('/').unwrap_or(("", path));
        if app.is_empty() || stream.is_empty() {
            return Err(format!(
                "the location's path {path:?} is not app/stream: write for example rtmp://{host}/live/stream"
            ));
        }

        let mut credentials = UserInfo::parse(userinfo).map_err(|_| NOT_UTF8)?;
        let decode = |text| percent_decode(text).map_err(|_| NOT_UTF8);
        let mut kept = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "user" => credentials.username = Some(decode(value)?),
                "pass" | "token" => credentials.password = Some(Secret::new(decode(value)?)),
                _ => kept.push(parameter),
            }
        }
        let location = Location {
            tls,
            host: host.to_owned(),
            port: port.unwrap_or(if tls { RTMPS_PORT } else { RTMP_PORT }),
            app: app.to_owned(),
            stream: stream.to_owned(),
            query: kept.join("&"),
        };
        Ok((location, credentials))
    }

    /// The same stream at the application `url`, where the server sends its publisher. The error
    /// shows nothing of the URL, in which a server may repeat credentials.
    pub fn redirected(&self, url: &str) -> Result<Self, String> {
        let url = url.split(['?', '#']).next().unwrap_or_default();
        let url = url.trim_end_matches('/');
        // Some add the stream.
        let app = url
            .strip_suffix(self.stream.as_str())
            .and_then(|url| url.strip_suffix('/'))
            .unwrap_or(url);
        let (other, _) = Location::parse(&format!("{app}/{}", self.stream)).map_err(|_| {
            format!("{self} redirects to a URL that is not rtmp(s)://host[:port]/app: set location to the server that takes the stream")
        })?;
        if self.tls && !other.tls {
            return Err(format!(
                "{self} redirects to {}, without TLS: nothing is sent there; set location to a server with rtmps://",
                other.host
            ));
        }
        Ok(Location {
            query: self.query.clone(),
            ..other
        })
    }

    /// The URL of the application, as the connect command carries it.
    pub fn tc_url(&self) -> String {
        let scheme = if self.tls { "rtmps" } else { "rtmp" };
        let authority = Authority(&self.host, self.port);
        format!("{scheme}://{authority}/{}", self.app)
    }

    /// The stream name with the credentials that `mode` puts behind it, strictly percent-encoded.
    pub fn stream_name(&self, credentials: &UserInfo, mode: CredentialMode) -> Secret {
        let user = credentials.username.as_deref();
        let password = credentials.password.as_ref().map(Secret::expose);
        let (user, password) = match mode {
            CredentialMode::None | CredentialMode::Rtmp => (None, None),
            CredentialMode::Query => (user, password.map(|password| ("pass", password))),
            CredentialMode::Token => (None, password.map(|password| ("token", password))),
        };
        let mut name = self.stream.clone();
        let mut add = |parameter: &str| {
            name.push(if name.contains('?') { '&' } else { '?' });
            name.push_str(parameter);
        };
        if !self.query.is_empty() {
            add(&self.query);
        }
        for (key, value) in user.map(|user| ("user", user)).into_iter().chain(password) {
            add(&format!("{key}={}", percent_encode(value)));
        }
        Secret::new(name)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tc_url(), self.stream)?;
        if !self.query.is_empty() {
            write!(f, "?{}", self.query)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out_of_userinfo_and_query() {
        for url in [
            "rtmp://pub:p%2Fa&b@h/live/stream",
            "rtmp://pub:p/a&b@h/live/stream",
            "rtmp://h:1935/live/stream?user=pub&pass=p%2Fa%26b",
        ] {
            let (location, credentials) = Location::parse(url).unwrap();
            assert_eq!(location.to_string(), "rtmp://h:1935/live/stream");
            assert_eq!(credentials.username.as_deref(), Some("pub"));
            let shown = format!("{location:?} {credentials:?}");
            assert!(!shown.contains("a&b") && !shown.contains("%2Fa"), "{shown}");
            assert_eq!(credentials.password.unwrap().expose(), "p/a&b");
        }
        for password in ["a?b", "a/b?c", "?", "a@b?c/d/e@", "1/b?c"] {
            let url = format!("rtmp://pub:{password}@h/live/stream?x=1");
            let (location, credentials) = Location::parse(&url).unwrap();
            assert_eq!(location.to_string(), "rtmp://h:1935/live/stream?x=1");
            assert_eq!(credentials.password.unwrap().expose(), password);
        }
    }

    #[test]
    fn a_user_in_the_query_may_be_an_address() {
        let url = "rtmp://h/live/stream?user=pub@example.org&pass=a@b";
        let (location, credentials) = Location::parse(url).unwrap();
        assert_eq!(location.to_string(), "rtmp://h:1935/live/stream");
        assert_eq!(credentials.username.as_deref(), Some("pub@example.org"));
        assert_eq!(credentials.password.unwrap().expose(), "a@b");
    }

    #[test]
    fn other_parameters_and_long_paths_stay() {
        let (location, _) = Location::parse("rtmps://[::1]/robots/r1/live?x=1&user=u&y").unwrap();
        assert_eq!(
            location.to_string(),
            "rtmps://[::1]:1936/robots/r1/live?x=1&y"
        );
        assert_eq!(location.tc_url(), "rtmps://[::1]:1936/robots/r1");
        assert_eq!(location.stream, "live");
    }

    #[test]
    fn the_stream_name_carries_what_the_mode_says_strictly_encoded() {
        let (location, _) = Location::parse("rtmp://h/live/stream?x=1").unwrap();
        let credentials = UserInfo {
            username: Some("a/b".into()),
            password: Some("c&d".into()),
        };
        let name = |mode| location.stream_name(&credentials, mode).expose().to_owned();
        assert_eq!(
            name(CredentialMode::Query),
            "stream?x=1&user=a%2Fb&pass=c%26d"
        );
        assert_eq!(name(CredentialMode::Token), "stream?x=1&token=c%26d");
        for mode in [CredentialMode::None, CredentialMode::Rtmp] {
            assert_eq!(name(mode), "stream?x=1");
        }
    }

    #[test]
    fn a_redirect_keeps_the_stream_and_never_leaves_tls() {
        let (location, _) = Location::parse("rtmps://h/live/stream?x=1").unwrap();
        for url in [
            "rtmps://other:1936/app",
            "rtmps://other/app/stream",
            "rtmps://other/app/?y",
        ] {
            let other = location.redirected(url).unwrap();
            assert_eq!(other.to_string(), "rtmps://other:1936/app/stream?x=1");
        }
        for (url, reason) in [
            ("rtmp://other/app", "without TLS"),
            ("rtmps://", "redirects to a URL"),
            ("hunter2", "redirects to a URL"),
        ] {
            let error = location.redirected(url).unwrap_err();
            assert!(
                error.contains(reason) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bad_location_is_refused_with_the_remedy_and_without_the_password() {
        for (url, reason) in [
            ("h/live/stream", "scheme"),
            ("http://u:hunter2@h/live/stream", "http"),
            ("rtmp://u:hunter2@/live/stream", "no host"),
            ("rtmp://u:hunter2@h/stream", "app/stream"),
            ("rtmp://u:hunter2@h", "app/stream"),
            ("rtmp://u:hunter2@h:x/live/stream", "port"),
            ("rtmp://h/live/stream?pass=%ff&user=hunter2", "UTF-8"),
            ("rtmp://u:hunter2?x@h:x/live/stream", "app/stream"),
            ("rtmp://u:hunter2/?x@h/stream", "app/stream"),
            (
                "rtmp://h?user=u@example.org&pass=a@hunter2",
                "password-file",
            ),
            ("u:hunter2@rtmp://h/live/stream", "in front of"),
        ] {
            let error = Location::parse(url).unwrap_err();
            assert!(error.contains(reason), "{error:?} names {reason:?}");
            assert!(!error.contains("hunter2"), "{error:?}");
        }
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use proptest::{option, prelude::*};

    /// A query's parameters as a server reads them: form-encoded, so that + is a space.
    fn decoded(query: &str) -> Vec<(String, String)> {
        let value = |text: &str| {
            let mut bytes = text.bytes();
            let mut out = Vec::new();
            while let Some(byte) = bytes.next() {
                let mut digit = || char::from(bytes.next().unwrap()).to_digit(16).unwrap() as u8;
                out.push(match byte {
                    b'%' => digit() << 4 | digit(),
                    b'+' => b' ',
                    byte => byte,
                });
            }
            String::from_utf8(out).unwrap()
        };
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, text)| (value(name), value(text)))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_a_server_decodes_is_what_was_set(
            user in option::of(any::<String>()),
            password in option::of(any::<String>()),
            query in "(\\?x=[a-z]{0,3})?",
        ) {
            let (location, _) = Location::parse(&format!("rtmp://h/live/stream{query}")).unwrap();
            let credentials = UserInfo {
                username: user.clone(),
                password: password.clone().map(Secret::new),
            };
            let given = decoded(query.trim_start_matches('?'));
            let pair = |name: &str, value: &Option<String>| {
                value.clone().map(|value| (name.to_owned(), value))
            };
            for (mode, added) in [
                (CredentialMode::Query, vec![pair("user", &user), pair("pass", &password)]),
                (CredentialMode::Token, vec![pair("token", &password)]),
                (CredentialMode::None, vec![]),
                (CredentialMode::Rtmp, vec![]),
            ] {
                let name = location.stream_name(&credentials, mode);
                let (stream, sent) = name.expose().split_once('?').unwrap_or((name.expose(), ""));
                prop_assert_eq!(stream, "stream");
                // Nothing in it ends the name, the query or a line before its time.
                prop_assert!(sent.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#/".contains(&byte)));
                let wanted: Vec<_> = given.iter().cloned().chain(added.into_iter().flatten()).collect();
                prop_assert_eq!(decoded(sent), wanted);
            }
        }

        #[test]
        fn encoded_credentials_in_a_location_are_read_as_they_were_and_shown_nowhere(
            user in "\\PC{1,12}",
            password in any::<String>(),
            in_query in any::<bool>(),
        ) {
            let (user_sent, password_sent) = (percent_encode(&user), percent_encode(&password));
            let url = if in_query {
                format!("rtmp://h/live/stream?user={user_sent}&pass={password_sent}")
            } else {
                format!("rtmp://{user_sent}:{password_sent}@h/live/stream")
            };
            let (location, credentials) = Location::parse(&url).unwrap();
            prop_assert_eq!(location.to_string(), "rtmp://h:1935/live/stream");
            prop_assert_eq!(location.tc_url(), "rtmp://h:1935/live");
            prop_assert_eq!(credentials.username, Some(user));
            prop_assert_eq!(credentials.password, Some(Secret::new(password)));
        }

        #[test]
        fn any_text_is_a_location_or_refused_with_a_reason(
            url in prop_oneof![
                any::<String>(),
                "rtmps?://[a@:/%\\[\\]?&=1\n]{0,16}",
                "rtmps?://[a:\\[\\]\n]{0,5}/a/b",
            ],
        ) {
            if let Err(error) = Location::parse(&url) {
                prop_assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
            }
        }
    }
}
