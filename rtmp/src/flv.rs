// SPDX-License-Identifier: MPL-2.0

//! What stands in front of a frame in an RTMP message or FLV tag body (FLV 10.1, sections
//! E.4.2 and E.4.3; Enhanced RTMP v1 for HEVC), `onMetaData`, and a reader for ready FLV.

use super::amf0::{self, Value};
use super::error::Error;

/// FourCC of HEVC in Enhanced RTMP.
const HVC1: [u8; 4] = *b"hvc1";

/// Stands before an `AVCDecoderConfigurationRecord`.
pub fn avc_sequence_header() -> [u8; 5] {
    [0x17, 0, 0, 0, 0]
}

/// Stands before the length-prefixed NAL units of one H.264 frame.
///
/// `composition_ms` is presentation time minus decoding time (signed 24 bits).
pub fn avc_frame(key: bool, composition_ms: i32) -> [u8; 5] {
    let [_, high, middle, low] = composition_ms.to_be_bytes();
    [if key { 0x17 } else { 0x27 }, 1, high, middle, low]
}

/// Stands before an `HEVCDecoderConfigurationRecord`.
pub fn hevc_sequence_header() -> [u8; 5] {
    enhanced(true, 0)
}

/// Stands before the length-prefixed NAL units of one HEVC frame shown when decoded.
pub fn hevc_frame(key: bool) -> [u8; 5] {
    enhanced(key, 3)
}

/// As [`hevc_frame`], for a stream that reorders its frames.
pub fn hevc_reordered_frame(key: bool, composition_ms: i32) -> [u8; 8] {
    let [kind, a, b, c, d] = enhanced(key, 1);
    let [_, high, middle, low] = composition_ms.to_be_bytes();
    [kind, a, b, c, d, high, middle, low]
}

fn enhanced(key: bool, packet_type: u8) -> [u8; 5] {
    let frame_type = if key { 1 } else { 2 };
    let [a, b, c, d] = HVC1;
    [0x80 | frame_type << 4 | packet_type, a, b, c, d]
}

/// Stands before an `AudioSpecificConfig`.
pub fn aac_sequence_header() -> [u8; 2] {
    [0xaf, 0]
}

/// Stands before one raw AAC frame.
pub fn aac_frame() -> [u8; 2] {
    [0xaf, 1]
}

/// Stands before one MP3 frame. Rates that FLV has no code for take the nearest; players
/// go by the MP3 frame itself.
pub fn mp3_frame(sample_rate: u32, channels: u32) -> [u8; 1] {
    let (format, rate) = match sample_rate {
        8_000 => (14, 0),
        0..=8_268 => (2, 0),
        8_269..=16_537 => (2, 1),
        16_538..=33_074 => (2, 2),
        _ => (2, 3),
    };
    [format << 4 | rate << 2 | 2 | u8::from(channels > 1)]
}

/// Does this audio body carry MP3, which has no sequence header?
pub fn is_mp3(body: &[u8]) -> bool {
    body.first()
        .is_some_and(|first| matches!(first >> 4, 2 | 14))
}

/// Does this video body carry a key frame (a sequence header is none)?
pub fn is_key_frame(body: &[u8]) -> bool {
    let Some(first) = body.first() else {
        return false;
    };
    let frame = match (first & 0x80 != 0, first & 0x0f) {
        (true, packet_type) => matches!(packet_type, 1 | 3),
        (false, 7) => body.get(1) == Some(&1),
        (false, _) => true,
    };
    frame && first >> 4 & 7 == 1
}

/// Does this video body carry a decoder configuration?
pub fn is_video_sequence_header(body: &[u8]) -> bool {
    match body {
        [first, ..] if first & 0x80 != 0 => first & 0x0f == 0,
        [first, packet_type, ..] => first & 0x0f == 7 && *packet_type == 0,
        _ => false,
    }
}

/// Does this audio body carry a decoder configuration?
pub fn is_audio_sequence_header(body: &[u8]) -> bool {
    matches!(body, [first, 0, ..] if first >> 4 == 10)
}

