// SPDX-License-Identifier: MPL-2.0

//! What a line asks of a camera that the camera lacks, and what it has instead, the nearest first:
//! of a size, a format or a rate that is not there GStreamer says "Internal data stream error".

pub mod node;

use gst::prelude::*;

/// Of what a camera has, as many kinds are named.
const NAMED: usize = 5;

/// What an error that `source` has posted means, where more is known than it says.
pub fn explain(source: &gst::Object, error: &glib::Error) -> Option<String> {
    let source = source.downcast_ref::<gst::Element>()?;
    if is_made_by(source, "nvarguscamerasrc") {
        return Some(format!(
            "{error}; if it has opened before: on some releases it opens once only, until the daemon begins anew (systemctl restart nvargus-daemon); standby=warm keeps it open"
        ));
    }
    error
        .is::<gst::StreamError>()
        .then(|| mismatch(source))
        .flatten()
}

/// What is asked of `source` and what it has, where they do not fit. A camera tells what it has
/// while it is open: from READY on.
pub fn mismatch(source: &gst::Element) -> Option<String> {
    let pad = source.src_pads().into_iter().next()?;
    let asked = pad.peer_query_caps(None);
    let has = pad.query_caps(None);
    let has = match is_made_by(source, "libcamerasrc") {
        // Its pad tells what libcamera may deliver, not what this camera does.
        true => libcamera(source)?,
        false => has,
    };
    if asked.is_any() || asked.is_empty() || has.is_any() || has.can_intersect(&asked) {
        return None;
    }
    Some(describe(&asked, &has))
}

fn is_made_by(source: &gst::Element, name: &str) -> bool {
    let factory = source.factory();
    factory.is_some_and(|factory| factory.name() == name)
}

/// What the camera of a `libcamerasrc` has: the one that it names, else the first.
fn libcamera(source: &gst::Element) -> Option<gst::Caps> {
    let name = source
        .find_property("camera-name")
        .and_then(|_| source.property::<Option<String>>("camera-name"));
    let provider = gst::DeviceProviderFactory::by_name("libcameraprovider")?;
    let devices = provider.devices();
    let is_meant = |device: &gst::Device| {
        name.as_ref()
            .is_none_or(|name| device.display_name() == name.as_str())
    };
    devices.into_iter().find(is_meant)?.caps()
}

fn describe(asked: &gst::CapsRef, has: &gst::CapsRef) -> String {
    let wanted = Kind::of(asked.structure(0).expect("it is not empty"));
    if has.is_empty() {
        return format!(
            "asked for {}; the camera has nothing to give",
            wanted.text()
        );
    }
    let mut kinds: Vec<Kind> = has.iter().map(Kind::of).collect();
    kinds.iter_mut().for_each(|kind| kind.approach(&wanted));
    kinds.sort_by_key(|kind| kind.distance(&wanted));
    let mut texts: Vec<String> = kinds.iter().map(Kind::text).collect();
    texts.dedup();
    let more = match texts.len() > NAMED {
        true => ", and others",
        false => "",
    };
    texts.truncate(NAMED);
    let (wanted, texts) = (wanted.text(), texts.join(", "));
    format!("asked for {wanted}; the camera has, the nearest first: {texts}{more}")
}

/// Whole numbers that a field may have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Numbers {
    Any,
    /// From, to.
    Range(i32, i32),
    List(Vec<i32>),
}

impl Numbers {
    fn of(
        value: Option<&glib::SendValue>,
        whole: impl Fn(&glib::Value) -> Option<(i32, i32)>,
    ) -> Self {
        let Some(value) = value else {
            return Numbers::Any;
        };
        if let Ok(list) = value.get::<gst::List>() {
            let numbers = list
                .iter()
                .filter_map(|one| whole(one).map(|(from, _)| from));
            return Numbers::List(numbers.collect());
        }
        match whole(value) {
            Some((..=1, i32::MAX)) => Numbers::Any,
            Some((from, to)) if from == to => Numbers::List(vec![from]),
            Some((from, to)) => Numbers::Range(from, to),
            None => Numbers::Any,
        }
    }

    fn only(&self) -> Option<i32> {
        match self {
            Numbers::List(list) => match list[..] {
                [only] => Some(only),
                _ => None,
            },
            _ => None,
        }
    }

