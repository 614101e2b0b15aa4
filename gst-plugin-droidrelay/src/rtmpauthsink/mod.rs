// SPDX-License-Identifier: MPL-2.0

//! `rtmpauthsink`: publishes to an RTMP server that asks for credentials, and outlives its faults.
//!
//! The reference documentation is in `doc.rs` and the properties' blurbs, which
//! `gst-inspect-1.0 rtmpauthsink` shows.

mod bitrate;
/// The element's debug category.
mod cat {
    pub static CAT: once_cell::sync::Lazy<gst::DebugCategory> = once_cell::sync::Lazy::new(|| {
        gst::DebugCategory::new(
            "rtmpauthsink",
            gst::DebugColorFlags::empty(),
            Some("RTMP publisher with credentials"),
        )
    });
}
mod chain;
mod connection;
mod doc;
mod encoder;
mod files;
mod imp;
mod lane;
mod meter;
mod news;
mod publisher;
mod queue;
mod rate;
mod servers;
mod session;
mod settings;
mod sink;
mod skew;
mod socket;
mod uplink;

use glib::prelude::*;

pub use droidrelay_rtmp::location::CredentialMode;
pub use settings::State;

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
