// SPDX-License-Identifier: MPL-2.0

//! The bin's inner sink: turns one track's buffers into message bodies for the session.
//! Never waits: what cannot be sent waits in the session's queue or is dropped there.

use std::sync::{Arc, OnceLock};

use gst::{prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::{
    cat::CAT,
    publisher::{Body, MediaPublisher, Payload},
    queue::{Frame, Track},
};
use droidrelay_rtmp::flv::{self, AudioCodec, FlvReader, Tag, TagKind, VideoCodec};

/// Audio that RTMP carries here.
pub const AUDIO_CAPS: &str = "audio/mpeg, mpegversion=4, stream-format=raw; \
    audio/mpeg, mpegversion=1, layer=3, parsed=true";
/// Video as the session sends it.
const VIDEO_CAPS: &str = "video/x-h264, stream-format=avc, alignment=au; \
    video/x-h265, stream-format=hvc1, alignment=au; \
    video/x-flv";

/// What the caps say.
#[derive(Default)]
enum Format {
    #[default]
    Unknown,
    Avc,
    Hevc,
    Aac,
    Mp3 {
        rate: u32,
        channels: u32,
    },
    Flv(FlvReader),
}

/// Where a track's frames go.
pub struct TrackOutput {
    pub publisher: Arc<MediaPublisher>,
    pub track: Track,
    /// Asks the encoder upstream for a key frame.
    pub ask_for_key_unit: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
pub struct MediaSinkImp {
    output: OnceLock<TrackOutput>,
    format: Mutex<Format>,
}

glib::wrapper! {
    pub struct MediaSink(ObjectSubclass<MediaSinkImp>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

impl MediaSink {
    pub fn new(output: TrackOutput) -> Self {
        let sink: MediaSink = glib::Object::builder()
            .property("async", false)
            .property("sync", false)
            .property("enable-last-sample", false)
            .property("qos", false)
            .build();
        // A new object has none yet.
        let _ = sink.imp().output.set(output);
        sink
    }
}

#[glib::object_subclass]
impl ObjectSubclass for MediaSinkImp {
    const NAME: &'static str = "GstRtmpAuthMediaSink";
    type Type = MediaSink;
    type ParentType = gst_base::BaseSink;
}

impl ObjectImpl for MediaSinkImp {}
impl GstObjectImpl for MediaSinkImp {}

impl ElementImpl for MediaSinkImp {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::new(
                "RTMP media sink",
                "Sink/Network",
                "Hands one track to the publishing session of rtmpauthsink",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            let caps: gst::Caps = format!("{VIDEO_CAPS}; {AUDIO_CAPS}").parse().unwrap();
            let (direction, presence) = (gst::PadDirection::Sink, gst::PadPresence::Always);
            vec![gst::PadTemplate::new("sink", direction, presence, &caps).unwrap()]
        });
        &TEMPLATES
    }
}

impl BaseSinkImpl for MediaSinkImp {
    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let output = self.output();
        let structure = caps
            .structure(0)
            .ok_or_else(|| gst::loggable_error!(CAT, "caps without structure"))?;
        let codec_data = structure
            .get::<gst::Buffer>("codec_data")
            .ok()
            .and_then(|buffer| buffer.into_mapped_buffer_readable().ok());
        let format = match structure.name().as_str() {
            name @ ("video/x-h264" | "video/x-h265") => {
                let hevc = name == "video/x-h265";
                let codec_data = codec_data.ok_or_else(|| {
                    gst::loggable_error!(CAT, "video caps without codec_data: {caps}")
                })?;
                output.publisher.update_headers(|headers| {
                    let size = |name| {
                        let size = structure.get::<i32>(name).ok()?;
                        u32::try_from(size).ok()
                    };
                    headers.metadata.width = size("width");
                    headers.metadata.height = size("height");
                    headers.metadata.framerate = structure
                        .get::<gst::Fraction>("framerate")
                        .ok()
                        .filter(|rate| rate.numer() > 0)
                        .map(|rate| f64::from(rate.numer()) / f64::from(rate.denom()));
                    let (codec, header) = if hevc {
                        (VideoCodec::Hevc, flv::hevc_sequence_header())
                    } else {
                        (VideoCodec::H264, flv::avc_sequence_header())
                    };
                    headers.metadata.video_codec = Some(codec);
                    headers.video = Some([&header, &codec_data[..]].concat());
                });
                if hevc { Format::Hevc } else { Format::Avc }
            }
            "audio/mpeg" => {
                let number = |name| {
                    let number = structure.get::<i32>(name).ok()?;
                    u32::try_from(number).ok()
                };
                let (rate, channels) = (number("rate"), number("channels"));
                let mp3 = structure.get::<i32>("mpegversion") == Ok(1);
                if !mp3 && codec_data.is_none() {
                    return Err(gst::loggable_error!(
                        CAT,
                        "AAC caps without codec_data: {caps}"
                    ));
                }
                output.publisher.update_headers(|headers| {
                    headers.metadata.sample_rate = rate;
                    headers.metadata.channels = channels;
                    headers.metadata.audio_codec = Some(if mp3 {
                        AudioCodec::Mp3
                    } else {
                        AudioCodec::Aac
                    });
                    headers.audio = codec_data
                        .filter(|_| !mp3)
                        .map(|data| [&flv::aac_sequence_header(), &data[..]].concat());
                });
                if mp3 {
                    Format::Mp3 {
                        rate: rate.unwrap_or(44_100),
                        channels: channels.unwrap_or(2),
                    }
                } else {
                    Format::Aac
                }
            }
            "video/x-flv" => {
                let mut reader = FlvReader::new();
                if let Ok(headers) = structure.get::<gst::ArrayRef>("streamheader") {
                    for header in headers.iter().filter_map(|v| v.get::<gst::Buffer>().ok()) {
                        if let Ok(header) = header.into_mapped_buffer_readable() {
                            reader.push(&header);
                        }
                    }
                }
                self.take_tags(|| reader.next_tag())?;
                Format::Flv(reader)
            }
            name => return Err(gst::loggable_error!(CAT, "cannot publish {name}")),
        };
        *self.format.lock() = format;
        Ok(())
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        if buffer.flags().contains(gst::BufferFlags::HEADER) && buffer.pts().is_none() {
            // A header without a time is in the caps as well, but for FLV.
            if !matches!(*self.format.lock(), Format::Flv(_)) {
                return Ok(gst::FlowSuccess::Ok);
            }
        }
        let Ok(payload) = buffer.clone().into_mapped_buffer_readable() else {
            gst::warning!(CAT, imp = self, "buffer cannot be read: dropped");
            return Ok(gst::FlowSuccess::Ok);
        };
        let mut format = self.format.lock();
        let prefix: Vec<u8> = match &mut *format {
            Format::Unknown => return Err(gst::FlowError::NotNegotiated),
            Format::Avc => flv::avc_frame(key, self.composition_ms(buffer)).into(),
            Format::Hevc => match self.composition_ms(buffer) {
                0 => flv::hevc_frame(key).into(),
                composition => flv::hevc_reordered_frame(key, composition).into(),
            },
            Format::Aac => flv::aac_frame().into(),
            Format::Mp3 { rate, channels } => flv::mp3_frame(*rate, *channels).into(),
            Format::Flv(reader) => {
                reader.push(&payload);
                drop(format);
                let next = || match &mut *self.format.lock() {
                    Format::Flv(reader) => reader.next_tag(),
                    _ => Ok(None),
                };
                if let Err(err) = self.take_tags(next) {
                    *self.format.lock() = Format::Flv(FlvReader::new());
                    gst::warning!(CAT, imp = self, "{err}");
                }
                return Ok(gst::FlowSuccess::Ok);
            }
        };
        drop(format);
        let time = self
            .running_time(buffer.dts_or_pts())
            .unwrap_or_else(|| self.clock_time());
        self.push(Frame {
            track: self.output().track,
            time,
            key,
            body: Body {
                prefix,
                payload: Payload::Buffer(payload),
            },
        });
        Ok(gst::FlowSuccess::Ok)
    }

    fn event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Eos {
            let output = self.output();
            output.publisher.end_of_stream(output.track);
        }
        self.parent_event(event)
    }
}

