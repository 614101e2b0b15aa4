// SPDX-License-Identifier: MPL-2.0

//! The properties as they were set; nothing here connects, blocks or judges before
//! [`Settings::check`].

use std::{sync::Arc, time::Duration};

use glib::prelude::*;

use droidrelay_wire::{
    BrokerUrl, Secret,
    mqtt::session::{self, MIN_KEEP_ALIVE},
    net::{
        tls::{self, TlsFiles},
        url::UserInfo,
    },
    words::topics::{DEFAULT_TOPIC, OFFLINE, availability_topic, state_topic},
};

use super::{
    discovery::Device,
    identity::{self, ClientId, Topics},
    kept::Keep,
};
use crate::element::{
    files::{Credentials, names},
    property::{filled, path, path_value, seconds, seconds_value, typed},
};

/// Longer, and the memory would be a recorder's.
pub const MAX_PREROLL_TIME: Duration = Duration::from_secs(60);
/// How long the broker keeps commands for a robot that is away.
const SESSION_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// What keeps running while the valve is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstMqttValveStandby")]
pub enum Standby {
    /// Everything upstream of the valve is in NULL: camera device closed, no CPU.
    #[default]
    #[enum_value(
        name = "Cold: everything upstream is stopped, the device is released",
        nick = "cold"
    )]
    Cold,
    /// Everything upstream runs and is dropped; the newest raw frame is sent first at opening.
    #[enum_value(
        name = "Warm: upstream runs, frames are dropped before the encoder",
        nick = "warm"
    )]
    Warm,
    /// Upstream and its encoder run; the last seconds of encoded media are sent first at opening.
    #[enum_value(
        name = "Hot: the encoder runs too, the last preroll-time is sent first",
        nick = "hot"
    )]
    Hot,
}

impl Standby {
    pub fn as_str(self) -> &'static str {
        match self {
            Standby::Cold => "cold",
            Standby::Warm => "warm",
            Standby::Hot => "hot",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    /// As parsed, without credentials; the error where it is no URL.
    broker: Option<Result<BrokerUrl, String>>,
    pub topic: String,
    pub credentials: Credentials,
    pub tls: TlsFiles,
    pub client_id: Option<String>,
    pub keep_alive: Duration,
    pub standby: Standby,
    pub preroll_time: Duration,
    pub lease: Duration,
    pub offline_timeout: Duration,
    pub source_timeout: Duration,
    pub accept_retained: bool,
    pub state_topic: Option<String>,
    pub availability_topic: Option<String>,
    pub discovery_prefix: Option<String>,
    /// Leases of another life were given: the next start resumes its session with the broker.
    pub resume: bool,
    /// Client id of the last session: the next one has it, too, where it is free.
    pub session: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            broker: None,
            topic: DEFAULT_TOPIC.into(),
            credentials: Credentials::default(),
            tls: TlsFiles::default(),
            client_id: None,
            keep_alive: Duration::from_secs(10),
            standby: Standby::default(),
            preroll_time: Duration::from_secs(5),
            lease: Duration::ZERO,
            offline_timeout: Duration::from_secs(120),
            // Servers close a session without media after ten.
            source_timeout: Duration::from_secs(8),
            accept_retained: false,
            state_topic: None,
            availability_topic: None,
            discovery_prefix: None,
            resume: false,
            session: None,
        }
    }
}

impl Settings {
    /// Stores what was set for the property `name`.
    pub fn set(&mut self, name: &str, value: &glib::Value) {
        match name {
            "broker" => self.set_broker(filled(value)),
            "topic" => self.topic = filled(value).unwrap_or_else(|| DEFAULT_TOPIC.into()),
            "username" => self.credentials.user = filled(value),
            "password" => self.credentials.password = filled(value).map(Secret::new),
            "password-file" => self.credentials.password_file = path(value),
            "ca-file" => self.tls.ca_file = path(value),
            "cert-file" => self.tls.cert_file = path(value),
            "key-file" => self.tls.key_file = path(value),
            "client-id" => self.client_id = filled(value),
            "keep-alive-interval" => self.keep_alive = seconds(value),
            "standby" => self.standby = typed(value),
            "preroll-time" => self.preroll_time = seconds(value),
            "lease" => self.lease = seconds(value),
            "offline-timeout" => self.offline_timeout = seconds(value),
            "source-timeout" => self.source_timeout = seconds(value),
            "accept-retained" => self.accept_retained = typed(value),
            "state-topic" => self.state_topic = filled(value),
            "availability-topic" => self.availability_topic = filled(value),
            "discovery-prefix" => self.discovery_prefix = filled(value),
            _ => unreachable!("GObject knows no property {name}"),
        }
    }

