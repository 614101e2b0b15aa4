// SPDX-License-Identifier: MPL-2.0

//! The bin's inner sink: turns one track's buffers into message bodies for the session.
//! Live media never waits: what cannot be sent waits in the session's queue or is dropped there.
//! Other media waits here for room in that queue.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use gst::{prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::{
    cat::CAT,
    publisher::{Body, MediaPublisher, Room},
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

/// How long the end of a live stream waits until all of it is sent: an application that ends waits
/// for it.
const LIVE_DRAIN: Duration = Duration::from_millis(800);
/// The same for a stream that can wait.
const DRAIN: Duration = Duration::from_secs(5);

/// What the caps say.
#[derive(Default)]
enum Format {
    #[default]
    Unknown,
    /// With the bytes of each NAL unit's length.
    Avc(usize),
    Hevc(usize),
    Aac,
    /// What stands before each frame.
    Mp3([u8; 1]),
    Flv(FlvReader),
}

/// Where a track's frames go.
pub struct TrackOutput {
    pub publisher: Arc<MediaPublisher>,
    pub track: Track,
    /// Asks the encoder upstream for a key frame.
    pub ask_for_key_unit: Box<dyn Fn() + Send + Sync>,
    /// For the first time in a session media is lost.
    pub media_lost: Box<dyn Fn() + Send + Sync>,
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
        let publisher = &self.output().publisher;
        let structure = caps
            .structure(0)
            .ok_or_else(|| gst::loggable_error!(CAT, "caps without structure"))?;
        let codec_data = structure
            .get::<gst::Buffer>("codec_data")
            .ok()
            .and_then(|buffer| buffer.into_mapped_buffer_readable().ok());
        let sequence_header = |prefix: &[u8]| match &codec_data {
            Some(data) => Ok([prefix, data].concat()),
            None => Err(gst::loggable_error!(CAT, "caps without codec_data: {caps}")),
        };
        // Where the configuration says how long the units' lengths are.
        let length_size = |at: usize| {
            let configured = codec_data.as_ref().and_then(|data| data.get(at));
            configured.map_or(4, |byte| usize::from(byte & 3) + 1)
        };
        let number = |name| u32::try_from(structure.get::<i32>(name).ok()?).ok();
        let video = |codec, header| {
            publisher.update_headers(Track::Video, |headers| {
                headers.metadata.width = number("width");
                headers.metadata.height = number("height");
                headers.metadata.framerate = structure
                    .get::<gst::Fraction>("framerate")
                    .ok()
                    .filter(|rate| rate.numer() > 0)
                    .map(|rate| f64::from(rate.numer()) / f64::from(rate.denom()));
                headers.metadata.video_codec = Some(codec);
                headers.video = Some(header);
            });
        };
        let audio = |codec, header| {
            publisher.update_headers(Track::Audio, |headers| {
                headers.metadata.sample_rate = number("rate");
                headers.metadata.channels = number("channels");
                headers.metadata.audio_codec = Some(codec);
                headers.audio = header;
            });
        };
        let format = match structure.name().as_str() {
            "video/x-h264" => {
                let header = sequence_header(&flv::avc_sequence_header())?;
                video(VideoCodec::H264, header);
                Format::Avc(length_size(4))
            }
            "video/x-h265" => {
                let header = sequence_header(&flv::hevc_sequence_header())?;
                video(VideoCodec::Hevc, header);
                Format::Hevc(length_size(21))
            }
            "audio/mpeg" if structure.get::<i32>("mpegversion") == Ok(1) => {
                audio(AudioCodec::Mp3, None);
                let (rate, channels) = (number("rate"), number("channels"));
                let prefix = flv::mp3_frame(rate.unwrap_or(44_100), channels.unwrap_or(2));
                Format::Mp3(prefix)
            }
            "audio/mpeg" => {
                let header = sequence_header(&flv::aac_sequence_header())?;
                audio(AudioCodec::Aac, Some(header));
                Format::Aac
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
                self.take_tags(&mut reader, Room::Lossy)
                    .map_err(|err| gst::loggable_error!(CAT, "{err}"))?;
                Format::Flv(reader)
            }
            name => return Err(gst::loggable_error!(CAT, "cannot publish {name}")),
        };
        *self.format.lock() = format;
        Ok(())
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        let is_header = buffer.flags().contains(gst::BufferFlags::HEADER);
        let Ok(payload) = buffer.clone().into_mapped_buffer_readable() else {
            gst::warning!(CAT, imp = self, "buffer cannot be read: dropped");
            return Ok(gst::FlowSuccess::Ok);
        };
        let room = self.wait_for_room()?;
        let mut format = self.format.lock();
        let prefix: Vec<u8> = match &mut *format {
            Format::Unknown => return Err(gst::FlowError::NotNegotiated),
            // What is in the caps as well.
            Format::Avc(length_size)
                if is_header && !flv::has_picture(&payload, *length_size, flv::is_avc_picture) =>
            {
                return Ok(gst::FlowSuccess::Ok);
            }
            Format::Hevc(length_size)
                if is_header && !flv::has_picture(&payload, *length_size, flv::is_hevc_picture) =>
            {
                return Ok(gst::FlowSuccess::Ok);
            }
            Format::Aac if is_header && buffer.dts_or_pts().is_none() => {
                return Ok(gst::FlowSuccess::Ok);
            }
            Format::Avc(_) => flv::avc_frame(key, self.composition_ms(buffer)).into(),
            Format::Hevc(_) => match self.composition_ms(buffer) {
                0 => flv::hevc_frame(key).into(),
                composition => flv::hevc_reordered_frame(key, composition).into(),
            },
            Format::Aac => flv::aac_frame().into(),
            Format::Mp3(prefix) => (*prefix).into(),
            Format::Flv(reader) => {
                // Not locked while its frames are pushed; the stream has this one thread.
                let mut reader = std::mem::take(reader);
                drop(format);
                reader.push(&payload);
                if let Err(err) = self.take_tags(&mut reader, room) {
                    reader = FlvReader::new();
                    gst::warning!(CAT, imp = self, "{err}");
                }
                *self.format.lock() = Format::Flv(reader);
                return Ok(gst::FlowSuccess::Ok);
            }
        };
        drop(format);
        let time = self
            .running_time(buffer.dts_or_pts())
            .unwrap_or_else(|| self.clock_time());
        let body = Body {
            prefix,
            payload: Some(Arc::new(payload)),
        };
        self.push(self.output().track, time, key, body, room);
        Ok(gst::FlowSuccess::Ok)
    }

    fn event(&self, event: gst::Event) -> bool {
        let TrackOutput {
            publisher, track, ..
        } = self.output();
        match event.view() {
            gst::EventView::Eos(_) => self.for_each_track(|publisher, track| {
                publisher.drain(track, LIVE_DRAIN, DRAIN);
            }),
            gst::EventView::FlushStop(flush) => {
                let anew = flush.resets_time();
                gst::debug!(CAT, imp = self, "{track:?} is flushed, time anew: {anew}");
                self.for_each_track(|publisher, track| publisher.flush(track, anew));
                publisher.interrupt(*track, false);
            }
            _ => {}
        }
        self.parent_event(event)
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        let output = self.output();
        output.publisher.interrupt(output.track, true);
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        let output = self.output();
        output.publisher.interrupt(output.track, false);
        Ok(())
    }
}

