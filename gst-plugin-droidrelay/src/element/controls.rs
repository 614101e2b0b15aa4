// SPDX-License-Identifier: MPL-2.0

//! The controls of V4L2 encoders, which are no properties but fields of one.

use gst::prelude::*;
use parking_lot::Mutex;

const PROPERTY: &str = "extra-controls";
/// A button: it is pressed each time that the controls are set with it.
pub const FORCE_KEY_FRAME: &str = "force_key_frame";
/// Bits per second.
pub const BITRATE: &str = "video_bitrate";

/// Whether `element` has such controls.
pub fn has(element: &gst::Element) -> bool {
    element
        .find_property(PROPERTY)
        .is_some_and(|property| property.value_type() == gst::Structure::static_type())
}

/// The control's value, where it was set.
pub fn get(element: &gst::Element, name: &str) -> Option<i32> {
    element
        .property::<Option<gst::Structure>>(PROPERTY)?
        .get(name)
        .ok()
}

/// Sets the control; the others that were set stay as they are.
pub fn set(element: &gst::Element, name: &str, value: i32) {
    // Several elements may set their part of the one property.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // Applications are notified after the lock is given back.
    let _notify = element.freeze_notify();
    let _guard = ONE_AT_A_TIME.lock();
    let mut controls = element
        .property::<Option<gst::Structure>>(PROPERTY)
        .unwrap_or_else(|| gst::Structure::new_empty("controls"));
    controls.remove_field(FORCE_KEY_FRAME);
    controls.set(name, value);
    element.set_property(PROPERTY, controls);
}
