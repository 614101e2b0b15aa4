// SPDX-License-Identifier: MPL-2.0

//! `mqttvalve`: passes media while somebody wants it.
//!
//! The reference documentation is in `doc.rs` and the properties' blurbs, which
//! `gst-inspect-1.0 mqttvalve` shows.

mod age;
mod announcer;
mod broker;
/// The element's debug category.
mod cat {
    pub static CAT: once_cell::sync::Lazy<gst::DebugCategory> = once_cell::sync::Lazy::new(|| {
        gst::DebugCategory::new(
            "mqttvalve",
            gst::DebugColorFlags::empty(),
            Some("Valve on MQTT messages"),
        )
    });
}
mod control;
mod descriptors;
mod discovery;
mod doc;
mod downstream;
mod elements;
mod flow;
mod group;
mod identity;
mod imp;
mod kept;
mod leases;
mod memory;
mod properties;
mod settings;
mod shared;
mod silence;
mod status;
mod surroundings;
mod survey;
mod upstream;

use glib::prelude::*;

pub use settings::Standby;

glib::wrapper! {
    /// See the module's documentation.
    pub struct MqttValve(ObjectSubclass<imp::MqttValve>) @extends gst::Element, gst::Object;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "mqttvalve",
        gst::Rank::NONE,
        MqttValve::static_type(),
    )
}