impl MediaSinkImp {
    fn output(&self) -> &TrackOutput {
        self.output.get().expect("set where the sink is made")
    }

    /// Calls `with` for the tracks that come in this stream.
    fn for_each_track(&self, with: impl Fn(&MediaPublisher, Track)) {
        let output = self.output();
        if matches!(*self.format.lock(), Format::Flv(_)) {
            with(&output.publisher, output.track.other());
        }
        with(&output.publisher, output.track);
    }

    /// Waits as long as there is no room and the stream can wait.
    fn wait_for_room(&self) -> Result<Room, gst::FlowError> {
        let output = self.output();
        loop {
            match output.publisher.wait_for_room(output.track) {
                // Until the element plays again, or is flushed.
                Room::Interrupted => self.obj().wait_preroll()?,
                room => return Ok(room),
            };
        }
    }

    fn push(&self, track: Track, time: i64, key: bool, body: Body, room: Room) {
        let output = self.output();
        let frame = Frame {
            track,
            time,
            key,
            size: body.size(),
            body,
        };
        let pushed = output.publisher.push(frame, room);
        if pushed.first_loss {
            (output.media_lost)();
        }
        if pushed.needs_key {
            (output.ask_for_key_unit)();
        }
    }

    /// Publishes the tags that `reader` has.
    fn take_tags(&self, reader: &mut FlvReader, room: Room) -> Result<(), String> {
        let failed = |err| format!("not an FLV stream: {err}");
        while let Some(tag) = reader.next_tag().map_err(failed)? {
            self.take_tag(tag, room);
        }
        Ok(())
    }

    fn take_tag(
        &self,
        Tag {
            kind,
            timestamp_ms,
            body,
        }: Tag,
        room: Room,
    ) {
        let publisher = &self.output().publisher;
        let track = match kind {
            TagKind::Script => return,
            TagKind::Video if flv::is_video_sequence_header(&body) => {
                return publisher.update_headers(Track::Video, |headers| {
                    headers.metadata.video_codec = Some(VideoCodec::H264);
                    headers.video = Some(body);
                });
            }
            TagKind::Audio if flv::is_audio_sequence_header(&body) => {
                return publisher.update_headers(Track::Audio, |headers| {
                    headers.metadata.audio_codec = Some(AudioCodec::Aac);
                    headers.audio = Some(body);
                });
            }
            TagKind::Video => Track::Video,
            TagKind::Audio => {
                if flv::is_mp3(&body) {
                    publisher.update_headers(Track::Audio, |headers| {
                        headers.metadata.audio_codec = Some(AudioCodec::Mp3);
                    });
                }
                Track::Audio
            }
        };
        let time = i64::from(timestamp_ms) * 1_000_000;
        let key = track == Track::Video && flv::is_key_frame(&body);
        let body = Body {
            prefix: body,
            payload: None,
        };
        self.push(track, time, key, body, room);
    }

    /// Presentation after decoding, in milliseconds.
    fn composition_ms(&self, buffer: &gst::Buffer) -> i32 {
        let times = buffer.pts().zip(buffer.dts());
        times.map_or(0, |(pts, dts)| {
            let nanoseconds = i128::from(pts.nseconds()) - i128::from(dts.nseconds());
            // As many as the format has bits for.
            (nanoseconds / 1_000_000).clamp(-0x80_0000, 0x7f_ffff) as i32
        })
    }

    /// Running time of a buffer's time in nanoseconds; before the segment it is negative.
    fn running_time(&self, time: Option<gst::ClockTime>) -> Option<i64> {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>()?;
        let running = segment.to_running_time_full(time?)?;
        Some(match running {
            gst::Signed::Positive(time) => nanoseconds(time),
            gst::Signed::Negative(time) => -nanoseconds(time),
        })
    }

    /// For buffers without a time: when they came.
    fn clock_time(&self) -> i64 {
        let now = self.obj().current_running_time();
        now.map(nanoseconds).unwrap_or_default()
    }
}

fn nanoseconds(time: gst::ClockTime) -> i64 {
    i64::try_from(time.nseconds()).unwrap_or(i64::MAX)
}
