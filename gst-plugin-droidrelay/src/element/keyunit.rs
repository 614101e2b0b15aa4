// SPDX-License-Identifier: MPL-2.0

//! Force-key-unit events (`GstForceKeyUnit`, as in GstVideo's `video-event`).

use crate::element::{controls, neighbours};

const NAME: &str = "GstForceKeyUnit";

/// Asks the nearest video encoder beyond `pad` for a key frame by its V4L2 controls, where it
/// has such (`v4l2h264enc` does not know the event before GStreamer 1.22.4); together with the
/// event it makes one key frame, not two.
pub fn by_controls(pad: &gst::Pad) {
    let encoder = neighbours::video_encoder(pad).filter(controls::has);
    if let Some(encoder) = encoder {
        controls::set(&encoder, controls::FORCE_KEY_FRAME, 1);
    }
}

/// Asks the encoder downstream for a key frame at the next frame.
///
/// The running time stays unset: in 1.22 to 1.26 the encoder base class compares a set one
/// with adjusted time stamps, and every request but the first would count as done.
pub fn downstream(count: u32) -> gst::Event {
    let structure = request(count)
        .field("timestamp", gst::ClockTime::NONE)
        .field("stream-time", gst::ClockTime::NONE);
    gst::event::CustomDownstream::new(structure.build())
}

/// Asks the encoder upstream for a key frame at the next frame.
pub fn upstream(count: u32) -> gst::Event {
    gst::event::CustomUpstream::new(request(count).build())
}

fn request(count: u32) -> gst::structure::Builder {
    gst::Structure::builder(NAME)
        .field("running-time", gst::ClockTime::NONE)
        .field("all-headers", true)
        .field("count", count)
}
