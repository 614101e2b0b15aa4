// SPDX-License-Identifier: MPL-2.0

//! An encoder that falls silent without an error, as hardware encoders do.

use std::sync::atomic::{AtomicU32, Ordering};

use gst::prelude::*;

use crate::common::{count, end, launch, no_error, start, until};

/// What the stand-in gives before it falls silent.
const GIVEN: u32 = 30;
static STARTS: AtomicU32 = AtomicU32::new(0);

mod silent {
    use super::*;
    use gst_base::subclass::{BaseTransformMode, prelude::*};

    /// An encoder to all appearances. It takes everything, and gives a second's frames after each
    /// start.
    #[derive(Default)]
    pub struct Imp(AtomicU32);

    glib::wrapper! {
        pub struct Encoder(ObjectSubclass<Imp>)
            @extends gst_base::BaseTransform, gst::Element, gst::Object;
    }

    #[glib::object_subclass]
    impl ObjectSubclass for Imp {
        const NAME: &'static str = "TestSilentEncoder";
        type Type = Encoder;
        type ParentType = gst_base::BaseTransform;
    }

    impl ObjectImpl for Imp {}
    impl GstObjectImpl for Imp {}

    impl ElementImpl for Imp {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: std::sync::OnceLock<gst::subclass::ElementMetadata> =
                std::sync::OnceLock::new();
            Some(METADATA.get_or_init(|| {
                let class = "Codec/Encoder/Video";
                gst::subclass::ElementMetadata::new("Encoder", class, "Falls silent", "Nobody")
            }))
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: std::sync::OnceLock<Vec<gst::PadTemplate>> =
                std::sync::OnceLock::new();
            TEMPLATES.get_or_init(|| {
                let both = [
                    ("sink", gst::PadDirection::Sink),
                    ("src", gst::PadDirection::Src),
                ];
                let caps = gst::Caps::new_empty_simple("video/x-raw");
                both.map(|(name, direction)| {
                    let presence = gst::PadPresence::Always;
                    gst::PadTemplate::new(name, direction, presence, &caps).unwrap()
                })
                .into()
            })
        }
    }

    impl BaseTransformImpl for Imp {
        const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
        const PASSTHROUGH_ON_SAME_CAPS: bool = true;
        const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

        fn start(&self) -> Result<(), gst::ErrorMessage> {
            STARTS.fetch_add(1, Ordering::SeqCst);
            self.0.store(0, Ordering::SeqCst);
            Ok(())
        }

        fn transform_ip_passthrough(
            &self,
            _: &gst::Buffer,
        ) -> Result<gst::FlowSuccess, gst::FlowError> {
            if self.0.fetch_add(1, Ordering::SeqCst) < GIVEN {
                Ok(gst::FlowSuccess::Ok)
            } else {
                Ok(gst_base::BASE_TRANSFORM_FLOW_DROPPED)
            }
        }
    }
}

#[test]
fn an_encoder_that_is_fed_and_gives_nothing_begins_anew_without_the_camera() {
    gst::init().unwrap();
    let kind = silent::Encoder::static_type();
    gst::Element::register(None, "silentenc", gst::Rank::NONE, kind).unwrap();
    // No server is there: that is the sink's business.
    let pipeline = launch(
        "videotestsrc name=camera is-live=true ! video/x-raw,width=64,height=48,framerate=60/1 \
         ! mqttvalve name=valve standby=cold ! queue ! silentenc name=encoder \
         ! x264enc name=out tune=zerolatency ! rtmpauthsink location=rtmp://127.0.0.1:1/live/x",
    );
    let (given, _) = count(&pipeline, "out");
    let given = || given.load(Ordering::SeqCst);
    start(&pipeline);
    let valve = pipeline.by_name("valve").unwrap();
    valve.set_property("drop", false);
    until("it gives what it has", || given() >= u64::from(GIVEN));
    let camera = pipeline.by_name("camera").unwrap();
    until("the camera plays", || {
        camera.current_state() == gst::State::Playing
    });
    let bus = pipeline.bus().unwrap();
    while bus.pop().is_some() {}
    let starts = STARTS.load(Ordering::SeqCst);

    until("it gives again", || given() >= u64::from(GIVEN) * 2);
    assert_eq!(STARTS.load(Ordering::SeqCst), starts + 1);
    let (mut changed, mut told) = (Vec::new(), Vec::new());
    while let Some(message) = bus.pop() {
        let source = message.src().map(|source| source.name().to_string());
        match message.view() {
            gst::MessageView::StateChanged(_) => changed.extend(source),
            gst::MessageView::Warning(warning) => told.push(warning.error().to_string()),
            gst::MessageView::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
    assert!(changed.contains(&"encoder".to_owned()), "{changed:?}");
    assert!(!changed.contains(&"camera".to_owned()), "{changed:?}");
    assert!(
        told.iter()
            .any(|text| text.contains("encoder was fed and gave nothing")),
        "{told:?}"
    );
    no_error(&pipeline);
    drop((valve, camera, bus));
    end(pipeline);
}
