// SPDX-License-Identifier: MPL-2.0

//! The configuration: read, checked, every error with its line and remedy.

mod file;

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use droidrelay_wire::{
    Secret,
    line::one_line,
    mqtt::session::{self, MIN_KEEP_ALIVE},
    net::{
        http::{Client, Login, Policy, Url},
        tls::{self, TlsFiles},
    },
    words::topics::{DEFAULT_TOPIC, check_topic},
};
use ipnet::IpNet;
use ring::hmac;
use toml::Spanned;

use self::file::{
    Broker, EnrollTable, File, Listed, Listen, MediaMtxTable, Mqtt, Robots, ShareTable, TlsTable,
    UrlText, UserTable, WebhookTable,
};
use crate::{
    auth::{Credentials, FailureLimit, Hash, Role, User},
    connections::ConnectionLimits,
    demand, enroll,
    random::{hex, random},
    robots::{self, Directory, PLACEHOLDER, Robot, TopicTemplate, all_topics},
    serve::Tls,
    share,
    watch::{Own, Watch},
    webhook::{self, RobotEvent, Webhook},
};

/// The commented default file: the manual.
pub const TEMPLATE: &str = include_str!("../../droidrelay-bridge.toml");

/// By which name the bridge asks other servers.
pub const USER_AGENT: &str = concat!("droidrelay-bridge/", env!("CARGO_PKG_VERSION"));

/// Override the broker's password: the secret itself, or a file whose first line it is.
pub const PASSWORD_VARIABLE: &str = "DROIDRELAY_MQTT_PASSWORD";
pub const PASSWORD_FILE_VARIABLE: &str = "DROIDRELAY_MQTT_PASSWORD_FILE";

/// The bridge itself, at MediaMTX's API.
const OWN_NAME: &str = "droidrelay-bridge";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Robot, topic and path of a bridge without any robot in its configuration.
const DEFAULT_ROBOT: (&str, &str, &str) = ("robot", DEFAULT_TOPIC, "live/stream");

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
    pub connections: ConnectionLimits,
    /// Whose word on who asks is believed.
    pub proxies: Vec<IpNet>,
    pub tls: Option<Tls>,
    /// Where TLS is spoken, and plain HTTP at `listen`. None: TLS there, if at all.
    pub tls_listen: Option<SocketAddr>,
    /// Plain HTTP for MediaMTX alone, on this host.
    pub mediamtx_listen: Option<SocketAddr>,
    pub(crate) enroll: enroll::Settings,
    pub(crate) mediamtx: demand::Settings,
    pub(crate) share_key: Option<hmac::Key>,
    pub(crate) webhooks: Vec<Webhook>,
}

impl Config {
    /// Reads and checks the file at `path`; its relative paths count from its own folder. An error
    /// says where and why the file is refused, and shows no value that could be a secret.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|err| {
            format!(
                "{}: cannot read the configuration: {err}; make one with `droidrelay-bridge --print-config-template`",
                path.display()
            )
        })?;
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Self::parse(&text, path, variable)
    }

    /// Checks `text` as the content of the file at `path`.
    pub fn parse(
        text: &str,
        path: &Path,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        toml::from_str(text)
            .map_err(|err| (err.span(), err.message().to_owned()))
            .and_then(|file: File| file.check(path, variable))
            .map_err(|(span, message)| {
                let place = span.map_or(String::new(), |span| position(text, span.start));
                // The parser quotes what it does not know, control characters and all.
                format!("{}:{place} {}", path.display(), one_line(&message))
            })
    }
}

/// What is wrong, and where where that is known.
type Refusal = (Option<Range<usize>>, String);

fn refuse<T, U>(place: &Spanned<T>, message: impl Into<String>) -> Result<U, Refusal> {
    Err((Some(place.span()), message.into()))
}

/// Says where in the file an error comes from.
trait At<T> {
    fn at<S>(self, place: &Spanned<S>) -> Result<T, Refusal>;
}

impl<T> At<T> for Result<T, String> {
    fn at<S>(self, place: &Spanned<S>) -> Result<T, Refusal> {
        self.or_else(|message| refuse(place, message))
    }
}

/// The secret in a file that the configuration names.
fn secret(folder: &Path, file: &Spanned<PathBuf>) -> Result<Secret, Refusal> {
    Secret::from_file(folder.join(file.get_ref())).at(file)
}

/// Line and column of a byte, from 1, each with its colon.
fn position(text: &str, byte: usize) -> String {
    let before = text.get(..byte).unwrap_or(text);
    let lines = before.matches('\n').count();
    let in_line = before.rsplit('\n').next().unwrap_or(before);
    format!("{}:{}:", lines + 1, in_line.chars().count() + 1)
}

