// SPDX-License-Identifier: MPL-2.0

//! Where to publish, with its credentials apart from the first moment.

use std::fmt;

use droidrelay_wire::{
    Secret,
    net::url::{Authority, UserInfo, percent_decode, percent_encode, shown_scheme, split_port},
};

/// Default port of `rtmp://`.
const RTMP_PORT: u16 = 1935;
/// Ports of `rtmps://` where none is written: it has no registered one. Most services listen at
/// that of HTTPS, MediaMTX at the other one.
const RTMPS_PORTS: [u16; 2] = [443, 1936];

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
/// Of several passwords that nobody escaped, nobody knows where one ends.
const NOT_UNDERSTOOD: &str = "the location is not understood: write rtmp://host/app/stream, and credentials into user and password-file";

/// What the name of a query parameter contains whose value is not shown.
const SECRET_NAMES: [&str; 10] = [
    "user", "pass", "pw", "token", "secret", "key", "auth", "sign", "hash", "cred",
];
/// A longer value is not shown either, whatever its name: it may be a key.
const MAX_SHOWN_VALUE: usize = 16;

/// `rtmp(s)://host[:port]/app[/stream][?query]`. What `Display` shows is safe to log; the query
/// is sent as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub tls: bool,
    pub host: String,
    /// Where it is written.
    pub port: Option<u16>,
    /// Path of the application, without a query.
    pub app: String,
    /// What stands as a query behind the application, ahead of the stream.
    app_query: Secret,
    /// Empty where the location names an application alone.
    pub stream: String,
    /// What stands as a query at the end.
    query: Secret,
}

/// What a server is told of a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// With its query.
    pub app: Secret,
    /// Name of the stream with its query.
    pub stream: Secret,
}