    /// What the property `name` reads as.
    pub fn get(&self, name: &str) -> glib::Value {
        match name {
            "broker" => {
                let broker = self.broker.as_ref().and_then(|broker| broker.as_ref().ok());
                broker.map(BrokerUrl::to_string).to_value()
            }
            "topic" => self.topic.to_value(),
            "username" => self.credentials.user.to_value(),
            "password-file" => path_value(self.credentials.password_file.as_ref()),
            "ca-file" => path_value(self.tls.ca_file.as_ref()),
            "cert-file" => path_value(self.tls.cert_file.as_ref()),
            "key-file" => path_value(self.tls.key_file.as_ref()),
            "client-id" => self.client_id.to_value(),
            "keep-alive-interval" => seconds_value(self.keep_alive),
            "standby" => self.standby.to_value(),
            "preroll-time" => seconds_value(self.preroll_time),
            "lease" => seconds_value(self.lease),
            "offline-timeout" => seconds_value(self.offline_timeout),
            "source-timeout" => seconds_value(self.source_timeout),
            "accept-retained" => self.accept_retained.to_value(),
            "state-topic" => self.topics().state.to_value(),
            "availability-topic" => self.topics().availability.to_value(),
            "discovery-prefix" => self.discovery_prefix.to_value(),
            _ => unreachable!("GObject knows no property {name}"),
        }
    }

    /// What a closed valve keeps, where upstream runs on or (`cold`) is stopped.
    pub fn keep(&self, cold: bool) -> Keep {
        match self.standby {
            _ if cold => Keep::Nothing,
            Standby::Hot => Keep::Last(gst::ClockTime::from_nseconds(
                self.preroll_time.as_nanos() as u64
            )),
            Standby::Cold | Standby::Warm => Keep::Newest,
        }
    }

    /// Stores a broker URL, its credentials apart: the property never reads back with them.
    fn set_broker(&mut self, url: Option<String>) {
        self.credentials.url = UserInfo::default();
        self.broker = url.map(|url| {
            let (broker, credentials) = BrokerUrl::parse(&url)?;
            self.credentials.url = credentials;
            Ok(broker)
        });
    }

    pub fn topics(&self) -> Topics {
        let of = |set: &Option<String>, by_default: fn(&str) -> String| {
            set.clone().unwrap_or_else(|| by_default(&self.topic))
        };
        Topics {
            command: self.topic.clone(),
            state: of(&self.state_topic, state_topic),
            availability: of(&self.availability_topic, availability_topic),
        }
    }

    /// The client id: two sessions with one would throw each other out for ever.
    fn client_id(&self, element: &str, broker: &BrokerUrl) -> ClientId {
        let (broker, user) = (broker.to_string(), self.credentials.username());
        match &self.client_id {
            Some(id) => ClientId::fixed(id, &broker, user),
            None => {
                let id = identity::client_id(&self.topic, element);
                ClientId::claim(&id, self.session.as_deref(), &broker, user)
            }
        }
    }

    /// A life has begun, with this session.
    pub fn begun(&mut self, session: Option<String>) {
        self.resume = false;
        self.session = session;
    }

    /// The files that [`Settings::check`] reads, for an error's text.
    pub fn files(&self) -> String {
        names([
            &self.credentials.password_file,
            &self.tls.ca_file,
            &self.tls.cert_file,
            &self.tls.key_file,
        ])
    }

