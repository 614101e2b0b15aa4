// SPDX-License-Identifier: MPL-2.0

#![doc = "GStreamer plugin `droidrelay`: live video that flows only while somebody asks for it."]
#![doc = ""]
#![doc = "- [`mqttvalve`]: opens and closes the flow on MQTT messages."]
#![doc = "- [`rtmpauthsink`]: publishes to an RTMP server and outlives its faults."]

/// What both elements are made of; knows neither of them.
mod element {
    pub mod controls;
    pub mod files;
    pub mod io;
    pub mod keyunit;
    pub mod link;
    pub mod neighbours;
    pub mod network;
    pub mod property;
    pub mod worker;
}
pub mod mqttvalve;
pub mod rtmpauthsink;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    mqttvalve::register(plugin)?;
    rtmpauthsink::register(plugin)
}

gst::plugin_define!(
    droidrelay,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    "MPL",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_REPOSITORY"),
    env!("BUILD_REL_DATE")
);
