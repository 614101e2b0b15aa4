// SPDX-License-Identifier: MPL-2.0

//! The bitrate of the encoder upstream, whatever it calls it.

use gst::prelude::*;

use crate::element::{controls, neighbours};

const PROPERTY: &str = "bitrate";
/// Encoders whose `bitrate` is in bits per second. (The description does not always say so.)
/// Those of V4L2 have the property from GStreamer 1.30 on.
const BY_BIT: [&str; 5] = [
    "openh264enc",
    "nvv4l2h264enc",
    "nvv4l2h265enc",
    "v4l2h264enc",
    "v4l2h265enc",
];

/// What sets an encoder's bitrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// A property, in so many bits per second.
    Property(u64),
    /// A V4L2 control, in bits per second.
    Control,
}

/// An encoder whose bitrate can be changed while it plays.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    element: glib::WeakRef<gst::Element>,
    setting: Setting,
}

impl Encoder {
    /// The nearest one upstream of `pad`; the error says why there is none.
    pub fn upstream(pad: &gst::Pad) -> Result<Self, String> {
        let element = neighbours::video_encoder(pad).ok_or("there is no video encoder upstream")?;
        let setting = Setting::of(&element).ok_or_else(|| {
            format!(
                "{} has no bitrate that can be changed while it plays",
                element.name()
            )
        })?;
        Ok(Encoder {
            element: element.downgrade(),
            setting,
        })
    }

    /// Bits per second; None where it has not been told any.
    pub fn bitrate(&self) -> Option<u64> {
        let element = self.element.upgrade()?;
        let bitrate = match self.setting {
            Setting::Control => u64::try_from(controls::get(&element, controls::BITRATE)?).ok()?,
            Setting::Property(unit) => {
                let value = element.property_value(PROPERTY);
                value.transform::<u64>().ok()?.get::<u64>().ok()? * unit
            }
        };
        Some(bitrate).filter(|bitrate| *bitrate > 0)
    }

    pub fn set_bitrate(&self, bitrate: u64) {
        let Some(element) = self.element.upgrade() else {
            return;
        };
        match self.setting {
            Setting::Control => {
                let bitrate = i32::try_from(bitrate).unwrap_or(i32::MAX);
                controls::set(&element, controls::BITRATE, bitrate);
            }
            Setting::Property(unit) => {
                let Some(property) = element.find_property(PROPERTY) else {
                    return;
                };
                let value = (bitrate / unit).to_value();
                if let Ok(value) = value.transform_with_type(property.value_type()) {
                    element.set_property_from_value(PROPERTY, &value);
                }
            }
        }
    }
}

impl Setting {
    /// A property comes first: Jetson's encoders have one, whatever controls they show besides.
    fn of(element: &gst::Element) -> Option<Self> {
        let by_control = || controls::has(element).then_some(Setting::Control);
        Setting::by_property(element).or_else(by_control)
    }