    /// Checks everything that can be checked without the network. None: no broker is set. The
    /// client id is this valve's for as long as it is kept.
    pub fn check(&self, element: &str) -> Result<Option<(session::Config, Arc<ClientId>)>, String> {
        let topics = self.topics();
        topics.check()?;
        let Some(broker) = self.broker.clone().transpose()? else {
            return Ok(None);
        };
        if self.keep_alive < MIN_KEEP_ALIVE {
            return Err(format!(
                "keep-alive-interval is {} s: the least is {} s",
                self.keep_alive.as_secs_f64(),
                MIN_KEEP_ALIVE.as_secs()
            ));
        }
        let client_id = Arc::new(self.client_id(element, &broker));
        broker.scheme.check_built_in()?;
        if let Some(prefix) = &self.discovery_prefix {
            Device::new(client_id.as_str(), self.topics()).check(prefix)?;
        }
        let tls = broker
            .scheme
            .is_tls()
            .then(|| tls::Source::new(self.tls.clone()))
            .transpose()?;
        self.credentials.read()?;
        let (credentials, right) = (self.credentials.clone(), client_id.clone());
        let config = session::Config {
            broker,
            client_id: client_id.as_str().to_owned(),
            credentials: Box::new(move || {
                right.check()?;
                let UserInfo { username, password } = credentials.read()?;
                Ok((username, password))
            }),
            tls,
            keep_alive: self.keep_alive,
            session_expiry: SESSION_EXPIRY,
            resumes: self.resume,
            receive_maximum: session::RECEIVE_MAXIMUM,
            will: Some((topics.availability, OFFLINE.into())),
            subscriptions: vec![topics.command],
            live: Vec::new(),
        };
        Ok(Some((config, client_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_broker(url: &str) -> Settings {
        let mut settings = Settings::default();
        settings.set_broker(Some(url.into()));
        settings
    }

    #[test]
    fn the_broker_reads_back_without_its_credentials() {
        let settings = with_broker("mqtt://robot1:hunter2@localhost");
        let broker = settings.get("broker").get::<String>().unwrap();
        assert_eq!(broker, "mqtt://localhost:1883");
        assert!(!format!("{settings:?}").contains("hunter2"));
        let (config, _) = settings.check("valve").unwrap().unwrap();
        let (username, password) = (config.credentials)().unwrap();
        assert_eq!(username.as_deref(), Some("robot1"));
        assert_eq!(password.unwrap().expose(), "hunter2");
    }

    #[test]
    fn without_a_broker_there_is_no_session() {
        assert!(Settings::default().check("valve").unwrap().is_none());
    }

    #[test]
    fn bad_settings_are_named_before_anything_connects() {
        let mut settings = with_broker("http://u:hunter2@h");
        let error = settings.check("valve").err().unwrap();
        assert!(
            error.contains("http") && !error.contains("hunter2"),
            "{error}"
        );

        settings = with_broker("mqtt://h");
        settings.topic = "robot/#".into();
        assert!(settings.check("valve").err().unwrap().contains("robot/#"));

        for (property, topic, reason) in [
            ("state-topic", "robot/stream", "so is topic"),
            ("availability-topic", "robot/stream", "so is topic"),
            (
                "availability-topic",
                "robot/stream/state",
                "so is state-topic",
            ),
            ("state-topic", "$SYS/x", "begins with $"),
            ("topic", "$share/a/b", "begins with $"),
        ] {
            settings = with_broker("mqtt://h");
            settings.set(property, &topic.to_value());
            let error = settings.check("valve").err().unwrap();
            assert!(
                error.contains(reason) && error.contains(property),
                "{error}"
            );
        }

        settings = with_broker("mqtt://h");
        settings.keep_alive = Duration::from_secs(1);
        assert!(settings.check("valve").err().unwrap().contains("1 s"));

        settings = with_broker("mqtt://h");
        settings.discovery_prefix = Some("home/+".into());
        assert!(settings.check("valve").err().unwrap().contains("home/+"));

        settings = with_broker("mqtt://h");
        settings.credentials.password_file = Some("/nonexistent/pass".into());
        let error = settings.check("valve").err().unwrap();
        assert!(error.contains("/nonexistent/pass"), "{error}");
    }

    #[test]
    fn a_client_id_that_is_set_is_the_one_and_else_no_two_valves_have_one() {
        let id = |settings: &Settings| settings.check("ids").unwrap().unwrap().1;
        let mut settings = with_broker("mqtt://h");
        let (one, two) = (id(&settings), id(&settings));
        assert_ne!(one.as_str(), two.as_str(), "at a time");
        settings.topic = "robot/audio".into();
        assert_ne!(one.as_str(), id(&settings).as_str());
        settings.client_id = Some("mine".into());
        let (one, two) = (id(&settings), id(&settings));
        assert_eq!((one.as_str(), two.as_str()), ("mine", "mine"));
    }
}
