// SPDX-License-Identifier: MPL-2.0

//! The configuration file: read, checked, every error with its line and remedy.

use std::{
    env, fmt, fs,
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use droidrelay_wire::{
    BrokerUrl, Secret,
    mqtt::session::{self, MIN_KEEP_ALIVE},
    net::{tls::TlsFiles, url::UserInfo},
    words::topics::{DEFAULT_TOPIC, check_topic},
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use crate::{
    auth::{FailureLimit, Hash, Role, User},
    client::{Client, Url, basic},
    mediamtx,
    robots::{self, Directory, PLACEHOLDER, Robot, TopicTemplate},
    serve::Tls,
    share,
    webhook::{self, Happening, Webhook},
};

/// The commented default file: the manual.
pub const TEMPLATE: &str = include_str!("../droidrelay-bridge.toml");

/// Override the broker's password: the secret itself, or a file whose first line it is.
pub const PASSWORD_VARIABLE: &str = "DROIDRELAY_MQTT_PASSWORD";
pub const PASSWORD_FILE_VARIABLE: &str = "DROIDRELAY_MQTT_PASSWORD_FILE";

/// Robot, topic and path of a bridge without any robot in its configuration.
const DEFAULT_ROBOT: (&str, &str, &str) = ("robot", DEFAULT_TOPIC, "live/stream");

/// Where and why a configuration is refused. Shows no value that could be a secret.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    /// Line and column, from 1.
    position: Option<(usize, usize)>,
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// What the bridge works with.
pub struct Config {
    pub listen: SocketAddr,
    pub mqtt: session::Config,
    /// How long a `start` stays good on its way to the robot.
    pub start_expiry: Duration,
    /// How long the broker may take to acknowledge.
    pub ack_timeout: Duration,
    pub directory: Directory,
    pub watch: Watch,
    pub users: Vec<User>,
    pub failures: FailureLimit,
    /// Whose word on who asks is believed.
    pub proxies: Vec<Network>,
    pub tls: Option<Tls>,
    /// Where TLS is spoken, and plain HTTP at `listen`. None: TLS there, if at all.
    pub tls_listen: Option<SocketAddr>,
    pub(crate) mediamtx: Option<mediamtx::Settings>,
    pub(crate) share_key: Option<hmac::Key>,
    pub(crate) webhooks: Vec<Webhook>,
}

/// An address, or all that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let (mine, other, width) = match (self.address, address.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                (u128::from(mine.to_bits()), u128::from(other.to_bits()), 32)
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => (mine.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let shift = width - u32::from(self.bits);
        mine.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is neither an address nor a network: write for example \"127.0.0.1\" or \"10.0.0.0/8\""
            )
        };
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| wrong())?)),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return Err(wrong());
        }
        Ok(Network { address, bits })
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// URL templates of the players; `{path}` and `{robot}` are filled in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    pub rtsp: Option<WatchUrl>,
    pub hls: Option<WatchUrl>,
    pub webrtc: Option<WatchUrl>,
}

impl Watch {
    /// The host that the first of them names, without port.
    pub fn host(&self) -> Option<String> {
        let url = [&self.rtsp, &self.webrtc, &self.hls]
            .into_iter()
            .flatten()
            .next()?;
        let (_, rest) = url.0.split_once("://")?;
        let authority = rest.split('/').next()?;
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
            _ => authority,
        };
        (!host.is_empty() && !host.contains('{')).then(|| host.to_owned())
    }

    /// The URLs of one robot's stream, by the way to watch it.
    pub fn fill(&self, robot: &Robot) -> serde_json::Map<String, serde_json::Value> {
        let ways = [
            ("rtsp", &self.rtsp),
            ("hls", &self.hls),
            ("webrtc", &self.webrtc),
        ];
        let filled = |(way, url): (&str, &Option<WatchUrl>)| {
            Some((way.to_owned(), url.as_ref()?.fill(robot).into()))
        };
        ways.into_iter().filter_map(filled).collect()
    }
}

/// One of them, which holds no credentials: it is shown to viewers.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct WatchUrl(String);

impl WatchUrl {
    /// As it stands in the configuration.
    pub fn template(&self) -> &str {
        &self.0
    }

    pub fn fill(&self, robot: &Robot) -> String {
        self.0
            .replace("{path}", &robot.path)
            .replace(PLACEHOLDER, &robot.name)
    }
}