impl MediaSinkImp {
    fn output(&self) -> &TrackOutput {
        self.output.get().expect("set where the sink is made")
    }

    fn push(&self, frame: Frame<Body>) {
        let output = self.output();
        if output.publisher.push(frame) {
            (output.ask_for_key_unit)();
        }
    }

    /// Publishes the tags that `next` gives.
    fn take_tags(
        &self,
        mut next: impl FnMut() -> Result<Option<Tag>, droidrelay_rtmp::Error>,
    ) -> Result<(), gst::LoggableError> {
        let failed = |err| gst::loggable_error!(CAT, "not an FLV stream: {err}");
        while let Some(tag) = next().map_err(failed)? {
            self.take_tag(tag);
        }
        Ok(())
    }

    fn take_tag(&self, tag: Tag) {
        let Tag {
            kind,
            timestamp_ms,
            body,
        } = tag;
        let publisher = &self.output().publisher;
        let track = match kind {
            TagKind::Script => return,
            TagKind::Video if flv::is_video_sequence_header(&body) => {
                return publisher.update_headers(|headers| {
                    headers.metadata.video_codec = Some(VideoCodec::H264);
                    headers.video = Some(body);
                });
            }
            TagKind::Audio if flv::is_audio_sequence_header(&body) => {
                return publisher.update_headers(|headers| {
                    headers.metadata.audio_codec = Some(AudioCodec::Aac);
                    headers.audio = Some(body);
                });
            }
            TagKind::Video => Track::Video,
            TagKind::Audio => {
                if flv::is_mp3(&body) {
                    publisher.update_headers(|headers| {
                        headers.metadata.audio_codec = Some(AudioCodec::Mp3);
                    });
                }
                Track::Audio
            }
        };
        self.push(Frame {
            track,
            time: i64::from(timestamp_ms) * 1_000_000,
            key: track == Track::Video && flv::is_key_frame(&body),
            body: Body {
                prefix: Vec::new(),
                payload: Payload::Bytes(body),
            },
        });
    }

    /// Presentation after decoding, in milliseconds.
    fn composition_ms(&self, buffer: &gst::Buffer) -> i32 {
        match (buffer.pts(), buffer.dts()) {
            (Some(pts), Some(dts)) => {
                let nanoseconds = pts.nseconds() as i64 - dts.nseconds() as i64;
                (nanoseconds / 1_000_000) as i32
            }
            _ => 0,
        }
    }

    /// Running time of a buffer's time in nanoseconds; before the segment it is negative.
    fn running_time(&self, time: Option<gst::ClockTime>) -> Option<i64> {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>()?;
        let running = segment.to_running_time_full(time?)?;
        Some(match running {
            gst::Signed::Positive(time) => time.nseconds() as i64,
            gst::Signed::Negative(time) => -(time.nseconds() as i64),
        })
    }

    /// For buffers without a time: when they came.
    fn clock_time(&self) -> i64 {
        self.obj()
            .current_running_time()
            .map(|time| time.nseconds() as i64)
            .unwrap_or_default()
    }
}
