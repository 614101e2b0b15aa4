// SPDX-License-Identifier: MPL-2.0

//! The properties as they were set; nothing here connects, blocks or judges before
//! [`Settings::target`].

use std::{path::PathBuf, time::Duration};

use droidrelay_rtmp::location::{CredentialMode, Location};
use droidrelay_wire::{
    Secret,
    net::{
        tls::{self, Checks, TlsFiles},
        url::UserInfo,
    },
    words::state::PublishPhase,
};
use gio::TlsCertificateFlags;
use gst::prelude::*;

use super::session::Target;
use crate::element::{
    files::{Credentials, names},
    property::{
        PLAYING, READ_ONLY, READY, SECRET, boolean_spec, filled, number_spec, path, path_value,
        seconds, seconds_spec, seconds_value, structure_spec, text_spec, typed,
    },
};

/// State of the publishing session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstRtmpAuthSinkState")]
pub enum State {
    #[default]
    #[enum_value(name = "Idle: no session is wanted", nick = "idle")]
    Idle,
    #[enum_value(
        name = "Connecting: the server has not accepted the publisher yet",
        nick = "connecting"
    )]
    Connecting,
    #[enum_value(
        name = "Publishing: the server has accepted the publisher",
        nick = "publishing"
    )]
    Publishing,
    #[enum_value(
        name = "Back-off: the session failed, the next try waits",
        nick = "backoff"
    )]
    Backoff,
    #[enum_value(
        name = "Refused: the server refuses the publisher, the next try waits longer",
        nick = "refused"
    )]
    Refused,
}

impl From<&PublishPhase> for State {
    fn from(phase: &PublishPhase) -> Self {
        match phase {
            PublishPhase::Idle | PublishPhase::Other(_) => State::Idle,
            PublishPhase::Connecting => State::Connecting,
            PublishPhase::Publishing => State::Publishing,
            PublishPhase::Backoff => State::Backoff,
            PublishPhase::Refused => State::Refused,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    /// As parsed, without credentials; the error where it is no location.
    location: Option<Result<Location, String>>,
    credentials: Credentials,
    credential_mode: CredentialMode,
    ca_file: Option<PathBuf>,
    pub tls_validation_flags: TlsCertificateFlags,
    timeout: Duration,
    pub sync: bool,
    /// Nanoseconds.
    pub max_latency: u64,
    pub adaptive_bitrate: bool,
    /// Kilobits per second; 0 where it is not set.
    min_bitrate: u32,
    max_bitrate: u32,
    start_offset: bool,
    pub fail_fast: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            location: None,
            credentials: Credentials::default(),
            credential_mode: CredentialMode::default(),
            ca_file: None,
            tls_validation_flags: TlsCertificateFlags::VALIDATE_ALL,
            timeout: Duration::from_secs(5),
            sync: true,
            max_latency: gst::ClockTime::from_seconds(1).nseconds(),
            // Nobody expects an element to change the settings of another one unasked.
            adaptive_bitrate: false,
            min_bitrate: 0,
            max_bitrate: 0,
            start_offset: true,
            fail_fast: false,
        }
    }
}

/// Kept from session to session: the system's trust store takes its time to read.
pub type TlsCache = Option<tls::Source>;

