// SPDX-License-Identifier: MPL-2.0

//! Force-key-unit events (`GstForceKeyUnit`, as in GstVideo's `video-event`).

use gst::prelude::*;

use crate::element::{controls, neighbours};

const NAME: &str = "GstForceKeyUnit";

/// Of NVIDIA's encoders for the Jetson, an action signal.
const FORCE_IDR: &str = "force-IDR";

/// Asks the nearest video encoder beyond `pad` for a key frame by its own means, where it has such:
/// an action, or V4L2 controls (`v4l2h264enc` does not know the event before GStreamer 1.22.4);
/// together with the event it makes one key frame, not two.
pub fn by_own_means(pad: &gst::Pad) {
    let Some(encoder) = neighbours::video_encoder(pad) else {
        return;
    };
    if has_action(&encoder) {
        encoder.emit_by_name::<()>(FORCE_IDR, &[]);
    } else if controls::has(&encoder) {
        controls::set(&encoder, controls::FORCE_KEY_FRAME, 1);
    }
}

fn has_action(encoder: &gst::Element) -> bool {
    let signal = glib::subclass::SignalId::lookup(FORCE_IDR, encoder.type_());
    signal.map(|signal| signal.query()).is_some_and(|action| {
        action.flags().contains(glib::SignalFlags::ACTION)
            && action.n_params() == 0
            && action.return_type().type_() == glib::Type::UNIT
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    mod imp {
        use std::sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        };

        use gst::{prelude::*, subclass::prelude::*};

        use super::super::FORCE_IDR;

        /// As NVIDIA's, with an action that it counts.
        #[derive(Default)]
        pub struct Encoder(pub AtomicU32);

        #[glib::object_subclass]
        impl ObjectSubclass for Encoder {
            const NAME: &'static str = "TestForcedEncoder";
            type Type = super::Encoder;
            type ParentType = gst::Element;
        }

        impl ObjectImpl for Encoder {
            fn signals() -> &'static [glib::subclass::Signal] {
                static SIGNALS: OnceLock<Vec<glib::subclass::Signal>> = OnceLock::new();
                SIGNALS.get_or_init(|| {
                    let force = |values: &[glib::Value]| {
                        let encoder = values[0].get::<super::Encoder>().unwrap();
                        encoder.imp().0.fetch_add(1, Ordering::SeqCst);
                        None
                    };
                    vec![
                        glib::subclass::Signal::builder(FORCE_IDR)
                            .action()
                            .class_handler(force)
                            .build(),
                    ]
                })
            }

            fn constructed(&self) {
                self.parent_constructed();
                let template = self.obj().pad_template("sink").unwrap();
                let pad = gst::Pad::from_template(&template);
                self.obj().add_pad(&pad).unwrap();
            }
        }

        impl GstObjectImpl for Encoder {}

        impl ElementImpl for Encoder {
            fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
                static METADATA: OnceLock<gst::subclass::ElementMetadata> = OnceLock::new();
                Some(METADATA.get_or_init(|| {
                    let class = "Codec/Encoder/Video";
                    gst::subclass::ElementMetadata::new("Encoder", class, "None", "Nobody")
                }))
            }

            fn pad_templates() -> &'static [gst::PadTemplate] {
                static TEMPLATES: OnceLock<Vec<gst::PadTemplate>> = OnceLock::new();
                TEMPLATES.get_or_init(|| {
                    let (direction, always) = (gst::PadDirection::Sink, gst::PadPresence::Always);
                    let caps = gst::Caps::new_any();
                    vec![gst::PadTemplate::new("sink", direction, always, &caps).unwrap()]
                })
            }
        }
    }

    glib::wrapper! {
        pub struct Encoder(ObjectSubclass<imp::Encoder>) @extends gst::Element, gst::Object;
    }

    #[test]
    fn an_encoder_with_an_action_for_key_frames_is_asked_by_it() {
        use gst::subclass::prelude::*;
        use std::sync::atomic::Ordering;

        gst::init().unwrap();
        let kind = Encoder::static_type();
        gst::Element::register(None, "testforcedenc", gst::Rank::NONE, kind).unwrap();
        let line = "identity name=valve ! queue ! testforcedenc name=encoder";
        let pipeline = gst::parse::launch(line).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let valve = pipeline.by_name("valve").unwrap();
        let encoder = pipeline.by_name("encoder").unwrap();
        let encoder = encoder.downcast::<Encoder>().unwrap();
        by_own_means(&valve.static_pad("src").unwrap());
        assert_eq!(encoder.imp().0.load(Ordering::SeqCst), 1);
        // One without is not asked for what it does not have.
        let line = "identity name=valve ! x264enc";
        let pipeline = gst::parse::launch(line).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let valve = pipeline.by_name("valve").unwrap();
        by_own_means(&valve.static_pad("src").unwrap());
    }
}