    /// Leaves of a list what is nearest to `wanted`; a range stays, it says more.
    fn approach(&mut self, wanted: &Numbers) {
        if let (Numbers::List(list), Some(wanted)) = (&mut *self, wanted.only()) {
            let nearest = list.iter().min_by_key(|one| one.abs_diff(wanted)).copied();
            *self = Numbers::List(nearest.into_iter().collect());
        }
    }

    /// How far it is to `wanted`, in thousandths.
    fn distance(&self, wanted: &Numbers) -> u64 {
        let Some(wanted) = wanted.only().filter(|wanted| *wanted > 0) else {
            return 0;
        };
        let nearest = match self {
            Numbers::Any => wanted,
            Numbers::Range(from, to) => wanted.clamp(*from, (*to).max(*from)),
            Numbers::List(list) => list.first().copied().unwrap_or(wanted),
        };
        u64::from(nearest.abs_diff(wanted)) * 1000 / wanted.unsigned_abs() as u64
    }

    fn text(&self) -> Option<String> {
        match self {
            Numbers::Any => None,
            Numbers::Range(from, i32::MAX) => Some(format!("from {from}")),
            Numbers::Range(from, to) => Some(format!("{from} to {to}")),
            Numbers::List(list) => {
                let numbers: Vec<String> = list.iter().map(i32::to_string).collect();
                Some(numbers.join("|"))
            }
        }
    }
}

/// One kind of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    media: String,
    formats: Vec<String>,
    width: Numbers,
    height: Numbers,
    rate: Numbers,
}

impl Kind {
    fn of(structure: &gst::StructureRef) -> Self {
        let whole = |value: &glib::Value| {
            let one = value.get::<i32>().map(|one| (one, one));
            let range = || value.get::<gst::IntRange<i32>>();
            one.or_else(|_| range().map(|range| (range.min(), range.max())))
                .ok()
        };
        let rate = |value: &glib::Value| {
            // A camera that gives 29.97 pictures a second is asked for 30.
            let rounded = |rate: gst::Fraction| match rate.denom() {
                0 => i32::MAX,
                denom => (f64::from(rate.numer()) / f64::from(denom)).round() as i32,
            };
            let one = value
                .get::<gst::Fraction>()
                .map(|one| (rounded(one), rounded(one)));
            let range = || value.get::<gst::FractionRange>();
            one.or_else(|_| range().map(|range| (rounded(range.min()), rounded(range.max()))))
                .ok()
        };
        let texts = |value: &glib::SendValue| match value.get::<gst::List>() {
            Ok(list) => list.iter().filter_map(|one| one.get().ok()).collect(),
            Err(_) => value.get::<String>().into_iter().collect(),
        };
        let formats = structure.value("format").map(texts);
        Kind {
            media: structure.name().to_string(),
            formats: formats.unwrap_or_default(),
            width: Numbers::of(structure.value("width").ok(), whole),
            height: Numbers::of(structure.value("height").ok(), whole),
            rate: Numbers::of(structure.value("framerate").ok(), rate),
        }
    }

    fn approach(&mut self, wanted: &Kind) {
        self.width.approach(&wanted.width);
        self.height.approach(&wanted.height);
        self.rate.approach(&wanted.rate);
        let is_wanted = |format: &String| wanted.formats.contains(format);
        if self.formats.iter().any(is_wanted) {
            self.formats.retain(is_wanted);
        }
    }

    /// Another medium is farther than another format, and that one than another size.
    fn distance(&self, wanted: &Kind) -> (bool, bool, u64, u64) {
        let is_wanted = |format: &String| wanted.formats.contains(format);
        let size = self.width.distance(&wanted.width) + self.height.distance(&wanted.height);
        (
            self.media != wanted.media,
            !wanted.formats.is_empty() && !self.formats.iter().any(is_wanted),
            size,
            self.rate.distance(&wanted.rate),
        )
    }

