// SPDX-License-Identifier: MPL-2.0

//! The configuration: read, checked, every error with its line and remedy.

mod file;

use std::{
    env, fmt, fs,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use droidrelay_wire::{
    Secret,
    mqtt::session::{self, MIN_KEEP_ALIVE},
    net::{
        http::{Client, Login, Policy, Url},
        tls::TlsFiles,
    },
    words::topics::{DEFAULT_TOPIC, check_topic},
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use toml::Spanned;

use self::file::{
    Broker, File, Listed, MediaMtxTable, Mqtt, Robots, ShareTable, TlsTable, UrlText, UserTable,
    WebhookTable,
};
use crate::{
    auth::{FailureLimit, Hash, Role, User},
    demand,
    network::{Network, USER_AGENT},
    robots::{self, Directory, PLACEHOLDER, Robot, TopicTemplate},
    serve::Tls,
    share,
    watch::Watch,
    webhook::{self, RobotEvent, Webhook},
};

/// The commented default file: the manual.
pub const TEMPLATE: &str = include_str!("../../droidrelay-bridge.toml");

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
    pub(crate) mediamtx: Option<demand::Settings>,
    pub(crate) share_key: Option<hmac::Key>,
    pub(crate) webhooks: Vec<Webhook>,
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

fn refuse<T, U>(spanned: &Spanned<T>, message: impl Into<String>) -> Result<U, Refusal> {
    Err(at(spanned, message))
}

/// Says where in the file an error comes from.
trait At<T> {
    fn at<S>(self, place: &Spanned<S>) -> Result<T, Refusal>;
}

impl<T> At<T> for Result<T, String> {
    fn at<S>(self, place: &Spanned<S>) -> Result<T, Refusal> {
        self.map_err(|message| at(place, message))
    }
}

/// The secret in a file that the configuration names.
fn secret(folder: &Path, file: &Spanned<PathBuf>) -> Result<Secret, Refusal> {
    Secret::from_file(folder.join(file.get_ref())).at(file)
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
        let folder = path.parent().unwrap_or(Path::new(""));
        let tls_listen = self.tls.as_ref().and_then(|tls| tls.listen.as_ref());
        let far = [Some(&self.listen), tls_listen]
            .into_iter()
            .flatten()
            .find(|listen| !listen.get_ref().0.ip().is_loopback());
        if self.users.is_empty()
            && let Some(far) = far
        {
            let listen = far.get_ref().0;
            return refuse(
                far,
                format!(
                    "listen {listen} is reachable from other hosts, but nobody would need a credential: add a [[user]], or listen on 127.0.0.1"
                ),
            );
        }
        let tls_listen = tls_listen.map(|listen| listen.get_ref().0);
        let failures = FailureLimit {
            burst: *self.failures.burst.get_ref(),
            window: self.failures.window.duration(),
        };
        if failures.burst == 0 {
            return refuse(
                &self.failures.burst,
                "burst is 0: nobody could ever come in; give at least 1",
            );
        }
        let tls = |table: TlsTable| {
            let [cert, key] =
                [table.cert_file.get_ref(), &table.key_file].map(|file| folder.join(file));
            Tls::load(cert, key).at(&table.cert_file)
        };
        let share_key = |table: ShareTable| {
            share::key_from_file(&folder.join(table.key_file.get_ref())).at(&table.key_file)
        };
        let directory = directory(self.robots, self.listed)?;
        let webhook = |table: WebhookTable| table.check(folder, &directory);
        Ok(Config {
            listen: self.listen.get_ref().0,
            webhooks: self
                .webhooks
                .into_iter()
                .map(webhook)
                .collect::<Result<_, _>>()?,
            mediamtx: self.mediamtx.map(|table| table.check(folder)).transpose()?,
            start_expiry: self.mqtt.start_expiry.duration(),
            ack_timeout: self.mqtt.ack_timeout.duration(),
            mqtt: self
                .mqtt
                .check(folder, variable, directory.subscriptions())?,
            users: users(self.users, &directory)?,
            directory,
            watch: self.watch,
            proxies: self.trusted_proxies,
            tls: self.tls.map(tls).transpose()?,
            tls_listen,
            share_key: self.share.map(share_key).transpose()?,
            failures,
        })
    }
}

impl MediaMtxTable {
    fn check(self, folder: &Path) -> Result<demand::Settings, Refusal> {
        let login = match (&self.api, &self.api_user, &self.api_password_file) {
            (Some(_), Some(user), Some(file)) => {
                secret(folder, file)?;
                Login::Basic {
                    user: user.clone(),
                    password_file: folder.join(file.get_ref()),
                }
            }
            (None, _, _) | (_, None, None) => Login::None,
            (Some(api), _, _) => {
                return refuse(api, "api-user and api-password-file need each other");
            }
        };
        let api = |api: Spanned<UrlText>| {
            let UrlText(url) = api.get_ref();
            Client::new(url.clone(), login, &TlsFiles::default(), USER_AGENT).at(&api)
        };
        Ok(demand::Settings {
            read_starts: self.read_starts,
            lease: self.lease.duration(),
            api: self.api.map(api).transpose()?,
        })
    }
}

impl WebhookTable {
    fn check(self, folder: &Path, directory: &Directory) -> Result<Webhook, Refusal> {
        let (url, span) = match (&self.url, &self.url_file) {
            (Some(url), None) => (url.get_ref().0.clone(), url.span()),
            (None, Some(file)) => {
                let url = Url::parse(secret(folder, file)?.expose(), Policy::Secret).at(file)?;
                (url, file.span())
            }
            (url, file) => {
                let spans = [
                    url.as_ref().map(Spanned::span),
                    file.as_ref().map(Spanned::span),
                ];
                let message = "a [[webhook]] needs url or url-file, and not both";
                return Err((spans.into_iter().flatten().next(), message.into()));
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
        subscriptions: Vec<String>,
    ) -> Result<session::Config, Refusal> {
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
            secret(folder, file)?;
            Password::File(resolve(file))
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
            let client = files.client();
            Some(match some_file {
                Some(file) => client.at(file),
                None => client.at(&self.broker),
            }?)
        } else if let Some(file) = some_file {
            return refuse(
                file,
                format!("{url} carries no TLS: write mqtts:// or wss://, or take the file out"),
            );
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
            resumes: false,
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
            let parsed = TopicTemplate::parse(topic.get_ref()).at(topic)?;
            let path = match path {
                Some(path) if !path.get_ref().0.contains(PLACEHOLDER) => {
                    return refuse(
                        path,
                        format!("every robot would publish to one path: put {PLACEHOLDER} into it"),
                    );
                }
                Some(path) => path.get_ref().0.clone(),
                None => format!("robots/{PLACEHOLDER}"),
            };
            Some((parsed, path))
        }
        (None, Some(path)) => {
            return refuse(
                path,
                "path without topic: add topic = \"robots/{robot}/stream\", or list robots as [[robot]]",
            );
        }
        (None, None) => None,
    };
    let by_template = Directory::new(template.clone(), Vec::new(), None);
    let mut all: Vec<Robot> = Vec::with_capacity(listed.len());
    for robot in listed {
        let name = robot.name.get_ref();
        robots::check_name(name).at(&robot.name)?;
        let templated = by_template.robot(name);
        let topic = match (&robot.topic, &templated) {
            (Some(topic), _) => {
                check_topic(topic.get_ref()).at(topic)?;
                topic.get_ref().clone()
            }
            (None, Some(templated)) => templated.topic.clone(),
            (None, None) => {
                return refuse(
                    &robot.name,
                    format!(
                        "robot {name:?} has no topic: give it one, or set robots.topic as the template"
                    ),
                );
            }
        };
        let path = match (robot.path, templated) {
            (Some(path), _) => path.0.replace(PLACEHOLDER, name),
            (None, Some(templated)) => templated.path,
            (None, None) => {
                return refuse(
                    &robot.name,
                    format!(
                        "robot {name:?} has no path: give it the path it publishes to, for example \"live/stream\""
                    ),
                );
            }
        };
        if let Some(twin) = all
            .iter()
            .find(|other| other.name == *name || other.topic == topic)
        {
            return refuse(
                &robot.name,
                format!(
                    "robot {name:?} has the name or the topic of {:?}: make them differ",
                    twin.name
                ),
            );
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
        if users.iter().any(|user| user.name == name) {
            return refuse(
                &table.name,
                format!("user {name:?} is there twice: remove one"),
            );
        }
        if table.password.is_none() && table.token.is_none() {
            return refuse(
                &table.name,
                format!(
                    "user {name:?} has neither password nor token: add the hash that `droidrelay-bridge hash-password` prints"
                ),
            );
        }
        if let Some(token) = table.token.as_ref()
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
            return refuse(
                &table.name,
                format!(
                    "user {name:?} is a robot, but nobody says which: add robots = [\"{name}\"] or its name"
                ),
            );
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
