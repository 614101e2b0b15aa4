// SPDX-License-Identifier: MPL-2.0

use once_cell::sync::Lazy;

pub static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new(
        "rtmpauthsink",
        gst::DebugColorFlags::empty(),
        Some("RTMP publisher with credentials"),
    )
});