    fn text(&self) -> String {
        let mut text = self.media.clone();
        if !self.formats.is_empty() {
            text += &format!(" {}", self.formats.join("|"));
        }
        if let (Some(width), Some(height)) = (self.width.text(), self.height.text()) {
            text += &format!(" {width}x{height}");
        }
        if let Some(rate) = self.rate.text() {
            text += &format!(" at {rate}/s");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has the name of a Jetson's camera, and nothing else of it.
    mod argus {
        use gst::subclass::prelude::*;

        #[derive(Default)]
        pub struct Imp;

        #[glib::object_subclass]
        impl ObjectSubclass for Imp {
            const NAME: &'static str = "TestArgusSource";
            type Type = Source;
            type ParentType = gst::Bin;
        }

        impl ObjectImpl for Imp {}
        impl GstObjectImpl for Imp {}
        impl ElementImpl for Imp {
            fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
                static METADATA: std::sync::OnceLock<gst::subclass::ElementMetadata> =
                    std::sync::OnceLock::new();
                Some(METADATA.get_or_init(|| {
                    gst::subclass::ElementMetadata::new("Camera", "Source/Video", "None", "Nobody")
                }))
            }
        }
        impl BinImpl for Imp {}

        glib::wrapper! {
            pub struct Source(ObjectSubclass<Imp>) @extends gst::Bin, gst::Element, gst::Object;
        }
    }

    fn told(asked: &str, has: &str) -> String {
        gst::init().unwrap();
        let caps = |text: &str| text.parse::<gst::Caps>().unwrap();
        describe(&caps(asked), &caps(has))
    }

    #[test]
    fn the_nearest_that_a_camera_has_is_named_first() {
        let has = "image/jpeg,width=1920,height=1080,framerate=30/1;\
                   video/x-raw,format=YUY2,width=1280,height=720,framerate={10/1,5/1};\
                   video/x-raw,format=YUY2,width=640,height=480,framerate={30/1,30000/1001,15/1};\
                   video/x-raw,format=YUY2,width=320,height=240,framerate=30/1";
        assert_eq!(
            told("video/x-raw,width=800,height=600,framerate=30/1", has),
            "asked for video/x-raw 800x600 at 30/s; the camera has, the nearest first: \
             video/x-raw YUY2 640x480 at 30/s, video/x-raw YUY2 1280x720 at 10/s, \
             video/x-raw YUY2 320x240 at 30/s, image/jpeg 1920x1080 at 30/s"
        );
        // Of a size that is there, the rate.
        let text = told("video/x-raw,width=1280,height=720,framerate=30/1", has);
        assert!(
            text.contains("first: video/x-raw YUY2 1280x720 at 10/s"),
            "{text}"
        );
        let text = told("image/jpeg,width=640,height=480", has);
        assert!(text.contains("first: image/jpeg 1920x1080"), "{text}");
    }

    #[test]
    fn ranges_and_formats_are_named_as_they_are() {
        let text = told(
            "video/x-raw,format=NV12,width=8000,height=6000,framerate=30/1",
            "video/x-raw,format={YUY2,NV12},width=[32,3280,2],height=[32,2464,2],framerate=[1/1,60/1]",
        );
        assert_eq!(
            text,
            "asked for video/x-raw NV12 8000x6000 at 30/s; the camera has, the nearest first: \
             video/x-raw NV12 32 to 3280x32 to 2464 at 1 to 60/s"
        );
        let many: Vec<_> = (1..9)
            .map(|n| format!("video/x-raw,width={n}00,height=100"))
            .collect();
        let text = told("video/x-raw,width=1000,height=100", &many.join(";"));
        assert!(text.contains("first: video/x-raw 800x100, "), "{text}");
        assert!(text.ends_with("400x100, and others"), "{text}");
    }

    #[test]
    fn a_camera_of_a_jetson_that_opens_once_only_is_named_as_that() {
        gst::init().unwrap();
        let error = glib::Error::new(gst::ResourceError::Failed, "No cameras available");
        let any = gst::ElementFactory::make("fakesrc").build().unwrap();
        assert_eq!(explain(any.upcast_ref(), &error), None);
        let (name, kind) = ("nvarguscamerasrc", argus::Source::static_type());
        gst::Element::register(None, name, gst::Rank::NONE, kind).unwrap();
        let camera = gst::ElementFactory::make("nvarguscamerasrc")
            .build()
            .unwrap();
        let text = explain(camera.upcast_ref(), &error).unwrap();
        assert!(text.starts_with("No cameras available; "), "{text}");
        assert!(text.contains("nvargus-daemon") && text.contains("standby=warm"));
    }

    #[test]
    fn what_fits_is_no_mismatch() {
        gst::init().unwrap();
        let line = "videotestsrc name=camera ! video/x-raw,width=64,height=48 ! fakesink";
        let pipeline = gst::parse::launch(line).unwrap();
        let camera = pipeline
            .downcast_ref::<gst::Bin>()
            .unwrap()
            .by_name("camera");
        assert_eq!(mismatch(&camera.unwrap()), None);
    }
}
