// SPDX-License-Identifier: MPL-2.0

//! The configuration file as it is written: keys, types, defaults.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use droidrelay_wire::{
    BrokerUrl, Secret,
    mqtt::broker::Scheme,
    net::{
        http::{Policy, Url},
        url::UserInfo,
    },
};
use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use crate::{
    auth::{Hash, Role},
    demand::LEASE,
    network::Network,
    robots::PLACEHOLDER,
    watch::Watch,
    webhook::RobotEvent,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct File {
    pub listen: Spanned<Listen>,
    pub trusted_proxies: Vec<Network>,
    pub tls: Option<TlsTable>,
    pub mqtt: Mqtt,
    pub robots: Robots,
    #[serde(rename = "robot")]
    pub listed: Vec<Listed>,
    pub watch: Watch,
    pub failures: FailureTable,
    pub mediamtx: Option<MediaMtxTable>,
    pub share: Option<ShareTable>,
    #[serde(rename = "webhook")]
    pub webhooks: Vec<WebhookTable>,
    #[serde(rename = "user")]
    pub users: Vec<UserTable>,
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
pub struct TlsTable {
    pub listen: Option<Spanned<Listen>>,
    pub cert_file: Spanned<PathBuf>,
    pub key_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
pub struct Listen(pub SocketAddr);

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
pub struct Mqtt {
    pub broker: Spanned<Broker>,
    pub username: Option<String>,
    pub password_file: Option<Spanned<PathBuf>>,
    pub client_id: Option<String>,
    pub ca_file: Option<Spanned<PathBuf>>,
    pub cert_file: Option<Spanned<PathBuf>>,
    pub key_file: Option<Spanned<PathBuf>>,
    pub keep_alive: Seconds<5, 3600>,
    pub start_expiry: Seconds<1, 86_400>,
    pub ack_timeout: Seconds<1, 60>,
}

impl Default for Mqtt {
    fn default() -> Self {
        let (url, userinfo) = (
            BrokerUrl {
                scheme: Scheme::Mqtt,
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

pub struct Broker {
    pub url: BrokerUrl,
    pub userinfo: UserInfo,
}

impl<'de> Deserialize<'de> for Broker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = secret_text(deserializer)?;
        let (url, userinfo) = BrokerUrl::parse(text.expose()).map_err(D::Error::custom)?;
        Ok(Broker { url, userinfo })
    }
}

/// Whole seconds within bounds.
pub struct Seconds<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    pub fn duration(&self) -> Duration {
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
pub struct Robots {
    pub topic: Option<Spanned<String>>,
    pub path: Option<Spanned<MediaPath>>,
    pub default: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listed {
    pub name: Spanned<String>,
    pub topic: Option<Spanned<String>>,
    pub path: Option<MediaPath>,
}

/// Path on the media server, also as a template.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub struct MediaPath(pub String);

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
pub struct FailureTable {
    pub burst: Spanned<u32>,
    pub window: Seconds<1, 86_400>,
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
pub struct MediaMtxTable {
    pub read_starts: bool,
    pub lease: Seconds<10, 3600>,
    pub api: Option<Spanned<UrlText>>,
    pub api_user: Option<String>,
    pub api_password_file: Option<Spanned<PathBuf>>,
}

impl Default for MediaMtxTable {
    fn default() -> Self {
        MediaMtxTable {
            read_starts: false,
            lease: Seconds(LEASE.as_secs()),
            api: None,
            api_user: None,
            api_password_file: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShareTable {
    pub key_file: Spanned<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WebhookTable {
    pub url: Option<Spanned<UrlText>>,
    pub url_file: Option<Spanned<PathBuf>>,
    pub secret_file: Option<Spanned<PathBuf>>,
    pub ca_file: Option<Spanned<PathBuf>>,
    pub events: Option<Vec<RobotEvent>>,
    pub robots: Option<Spanned<Vec<String>>>,
}

pub struct UrlText(pub Url);

impl<'de> Deserialize<'de> for UrlText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = secret_text(deserializer)?;
        Url::parse(text.expose(), Policy::Secret)
            .map(UrlText)
            .map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UserTable {
    pub name: Spanned<String>,
    pub role: Role,
    pub robots: Option<Spanned<Vec<String>>>,
    pub password: Option<Hash>,
    pub token: Option<Spanned<Hash>>,
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
