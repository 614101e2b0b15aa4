// SPDX-License-Identifier: MPL-2.0

//! Key frames on demand, with the encoders that robots have.

use gst::{glib, prelude::*, subclass::prelude::*};

use crate::common::{DEADLINE, count, end, is_key, launch, no_error, start, until};

#[test]
fn each_request_makes_a_key_frame_not_only_the_first() {
    for encoder in [
        "x264enc tune=zerolatency key-int-max=100000",
        "openh264enc gop-size=100000",
    ] {
        let pipeline = launch(&format!(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=30/1 \
             ! mqttvalve name=valve standby=warm ! {encoder} ! fakesink name=end"
        ));
        let (_, buffers) = count(&pipeline, "end");
        let valve = pipeline.by_name("valve").unwrap();
        start(&pipeline);
        for round in 0..3 {
            valve.set_property("drop", false);
            let first = buffers.recv_timeout(DEADLINE).unwrap();
            assert!(is_key(&first), "{encoder}, opening {round}");
            for request in 0..3 {
                // Until it is answered: requests that come too early wait for their turn.
                assert!(valve.emit_by_name::<bool>("keyframe", &[]));
                until("a key frame", || {
                    buffers
                        .recv_timeout(DEADLINE)
                        .is_ok_and(|buffer| is_key(&buffer))
                });
                let next = buffers.recv_timeout(DEADLINE).unwrap();
                assert!(!is_key(&next), "{encoder}, request {request}");
            }
            valve.set_property("drop", true);
            let stats = || valve.property::<gst::Structure>("stats");
            let dropped = stats().get::<u64>("dropped").unwrap();
            until("a dropped buffer", || {
                stats().get::<u64>("dropped").unwrap() > dropped
            });
            while buffers.try_recv().is_ok() {}
        }
        no_error(&pipeline);
        drop(valve);
        end(pipeline);
    }
}

#[test]
fn requests_are_rate_limited_and_a_closed_valve_has_no_key_frame_to_give() {
    let pipeline = launch(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64,framerate=30/1 \
         ! mqttvalve name=valve standby=warm ! x264enc tune=zerolatency key-int-max=100000 \
         ! fakesink name=end",
    );
    let (_, buffers) = count(&pipeline, "end");
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    assert!(!valve.emit_by_name::<bool>("keyframe", &[]));
    valve.set_property("drop", false);
    let mut keys = 0;
    for _ in 0..60 {
        let buffer = buffers.recv_timeout(DEADLINE).unwrap();
        keys += u32::from(is_key(&buffer));
        for _ in 0..10 {
            valve.emit_by_name::<bool>("keyframe", &[]);
        }
    }
    // Sixty frames are two seconds: the first frame, and at most two a second.
    assert!((3..=6).contains(&keys), "{keys} key frames");
    drop(valve);
    end(pipeline);
}

/// Stands in for `v4l2h264enc`: an encoder that knows controls but no force-key-unit events.
mod v4l2 {
    use std::sync::{LazyLock, Mutex};

    use super::*;

    #[derive(Default)]
    pub struct Encoder {
        pub controls: Mutex<Option<gst::Structure>>,
        pub forced: Mutex<u32>,
    }

    #[glib::object_subclass]
    impl ObjectSubclass for Encoder {
        const NAME: &'static str = "TestV4l2Encoder";
        type Type = V4l2Encoder;
        type ParentType = gst::Element;
    }

    impl ObjectImpl for Encoder {
        fn constructed(&self) {
            self.parent_constructed();
            let obj = self.obj();
            let src = gst::Pad::from_template(&obj.pad_template("src").unwrap());
            let sink = gst::Pad::builder_from_template(&obj.pad_template("sink").unwrap())
                .chain_function(|pad, parent, buffer| {
                    let element = parent
                        .and_then(|p| p.downcast_ref::<gst::Element>())
                        .unwrap();
                    let _ = pad;
                    element.static_pad("src").unwrap().push(buffer)
                })
                .build();
            obj.add_pad(&sink).unwrap();
            obj.add_pad(&src).unwrap();
        }

        fn properties() -> &'static [glib::ParamSpec] {
            static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
                vec![glib::ParamSpecBoxed::builder::<gst::Structure>("extra-controls").build()]
            });
            &PROPERTIES
        }

        fn set_property(&self, _id: usize, value: &glib::Value, _pspec: &glib::ParamSpec) {
            let controls = value.get::<Option<gst::Structure>>().unwrap();
            if controls
                .as_ref()
                .and_then(|c| c.get::<i32>("force_key_frame").ok())
                == Some(1)
            {
                *self.forced.lock().unwrap() += 1;
            }
            *self.controls.lock().unwrap() = controls;
        }

        fn property(&self, _id: usize, _pspec: &glib::ParamSpec) -> glib::Value {
            self.controls.lock().unwrap().to_value()
        }
    }

    impl GstObjectImpl for Encoder {}

    impl ElementImpl for Encoder {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new(
                    "Encoder with controls",
                    "Codec/Encoder/Video/Hardware",
                    "Stands in for v4l2h264enc",
                    "the tests",
                )
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let any = gst::Caps::new_any();
                let always = gst::PadPresence::Always;
                [
                    ("sink", gst::PadDirection::Sink),
                    ("src", gst::PadDirection::Src),
                ]
                .map(|(name, direction)| {
                    gst::PadTemplate::new(name, direction, always, &any).unwrap()
                })
                .into()
            });
            &TEMPLATES
        }
    }
}

glib::wrapper! {
    pub struct V4l2Encoder(ObjectSubclass<v4l2::Encoder>) @extends gst::Element, gst::Object;
}

#[test]
fn an_encoder_that_knows_only_controls_is_told_by_them() {
    gst::init().unwrap();
    gst::Element::register(
        None,
        "testv4l2enc",
        gst::Rank::NONE,
        V4l2Encoder::static_type(),
    )
    .unwrap();
    let pipeline = launch(
        "videotestsrc is-live=true ! mqttvalve name=valve standby=warm ! queue \
         ! testv4l2enc name=encoder extra-controls=\"controls,video_bitrate=1000\" \
         ! fakesink name=end",
    );
    let (_, buffers) = count(&pipeline, "end");
    let encoder = pipeline
        .by_name("encoder")
        .unwrap()
        .downcast::<V4l2Encoder>()
        .unwrap();
    let forced = || *encoder.imp().forced.lock().unwrap();
    let valve = pipeline.by_name("valve").unwrap();
    start(&pipeline);
    valve.set_property("drop", false);
    buffers.recv_timeout(DEADLINE).unwrap();
    assert_eq!(forced(), 1);
    valve.emit_by_name::<bool>("keyframe", &[]);
    until("the request", || forced() == 2);
    let controls = encoder.property::<gst::Structure>("extra-controls");
    assert_eq!(
        controls.get::<i32>("video_bitrate"),
        Ok(1000),
        "the user's own stay"
    );
    drop((valve, encoder));
    end(pipeline);
}
