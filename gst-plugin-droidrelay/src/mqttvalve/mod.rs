// SPDX-License-Identifier: MPL-2.0

//! `mqttvalve`: passes media while somebody wants it.
//!
//! The reference documentation is in `doc.rs` and the properties' blurbs, which
//! `gst-inspect-1.0 mqttvalve` shows.

mod board;
mod control;
mod discovery;
mod doc;
mod imp;
mod kept;
mod leases;
mod settings;
mod standby;

use glib::prelude::*;

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
    fn as_str(self) -> &'static str {
        match self {
            Standby::Cold => "cold",
            Standby::Warm => "warm",
            Standby::Hot => "hot",
        }
    }
}

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
