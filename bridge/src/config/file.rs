// SPDX-License-Identifier: MPL-2.0

//! The configuration file as it is written: keys, types, defaults.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use droidrelay_wire::{
    BrokerUrl, Secret,
    mqtt::broker::Scheme,
    net::{
        http::{Policy, Url},
        url::UserInfo,
    },
};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use crate::{
    auth::{FailureLimit, Hash, Role},
    clock::seconds,
    connections::ConnectionLimits,
    demand::LEASE,
    robots::PLACEHOLDER,
    watch::Watch,
    webhook::RobotEvent,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct File {
    pub listen: Option<Spanned<Listen>>,
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    pub tls: Option<TlsTable>,
    pub mqtt: Mqtt,
    pub robots: Robots,
    #[serde(rename = "robot")]
    pub listed: Vec<Listed>,
    pub watch: Watch,
    pub failures: FailureLimit,
    pub connections: ConnectionLimits,
    pub enroll: EnrollTable,
    pub mediamtx: MediaMtxTable,
    pub share: Option<ShareTable>,
    #[serde(rename = "webhook")]
    pub webhooks: Vec<WebhookTable>,
    #[serde(rename = "user")]
    pub users: Vec<UserTable>,
}

/// Networks, or single addresses.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: String| {
        let address = |_| text.parse().map(|address: IpAddr| address.into());
        text.parse().or_else(address).map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is neither an address nor a network: write for example \"127.0.0.1\" or \"10.0.0.0/8\""
            ))
        })
    };
    let texts = Vec::deserialize(deserializer)?;
    texts.into_iter().map(network).collect()
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
    #[serde(deserialize_with = "seconds::<_, 5, 3600>")]
    pub keep_alive: Duration,
    #[serde(deserialize_with = "seconds::<_, 1, 86_400>")]
    pub start_expiry: Duration,
    #[serde(deserialize_with = "seconds::<_, 1, 60>")]
    pub ack_timeout: Duration,
}

impl Default for Mqtt {
    fn default() -> Self {
        let url = BrokerUrl {
            scheme: Scheme::Mqtt,
            host: "127.0.0.1".into(),
            port: 1883,
            path: "/mqtt".into(),
        };
        let userinfo = UserInfo::default();
        Mqtt {
            broker: Spanned::new(0..0, Broker { url, userinfo }),
            username: None,
            password_file: None,
            client_id: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            keep_alive: Duration::from_secs(10),
            start_expiry: Duration::from_secs(30),
            ack_timeout: Duration::from_secs(4),
        }
    }
}

pub struct Broker {
    pub url: BrokerUrl,
    pub userinfo: UserInfo,
}

impl<'de> Deserialize<'de> for Broker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = parse_secret(deserializer, BrokerUrl::parse);
        parsed.map(|(url, userinfo)| Broker { url, userinfo })
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
pub struct EnrollTable {
    pub folder: PathBuf,
    pub url: Option<Spanned<String>>,
    pub broker: Option<String>,
    pub location: Option<Spanned<String>>,
    pub ca_file: PathBuf,
}

impl Default for EnrollTable {
    fn default() -> Self {
        EnrollTable {
            folder: "enroll".into(),
            url: None,
            broker: None,
            location: None,
            ca_file: "tls/ca.crt".into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MediaMtxTable {
    pub listen: Option<Spanned<Listen>>,
    pub read_starts: bool,
    #[serde(deserialize_with = "seconds::<_, 10, 3600>")]
    pub lease: Duration,
    pub api: Option<Spanned<UrlText>>,
    pub webrtc: Option<Spanned<UrlText>>,
    pub hls: Option<Spanned<UrlText>>,
    pub api_user: Option<String>,
    pub api_password_file: Option<Spanned<PathBuf>>,
}

impl Default for MediaMtxTable {
    fn default() -> Self {
        MediaMtxTable {
            listen: None,
            read_starts: false,
            lease: LEASE,
            api: None,
            webrtc: None,
            hls: None,
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
        parse_secret(deserializer, |text| Url::parse(text, Policy::Secret)).map(UrlText)
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
        parse_secret(deserializer, Hash::parse)
    }
}

/// Reads a string; the error does not show what stands there instead.
fn parse_secret<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => parse(Secret::new(text).expose()).map_err(D::Error::custom),
        _ => Err(D::Error::custom("the value must be a string in quotes")),
    }
}