impl Location {
    /// Parses `url`; credentials in front of the host come back beside it, percent-decoded. The
    /// error shows nothing of them.
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
        // A password may contain anything that nobody escaped, and so may a stream's name an @:
        // what makes a location is taken for one.
        let head = rest.split('?').next().unwrap_or_default().len();
        let split_at = |at: usize| Self::parse_parts(tls, Some(&rest[..at]), &rest[at + 1..]);
        let places = |text: &str| {
            text.rmatch_indices('@')
                .map(|(at, _)| at)
                .collect::<Vec<_>>()
        };
        let in_head = places(&rest[..head]);
        let in_query = places(rest).into_iter().filter(|at| *at > head);
        let tries = in_head.iter().map(|at| split_at(*at));
        let tries: Vec<_> = tries.chain([Self::parse_parts(tls, None, rest)]).collect();
        let mut in_query = in_query.map(split_at).filter_map(Result::ok);
        let error = match (in_head.len(), rest[head..].contains('@')) {
            (_, true) | (2.., _) => NOT_UNDERSTOOD.to_owned(),
            _ => match &tries[0] {
                Err(error) => error.clone(),
                Ok(_) => NOT_UNDERSTOOD.to_owned(),
            },
        };
        match tries.into_iter().find_map(Result::ok) {
            // The question mark may be a password's.
            Some(found) if in_head.is_empty() && found.0.is_doubtful() => Ok(in_query
                .find(|(location, _)| !location.stream.is_empty())
                .unwrap_or(found)),
            Some(found) => Ok(found),
            None => in_query.next().ok_or(error),
        }
    }

    fn parse_parts(
        tls: bool,
        userinfo: Option<&str>,
        place: &str,
    ) -> Result<(Self, UserInfo), String> {
        let (address, path) = place.split_at(place.find(['/', '?']).unwrap_or(place.len()));
        let (host, port) = split_port(address)?;
        if host.is_empty() || host.contains('@') {
            return Err("the location has no host: write rtmp://host/app/stream".into());
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let path = path.trim_matches('/');
        if path.is_empty() {
            return Err(format!(
                "the location's path is not app/stream: write for example rtmp://{host}/live/stream"
            ));
        }
        let (app, app_query, stream, query) = match (path.rsplit_once('/'), query.split_once('/')) {
            (Some((app, stream)), _) => (app, "", stream, query),
            (None, Some((app_query, rest))) => {
                let (stream, query) = rest.split_once('?').unwrap_or((rest, ""));
                (path, app_query, stream.trim_matches('/'), query)
            }
            (None, None) => (path, "", "", query),
        };
        // In front of an address stands a user's name, and what looks like a port is one unless
        // all else is there.
        let before = userinfo.and_then(|userinfo| userinfo.split_once('/'));
        if let Some((before, _)) = before
            && before
                .split_once(':')
                .is_none_or(|(_, port)| stream.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(NOT_UNDERSTOOD.into());
        }
        let location = Location {
            tls,
            host: host.to_owned(),
            port,
            app: app.to_owned(),
            app_query: Secret::new(app_query),
            stream: stream.to_owned(),
            query: Secret::new(query),
        };
        let credentials = UserInfo::parse(userinfo).map_err(|_| NOT_UTF8)?;
        Ok((location, credentials))
    }

    /// What has been taken for an application alone, or for its query, may have been a password.
    fn is_doubtful(&self) -> bool {
        self.stream.is_empty() || self.app_query.expose().contains('@')
    }

    /// The ports to try, in their order: the one that is written, or else the usual ones.
    pub fn ports(&self) -> Vec<u16> {
        match (self.port, self.tls) {
            (Some(port), _) => vec![port],
            (None, false) => vec![RTMP_PORT],
            (None, true) => RTMPS_PORTS.to_vec(),
        }
    }

    /// The same with a port that is written.
    pub fn at_port(&self, port: u16) -> Self {
        Location {
            port: Some(port),
            ..self.clone()
        }
    }

    /// User and password that stand in the query, percent-decoded.
    pub fn login(&self) -> Result<UserInfo, String> {
        let mut login = UserInfo::default();
        for parameter in parameters(self.query.expose()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = || percent_decode(value).map_err(|_| NOT_UTF8);
            match name {
                "user" => login.username = Some(value()?),
                "pass" => login.password = Some(Secret::new(value()?)),
                _ => {}
            }
        }
        Ok(login)
    }

    /// The same stream at the application `url`, where the server sends its publisher. The error
    /// shows nothing of the URL, in which a server may repeat credentials.
    pub fn redirected(&self, url: &str) -> Result<Self, String> {
        let url = url.trim_end_matches('/');
        // Some add the stream.
        let app = match self.stream.as_str() {
            "" => url,
            stream => url
                .strip_suffix(stream)
                .and_then(|url| url.strip_suffix('/'))
                .unwrap_or(url),
        };
        let url = join(app, &self.stream, '/');
        let (other, _) = Location::parse(&url).map_err(|_| {
            format!("{self} redirects to a URL that is not rtmp(s)://host[:port]/app: set location to the server that takes the stream")
        })?;
        if self.tls && !other.tls {
            return Err(format!(
                "{self} redirects to a server without TLS: nothing is sent there; set location to one with rtmps://"
            ));
        }
        Ok(Location {
            stream: self.stream.clone(),
            query: self.query.clone(),
            ..other
        })
    }

    /// Where it is, as a URL without a path.
    fn origin(&self) -> String {
        let scheme = if self.tls { "rtmps" } else { "rtmp" };
        match self.port.or((!self.tls).then_some(RTMP_PORT)) {
            Some(port) => format!("{scheme}://{}", Authority(&self.host, port)),
            None if self.host.contains(':') => format!("{scheme}://[{}]", self.host),
            None => format!("{scheme}://{}", self.host),
        }
    }

    /// The URL of the application, as the connect command carries it.
    pub fn tc_url(&self, names: &Names) -> Secret {
        Secret::new(format!("{}/{}", self.origin(), names.app.expose()))
    }

    /// What the server is told: queries as they were written, and what `mode` adds of the
    /// `credentials`, strictly percent-encoded, in place of parameters of the same name. It
    /// stands behind the stream, or behind an application without one.
    pub fn names(&self, credentials: &UserInfo, mode: CredentialMode) -> Names {
        let user = credentials.username.as_deref();
        let password = credentials.password.as_ref().map(Secret::expose);
        let added = match mode {
            CredentialMode::None | CredentialMode::Rtmp => vec![],
            CredentialMode::Query => vec![("user", user), ("pass", password)],
            CredentialMode::Token => vec![("user", user), ("token", password)],
        };
        let added: Vec<_> = added
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let query = with_parameters(self.query.expose(), &added);
        let (app_query, query) = match self.stream.is_empty() {
            true => (join(self.app_query.expose(), &query, '&'), String::new()),
            false => (self.app_query.expose().to_owned(), query),
        };
        Names {
            app: Secret::new(join(&self.app, &app_query, '?')),
            stream: Secret::new(join(&self.stream, &query, '?')),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let app = join(&self.app, &shown(self.app_query.expose()), '?');
        let stream = join(&self.stream, &shown(self.query.expose()), '?');
        write!(f, "{}/{app}", self.origin())?;
        match (self.stream.is_empty(), stream.is_empty()) {
            (true, _) => f.write_str(&stream),
            _ => write!(f, "/{stream}"),
        }
    }
}

fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|parameter| !parameter.is_empty())
}