impl File {
    fn check(
        self,
        path: &Path,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Refusal> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let tls_listen = self.tls.as_ref().and_then(|tls| tls.listen.as_ref());
        let is_far = |listen: &&Spanned<Listen>| !listen.get_ref().0.ip().is_loopback();
        if self.users.is_empty()
            && let Some(far) = self.listen.iter().chain(tls_listen).find(is_far)
        {
            let listen = far.get_ref().0;
            return refuse(
                far,
                format!(
                    "listen {listen} is reachable from other hosts, but nobody would need a credential: add a [[user]], or listen on 127.0.0.1"
                ),
            );
        }
        let address = |listen: &Spanned<Listen>| listen.get_ref().0;
        let listen = self.listen.as_ref().map_or(DEFAULT_LISTEN, address);
        let tls_listen = tls_listen.map(address);
        let mediamtx_listen = self.mediamtx.listen.as_ref();
        if let Some(far) = mediamtx_listen.filter(is_far) {
            return refuse(
                far,
                format!(
                    "mediamtx.listen {} is reachable from other hosts, and is plain HTTP: listen on 127.0.0.1",
                    far.get_ref().0
                ),
            );
        }
        let mediamtx_listen = mediamtx_listen.map(address);
        let tls = |table: TlsTable| {
            let [cert, key] =
                [table.cert_file.get_ref(), &table.key_file].map(|file| folder.join(file));
            Tls::load(cert, key).at(&table.cert_file)
        };
        let share_key = |table: ShareTable| {
            share::key_from_file(&folder.join(table.key_file.get_ref())).at(&table.key_file)
        };
        let watch = Watch {
            own: Own {
                whep: self.mediamtx.webrtc.is_some(),
                hls: self.mediamtx.hls.is_some(),
            },
            ..self.watch
        };
        if let (Some(hls), None) = (&self.mediamtx.hls, &self.share) {
            return refuse(
                hls,
                "mediamtx.hls needs share.key-file: a browser's HLS player sends no password, and gets a link for it",
            );
        }
        let directory = directory(self.robots, self.listed)?;
        let webhook = |table: WebhookTable| table.check(folder, &directory);
        Ok(Config {
            listen,
            webhooks: self
                .webhooks
                .into_iter()
                .map(webhook)
                .collect::<Result<_, _>>()?,
            enroll: self.enroll.check(folder)?,
            mediamtx: self.mediamtx.check(folder)?,
            start_expiry: self.mqtt.start_expiry,
            ack_timeout: self.mqtt.ack_timeout,
            mqtt: self.mqtt.check(folder, variable, &directory)?,
            users: users(self.users, &directory)?,
            directory,
            watch,
            proxies: self.trusted_proxies,
            tls: self.tls.map(tls).transpose()?,
            tls_listen,
            mediamtx_listen,
            share_key: self.share.map(share_key).transpose()?,
            failures: self.failures,
            connections: self.connections,
        })
    }
}

impl MediaMtxTable {
    fn check(self, folder: &Path) -> Result<demand::Settings, Refusal> {
        let mut own = None;
        let login = match (&self.api, &self.api_user, &self.api_password_file) {
            (Some(_), Some(user), Some(file)) => {
                secret(folder, file)?;
                Login::Basic {
                    user: user.clone(),
                    password_file: folder.join(file.get_ref()),
                }
            }
            (None, _, _) => Login::None,
            // Where MediaMTX asks the bridge who may, it asks this very process.
            (Some(_), None, None) => {
                let password = hex(&random::<32>().map_err(|err| (None, err))?);
                let password = Secret::new(password);
                own = Some(Credentials::Basic(OWN_NAME.into(), password.clone()));
                Login::Given {
                    user: OWN_NAME.into(),
                    password,
                }
            }
            (Some(api), _, _) => {
                return refuse(api, "api-user and api-password-file need each other");
            }
        };
        let api = |api: Spanned<UrlText>| {
            let UrlText(url) = api.get_ref();
            Client::new(url.clone(), login, &TlsFiles::default(), USER_AGENT).at(&api)
        };
        // It gets the viewers' own credentials.
        let media = |media: Spanned<UrlText>| {
            let UrlText(url) = media.get_ref();
            Client::new(url.clone(), Login::None, &TlsFiles::default(), USER_AGENT).at(&media)
        };
        Ok(demand::Settings {
            read_starts: self.read_starts,
            lease: self.lease,
            api: self.api.map(api).transpose()?,
            webrtc: self.webrtc.map(media).transpose()?,
            hls: self.hls.map(media).transpose()?,
            own,
        })
    }
}

