// SPDX-License-Identifier: MPL-2.0

//! The element's debug category.

use once_cell::sync::Lazy;

pub static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new(
        "mqttvalve",
        gst::DebugColorFlags::empty(),
        Some("Valve on MQTT messages"),
    )
});
