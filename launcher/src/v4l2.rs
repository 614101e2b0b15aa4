// SPDX-License-Identifier: MPL-2.0

//! How GStreamer's V4L2 elements are told to close their devices.

use std::env;

/// In GStreamer 1.22, an element that orphans its buffer pool when it stops never lets go of it, and
/// the device stays open. With this variable it drains the pool in place of that, as it does where
/// the driver cannot orphan one.
const VARIABLE: &str = "GST_V4L2_FORCE_DRAIN";

/// To be called before GStreamer is initialised, while there is no other thread. What the environment
/// has chosen stays.
pub fn close_devices() {
    let (major, minor, ..) = gst::version();
    if (major, minor) == (1, 22) && env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread reads the environment.
        unsafe { env::set_var(VARIABLE, "1") };
    }
}