impl EnrollTable {
    fn check(self, folder: &Path) -> Result<enroll::Settings, Refusal> {
        if let Some(url) = self
            .url
            .as_ref()
            .filter(|url| !url.get_ref().starts_with("https://"))
        {
            return refuse(
                url,
                "enroll.url is not https://…: passwords go there, write https://host",
            );
        }
        if let Some(location) = self.location.as_ref()
            && !location.get_ref().contains("{path}")
        {
            return refuse(
                location,
                "every robot would publish to one path: put {path} into it",
            );
        }
        Ok(enroll::Settings {
            folder: folder.join(self.folder),
            url: self.url.map(Spanned::into_inner),
            broker: self.broker,
            location: self.location.map(Spanned::into_inner),
            ca_file: folder.join(self.ca_file),
        })
    }
}

impl WebhookTable {
    fn check(self, folder: &Path, directory: &Directory) -> Result<Webhook, Refusal> {
        let (url, span) = match (self.url, self.url_file) {
            (Some(url), None) => (url.get_ref().0.clone(), url.span()),
            (None, Some(file)) => {
                let url = Url::parse(secret(folder, &file)?.expose(), Policy::Secret).at(&file)?;
                (url, file.span())
            }
            (url, file) => {
                let span = url.map(|url| url.span()).or(file.map(|file| file.span()));
                let message = "a [[webhook]] needs url or url-file, and not both";
                return Err((span, message.into()));
            }
        };
        let key = |file| webhook::key(&secret(folder, file)?).at(file);
        let key = self.secret_file.as_ref().map(key).transpose()?;
        let ca_file = self.ca_file.as_ref();
        let trust = TlsFiles {
            ca_file: ca_file.map(|file| folder.join(file.get_ref())),
            ..TlsFiles::default()
        };
        let place = ca_file.map_or(span, Spanned::span);
        let client =
            Client::new(url, Login::None, &trust, USER_AGENT).map_err(|err| (Some(place), err))?;
        if let Some(robots) = &self.robots {
            check_robots(robots, directory)?;
        }
        Ok(Webhook {
            client,
            key,
            events: self.events.unwrap_or_else(|| {
                use RobotEvent::*;
                vec![Opened, Offline, Online, Error]
            }),
            robots: self.robots.map(Spanned::into_inner),
        })
    }
}

fn check_robots(robots: &Spanned<Vec<String>>, directory: &Directory) -> Result<(), Refusal> {
    let is_unknown = |name: &&String| directory.robot(name).is_none();
    let Some(unknown) = robots.get_ref().iter().find(is_unknown) else {
        return Ok(());
    };
    refuse(
        robots,
        format!(
            "there is no robot {unknown:?}: list it as [[robot]], or set robots.topic as the template"
        ),
    )
}

