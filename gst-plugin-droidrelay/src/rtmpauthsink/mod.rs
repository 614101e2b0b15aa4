// SPDX-License-Identifier: MPL-2.0

//! `rtmpauthsink`: publishes to an RTMP server that asks for credentials, and outlives its faults.
//!
//! The reference documentation is in `doc.rs` and the properties' blurbs, which
//! `gst-inspect-1.0 rtmpauthsink` shows.

mod bitrate;
mod doc;
mod encoder;
mod imp;
mod meter;
mod publisher;
mod queue;
mod session;
mod sink;
mod socket;
mod uplink;

use glib::prelude::*;

use droidrelay_rtmp::location::{self, Credentials, Location};

/// How the publisher's credentials reach the server.
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
    #[enum_value(
        name = "RTMP: the server's challenge at connect is answered (Adobe's and Limelight's login)",
        nick = "rtmp"
    )]
    Rtmp,
    #[enum_value(name = "None: no credentials are sent", nick = "none")]
    None,
}

impl From<CredentialMode> for location::CredentialMode {
    fn from(mode: CredentialMode) -> Self {
        match mode {
            CredentialMode::Query => location::CredentialMode::Query,
            CredentialMode::Token => location::CredentialMode::Token,
            CredentialMode::Rtmp => location::CredentialMode::Rtmp,
            CredentialMode::None => location::CredentialMode::None,
        }
    }
}

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

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Connecting => "connecting",
            State::Publishing => "publishing",
            State::Backoff => "backoff",
            State::Refused => "refused",
        }
    }

    fn from_word(word: &str) -> Self {
        [
            State::Connecting,
            State::Publishing,
            State::Backoff,
            State::Refused,
        ]
        .into_iter()
        .find(|state| state.as_str() == word)
        .unwrap_or(State::Idle)
    }
}

/// Audio that RTMP carries here.
fn audio_caps() -> gst::Caps {
    let mut caps = gst::Caps::builder("audio/mpeg")
        .field("mpegversion", 4i32)
        .field("stream-format", "raw")
        .build();
    caps.merge(
        gst::Caps::builder("audio/mpeg")
            .field("mpegversion", 1i32)
            .field("layer", 3i32)
            .field("parsed", true)
            .build(),
    );
    caps
}

glib::wrapper! {
    /// See the module's documentation.
    pub struct RtmpAuthSink(ObjectSubclass<imp::RtmpAuthSink>)
        @extends gst::Bin, gst::Element, gst::Object,
        @implements gst::ChildProxy;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "rtmpauthsink",
        gst::Rank::NONE,
        RtmpAuthSink::static_type(),
    )
}

#[cfg(test)]
mod tests;