/// `query` as it is, and `added` in place of what has the same name.
fn with_parameters(query: &str, added: &[(&str, &str)]) -> String {
    let is_replaced = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        added.iter().any(|(added, _)| *added == name)
    };
    let mut query = match parameters(query).any(is_replaced) {
        false => query.to_owned(),
        true => {
            let kept: Vec<_> = parameters(query)
                .filter(|kept| !is_replaced(kept))
                .collect();
            kept.join("&")
        }
    };
    for (name, value) in added {
        query = join(&query, &format!("{name}={}", percent_encode(value)), '&');
    }
    query
}

/// Both with `between` them, where there are two.
fn join(one: &str, other: &str, between: char) -> String {
    match (one.is_empty(), other.is_empty()) {
        (_, true) => one.to_owned(),
        (true, _) if between == '&' => other.to_owned(),
        _ => format!("{one}{between}{other}"),
    }
}

/// The parameters that cannot be a secret. One without a value may be a key.
fn shown(query: &str) -> String {
    let is_shown = |parameter: &&str| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            let name = name.to_ascii_lowercase();
            value.len() <= MAX_SHOWN_VALUE && !SECRET_NAMES.iter().any(|part| name.contains(part))
        })
    };
    let shown: Vec<_> = parameters(query).filter(is_shown).collect();
    shown.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (Location, UserInfo) {
        Location::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn credentials_are_taken_out_of_userinfo_and_not_shown_of_the_query() {
        for url in [
            "rtmp://pub:p%2Fa&b@h/live/stream",
            "rtmp://pub:p/a&b@h/live/stream",
            "rtmp://h:1935/live/stream?user=pub&pass=p%2Fa%26b",
        ] {
            let (location, mut credentials) = parsed(url);
            assert_eq!(location.to_string(), "rtmp://h:1935/live/stream");
            let shown = format!("{location:?} {credentials:?}");
            assert!(!shown.contains("a&b") && !shown.contains("%2Fa"), "{shown}");
            if credentials.username.is_none() {
                credentials = location.login().unwrap();
            }
            assert_eq!(credentials.username.as_deref(), Some("pub"));
            assert_eq!(credentials.password.unwrap().expose(), "p/a&b");
        }
        for password in ["a?b", "a/b?c", "?", "a@b?c/d/e@", "1/b?c", "/?x"] {
            let url = format!("rtmp://pub:{password}@h/live/stream?x=1");
            let (location, credentials) = parsed(&url);
            assert_eq!(location.to_string(), "rtmp://h:1935/live/stream?x=1");
            assert_eq!(credentials.password.unwrap().expose(), password);
        }
    }

    #[test]
    fn a_user_in_the_query_may_be_an_address() {
        let (location, _) = parsed("rtmp://h/live/stream?user=pub@example.org&pass=a@b/c/d");
        assert_eq!(location.to_string(), "rtmp://h:1935/live/stream");
        let login = location.login().unwrap();
        assert_eq!(login.username.as_deref(), Some("pub@example.org"));
        assert_eq!(login.password.unwrap().expose(), "a@b/c/d");
        let (location, _) = parsed("rtmp://h/live/stream?pass=%ff");
        assert!(location.login().unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn what_may_be_a_secret_in_a_query_is_not_shown() {
        let (location, _) = parsed(
            "rtmps://[::1]/robots/r1/live?x=1&user=u&hunter2&Token=a&txSecret=b&wowzatokenhash=c\
             &auth_key=d&streamKey=e&a=0123456789abcdefg&vhost=h",
        );
        assert_eq!(
            location.to_string(),
            "rtmps://[::1]/robots/r1/live?x=1&vhost=h"
        );
        let (location, _) = parsed("rtmp://h/live?hunter2&vhost=v/stream");
        assert_eq!(location.to_string(), "rtmp://h:1935/live?vhost=v/stream");
        let (location, _) = parsed("rtmp://h/camera?pass=hunter2&x=1");
        assert_eq!(location.to_string(), "rtmp://h:1935/camera?x=1");
    }

    #[test]
    fn rtmps_without_a_port_has_two() {
        assert_eq!(parsed("rtmps://h/live/stream").0.ports(), [443, 1936]);
        assert_eq!(parsed("rtmps://h:7/live/stream").0.ports(), [7]);
        assert_eq!(parsed("rtmp://h/live/stream").0.ports(), [1935]);
        let (location, _) = parsed("rtmps://h/live/stream");
        let at_port = location.at_port(443);
        assert_eq!(at_port.to_string(), "rtmps://h:443/live/stream");
    }

    /// Application, URL of the application and stream, as they are sent.
    fn sent(
        url: &str,
        user: Option<&str>,
        password: Option<&str>,
        mode: CredentialMode,
    ) -> [String; 3] {
        let (location, userinfo) = parsed(url);
        let credentials = UserInfo {
            username: user.map(str::to_owned).or(userinfo.username),
            password: password.map(Secret::new).or(userinfo.password),
        };
        let names = location.names(&credentials, mode);
        let tc_url = location.tc_url(&names);
        [&names.app, &tc_url, &names.stream].map(|sent| sent.expose().to_owned())
    }

    #[test]
    fn the_locations_of_services_and_servers_are_sent_as_they_expect_them() {
        for (what, url, app, tc_url, stream) in [
            (
                "YouTube",
                "rtmp://a.rtmp.youtube.com/live2/abcd-1234",
                "live2",
                "rtmp://a.rtmp.youtube.com:1935/live2",
                "abcd-1234",
            ),
            (
                "YouTube's backup",
                "rtmp://b.rtmp.youtube.com/live2?backup=1/abcd-1234",
                "live2?backup=1",
                "rtmp://b.rtmp.youtube.com:1935/live2?backup=1",
                "abcd-1234",
            ),
            (
                "Twitch",
                "rtmps://live.twitch.tv/app/live_123_AbC?bandwidthtest=true",
                "app",
                "rtmps://live.twitch.tv/app",
                "live_123_AbC?bandwidthtest=true",
            ),
            (
                "Facebook",
                "rtmps://live-api-s.facebook.com:443/rtmp/FB-12-0-Ab?s_bl=1&s_sml=3&a=AbXy/+Z",
                "rtmp",
                "rtmps://live-api-s.facebook.com:443/rtmp",
                "FB-12-0-Ab?s_bl=1&s_sml=3&a=AbXy/+Z",
            ),
            (
                "AWS IVS",
                "rtmps://0a1b.global-contribute.live-video.net:443/app/sk_us-west-2_aBc",
                "app",
                "rtmps://0a1b.global-contribute.live-video.net:443/app",
                "sk_us-west-2_aBc",
            ),
            (
                "Wowza",
                "rtmp://h/live/_definst_/stream?wowzatokenhash=aB-_=&x",
                "live/_definst_",
                "rtmp://h:1935/live/_definst_",
                "stream?wowzatokenhash=aB-_=&x",
            ),
            (
                "Red5",
                "rtmp://h:1935/live/room/7/stream",
                "live/room/7",
                "rtmp://h:1935/live/room/7",
                "stream",
            ),
            (
                "Akamai",
                "rtmp://p.ep1.i.akamaientrypoint.net/EntryPoint/stream_1_500@s123",
                "EntryPoint",
                "rtmp://p.ep1.i.akamaientrypoint.net:1935/EntryPoint",
                "stream_1_500@s123",
            ),
            (
                "Akamai with a login",
                "rtmp://u:p@h/EntryPoint/stream_1@123?x=a/b",
                "EntryPoint",
                "rtmp://h:1935/EntryPoint",
                "stream_1@123?x=a/b",
            ),
            (
                "Millicast",
                "rtmp://rtmp-auto.millicast.com:1935/v2/pub/stream?token=0aB1",
                "v2/pub",
                "rtmp://rtmp-auto.millicast.com:1935/v2/pub",
                "stream?token=0aB1",
            ),
            (
                "SRS",
                "rtmp://h/live/stream?vhost=v&secret=s%2F",
                "live",
                "rtmp://h:1935/live",
                "stream?vhost=v&secret=s%2F",
            ),
            (
                "SRS by the application",
                "rtmp://h/live?vhost=v/stream",
                "live?vhost=v",
                "rtmp://h:1935/live?vhost=v",
                "stream",
            ),
            (
                "SRS in the old way",
                "rtmp://h/live...vhost...v/stream",
                "live...vhost...v",
                "rtmp://h:1935/live...vhost...v",
                "stream",
            ),
            (
                "a key ahead of the stream",
                "rtmp://h/live?KEY/0a-1b?x=a/b",
                "live?KEY",
                "rtmp://h:1935/live?KEY",
                "0a-1b?x=a/b",
            ),
            (
                "go2rtc",
                "rtmp://h/camera1",
                "camera1",
                "rtmp://h:1935/camera1",
                "",
            ),
            (
                "MediaMTX at its root",
                "rtmp://h/camera1?user=u&pass=p",
                "camera1?user=u&pass=p",
                "rtmp://h:1935/camera1?user=u&pass=p",
                "",
            ),
            (
                "MediaMTX",
                "rtmp://h/live/stream?user=u&pass=p",
                "live",
                "rtmp://h:1935/live",
                "stream?user=u&pass=p",
            ),
        ] {
            for mode in [CredentialMode::None, CredentialMode::Rtmp] {
                assert_eq!(sent(url, None, None, mode), [app, tc_url, stream], "{what}");
            }
            if !url.contains('@') || what == "Akamai" {
                for mode in [CredentialMode::Query, CredentialMode::Token] {
                    assert_eq!(sent(url, None, None, mode), [app, tc_url, stream], "{what}");
                }
            }
        }
    }

    #[test]
    fn what_stands_in_the_query_is_sent_and_what_is_set_replaces_its_like() {
        use CredentialMode::{Query, Token};
        let stream = |url: &str, user, password, mode| {
            let [_, _, stream] = sent(url, user, password, mode);
            stream
        };
        let url = "rtmp://h/live/stream?x=1&token=X%2f&&user=u";
        for (user, password, mode, expected) in [
            (None, None, Query, "stream?x=1&token=X%2f&&user=u"),
            (None, None, Token, "stream?x=1&token=X%2f&&user=u"),
            (
                Some("a/b"),
                Some("c&d"),
                Query,
                "stream?x=1&token=X%2f&user=a%2Fb&pass=c%26d",
            ),
            (
                Some("a/b"),
                Some("c&d"),
                Token,
                "stream?x=1&user=a%2Fb&token=c%26d",
            ),
            (
                None,
                Some("c&d"),
                Query,
                "stream?x=1&token=X%2f&&user=u&pass=c%26d",
            ),
        ] {
            assert_eq!(stream(url, user, password, mode), expected);
        }
        let in_front = "rtmp://a:b@h/live/stream";
        assert_eq!(stream(in_front, None, None, Query), "stream?user=a&pass=b");
        assert_eq!(stream(in_front, None, None, Token), "stream?user=a&token=b");
        let app_alone = sent("rtmp://a:b@h/camera", None, None, Query);
        assert_eq!(app_alone[0], "camera?user=a&pass=b");
        assert_eq!(app_alone[2], "");
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
            let other = other.at_port(1936);
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
            ("rtmp://u:hunter2@h/", "app/stream"),
            ("rtmp://u:hunter2@h", "app/stream"),
            ("rtmp://u:hunter2@h:x/live/stream", "port"),
            ("rtmp://u:%ff@h/live/stream?user=hunter2", "UTF-8"),
            ("rtmp://u:hunter2?x@h:x/live/stream", "app/stream"),
            ("rtmp://u:hunter2/?x@h/", "app/stream"),
            ("rtmp://u:hunter2@x@h", "app/stream"),
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
                (CredentialMode::Token, vec![pair("user", &user), pair("token", &password)]),
                (CredentialMode::None, vec![]),
                (CredentialMode::Rtmp, vec![]),
            ] {
                let name = location.names(&credentials, mode).stream;
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
            let (location, mut credentials) = Location::parse(&url).unwrap();
            if in_query {
                prop_assert_eq!(&credentials, &UserInfo::default());
                credentials = location.login().unwrap();
            }
            prop_assert_eq!(location.to_string(), "rtmp://h:1935/live/stream");
            let names = location.names(&UserInfo::default(), CredentialMode::Query);
            prop_assert_eq!(location.tc_url(&names), Secret::new("rtmp://h:1935/live"));
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