impl TryFrom<String> for WatchUrl {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        let (_, rest) = url.split_once("://").ok_or(
            "a watch URL begins with its scheme, for example rtsp://media.example:8554/{path}",
        )?;
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.contains('@') {
            return Err("a watch URL is shown to viewers: take the credentials out of it".into());
        }
        Ok(WatchUrl(url))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    listen: Spanned<Listen>,
    trusted_proxies: Vec<Network>,
    tls: Option<TlsTable>,
    mqtt: Mqtt,
    robots: Robots,
    #[serde(rename = "robot")]
    listed: Vec<Listed>,
    watch: Watch,
    failures: FailureTable,
    mediamtx: Option<MediaMtxTable>,
    share: Option<ShareTable>,
    #[serde(rename = "webhook")]
    webhooks: Vec<WebhookTable>,
    #[serde(rename = "user")]
    users: Vec<UserTable>,
}

impl Default for File {
    fn default() -> Self {
        File {
            listen: Spanned::new(0..0, Listen(SocketAddr::from(([127, 0, 0, 1], 8080)))),
            trusted_proxies: Vec::new(),
            tls: None,
            mqtt: Mqtt::default(),
            robots: Robots::default(),
            listed: Vec::new(),
            watch: Watch::default(),
            failures: FailureTable::default(),
            mediamtx: None,
            share: None,
            webhooks: Vec::new(),
            users: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TlsTable {
    listen: Option<Spanned<Listen>>,
    cert_file: Spanned<PathBuf>,
    key_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Listen(SocketAddr);

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Listen).map_err(|_| {
            format!("listen {text:?} is not ADDRESS:PORT: write for example \"127.0.0.1:8080\" or \"[::]:8080\"")
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Mqtt {
    broker: Spanned<Broker>,
    username: Option<String>,
    password_file: Option<Spanned<PathBuf>>,
    client_id: Option<String>,
    ca_file: Option<Spanned<PathBuf>>,
    cert_file: Option<Spanned<PathBuf>>,
    key_file: Option<Spanned<PathBuf>>,
    keep_alive: Seconds<5, 3600>,
    start_expiry: Seconds<1, 86_400>,
    ack_timeout: Seconds<1, 60>,
}

impl Default for Mqtt {
    fn default() -> Self {
        let (url, userinfo) = (
            BrokerUrl {
                scheme: droidrelay_wire::mqtt::broker::Scheme::Mqtt,
                host: "127.0.0.1".into(),
                port: 1883,
                path: "/mqtt".into(),
            },
            UserInfo::default(),
        );
        Mqtt {
            broker: Spanned::new(0..0, Broker { url, userinfo }),
            username: None,
            password_file: None,
            client_id: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            keep_alive: Seconds(10),
            start_expiry: Seconds(30),
            ack_timeout: Seconds(4),
        }
    }
}

struct Broker {
    url: BrokerUrl,
    userinfo: UserInfo,
}

impl<'de> Deserialize<'de> for Broker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = secret_text(deserializer)?;
        let (url, userinfo) = BrokerUrl::parse(text.expose()).map_err(D::Error::custom)?;
        Ok(Broker { url, userinfo })
    }
}

/// Whole seconds within bounds.
struct Seconds<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Seconds<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = u64::deserialize(deserializer)?;
        if (MIN..=MAX).contains(&seconds) {
            Ok(Seconds(seconds))
        } else {
            Err(D::Error::custom(format!(
                "{seconds} is out of range: give whole seconds from {MIN} to {MAX}"
            )))
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Robots {
    topic: Option<Spanned<String>>,
    path: Option<Spanned<MediaPath>>,
    default: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Listed {
    name: Spanned<String>,
    topic: Option<Spanned<String>>,
    path: Option<MediaPath>,
}

/// Path on the media server, also as a template.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct MediaPath(String);

impl TryFrom<String> for MediaPath {
    type Error = String;

    fn try_from(path: String) -> Result<Self, String> {
        let plain = path.replace(PLACEHOLDER, "robot");
        let good = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        let segment_is_bad = |segment: &str| matches!(segment, "" | "." | "..");
        if !plain.chars().all(good) || plain.split('/').any(segment_is_bad) {
            return Err(format!(
                "the media path {path:?} is not one: letters, digits, '_', '-', '.', with '/' between segments only, for example \"live/stream\""
            ));
        }
        Ok(MediaPath(path))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FailureTable {
    burst: Spanned<u32>,
    window: Seconds<1, 86_400>,
}

impl Default for FailureTable {
    fn default() -> Self {
        FailureTable {
            burst: Spanned::new(0..0, 10),
            window: Seconds(60),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct MediaMtxTable {
    read_starts: bool,
    lease: Seconds<10, 3600>,
    api: Option<Spanned<UrlText>>,
    api_user: Option<String>,
    api_password_file: Option<Spanned<PathBuf>>,
}

impl Default for MediaMtxTable {
    fn default() -> Self {
        MediaMtxTable {
            read_starts: false,
            lease: Seconds(mediamtx::LEASE.as_secs()),
            api: None,
            api_user: None,
            api_password_file: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ShareTable {
    key_file: Spanned<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WebhookTable {
    url: Option<Spanned<UrlText>>,
    url_file: Option<Spanned<PathBuf>>,
    secret_file: Option<Spanned<PathBuf>>,
    ca_file: Option<Spanned<PathBuf>>,
    events: Option<Vec<Happening>>,
    robots: Option<Spanned<Vec<String>>>,
}

struct UrlText(Url);

impl<'de> Deserialize<'de> for UrlText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = secret_text(deserializer)?;
        Url::parse(text.expose())
            .map(UrlText)
            .map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct UserTable {
    name: Spanned<String>,
    role: Role,
    robots: Option<Spanned<Vec<String>>>,
    password: Option<Hash>,
    token: Option<Spanned<Hash>>,
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Hash::parse(secret_text(deserializer)?.expose()).map_err(D::Error::custom)
    }
}

/// A string whose error does not show what stood there instead.
fn secret_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => Ok(Secret::new(text)),
        _ => Err(D::Error::custom("the value must be a string in quotes")),
    }
}

impl Config {
    /// Reads and checks the file at `path`; its relative paths count from its own folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|err| ConfigError {
            file: path.to_owned(),
            position: None,
            message: format!(
                "cannot read the configuration: {err}; make one with `droidrelay-bridge --print-config-template`"
            ),
        })?;
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Self::parse(&text, path, variable)
    }

    /// Checks `text` as the content of the file at `path`.
    pub fn parse(
        text: &str,
        path: &Path,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let refuse = |(span, message): Refusal| ConfigError {
            file: path.to_owned(),
            position: span.map(|span| position(text, span.start)),
            message,
        };
        let file: File =
            toml::from_str(text).map_err(|err| refuse((err.span(), err.message().to_owned())))?;
        file.check(path, variable).map_err(refuse)
    }
}

/// What is wrong, and where where that is known.
type Refusal = (Option<Range<usize>>, String);

fn at<T>(spanned: &Spanned<T>, message: impl Into<String>) -> Refusal {
    (
        Some(spanned.span()).filter(|span| !span.is_empty()),
        message.into(),
    )
}

/// Line and column of a byte, from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

impl File {
    fn check(
        self,
        path: &Path,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Refusal> {
        let listen = self.listen.get_ref().0;
        let tls_listen = self.tls.as_ref().and_then(|tls| tls.listen.as_ref());
        let far = [Some(&self.listen), tls_listen]
            .into_iter()
            .flatten()
            .find(|listen| !listen.get_ref().0.ip().is_loopback());
        if let (true, Some(far)) = (self.users.is_empty(), far) {
            let listen = far.get_ref().0;
            return Err(at(
                far,
                format!(
                    "listen {listen} is reachable from other hosts, but nobody would need a credential: add a [[user]], or listen on 127.0.0.1"
                ),
            ));
        }
        let tls_listen = tls_listen.map(|listen| listen.get_ref().0);
        if *self.failures.burst.get_ref() == 0 {
            return Err(at(
                &self.failures.burst,
                "burst is 0: nobody could ever come in; give at least 1",
            ));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let tls = self.tls.map(|table| {
            let cert_file = folder.join(table.cert_file.get_ref());
            Tls::load(cert_file, folder.join(&table.key_file))
                .map_err(|err| at(&table.cert_file, err))
        });
        let directory = directory(self.robots, self.listed)?;
        let share_key = self.share.map(|table| {
            let file = folder.join(table.key_file.get_ref());
            share::key_from_file(&file).map_err(|err| at(&table.key_file, err))
        });
        let webhooks = self
            .webhooks
            .into_iter()
            .map(|table| table.check(folder, &directory))
            .collect::<Result<_, _>>()?;
        let mediamtx = self.mediamtx.map(|table| table.check(folder)).transpose()?;
        let mqtt = self.mqtt;
        Ok(Config {
            listen,
            start_expiry: mqtt.start_expiry.duration(),
            ack_timeout: mqtt.ack_timeout.duration(),
            mqtt: mqtt.check(path, variable, directory.subscriptions())?,
            users: users(self.users, &directory)?,
            directory,
            watch: self.watch,
            proxies: self.trusted_proxies,
            tls: tls.transpose()?,
            tls_listen,
            mediamtx,
            share_key: share_key.transpose()?,
            webhooks,
            failures: FailureLimit {
                burst: *self.failures.burst.get_ref(),
                window: self.failures.window.duration(),
            },
        })
    }
}

impl MediaMtxTable {
    fn check(self, folder: &Path) -> Result<mediamtx::Settings, Refusal> {
        let api = match self.api {
            None => None,
            Some(api) => {
                let UrlText(url) = api.get_ref();
                let authorization = match (&self.api_user, &self.api_password_file) {
                    (Some(user), Some(file)) => {
                        let password = Secret::from_file(folder.join(file.get_ref()));
                        Some(basic(user, &password.map_err(|err| at(file, err))?))
                    }
                    (None, None) => None,
                    _ => return Err(at(&api, "api-user and api-password-file need each other")),
                };
                let client = Client::new(url.is_tls(), &TlsFiles::default());
                let client = client.map_err(|err| at(&api, err))?;
                Some((client, url.clone().or_authorize(authorization)))
            }
        };
        Ok(mediamtx::Settings {
            read_starts: self.read_starts,
            lease: self.lease.duration(),
            api,
        })
    }
}

impl WebhookTable {
    fn check(self, folder: &Path, directory: &Directory) -> Result<Webhook, Refusal> {
        let (url, span) = match (self.url, &self.url_file) {
            (Some(url), None) => {
                let span = url.span();
                (url.into_inner().0, span)
            }
            (None, Some(file)) => {
                let url = Secret::from_file(folder.join(file.get_ref()))
                    .and_then(|text| Url::parse(text.expose()));
                (url.map_err(|err| at(file, err))?, file.span())
            }
            (url, file) => {
                let span = url.map(|url| url.span());
                let span = span.or(file.as_ref().map(Spanned::span));
                return Err((
                    span,
                    "a [[webhook]] needs url or url-file, and not both".into(),
                ));
            }
        };
        let key = match &self.secret_file {
            None => None,
            Some(file) => {
                let secret = Secret::from_file(folder.join(file.get_ref()));
                let key = secret.and_then(|secret| webhook::key(&secret));
                Some(key.map_err(|err| at(file, err))?)
            }
        };
        let trust = TlsFiles {
            ca_file: self
                .ca_file
                .as_ref()
                .map(|file| folder.join(file.get_ref())),
            ..TlsFiles::default()
        };
        let client = Client::new(url.is_tls(), &trust);
        let client = client.map_err(|err| match &self.ca_file {
            Some(file) => at(file, err),
            None => (Some(span), err),
        })?;
        if let Some(robots) = &self.robots {
            check_robots(robots, directory)?;
        }
        Ok(Webhook {
            url,
            client,
            key,
            happenings: self.events.unwrap_or_else(|| {
                use Happening::*;
                vec![Opened, Offline, Online, Error]
            }),
            robots: self.robots.map(Spanned::into_inner),
        })
    }
}

fn check_robots(robots: &Spanned<Vec<String>>, directory: &Directory) -> Result<(), Refusal> {
    let is_unknown = |name: &&String| directory.robot(name).is_none();
    match robots.get_ref().iter().find(is_unknown) {
        None => Ok(()),
        Some(unknown) => Err(at(
            robots,
            format!(
                "there is no robot {unknown:?}: list it as [[robot]], or set robots.topic as the template"
            ),
        )),
    }
}

impl Mqtt {
    fn check(
        self,
        path: &Path,
        variable: impl Fn(&str) -> Option<String>,
        subscriptions: Vec<String>,
    ) -> Result<session::Config, Refusal> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let resolve = |file: &Spanned<PathBuf>| folder.join(file.get_ref());
        let Broker { url, userinfo } = self.broker.get_ref();
        let username = self.username.clone().or(userinfo.username.clone());
        let password = if let Some(password) = variable(PASSWORD_VARIABLE) {
            Password::Given(Some(Secret::new(password)))
        } else if let Some(file) = variable(PASSWORD_FILE_VARIABLE) {
            Secret::from_file(&file)
                .map_err(|err| (None, format!("{PASSWORD_FILE_VARIABLE}: {err}")))?;
            Password::File(file.into())
        } else if let Some(file) = &self.password_file {
            let resolved = resolve(file);
            Secret::from_file(&resolved).map_err(|err| at(file, err))?;
            Password::File(resolved)
        } else {
            Password::Given(userinfo.password.clone())
        };
        let files = TlsFiles {
            ca_file: self.ca_file.as_ref().map(resolve),
            cert_file: self.cert_file.as_ref().map(resolve),
            key_file: self.key_file.as_ref().map(resolve),
            ..TlsFiles::default()
        };
        let some_file = [&self.ca_file, &self.cert_file, &self.key_file]
            .into_iter()
            .flatten()
            .next();
        let tls = if url.scheme.is_tls() {
            let refuse =
                |err| some_file.map_or_else(|| at(&self.broker, &err), |file| at(file, &err));
            Some(files.client().map_err(|err: String| refuse(err))?)
        } else if let Some(file) = some_file {
            return Err(at(
                file,
                format!("{url} carries no TLS: write mqtts:// or wss://, or take the file out"),
            ));
        } else {
            None
        };
        let client_id = match self.client_id {
            Some(id) if !id.is_empty() => id,
            // Several bridges work side by side: no two may have one id.
            _ => format!("droidrelay-bridge-{:016x}", random()?),
        };
        Ok(session::Config {
            broker: url.clone(),
            client_id,
            // Asked at each connection: a rotated password needs no restart.
            credentials: Box::new(move || Ok((username.clone(), password.read()?))),
            tls,
            keep_alive: self.keep_alive.duration().max(MIN_KEEP_ALIVE),
            session_expiry: Duration::ZERO,
            // What tens of thousands of robots have retained comes at once.
            receive_maximum: u16::MAX,
            will: None,
            subscriptions,
        })
    }
}

enum Password {
    Given(Option<Secret>),
    File(PathBuf),
}

impl Password {
    fn read(&self) -> Result<Option<Secret>, String> {
        match self {
            Password::Given(secret) => Ok(secret.clone()),
            Password::File(path) => Secret::from_file(path).map(Some),
        }
    }
}

fn random() -> Result<u64, Refusal> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| (None, "the system gives no random numbers".to_owned()))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn directory(robots: Robots, listed: Vec<Listed>) -> Result<Directory, Refusal> {
    let template = match (&robots.topic, &robots.path) {
        (Some(topic), path) => {
            let parsed = TopicTemplate::parse(topic.get_ref()).map_err(|err| at(topic, err))?;
            let path = match path {
                Some(path) if !path.get_ref().0.contains(PLACEHOLDER) => {
                    return Err(at(
                        path,
                        format!("every robot would publish to one path: put {PLACEHOLDER} into it"),
                    ));
                }
                Some(path) => path.get_ref().0.clone(),
                None => format!("robots/{PLACEHOLDER}"),
            };
            Some((parsed, path))
        }
        (None, Some(path)) => {
            return Err(at(
                path,
                "path without topic: add topic = \"robots/{robot}/stream\", or list robots as [[robot]]",
            ));
        }
        (None, None) => None,
    };
    let by_template = Directory::new(template.clone(), Vec::new(), None);
    let mut all: Vec<Robot> = Vec::with_capacity(listed.len());
    for robot in listed {
        let name = robot.name.get_ref();
        robots::check_name(name).map_err(|err| at(&robot.name, err))?;
        let templated = by_template.robot(name);
        let topic = match (&robot.topic, &templated) {
            (Some(topic), _) => {
                check_topic(topic.get_ref()).map_err(|err| at(topic, err))?;
                topic.get_ref().clone()
            }
            (None, Some(templated)) => templated.topic.clone(),
            (None, None) => {
                return Err(at(
                    &robot.name,
                    format!(
                        "robot {name:?} has no topic: give it one, or set robots.topic as the template"
                    ),
                ));
            }
        };
        let path = match (robot.path, templated) {
            (Some(path), _) => path.0.replace(PLACEHOLDER, name),
            (None, Some(templated)) => templated.path,
            (None, None) => {
                return Err(at(
                    &robot.name,
                    format!(
                        "robot {name:?} has no path: give it the path it publishes to, for example \"live/stream\""
                    ),
                ));
            }
        };
        if let Some(twin) = all
            .iter()
            .find(|other| other.name == *name || other.topic == topic)
        {
            return Err(at(
                &robot.name,
                format!(
                    "robot {name:?} has the name or the topic of {:?}: make them differ",
                    twin.name
                ),
            ));
        }
        all.push(Robot {
            name: name.clone(),
            topic,
            path,
        });
    }
    if template.is_none() && all.is_empty() {
        let (name, topic, path) = DEFAULT_ROBOT;
        all.push(Robot {
            name: name.into(),
            topic: topic.into(),
            path: path.into(),
        });
    }
    let only = match (&template, all.as_slice()) {
        (None, [only]) => Some(only.name.clone()),
        _ => None,
    };
    let default = robots.default.as_ref();
    let directory = Directory::new(
        template,
        all,
        default.map(|name| name.get_ref().clone()).or(only),
    );
    match default {
        Some(name) if directory.default_robot().is_none() => Err(at(
            name,
            format!(
                "the default robot {:?} is none: list it as [[robot]], or set robots.topic as the template",
                name.get_ref()
            ),
        )),
        _ => Ok(directory),
    }
}

fn users(tables: Vec<UserTable>, directory: &Directory) -> Result<Vec<User>, Refusal> {
    let mut users: Vec<User> = Vec::with_capacity(tables.len());
    for table in tables {
        let name = table.name.get_ref().clone();
        if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
            return Err(at(
                &table.name,
                "a user's name is not empty and holds neither ':' nor control characters",
            ));
        }
        if users.iter().any(|user| user.name == name) {
            return Err(at(
                &table.name,
                format!("user {name:?} is there twice: remove one"),
            ));
        }
        if table.password.is_none() && table.token.is_none() {
            return Err(at(
                &table.name,
                format!(
                    "user {name:?} has neither password nor token: add the hash that `droidrelay-bridge hash-password` prints"
                ),
            ));
        }
        if let Some(token) = table.token.as_ref()
            && matches!(token.get_ref(), Hash::Argon2(_))
        {
            return Err(at(
                token,
                "a token is long and random and comes without a name: hash it with `droidrelay-bridge hash-password --sha256`",
            ));
        }
        if let Some(robots) = &table.robots {
            if table.role == Role::Admin {
                return Err(at(
                    robots,
                    format!(
                        "user {name:?} is an admin, who has every robot: take robots out, or make it a viewer"
                    ),
                ));
            }
            check_robots(robots, directory)?;
        }
        if table.robots.is_none() && table.role == Role::Robot {
            return Err(at(
                &table.name,
                format!(
                    "user {name:?} is a robot, but nobody says which: add robots = [\"{name}\"] or its name"
                ),
            ));
        }
        users.push(User {
            name,
            role: table.role,
            robots: table.robots.map(Spanned::into_inner),
            password: table.password,
            token: table.token.map(Spanned::into_inner),
        });
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/x/bridge.toml";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new(FILE), |_| None)
    }

    fn error(text: &str) -> String {
        match parse(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(err) => err.to_string(),
        }
    }

    fn credentials(config: &Config) -> (Option<String>, Option<String>) {
        let (name, password) = (config.mqtt.credentials)().unwrap();
        (name, password.map(|password| password.expose().to_owned()))
    }

    #[test]
    fn the_template_is_valid_and_its_commented_defaults_are_the_defaults() {
        let template = parse(TEMPLATE).unwrap();
        let nothing = parse("").unwrap();
        for config in [&template, &nothing] {
            assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
            assert_eq!(config.mqtt.broker.to_string(), "mqtt://127.0.0.1:1883");
            assert_eq!(
                config.directory.default_robot().unwrap().topic,
                "robot/stream"
            );
        }
        // Every commented setting, examples included, is one that is known.
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| line.strip_prefix("# ").unwrap_or(line))
            .filter(|line| line.starts_with('[') || line.split(' ').nth(1) == Some("="))
            .map(|line| format!("{line}\n"))
            .collect();
        let file: Result<File, _> = toml::from_str(
            &uncommented
                .replace(
                    "\"$argon2id$v=19$m=19456,t=2,p=1$...\"",
                    &format!("\"{SHA}\""),
                )
                .replace("sha256:...", SHA),
        );
        let file = file.unwrap_or_else(|err| panic!("{err}{uncommented}"));
        assert_eq!((file.mqtt.keep_alive.0, file.mqtt.start_expiry.0), (10, 30));
        assert_eq!(file.mqtt.ack_timeout.0, Mqtt::default().ack_timeout.0);
        assert_eq!(
            file.failures.burst.get_ref(),
            FailureTable::default().burst.get_ref()
        );
        assert_eq!(file.failures.window.0, FailureTable::default().window.0);
        assert_eq!(file.users.len(), 4);
        assert_eq!(file.webhooks.len(), 3);
        let mediamtx = file.mediamtx.unwrap();
        assert_eq!(mediamtx.lease.0, MediaMtxTable::default().lease.0);
        assert_eq!(mediamtx.read_starts, MediaMtxTable::default().read_starts);
    }

    const SHA: &str = "sha256:9S+9MrKzuG/4jvbEkGKChfSCrxXdyylUH5S89Saj9sc=";

    #[test]
    fn every_mistake_is_told_with_file_line_and_remedy() {
        let user = format!("[[user]]\nname = \"u\"\nrole = \"viewer\"\npassword = \"{SHA}\"\n");
        for (text, position, reason) in [
            ("listen = 'here'", "1:10:", "ADDRESS:PORT"),
            ("\nlisten = '0.0.0.0:80'", "2:10:", "add a [[user]]"),
            (
                "[tls]\nlisten = '0.0.0.0:443'\ncert-file = 'x'\nkey-file = 'x'",
                "2:10:",
                "add a [[user]]",
            ),
            ("[mqtt]\nbrocker = 'x'", "2:1:", "unknown field `brocker`"),
            ("[mqtt]\nbroker = 'h:1883'", "2:10:", "mqtt://"),
            ("[mqtt]\nkeep-alive = 1", "2:14:", "from 5 to 3600"),
            (
                "[mqtt]\npassword-file = '/nonexistent'",
                "2:17:",
                "cannot open secret file",
            ),
            ("[mqtt]\nca-file = 'ca.pem'", "2:11:", "mqtts://"),
            ("[robots]\ntopic = 'robots/x'", "2:9:", "{robot}"),
            (
                "[robots]\npath = 'live/{robot}'",
                "2:8:",
                "path without topic",
            ),
            ("[robots]\ndefault = 'r1'", "2:11:", "r1"),
            ("[[robot]]\nname = 'r 1'", "2:8:", "letters"),
            ("[[robot]]\nname = 'r1'", "2:8:", "has no topic"),
            (
                "[[robot]]\nname = 'r1'\ntopic = 'a/#'\npath = 'x'",
                "3:9:",
                "a/#",
            ),
            (
                "[[robot]]\nname = 'r1'\ntopic = 'a'\npath = '/x'",
                "4:8:",
                "live/stream",
            ),
            (
                "[watch]\nrtsp = 'rtsp://u:hunter2@h/{path}'",
                "2:8:",
                "credentials",
            ),
            ("trusted-proxies = ['10.0.0.0/33']", "1:19:", "10.0.0.0/8"),
            (
                "[tls]\ncert-file = '/nonexistent.pem'\nkey-file = 'x'",
                "2:13:",
                "/nonexistent.pem",
            ),
            ("[watch]\nmpeg = 'x'", "2:1:", "unknown field"),
            ("[mediamtx]\nlease = 5", "2:9:", "from 10 to 3600"),
            ("[mediamtx]\napi = 'hunter2'", "2:7:", "http"),
            (
                "[mediamtx]\napi = 'http://h'\napi-user = 'x'",
                "2:7:",
                "api-password-file",
            ),
            ("[share]\nkey-file = '/dev/null'", "2:12:", "empty"),
            ("[[webhook]]\nurl = 'ftp://u:hunter2@h'", "2:7:", "http"),
            (
                "[[webhook]]\nurl = 'http://h'\nevents = ['dance']",
                "3:11:",
                "opened",
            ),
            (
                "[[webhook]]\nurl = 'http://h'\nrobots = ['r9']",
                "3:10:",
                "r9",
            ),
            ("[failures]\nburst = 0", "2:9:", "at least 1"),
            ("[[user]]\nname = 'u'\nrole = 'boss'", "3:8:", "viewer"),
            (
                "[[user]]\nname = 'u'\nrole = 'viewer'",
                "2:8:",
                "neither password nor token",
            ),
            (
                "[[user]]\nname = 'u'\nrole = 'viewer'\npassword = 'hunter2'",
                "4:12:",
                "hash-password",
            ),
            (
                "[[user]]\nname = 'u'\nrole = 'viewer'\npassword = 1234567",
                "4:12:",
                "string",
            ),
            (&format!("{user}robots = ['r9']"), "5:10:", "r9"),
            (&user.replace("viewer", "robot"), "2:8:", "robots = [\"u\"]"),
            (&format!("{user}{user}"), "6:8:", "twice"),
            ("listen = ", "1:", ""),
        ] {
            let error = error(text);
            assert!(
                error.starts_with(&format!("{FILE}:{position}")),
                "{error}: {text}"
            );
            assert!(error.contains(reason), "{error} names {reason}");
            assert!(
                !error.contains("hunter2") && !error.contains("1234567"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_told_with_the_remedy() {
        let Err(err) = Config::load(Path::new("/nonexistent/x.toml")) else {
            panic!("read a file that is not there");
        };
        let err = err.to_string();
        assert!(
            err.contains("/nonexistent/x.toml") && err.contains("--print-config-template"),
            "{err}"
        );
    }

    #[test]
    fn the_password_comes_from_the_environment_the_file_or_the_url() {
        let url = "[mqtt]\nbroker = 'mqtt://u:inurl@h'";
        let pair = |name: &str, password: &str| (Some(name.to_owned()), Some(password.to_owned()));
        assert_eq!(credentials(&parse(url).unwrap()), pair("u", "inurl"));
        let variable = |name: &str| (name == PASSWORD_VARIABLE).then(|| "inenv".to_owned());
        let config = Config::parse(url, Path::new(FILE), variable).unwrap();
        assert_eq!(credentials(&config), pair("u", "inenv"));

        let folder = env::temp_dir().join(format!("droidrelay-bridge-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), "infile\n").unwrap();
        let text = "[mqtt]\nusername = 'b'\npassword-file = 'secret'";
        let config = Config::parse(text, &folder.join("bridge.toml"), |_| None).unwrap();
        assert_eq!(credentials(&config), pair("b", "infile"));
        fs::write(folder.join("secret"), "rotated\n").unwrap();
        assert_eq!(credentials(&config), pair("b", "rotated"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_with_users_it_listens_beyond_loopback() {
        let user = format!("[[user]]\nname = 'u'\nrole = 'admin'\ntoken = '{SHA}'");
        assert!(parse(&format!("listen = '[::]:80'\n{user}")).is_ok());
        assert!(parse("listen = '[::1]:0'").is_ok());
        assert!(error("listen = '[::]:80'").contains("credential"));
    }

    #[test]
    fn the_only_listed_robot_is_the_default_and_a_template_needs_one_named() {
        let one = "[[robot]]\nname = 'r1'\ntopic = 'a'\npath = 'x'\n";
        assert_eq!(
            parse(one).unwrap().directory.default_robot().unwrap().name,
            "r1"
        );
        let template = "[robots]\ntopic = 'robots/{robot}/stream'\n";
        assert!(parse(template).unwrap().directory.default_robot().is_none());
        let named = format!("{template}default = 'r7'");
        let robot = parse(&named).unwrap().directory.default_robot().unwrap();
        assert_eq!(
            (robot.topic.as_str(), robot.path.as_str()),
            ("robots/r7/stream", "robots/r7")
        );
    }
}