impl Settings {
    pub fn specs() -> Vec<glib::ParamSpec> {
        let default = Settings::default();
        vec![
            text_spec("location", "Location", "Where to publish: rtmp:// or rtmps://host[:port]/app/stream. Userinfo is taken out at once; a query is sent as it was written. It reads back without userinfo and without query parameters that may be secret. Without stream: an application alone. rtmps without port: 443, else 1936", READY),
            text_spec("user", "User", "User name of the publisher. Unset: none, or the one from the location", READY),
            text_spec("password", "Password", "Password (or token) of the publisher; on a command line every user of the machine can read it, so prefer password-file", SECRET),
            text_spec("password-file", "Password File", "File whose first line is the password (or token) of the publisher; read anew for each session. Wins over password", READY),
            glib::ParamSpecEnum::builder_with_default("credential-mode", CredentialMode::default())
                .nick("Credential Mode")
                .blurb("How the credentials reach the server; rtmp needs user and password")
                .mutable_ready()
                .build(),
            text_spec("ca-file", "CA File", "PEM file of the certificates to trust for rtmps: of CAs, or the server's own. Unset: the system's trust store", READY),
            glib::ParamSpecFlags::builder("tls-validation-flags")
                .nick("TLS Validation Flags")
                .blurb("Enforced certificate checks for rtmps. Disabling one allows impersonation of the server, and so reading password and stream; to trust a certificate of one's own, set ca-file. Revocation is never checked")
                .default_value(default.tls_validation_flags)
                .mutable_ready()
                .build(),
            seconds_spec("timeout", "Timeout", "Seconds for which a server may be silent while something is due from it, before the session is given up and retried; at least 5 for its decision about the publisher, as some servers delay the answer to a wrong password", 1..=3600, default.timeout, READY),
            boolean_spec("sync", "Sync", "Whether media of a source that is not live is sent at the pace of the clock. If not, it is sent as fast as the server takes it. Live media never waits for the clock", default.sync, PLAYING),
            glib::ParamSpecUInt64::builder("max-latency")
                .nick("Maximum Latency")
                .blurb("Nanoseconds of media that may be queued for a slow uplink, in the socket too; older media is dropped up to a key frame, which is requested. A source that is not live waits instead")
                .default_value(default.max_latency)
                .mutable_playing()
                .build(),
            boolean_spec("adaptive-bitrate", "Adaptive Bitrate", "Whether the bitrate of the encoder upstream follows the uplink's throughput. The encoder gets its own bitrate back when no session is wanted. Read when a session begins", default.adaptive_bitrate, PLAYING),
            number_spec("min-bitrate", "Minimum Bitrate", "Kilobits per second below which adaptive-bitrate never goes. 0: a tenth of the maximum. Read when a session begins", 0..=u32::MAX, default.min_bitrate, PLAYING),
            number_spec("max-bitrate", "Maximum Bitrate", "Kilobits per second above which adaptive-bitrate never goes. 0: what the encoder is set to. Read when a session begins", 0..=u32::MAX, default.max_bitrate, PLAYING),
            boolean_spec("start-offset", "Start Offset", "Whether media starts at 2 s of the session's time, which ends MediaMTX's analysis of the first two seconds with the first frame. Not done where the server is known not to need it (its fmsVer begins with FMS/), whose recordings would be 2 s too long; nor beside MP3, whose track the server would miss", default.start_offset, READY),
            boolean_spec("fail-fast", "Fail Fast", "Whether a refusal by the server is an error of the pipeline instead of being retried", default.fail_fast, PLAYING),
            glib::ParamSpecEnum::builder_with_default("state", State::default())
                .nick("State")
                .blurb("State of the publishing session; with notify")
                .read_only()
                .build(),
            structure_spec("stats", "Statistics", "Structure application/x-rtmpauthsink-stats with sessions, reconnects, frames, bytes (sent), dropped (frames), dropped-publishing (those of them that were dropped in a session), queue-ms (milliseconds of queued media, in the socket too), acknowledged-bytes (by the server), bitrate (bits per second that the server took over the last seconds), target-bitrate (bits per second that the encoder is told to make; 0: it is left alone), attempt (tries since the last accepted session), last-error", READ_ONLY),
        ]
    }

    /// Stores the value of the property `name`.
    pub fn set(&mut self, name: &str, value: &glib::Value) {
        match name {
            "location" => self.set_location(filled(value)),
            "user" => self.credentials.user = filled(value),
            "password" => self.credentials.password = filled(value).map(Secret::new),
            "password-file" => self.credentials.password_file = path(value),
            "credential-mode" => self.credential_mode = typed(value),
            "ca-file" => self.ca_file = path(value),
            "tls-validation-flags" => self.tls_validation_flags = typed(value),
            "timeout" => self.timeout = seconds(value),
            "sync" => self.sync = typed(value),
            "max-latency" => self.max_latency = typed(value),
            "adaptive-bitrate" => self.adaptive_bitrate = typed(value),
            "min-bitrate" => self.min_bitrate = typed(value),
            "max-bitrate" => self.max_bitrate = typed(value),
            "start-offset" => self.start_offset = typed(value),
            "fail-fast" => self.fail_fast = typed(value),
            _ => unreachable!("GObject knows no property {name}"),
        }
    }