/// Is there a coded picture among these NAL units, each behind its length in `length_size` bytes?
pub fn has_picture(mut units: &[u8], length_size: usize, is_picture: fn(u8) -> bool) -> bool {
    while let Some((length, rest)) = units.split_at_checked(length_size) {
        let length = length
            .iter()
            .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        let Some(unit) = rest.get(..length) else {
            return false;
        };
        if unit.first().is_some_and(|first| is_picture(*first)) {
            return true;
        }
        units = &rest[length..];
    }
    false
}

/// Does this first byte of an H.264 NAL unit say that it is a slice (H.264, table 7-1)?
pub fn is_avc_picture(first: u8) -> bool {
    matches!(first & 0x1f, 1..=5)
}

/// Does this first byte of an H.265 NAL unit say that it is a slice (H.265, table 7-1)?
pub fn is_hevc_picture(first: u8) -> bool {
    first >> 1 & 0x3f < 32
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    H264,
    Hevc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AudioCodec {
    Aac,
    Mp3,
}

/// What `onMetaData` says; whatever is not known is left out (section E.5).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub framerate: Option<f64>,
    pub video_codec: Option<VideoCodec>,
    pub audio_codec: Option<AudioCodec>,
    pub sample_rate: Option<u32>,
    pub channels: Option<u32>,
}

