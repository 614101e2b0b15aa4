//! Force-key-unit events (`GstForceKeyUnit`, as in GstVideo's `video-event`).

use gst::prelude::*;

use crate::neighbours;

const NAME: &str = "GstForceKeyUnit";
/// Property and control by which a V4L2 encoder is told: `v4l2h264enc` does not know the event
/// before GStreamer 1.22.4.
const CONTROLS: &str = "extra-controls";
const FORCE_KEY_FRAME: &str = "force_key_frame";

/// Asks the nearest video encoder beyond `pad` for a key frame by its V4L2 controls, where it
/// has such; together with the event it makes one key frame, not two.
pub fn by_controls(pad: &gst::Pad) {
    let encoder = neighbours::beyond(pad)
        .into_iter()
        .find(neighbours::is_video_encoder)
        .filter(|encoder| {
            encoder
                .find_property(CONTROLS)
                .is_some_and(|property| property.value_type() == gst::Structure::static_type())
        });
    let Some(encoder) = encoder else {
        return;
    };
    let mut controls = encoder
        .property::<Option<gst::Structure>>(CONTROLS)
        .unwrap_or_else(|| gst::Structure::new_empty("controls"));
    controls.set(FORCE_KEY_FRAME, 1i32);
    encoder.set_property(CONTROLS, controls);
}

/// Asks the encoder downstream for a key frame at the next frame.
///
/// The running time stays unset: in 1.22 to 1.26 the encoder base class compares a set one
/// with adjusted time stamps, and every request but the first would count as done.
pub fn downstream(count: u32) -> gst::Event {
    gst::event::CustomDownstream::builder(
        gst::Structure::builder(NAME)
            .field("timestamp", gst::ClockTime::NONE)
            .field("stream-time", gst::ClockTime::NONE)
            .field("running-time", gst::ClockTime::NONE)
            .field("all-headers", true)
            .field("count", count)
            .build(),
    )
    .build()
}

/// Asks the encoder upstream for a key frame at the next frame.
pub fn upstream(count: u32) -> gst::Event {
    gst::event::CustomUpstream::builder(
        gst::Structure::builder(NAME)
            .field("running-time", gst::ClockTime::NONE)
            .field("all-headers", true)
            .field("count", count)
            .build(),
    )
    .build()
}