impl Mqtt {
    fn check(
        self,
        folder: &Path,
        variable: impl Fn(&str) -> Option<String>,
        directory: &Directory,
    ) -> Result<session::Config, Refusal> {
        let resolve = |file: &Spanned<PathBuf>| folder.join(file.get_ref());
        let Broker { url, userinfo } = self.broker.get_ref();
        let username = self.username.or(userinfo.username.clone());
        let mut password = userinfo.password.clone();
        let mut password_file = None;
        if let Some(given) = variable(PASSWORD_VARIABLE) {
            password = Some(Secret::new(given));
        } else if let Some(file) = variable(PASSWORD_FILE_VARIABLE) {
            Secret::from_file(&file)
                .map_err(|err| (None, format!("{PASSWORD_FILE_VARIABLE}: {err}")))?;
            password_file = Some(PathBuf::from(file));
        } else if let Some(file) = &self.password_file {
            secret(folder, file)?;
            password_file = Some(resolve(file));
        }
        // Asked at each connection: a rotated password needs no restart.
        let credentials = move || {
            let from_file = password_file.as_ref().map(Secret::from_file).transpose()?;
            Ok((username.clone(), from_file.or(password.clone())))
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
        let tls = match (url.scheme.is_tls(), some_file) {
            (true, file) => {
                let place = file.map_or(self.broker.span(), Spanned::span);
                Some(tls::Source::new(files).map_err(|err| (Some(place), err))?)
            }
            (false, None) => None,
            (false, Some(file)) => {
                let message = "carries no TLS: write mqtts:// or wss://, or take the file out";
                return refuse(file, format!("{url} {message}"));
            }
        };
        let client_id = match self.client_id {
            Some(id) if !id.is_empty() => id,
            // Several bridges work side by side: no two may have one id.
            _ => {
                let id = random::<8>().map_err(|err| (None, err))?;
                format!("droidrelay-bridge-{}", hex(&id))
            }
        };
        Ok(session::Config {
            broker: url.clone(),
            client_id,
            credentials: Box::new(credentials),
            tls,
            keep_alive: self.keep_alive.max(MIN_KEEP_ALIVE),
            session_expiry: Duration::ZERO,
            resumes: false,
            // What tens of thousands of robots have retained comes at once.
            receive_maximum: u16::MAX,
            will: None,
            subscriptions: directory.subscriptions(),
            live: directory.commands(),
        })
    }
}

fn directory(robots: Robots, listed: Vec<Listed>) -> Result<Directory, Refusal> {
    let template = match (robots.topic, robots.path) {
        (None, None) => None,
        (None, Some(path)) => {
            return refuse(
                &path,
                "path without topic: add topic = \"robots/{robot}/stream\", or list robots as [[robot]]",
            );
        }
        (Some(_), Some(path)) if !path.get_ref().0.contains(PLACEHOLDER) => {
            let message = "every robot would publish to one path: put {robot} into it";
            return refuse(&path, message);
        }
        (Some(topic), path) => {
            let path = path.map(|path| path.into_inner().0);
            let path = path.unwrap_or_else(|| format!("robots/{PLACEHOLDER}"));
            Some((TopicTemplate::parse(topic.get_ref()).at(&topic)?, path))
        }
    };
    let by_template = Directory::new(template.clone(), Vec::new(), None);
    let mut all: Vec<Robot> = Vec::with_capacity(listed.len());
    for robot in listed {
        let name = robot.name.get_ref();
        robots::check_name(name).at(&robot.name)?;
        let wrong = |what: &str| refuse(&robot.name, format!("robot {name:?} {what}"));
        if let Some(topic) = &robot.topic {
            for topic_of_it in all_topics(topic.get_ref()) {
                check_topic(&topic_of_it).at(topic)?;
            }
        }
        let templated = by_template.robot(name);
        let topic = robot.topic.map(Spanned::into_inner);
        let Some(topic) = topic.or(templated.as_ref().map(|robot| robot.topic.clone())) else {
            return wrong("has no topic: give it one, or set robots.topic as the template");
        };
        let path = robot.path.map(|path| path.0.replace(PLACEHOLDER, name));
        let Some(path) = path.or(templated.map(|robot| robot.path)) else {
            return wrong(
                "has no path: give it the path it publishes to, for example \"live/stream\"",
            );
        };
        let topics = all_topics(&topic);
        // Also one that is the other's state: each would take it for commands.
        let is_twin = |other: &&Robot| {
            other.name == *name
                || topics.contains(&other.topic)
                || all_topics(&other.topic).contains(&topic)
        };
        if let Some(twin) = all.iter().find(is_twin) {
            let twin = &twin.name;
            return wrong(&format!(
                "has the name or a topic of {twin:?}: make them differ"
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
    let named = default.map(|name| name.get_ref().clone());
    let directory = Directory::new(template, all, named.or(only));
    if let Some(name) = default
        && directory.default_robot().is_none()
    {
        return refuse(
            name,
            format!(
                "the default robot {:?} is none: list it as [[robot]], or set robots.topic as the template",
                name.get_ref()
            ),
        );
    }
    Ok(directory)
}

fn users(tables: Vec<UserTable>, directory: &Directory) -> Result<Vec<User>, Refusal> {
    let mut users: Vec<User> = Vec::with_capacity(tables.len());
    for table in tables {
        let name = table.name.get_ref().clone();
        if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
            return refuse(
                &table.name,
                "a user's name is not empty and holds neither ':' nor control characters",
            );
        }
        let wrong = |what: &str| refuse(&table.name, format!("user {name:?} {what}"));
        if users.iter().any(|user| user.name == name) {
            return wrong("is there twice: remove one");
        }
        if table.password.is_none() && table.token.is_none() {
            return wrong(
                "has neither password nor token: add the hash that `droidrelay-bridge hash-password` prints",
            );
        }
        if let Some(token) = &table.token
            && matches!(token.get_ref(), Hash::Argon2(_))
        {
            return refuse(
                token,
                "a token is long and random and comes without a name: hash it with `droidrelay-bridge hash-password --sha256`",
            );
        }
        if let Some(robots) = &table.robots {
            if table.role == Role::Admin {
                return refuse(
                    robots,
                    format!(
                        "user {name:?} is an admin, who has every robot: take robots out, or make it a viewer"
                    ),
                );
            }
            check_robots(robots, directory)?;
        }
        if table.robots.is_none() && table.role == Role::Robot {
            return wrong(&format!(
                "is a robot, but nobody says which: add robots = [\"{name}\"] or its name"
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
mod tests;