    /// The value of the property `name`.
    pub fn get(&self, name: &str) -> glib::Value {
        match name {
            "location" => {
                let location = self.location().ok();
                location.map(Location::to_string).to_value()
            }
            "user" => self.credentials.user.to_value(),
            "password-file" => path_value(self.credentials.password_file.as_ref()),
            "credential-mode" => self.credential_mode.to_value(),
            "ca-file" => path_value(self.ca_file.as_ref()),
            "tls-validation-flags" => self.tls_validation_flags.to_value(),
            "timeout" => seconds_value(self.timeout),
            "sync" => self.sync.to_value(),
            "max-latency" => self.max_latency.to_value(),
            "adaptive-bitrate" => self.adaptive_bitrate.to_value(),
            "min-bitrate" => self.min_bitrate.to_value(),
            "max-bitrate" => self.max_bitrate.to_value(),
            "start-offset" => self.start_offset.to_value(),
            "fail-fast" => self.fail_fast.to_value(),
            _ => unreachable!("GObject knows no property {name}"),
        }
    }

    fn set_location(&mut self, url: Option<String>) {
        self.credentials.url = UserInfo::default();
        self.location = url.map(|url| {
            let (location, credentials) = Location::parse(&url)?;
            self.credentials.url = credentials;
            Ok(location)
        });
    }

    fn location(&self) -> Result<&Location, String> {
        match &self.location {
            None => Err("location is not set: give rtmp://host/app/stream".into()),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(location)) => Ok(location),
        }
    }

    /// What is checked of a server's certificate.
    pub fn checks(&self) -> Checks {
        let checked = |flag| self.tls_validation_flags.contains(flag);
        Checks {
            unknown_ca: checked(TlsCertificateFlags::UNKNOWN_CA),
            bad_identity: checked(TlsCertificateFlags::BAD_IDENTITY),
            not_activated: checked(TlsCertificateFlags::NOT_ACTIVATED),
            expired: checked(TlsCertificateFlags::EXPIRED),
            insecure: checked(TlsCertificateFlags::INSECURE),
            generic_error: checked(TlsCertificateFlags::GENERIC_ERROR),
        }
    }

    /// The bounds for adaptive-bitrate that were set, in bits per second.
    pub fn bitrates(&self) -> (Option<u64>, Option<u64>) {
        let given = |kilobits: u32| (kilobits > 0).then(|| u64::from(kilobits) * 1000);
        (given(self.min_bitrate), given(self.max_bitrate))
    }

    /// TLS as the files say at this moment; read anew where they have changed, or `known` came from
    /// other ones.
    fn tls(&self, known: &mut TlsCache) -> Result<tls::Client, String> {
        let files = TlsFiles {
            ca_file: self.ca_file.clone(),
            checks: self.checks(),
            ..TlsFiles::default()
        };
        match known {
            Some(source) if *source.files() == files => source.client(),
            _ => known.insert(tls::Source::new(files)?).client(),
        }
    }

    /// The files that [`Settings::target`] reads, for an error's text.
    pub fn files(&self) -> String {
        names([&self.credentials.password_file, &self.ca_file])
    }

    /// Checks everything that can be checked without the network, and reads the files.
    pub fn target(&self, tls: &mut TlsCache) -> Result<Target, String> {
        let location = self.location()?;
        let tls = location
            .tls
            .then(|| self.tls(tls))
            .transpose()
            .map_err(|err| format!("{location}: {err}"))?;
        let credentials = self.credentials.read()?;
        let mut login = None;
        if self.credential_mode == CredentialMode::Rtmp {
            let in_query = location.login()?;
            let user = credentials.username.clone().or(in_query.username);
            login = user.zip(credentials.password.clone().or(in_query.password));
            if login.is_none() {
                return Err(
                    "credential-mode=rtmp needs both: set user, and password-file or password"
                        .into(),
                );
            }
        }
        Ok(Target {
            credentials,
            credential_mode: self.credential_mode,
            login,
            location: location.clone(),
            tls,
            timeout: self.timeout,
            start_offset: self.start_offset,
        })
    }
}