impl Metadata {
    /// The body of a script data tag: `onMetaData` and its ECMA array.
    pub fn body(&self) -> Vec<u8> {
        let number = |name: &str, value: Option<f64>| {
            value.map(|value| (name.to_string(), Value::Number(value)))
        };
        let members = [
            number("width", self.width.map(f64::from)),
            number("height", self.height.map(f64::from)),
            number("framerate", self.framerate),
            number(
                "videocodecid",
                self.video_codec.map(|codec| match codec {
                    VideoCodec::H264 => 7.0,
                    VideoCodec::Hevc => f64::from(u32::from_be_bytes(HVC1)),
                }),
            ),
            number(
                "audiocodecid",
                self.audio_codec.map(|codec| match codec {
                    AudioCodec::Aac => 10.0,
                    AudioCodec::Mp3 => 2.0,
                }),
            ),
            number("audiosamplerate", self.sample_rate.map(f64::from)),
            number("audiosamplesize", self.audio_codec.map(|_| 16.0)),
            number("audiochannels", self.channels.map(f64::from)),
            self.channels
                .map(|channels| ("stereo".to_string(), Value::Boolean(channels > 1))),
            Some((
                "encoder".to_string(),
                concat!("droidrelay/", env!("CARGO_PKG_VERSION")).into(),
            )),
        ];
        let mut body = Vec::new();
        amf0::encode_string(&mut body, "onMetaData");
        Value::EcmaArray(members.into_iter().flatten().collect()).encode(&mut body);
        body
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagKind {
    Audio,
    Video,
    Script,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    pub kind: TagKind,
    pub timestamp_ms: u32,
    pub body: Vec<u8>,
}

/// Longest tag that is taken, well above any frame.
const MAX_TAG: usize = 8 * 1024 * 1024;
const TAG_HEADER: usize = 11;
const PREVIOUS_TAG_SIZE: usize = 4;

/// Reads an FLV byte stream that comes in any split. A file header may come again between
/// two tags, as after a restart of the muxer; without one at the start, tags are expected.
#[derive(Default)]
pub struct FlvReader {
    buffer: Vec<u8>,
    read: usize,
}

impl FlvReader {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend(bytes);
    }

    /// The next whole tag, `None` until more bytes are pushed. Tags of unknown type are
    /// skipped. After an error the reader must be replaced.
    pub fn next_tag(&mut self) -> Result<Option<Tag>, Error> {
        loop {
            let bytes = &self.buffer[self.read..];
            if bytes.first() == Some(&b'F') {
                let Some(header) = bytes.get(..9) else {
                    return Ok(None);
                };
                let size = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
                if !header.starts_with(b"FLV") || !(9..1024).contains(&size) {
                    return Err(Error::new("not FLV: its header is broken"));
                }
                let whole = size as usize + PREVIOUS_TAG_SIZE;
                if bytes.len() < whole {
                    return Ok(None);
                }
                self.read += whole;
                continue;
            }
            let Some(header) = bytes.get(..TAG_HEADER) else {
                return Ok(None);
            };
            let size = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            let timestamp_ms = u32::from_be_bytes([header[7], header[4], header[5], header[6]]);
            let kind = match header[0] {
                8 => Some(TagKind::Audio),
                9 => Some(TagKind::Video),
                18 => Some(TagKind::Script),
                // Bit 5 marks an encrypted tag, bits 6 and 7 are reserved.
                other if other & 0xc0 == 0 && other != 0 => None,
                other => {
                    return Err(Error::new(format!(
                        "not FLV: {other:#04x} where a tag should begin"
                    )));
                }
            };
            if size > MAX_TAG {
                return Err(Error::new(format!(
                    "an FLV tag of {size} bytes: more than {MAX_TAG} are not taken"
                )));
            }
            let end = TAG_HEADER + size;
            if bytes.len() < end + PREVIOUS_TAG_SIZE {
                return Ok(None);
            }
            let body = bytes[TAG_HEADER..end].to_vec();
            self.read += end + PREVIOUS_TAG_SIZE;
            if let Some(kind) = kind {
                return Ok(Some(Tag {
                    kind,
                    timestamp_ms,
                    body,
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Noise;
    use super::*;

    const HEADER: &[u8] = b"FLV\x01\x05\0\0\0\x09\0\0\0\0";

    fn tag(kind: u8, timestamp: u32, body: &[u8]) -> Vec<u8> {
        let [extension, time @ ..] = timestamp.to_be_bytes();
        let mut bytes = vec![kind];
        bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
        bytes.extend(time);
        bytes.extend([extension, 0, 0, 0]);
        bytes.extend(body);
        bytes.extend((body.len() as u32 + 11).to_be_bytes());
        bytes
    }

    #[test]
    fn frame_headers_are_as_the_specifications_say() {
        assert_eq!(avc_sequence_header(), [0x17, 0, 0, 0, 0]);
        assert_eq!(avc_frame(true, 0), [0x17, 1, 0, 0, 0]);
        assert_eq!(avc_frame(false, 33), [0x27, 1, 0, 0, 33]);
        assert_eq!(avc_frame(false, -2), [0x27, 1, 0xff, 0xff, 0xfe]);
        assert_eq!(&hevc_sequence_header(), b"\x90hvc1");
        assert_eq!(&hevc_frame(true), b"\x93hvc1");
        assert_eq!(&hevc_frame(false), b"\xa3hvc1");
        assert_eq!(&hevc_reordered_frame(true, 40), b"\x91hvc1\0\0\x28");
        assert_eq!(mp3_frame(44_100, 2), [0x2f]);
        assert_eq!(mp3_frame(22_050, 1), [0x2a]);
        assert_eq!(mp3_frame(8_000, 1), [0xe2]);
    }

    #[test]
    fn key_frames_and_sequence_headers_are_told_apart() {
        for (body, key, header) in [
            (&avc_sequence_header()[..], false, true),
            (&avc_frame(true, 0), true, false),
            (&avc_frame(false, 0), false, false),
            (&hevc_sequence_header(), false, true),
            (&hevc_frame(true), true, false),
            (&hevc_reordered_frame(true, 0), true, false),
            (&hevc_frame(false), false, false),
            (b"\x17\x02\0\0\0", false, false),
            (b"\x12", true, false),
            (b"", false, false),
        ] {
            assert_eq!(is_key_frame(body), key, "{body:x?}");
            assert_eq!(is_video_sequence_header(body), header, "{body:x?}");
        }
        assert!(is_audio_sequence_header(&aac_sequence_header()));
        assert!(!is_audio_sequence_header(&aac_frame()));
        assert!(!is_audio_sequence_header(&[0x2f, 0]));
    }

    #[test]
    fn pictures_are_found_behind_parameter_sets() {
        let units = |types: &[u8]| -> Vec<u8> {
            let units = types.iter().flat_map(|first| [0, 0, 0, 2, *first, 0]);
            units.collect()
        };
        for (types, picture) in [
            (&[0x67, 0x68, 0x65][..], true),
            (&[0x67, 0x68], false),
            (&[0x41], true),
            (&[], false),
        ] {
            assert_eq!(has_picture(&units(types), 4, is_avc_picture), picture);
        }
        assert!(has_picture(&units(&[0x40, 0x26]), 4, is_hevc_picture));
        assert!(!has_picture(
            &units(&[0x40, 0x42, 0x44]),
            4,
            is_hevc_picture
        ));
        assert!(has_picture(&[2, 0x41, 0], 1, is_avc_picture));
        let mut noise = Noise(5);
        for _ in 0..10_000 {
            let bytes: Vec<u8> = (0..noise.below(30)).map(|_| noise.below(9) as u8).collect();
            has_picture(&bytes, 1 + noise.below(4), is_avc_picture);
        }
    }

    #[test]
    fn metadata_says_what_is_known_and_nothing_else() {
        let body = Metadata {
            width: Some(640),
            framerate: Some(29.97),
            video_codec: Some(VideoCodec::Hevc),
            channels: Some(2),
            ..Default::default()
        }
        .body();
        let values = amf0::decode(&body);
        assert_eq!(values[0].as_str(), Some("onMetaData"));
        let number = |name| values[1].get(name).and_then(Value::as_number);
        assert_eq!(number("width"), Some(640.0));
        assert_eq!(number("framerate"), Some(29.97));
        assert_eq!(number("videocodecid"), Some(1_752_589_105.0));
        assert_eq!(values[1].get("stereo"), Some(&Value::Boolean(true)));
        assert_eq!(values[1].get("height"), None);
        assert_eq!(values[1].get("audiocodecid"), None);
        let encoder = values[1].get("encoder").and_then(Value::as_str).unwrap();
        assert!(encoder.starts_with("droidrelay/"), "{encoder}");
    }

    #[test]
    fn tags_read_back_in_every_split_of_their_bytes() {
        let mut bytes = HEADER.to_vec();
        bytes.extend(tag(18, 0, b"meta"));
        bytes.extend(tag(9, 0x0123_4567, &[5; 300]));
        bytes.extend(tag(15, 1, b"unknown"));
        bytes.extend(HEADER);
        bytes.extend(tag(8, 40, b""));
        for step in 1..bytes.len() {
            let mut reader = FlvReader::new();
            let mut tags = Vec::new();
            for piece in bytes.chunks(step) {
                reader.push(piece);
                while let Some(tag) = reader.next_tag().unwrap() {
                    tags.push((tag.kind, tag.timestamp_ms, tag.body.len()));
                }
            }
            let expected = [
                (TagKind::Script, 0, 4),
                (TagKind::Video, 0x0123_4567, 300),
                (TagKind::Audio, 40, 0),
            ];
            assert_eq!(tags, expected, "pieces of {step} bytes");
        }
    }

    #[test]
    fn what_is_not_flv_is_an_error_and_garbage_never_panics() {
        let mut reader = FlvReader::new();
        reader.push(b"\0\0\0\x18ftypmp42....");
        assert!(reader.next_tag().is_err());
        let mut noise = Noise(3);
        for _ in 0..50_000 {
            let mut reader = FlvReader::new();
            let bytes: Vec<u8> = (0..noise.below(60))
                .map(|_| [b'F', b'L', b'V', 0, 9, 8, noise.next() as u8][noise.below(7)])
                .collect();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_tag() {}
        }
    }
}