    fn by_property(element: &gst::Element) -> Option<Self> {
        let property = element.find_property(PROPERTY)?;
        let is_number = glib::Value::type_transformable(property.value_type(), u64::static_type());
        if !property.flags().contains(glib::ParamFlags::WRITABLE) || !is_number {
            return None;
        }
        let name = element.factory()?.name();
        let blurb = property.blurb().unwrap_or_default();
        if BY_BIT.contains(&name.as_str()) {
            return Some(Setting::Property(1));
        }
        let by_kilobit = blurb.contains("kbit") || blurb.contains("kbps");
        by_kilobit.then_some(Setting::Property(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of these elements, and the pad at its end.
    fn end_of(line: &str) -> (gst::Element, gst::Pad) {
        gst::init().unwrap();
        let line = format!("{line} ! fakesink name=end");
        let line = gst::parse::launch(&line).unwrap();
        let end = line.downcast_ref::<gst::Bin>().unwrap().by_name("end");
        let pad = end.unwrap().static_pad("sink").unwrap();
        (line, pad)
    }

    #[test]
    fn each_encoder_is_told_in_its_own_unit() {
        for (name, own) in [("x264enc", 1500), ("openh264enc", 1_500_000)] {
            let (line, pad) = end_of(&format!(
                "videotestsrc ! {name} name=enc bitrate={own} ! h264parse ! queue"
            ));
            let encoder = Encoder::upstream(&pad).unwrap();
            assert_eq!(encoder.bitrate(), Some(1_500_000), "{name}");
            encoder.set_bitrate(320_400);
            let element = line.downcast_ref::<gst::Bin>().unwrap().by_name("enc");
            let told = element.unwrap().property::<u32>("bitrate");
            assert_eq!(u64::from(told), 320_400 * own / 1_500_000, "{name}");
            drop(line);
            assert_eq!(encoder.bitrate(), None);
            encoder.set_bitrate(1);
        }
    }

    #[test]
    fn a_line_without_an_encoder_is_left_alone() {
        let (_line, pad) = end_of("videotestsrc ! queue");
        assert!(
            Encoder::upstream(&pad)
                .unwrap_err()
                .contains("no video encoder")
        );
        let (_line, pad) = end_of("videotestsrc ! vp8enc name=vp8");
        assert!(Encoder::upstream(&pad).unwrap_err().contains("vp8"));
    }

    /// Defines an element with V4L2 controls, which it remembers, and other properties.
    macro_rules! test_encoder {
        ($module:ident, $name:literal, [$($spec:expr),*]) => {
            mod $module {
                use gst::{prelude::*, subclass::prelude::*};
                use once_cell::sync::Lazy;
                use parking_lot::Mutex;

                #[derive(Default)]
                pub struct Imp(Mutex<Option<gst::Structure>>);

                glib::wrapper! {
                    pub struct Encoder(ObjectSubclass<Imp>) @extends gst::Element, gst::Object;
                }

                #[glib::object_subclass]
                impl ObjectSubclass for Imp {
                    const NAME: &'static str = $name;
                    type Type = Encoder;
                    type ParentType = gst::Element;
                }

                impl ObjectImpl for Imp {
                    fn properties() -> &'static [glib::ParamSpec] {
                        static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(|| {
                            let controls = "extra-controls";
                            vec![
                                glib::ParamSpecBoxed::builder::<gst::Structure>(controls).build(),
                                $($spec),*
                            ]
                        });
                        &PROPERTIES
                    }

                    fn set_property(&self, _: usize, value: &glib::Value, _: &glib::ParamSpec) {
                        *self.0.lock() = value.get().unwrap();
                    }

                    fn property(&self, _: usize, _: &glib::ParamSpec) -> glib::Value {
                        self.0.lock().to_value()
                    }
                }

                impl GstObjectImpl for Imp {}

                impl ElementImpl for Imp {
                    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
                        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
                            gst::subclass::ElementMetadata::new("Encoder", "Test", "None", "Nobody")
                        });
                        Some(&METADATA)
                    }
                }
            }
        };
    }

    test_encoder!(v4l2, "TestControlledEncoder", []);
    test_encoder!(
        jetson,
        "TestJetsonEncoder",
        [glib::ParamSpecUInt::builder("bitrate")
            .blurb("In kbit/s")
            .build()]
    );

    test_encoder!(
        v4l2_of_1_30,
        "TestV4l2Encoder",
        [glib::ParamSpecUInt::builder("bitrate")
            .blurb("Bitrate in bits per second, not in kbit/s")
            .build()]
    );

    /// Whatever the description says: it names units to tell them apart, too.
    #[test]
    fn a_bitrate_comes_before_controls_and_v4l2_counts_in_bits() {
        gst::init().unwrap();
        for (name, kind) in [
            ("nvv4l2h264enc", jetson::Encoder::static_type()),
            ("v4l2h264enc", v4l2_of_1_30::Encoder::static_type()),
        ] {
            gst::Element::register(None, name, gst::Rank::NONE, kind).unwrap();
            let element = gst::ElementFactory::make(name).build().unwrap();
            assert!(controls::has(&element));
            assert_eq!(Setting::of(&element), Some(Setting::Property(1)), "{name}");
        }
    }

    #[test]
    fn a_control_is_set_beside_the_others_and_presses_no_button() {
        gst::init().unwrap();
        let element: v4l2::Encoder = glib::Object::new();
        let encoder = Encoder {
            element: element.upcast_ref::<gst::Element>().downgrade(),
            setting: Setting::of(element.upcast_ref()).unwrap(),
        };
        assert_eq!(encoder.bitrate(), None);
        let own = gst::Structure::builder("controls")
            .field("repeat_sequence_header", 1i32)
            .field(controls::FORCE_KEY_FRAME, 1i32)
            .build();
        element.set_property("extra-controls", own);
        encoder.set_bitrate(700_000);
        assert_eq!(encoder.bitrate(), Some(700_000));
        let set = element.property::<gst::Structure>("extra-controls");
        assert_eq!(set.get("repeat_sequence_header"), Ok(1));
        assert!(!set.has_field(controls::FORCE_KEY_FRAME));
    }
}
